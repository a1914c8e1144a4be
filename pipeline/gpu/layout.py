"""The layout that a memory and the kernels that read it share: which number stands where in a memory's book.

A kernel that walks all blocks of a memory finds them by a small int64 tensor, the book: first HEAD, then for every
block the addresses of the tensors named in BLOCK, 0 for one that the memory does not have. Both sides count by these
two names alone: the memory writes by name, the kernel reads by `BLOCK.index(name)`. So it does not matter how a memory
orders its fields or what else it keeps. `Slots.of` refuses a memory whose fields are not what kernels take them for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Slots of the first block that are no longer visible, slots that are, and a block's slots.
HEAD = ("first", "length", "block_slots")
# Keys and values (layers, K heads, slots, P), and where they are int8 their scales (layers, K heads, slots, 1).
BLOCK = ("k", "v", "k_scale", "v_scale")
SCALES = BLOCK[2:]

FieldShape = tuple[tuple[int | None, ...], torch.dtype]  # of one tensor of a block, None where its slots go


def book_of(first: int, length: int, block_slots: int, blocks: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The book (3 + 4 per block,) int64, on the CPU, of blocks of tensors by name."""
    head = {"first": first, "length": length, "block_slots": block_slots}
    where = [block[name].data_ptr() if name in block else 0 for block in blocks for name in BLOCK]
    return torch.tensor([*(head[name] for name in HEAD), *where])


def book_room(blocks: int) -> int:
    """How many numbers the book of so many blocks has."""
    return len(HEAD) + len(BLOCK) * blocks


@dataclass(frozen=True)
class Slots:
    """What kernels know of a memory. book: on the device. room: slots that buffers and grids are made for."""

    book: Tensor
    room: int
    heads: int  # K
    eight_bit: bool

    @classmethod
    def of(cls, book: Tensor, room: int, fields: Mapping[str, FieldShape]) -> Slots:
        """Of a memory with these fields; ValueError where the kernels would read something else than they expect."""
        eight_bit = any(name in fields for name in SCALES)
        needed = BLOCK if eight_bit else tuple(name for name in BLOCK if name not in SCALES)
        if missing := [name for name in needed if name not in fields]:
            raise ValueError(f"the memory has no field {missing[0]!r}, which its attention kernel reads")
        shape, stored = fields["k"]
        heads = shape[1] if len(shape) == 4 else None
        if heads is None or shape[2] is not None or (stored == torch.int8) != eight_bit:
            raise ValueError(f"the memory's keys are {stored} {shape}, not (layers, heads, slots, width)")
        if fields["v"] != (shape, stored):
            raise ValueError(f"the memory's values {fields['v']} are not like its keys {fields['k']}")
        if eight_bit and (fields["k_scale"] != fields["v_scale"] or fields["k_scale"][0] != (*shape[:3], 1)):
            raise ValueError(
                f"the memory's scales {fields['k_scale']}, {fields['v_scale']} are not one a head and slot"
            )
        if book.dtype != torch.int64 or (len(book) - len(HEAD)) % len(BLOCK):
            raise ValueError(f"the memory's book is {book.dtype} of {len(book)}, not {HEAD} and {BLOCK} of every block")
        return cls(book, room, heads, eight_bit)
