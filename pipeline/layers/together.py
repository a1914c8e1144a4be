"""One pass of a text column for several conversations at once: a word of each, the weights read once.

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
    """One conversation's next token in a shared pass.

    watched: places in `cross_layers` whose attention is kept; looks: its weights (slots,) there, in order, afterwards.
    """

    token: int
    position: int
    cache: TextCache
    memory: Memory | None
    watched: Collection[int] = ()
    looks: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def read_together(net: Vamba, rows: Sequence[Row]) -> Tensor:
    """Logits (rows, V) after each row's token, whose keys its cache then holds. All look at a memory, or none does.

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
    ids, positions = (torch.tensor(numbers, device=device) for numbers in zip(*((r.token, r.position) for r in rows)))
    groups = _by_memory(rows)

    def own(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(rows, *(part.split(1, dim=2) for part in (q, k, v)))
        return torch.cat([row.cache.attend(layer, *one) for row, *one in parts], dim=2)

    def cross(place: int, q_1HQP: Tensor) -> Tensor:
        out = torch.empty_like(q_1HQP)
        for members, memory in groups:
            _look([rows[i] for i in members], memory, place, q_1HQP[0], out[0], torch.tensor(members, device=device))
        return out

    h = net.model.embed_tokens(ids)[None]
    with sdpa_kernel(UNPLANNED) if h.is_cuda else nullcontext():
        h = net.read(h, positions, own, cross if groups else None)
    return net.logits(h)[0]


def _look(rows: Sequence[Row], memory: Memory, place: int, q_HQP: Tensor, out_HQP: Tensor, members: Tensor) -> None:
    """Attention of these members' queries to the memory they share; what is watched is kept."""
    watched = any(place in row.watched for row in rows)
    found, weights = memory.attend_each(place, q_HQP.index_select(1, members), watched)
    out_HQP.index_copy_(1, members, found)
    for n, row in enumerate(rows):
        if weights is not None and place in row.watched:
            row.looks.append(weights[n])


def _by_memory(rows: Sequence[Row]) -> list[tuple[list[int], Memory]]:
    """Rows that look at the same slots, and what they look at."""
    groups: dict[tuple[object, ...], tuple[list[int], Memory]] = {}
    for i, row in enumerate(rows):
        if row.memory is not None:
            groups.setdefault(slots_seen(row.memory.log), ([], row.memory))[0].append(i)
    return list(groups.values())


def slots_seen(log: Log) -> tuple[object, ...]:
    """Equal for logs that show the same slots."""
    return log.first, log.length, *map(id, log.blocks)
