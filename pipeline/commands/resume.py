"""`python -m pipeline resume FOLDER QUESTION`: goes on with a kept stream, watching its video to the end, and answers.

What is in the folder is checked before any of it is believed (pipeline/keeping). The state comes back bit for bit; with
--at it is that of an earlier second, watched on from the nearest point before it, and the folder stays as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pipeline
from pipeline.clock import parse_mmss
from pipeline.commands.ask import MODEL as SHIPPED
from pipeline.commands.ask import (
    TWIN,
    Viewer,
    add_answer_arguments,
    answered,
    closing_keepers,
    document_of,
    watch_file,
)
from pipeline.engine import Engine, checked
from pipeline.keeping.found import Cut, Resumed
from pipeline.keeping.keeper import Keeper
from pipeline.keeping.kept import KeptStream
from pipeline.options import ModelOptions
from pipeline.stream import Question, Sampling, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a folder that was given to --keep, or taken along from the page")
    parser.add_argument("question", help="what to ask, in quotes")
    parser.add_argument("--model", help="the model that watched, where it is none of those that come with the code")
    parser.add_argument("--at", metavar="MM:SS", help="as it was there: answer from what was seen until then")
    parser.add_argument("--again", action="store_true", help="watch its video again from the start, by any model")
    add_answer_arguments(parser)
    ModelOptions.add_flags(parser.add_argument_group("Vamba checkpoints only (--kernels, --mode: all)"))


def run(args: argparse.Namespace) -> int:
    """As `ask`; what was lost or could not be kept is told on stderr."""
    until = math.inf if args.at is None else parse_mmss(args.at)
    sampling = Sampling(max_tokens=args.max_tokens)
    question = checked(Question(args.question), sampling)
    kept = KeptStream.open(Path(args.folder))
    try:
        kept.check_video()
        viewer, sizes = _resumed(kept, args, until)
        with closing_keepers([viewer]):
            watch_file([viewer], str(kept.video), _fps(kept), None if until == math.inf else until, sizes)
    finally:
        kept.close()
    answer = answered(viewer, question, sampling, args.json)
    if args.json:
        print(json.dumps(document_of(viewer, answer), ensure_ascii=False))
    return 0


def _resumed(kept: KeptStream, args: argparse.Namespace, until: float) -> tuple[Viewer, Sequence[int]]:
    """Who goes on watching, and the sizes of the chunks that were watched after its state."""
    engine = Engine(pipeline.load(_model(kept, args), **_options(kept, args).given()))
    cuts = kept.found.cuts
    if args.again:
        resumed = Resumed(engine.start())
    else:
        resumed = kept.found.newest(engine.model, until)
    if resumed.note:
        print(resumed.note, file=sys.stderr)
    viewer = Viewer(engine, resumed.state, position=resumed.position)
    sizes = _sizes(cuts[resumed.cut.number + 1 if resumed.cut else 0 :], resumed.position)
    if not args.again and not (cuts and until < cuts[-1].until):  # it goes on where it was left
        kept.go_on_from(resumed, engine.model)
        viewer.keeper = Keeper(engine, kept)
    return viewer, sizes


def _sizes(cuts: Sequence[Cut], position: int) -> list[int]:
    """Of the chunks as they were watched; one that was left out counts with the next."""
    ends = [position, *(cut.position for cut in cuts)]
    return [after - before for before, after in pairwise(ends) if after > before]


def _model(kept: KeptStream, args: argparse.Namespace) -> str:
    """What a folder says is believed of models that come with the code alone: another name might be anybody's."""
    named = args.model or kept.about.get("model")
    if not args.model and named not in (SHIPPED, TWIN):
        raise UserError(
            f"This stream was watched by {str(named)[:60]!r}, which is loaded only where you name it, so nothing was; "
            "repeat the command with --model."
        )
    return str(named)


def _options(kept: KeptStream, args: argparse.Namespace) -> ModelOptions:
    told = kept.about.get("options")
    return ModelOptions.from_flags(args, ModelOptions.checked(told if isinstance(told, dict) else {}))


def _fps(kept: KeptStream) -> float:
    fps = kept.about.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= 1000:
        raise UserError("What was kept does not say how its video was watched, so it cannot go on; start it again.")
    return float(fps)
