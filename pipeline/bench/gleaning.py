"""What the late senses find in files, and what that costs: `python -m pipeline.bench.gleaning FILE ...`. JSON lines.

One line a file and sense: events, the first of them in words, and processor seconds, of this process and of the reading
one, an hour of such video. Networks are loaded before: that is paid once.
"""

from __future__ import annotations

import argparse
import json
import resource
import threading
from collections.abc import Sequence

import torch

from pipeline.senses.chosen import chosen, late_senses
from pipeline.sources.file import probe
from pipeline.stream import Event, LateSense

HOUR = 3600.0


def spent() -> float:
    """Processor seconds of this process and of its children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def measured(sense: LateSense, path: str) -> dict[str, object]:
    began, found, lacks = spent(), list[Event](), ""
    for gleaned in sense.glean(path, threading.Event()):
        found += gleaned.events
        lacks = lacks or gleaned.lacks
    cost, seconds = spent() - began, probe(path).get("seconds", 0.0)
    return {
        "file": path.rpartition("/")[2],
        "sense": sense.name,
        "events": len(found),
        "told": [f"{event.time:.1f} {event.text}" for event in found[:4]] or lacks,
        "cpu_s_an_hour": round(cost / seconds * HOUR) if seconds else None,
        "rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--senses", default=None, metavar="NAMES", help="which of them (default: all)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    senses = late_senses(chosen(args.senses))
    for sense in senses:  # loads what it needs
        measured(sense, args.files[0])
    for path in args.files:
        for sense in senses:
            print(json.dumps(measured(sense, path)), flush=True)


if __name__ == "__main__":
    main()
