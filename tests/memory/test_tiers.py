"""A memory that is partly on the host reads as if it were not: attention, snapshots, policies, counts, answers."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import pytest
import torch

from pipeline.engine import Engine
from pipeline.gpu.dispatch import override
from pipeline.layers.reading import Instants, until
from pipeline.memory import tiers
from pipeline.memory.attention import plain_attend
from pipeline.memory.memory import Memory, Policy
from pipeline.memory.tiers import Tier
from pipeline.stream import Question, Sampling, UserError, VideoChunk
from tests.conftest import gap
from tests.memory.test_memory import HEADS, LAYERS, WIDTH, contents, full_attention, grown, rows, same

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available()
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
BLOCK = 4


def empty(dtype=torch.float64, on_device: int | None = None, pieces: float = 2, **options) -> Memory:
    """on_device: the newest slots that stay there; `pieces` blocks of the others come back at once."""
    bare = Memory.empty(LAYERS, HEADS, WIDTH, dtype, block_slots=BLOCK, **options)
    slot = bare.log.slot_nbytes
    return replace(
        bare, tier=None if on_device is None else Tier(on_device * slot, int(pieces * BLOCK * slot / LAYERS))
    )


def pair(n: int, on_device: int, dtype=torch.float64, pieces: float = 2, **options) -> tuple[Memory, Memory]:
    """The same n slots all in one place, and with all but the newest on the host."""
    k, v = rows(n, dtype)
    both = [empty(dtype, **options), empty(dtype, on_device, pieces, **options)]
    for start in range(0, n, 5):
        part = slice(start, min(n, start + 5))
        both = [grown(memory, k[:, :, part], v[:, :, part], float(start)) for memory in both]
    assert both[1].host_slots and not both[0].host_slots
    return both


# Attention


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("queries", [1, 10, 11, 70])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_attention_is_the_same(dtype, queries, eight_bit) -> None:
    """Few queries keep their scores; from 32 rows of a key head on the keys are read again; 70 are several passes."""
    plain, tiered = pair(61, 9, dtype=dtype, eight_bit=eight_bit)
    q = 2 * torch.randn(6, queries, WIDTH, dtype=dtype)
    for layer in range(LAYERS):
        (out, weights), (want, want_weights) = (m.attend(layer, q, want_weights=True) for m in (tiered, plain))
        assert gap(out, want) < TOLERANCE[dtype] and gap(weights, want_weights) < TOLERANCE[dtype]
        assert abs(float(weights.sum()) - 1) < 1e-5 and out.dtype == q.dtype
        bare, none = tiered.attend(layer, q)
        assert torch.equal(bare, out) and none is None


@pytest.mark.parametrize("pieces", [0.5, 1, 3, 100])
@pytest.mark.parametrize("on_device", [0, 1, 13, 44])
def test_however_it_is_divided(on_device, pieces) -> None:
    """Over what stays and what is copied at once. The oldest block is partly dropped, the newest partly written."""
    plain, tiered = (replace(m, log=m.log.drop_oldest(6)) for m in pair(59, on_device, pieces=pieces))
    q = torch.randn(4, 3, WIDTH, dtype=torch.float64)
    (out, weights), (want, want_weights) = (m.attend(1, q, want_weights=True) for m in (tiered, plain))
    assert gap(out, want) < 1e-12 and gap(weights, want_weights) < 1e-12
    assert gap(out, full_attention(q, plain.log.tensor("k")[1], plain.log.tensor("v")[1])[0]) < 1e-12


def test_attention_survives_enormous_logits() -> None:
    k, v = rows(30)
    tiered = grown(empty(on_device=5, pieces=1), 200 * k, v)
    q = 50 * torch.randn(4, 2, WIDTH, dtype=torch.float64)
    out, weights = tiered.attend(0, q, want_weights=True)
    assert gap(out, full_attention(q, 200 * k[0], v[0])[0]) < 1e-10 and abs(float(weights.sum()) - 1) < 1e-10


SPANS = [[], [range(0, 5)], [range(0, 7), range(50, 66)], [range(3, 4), range(4, 70)]]


@pytest.mark.parametrize("spans", SPANS, ids=str)
@pytest.mark.parametrize("queries", [7, 70])
def test_every_span_of_queries_has_its_weights(queries, spans) -> None:
    """As in one question the opening's and the last words' gaze."""
    spans = [span for span in spans if span.stop <= queries]
    q = 2 * torch.randn(4, queries, WIDTH, dtype=torch.float64)
    for memory in pair(61, 9):
        out, weights = memory.attend_spans(1, q, spans)
        assert gap(out, memory.attend(1, q)[0]) < 1e-12
        assert (weights is None) == (not spans)
        for i, span in enumerate(spans):
            k, v = (memory.log.tensor(name)[1] for name in "kv")
            want = full_attention(q[:, span.start : span.stop], k, v)[1].mean((0, 1))
            assert gap(weights[i], want) < 1e-12 and len(weights) == len(spans)


def test_a_host_part_is_read_once_for_many_queries(monkeypatch) -> None:
    _, tiered = pair(61, 9, pieces=3)
    copied, copy = [], tiers._Line.copy

    def counted(self, pairs, after):
        copied.append(len(pairs))
        return copy(self, pairs, after)

    monkeypatch.setattr(tiers._Line, "copy", counted)
    tiered.attend(0, torch.randn(4, 100, WIDTH, dtype=torch.float64))
    blocks = tiered.log.host_blocks
    assert copied == [2 * min(3, blocks - i) for i in range(0, blocks, 3)]
    copied.clear()
    q = torch.randn(4, 100, WIDTH, dtype=torch.float64)
    tiered.attend_spans(0, q, [range(0, 9), range(40, 90)])  # and then its keys again
    assert sum(copied) == 3 * blocks


# Values


@pytest.mark.parametrize("eight_bit", [False, True])
def test_snapshots_stay_bitwise_and_where_they_were(eight_bit) -> None:
    memory, kept = empty(on_device=9, eight_bit=eight_bit), []
    for i in range(9):
        memory = grown(memory, *rows(5), start=5.0 * i)
        blocks = [(b, b.on_host) for b in memory.log.blocks]
        kept.append((memory, contents(memory), blocks))
    for old, _, _ in kept:  # go on from every old snapshot
        grown(grown(old, *rows(14), start=100.0), *rows(9), start=200.0)
    for old, was, blocks in kept:
        assert same(contents(old), was)
        assert [(b, b.on_host) for b in old.log.blocks] == blocks
    q = torch.randn(4, 2, WIDTH, dtype=torch.float64)
    first, last = kept[0][0], kept[-1][0]
    assert not first.host_slots and last.host_slots
    assert gap(last.attend(0, q)[0], replace(last, log=last.log.until(45)).attend(0, q)[0]) == 0


def test_a_block_moves_once_for_everybody() -> None:
    """A question that flushes a held frame appends and settles too; it must not copy the block for itself."""
    trunk = grown(empty(on_device=7), *rows(11))
    one, two = (grown(trunk, *rows(6), start=11.0) for _ in range(2))
    assert one.log.host_blocks == two.log.host_blocks == 3 > trunk.log.host_blocks
    assert [a is b for a, b in zip(one.log.blocks, two.log.blocks)] == [True, True, False, False, False]
    here, there = (m.log.blocks[1] for m in (trunk, one))
    assert there.on_host and not here.on_host and there.tensors["k"] is not here.tensors["k"]
    assert there.tensors["time"] is here.tensors["time"]  # times stay: everybody asks for them


@pytest.mark.parametrize("slots", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_the_newest_block_never_moves(slots) -> None:
    """Not even where nothing may stay, and not when it is full: whoever goes on writes into it, uncopied."""
    memory = grown(empty(on_device=0), *rows(slots))
    newest = memory.log.blocks[-1]
    assert not newest.on_host and newest.twin is None
    assert memory.log.host_blocks == len(memory.log.blocks) - 1 == (slots - 1) // BLOCK
    more = grown(memory, *rows(1), start=float(slots))
    assert len(more.log.on_device) == (1 if slots % BLOCK == 0 else slots % BLOCK + 1)
    assert (newest in more.log.blocks) == bool(slots % BLOCK), "a partly written block is gone on in, not forked"


def test_moved_blocks_are_freed_on_the_device() -> None:
    import weakref

    memory = grown(empty(on_device=5), *rows(4))
    was = weakref.ref(memory.log.blocks[0].tensors["k"])
    memory = grown(memory, *rows(12), start=4.0)
    assert memory.log.blocks[0].on_host and was() is None
    assert memory.log.host_blocks == 3


@pytest.mark.parametrize("seed", range(4))
def test_what_moves_does_not_depend_on_the_cuts(seed, cut) -> None:
    k, v = rows(57)
    whole = grown(empty(on_device=10), k, v)
    pieces = empty(on_device=10)
    for part in cut(57, seed):
        pieces = grown(pieces, k[:, :, part], v[:, :, part], float(part.start))
        assert len(pieces) - pieces.host_slots <= 10 + BLOCK - 1
    assert pieces.host_slots == whole.host_slots == 48 and same(contents(pieces), contents(whole))


@pytest.mark.parametrize("slots", [0, 3, 8, 30, 41, 50])
def test_going_back_in_time_and_on_from_there(slots) -> None:
    """`until` may end inside a block on the host; what is appended then forks it, on the device."""
    plain, tiered = pair(50, 9)
    short, want = (replace(m, log=m.log.until(slots)) for m in (tiered, plain))
    assert same(contents(short), contents(want))
    assert same(contents(until(tiered, float(slots - 1))), contents(until(plain, float(slots - 1))))
    assert short.times.tolist() == list(range(slots))
    more = rows(7)
    q = torch.randn(4, 3, WIDTH, dtype=torch.float64)
    one, two = (grown(m, *more, start=100.0) for m in (short, want))
    assert same(contents(one), contents(two)) and gap(one.attend(1, q)[0], two.attend(1, q)[0]) < 1e-12
    assert same(contents(tiered), contents(plain))


@pytest.mark.parametrize("policy", [Policy("budget", 23), Policy("window", 0.4)], ids=str)
def test_policies_drop_from_the_host(policy) -> None:
    plain, tiered = pair(60, 9, policy=policy)
    assert tiered.dropped == plain.dropped > 30 and same(contents(tiered), contents(plain))
    assert len(tiered.log.blocks) == len(plain.log.blocks) and tiered.host_slots
    q = torch.randn(4, 1, WIDTH, dtype=torch.float64)
    assert gap(tiered.attend(0, q)[0], plain.attend(0, q)[0]) < 1e-12


@pytest.mark.parametrize("eight_bit", [False, True])
def test_selected_slots_come_to_the_device(eight_bit) -> None:
    plain, tiered = pair(50, 9, eight_bit=eight_bit)
    slots = torch.tensor([0, 3, 4, 21, 44, 49])
    few = tiered.select(slots)
    assert same(contents(few), contents(plain.select(slots))) and not few.host_slots
    assert Instants(tiered).times.tolist() == plain.times.tolist()


def test_the_bytes_say_where_they_are() -> None:
    plain, tiered = pair(50, 9)
    assert tiered.nbytes == plain.nbytes and plain.host_nbytes == 0
    assert tiered.host_slots == 44 and tiered.host_nbytes == 44 * 2 * LAYERS * HEADS * WIDTH * 8
    short = replace(tiered, log=tiered.log.until(10))
    assert short.host_slots == 10 and replace(short, log=short.log.drop_oldest(10)).host_slots == 0


def test_a_full_computer_is_told_and_costs_nothing(monkeypatch, tiny_model, clip) -> None:
    model, video = tiny_model(gpu_memory=5e-6), clip(80)
    engine = Engine(model)
    state = engine.watch(VideoChunk(video[:24]), engine.start())
    was = contents(state.inner.memory)
    assert state.inner.memory.host_slots
    monkeypatch.setattr(tiers, "free_host_bytes", lambda: tiers.RESERVE)
    with pytest.raises(UserError, match="Memory ran out"):
        engine.watch(VideoChunk(video[24:]), state)
    assert same(contents(state.inner.memory), was)
    monkeypatch.undo()  # and when there is room again it goes on
    assert engine.watch(VideoChunk(video[24:]), state).inner.memory.host_slots > state.inner.memory.host_slots


def test_free_memory_is_what_the_machine_and_the_container_leave(tmp_path) -> None:
    assert 100e6 < tiers.free_host_bytes() < 100e12
    machine = tmp_path / "meminfo"
    assert tiers.free_host_bytes(machine, tmp_path) == math.inf  # not Linux
    machine.write_text("MemTotal:       4000 kB\nMemAvailable:   3000 kB\n")
    assert tiers.free_host_bytes(machine, tmp_path) == 3000 * 1024
    told = {"memory.current": "1000000", "memory.stat": "anon 5\ninactive_file 200000\n", "memory.max": "max"}
    for name, text in told.items():
        (tmp_path / name).write_text(text)
    assert tiers.free_host_bytes(machine, tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("2000000\n")  # files the system keeps at hand may go
    assert tiers.free_host_bytes(machine, tmp_path) == 1_200_000


# A model


@pytest.mark.parametrize(
    "options", [{}, {"eight_bit": True}, {"retrieve": 5}, {"policy": Policy("budget", 41)}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_answers_are_the_same(dtype, options, tiny_model, clip, cut, watch_all) -> None:
    plain = tiny_model(dtype, **options)
    tiered = tiny_model(dtype, gpu_memory=20e-9 * plain.start().inner.memory.log.slot_nbytes, **options)
    video = clip(41)  # the last frame waits for a partner
    states = [watch_all(model, video, cut(41, seed)) for seed, model in enumerate((plain, tiered))]
    assert states[1].inner.memory.host_slots > 20 and "computer" in states[1].dropped_note
    assert states[1].memory_bytes == states[0].memory_bytes and states[0].inner.memory.host_slots == 0
    for question in (Question("what was it?"), Question("and before?", at=6.2)):
        memories = [m._flushed(s).inner.memory for m, s in zip((plain, tiered), states)]
        (_, want), (_, got) = (m._read(question, memory) for m, memory in zip((plain, tiered), memories))
        assert gap(got, want) < (1e-9 if dtype == torch.float64 else 1e-4)
        told = [list(m.ask(question, s, Sampling(max_tokens=6))) for m, s in zip((plain, tiered), states)]
        assert [t.id for t in told[0]] == [t.id for t in told[1]]
        for a, b in zip(*told):
            assert gap(torch.tensor(b.looked[1]), torch.tensor(a.looked[1])) < 1e-3
    assert "GPU" in tiered.about and "GPU" not in plain.about


# On a GPU. Without one the kernels can still be checked, slowly: TRITON_INTERPRET=1 pytest tests/test_tiers.py


def on_gpu(memory: Memory, k: torch.Tensor, v: torch.Tensor, step: int = 50) -> Memory:
    for start in range(0, k.shape[2], step):
        part = slice(start, min(k.shape[2], start + step))
        memory, write = memory.append(torch.arange(part.start, part.stop, dtype=torch.float64))
        for layer in range(len(k)):
            write(layer, k[layer][:, part], v[layer][:, part])
        memory = memory.applied()
    return memory


@pytest.mark.cuda
@pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="needs a CUDA GPU")
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("queries", [1, 40])
@torch.no_grad()
def test_the_kernels_read_a_host_part_too(queries, eight_bit) -> None:
    pytest.importorskip("pipeline.gpu.kernels")
    device = "cpu" if INTERPRETED else "cuda"
    k, v = torch.randn(2, 2, 2, 500, 32, device=device)
    plain = Memory.empty(2, 2, 32, torch.float32, device, block_slots=64, eight_bit=eight_bit)
    slot = plain.log.slot_nbytes
    plain, tiered = (on_gpu(m, k, v) for m in (plain, replace(plain, tier=Tier(150 * slot, 64 * slot))))
    plain, tiered = (replace(m, log=m.log.drop_oldest(70)) for m in (plain, tiered))
    assert tiered.host_slots > 250
    q = 2 * torch.randn(6, queries, 32, device=device)
    for layer in range(2):
        with override("own"):
            out, weights = tiered.attend(layer, q, True)
        want, want_weights = plain_attend(plain.log, layer, q, True)
        assert gap(out, want) < 1e-4 and gap(weights, want_weights) < 1e-4


@pytest.mark.cuda
@gpu
@torch.no_grad()
def test_copies_and_computing_wait_for_each_other() -> None:
    """Blocks of megabytes, moved and read back while the GPU is busy: whoever is too early reads other numbers."""
    k, v = torch.randn(2, 8, 4, 40_000, 128, device="cuda", dtype=torch.bfloat16)
    plain = Memory.empty(8, 4, 128, torch.bfloat16, "cuda", block_slots=1024)
    slot = plain.log.slot_nbytes
    tiered = replace(plain, tier=Tier(5_000 * slot, 3 * 1024 * slot / 8))
    busy = torch.randn(4096, 4096, device="cuda")
    states = []
    for start in range(0, 40_000, 700):
        part = slice(start, start + 700)
        busy = busy @ busy / 64  # what is written below is late
        plain, tiered = (on_gpu(m, k[:, :, part], v[:, :, part], 700) for m in (plain, tiered))
        states.append(tiered)
    for layer in range(8):
        for queries in (1, 40):
            q = 2 * torch.randn(28, queries, 128, device="cuda", dtype=torch.bfloat16)
            (out, weights), (want, want_weights) = (m.attend(layer, q, True) for m in (tiered, plain))
            assert gap(out, want) < 0.02 and gap(weights, want_weights) < 0.02  # bf16 has 8 bits
    assert torch.equal(tiered.log.tensor("k"), plain.log.tensor("k"))
    assert torch.equal(states[20].log.tensor("v"), plain.log.until(14_700).tensor("v"))
