"""`python -m pipeline bench`: what an hour of video costs. The only file that knows both sizes; see README.md.

The readable table comes first; the last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse

from pipeline.options import ModelOptions
from pipeline.stream import UserError

MODEL, BASELINE = "embedded", "embedded-twin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=MODEL, help=f"a model's name or folder (default: {MODEL})")
    parser.add_argument("--baseline", default=BASELINE, help=f'what to compare with, or "none" (default: {BASELINE})')
    parser.add_argument("--size", choices=["embedded", "published"], default="embedded", help="which pair to measure")
    parser.add_argument(
        "--minutes", type=int, nargs="+", default=[1, 15, 60], help="when to measure (default: 1 15 60)"
    )
    parser.add_argument("--frames", type=int, metavar="N", help="pictures per chunk (default: 8; published: 64)")
    group = parser.add_argument_group("published size only")
    group.add_argument("--baseline-frames", type=int, metavar="N", help="how far the baseline watches (default: 1024)")
    ModelOptions.add_flags(group)
    group.add_argument(
        "--loading", metavar="FOLDER", help="only load the checkpoint there; where there is none, write a random one"
    )
    group.add_argument("--no-tower", dest="tower", action="store_false", help="leave the vision tower out")
    parser.add_argument("--json", action="store_true", help="print only the JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    """Measures one pair; torch is imported only when the figures asked for can be."""
    frames = 1 if args.frames is None else args.frames
    if not all(1 <= minute <= 600 for minute in args.minutes) or not 1 <= frames <= 512:
        raise UserError("These marks cannot be measured; choose minutes of 1 to 600 and 1 to 512 pictures a chunk.")
    if args.size == "published":
        from pipeline.bench import published

        return published.run(args)
    from pipeline.bench import embedded

    return embedded.run(args)
