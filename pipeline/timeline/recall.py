"""Recall by age: what a stream's model still says of moments one, five, fifteen and sixty minutes ago.

It is asked "What did you see at 12:40?" of a few moments around each age. What was there is told twice over: by the
stream's own index, and by a model that sees nothing but the kept pictures of that moment, as for the first time. A
thing that was there is recalled where the answer names it, or one of its kinds, without a doubt. An answer is one of
the whole stream: nothing tells the model which moments it will be asked about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from pipeline.clock import mmss
from pipeline.engine import Engine
from pipeline.questions.things import Things, each_thing
from pipeline.stream import Frame, Question, Sampling, StreamState, UserError, VideoChunk

AGES = (60.0, 300.0, 900.0, 3600.0)  # seconds before the newest picture
MOMENTS = 8  # that are asked about at each age
AROUND = 0.3  # of an age: moments lie from 0.7 to 1.3 times it
BESIDE = 1.05  # seconds before and after a moment whose pictures are of it
QUESTION = "What did you see at {}?"
TOKENS = 64  # of an answer
Z = 1.96  # standard deviations of an interval that holds the true share in 19 of 20 cases
DOUBT = re.compile(r"\b(not sure|guess|guesses|maybe|perhaps|might|may be)\b", re.I)
DENIED = re.compile(r"\b(nobody|no one|nothing|not|no|never|without)\b", re.I)  # and what follows in the sentence

Pictures = Callable[[float, float], Sequence[Frame]]  # those that are kept from one second to another


@dataclass(frozen=True)
class Score:
    """How many of the things that were there were named."""

    named: int = 0
    of: int = 0

    def plus(self, there: Sequence[Things], said: Sequence[Things]) -> Score:
        named = sum(any(thing.shares(one, detected_only=False) for one in said) for thing in there)
        return Score(self.named + named, self.of + len(there))

    @property
    def share(self) -> float:
        """NaN where nothing was there."""
        return self.named / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Within which the true share lies in 19 of 20 cases (Wilson 1927), were the things independent: those of
        moments that look alike are not, so it is rather too narrow."""
        if not self.of:
            return 0.0, 1.0
        n, z2 = self.of, Z * Z
        middle = (self.share + z2 / (2 * n)) / (1 + z2 / n)
        half = Z / (1 + z2 / n) * math.sqrt(self.share * (1 - self.share) / n + z2 / (4 * n * n))
        return max(0.0, min(middle - half, self.share)), min(1.0, max(middle + half, self.share))

    @property
    def document(self) -> dict[str, object]:
        """For programs; null where nothing was there."""
        known = self.of > 0
        return asdict(self) | {"share": self.share if known else None, "interval": self.interval if known else None}


@dataclass(frozen=True)
class Aged:
    """Of one age (seconds): moments asked about so far, of how many, and what of them was recalled. index, pictures: by
    who tells what was there."""

    age: float
    wanted: int
    moments: int = 0
    index: Score = Score()
    pictures: Score = Score()

    @property
    def young(self) -> bool:
        """Whether the stream is younger than that."""
        return not self.wanted

    @property
    def document(self) -> dict[str, object]:
        """For programs; age in seconds."""
        told = {"age": self.age, "young": self.young, "moments": self.moments}
        return told | {"index": self.index.document, "pictures": self.pictures.document}


Recall = tuple[Aged, ...]  # one for each of AGES


@dataclass(frozen=True)
class Remembering:
    """One of the models that are compared, and the state that it is asked about."""

    engine: Engine
    state: StreamState


def moments(seen_until: float, age: float, count: int = MOMENTS) -> tuple[float, ...]:
    """Seconds of a stream, evenly from 1.3 to 0.7 times an age before its newest; () where it is younger than that."""
    if seen_until < age:
        return ()
    first, last = max(0.0, seen_until - (1 + AROUND) * age), seen_until - (1 - AROUND) * age
    return tuple(first + (last - first) * (i + 0.5) / count for i in range(count))


def works(own: Remembering) -> bool:
    """Whether a model keeps an index, which tells what was there."""
    return own.engine.model.shows(own.state, 0.0, 0.0) is not None


def recall(own: Remembering, rivals: Sequence[Remembering], pictures: Pictures) -> Iterator[tuple[Recall, ...]]:
    """What each model recalls, the stream's own first, after every moment that was asked about: growing, as answers do.

    Raises UserError where the stream's own model keeps no index, and where nothing was seen.
    """
    if not own.state.frames:
        raise UserError("Nothing was seen yet, so there is nothing to remember; start a video first.")
    if not works(own):
        raise UserError(
            f"{own.engine.name} keeps no index of what it saw, so nothing tells whether it remembers; "
            "the embedded model does."
        )
    seen_until, asked = own.state.seen_until, (own, *rivals)
    begun = tuple(Aged(age, len(moments(seen_until, age))) for age in AGES)
    found = [begun for _ in asked]
    yield tuple(found)
    for place, age in enumerate(AGES):
        for at in moments(seen_until, age):
            there = _indexed(own, at), _seen_again(own, pictures, at)
            for model, one in enumerate(asked):
                said = _said(one, at)
                found[model] = _with(found[model], place, *there, said)
            yield tuple(found)


def _with(recalled: Recall, place: int, index: list[Things], again: list[Things], said: list[Things]) -> Recall:
    """And one moment more."""
    aged = recalled[place]
    more = replace(
        aged,
        moments=aged.moments + 1,
        index=aged.index.plus(index, said),
        pictures=aged.pictures.plus(again, said),
    )
    return (*recalled[:place], more, *recalled[place + 1 :])


def _indexed(own: Remembering, at: float) -> list[Things]:
    """What the index says was there."""
    return named(own.engine.model.shows(own.state, at - BESIDE, at + BESIDE) or "")


def _seen_again(own: Remembering, pictures: Pictures, at: float) -> list[Things]:
    """What the kept pictures of a moment show to who sees nothing else."""
    frames = tuple(pictures(at - BESIDE, at + BESIDE))
    if not frames:
        return []
    state = own.engine.watch(VideoChunk(frames), own.engine.start())
    return named(own.engine.model.shows(state, -math.inf, math.inf) or "")


def _said(one: Remembering, at: float) -> list[Things]:
    """What an answer names without a doubt. A question that cannot be answered names nothing."""
    question = Question(QUESTION.format(mmss(at)))
    try:
        *_, answer = one.engine.ask(question, one.state, Sampling(max_tokens=TOKENS))
    except UserError:
        return []
    return named(answer.text)


def named(text: str) -> list[Things]:
    """The things that sentences name as being there, each once; those that doubt or deny name none."""
    sure = [part for part in re.split(r"(?<=[.!?])\s+", text) if not DOUBT.search(part)]
    found = [things for part in sure for _, things in each_thing(DENIED.split(part)[0])]
    return [things for index, things in enumerate(found) if things not in found[:index]]
