"""`python -m pipeline recall FILE`: what a model and its partner still say of moments 1, 5, 15 and 60 minutes ago."""

from __future__ import annotations

import argparse
import bisect
import json
from collections.abc import Sequence

import numpy as np

import pipeline
from pipeline.clock import mmss
from pipeline.commands.ask import MODEL, check_file, viewer_of, watch_file
from pipeline.options import ModelOptions
from pipeline.sources.camera import decode_jpeg, thumbnail
from pipeline.stream import Frame, StreamState
from pipeline.timeline.recall import Aged, Recall, Remembering, Score, recall

WIDTH = 416  # pixels of a kept picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", help="a video file")
    parser.add_argument("--model", default=MODEL, help=f"a model's name or folder (default: {MODEL})")
    parser.add_argument("--alone", action="store_true", help="without the model's partner")
    parser.add_argument("--fps", type=float, default=1.0, help="pictures to watch per second of video (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    ModelOptions.add_flags(parser.add_argument_group("Vamba checkpoints only (--kernels, --mode: all)"))


class Kept:
    """Small pictures of a file as it is watched, which are seen again afterwards."""

    def __init__(self) -> None:
        self._pictures: list[tuple[float, bytes]] = []

    def watched(self, frames: tuple[Frame, ...], _: StreamState, __: float) -> None:
        self._pictures += [(frame.time, thumbnail(frame, WIDTH)) for frame in frames]

    def between(self, start: float, end: float) -> Sequence[Frame]:
        first, last = (bisect.bisect_left(self._pictures, (at, b"")) for at in (start, end))
        return [Frame(np.asarray(decode_jpeg(jpeg)), at) for at, jpeg in self._pictures[first:last]]


def run(args: argparse.Namespace) -> int:
    check_file(args.video, args.fps)
    options, kept = ModelOptions.from_flags(args), Kept()
    viewers = [viewer_of(args.model, options)]
    if not args.alone:
        rival = pipeline.partner_of(args.model)
        viewers.append(viewer_of(rival, pipeline.beside(rival, options)))
    viewers[0].noticed = kept.watched
    watch_file(viewers, args.video, args.fps, None)
    own, *rivals = (Remembering(viewer.engine, viewer.state) for viewer in viewers)
    *_, found = recall(own, rivals, kept.between)
    names = [viewer.engine.name for viewer in viewers]
    if args.json:
        told = [{"model": name, "ages": [aged.document for aged in one]} for name, one in zip(names, found)]
        print(json.dumps({"seen_until": own.state.seen_until, "recall": told}, ensure_ascii=False))
    else:
        print("\n".join(line for name, one in zip(names, found) for line in _lines(name, one)))
    return 0


def _lines(name: str, recalled: Recall) -> list[str]:
    return [name, *(f"  {mmss(aged.age):>7} ago: {_told(aged)}" for aged in recalled)]


def _told(aged: Aged) -> str:
    if aged.young:
        return "the video is younger"
    return f"by the index {words(aged.index)}; by the kept pictures {words(aged.pictures)}"


def words(score: Score) -> str:
    """ "7 of 9 things (78 %, 45 to 94 %)"."""
    if not score.of:
        return "nothing was there that could be named"
    low, high = score.interval
    return f"{score.named} of {score.of} things ({score.share:.0%}, {low:.0%} to {high:.0%})".replace("%", " %")
