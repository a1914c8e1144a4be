"""The memory: a table that only grows, snapshots that stay, and attention over it that is plain softmax attention."""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref

import numpy as np
import pytest
import torch

from pipeline.evidence import moments
from pipeline.memory.log import Block, Field, Log
from pipeline.memory.memory import Memory, Policy
from tests.conftest import gap

LAYERS, HEADS, WIDTH = 2, 2, 8


def empty(block_slots=7, dtype=torch.float64, **options) -> Memory:
    return Memory.empty(LAYERS, HEADS, WIDTH, dtype, block_slots=block_slots, **options)


def rows(n: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(LAYERS, HEADS, n, WIDTH, dtype=dtype) for _ in "kv")


def grown(memory: Memory, k: torch.Tensor, v: torch.Tensor, start: float = 0.0) -> Memory:
    """The memory with n more slots, one a second from `start` on."""
    memory, write = memory.append(start + torch.arange(k.shape[2], dtype=torch.float64))
    for layer in range(LAYERS):
        write(layer, k[layer], v[layer])
    return memory.applied()


def contents(memory: Memory) -> list[torch.Tensor]:
    return [memory.log.tensor(name).clone() for name in memory.log.fields]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))


def full_attention(q, k, v):
    """Softmax attention written out: keys and values repeated per query head, everything at once."""
    k, v = (a.repeat_interleave(q.shape[0] // a.shape[0], 0) for a in (k, v))
    weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
    return weights @ v, weights


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_log_is_a_list_of_rows(seed):
    """Random appends, forks, drops, prefixes and reads, beside a plain tensor that is copied every time."""
    rng = np.random.default_rng(seed)
    log = Log({"a": Field((2, None, 3), torch.float64), "b": Field((None,), torch.int64)}, int(rng.integers(1, 9)))
    pairs = [(log, torch.zeros(2, 0, 3, dtype=torch.float64))]
    for step in range(40):
        log, plain = pairs[rng.integers(len(pairs))]  # often an old one: then an append forks
        n, kind = int(rng.integers(0, 12)), rng.integers(4)
        if kind <= 1:
            new = torch.randn(2, n, 3, dtype=torch.float64)
            log, plain = log.append(a=new, b=torch.full((n,), step)), torch.cat([plain, new], 1)
        elif kind == 2:
            log, plain = log.drop_oldest(n), plain[:, n:]
        else:
            log, plain = log.until(n), plain[:, :n]
        pairs.append((log, plain))
    for log, plain in pairs:
        assert len(log) == plain.shape[1] == len(log.tensor("b"))
        assert torch.equal(log.tensor("a"), plain)
        wanted = torch.arange(len(log))[torch.rand(len(log)) < 0.4]
        assert torch.equal(log.gather(wanted, "a")[0], plain[:, wanted])


def test_appending_never_moves_or_copies_what_is_there():
    memory = empty(block_slots=8)
    memory = grown(memory, *rows(20))
    before = [(b, {n: t.data_ptr() for n, t in b.tensors.items()}) for b in memory.log.blocks]
    later = memory
    for i in range(10):
        later = grown(later, *rows(5), start=20.0 + 5 * i)
    for (block, addresses), now in zip(before, later.log.blocks):
        assert now is block
        assert {n: t.data_ptr() for n, t in now.tensors.items()} == addresses


def test_going_on_allocates_new_blocks_only(monkeypatch):
    """A chunk costs its own bytes, not the memory's: no block is copied on the straight path."""
    monkeypatch.setattr(Log, "_copy", lambda *_: pytest.fail("a block was copied"))
    memory = empty(block_slots=8)
    for i in range(12):
        memory = grown(memory, *rows(7), start=7.0 * i)
        assert len(memory.log.blocks) == math.ceil(len(memory) / 8)


def test_a_fork_copies_one_block_only():
    trunk = grown(empty(block_slots=8), *rows(20))
    one, two = grown(trunk, *rows(3), start=20.0), grown(trunk, *rows(3), start=20.0)
    assert [a is b for a, b in zip(one.log.blocks, two.log.blocks)] == [True, True, False]
    assert one.log.blocks[2] is trunk.log.blocks[2]


@pytest.mark.parametrize("eight_bit", [False, True])
def test_snapshots_stay_bitwise(eight_bit):
    memory = empty(eight_bit=eight_bit)
    kept = []
    for i in range(6):
        memory = grown(memory, *rows(5), start=5.0 * i)
        kept.append((memory, contents(memory)))
    for old, _ in kept:  # go on from every old snapshot, twice
        for start in (100.0, 200.0):
            grown(grown(old, *rows(4), start=start), *rows(9), start=start + 4)
    for old, was in kept:
        assert same(contents(old), was)


def test_two_threads_going_on_from_one_snapshot():
    for _ in range(20):
        trunk = grown(empty(block_slots=64), *rows(10))
        was, grew, ready = contents(trunk), {}, threading.Barrier(2)
        data = {name: [rows(3) for _ in range(12)] for name in "ab"}

        def run(name, trunk=trunk, grew=grew, ready=ready, data=data):
            memory = trunk
            ready.wait()
            for k, v in data[name]:
                memory = grown(memory, k, v)
            grew[name] = memory

        threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert same(contents(trunk), was)
        for name in "ab":
            assert torch.equal(grew[name].log.tensor("k")[:, :, 10:], torch.cat([k for k, _ in data[name]], 2))
            assert torch.equal(grew[name].log.tensor("k")[:, :, :10], was[0])


def test_two_threads_never_claim_the_same_slots():
    """The window between looking and taking is nanoseconds; here it is a millisecond."""

    class Slow(Block):
        @property
        def used(self):
            value = self._used
            time.sleep(0.001)
            return value

        @used.setter
        def used(self, value):
            self._used = value

    block, won, ready = Slow({"a": Field((None,), torch.int64)}, 8, "cpu"), [], threading.Barrier(2)

    def run():
        ready.wait()
        won.append(block.claim(0, 1))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(won) == [False, True]


def test_memory_grows_by_the_same_bytes_per_slot():
    memory, sizes = empty(), []
    for i in range(5):
        memory = grown(memory, *rows(6), start=6.0 * i)
        sizes.append(memory.nbytes)
    per_slot = 2 * LAYERS * HEADS * WIDTH * 8 + 8
    assert sizes == [6 * per_slot * (i + 1) for i in range(5)]


def test_dropped_blocks_are_freed():
    memory = grown(empty(block_slots=8, policy=Policy("budget", 10)), *rows(10))
    for i in range(20):
        memory = grown(memory, *rows(5), start=10.0 + 5 * i)
        assert len(memory.log.blocks) <= 3


# --- policies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "kept"), [(Policy(), 60), (Policy("budget", 17), 17), (Policy("window", 0.25), 16)], ids=str
)
@pytest.mark.parametrize("seed", range(3))
def test_policies_keep_the_newest_however_the_video_was_cut(policy, kept, seed, cut):
    k, v = rows(60)
    memory = empty(policy=policy)
    for part in cut(60, seed):
        memory = grown(memory, k[:, :, part], v[:, :, part], start=float(part.start))
        assert memory.dropped + len(memory) == part.stop
    assert memory.times.tolist() == list(range(60 - kept, 60))
    assert memory.dropped == 60 - kept
    assert torch.equal(memory.log.tensor("k"), k[:, :, 60 - kept :])


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="unknown memory policy"):
        Policy("forget-me-not")


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_slots", [1, 3, 7, 64])
@pytest.mark.parametrize("queries", [1, 5, 70])
def test_attention_is_plain_softmax_attention(block_slots, queries, cut):
    """Query heads share key heads (6 over 2); blocks of odd sizes; slots dropped from the front."""
    k, v = rows(50)
    memory = empty(block_slots)
    for part in cut(50, block_slots):
        memory = grown(memory, k[:, :, part], v[:, :, part], start=float(part.start))
    memory = Memory(memory.log.drop_oldest(9))
    q = 2 * torch.randn(6, queries, WIDTH, dtype=torch.float64)
    for layer in range(LAYERS):
        out, weights = memory.attend(layer, q, want_weights=True)
        want, want_weights = full_attention(q, k[layer, :, 9:], v[layer, :, 9:])
        assert gap(out, want) < 1e-13
        assert gap(weights, want_weights.mean((0, 1))) < 1e-12
        assert abs(float(weights.sum()) - 1) < 1e-12
        assert memory.attend(layer, q)[1] is None


