"""`python -m pipeline events FILE`: what happens when in a video, as a file of another program."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.clock import parse_mmss
from pipeline.commands.ask import MODEL, check_file, gleaned_with_progress, viewer_of, watch_file
from pipeline.options import ModelOptions
from pipeline.sources.readers import choose_readers
from pipeline.stream import Event, Frame, StreamState, UserError
from pipeline.timeline import export
from pipeline.timeline.clip import AROUND, clip
from pipeline.timeline.gleaner import Gleaner, Played
from pipeline.timeline.timeline import Timeline

CLIP = "mp4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", help="a video file")
    parser.add_argument("--format", default="md", choices=[*FORMATS, CLIP], help="of what is written (default: md)")
    parser.add_argument("--out", metavar="FILE", help="where to write it (default: to the terminal)")
    parser.add_argument(
        "--rule", action="append", default=[], metavar="TEXT", help='be told of it: "a person enters"; may be repeated'
    )
    parser.add_argument("--at", metavar="MM:SS", help=f"the moment of a clip (--format {CLIP})")
    parser.add_argument("--around", type=float, default=AROUND, metavar="S", help="seconds of it on each side")
    parser.add_argument("--model", default=MODEL, help=f"a model's name or folder (default: {MODEL})")
    parser.add_argument("--fps", type=float, default=1.0, help="pictures to watch per second of video (default: 1)")
    parser.add_argument("--readers", type=int, metavar="N", help="processes that decode the file (default: every core)")
    ModelOptions.add_flags(parser.add_argument_group("Vamba checkpoints only (--kernels, --senses: all)"))


class Noticed:
    """A timeline that is filled while a file is watched, and what each chunk cost."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline, self.gleaner = timeline, Gleaner(timeline.engine.model.late_senses)
        self.costs: list[dict[str, Any]] = []
        self._watched_s = 0.0

    @property
    def events(self) -> tuple[Event, ...]:
        return (*self.timeline.events, *self.gleaner.events)

    def watched(self, frames: tuple[Frame, ...], state: StreamState, watched_s: float) -> None:
        """After a chunk. watched_s: seconds that watching has taken so far."""
        began = time.perf_counter()
        self.timeline.watched(frames, state)
        self.costs.append(
            {
                "seen_until": state.seen_until,
                "frames": len(frames),
                "watch_ms": round((watched_s - self._watched_s) * 1e3, 3),
                "notice_ms": round((time.perf_counter() - began) * 1e3, 3),
                "state_bytes": state.state_bytes,
                "memory_bytes": state.memory_bytes,
            }
        )
        self._watched_s = watched_s


def run(args: argparse.Namespace) -> int:
    choose_readers(args.readers)
    if args.format == CLIP:
        return _cut(args)
    options = ModelOptions.from_flags(args)
    check_file(args.video, args.fps)
    viewer = viewer_of(args.model, options)
    noticed = Noticed(Timeline(viewer.engine))
    for rule in args.rule:
        print(noticed.timeline.add_rule(rule).says, file=sys.stderr)
    viewer.noticed = noticed.watched
    watch_file([viewer], args.video, args.fps, None)
    noticed.timeline.finish(viewer.state)
    if args.format != "csv":  # what watching cost
        gleaned_with_progress(noticed.gleaner, [Played(args.video)])
    _write(FORMATS[args.format](args, noticed, viewer.state.seen_until), args.out)
    return 0


def _cut(args: argparse.Namespace) -> int:
    """A clip needs no model: nothing is watched."""
    if args.at is None or args.out is None:
        raise UserError("A clip is of a moment and a file, so none was made; give --at MM:SS and --out FILE.")
    count = clip(args.video, parse_mmss(args.at), args.out, args.around)
    print(f"{args.out}: {count} pictures around {args.at}", file=sys.stderr)
    return 0


def _write(text: str, out: str | None) -> None:
    if out is None:
        print(text, end="")
        return
    try:
        Path(out).write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        why = error.strerror or "it failed"
        raise UserError(f"{out} could not be written ({why}), so nothing was kept; choose another --out.") from None


def _json(args: argparse.Namespace, noticed: Noticed, end: float) -> str:
    timeline = noticed.timeline
    rules = [{"rule": rule.text, "says": rule.says, "cool_down": rule.cool_down} for rule in timeline.rules]
    about = {"video": Path(args.video).name, "model": timeline.engine.name, "seen_until": end, "rules": rules}
    about |= {"senses": [asdict(reach) for reach in noticed.gleaner.reaches]}
    return export.as_json(noticed.events, {**about, "chunks": noticed.costs})


FORMATS: dict[str, Callable[[argparse.Namespace, Noticed, float], str]] = {
    "md": lambda args, noticed, end: export.markdown(noticed.events, Path(args.video).name, end),
    "vtt": lambda args, noticed, end: export.vtt(noticed.events, end),
    "srt": lambda args, noticed, end: export.srt(noticed.events, end),
    "json": _json,
    "csv": lambda args, noticed, end: export.csv_table(noticed.costs),
}
