"""The tables of one launch for many answers: what stands where in them, and how they get to the GPU in one copy.

Needs no Triton, so that whoever fills them can be read and tested without it; `ragged.py` has the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.gpu.device import TILE

# Of a tile of rows: its memory's book, its first row, the end of its memory's rows, where the memory's tiles of slots
# keep their sums, how many of these a row has, the ends of the pictures, the tiles that several pictures share, and how
# many these are.
TILE_AT = ("book", "first", "end", "places", "sums", "ends", "mixed", "mixes")
# Of words whose look is wanted, the mean over all of them: where the first one's sums begin, how many and which they
# are, how many sums a row has, which slot of the first tile is the first, the ends of the memory's pictures, how many
# these are, and where a look (places, pictures) goes. All zeros: none.
LOOK_AT = ("kept", "words", "word", "sums", "first", "ends", "pictures", "look")


@dataclass(frozen=True, eq=False)
class Tiles:
    """How a memory's tiles of slots lie to its pictures. A row of attention keeps a sum for every part of a tile that
    is one picture's; the t-th tile's part of the i-th picture is number t + i of them.

    first: slot of the first tile that is the first visible. places (tiles,): number of each tile's first sum. mixed:
    tiles that hold several pictures. Both int64.
    """

    first: int
    places: Tensor
    mixed: Tensor
    sums: int

    @classmethod
    def of(cls, ends: Tensor, first: int, slots: int) -> Tiles:
        """ends (pictures,): of the pictures, in visible slots. first: slots before these, as in the memory's book."""
        first = first % TILE
        tiles = torch.arange(-(-(first + slots) // TILE), device=ends.device)
        begins, stops = (tiles * TILE - first).clamp_min(0), ((tiles + 1) * TILE - first).clamp_max(slots)
        pictures = torch.searchsorted(ends, begins, right=True)
        mixed = (ends[pictures] < stops).nonzero()[:, 0]
        return cls(first, tiles + pictures, mixed, len(tiles) + len(ends))


class Sheet:
    """Several tables of int64 in one tensor, filled here and sent there. shapes: (rows,) or (rows, columns) of each."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], device: torch.device):
        self._starts, self._widths, size = {}, {}, 0
        self._all = torch.zeros(sum(map(math.prod, shapes.values())), dtype=torch.int64, device=device)
        self.there: dict[str, Tensor] = {}
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
