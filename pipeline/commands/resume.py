"""`python -m pipeline resume FOLDER QUESTION`: goes on with a kept stream, watches its video to the end, answers.

What is in the folder is checked before any of it is believed (pipeline/keeping). The state comes back bit for bit; with
--at it is that of an earlier second, watched on from the nearest point before it, and the folder stays as it is. With
--fork what comes is kept in a folder of its own: the stream goes on from that second there, or with --then another file
is watched on from it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pipeline
from pipeline.clock import mmss, parse_mmss
from pipeline.commands.ask import MODEL as SHIPPED
from pipeline.commands.ask import (
    TWIN,
    Viewer,
    add_answer_arguments,
    answered,
    check_file,
    closing_keepers,
    document_of,
    watch_file,
    with_gleaned,
)
from pipeline.engine import Engine, checked
from pipeline.keeping.archive import unpacked
from pipeline.keeping.found import Resumed
from pipeline.keeping.keeper import Keeper
from pipeline.keeping.kept import KeptStream
from pipeline.keeping.reels import Reel, Shown, Stretch
from pipeline.options import ModelOptions
from pipeline.stream import JSON, Question, Sampling, UserError
from pipeline.timeline.gleaner import Played


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="a folder that was given to --keep, or an archive taken along from the page")
    parser.add_argument("question", help="what to ask, in quotes; '': nothing, the stream is only watched on")
    parser.add_argument("--model", help="the model that watched, where it is none of those that come with the code")
    parser.add_argument("--at", metavar="MM:SS", help="as it was there: answer from what was seen until then")
    parser.add_argument("--fork", metavar="FOLDER", help="keep what comes there, as a stream of its own from then on")
    parser.add_argument("--then", metavar="FILE", help="with --fork: watch this video on from there, in one stream")
    parser.add_argument("--again", action="store_true", help="watch its video again from the start, by any model")
    add_answer_arguments(parser)
    ModelOptions.add_flags(parser.add_argument_group("Vamba checkpoints only (--kernels, --mode, --senses: all)"))


def run(args: argparse.Namespace) -> int:
    """As `ask`; what was lost or could not be kept is told on stderr."""
    at = math.inf if args.at is None else parse_mmss(args.at)
    sampling = Sampling(max_tokens=args.max_tokens)
    question = checked(Question(args.question), sampling) if args.question else None
    if args.then:
        if not args.fork:
            raise UserError("Another file is watched on in a fork alone, so nothing was; name its folder with --fork.")
        check_file(args.then, 1.0)
    folder = Path(args.folder)
    if folder.is_file():
        folder = unpacked(folder)
        print(f"Opened in {folder}.", file=sys.stderr)
    with closing(KeptStream.open(folder)) as kept:
        kept.check_video()
        engine = Engine(pipeline.load(_model(kept, args), **_options(kept, args).given()))
        viewer = _watched_on(kept, engine, args, at)
        played = [] if args.then else _played(kept, viewer.state.seen_until)
    if question is None:
        print(f"Seen until {mmss(viewer.state.seen_until)}: {viewer.state.frames:,} pictures.")
        return 0
    question = with_gleaned(engine, question, played) if played else question
    answer = answered(viewer, question, sampling, args.json)
    if args.json:
        print(json.dumps(document_of(viewer, answer), ensure_ascii=False))
    return 0


def _played(kept: KeptStream, end: float) -> list[Played]:
    """The stream's files, for the late senses, as far as they were seen."""
    reels = [reel for reel in kept.reels if reel.begins <= end]
    ends = [*(reel.begins for reel in reels[1:]), end]
    return [
        Played(str(kept.folder / reel.file), reel.begins, until)
        for reel, until in zip(reels, ends)
        if "video" in reel.about
    ]


