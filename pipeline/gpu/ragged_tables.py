"""The tables of one launch for many answers: what stands where in them, and how they get to the GPU in one copy.

Needs no Triton, so that whoever fills them can be read and tested without it; `ragged.py` has the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

TILE_AT = ("book", "first", "end")  # of a tile of rows: its memory's book, its first row, the end of its memory's rows
SPAN_AT = ("book", "first", "end", "weights")  # of some rows whose weights are summed, and where: (K, slots) fp32
# Of a word or span whose look is wanted: its scores (heads, slots) or weights, how many heads they have, which word it
# is (-1: they are weights), slots, the ends of the memory's pictures, how many these are, and where a look (places,
# pictures) goes. All zeros: none.
LOOK_AT = ("scores", "heads", "word", "slots", "ends", "pictures", "look")


class Sheet:
    """Several tables of int64 in one tensor, filled here and sent there. shapes: (rows,) or (rows, columns) of each."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device):
        self._starts, self._widths, size = {}, {}, 0
        self._all = torch.zeros(sum(map(math.prod, shapes.values())), dtype=torch.int64, device=device)
        self.there: dict[str, torch.Tensor] = {}
        for name, shape in shapes.items():
            self._starts[name], self._widths[name] = size, math.prod(shape[1:])
            self.there[name] = self._all[size : size + math.prod(shape)].view(shape)
            size += math.prod(shape)
        self._rows = {name: shape[0] for name, shape in shapes.items()}
        self._here: list[int] = []
        self._next: dict[str, int] = {}

    def clear(self, fill: Mapping[str, tuple[int, ...]]) -> None:
        """Zeros everywhere, but in these tables so many rows alike."""
        self._here, self._next = [0] * len(self._all), dict.fromkeys(self._starts, 0)
        for name, row in fill.items():
            self.put(name, 0, row * self._rows[name])

    def add(self, name: str, row: Sequence[int]) -> None:
        """The next row of a table."""
        self.put(name, self._next[name], row)
        self._next[name] += 1

    def put(self, name: str, row: int, numbers: Iterable[int]) -> None:
        """Numbers from this row of a table on."""
        values, start = list(numbers), self._starts[name] + row * self._widths[name]
        assert row * self._widths[name] + len(values) <= self._rows[name] * self._widths[name], name
        self._here[start : start + len(values)] = values

    def send(self) -> None:
        """From locked memory, so that nothing waits; torch keeps it until it is read."""
        here = torch.tensor(self._here)
        self._all.copy_(here.pin_memory() if self._all.is_cuda else here, non_blocking=True)
