"""An append-only log of tensors whose snapshots cost nothing.

A `Log` is a value: (shared blocks, first visible slot, number of slots). Appending returns a new Log and writes past
the end of the old one, so whoever holds the old one keeps seeing exactly what it held. Appending twice from the same
Log forks: only the last, partly filled block is copied. Blocks are allocated once and never moved, so an
hour of memory is never copied, and blocks nobody sees any more are freed by Python's own counting.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from threading import Lock
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.gpu.device import sent
from pipeline.gpu.layout import Slots, book_of

OWN_PAGES = 1 << 20  # bytes of a tensor from which on it has its own


class Field(NamedTuple):
    """One tensor of a Log: its shape with None where the slots go, and its element type."""

    shape: tuple[int | None, ...]
    dtype: torch.dtype

    @property
    def slot_dim(self) -> int:
        return self.shape.index(None)

    def sized(self, slots: int) -> list[int]:
        """The shape of so many slots."""
        return [slots if n is None else n for n in self.shape]

    def bytes_per_slot(self) -> int:
        return math.prod(n for n in self.shape if n is not None) * self.dtype.itemsize


class Away(Protocol):
    """A whole block's tensors somewhere slower than memory (disk.py)."""

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """So many slots of a field from `start` on, on the log's device, slots in the field's slot dimension."""


