"""One pass of a text column for several conversations at once: a word or a prompt of each, the weights read once.

The words stand side by side as the tokens of one pass, so all that works token by token (projections, norms, rotations
by each one's own position) is what a prompt of as many tokens would do. Only attention tells them apart: each word
attends to its own conversation's cache, of whatever length, and to its own memory. Where several look at the same
memory, its keys are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from pipeline.layers.reading import UNPLANNED, TextCache
from pipeline.layers.vamba import Vamba
from pipeline.memory.log import Log
from pipeline.memory.memory import Memory


@dataclass(eq=False)
class Row:
    """One conversation's next ids in a shared pass, from this position on.

    watched: places in `cross_layers` whose attention is kept. spans: of which ids, each by itself. looks: their weights
    (spans, slots) there, in order, afterwards.
    """

    ids: Sequence[int]
    position: int
    cache: TextCache
    memory: Memory | None
    watched: Collection[int] = ()
    spans: Sequence[range] = (range(1),)
    looks: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def read_together(net: Vamba, rows: Sequence[Row]) -> Tensor:
    """Logits (rows, V) after each row's ids, whose keys its cache then holds. All look at a memory, or none does.

    A pass that fails leaves the caches as they were.
    """
    before = [list(row.cache.used) for row in rows]
    try:
        return _read(net, rows)
    except Exception:
        for row, used in zip(rows, before):
            row.cache.rewind(used)
        raise


def _read(net: Vamba, rows: Sequence[Row]) -> Tensor:
    device = net.model.embed_tokens.weight.device
    counts = [len(row.ids) for row in rows]
    ids = torch.tensor([i for row in rows for i in row.ids], device=device)
    positions = torch.cat([torch.arange(r.position, r.position + n, device=device) for r, n in zip(rows, counts)])
    places = torch.arange(len(ids), device=device).split(counts)
    groups = _by_memory(rows)

    def own(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(rows, *(part.split(counts, dim=2) for part in (q, k, v)))
        return torch.cat([row.cache.attend(layer, *one) for row, *one in parts], dim=2)

    def cross(place: int, q_1HQP: Tensor) -> Tensor:
        out = torch.empty_like(q_1HQP)
        for members, memory in groups:
            at = torch.cat([places[i] for i in members])
            found = _look([rows[i] for i in members], memory, place, q_1HQP[0].index_select(1, at))
            out[0].index_copy_(1, at, found)
        return out

    h = net.model.embed_tokens(ids)[None]
    with sdpa_kernel(UNPLANNED) if h.is_cuda else nullcontext():
        h = net.read(h, positions, own, cross if groups else None)
    return net.logits(h[:, [int(at[-1]) for at in places]])[0]


def _look(rows: Sequence[Row], memory: Memory, place: int, q_HQP: Tensor) -> Tensor:
    """Attention of these rows' queries to the memory they share; what is watched is kept. Words go together."""
    if all(len(row.ids) == 1 for row in rows):
        found, weights = memory.attend_each(place, q_HQP, any(place in row.watched for row in rows))
        looks = [None] * len(rows) if weights is None else list(weights[:, None])
    else:
        parts = q_HQP.split([len(row.ids) for row in rows], dim=1)
        spans = [row.spans if place in row.watched else () for row in rows]
        both = [memory.attend_spans(place, q, some) for q, some in zip(parts, spans)]
        found, looks = torch.cat([out for out, _ in both], dim=1), [weights for _, weights in both]
    for row, weights in zip(rows, looks):
        if weights is not None and place in row.watched:
            row.looks.append(weights)
    return found


def _by_memory(rows: Sequence[Row]) -> list[tuple[list[int], Memory]]:
    """Rows that look at the same slots, words apart from prompts, and what they look at."""
    groups: dict[tuple[object, ...], tuple[list[int], Memory]] = {}
    for i, row in enumerate(rows):
        if row.memory is not None:
            kind = (len(row.ids) == 1, *slots_seen(row.memory.log))
            groups.setdefault(kind, ([], row.memory))[0].append(i)
    return list(groups.values())


def slots_seen(log: Log) -> tuple[object, ...]:
    """Equal for logs that show the same slots."""
    return log.first, log.length, *map(id, log.blocks)
