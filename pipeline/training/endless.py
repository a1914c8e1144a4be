"""What a stream without an end still finds, by how long ago it was: `python -m pipeline.training.endless --data DIR`.

Drawn streams (episodes.py) of pictures never trained on are watched by the product's own engine three times: with
everything kept, with `--endless N`, and, so that one sees what the file is worth, with the newest N minutes alone. Each
is asked the same questions at the same seconds. Judged are the moment that the locator finds, and what a visitor gets:
the time an answer states, else the moment it rests on. What towers and senses find in a view they find once. One JSON
line last.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import pipeline
from pipeline.engine import Engine
from pipeline.memory.memory import Policy
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.embedded_reading import Reading
from pipeline.questions.notes import Verdict
from pipeline.senses.sensed import Senses
from pipeline.stream import Answer, Frame, Question, Sampling, StreamState, VideoChunk
from pipeline.towers.frame_tower import FrameFeatures
from pipeline.training.data import Picture, pictures, read_all
from pipeline.training.episodes import VIEWS, Episode, Shot, World, generate
from pipeline.training.evaluate import Cell, judge_verdict
from pipeline.training.features import batches, draw, render
from pipeline.training.metrics import DOUBTS, bootstrap, stated_times
from pipeline.training.questions import Example

RECIPES = ("when", "describe", "after", "before", "yesno", "where_nothing")  # what points at a moment, or at none
AGES = (15, 30, 60)  # minutes, past the newest ones
NEVER = "never shown"
DRAWN = 12  # questions drawn for each that is asked, to have some of every age
NEAR = 5  # seconds from a shot's start at which "when" is right, as in evaluate.py
SIZE = (312, 416)  # height, width of a view
PER_RUN = 8  # pictures
WORDS = 24  # of an answer
KEPT = "everything kept"


# ---------------------------------------------------------------- views that are looked at once


class Seen:
    """What towers and senses found in N views. A frame's picture is one pixel, whose colour is the number of a view."""

    def __init__(self, features: FrameFeatures, sensed: dict[str, Tensor]):
        self.features, self.sensed = features, sensed

    def __call__(self, shown: Sequence[np.ndarray]) -> FrameFeatures:
        rows = self.rows(shown)
        return FrameFeatures(*(column[rows.to(column.device)] for column in self.features))

    @staticmethod
    def pixel(row: int) -> np.ndarray:
        return np.array([[[row >> 16, row >> 8 & 255, row & 255]]], np.uint8)

    @staticmethod
    def rows(shown: Sequence[np.ndarray]) -> Tensor:
        return torch.tensor([int(pixel[0, 0] @ np.array([1 << 16, 1 << 8, 1])) for pixel in shown])


class SensesOf(Senses):
    """Senses that tell what was seen."""

    def __init__(self, senses: Senses, seen: Seen):
        self.__dict__.update(senses.__dict__)
        self._seen = seen

    def see(self, frames: Sequence[np.ndarray], features: FrameFeatures) -> dict[str, Tensor]:
        rows = self._seen.rows(frames)
        return {name: numbers[rows] for name, numbers in self._seen.sensed.items()}


def views(stills: Iterable[np.ndarray], seed: int) -> Iterator[np.ndarray]:
    """The six views of every picture, uint8 (6, 312, 416, 3), along paths that are drawn as for training."""
    dice = torch.Generator().manual_seed(seed)
    for some in batches(stills, PER_RUN):
        shown = render(some.permute(0, 3, 1, 2).float(), *draw(len(some), VIEWS, dice), SIZE)
        yield from shown.round().to(torch.uint8).unflatten(0, (-1, VIEWS)).numpy()


def look(model: EmbeddedModel, shown: Iterable[np.ndarray]) -> Seen:
    """What the model's towers and senses find in groups of views, in their order."""
    found, sensed = [], []
    for group in shown:
        found.append(model.tower(list(group)))
        sensed.append(model.senses.see(list(group), found[-1].cpu()))
    return Seen(
        FrameFeatures(*map(torch.cat, zip(*found))), {n: torch.cat([s[n] for s in sensed]) for n in model.senses.widths}
    )


# ---------------------------------------------------------------- streams and what is asked about them


class Stream(NamedTuple):
    """frames: one a second. questions: in the order of the seconds at which they are put."""

    episode: Episode
    frames: list[Frame]
    questions: list[Example]


def age(q: Example, shots: Sequence[Shot]) -> float | None:
    """Seconds since what is asked about was last on the screen; None where it never was."""
    return min((max(0, q.asked_at - shots[s].end) for s in q.target_shots), default=None)


def rows_of(newest: float) -> list[str]:
    """The ages that are told apart. newest: minutes that stay in memory."""
    bounds = [newest, *(a for a in AGES if a > newest)]
    between = [f"{low:g} to {high:g} min" for low, high in pairwise(bounds)]
    return [f"under {newest:g} min", *between, f"over {bounds[-1]:g} min", NEVER]


def row_of(q: Example, shots: Sequence[Shot], newest: float) -> str:
    ago = age(q, shots)
    bounds = [newest, *(a for a in AGES if a > newest)]
    return NEVER if ago is None else rows_of(newest)[bisect_right(bounds, ago / 60)]


