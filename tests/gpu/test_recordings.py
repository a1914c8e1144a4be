"""Recorded passes against the plain code they stand for: answers token by token, live chunks, many at once.

On a GPU recordings are recorded and played. Without one, Triton's interpreter runs the same passes unrecorded, slowly
(TRITON_INTERPRET=1): everything but CUDA's own part is then checked. The first tests need neither.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.checks import verify
from pipeline.gpu import graphs
from pipeline.layers import reading
from pipeline.layers.reading import TextDecoder
from pipeline.layers.vamba import Vamba
from pipeline.memory.memory import Memory
from pipeline.models import vamba_graphs as recordings
from pipeline.models.vamba_golden import GoldenVision
from pipeline.models.vamba_graphs import ChunkRecordings, TextRecordings
from pipeline.models.vamba_model import VambaModel
from pipeline.stream import Frame, Question, Sampling, VideoChunk
from pipeline.towers import qwen as vision
from pipeline.towers import qwen_graphs
from pipeline.towers.qwen_graphs import TowerRecordings
from pipeline.towers.seen import Seen
from tests.conftest import TINY_MIXER, TINY_VISION, Letters, gap
from tests.places import golden_folders

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not CUDA
DEVICE = "cuda" if CUDA else "cpu"
kernels_only = [
    pytest.mark.skipif(not (CUDA or INTERPRETED), reason="needs a CUDA GPU or Triton's interpreter"),
    *([] if INTERPRETED else [pytest.mark.cuda]),
]
gpu_only = [pytest.mark.skipif(not CUDA, reason="needs a CUDA GPU"), pytest.mark.cuda]
WIDE = {"d_model": 64, "n_heads": 4, "n_kv_heads": 2, "d_ff": 64, "n_layers": 2, "cross_layers": (0, 1)}
WIDE |= {"mixer": replace(TINY_MIXER, d_model=64, d_state=16, headdim=16)}
PLACES = (1,)
GOLDEN = golden_folders("vamba-*")


def apply(marks):
    def to(test):
        for mark in marks:
            test = mark(test)
        return test

    return to


def remembered(slots: int, *, dropped: int = 0, eight_bit: bool = False, seed: int = 5, heads: int = 2) -> Memory:
    """A memory of random keys and values, three slots a second, of which the oldest are forgotten."""
    made = torch.Generator().manual_seed(seed)
    memory = Memory.empty(2, heads, 16, torch.float32, DEVICE, block_slots=64, eight_bit=eight_bit)
    memory, write = memory.append((torch.arange(slots + dropped) // 3).double().to(DEVICE))
    write(slice(None), *torch.randn(2, 2, heads, slots + dropped, 16, generator=made).to(DEVICE))
    return replace(memory, log=memory.log.drop_oldest(dropped))


@pytest.fixture
def net(tiny_vamba) -> Vamba:
    return tiny_vamba(torch.float32, **WIDE).to(DEVICE)


@pytest.fixture
def recorded(net, monkeypatch) -> TextRecordings:
    """Small rooms, so that they are outgrown; under the interpreter the kernels are chosen for a CPU too."""
    monkeypatch.setattr(recordings, "LEAST_SLOTS", 256)
    monkeypatch.setattr(recordings, "ROWS", (1, 16, 32))
    monkeypatch.setattr(reading, "LEAST_ROOM", 32)
    if INTERPRETED:
        from pipeline.gpu import kernels

        monkeypatch.setattr(recordings, "kernels_for", lambda x: kernels)
        monkeypatch.setattr(recordings, "attention_kernels", lambda *_: kernels)
    return TextRecordings(net, PLACES)


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 96, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def alike(ours: TextDecoder, plain: TextDecoder, logits: torch.Tensor, want: torch.Tensor) -> None:
    assert gap(logits, want) < 1e-3 and int(logits.argmax()) == int(want.argmax())
    assert gap(ours.gazes, plain.gazes) < 1e-3 and gap(ours.looked, plain.looked) < 1e-2
    assert ours.cache.length == plain.cache.length and ours.cache.used == plain.cache.used


# One pass


@pytest.mark.parametrize("length", [1, 5, 16, 17, 40])
def test_a_prompt_in_one_pass_looks_as_in_three(length, tiny_vamba):
    """The beginning, the middle and the end, each by itself: that is what the one pass stands for."""
    net = tiny_vamba(torch.float64, **WIDE)
    memory = Memory.empty(2, 2, 16, torch.float64, block_slots=7)
    memory, write = memory.append((torch.arange(50) // 3).double())
    write(slice(None), *torch.randn(2, 2, 2, 50, 16, dtype=torch.float64))
    opening, ids = prompt(6), prompt(length, 1)
    whole, parts = TextDecoder(net, memory, (0, 1)), TextDecoder(net, memory, (0, 1))
    logits = whole.question(opening, ids)
    parts.feed(opening)
    usual = parts.gazes[0]
    if head := ids[:-16]:
        parts.feed(head)
    want = parts.feed(ids[-16:])
    assert gap(logits, want) < 1e-12
    assert gap(whole.gazes, torch.stack([usual, parts.gazes[0]])) < 1e-12
    assert gap(whole.looked, (parts.gazes[0] - usual).clamp_min(0).sum(0)) < 1e-9 and whole.looked.sum() > 0


@pytest.mark.parametrize("count", [1, 127, 128, 129, 300, 1000])
def test_a_long_prompt_is_cut_evenly(count):
    parts = reading.even_parts(count, recordings.ROWS[-1])
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) <= recordings.ROWS[-1] and max(map(len, parts)) - min(map(len, parts)) <= 1


# Answers


@apply(kernels_only)
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize(("length", "dropped"), [(3, 0), (40, 70), (26, 0)])
def test_recorded_answers_are_the_plain_ones(length, dropped, eight_bit, net, recorded):
    """Prompts in one pass and in two; twelve tokens, over which the conversation outgrows its room."""
    if INTERPRETED and (length, eight_bit) in ((26, True), (3, True)):
        pytest.skip("on a GPU only: Triton's interpreter takes minutes at this size")
    memory = remembered(150, dropped=dropped, eight_bit=eight_bit)
    for asked in range(1 if INTERPRETED else 3):  # plain, recorded, played
        ours, plain = TextDecoder(net, memory, PLACES, recorded), TextDecoder(net, memory, PLACES)
        logits, want = (r.question(prompt(6), prompt(length, asked)) for r in (ours, plain))
        alike(ours, plain, logits, want)
        for _ in range(4 if INTERPRETED else 40):
            token = int(want.argmax())
            logits, want = ours.feed([token]), plain.feed([token])
            alike(ours, plain, logits, want)
        assert not recorded.tapes.off and ours.usual is not None
        if length == 40:  # a span that begins in one pass and ends in another
            alike(ours, plain, *(r.feed(prompt(length)) for r in (ours, plain)))


@apply(kernels_only)
def test_the_memory_grows_between_questions(net, recorded):
    """Also past the room of the recordings (256 slots), and back to an older, smaller memory."""
    for slots in (20, 255, 300) if INTERPRETED else (20, 255, 300, 100, 2000, 30, 300):
        memory = remembered(slots, seed=slots)
        ours, plain = TextDecoder(net, memory, PLACES, recorded), TextDecoder(net, memory, PLACES)
        logits, want = (r.question(prompt(6), prompt(5)) for r in (ours, plain))
        alike(ours, plain, logits, want)
        logits, want = ours.feed([7]), plain.feed([7])
        alike(ours, plain, logits, want)
    assert not recorded.tapes.off


@apply(kernels_only)
def test_two_answers_at_once_do_not_touch(net, recorded):
    memories = [remembered(90), remembered(130, dropped=10, seed=9)]
    ours = [TextDecoder(net, m, PLACES, recorded) for m in memories]
    plain = [TextDecoder(net, m, PLACES) for m in memories]
    found = [r.question(prompt(6), prompt(9 + 8 * i, i)) for i, r in enumerate(ours)]
    want = [r.question(prompt(6), prompt(9 + 8 * i, i)) for i, r in enumerate(plain)]
    kept = [(logits.clone(), decoder.gazes.clone()) for logits, decoder in zip(found, ours)]
    for step in range(3 if INTERPRETED else 12):
        for i in (0, 1):
            alike(ours[i], plain[i], found[i], want[i])
            before = found[1 - i].clone(), ours[1 - i].gazes.clone()
            token = int(want[i].argmax())
            found[i], want[i] = ours[i].feed([token]), plain[i].feed([token])
            assert torch.equal(before[0], found[1 - i]) and torch.equal(before[1], ours[1 - i].gazes)
        assert step or not all(torch.equal(a, b) for a, (b, _) in zip(found, kept))


def test_a_want_of_memory_is_told_from_other_failures():
    assert graphs.no_room(torch.OutOfMemoryError("CUDA out of memory"))
    assert graphs.no_room(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"))
    try:
        try:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")
    except RuntimeError as error:
        assert graphs.no_room(error)  # what ends a recording hides what broke it
    assert not graphs.no_room(RuntimeError("CUDA error: an illegal memory access was encountered"))


@apply(kernels_only)
@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_after_a_failure_the_plain_code_goes_on(error, net, recorded, monkeypatch, caplog):
    """In the second pass of a prompt: what the first one left must not be counted twice. Told, and final, unless it was
    memory: that may have passed by the next time."""
    memory, passes, transient = remembered(40), [], error is torch.OutOfMemoryError

    def fail(self, rows, run=recordings.TextPasses._pass):
        passes.append(rows)
        if len(passes) == 2:
            raise error("whatever it says")
        run(self, rows)

    monkeypatch.setattr(recordings.TextPasses, "_pass", fail)
    with caplog.at_level(logging.WARNING, logger=graphs.__name__):
        for _ in range(2):
            ours, plain = TextDecoder(net, memory, PLACES, recorded), TextDecoder(net, memory, PLACES)
            logits, want = (r.question(prompt(6), prompt(40)) for r in (ours, plain))
            alike(ours, plain, logits, want)
    rehearsals = int(recorded.tapes.stream is not None)  # before the second one is recorded
    assert len(passes) == (4 + rehearsals if transient else 2) and len(caplog.records) == 1
    assert recorded.tapes.off != transient


@apply(gpu_only)
def test_a_recording_that_fails_on_the_gpu(net, recorded, monkeypatch, caplog):
    """Waiting for the GPU is what may not be recorded. The GPU must go on working."""
    memory = remembered(40)

    def wait(self, rows, run=recordings.TextPasses._pass):
        run(self, rows)
        self.logits.sum().item()

    monkeypatch.setattr(recordings.TextPasses, "_pass", wait)
    for _ in range(3):
        ours, plain = TextDecoder(net, memory, PLACES, recorded), TextDecoder(net, memory, PLACES)
        alike(ours, plain, *(r.question(prompt(6), prompt(9)) for r in (ours, plain)))
    assert recorded.tapes.off and len(caplog.records) == 1


@apply(kernels_only)
def test_all_is_recorded_before_the_first_question(net, recorded, monkeypatch):
    """Preparing leaves nothing to be recorded, and happens once."""
    made, memory = [], Memory.empty(2, 2, 16, torch.float32, DEVICE, block_slots=64)
    name = "_recorded" if CUDA else "play"
    was = getattr(graphs.Tape, name)
    monkeypatch.setattr(graphs.Tape, name, lambda self: made.append(1) or was(self))
    for _ in range(2):
        recorded.prepare(memory)
        assert len(made) == (3 if CUDA else 6) and not recorded.tapes.off
    if CUDA:
        ours, plain = TextDecoder(net, remembered(90), PLACES, recorded), TextDecoder(net, remembered(90), PLACES)
        alike(ours, plain, *(r.question(prompt(6), prompt(9)) for r in (ours, plain)))
        assert len(made) == 3


@pytest.mark.parametrize("fails", [False, True])
def test_visitors_who_come_at_once_record_once(fails, tiny_vamba, monkeypatch):
    """And who comes second waits until all is recorded. What failed is tried again by the next."""
    monkeypatch.setattr(recordings, "kernels_for", lambda x: recordings)
    made, done = TextRecordings(tiny_vamba(torch.float32, **WIDE), PLACES), []

    def slow(memory):
        done.append("begun")
        time.sleep(0.1)
        if fails and len(done) == 1:
            raise torch.OutOfMemoryError("whatever it says")
        done.append("ended")

    def visit():
        with contextlib.suppress(torch.OutOfMemoryError):
            made.prepare(Memory.empty(2, 2, 16, torch.float32))
        done.append("served")

    monkeypatch.setattr(made, "_record_all", slow)
    threads = [threading.Thread(target=visit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done.count("ended") == 1 and done.count("begun") == (2 if fails else 1)
    assert done.count("served") == 4 and done[: done.index("ended")].count("served") <= fails


# Live chunks


@pytest.mark.parametrize("eight_bit", [False, True])
def test_recorded_chunks_are_the_plain_ones(eight_bit, net, monkeypatch):
    """Chunks of five lengths, in turn: recordings come and go. No state that was given out is written again."""
    if not CUDA:
        monkeypatch.setattr(recordings, "kernels_for", lambda x: recordings)
    live, kept = ChunkRecordings(net), []
    memory = plain_memory = Memory.empty(2, 2, 16, torch.float32, DEVICE, block_slots=64, eight_bit=eight_bit)
    states = plain_states = net.start()
    with torch.no_grad():
        for turn in range(24):
            T = (3, 3, 7, 3, 20, 7, 31, 3, 40)[turn % 9]
            v, times = torch.randn(1, T, 64, device=DEVICE), torch.full((T,), float(turn), device=DEVICE)
            (memory, write), (plain_memory, plain_write) = memory.append(times), plain_memory.append(times)
            states = live.watch(v, states, write, None)
            plain_states = net.watch(v, plain_states, lambda j, k, x, w=plain_write: w(j, k[0], x[0]))
            kept.append((states, [t.clone() for s in states for t in s]))
    assert len(live._kept) == graphs.KINDS and not live.tapes.off
    for ours, want in zip(states, plain_states):
        assert gap(ours.ssm, want.ssm) < 1e-4 and gap(ours.conv, want.conv) < 1e-4
    for name in ("k", "v"):
        ours, want = memory.log.tensor(name).float(), plain_memory.log.tensor(name).float()
        assert gap(ours, want) < (0.02 if eight_bit else 1e-4)
    for given, copies in kept:
        assert all(torch.equal(a, b) for a, b in zip((t for s in given for t in s), copies))


def test_recorded_walks_through_the_tower_are_the_plain_ones(monkeypatch):
    """Pictures of five kinds in turn, too many for one among them. No tokens that were given out are written again."""
    if not CUDA:
        monkeypatch.setattr(qwen_graphs, "kernels_for", lambda x: recordings)
    tower = vision.build_tower({**TINY_VISION, "embed_dim": 160, "num_heads": 2}).to(DEVICE)
    plain, met, kept = vision._encode_equal, [], []
    monkeypatch.setattr(qwen_graphs, "LIVE_PATCHES", 50)

    def walk(pairs: torch.Tensor, h: int, w: int) -> torch.Tensor:
        met.append(len(pairs))
        return plain(tower, pairs, h, w)

    live = TowerRecordings(walk, torch.device(DEVICE))
    with torch.no_grad():
        for turn in range(24):
            one, two, turned = (1, 2, 4), (2, 2, 4), (1, 4, 2)
            pairs, h, w = (one, one, two, one, turned, two, (3, 4, 2), one, (9, 2, 4))[turn % 9]
            patches = torch.randn(pairs, h * w, 3 * 2 * 14 * 14, device=DEVICE)
            tokens = live.encode(patches, h, w)
            assert gap(tokens, plain(tower, patches, h, w)) < 1e-4
            kept.append((tokens, tokens.clone()))
    assert not live.tapes.off and all(torch.equal(a, b) for a, b in kept)
    assert len(live._kept) == graphs.KINDS and met.count(9) == 2
    assert (9, 2, 4) not in live._met and (3, 4, 2) in live._met, "what keeps a GPU busy is not recorded"


# The whole model


@apply(gpu_only)
@pytest.mark.skipif(not GOLDEN, reason="the golden folders are not here")
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_golden_checkpoints_are_recorded(folder):
    """Other shapes and switches, frame by frame: chunks of one length and answers, recorded and plain."""
    golden = verify.read(folder, torch.device("cuda"), torch.float32)
    model = VambaModel(golden.net, GoldenVision(golden), None, block_slots=64)
    state, whole = model.start(), [Frame(np.zeros((1, 1, 3), np.uint8), float(n)) for n in range(2 * golden.grid[0][0])]
    for i in range(0, len(whole), 2):
        state = model.watch(VideoChunk(tuple(whole[i : i + 2])), state)
    at_once = model.watch(VideoChunk(tuple(whole)), model.start())
    assert gap(state.inner.memory.log.tensor("k"), at_once.inner.memory.log.tensor("k")) < 1e-3
    about, ids = (model.net, state.inner.memory, model.watch_layers), golden.prompt
    for _ in range(3):
        ours, plain = TextDecoder(*about, model._recordings), TextDecoder(*about)
        alike(ours, plain, *(r.question(ids[:4], ids[4:]) for r in (ours, plain)))
        alike(ours, plain, *(r.feed([ids[-1]]) for r in (ours, plain)))
    assert not model._live.tapes.off and not model._recordings.tapes.off and model._recordings._passes


class Pairs:
    """Eyes on the GPU: every pair of frames becomes three tokens that its first pixel chooses."""

    unit_frames, long_side = 2, 64

    def tokens(self, frames) -> Seen:
        made = [torch.Generator().manual_seed(int(frame.rgb[0, 0, 0])) for frame in frames[::2]]
        tokens = torch.cat([torch.randn(3, 64, generator=g) for g in made])[None].to(DEVICE)
        return Seen(tokens, torch.tensor([f.time for f in frames[::2]], dtype=torch.float64).repeat_interleave(3))


def frames(start: int, stop: int) -> VideoChunk:
    return VideoChunk(tuple(Frame(np.full((2, 2, 3), i // 2 % 251, np.uint8), float(i)) for i in range(start, stop)))


def said(model: VambaModel, state, question: Question, sampling: Sampling):
    return [(t.id, None if t.looked is None else t.looked[1]) for t in model.ask(question, state, sampling)]


@apply(gpu_only)
@pytest.mark.parametrize("options", [{}, {"eight_bit": True}, {"retrieve": 6}], ids=str)
def test_ask_and_watch_at_the_same_time(options, tiny_vamba, monkeypatch):
    """Three visitors ask, while the stream is watched on in small chunks; each gets the answer it gets alone."""
    net = tiny_vamba(torch.float32, **WIDE).cuda()
    model = VambaModel(net, Pairs(), Letters(), block_slots=64, **options)
    state, states = model.start(), []
    for i in range(0, 120, 2):
        state = model.watch(frames(i, i + 2), state)
        states.append(state)
    drawn = [Sampling(max_tokens=12, temperature=warmth) for warmth in (0.0, 0.5, 1.0)]
    asked = [(Question(f"what is {i}?"), states[20 * i + 15], drawn[i]) for i in range(3)]
    found: list = [None] * 3

    def visit(i: int) -> None:
        found[i] = [said(model, s, q, sampling) for q, s, sampling in [asked[i]] * 4][-1]

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    later = state
    for i in range(120, 300, 2):
        later = model.watch(frames(i, i + 2), later)
    for thread in threads:
        thread.join()
    assert not model._recordings.tapes.off and not model._live.tapes.off and "recorded" in model.backend
    monkeypatch.setattr(model._recordings.tapes, "off", True)
    assert "recorded" not in model.backend
    monkeypatch.setattr(model._live.tapes, "off", True)
    for (q, s, sampling), got in zip(asked, found):
        want = said(model, s, q, sampling)
        assert [i for i, _ in got] == [i for i, _ in want]
        assert all((a is None and b is None) or np.allclose(a, b, atol=1e-3) for (_, a), (_, b) in zip(got, want))
    again = model.start()
    for i in range(0, 300, 60):
        again = model.watch(frames(i, i + 60), again)
    for ours, want in zip(later.inner.states, again.inner.states):
        assert gap(ours.ssm, want.ssm) < 1e-3
    assert gap(later.inner.memory.log.tensor("k").float(), again.inner.memory.log.tensor("k").float()) < 0.02
