"""The signature property: how a video is cut never changes what was seen. And: a state once held never changes.

Cuts are random, through tokens, through frames and through the middle of a pair. fp64 must agree within 1e-9; fp32
within 1e-4 of the largest value. Forgetting a carried part must be far outside of both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.layers.mamba2 import MixerConfig, MixerState
from pipeline.layers.reading import TextDecoder
from pipeline.memory.memory import Memory, Policy
from pipeline.models.vamba_model import VambaModel
from pipeline.stream import Question, Sampling, StreamState, VideoChunk
from tests.conftest import PairEyes, gap
from tests.layers.test_mamba2 import OPTIONS, random_mixer

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp64", "fp32"])
GREEDY = Sampling(max_tokens=5)
QUESTION = Question("what was it?")


def in_pieces(mixer, u, slices, state):
    outputs = []
    for part in slices:
        out, state = mixer(u[:, part], state)
        outputs.append(out)
    return torch.cat(outputs, 1), state


# --- the mixer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@DTYPES
def test_cutting_tokens_never_changes_the_mixer(options, dtype, cut):
    mixer = random_mixer(dtype, **options)
    u, start = torch.randn(2, 61, mixer.cfg.d_model, dtype=dtype), mixer.start(2)
    whole, whole_state = mixer(u, start)
    for seed in range(3):
        out, state = in_pieces(mixer, u, cut(61, seed), start)
        assert gap(out, whole) < TOLERANCE[dtype]
        assert gap(state.ssm, whole_state.ssm) < TOLERANCE[dtype]
        assert gap(state.conv, whole_state.conv) < TOLERANCE[dtype]


def test_one_token_at_a_time(dtype=torch.float64):
    mixer = random_mixer(dtype)
    u = torch.randn(1, 30, mixer.cfg.d_model, dtype=dtype)
    whole, _ = mixer(u, mixer.start())
    assert gap(in_pieces(mixer, u, [slice(i, i + 1) for i in range(30)], mixer.start())[0], whole) < 1e-9


@pytest.mark.parametrize("lost", ["conv", "ssm"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_forgetting_is_far_outside_the_tolerance(lost, options):
    """What the tests above would say of a mixer that drops its conv tail or its SSM state between chunks."""
    mixer = random_mixer(torch.float64, **options)
    u = torch.randn(1, 40, mixer.cfg.d_model, dtype=torch.float64)
    whole, state = mixer(u, mixer.start())
    _, carried = mixer(u[:, :23], mixer.start())
    forgetful = carried._replace(**{lost: torch.zeros_like(getattr(carried, lost))})
    out, end = mixer(u[:, 23:], forgetful)
    assert gap(out, whole[:, 23:]) > 1e-2
    assert gap(end.ssm, state.ssm) > 1e-2


def test_the_state_given_in_is_never_changed():
    mixer = random_mixer(torch.float32)
    _, state = mixer(torch.randn(1, 9, mixer.cfg.d_model), mixer.start())
    was = MixerState(*(t.clone() for t in state))
    for T in (1, 2, 20):
        mixer(torch.randn(1, T, mixer.cfg.d_model), state)
    assert torch.equal(state.conv, was.conv)
    assert torch.equal(state.ssm, was.ssm)


def test_the_mixer_is_causal():
    mixer = random_mixer(torch.float64)
    u = torch.randn(1, 40, mixer.cfg.d_model, dtype=torch.float64)
    changed = torch.cat([u[:, :25], torch.randn_like(u[:, 25:])], 1)
    a, b = mixer(u, mixer.start())[0], mixer(changed, mixer.start())[0]
    assert gap(a[:, :25], b[:, :25]) < 1e-12
    assert gap(a[:, 25:], b[:, 25:]) > 1e-2


# --- the two columns -------------------------------------------------------------------------------------------------

VAMBAS = {
    "published": {},
    "positions and norm in cross-attention": {
        "cross_rope": True,
        "cross_norm": True,
        "alpha_balancing": False,
        "mrope_section": (1, 1, 2),
    },
    "two of four layers cross": {"cross_layers": (1, 3)},
    "two groups, tied": {
        "mixer": MixerConfig(d_model=32, d_state=8, headdim=8, ngroups=2, ssd_block=8),
        "tie_embeddings": True,
    },
    "no mixers": {"mixer": None},
}


def watched(net, v, times, positions, slices) -> tuple[tuple, Memory]:
    cfg = net.cfg
    memory = Memory.empty(len(cfg.cross_layers), cfg.n_kv_heads, cfg.head_dim, v.dtype, block_slots=10)
    states = net.start()
    for part in slices:
        memory, write = memory.append(times[part])
        states = net.watch(v[:, part], states, lambda j, k, v, write=write: write(j, k[0], v[0]), positions[:, part])
    return states, memory


@pytest.mark.parametrize("changes", VAMBAS.values(), ids=VAMBAS)
@DTYPES
def test_cutting_tokens_never_changes_a_vamba(changes, dtype, cut, tiny_vamba):
    net = tiny_vamba(dtype, **changes)
    v = torch.randn(1, 47, net.cfg.d_model, dtype=dtype)
    times, positions = torch.arange(47).double(), torch.arange(3 * 47).view(3, 47) % 11
    whole_states, whole = watched(net, v, times, positions, [slice(0, 47)])
    whole_logits = TextDecoder(net, whole).feed(range(1, 9))
    for seed in range(2):
        states, memory = watched(net, v, times, positions, cut(47, seed))
        for a, b in zip(states, whole_states, strict=True):
            assert gap(a.ssm, b.ssm) < TOLERANCE[dtype]
            assert gap(a.conv, b.conv) < TOLERANCE[dtype]
        for name in ("k", "v"):
            assert gap(memory.log.tensor(name), whole.log.tensor(name)) < TOLERANCE[dtype]
        assert memory.times.tolist() == whole.times.tolist()
        assert gap(TextDecoder(net, memory).feed(range(1, 9)), whole_logits) < TOLERANCE[dtype]


def test_positions_turn_the_remembered_keys_and_only_them(tiny_vamba):
    net = tiny_vamba(torch.float64, **VAMBAS["positions and norm in cross-attention"])
    v, times = torch.randn(1, 9, 32, dtype=torch.float64), torch.arange(9.0)
    here, there = (watched(net, v, times, torch.full((3, 9), place), [slice(0, 9)])[1].log.tensor for place in (0, 5))
    assert gap(here("k"), there("k")) > 1e-2
    assert torch.equal(here("v"), there("v"))
    assert gap(here("k").norm(dim=-1), there("k").norm(dim=-1)) < 1e-6


def test_the_dead_last_mixer_is_not_run(tiny_vamba):
    """Its output is read by nobody; at the published size it would be a 28th of the work."""
    net = tiny_vamba()
    net.layers[-1].vision_mixer.register_forward_hook(lambda *_: pytest.fail("the dead mixer ran"))
    watched(net, torch.randn(1, 5, 32), torch.arange(5.0), torch.zeros(3, 5, dtype=torch.long), [slice(0, 5)])


def test_the_dead_last_mixer_carries_nothing(tiny_vamba):
    assert len(tiny_vamba().start()) == 3
    assert len(tiny_vamba(cross_layers=(1, 3)).start()) == 1


def test_what_was_seen_reaches_the_answer(tiny_vamba):
    """Otherwise equal logits would say nothing about the memory."""
    net = tiny_vamba(torch.float64)
    positions = torch.zeros(3, 30, dtype=torch.long)
    memories = [
        watched(net, torch.randn(1, 30, 32, dtype=torch.float64), torch.arange(30.0), positions, [slice(0, 30)])[1]
        for _ in range(2)
    ]
    a, b = (TextDecoder(net, memory).feed([5, 6, 7]) for memory in memories)
    assert gap(a, b) > 1e-2
    assert gap(a, TextDecoder(net, None).feed([5, 6, 7])) > 1e-2


def test_reading_in_pieces_equals_reading_at_once(cut, tiny_vamba):
    net = tiny_vamba(torch.float64)
    positions = torch.zeros(3, 20, dtype=torch.long)
    v = torch.randn(1, 20, 32, dtype=torch.float64)
    _, memory = watched(net, v, torch.arange(20.0), positions, [slice(0, 20)])
    ids = list(range(1, 25))
    whole = TextDecoder(net, memory).feed(ids)
    for seed in range(3):
        decoder = TextDecoder(net, memory)
        for part in cut(24, seed):
            logits = decoder.feed(ids[part])
        assert gap(logits, whole) < 1e-9


# --- frames, chunks and questions ------------------------------------------------------------------------------------


def answer(model: VambaModel, state: StreamState, question: Question = QUESTION) -> list:
    return [(t.id, t.text, t.looked) for t in model.ask(question, state, GREEDY)]


def logits(model: VambaModel, state: StreamState) -> torch.Tensor:
    return TextDecoder(model.net, model._flushed(state).inner.memory).feed([3, 4, 5])


def assert_same_seen(model, a: StreamState, b: StreamState, tolerance: float) -> None:
    for x, y in zip(a.inner.states, b.inner.states, strict=True):
        assert gap(x.ssm, y.ssm) < tolerance
        assert gap(x.conv, y.conv) < tolerance
    assert gap(a.inner.memory.log.tensor("k"), b.inner.memory.log.tensor("k")) < tolerance
    assert gap(a.inner.memory.log.tensor("v"), b.inner.memory.log.tensor("v")) < tolerance
    assert a.inner.memory.times.tolist() == b.inner.memory.times.tolist()
    assert gap(logits(model, a), logits(model, b)) < tolerance
    plain = ("frames", "seen_until", "state_bytes", "memory_bytes", "dropped")
    assert [getattr(a, name) for name in plain] == [getattr(b, name) for name in plain]
    assert len(a.held) == len(b.held)


@pytest.mark.parametrize("frames", [1, 2, 24, 25])
@pytest.mark.parametrize("net", VAMBAS.values(), ids=VAMBAS)
@DTYPES
def test_cutting_frames_never_changes_what_was_seen(frames, net, dtype, cut, clip, tiny_model, watch_all):
    """Through the model's own face, with chunks of odd lengths: half pairs are held until their partner comes."""
    model = tiny_model(dtype, net)
    whole = watch_all(model, clip(frames), [slice(0, frames)])
    assert len(whole.held) == frames % 2
    slices = cut(frames, 5) if frames > 2 else [slice(i, i + 1) for i in range(frames)]
    assert frames < 3 or any((s.stop - s.start) % 2 for s in slices)
    assert_same_seen(model, watch_all(model, clip(frames), slices), whole, TOLERANCE[dtype])