def chosen(episode: Episode, count: int, newest: float) -> list[Example]:
    """About `count` questions, as many of every age as there are."""
    by_age: dict[str, list[Example]] = defaultdict(list)
    for q in episode.questions:
        of_now = q.recipe == "yesno" and q.note_time == q.asked_at  # is asked of the picture on the screen
        if q.recipe in RECIPES and not of_now and bool(q.target_shots) != q.absent:
            by_age[row_of(q, episode.shots, newest)].append(q)
    each = -(-count // len(rows_of(newest)))
    return sorted((q for some in by_age.values() for q in some[:each]), key=lambda q: q.asked_at)


def drawn(world: World, pool: np.ndarray, args: argparse.Namespace) -> list[Episode]:
    rng = np.random.default_rng(args.seed)
    length, count = round(60 * args.minutes), DRAWN * args.questions
    return [generate(world, pool, rng, length, count, "test") for _ in range(args.streams)]


# ---------------------------------------------------------------- asking and judging


class Outcome(NamedTuple):
    """found: whether the moment is the right one, by the rules of evaluate.py. of: right, unsure or false, of what is
    said. off: seconds from the moment that is said to a right one; None where none is, or none is right. said: the
    answer's words and the seconds it rests on."""

    found: bool
    of: str
    off: float | None
    said: tuple[str, tuple[float, ...]]


def outcome(q: Example, verdict: Verdict, answer: Answer, episode: Episode) -> Outcome:
    cells: dict[str, Cell] = defaultdict(Cell)
    judge_verdict(q, verdict, episode, cells)
    asked_for = {"when": "when", "where_nothing": "absent_refused", "yesno": "no" if q.absent else "yes"}
    (found,) = cells[asked_for.get(q.recipe, "evidence_inside")].values
    rests = tuple(moment.time for moment in answer.evidence)
    return Outcome(bool(found), *judged(q, answer.text, rests, episode.shots), (answer.text, rests))


def judged(q: Example, text: str, rests: Sequence[float], shots: Sequence[Shot]) -> tuple[str, float | None]:
    """ "When" is right within 5 s of a shot's start; of a description the moment counts alone, inside its shot (a
    second more either way). Not to have seen what was shown is false, to say that one is not sure is neither."""
    if DOUBTS.search(text):
        return "unsure", None
    moment = next(iter([*stated_times(text), *rests]), None)
    denied = moment is None or "have not seen" in text or text.lower().startswith("no")
    if q.recipe == "yesno" and not denied and not text.lower().startswith("yes"):
        return "unsure", None
    if q.absent or denied or moment is None:
        return "right" if q.absent and denied else "false", None
    off = off_by(q, moment, shots)
    near = q.recipe == "yesno" or off <= (NEAR if q.recipe == "when" else 1)
    return "right" if near else "false", off


def off_by(q: Example, moment: float, shots: Sequence[Shot]) -> float:
    """Seconds from a moment to the nearest right one."""
    if q.recipe == "when":
        return min(abs(moment - shots[s].start) for s in q.target_shots)
    return min(max(shots[s].start - moment, moment - shots[s].end, 0) for s in q.target_shots)


def asked(model: EmbeddedModel, stream: Stream) -> tuple[list[Outcome], StreamState]:
    """Every question's outcome, put when no later picture has been seen, and the stream after the last."""
    engine, outcomes = Engine(model), []
    state = engine.start()
    for q in stream.questions:
        while (seen := state.frames) <= q.asked_at:
            until = min(seen + engine.chunk_frames(len(stream.frames)), q.asked_at + 1)
            state = engine.watch(VideoChunk(tuple(stream.frames[seen:until])), state)
        question = Question(q.text)
        *_, answer = engine.ask(question, state, Sampling(max_tokens=WORDS))
        outcomes.append(outcome(q, Reading(model, question, state).verdict, answer, stream.episode))
    return outcomes, state


# ---------------------------------------------------------------- the tables


def shares(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    apart = [o.off for o in outcomes if o.off is not None]
    said = {of: round(sum(o.of == of for o in outcomes) / len(outcomes), 3) for of in ("right", "unsure", "false")}
    found = round(sum(o.found for o in outcomes) / len(outcomes), 3)
    return {"n": len(outcomes), "found": found, **said, "off_s": round(float(np.median(apart)), 1) if apart else None}


def beside(ours: Sequence[Outcome], kept: Sequence[Outcome], rng: np.random.Generator) -> dict[str, Any]:
    """Shares less those of everything kept, question by question, with the middle 95 % of a bootstrap."""
    pairs = list(zip(ours, kept, strict=True))
    found = bootstrap([a.found - b.found for a, b in pairs], rng)
    right = bootstrap([(a.of == "right") - (b.of == "right") for a, b in pairs], rng)
    three = {name: [round(x, 3) for x in values] for name, values in (("found", found), ("right", right))}
    return three | {"same_answers": sum(a.said == b.said for a, b in pairs)}


def measure(models: dict[str, EmbeddedModel], streams: Sequence[Stream], newest: float, seed: int) -> dict[str, Any]:
    """models: by the way they keep a stream, `KEPT` first."""
    told: dict[str, dict[str, list[Outcome]]] = {}
    held = {}
    for way, model in models.items():
        told[way] = {row: [] for row in rows_of(newest)}
        for stream in streams:
            outcomes, state = asked(model, stream)
            for q, one in zip(stream.questions, outcomes, strict=True):
                told[way][row_of(q, stream.episode.shots, newest)].append(one)
        held[way] = {"memory": state.memory_bytes - state.disk_bytes, "disk": state.disk_bytes}
    rng = np.random.default_rng(seed)
    rows = {
        row: {
            way: shares(by_row[row]) | ({} if way == KEPT else {"less": beside(by_row[row], told[KEPT][row], rng)})
            for way, by_row in told.items()
        }
        for row in rows_of(newest)
        if told[KEPT][row]
    }
    return {"by_age": rows, "held": held}


def table(found: dict[str, Any]) -> str:
    lines = [
        f"{'last shown':<14}{'kept':<22}{'n':>4} {'found':>6} {'right':>6} {'unsure':>6} {'false':>6} {'off':>6}"
        "   found, less everything kept   right, likewise"
    ]
    for row, by_way in found["by_age"].items():
        for way, c in by_way.items():
            off = "-" if c["off_s"] is None else f"{c['off_s']:.0f} s"
            less = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*c["less"][what]) for what in ("found", "right") if "less" in c]
            lines.append(
                f"{row if way == KEPT else '':<14}{way:<22}{c['n']:>4} {c['found']:>6.2f} {c['right']:>6.2f} "
                f"{c['unsure']:>6.2f} {c['false']:>6.2f} {off:>6}   {'             '.join(less)}".rstrip()
            )
    for way, bytes_ in found["held"].items():
        cells = [by_way[way] for by_way in found["by_age"].values()]
        same, n = sum(c.get("less", {}).get("same_answers", c["n"]) for c in cells), sum(c["n"] for c in cells)
        lines.append(
            f"{way}: {same} of {n} answers are to the word, and in what they rest on, those of everything kept; "
            f"{bytes_['memory'] / 1e6:.0f} MB in memory at the end, {bytes_['disk'] / 1e6:.0f} MB on disk"
        )
    return "\n".join(lines)


