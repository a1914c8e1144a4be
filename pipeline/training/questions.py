"""What a training question is, and how it is put: kinds, examples, ways to name a time, manners and slips of typing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KINDS = (
    "now",
    "at",
    "when",
    "after",
    "before",
    "first",
    "last",
    "yesno",
    "count",
    "count_of",
    "list",
    "describe",
    "name",
    "attribute",
    "chat",
)


@dataclass(frozen=True)
class Shot:
    """One picture on screen from second `start` to `end` (exclusive)."""

    picture: int
    start: int
    end: int


@dataclass(frozen=True)
class Example:
    """A question put at second `asked_at`, when only frames 0..asked_at have been seen.

    kind: one of KINDS, from the wording alone. recipe: how it was made (also "notyet", "where_nothing"), for reports.
    target_shots: what the answer rests on, the shot of note_time first; empty means nowhere.
    refer_shots: the shots the words describe.
    note_time: second the note states and the answer may copy; note_times where the answer lists several moments.
    note_count: number of scenes the note states. named_time: the second the question itself names.
    choices: in evaluation up to eight answers, the right one first.
    """

    kind: str
    text: str
    asked_at: int
    target_shots: tuple[int, ...]
    refer_shots: tuple[int, ...]
    answer: str
    note_time: float | None = None
    note_times: tuple[float, ...] = ()
    note_count: int | None = None
    named_time: int | None = None
    recipe: str = ""
    absent: bool = False
    choices: tuple[str, ...] = ()


def clock(seconds: float) -> str:
    """0:35, 12:04 or 1:02:03."""
    minutes, second = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}" if minutes >= 60 else f"{minutes}:{second:02d}"


class Dice:
    """Quick draws from a numpy Generator: one block of uniforms at a time, as single draws cost microseconds each."""

    def __init__(self, rng: np.random.Generator, block: int = 1024) -> None:
        self.rng, self.block = rng, block
        self.left: list[float] = []

    def uniform(self) -> float:
        if not self.left:
            self.left = self.rng.random(self.block).tolist()
        return self.left.pop()

    def below(self, n: int) -> int:
        return int(self.uniform() * n)

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, p: float) -> bool:
        return self.uniform() < p

    def pick(self, items: Sequence[Any] | np.ndarray) -> Any:
        return items[self.below(len(items))]

    def weighted(self, weights: np.ndarray) -> int:
        """An index drawn in proportion to weights (at least one positive)."""
        total = np.cumsum(weights)
        return int(np.searchsorted(total, self.uniform() * total[-1], side="right").clip(0, len(total) - 1))


def time_phrase(t: int, dice: Dice) -> str:
    """ "at 0:35", "35 seconds in", "at the 2 minute mark": the ways people name a second."""
    minutes, seconds = divmod(t, 60)
    plural = "" if minutes == 1 else "s"
    forms = [f"at {clock(t)}"] * 4 + [f"around {clock(t)}", f"at {minutes:02d}:{seconds:02d}", f"at {clock(t)} min"]
    if 1 < t < 120:
        forms += [f"at {t} seconds", f"{t} seconds in", f"at second {t}", f"{t} s in", f"at {t}s"]
    if minutes and not seconds:
        forms += [f"at the {minutes} minute mark", f"{minutes} minute{plural} in", f"at minute {minutes}"] * 2
    elif minutes:
        forms += [f"{minutes} minute{plural} and {seconds} seconds in", f"at {minutes} min {seconds} s"]
    return dice.pick(forms)


def upper(text: str) -> str:
    """The text with a capital first."""
    return text[:1].upper() + text[1:]


MANY = re.compile(r"(two|three|four|five|six|several|some|many|people|children|kids|men|women|boys|girls|dogs)\b")


def agree(template: str, np_: str) -> str:
    """The template with its verbs in the plural where the phrase is: "is there {np}" -> "are there {np}"."""
    if not MANY.match(np_):
        return template
    for one, many in (("is", "are"), ("was", "were"), ("does", "do"), ("Is", "Are"), ("Was", "Were"), ("Does", "Do")):
        template = re.sub(rf"\b{one} (there (?:ever )?|)(?=\{{np\}})", rf"{many} \1", template)
        template = re.sub(rf"(?<=\{{np\}}) {one}\b", f" {many}", template)
    return re.sub(r"(?<=\{np\}) appears\b", " appear", template)


def restyle(text: str, dice: Dice) -> str:
    """Sometimes as people type: all lower case, no question mark, two letters swapped, a word of manners before."""
    u = dice.uniform()
    if u < 0.12:
        return text.lower().rstrip("?.!")
    if u < 0.16:
        return _swap(text, dice)
    if u < 0.20:
        return text.rstrip("?.!")
    if u < 0.24:
        opening = dice.pick(("Hey, ", "Okay, ", "Please: ", "And ", "So, ", "Well, ", "Now then, "))
        return opening + (text if text.startswith("I ") else text[:1].lower() + text[1:])
    return text


def _swap(text: str, dice: Dice) -> str:
    places = [m.start() + 1 for m in re.finditer(r"[a-z]{5,}", text)]
    if not places:
        return text
    i = dice.pick(places)
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