def test_attention_survives_enormous_logits():
    """Merging by sums of exponentials instead of log-sum-exp would overflow here."""
    k, v = rows(20)
    memory = grown(empty(3), 200 * k, v)
    q = 50 * torch.randn(4, 2, WIDTH, dtype=torch.float64)
    out, weights = memory.attend(0, q, want_weights=True)
    assert gap(out, full_attention(q, 200 * k[0], v[0])[0]) < 1e-10
    assert abs(float(weights.sum()) - 1) < 1e-10


def test_attention_does_not_care_for_order():
    k, v = rows(30)
    shuffled = torch.randperm(30)
    q = torch.randn(4, 3, WIDTH, dtype=torch.float64)
    one = grown(empty(), k, v).attend(1, q)[0]
    two = grown(empty(), k[:, :, shuffled], v[:, :, shuffled]).attend(1, q)[0]
    assert gap(one, two) < 1e-13


def test_an_empty_memory_gives_nothing():
    q = torch.randn(4, 3, WIDTH, dtype=torch.float64)
    for memory in (empty(), Memory(grown(empty(), *rows(5)).log.drop_oldest(5))):
        out, weights = memory.attend(0, q, want_weights=True)
        assert torch.equal(out, torch.zeros_like(q))
        assert weights is None


def test_a_planted_needle_is_found():
    """One slot whose key points along the query takes the weight and comes out as the evidence."""
    k, v = rows(240)
    q = torch.randn(4, 1, WIDTH, dtype=torch.float64)
    k[1, :, 137] = 12 * q.reshape(2, 2, WIDTH).mean(1)
    q = k[1, :, 137].repeat_interleave(2, 0)[:, None]
    memory = grown(empty(16), k, v)
    out, weights = memory.attend(1, q, want_weights=True)
    assert weights[137] > 0.99
    assert gap(out[:, 0], v[1, :, 137].repeat_interleave(2, 0)) < 0.05
    (found,) = moments(memory.times, weights.numpy())
    assert (found.time, found.start, found.end) == (137.0, 137.0, 137.0)
    assert found.weight > 0.99