class Block:
    """Preallocated room for `slots` slots. `used` marks how far somebody has written; it only grows.

    away: where its tensors are, or are about to be; `tensors` then lack what is there.
    """

    def __init__(self, fields: dict[str, Field], slots: int, device: torch.device | str):
        self.tensors = {name: _room(c.sized(slots), c.dtype, device) for name, c in fields.items()}
        self.slots, self.used, self.lock = slots, 0, Lock()
        self.on_host = False
        self.arrived: torch.cuda.Event | None = None  # None: at once
        self.twin: Block | None = None  # this block on the host, if it was moved
        self.away: Away | None = None

    def moved(self, tensors: dict[str, Tensor], arrived: torch.cuda.Event | None) -> Block:
        """This block, written to its end, as it will be on the host once `arrived` has happened."""
        twin = Block({}, self.slots, "cpu")
        twin.tensors, twin.used, twin.on_host, twin.arrived = tensors, self.slots, True, arrived
        return twin

    def ready(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of these fields at least, fit for a processor to read."""
        if self.arrived is not None:
            self.arrived.synchronize()
        tensors, away = self.tensors, self.away
        if away is None:
            return tensors
        return tensors | {name: away.rows(name, 0, self.slots) for name in names if name not in tensors}

    def chosen(self, name: str, dim: int, rows: Tensor) -> Tensor:
        """Copies of some slots (int64, ascending) of a field; from what is away no others are read."""
        tensors, away = self.tensors, self.away
        if name in tensors or away is None:
            tensor = self.ready((name,))[name]
            return tensor.index_select(dim, rows.to(tensor.device))
        return torch.cat([away.rows(name, run.start, len(run)) for run in runs(rows)], dim=dim)

    def held(self, names: Iterable[str]) -> Block:
        """The same block for one who reads it for a while: what is sent away meanwhile stays with it, and what is away
        is read back."""
        same = Block({}, self.slots, "cpu")
        same.tensors, same.used = self.ready(names), self.slots
        return same

    @cached_property
    def ended(self) -> float:
        """The second of the last slot; of a block that is written to its end. On a GPU it waits, once."""
        return float(self.tensors["time"][-1])

    def claim(self, start: int, n: int) -> bool:
        """True if slots start..start+n were free and are now the caller's."""
        with self.lock:
            if self.used != start:
                return False
            self.used = start + n
            return True


def _room(shape: list[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """An unwritten tensor. A large one in the computer's memory has pages of its own, which go back to the system when
    it is let go: among what else a process holds, blocks that come and go for hours leave more and more holes."""
    size = math.prod(shape) * dtype.itemsize
    if size < OWN_PAGES or torch.device(device).type != "cpu" or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), dtype=dtype).view(shape)


@dataclass(frozen=True, eq=False)
class Log:
    """An append-only table of tensors. Frozen; see the module's docstring for what appending means."""

    fields: dict[str, Field]
    block_slots: int
    device: torch.device | str = "cpu"
    blocks: tuple[Block, ...] = ()
    first: int = 0  # slots of blocks[0] that are no longer visible
    length: int = 0  # visible slots
    gone: int = 0  # slots that were visible once; the oldest visible one has this number

    def __len__(self) -> int:
        return self.length

    @cached_property
    def book(self) -> Tensor:
        """What kernels that walk all blocks must know, int64 on the device (see gpu/layout.py)."""
        book = book_of(self.first, self.length, self.block_slots, [block.tensors for block in self.blocks])
        return sent(book, self.device)

    @property
    def end(self) -> int:
        """The number of the next slot: a stream's slots are counted from 0, dropped ones included."""
        return self.gone + self.length

    @property
    def slots(self) -> Slots:
        """What attention kernels know of it; ValueError where it holds no keys and values as they read them."""
        return Slots.of(self.book, self.length, self.fields)

    @property
    def nbytes(self) -> int:
        """Bytes of the visible slots (allocated blocks may hold up to one block more)."""
        return self.length * self.slot_nbytes

    @cached_property
    def slot_nbytes(self) -> int:
        return sum(c.bytes_per_slot() for c in self.fields.values())

    @cached_property
    def host_blocks(self) -> int:
        """How many blocks lie on the host: always the oldest."""
        return sum(block.on_host for block in self.blocks)

    @cached_property
    def on_host(self) -> Log:
        """The part of it that lies on the host."""
        blocks = self.blocks[: self.host_blocks]
        return replace(
            self, blocks=blocks, length=max(0, min(self.length, len(blocks) * self.block_slots - self.first))
        )

    @property
    def on_device(self) -> Log:
        """The part of it that lies on the device."""
        # Not kept, for it may lead back to itself: only the garbage collector would then free an hour's 31 GB.
        return self._device_part if self.host_blocks else self

    @cached_property
    def _device_part(self) -> Log:
        return replace(self, blocks=self.blocks[self.host_blocks :], first=0, length=self.length - len(self.on_host))

    def reserve(self, n: int) -> tuple[Log, list[tuple[Block, slice, slice]]]:
        """A Log with `n` more slots, unwritten, and where to write them: (block, slots there, rows of the new data)."""
        blocks, end, spans, done = list(self.blocks), self.first + self.length, [], 0
        while done < n:
            at = end + done - sum(b.slots for b in blocks[:-1]) if blocks else 0
            if not blocks or at == blocks[-1].slots:
                blocks.append(Block(self.fields, self.block_slots, self.device))
                at = 0
            count = min(n - done, blocks[-1].slots - at)
            if not blocks[-1].claim(at, count):  # somebody went on from this snapshot before: fork
                blocks[-1] = self._copy(blocks[-1], at, count)
            spans.append((blocks[-1], slice(at, at + count), slice(done, done + count)))
            done += count
        return replace(self, blocks=tuple(blocks), length=self.length + n), spans

    def _copy(self, block: Block, upto: int, more: int) -> Block:
        new = Block(self.fields, block.slots, self.device)
        for name, field in self.fields.items():
            dim = field.slot_dim
            new.tensors[name].narrow(dim, 0, upto).copy_(block.ready((name,))[name].narrow(dim, 0, upto))
        new.claim(0, upto + more)
        return new

    def append(self, **rows: Tensor) -> Log:
        """The Log with `rows` added; each tensor has its field's shape with the new slots."""
        name = next(iter(self.fields))
        log, spans = self.reserve(rows[name].shape[self.fields[name].slot_dim])
        for name, tensor in rows.items():
            dim = self.fields[name].slot_dim
            for block, there, here in spans:
                target = block.tensors[name].narrow(dim, there.start, there.stop - there.start)
                target.copy_(tensor.narrow(dim, here.start, here.stop - here.start))
        return log

    def drop_oldest(self, n: int) -> Log:
        """The Log without its `n` oldest slots. Blocks that fall out of sight are let go."""
        n = min(n, self.length)
        first, blocks = self.first + n, self.blocks
        while len(blocks) > 1 and first >= blocks[0].slots:
            first, blocks = first - blocks[0].slots, blocks[1:]
        return replace(self, first=first, length=self.length - n, blocks=blocks, gone=self.gone + n)

    def since(self, slot: int) -> dict[str, Tensor]:
        """Copies on the CPU of the visible slots from that number on, by field; slots in the first dimension.

        What lies on the GPU travels block by block.
        """
        none = {n: [torch.empty(f.sized(0), dtype=f.dtype).movedim(f.slot_dim, 0)] for n, f in self.fields.items()}
        for name, piece in self.drop_oldest(max(0, slot - self.gone)).pieces():
            none[name].append(piece)
        return {name: torch.cat(pieces).contiguous() for name, pieces in none.items()}

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """The visible slots on the CPU, field by field and block by block, slots in the first dimension."""
        for name, field in self.fields.items():
            for (view,) in self.views(name):
                yield name, view.movedim(field.slot_dim, 0).cpu()

    def split(self) -> tuple[Log, Log]:
        """The oldest blocks as far as they are in a file, and what came after them."""
        away = next((n for n, block in enumerate(self.blocks) if block.away is None), len(self.blocks))
        slots = max(0, min(self.length, away * self.block_slots - self.first))
        return self.until(slots) if slots else replace(self, blocks=(), length=0), self.drop_oldest(slots)

    def until(self, slots: int) -> Log:
        """The Log as it was after its first `slots` visible slots. Appending to it forks."""
        length, blocks = min(slots, self.length), self.blocks
        while len(blocks) > 1 and self.first + length <= sum(b.slots for b in blocks[:-1]):
            blocks = blocks[:-1]  # a block left hanging beyond the end would be taken for the one to go on in
        return replace(self, length=length, blocks=blocks)

    def views(self, *names: str) -> Iterator[tuple[Tensor, ...]]:
        """The visible part of each block, in order, where it lies, uncopied; slots in each field's slot dimension."""
        for block, seen in self.seen():
            tensors = block.ready(names)
            yield tuple(tensors[n].narrow(self.fields[n].slot_dim, seen.start, len(seen)) for n in names)

    def seen(self) -> Iterator[tuple[Block, range]]:
        """Every block with its visible slots, in order."""
        skip, left = self.first, self.length
        for block in self.blocks:
            if left <= 0:
                return
            count = min(block.slots - skip, left)
            yield block, range(skip, skip + count)
            skip, left = 0, left - count

    def tensor(self, name: str) -> Tensor:
        """One field's visible slots in one piece (copies if it spans blocks: for small fields)."""
        dim = self.fields[name].slot_dim
        parts = [view.to(self.device) for (view,) in self.views(name)]
        if not parts:
            return self._none(name)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)

    def gather(self, slots: Tensor, *names: str) -> tuple[Tensor, ...]:
        """Copies of the given visible slots (int64, ascending), one tensor per name."""
        out: dict[str, list[Tensor]] = {n: [] for n in names}
        slots, base = slots.cpu(), 0
        for block, seen in self.seen():
            start, stop = (int(n) for n in torch.searchsorted(slots, torch.tensor([base, base + len(seen)])))
            here = slots[start:stop] - base + seen.start
            base += len(seen)
            if len(here):
                for name in names:
                    out[name].append(block.chosen(name, self.fields[name].slot_dim, here).to(self.device))
        return tuple(torch.cat(out[n], dim=self.fields[n].slot_dim) if out[n] else self._none(n) for n in names)

    def brought_back(self, slots: Tensor, far: int) -> Log:
        """Some of the slots of its `far` oldest blocks (int64, ascending), copied to the device, and before nothing of
        the rest: all newer ones where they lie. Not for going on."""
        pad, rows = -len(slots) % self.block_slots, dict(zip(self.fields, self.gather(slots, *self.fields)))
        chosen = Log(self.fields, self.block_slots, self.device).reserve(pad)[0].append(**rows).drop_oldest(pad)
        near = self.blocks[far:]
        seen = max(0, self.first + self.length - far * self.block_slots)
        if not len(slots):
            chosen = replace(chosen, blocks=(), first=0 if far else self.first)
        blocks = (*chosen.blocks, *(block.held(self.fields) for block in near))
        return replace(chosen, blocks=blocks, length=len(slots) + min(seen, self.length), gone=0)

    def _none(self, name: str) -> Tensor:
        return torch.empty(self.fields[name].sized(0), dtype=self.fields[name].dtype, device=self.device)


def runs(rows: Tensor) -> Iterator[range]:
    """Ascending numbers, at least one, as stretches without a gap."""
    breaks = ((rows.diff() != 1).nonzero()[:, 0] + 1).tolist()
    for start, stop in pairwise([0, *breaks, len(rows)]):
        yield range(int(rows[start]), int(rows[stop - 1]) + 1)
