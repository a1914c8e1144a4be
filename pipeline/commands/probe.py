"""`python -m pipeline probe FILE`: what is in a video file, or why it cannot be read."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import pipeline
from pipeline.clock import mmss
from pipeline.sources.readers import choose_readers
from pipeline.sources.refusals import NO_FILE
from pipeline.stream import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", help="a video file")
    parser.add_argument("--fps", type=float, default=1.0, help="pictures to count per second of video (default: 1)")
    parser.add_argument("--readers", type=int, metavar="N", help="processes that decode the file (default: every core)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(args: argparse.Namespace) -> int:
    """0 for a video; 1 for a file that is none, 2 for no file, with the kind of trouble and its sentence."""
    check_fps(args.fps)
    choose_readers(args.readers)
    found = pipeline.probe(args.video, fps=args.fps)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    elif found["ok"]:
        print(_described(found, args.fps))
    else:
        print(f"{found['kind']}: {found['message']}", file=sys.stderr)
    if found["ok"]:
        return 0
    return 2 if found["kind"] in NO_FILE else 1


def check_fps(fps: float) -> None:
    """UserError unless a video can be watched at so many pictures a second."""
    if not 0 < fps <= 60:
        raise UserError(f"{fps:g} pictures a second cannot be watched; choose more than 0 and at most 60.")


def _described(found: dict[str, Any], fps: float) -> str:
    damage = f"; {found['skipped']} damaged packets skipped" if found["skipped"] else ""
    about = (
        f"{found['width']}x{found['height']} {found['codec']} in {found['container']}, {mmss(found['seconds'])} long: "
        f"{found['frames']} pictures at {fps:g} a second{damage}"
    )
    return "\n".join([about, *found["notes"]])