@pytest.mark.parametrize("policy", [Policy("budget", 11), Policy("window", 3 / 60)], ids=str)
def test_cutting_frames_never_changes_what_a_policy_kept(policy, cut, clip, tiny_model, watch_all):
    model = tiny_model(torch.float64, policy=policy)
    whole = watch_all(model, clip(30), [slice(0, 30)])
    assert whole.dropped > 0
    assert whole.dropped + len(whole.inner.memory) == 45
    assert "dropped" in whole.dropped_note
    for seed in range(3):
        assert_same_seen(model, watch_all(model, clip(30), cut(30, seed)), whole, 1e-9)


@pytest.mark.parametrize("lost", ["conv", "ssm"])
def test_a_stream_that_forgets_its_mixers_is_found_out(lost, clip, tiny_model, watch_all):
    model = tiny_model(torch.float64)
    whole = watch_all(model, clip(20), [slice(0, 20)])
    half = watch_all(model, clip(20), [slice(0, 10)])
    blank = [s._replace(**{lost: torch.zeros_like(getattr(s, lost))}) for s in half.inner.states]
    forgetful = model.watch(VideoChunk(clip(20)[10:]), replace(half, inner=replace(half.inner, states=tuple(blank))))
    assert gap(forgetful.inner.memory.log.tensor("k"), whole.inner.memory.log.tensor("k")) > 1e-2
    assert gap(logits(model, forgetful), logits(model, whole)) > 1e-3


