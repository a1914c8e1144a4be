"""The table of late senses over clips with and without what each tells: `python -m pipeline.training.senses DIR ...`.

`senses.json` says what is so in clips that people looked at and listened to (null: nobody did); those found in the
folders are gone through. A stretch is right if a sense tells of it with its words, missed otherwise; what a sense tells
where nothing of the kind is, is false. Costs are processor seconds an hour of video, networks loaded before. Prints
markdown.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.bench.gleaning import HOUR, spent
from pipeline.senses.chosen import chosen, late_senses
from pipeline.sources.file import probe
from pipeline.stream import Event, LateSense

CLIPS = Path(__file__).with_suffix(".json")
ALIKE = 0.8  # share of letters from which words are those that are there


class Stretch(NamedTuple):
    """Seconds of a clip in which something is so, and the words of it."""

    start: float
    end: float
    words: str


class Score(NamedTuple):
    """clips: that have it, and that do not. right, missed: of the stretches; false: events. seconds: of video."""

    having: int = 0
    lacking: int = 0
    right: int = 0
    missed: int = 0
    false: int = 0
    cost: float = 0.0
    seconds: float = 0.0


def summed(scores: Sequence[Score]) -> Score:
    return Score(
        having=sum(one.having for one in scores),
        lacking=sum(one.lacking for one in scores),
        right=sum(one.right for one in scores),
        missed=sum(one.missed for one in scores),
        false=sum(one.false for one in scores),
        cost=sum(one.cost for one in scores),
        seconds=sum(one.seconds for one in scores),
    )


def judged(there: Sequence[Stretch], told: Sequence[Event]) -> Score:
    """Of one clip; without its cost."""
    right = sum(any(meets(event, one) and alike(event.text, one.words) for event in told) for one in there)
    false = sum(not any(meets(event, one) for one in there) for event in told)
    return Score(bool(there), not there, right, len(there) - right, false)


def meets(event: Event, stretch: Stretch) -> bool:
    """Whether they share time."""
    return event.time < stretch.end and stretch.start < (event.until or event.time + 1.0)


def alike(text: str, words: str) -> bool:
    """Whether the words stand in a text, but for a letter here and there."""
    plain, wanted = (" ".join("".join(c if c.isalnum() else " " for c in one.lower()).split()) for one in (text, words))
    matcher = SequenceMatcher(None, plain, wanted, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) >= ALIKE * len(wanted)


def measured(sense: LateSense, path: Path, there: Sequence[Stretch]) -> Score:
    """One clip gone through. Raises UserError for a file that cannot be read."""
    began = spent()
    told = [event for gleaned in sense.glean(str(path), threading.Event()) for event in gleaned.events]
    told = [event for event in told if event.kind != "sound" or event.text == "music"]  # what else sounds has no truth
    cost, seconds = spent() - began, float(probe(str(path)).get("seconds", 0.0))
    return judged(there, told)._replace(cost=cost, seconds=seconds)


def found(folders: Iterable[Path], known: dict[str, dict], sense: str) -> dict[Path, list[Stretch]]:
    """The clips of the table that lie in some folders, with the stretches for a sense; without those nobody judged."""
    paths = [folder / name for folder in folders for name in known if (folder / name).is_file()]
    there = {path: known[path.name].get(sense, []) for path in paths}
    return {path: [Stretch(*one) for one in each] for path, each in there.items() if each is not None}


def row(name: str, score: Score) -> str:
    """A line of the table."""
    all_told, hourly = score.right + score.missed, round(score.cost / score.seconds * HOUR) if score.seconds else 0
    clips = f"{score.having} with, {score.lacking} without"
    return f"| `{name}` | {clips} | {score.right} of {all_told} | {score.missed} | {score.false} | {hourly} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="where clips of senses.json lie")
    parser.add_argument("--senses", default=None, metavar="NAMES", help="which of them (default: all)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    known = json.loads(CLIPS.read_text(encoding="utf-8"))
    print("| sense | clips | right | missed | false | processor seconds an hour |\n|---|---|---|---|---|---|")
    for sense in late_senses(chosen(args.senses)):
        clips = found(args.folders, known, sense.name)
        if not clips:
            parser.error(f"no clip of senses.json for {sense.name} lies there")
        measured(sense, next(iter(clips)), ())  # loads what it needs
        print(row(sense.name, summed([measured(sense, *clip) for clip in clips.items()])), flush=True)


if __name__ == "__main__":
    main()