def ways(args: argparse.Namespace) -> dict[str, EmbeddedModel]:
    kept, endless = (pipeline.load("embedded", args.device, **more) for more in ({}, {"endless": args.endless}))
    assert isinstance(kept, EmbeddedModel) and isinstance(endless, EmbeddedModel)
    alone = copy.copy(kept)
    alone.policy = Policy("window", args.endless)
    return {KEPT: kept, f"--endless {args.endless:g}": endless, f"newest {args.endless:g} min alone": alone}


def run(args: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    known = [p for p in pictures(args.data) if p.split == "test" or (p.split == "dev" and p.source != "flickr")]
    episodes = drawn(World(known), np.arange(len(known)), args)
    models = ways(args)
    first = models[KEPT]
    seen, numbers = seen_of(first, known, episodes, args)
    senses = SensesOf(first.senses, seen)
    for model in models.values():
        model.tower, model.senses = seen, senses  # type: ignore[assignment]  # it is called alike
    streams = [
        Stream(
            e,
            [Frame(Seen.pixel(numbers[p, v]), float(t)) for t, (p, v) in enumerate(e.frames.tolist())],
            chosen(e, args.questions, args.endless),
        )
        for e in episodes
    ]
    looked = time.monotonic()
    found = measure(models, streams, args.endless, args.seed)
    told = {name: getattr(args, name) for name in ("endless", "minutes", "streams", "questions", "seed", "device")}
    seconds = {"looked_s": round(looked - began), "asked_s": round(time.monotonic() - looked)}
    return found | told | seconds


def seen_of(
    model: EmbeddedModel, known: Sequence[Picture], episodes: Sequence[Episode], args: argparse.Namespace
) -> tuple[Seen, dict[tuple[int, int], int]]:
    """What the model finds in all views that the episodes show, and the number of each (picture, view)."""
    shown = np.unique(np.concatenate([e.frames for e in episodes]), axis=0)
    used = {int(p): shown[shown[:, 0] == p, 1] for p in np.unique(shown[:, 0])}
    numbers = {(p, v): row for row, (p, v) in enumerate(shown.tolist())}
    stills = read_all(args.data, [known[p] for p in used])
    groups = (six[seen] for six, seen in zip(views(stills, args.seed), used.values(), strict=True))
    return look(model, groups), numbers


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder with the picture archives")
    parser.add_argument("--endless", type=float, default=5.0, help="minutes that stay in memory")
    parser.add_argument("--minutes", type=float, default=75.0, help="of a stream")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--questions", type=int, default=90, help="a stream, about as many of every age")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the JSON line, too")
    return parser


def main() -> None:
    args = arguments().parse_args()
    found = run(args)
    print(table(found))
    line = json.dumps(found)
    if args.out:
        args.out.write_text(line)
    print(line)


if __name__ == "__main__":
    main()
