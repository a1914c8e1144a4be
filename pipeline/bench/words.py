"""Words that the embedded model writes itself, timed: most of its answers are composed, and those have none."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any, NamedTuple

from pipeline.bench.cost import Cost
from pipeline.bench.machine import timed
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.embedded_reading import Reading
from pipeline.stream import Question, StreamState

TRIES, COUNT = 3, 24  # answers, words of each


class Words(NamedTuple):
    """first_s: from the question to its first written word; a_second: of the later ones; cost: of one of them."""

    first_s: float
    a_second: float
    cost: Cost


def measure_words(model: EmbeddedModel, question: Question, state: StreamState[Any]) -> Words:
    """Medians of a few answers, written to the question's first moment whether or not it would be composed."""
    firsts: list[float] = []
    later: list[float] = []
    for _ in range(TRIES):
        first, (reading, logits) = timed(partial(_begun, model, question, state))
        firsts.append(first)
        for _ in range(COUNT):
            seconds, logits = timed(partial(reading.feed, [int(logits.argmax())]))
            later.append(seconds)
    with Cost() as cost:
        reading.feed([int(logits.argmax())])
    return Words(statistics.median(firsts), 1 / statistics.median(later), cost)


def _begun(model: EmbeddedModel, question: Question, state: StreamState[Any]):
    reading = Reading(model, question, state)
    return reading, reading.feed(reading.prompt(reading.moments()[0]))
