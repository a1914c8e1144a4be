"""What a memory and its attention kernel agree on: a field more, or elsewhere, is never read as something else."""

from __future__ import annotations

import os

import pytest
import torch

from pipeline.gpu.layout import BLOCK, HEAD, Slots, book_room
from pipeline.memory.attention import plain_attend
from pipeline.memory.log import Field, Log
from pipeline.memory.memory import Memory
from tests.conftest import gap

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not CUDA
DEVICE = "cuda" if CUDA else "cpu"
kernels_only = pytest.mark.skipif(not (CUDA or INTERPRETED), reason="needs a CUDA GPU or Triton's interpreter")
LAYERS, HEADS, WIDTH, SLOTS, DROPPED = 2, 2, 16, 150, 70


def fields_of(eight_bit: bool) -> dict[str, Field]:
    return dict(Memory.empty(LAYERS, HEADS, WIDTH, torch.float32, eight_bit=eight_bit).log.fields)


def poison(log: Log) -> None:
    """Everything that is not visible becomes NaN, or the largest number an int8 knows."""
    slots = torch.arange(len(log.blocks) * log.block_slots, device=DEVICE)
    hidden = ((slots < log.first) | (slots >= log.first + log.length)).view(len(log.blocks), -1)
    for block, here in zip(log.blocks, hidden):
        for name, tensor in block.tensors.items():
            worst = torch.nan if tensor.is_floating_point() else 127
            tensor.index_fill_(log.fields[name].slot_dim, here.nonzero()[:, 0], worst)


def memory_of(fields: dict[str, Field], poisoned: bool) -> Memory:
    """150 slots in blocks of 64, of which 70 are forgotten, the last block not full."""
    made = torch.Generator().manual_seed(3)
    k, v = torch.randn(2, LAYERS, HEADS, SLOTS, WIDTH, generator=made).to(DEVICE)
    memory, write = Memory(Log(fields, 64, DEVICE)).append(torch.arange(float(SLOTS)))
    write(slice(None), k, v)
    memory = Memory(memory.log.drop_oldest(DROPPED))
    if poisoned:
        poison(memory.log)
    return memory


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("want_weights", [False, True])
def test_what_is_not_visible_is_not_read(eight_bit, want_weights):
    """By the plain code; the kernels' turn is below."""
    q = torch.randn(4, 3, WIDTH).to(DEVICE)
    clean, poisoned = (memory_of(fields_of(eight_bit), poisoned) for poisoned in (False, True))
    assert poisoned.log.blocks[0].tensors["time"][0].isnan() and poisoned.log.blocks[-1].tensors["time"][-1].isnan()
    out, weights = plain_attend(poisoned.log, 1, q, want_weights)
    want, want_given = plain_attend(clean.log, 1, q, want_weights)
    assert torch.equal(out, want) and out.isfinite().all()
    assert weights is None if not want_weights else torch.equal(weights, want_given)


@kernels_only
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("queries", [1, 20])
def test_kernels_read_nothing_that_is_not_visible(eight_bit, queries):
    """20 queries: the weights come from a second look at the keys."""
    kernels = pytest.importorskip("pipeline.gpu.kernels")
    clean, poisoned = (memory_of(fields_of(eight_bit), poisoned) for poisoned in (False, True))
    q = torch.randn(4, queries, WIDTH).to(DEVICE)
    for layer in range(LAYERS):
        out, weights = kernels.attend(poisoned.log.slots, layer, q, want_weights=True)
        want, want_weights = plain_attend(clean.log, layer, q, True)
        assert gap(out, want) < 1e-4 and gap(weights, want_weights) < 1e-4


@kernels_only
@pytest.mark.parametrize("eight_bit", [False, True])
def test_kernels_find_fields_by_name(eight_bit):
    """In another order, and with one more in front: the very same numbers."""
    kernels = pytest.importorskip("pipeline.gpu.kernels")
    fields, q = fields_of(eight_bit), torch.randn(4, 1, WIDTH).to(DEVICE)
    others = dict(reversed(fields.items())), {"mark": Field((None,), torch.int64), **fields}
    memory = memory_of(fields, False)
    want, _ = kernels.attend(memory.log.slots, 1, q)
    for other in others:
        assert list(other) != list(fields)
        memory = memory_of(other, False)  # held: a book knows addresses only
        assert torch.equal(kernels.attend(memory.log.slots, 1, q)[0], want)


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_book_names_every_tensor_by_its_place(eight_bit):
    """However a memory orders its fields, and whatever else it keeps."""
    fields = fields_of(eight_bit)
    for order in (fields, dict(reversed(fields.items())), {"mark": Field((None,), torch.int64), **fields}):
        log = memory_of(order, False).log
        head, *rest = log.book[: len(HEAD)].tolist(), *log.book[len(HEAD) :].tolist()
        assert head == [DROPPED % 64, SLOTS - DROPPED, 64] and len(log.book) == book_room(len(log.blocks))
        for i, block in enumerate(log.blocks):
            there = [block.tensors[name].data_ptr() if name in block.tensors else 0 for name in BLOCK]
            assert rest[i * len(BLOCK) : (i + 1) * len(BLOCK)] == there
        assert log.slots.eight_bit == eight_bit and log.slots.heads == HEADS and log.slots.room == SLOTS - DROPPED


WHOLE = (LAYERS, HEADS, None, WIDTH)
CHANGES = {
    "no values": {"v": None},
    "only one scale": {"k_scale": Field((LAYERS, HEADS, None, 1), torch.float32)},
    "8 bits without scales": {"k": Field(WHOLE, torch.int8), "v": Field(WHOLE, torch.int8)},
    "values of another type": {"v": Field(WHOLE, torch.float16)},
    "wider values": {"v": Field((LAYERS, HEADS, None, 2 * WIDTH), torch.float32)},
    "slots first": {name: Field((None, LAYERS, HEADS, WIDTH), torch.float32) for name in "kv"},
    "scales without 8 bits": {name: Field((LAYERS, HEADS, None, 1), torch.float32) for name in BLOCK[2:]},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_fields_are_refused(change):
    fields = {name: f for name, f in (fields_of(False) | change).items() if f is not None}
    log = Log(fields, 64).reserve(10)[0]
    with pytest.raises(ValueError, match="memory"):
        _ = log.slots


def test_a_scale_of_another_shape_is_refused():
    fields = fields_of(True) | {"v_scale": Field((LAYERS, 1, None, 1), torch.float32)}
    with pytest.raises(ValueError, match="scales"):
        _ = Log(fields, 64).reserve(10)[0].slots


def test_a_book_of_another_length_is_refused():
    book = memory_of(fields_of(False), False).log.book
    with pytest.raises(ValueError, match="book"):
        Slots.of(book[:-1], SLOTS, fields_of(False))