def test_the_tower_sees_each_frame_once_and_in_pairs(clip, tiny_model, watch_all):
    model = tiny_model()
    watch_all(model, clip(9), [slice(0, 1), slice(1, 4), slice(4, 9)])
    assert model.vision.calls == [4, 4]


def test_a_held_frame_counts_as_seen_when_asked(clip, tiny_model, watch_all):
    """The question sees the odd last frame; the stream itself still waits for its partner."""
    model, frames = tiny_model(torch.float64), clip(8)
    odd = watch_all(model, frames, [slice(0, 7)])
    still = watch_all(model, (*frames[:7], frames[6]), [slice(0, 8)])  # the last frame twice, as for a still image
    without = watch_all(model, frames, [slice(0, 6)])
    assert gap(logits(model, odd), logits(model, still)) < 1e-9
    assert gap(logits(model, odd), logits(model, without)) > 1e-3
    assert answer(model, odd)[0][2][0].tolist() == [0.0, 1.0, 2.0, 3.0]  # four pairs, the half one filled up
    assert_same_seen(
        model, watch_all(model, frames[7:], [slice(0, 1)], odd), watch_all(model, frames, [slice(0, 8)]), 1e-9
    )


def copied(state: StreamState) -> list[torch.Tensor]:
    tensors = [t.clone() for s in state.inner.states for t in s]
    return tensors + [state.inner.memory.log.tensor(name).clone() for name in state.inner.memory.log.fields]


