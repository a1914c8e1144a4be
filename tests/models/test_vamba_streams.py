"""Chunks of several streams in one pass: every stream is the one that was watched alone."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import Engine, Frame, UserError, VideoChunk
from pipeline.layers.mamba2 import Mamba2Mixer
from pipeline.models import vamba_streams
from pipeline.models.vamba_model import VambaModel
from tests.conftest import TINY, TINY_MIXER, Letters, PairEyes, gap

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def frames_of(seed: int, start: int, count: int) -> tuple[Frame, ...]:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (64, 4, 6, 3), dtype=np.uint8)
    return tuple(Frame(pictures[i % 64], 0.5 * i) for i in range(start, start + count))


def alike(ours, want, tolerance: float) -> None:
    assert ours.frames == want.frames and ours.seen_until == want.seen_until
    assert [f.time for f in ours.held] == [f.time for f in want.held]
    for a, b in zip(ours.inner.states, want.inner.states):
        assert gap(a.ssm, b.ssm) < tolerance and gap(a.conv, b.conv) < tolerance
    for name in ("k", "v", "time"):
        assert gap(ours.inner.memory.log.tensor(name), want.inner.memory.log.tensor(name)) < tolerance
    assert ours.memory_bytes == want.memory_bytes and ours.state_bytes == want.state_bytes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("lengths", [[5, 5, 5], [1, 9, 4], [30, 2, 17, 3]])
def test_rows_of_different_lengths_are_each_its_own(dtype, lengths):
    """Blocks of 8 tokens are begun, filled and crossed by filled-up rows; rows shorter than the convolution too."""
    torch.manual_seed(3)
    mixer = Mamba2Mixer(replace(TINY_MIXER, ngroups=2)).to(dtype).requires_grad_(False)
    states = [mixer(torch.randn(1, 7, 32, dtype=dtype), mixer.start())[1] for _ in lengths]
    rows = [torch.randn(1, n, 32, dtype=dtype) for n in lengths]
    batch = torch.nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True, padding_value=9.0)
    both = type(states[0])(*map(torch.cat, zip(*states)))
    out, after = mixer(batch, both, batch, torch.tensor(lengths))
    for n, (row, state) in enumerate(zip(rows, states)):
        want, then = mixer(row, state, row)
        assert gap(out[n : n + 1, : row.shape[1]], want) < TOLERANCE[dtype]
        assert gap(after.ssm[n : n + 1], then.ssm) < TOLERANCE[dtype]
        assert gap(after.conv[n : n + 1], then.conv) < TOLERANCE[dtype]


turns = st.lists(st.lists(st.integers(0, 7), min_size=4, max_size=4), min_size=1, max_size=4)


@settings(max_examples=10, deadline=None)
@given(turns=turns, eight_bit=st.booleans(), filled=st.sampled_from([1.0, 1.5, 99.0]))
def test_streams_together_are_the_streams_alone(tiny_vamba_64, turns, eight_bit, filled):
    """Any mix of chunks, turn by turn: 0 is nobody, so streams come late, pause and go on; odd frames are held."""
    eyes = PairEyes(TINY.d_model, torch.float64)
    model = VambaModel(tiny_vamba_64, eyes, Letters(), block_slots=16, eight_bit=eight_bit)
    together = [model.start() for _ in range(4)]
    alone = list(together)
    was, vamba_streams.MOST_FILLED = vamba_streams.MOST_FILLED, filled
    try:
        for counts in turns:
            here = [n for n, count in enumerate(counts) if count]
            chunks = [VideoChunk(frames_of(n, together[n].frames, counts[n])) for n in here]
            for n, state in zip(here, model.watch_together(chunks, [together[n] for n in here])):
                together[n] = state
            for n, chunk in zip(here, chunks):
                alone[n] = model.watch(chunk, alone[n])
    finally:
        vamba_streams.MOST_FILLED = was
    for ours, want in zip(together, alone):
        alike(ours, want, 1e-9)


@pytest.fixture(scope="module")
def tiny_vamba_64():
    from pipeline.layers.vamba import Vamba

    torch.manual_seed(0)
    net = Vamba(TINY).to(torch.float64)
    for name, p in net.named_parameters():
        if name.endswith("proj.weight"):
            torch.nn.init.normal_(p, std=2 * p.shape[1] ** -0.5)
    return net.requires_grad_(False).eval()


def test_a_state_that_was_given_out_is_never_written_again(tiny_vamba_64):
    model = VambaModel(tiny_vamba_64, PairEyes(TINY.d_model, torch.float64), Letters(), block_slots=16)
    first = model.watch_together([VideoChunk(frames_of(n, 0, 4)) for n in range(3)], [model.start()] * 3)
    kept = [[part.clone() for s in one.inner.states for part in s] for one in first]
    model.watch_together([VideoChunk(frames_of(n, 4, 2 + 2 * n)) for n in range(3)], first)
    for one, before in zip(first, kept):
        now = [part for s in one.inner.states for part in s]
        assert all(torch.equal(a, b) for a, b in zip(now, before))
        assert all(part.untyped_storage().nbytes() == part.nbytes for part in now), "a row keeps the others alive"


@pytest.mark.parametrize("trouble", ["none", "memory", "overflow"])
def test_live_visitors_of_one_engine_see_their_own(tiny_model, trouble, monkeypatch):
    """As alone. Too little memory for several: one by one. An overflow is told to whose it is."""
    model = tiny_model()
    engine, met = Engine(model), []
    was = model.watch_together

    def watched(chunks, states):
        met.append(len(chunks))
        if trouble == "memory":
            raise MemoryError
        return was(chunks, states)

    monkeypatch.setattr(model, "watch_together", watched)
    if trouble == "overflow":
        monkeypatch.setattr(model, "finite_later", lambda state: lambda: bool(state.inner.memory.times[-1] < 100))
    ready, found = threading.Barrier(6), [None] * 6

    def visit(n: int) -> None:
        state, moved = engine.start(), 100 if n == 5 and trouble == "overflow" else 0
        ready.wait(10)
        try:
            for at in range(0, 24, 2):
                frames = tuple(replace(f, time=f.time + moved) for f in frames_of(n, at, 2))
                state = engine.watch(VideoChunk(frames), state)
            found[n] = state
        except UserError as error:
            found[n] = error

    threads = [threading.Thread(target=visit, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert max(met) > 1
    for n, state in enumerate(found):
        if trouble == "overflow" and n == 5:
            assert isinstance(state, UserError)
        else:
            alike(state, model.watch(VideoChunk(frames_of(n, 0, 24)), model.start()), 1e-4)
