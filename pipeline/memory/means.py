"""Means of a memory's keys and values: of an instant's slots, and of neighbouring slots of a log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.memory.log import Log

SPAN = 30  # slots of a log that one mean stands for: of pairs at a picture a second, a minute


def means(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """(..., T, P) -> (..., instants, P): over each instant's slots."""
    if len(set(counts)) == 1:
        return rows.unflatten(-2, (len(counts), counts[0])).mean(-2)
    return torch.stack([part.mean(-2) for part in rows.split(list(counts), -2)], -2)


def first_span(log: Log) -> int:
    """The number of the first span that the log has all slots of. They are counted from the stream's beginning, so that
    the cuts of a video change nothing."""
    return -(-log.gone // SPAN)


def whole_spans(log: Log, first: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of every whole span from that number on: its last second (1,), means of keys and of values
    (layers, K heads, 1, P)."""
    for number in range(first, log.end // SPAN):
        slots = torch.arange(number * SPAN, (number + 1) * SPAN) - log.gone
        found = dict(zip(log.fields, log.gather(slots, *log.fields)))
        k, v = (found[name] * found.get(name + "_scale", 1) for name in ("k", "v"))  # 8 bits have a scale
        yield found["time"][-1:], means(k, [SPAN]), means(v, [SPAN])