def test_selected_slots_are_a_small_memory():
    k, v = rows(40)
    memory = grown(empty(), k, v)
    slots = torch.tensor([0, 6, 7, 20, 39])
    few = memory.select(slots)
    assert few.times.tolist() == [0, 6, 7, 20, 39]
    q = torch.randn(4, 2, WIDTH, dtype=torch.float64)
    assert gap(few.attend(0, q)[0], full_attention(q, k[0][:, slots], v[0][:, slots])[0]) < 1e-13
    assert len(memory.select(slots[:0])) == len(empty().select(slots[:0])) == 0


# --- 8 bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_eight_bits_err_by_half_a_step(scale):
    """The step is 1/127 of the largest number of a head's slot; zeros stay zeros."""
    k, v = (scale * a for a in rows(30, torch.float32))
    k[:, :, 4] = 0
    memory = grown(empty(7, torch.float32, eight_bit=True), k, v)
    for layer in range(LAYERS):
        got_k, got_v = (torch.cat(parts, 1) for parts in zip(*memory.blocks(layer, torch.float32)))
        for got, want in ((got_k, k[layer]), (got_v, v[layer])):
            step = want.abs().amax(-1, keepdim=True) / 127
            assert ((got - want).abs() <= 0.501 * step + 1e-9).all()
            assert (got - want).abs().max() > 0.2 * step.max()  # it is eight bits, and no more
        assert torch.equal(got_k[:, 4], torch.zeros_like(got_k[:, 4]))


def test_eight_bits_in_bfloat16_err_little_more():
    """Half a step of the scale as stored, in bf16. Computed in bf16, codes of 128 used to turn into -128."""
    k, v = rows(2000, torch.bfloat16)
    memory = grown(empty(7, torch.bfloat16, eight_bit=True), k, v)
    got = torch.cat([part for part, _ in memory.blocks(0, torch.float32)], 1)
    want = k[0].float()
    assert ((got - want).abs() <= 0.503 * want.abs().amax(-1, keepdim=True) / 127).all()


def test_eight_bits_take_half_of_bfloat16():
    full, small = (
        Memory.empty(28, 4, 128, torch.bfloat16, eight_bit=eight_bit).log.fields for eight_bit in (False, True)
    )
    bytes_full, bytes_small = (sum(c.bytes_per_slot() for c in columns.values()) for columns in (full, small))
    assert bytes_full == 57_344 + 8
    assert bytes_small < 0.51 * bytes_full


def test_eight_bit_attention_is_near():
    k, v = rows(60, torch.float32)
    q = torch.randn(4, 2, WIDTH)
    want = full_attention(q, k[0], v[0])[0]
    assert gap(grown(empty(7, torch.float32, eight_bit=True), k, v).attend(0, q)[0], want) < 0.02


def test_a_memory_that_nobody_holds_is_gone_at_once():
    """Without the garbage collector, which may come late: it is up to 31 GB of a GPU."""
    memory, write = Memory.empty(1, 1, 2, torch.float32, "cpu", block_slots=4).append(torch.arange(9.0))
    write(0, torch.zeros(1, 9, 2), torch.zeros(1, 9, 2))
    for name in ("on_device", "on_host", "host_blocks", "slot_nbytes", "book"):
        getattr(memory.log, name)
    block = weakref.ref(memory.log.blocks[0])
    gc.disable()
    try:
        del memory, write
        assert block() is None
    finally:
        gc.enable()