def test_a_snapshot_is_never_changed(cut, clip, tiny_model, watch_all):
    """Bitwise, and its answers too, whatever is watched or asked from it or from others later."""
    model, frames = tiny_model(torch.float32), clip(24)
    state, kept = model.start(), []
    for part in cut(24, 3):
        state = model.watch(VideoChunk(frames[part]), state)
        kept.append((state, copied(state), state.held, answer(model, state)))
    for snapshot, *_ in kept:  # fork from every one of them, to both sides
        watch_all(model, frames[::-1], [slice(0, 5), slice(5, 12)], snapshot)
        watch_all(model, frames, [slice(3, 4), slice(4, 9)], snapshot)
        answer(model, snapshot, Question("and now?", at=2.0))
    for snapshot, was, held, said in kept:
        assert all(torch.equal(a, b) for a, b in zip(copied(snapshot), was, strict=True))
        assert snapshot.held == held
        for (i, text, looked), (j, text_then, looked_then) in zip(answer(model, snapshot), said, strict=True):
            assert (i, text) == (j, text_then)
            assert looked is None or all(np.array_equal(a, b) for a, b in zip(looked, looked_then))


def test_a_fork_is_the_stream_it_would_have_been(clip, tiny_model, watch_all):
    model, frames = tiny_model(torch.float64), clip(20)
    trunk = watch_all(model, frames, [slice(0, 9)])
    for other in (frames[9:], frames[9:][::-1], frames[:4]):
        forked = watch_all(model, other, [slice(0, 3), slice(3, len(other))], trunk)
        fresh = watch_all(model, (*frames[:9], *other), [slice(0, 9 + len(other))])
        assert_same_seen(model, forked, fresh, 1e-9)


def test_a_pinned_question_sees_what_had_been_shown_by_then(clip, tiny_model, watch_all):
    """A question pinned to second 4 is answered as if the stream had ended there: causality through the front door."""
    model, frames = tiny_model(torch.float64), clip(24)
    then, now = watch_all(model, frames, [slice(0, 10)]), watch_all(model, frames, [slice(0, 10), slice(10, 24)])
    pinned = answer(model, now, replace(QUESTION, at=float(frames[9].time)))
    at_the_time = answer(model, then)
    assert [t[:2] for t in pinned] == [t[:2] for t in at_the_time]
    for (_, _, a), (_, _, b) in zip(pinned, at_the_time):
        assert np.array_equal(a[0], b[0])
        assert np.allclose(a[1], b[1], atol=1e-9)
    assert pinned[0][2][0].max() <= frames[9].time < answer(model, now)[0][2][0].max()


def test_a_question_pinned_to_a_frame_sees_that_frame(clip, tiny_model, watch_all):
    model = tiny_model()
    state = watch_all(model, clip(24), [slice(0, 24)])
    assert answer(model, state, replace(QUESTION, at=4.0))[0][2][0].max() == 4.0
    assert answer(model, state, replace(QUESTION, at=3.999))[0][2][0].max() == 3.0


def test_where_a_token_looked_is_a_share_of_the_whole(clip, tiny_model, watch_all):
    model = tiny_model()
    state = watch_all(model, clip(16), [slice(0, 16)])
    for _, _, (times, weights) in answer(model, state):
        assert times.shape == weights.shape == (8,)
        assert abs(weights.sum() - 1) < 1e-5
        assert (weights >= 0).all()


@pytest.mark.parametrize("eight_bit", [False, True])
def test_state_is_constant_and_memory_is_linear(eight_bit, clip, tiny_model):
    model, frames = tiny_model(eight_bit=eight_bit), clip(24)
    state, states, memories = model.start(), [], []
    for i in range(0, 24, 4):
        state = model.watch(VideoChunk(frames[i : i + 4]), state)
        states.append(sum(t.untyped_storage().nbytes() for s in state.inner.states for t in s))
        memories.append(state.memory_bytes)
        assert state.state_bytes == states[-1]
    assert len(set(states)) == 1
    assert [m * 6 for m in memories] == [memories[-1] * (i + 1) for i in range(6)]


def test_eight_bit_streams_are_cut_invariant_too(cut, clip, tiny_model, watch_all):
    """Codes may differ by one where rounding falls on the edge, and nowhere by more."""
    model = tiny_model(torch.float64, eight_bit=True)
    whole = watch_all(model, clip(24), [slice(0, 24)])
    pieces = watch_all(model, clip(24), cut(24, 1))
    a, b = (s.inner.memory.log.tensor("k").int() for s in (whole, pieces))
    assert (a - b).abs().max() <= 1
    assert (a != b).float().mean() < 1e-3


def test_nan_is_noticed(clip, tiny_model, watch_all):
    model = tiny_model()
    state = watch_all(model, clip(4), [slice(0, 4)])
    assert model.is_finite(state)
    model.vision = PairEyes(32, torch.float32)
    model.vision.mix = model.vision.mix * torch.nan
    assert not model.is_finite(watch_all(model, clip(4), [slice(0, 4)], state))
