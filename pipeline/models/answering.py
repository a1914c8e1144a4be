"""How a system answers in steps: its text column makes one pass for the next words of several answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, Protocol, TypeVar

from torch import Tensor

from pipeline.layers.reading import TextCache, TextDecoder
from pipeline.layers.together import Row, read_together
from pipeline.layers.vamba import Vamba
from pipeline.memory.memory import Memory
from pipeline.stream import Model, Pass, Question, Sampling, Steps, StreamState, Tokens

B = TypeVar("B")
TOGETHER = 16  # rows of a shared pass: up to there a GPU reads weights in the time of one row


class SteppedModel(Model[B]):
    """A Model whose answers hand out their passes. A single answer's are what they were without steps."""

    answers_together = TOGETHER

    @abstractmethod
    def steps(self, question: Question, state: StreamState[B], sampling: Sampling) -> Steps: ...

    def first_logits(self, question: Question, state: StreamState[B]) -> Tensor:
        steps, given = self.steps(question, state, Sampling(max_tokens=1)), None
        with closing(steps), suppress(StopIteration):  # it may be one that ends the answer
            while isinstance(step := steps.send(given), Pass):
                given = self.passed([step])[0]
        if given is None:  # composed, not drawn
            return super().first_logits(question, state)
        return given

    def ask(self, question: Question, state: StreamState[B], sampling: Sampling) -> Tokens:
        return alone(self.steps(question, state, sampling), lambda one: self.passed([one])[0])


class DecoderModel(SteppedModel[B]):
    """One whose passes are read by `TextDecoder`s of its one network."""

    reads_together = True

    def passed(self, passes: Sequence[Pass]) -> Sequence[Tensor]:
        if len(passes) == 1:
            (one,) = passes
            return [one.reader.feed(one.ids, one.spans)]
        decoders: list[TextDecoder] = [one.reader for one in passes]
        rows = [row_of(one) for one in passes]
        logits = read_together(decoders[0].net, rows)
        for row, decoder in zip(rows, decoders):
            decoder.looked_at(len(row.ids), row.looks)
        return list(logits)


def row_of(one: Pass) -> Row:
    """What a shared pass must know of a `TextDecoder`'s pass."""
    decoder: TextDecoder = one.reader
    spans = [range(len(one.ids))] if one.spans is None else one.spans
    return Row(one.ids, decoder.cache.length, decoder.cache, decoder.memory, decoder.watch_layers, spans)


def alone(steps: Steps, served: Callable[[Pass], Any]) -> Tokens:
    """The tokens of one answer, each pass served by itself."""
    given = None
    try:
        while True:
            step = steps.send(given)
            given = None
            if isinstance(step, Pass):
                given = served(step)
            else:
                yield step
    except StopIteration:
        return
    finally:
        steps.close()


class Reading(Protocol):
    """What a shared pass must know of the embedded model's reading of a question."""

    position: int
    cache: TextCache
    memory: Memory | None

    def feed(self, ids: Sequence[int]) -> Tensor: ...


def passed_by_readings(net: Vamba, passes: Sequence[Pass]) -> Sequence[Tensor]:
    """Logits (V,) of each pass, whose readers are `Reading`s of this network."""
    if len(passes) == 1:
        (one,) = passes
        return [one.reader.feed(one.ids)]
    readings: list[Reading] = [one.reader for one in passes]
    rows = [Row(one.ids, read.position, read.cache, read.memory) for one, read in zip(passes, readings)]
    logits = read_together(net, rows)
    for read in readings:
        read.position += 1
    return list(logits)
