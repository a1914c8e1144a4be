"""A memory whose older blocks lie in a file reads as if they did not; the file is as large as what somebody sees."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from pipeline.layers.reading import until
from pipeline.memory import disk
from pipeline.memory.disk import Disk, Spool
from pipeline.memory.log import Block, runs
from pipeline.memory.memory import Memory, Policy
from tests.conftest import gap
from tests.memory.test_memory import HEADS, LAYERS, WIDTH, contents, grown, rows, same

BLOCK = 4
FAR = 2 * LAYERS * HEADS * WIDTH * 8 * BLOCK  # bytes of a block in the file


def empty(seconds: float | None = 9, unit: int = 1, **options) -> Memory:
    """seconds: the newest that stay, at a slot a second."""
    away = None if seconds is None else Disk(seconds / 60, unit)
    return Memory.empty(LAYERS, HEADS, WIDTH, torch.float64, block_slots=BLOCK, disk=away, **options)


def pair(n: int, seconds: float = 9, **options) -> tuple[Memory, Memory]:
    """The same n slots all in memory, and with the older ones in a file."""
    k, v = rows(n)
    both = [empty(None, **options), empty(seconds, **options)]
    for start in range(0, n, 5):
        part = slice(start, min(n, start + 5))
        both = [grown(memory, k[:, :, part], v[:, :, part], float(start)) for memory in both]
    assert both[1].disk_nbytes and not both[0].disk_nbytes
    return both[0], both[1]


def places(memory: Memory) -> list[bool]:
    """Of every block whether it is in the file, and holds nothing but its times any more."""
    for block in memory.log.blocks:
        assert (block.away is not None) == (set(block.tensors) == {"time"})
    return [block.away is not None for block in memory.log.blocks]


@pytest.mark.parametrize("eight_bit", [False, True])
def test_what_is_chosen_is_the_same(eight_bit) -> None:
    plain, away = pair(61, eight_bit=eight_bit)
    for slots in ([0, 3, 4, 5, 6, 21, 44, 60], [], list(range(61)), [17]):
        chosen = torch.tensor(slots, dtype=torch.int64)
        assert same(contents(away.select(chosen)), contents(plain.select(chosen)))
    assert same(contents(away), contents(plain)) and away.times.tolist() == plain.times.tolist()
    q = torch.randn(4, 3, WIDTH, dtype=torch.float64)
    (out, weights), (want, want_weights) = (m.attend(1, q, want_weights=True) for m in (away, plain))
    assert gap(out, want) == gap(weights, want_weights) == 0
    some, all_rows = (m.log.since(37) for m in (away, plain))
    assert all(torch.equal(some[name], all_rows[name]) for name in all_rows)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_every_type_comes_back_bit_for_bit(stored) -> None:
    k, v = (part.to(stored) for part in rows(40))
    memory = Memory.empty(LAYERS, HEADS, WIDTH, stored, block_slots=BLOCK, disk=Disk(0.1))
    memory = grown(memory, k, v)
    assert memory.disk_nbytes and torch.equal(memory.log.tensor("k"), k) and torch.equal(memory.log.tensor("v"), v)


def test_no_more_is_read_than_was_chosen(monkeypatch) -> None:
    _, away = pair(61)
    read, reading = [], Spool.read

    def counted(self, count, start):
        read.append(count)
        return reading(self, count, start)

    monkeypatch.setattr(Spool, "read", counted)
    assert away.times.tolist() == list(range(61)) and not read
    away.select(torch.tensor([55, 58, 60]))
    assert not read, "the newest are in memory"
    away.select(torch.tensor([8, 9, 11]))
    assert sorted(read) == [FAR // BLOCK // 2 * n for n in (1, 1, 2, 2)], "two runs of keys and of values"


@pytest.mark.parametrize("seed", range(4))
def test_what_is_in_the_file_does_not_depend_on_the_cuts(seed, cut) -> None:
    k, v = rows(57)
    whole, pieces = grown(empty(), k, v), empty()
    for part in cut(57, seed):
        pieces = grown(pieces, k[:, :, part], v[:, :, part], float(part.start))
        near = len(pieces) - BLOCK * sum(places(pieces))
        assert near <= 9 + 2 * BLOCK
    assert places(pieces) == places(whole) and sum(places(whole)) == 11 and same(contents(pieces), contents(whole))


def test_snapshots_and_forks_read_the_same_and_share_the_file() -> None:
    memory, kept = empty(), []
    for i in range(9):
        memory = grown(memory, *rows(5), start=5.0 * i)
        kept.append((memory, contents(memory)))
    size = memory.disk.file.nbytes
    assert size == FAR * sum(places(memory)) and all(same(contents(old), was) for old, was in kept)
    forks = [grown(old, *rows(3), start=100.0) for old, _ in kept[5:]]
    for (old, was), fork in zip(kept[5:], forks):
        for before, after in zip(was, contents(fork)):
            dim = before.dim() - 2 if before.dim() > 1 else 0
            assert torch.equal(after.narrow(dim, 0, len(old)), before)
    shared = kept[-1][0].log.blocks[0]
    assert all(fork.log.blocks[0] is shared for fork in forks) and shared.away


@pytest.mark.parametrize("slots", [0, 3, 8, 30, 50])
def test_going_back_in_time_and_on_from_there(slots) -> None:
    """What is appended behind a block in the file forks it, in memory."""
    plain, away = pair(50)
    short, want = (replace(m, log=m.log.until(slots)) for m in (away, plain))
    assert same(contents(short), contents(want))
    assert same(contents(until(away, float(slots - 1))), contents(until(plain, float(slots - 1))))
    more = rows(7)
    assert same(contents(grown(short, *more, start=100.0)), contents(grown(want, *more, start=100.0)))
    assert same(contents(away), contents(plain))


@pytest.mark.parametrize("policy", [Policy("budget", 23), Policy("window", 0.4)], ids=str)
def test_policies_drop_from_the_file(policy) -> None:
    plain, away = pair(60, policy=policy)
    assert away.dropped == plain.dropped > 30 and same(contents(away), contents(plain))
    assert away.disk.file.nbytes <= FAR * len(away.log.blocks), "what nobody sees takes no room"


def test_the_file_is_empty_when_the_last_holder_is_gone() -> None:
    memory = grown(empty(), *rows(50))
    file, fork = memory.disk.file, grown(replace(memory, log=memory.log.until(20)), *rows(3), start=90.0)
    assert file.nbytes == FAR * 9
    del memory
    gc.collect()
    assert 0 < file.nbytes <= FAR * 5, "the fork sees its own"
    del fork
    gc.collect()
    assert file.nbytes == 0


def test_the_file_has_no_name(tmp_path) -> None:
    memory = Memory.empty(
        LAYERS, HEADS, WIDTH, torch.float64, block_slots=BLOCK, disk=Disk(0.1, file=Spool(str(tmp_path)))
    )
    memory = grown(memory, *rows(50))
    assert memory.disk_nbytes and os.listdir(tmp_path) == []


def test_places_are_used_again() -> None:
    file = Spool()
    kept = [file.claim(size) for size in (100, 60, 100, 60)]
    assert file.nbytes == 320
    del kept[0]
    assert file.nbytes == 320 and file.claim(100) is not None  # and gone again at once
    del kept[1]
    assert file.nbytes == 320
    del kept[1]
    assert file.nbytes == 160 and kept[0].start == 100


@contextmanager
def room_for(blocks: int, memory: Memory) -> Iterator[None]:
    """A disk on which so many blocks of this memory fit."""
    file, room = memory.disk.file, disk.Spool._room
    disk.Spool._room = lambda self, size, spare: (
        (self is not file or self._end + size <= blocks * FAR) and room(self, size, spare)
    )
    try:
        yield
    finally:
        disk.Spool._room = room


@pytest.mark.parametrize("unit", [1, 3])
def test_on_a_full_disk_watching_goes_on_and_the_oldest_fall_out(unit) -> None:
    memory, k_all = empty(unit=unit), []
    with room_for(5, memory):
        for i in range(60):
            k, v = rows(2)
            k_all.append(k)
            memory = grown(memory, k, v, start=2.0 * i)
            assert len(memory.log.blocks) <= 5 + 1 + 1 + 9 // BLOCK + 2, "no more stays in memory than before"
    k = torch.cat(k_all, 2)
    assert memory.dropped == memory.log.gone == 120 - len(memory) > 60 and memory.dropped % unit == 0
    assert torch.equal(memory.log.tensor("k"), k[:, :, memory.dropped :]), "what is left is the newest, untouched"
    assert memory.times.tolist() == list(range(memory.dropped, 120))


def test_a_failing_disk_costs_memory_and_no_numbers(monkeypatch, caplog) -> None:
    def broken(self, data, start):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Spool, "write", broken)
    k, v = rows(40)
    memory = grown(empty(), k, v)
    assert torch.equal(memory.log.tensor("k"), k) and "could not be written" in caplog.text


def test_memory_stays_flat() -> None:
    """Bytes of all tensors that a long stream keeps alive, its snapshots among them: after the first while only times
    are added."""
    memory, held, snapshots = empty(), [], []
    alive: weakref.WeakSet[Block] = weakref.WeakSet()
    for i in range(400):
        memory = grown(memory, *rows(3), start=3.0 * i)
        snapshots = [*snapshots[-9:], memory] if i % 20 == 0 else snapshots
        alive.update(memory.log.blocks)
        held.append(sum(t.nbytes for block in alive for name, t in block.tensors.items() if name != "time"))
    assert max(held[20:]) <= max(held[:20])
    assert memory.disk.file.nbytes > 200 * FAR


def test_runs_are_stretches_without_a_gap() -> None:
    assert [*runs(torch.tensor([3]))] == [range(3, 4)]
    assert [*runs(torch.tensor([0, 1, 2, 5, 7, 8]))] == [range(3), range(5, 6), range(7, 9)]