def _watched_on(kept: KeptStream, engine: Engine, args: argparse.Namespace, at: float) -> Viewer:
    """Who has seen all that was to be seen, kept where that was wished."""
    cuts = kept.found.cuts
    newest = cuts[-1].until if cuts else 0.0
    until = min(at, newest) if args.then else at
    resumed = Resumed(engine.start()) if args.again else kept.found.newest(engine.model, until)
    if resumed.note:
        print(resumed.note, file=sys.stderr)
    viewer = Viewer(engine, resumed.state)
    todo = [Todo.of(stretch, kept) for stretch in kept.stretches(resumed, until)]
    with _keeping(viewer, kept, resumed, until, args):
        begins = _announce(viewer, Path(args.then), until if cuts else None, todo[-1].fps) if args.then else 0.0
        for one in todo:
            one.watch(viewer, kept.folder)
        if args.then:
            _watch_another(viewer, Path(args.then), todo[-1], begins)
    return viewer


@dataclass(frozen=True)
class Todo:
    """A stretch that is to be watched. fps: pictures a second; of a camera 0. shown: what the camera showed."""

    stretch: Stretch
    fps: float
    shown: list[Shown]

    @classmethod
    def of(cls, stretch: Stretch, kept: KeptStream) -> Todo:
        """Looked up before anything is written. Raises UserError where something is missing."""
        if "video" in stretch.reel.about:
            return cls(stretch, _fps(stretch.reel), [])
        return cls(stretch, 0.0, kept.shown(stretch))

    def watch(self, viewer: Viewer, folder: Path) -> None:
        stretch, reel = self.stretch, self.stretch.reel
        viewer.position = stretch.position
        if viewer.keeper:
            viewer.keeper.do(partial(viewer.keeper.kept.turn_to, reel.number))
        if self.fps:
            until = None if stretch.until == math.inf else stretch.until
            watch_file([viewer], str(folder / reel.file), self.fps, until, stretch.sizes, reel.begins)
        for chunk in self.shown:
            viewer.watch(chunk.frames(viewer.engine.long_side))
        viewer.conclude()


@contextmanager
def _keeping(
    viewer: Viewer, kept: KeptStream, resumed: Resumed, until: float, args: argparse.Namespace
) -> Iterator[None]:
    """What is watched is kept: in the fork, or in the same folder where it goes on as it was left; else nowhere."""
    cuts = kept.found.cuts
    if args.fork:
        kept.fork(Path(args.fork))
        with closing(KeptStream.open(Path(args.fork))) as fork:
            fork.go_on_from(resumed, viewer.engine.model, until)
            viewer.keeper = Keeper(viewer.engine, fork)
            with closing_keepers([viewer]):
                yield
    elif args.again or (cuts and until < cuts[-1].until):
        yield
    else:
        kept.go_on_from(resumed, viewer.engine.model)
        viewer.keeper = Keeper(viewer.engine, kept)
        with closing_keepers([viewer]):
            yield


def _announce(viewer: Viewer, path: Path, until: float | None, fps: float) -> float:
    """Another file is to come in the same stream: written before anything is watched, so that nothing that ends this
    command makes it forgotten. Its second in the stream: that of the picture which would have come next. until: second
    to which what is there is watched, None where nothing is."""
    fps = fps or 1.0
    begins = 0.0 if until is None else until + 1 / fps
    about: dict[str, JSON] = {"source": "file", "name": path.name, "fps": fps}
    if viewer.keeper:
        viewer.keeper.do(partial(viewer.keeper.kept.go_on_with, about, begins, until or 0.0, path))
    return begins


def _watch_another(viewer: Viewer, path: Path, before: Todo, begins: float) -> None:
    if viewer.keeper:
        viewer.keeper.do(partial(viewer.keeper.kept.turn_to, before.stretch.reel.number + 1))
    print(f"{path.name} begins at {mmss(begins)} of the stream.", file=sys.stderr)
    viewer.position = 0
    watch_file([viewer], str(path), before.fps or 1.0, None, begins=begins)


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


def _fps(reel: Reel) -> float:
    fps = reel.about.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= 1000:
        raise UserError("What was kept does not say how its video was watched, so it cannot go on; start it again.")
    return float(fps)
