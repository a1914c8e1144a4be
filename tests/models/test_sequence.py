"""A stream of one sequence: what its snapshots hold does not depend on the cut, and a pinned question goes back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.engine import Engine
from pipeline.gpu import graphs
from pipeline.models import sequence_graphs
from pipeline.models.mmmamba import MMMamba, MMMambaConfig, StackConfig
from pipeline.models.sequence import SequenceModel
from pipeline.models.told import SNAPSHOT_UNITS, SNAPSHOTS_KEPT, Told, is_kept
from pipeline.stream import Frame, Question, Sampling, VideoChunk
from tests.conftest import Letters

LINEAR, HYBRID, ATTENDING = ("mamba2", "mamba2"), ("mha", "mamba2"), ("mha", "mha")


class Colours:
    """Eyes that make two tokens of a frame's mean colour."""

    unit_frames, long_side = 1, 8

    def __init__(self, width: int, like: torch.Tensor):
        self.mix = torch.randn(3, 2 * width, generator=torch.Generator().manual_seed(1)).to(like)

    def tokens(self, frames) -> torch.Tensor:
        colours = np.stack([frame.rgb.mean((0, 1)) / 64 for frame in frames])
        return (torch.from_numpy(colours).to(self.mix) @ self.mix).unflatten(1, (2, -1))


class Marks:
    """A prompt with text at every place a prompt may have it."""

    opening, stops = [3, 4], frozenset({0})

    def before(self, unit: int) -> list[int]:
        return [5 + unit % 7]

    def after(self, unit: int) -> list[int]:
        return [13]

    def question(self, question: Question, units: int) -> list[int]:
        return [20 + units % 9, 30, 31]


def model(kinds: tuple[str, ...], dtype=torch.float64, device="cpu", width=16, **options) -> SequenceModel:
    torch.manual_seed(0)
    stack = StackConfig(width=width, heads=4, kv_heads=2, hidden=24, eps=1e-5, rope_theta=1e4, kinds=kinds)
    net = (
        MMMamba(MMMambaConfig(stack, stack, vocab=96, image_token=95, side=28)).to(device, dtype).requires_grad_(False)
    )
    return SequenceModel(
        net, Colours(width, net.language_model.output.weight), Marks(), Letters(), name="tiny", about="", **options
    )


def film(count: int) -> list[Frame]:
    chance = np.random.default_rng(3)
    return [Frame(chance.integers(0, 256, (4, 4, 3), dtype=np.uint8), float(n)) for n in range(count)]


def watched(tiny: SequenceModel, frames: list[Frame], cut: int):
    state = tiny.start()
    for start in range(0, len(frames), cut):
        state = tiny.watch(VideoChunk(tuple(frames[start : start + cut])), state)
    return state


def tensors(told: Told) -> list[torch.Tensor]:
    """Everything a stream carries."""
    found = [part for state in told.states for part in state] + [torch.tensor([told.length, told.units, told.dropped])]
    if told.memory is not None:
        found += [told.memory.log.tensor(name) for name in ("k", "v", "time")]
    return (
        found
        + [torch.tensor([s.time, s.units, s.length]) for s in told.snapshots]
        + [part for s in told.snapshots for state in s.states for part in state]
    )


@pytest.mark.parametrize("kinds", [LINEAR, HYBRID, ATTENDING])
def test_snapshots_and_all_else_do_not_depend_on_the_cut(kinds) -> None:
    tiny, frames = model(kinds), film(75)
    whole = tensors(watched(tiny, frames, 75).inner)
    for cut in (1, 7, 32):
        again = tensors(watched(tiny, frames, cut).inner)
        assert len(again) == len(whole)
        for ours, theirs in zip(again, whole):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("kinds", [LINEAR, HYBRID, ATTENDING])
def test_a_pinned_question_is_answered_from_the_stream_as_it_was(kinds) -> None:
    tiny, frames, sampling = model(kinds), film(60), Sampling(max_tokens=4)
    state = watched(tiny, frames, 60)
    for second in (59.0, 57.5, 30.2, 7.0, 0.0):
        told = tiny.told_at(state, second)
        assert told.units >= 1 and frames[told.units - 1].time <= second
        assert kinds != ATTENDING or told.units == int(second) + 1  # keys are cut exactly
        then = watched(tiny, frames[: told.units], 60)
        answers = [
            [token.id for token in tiny.ask(Question("?", at=second), state, sampling)],
            [token.id for token in tiny.ask(Question("?"), then, sampling)],
        ]
        assert answers[0] == answers[1]


@pytest.mark.parametrize("kinds", [LINEAR, HYBRID, ATTENDING])
def test_an_answer_names_the_second_it_knows_of(kinds) -> None:
    """A snapshot's, where states are carried; where there are only keys, that of the last unit's last frame."""
    tiny = model(kinds)
    engine, state = Engine(tiny), watched(tiny, film(60), 7)
    for at, second in ((None, 59.0), (75.0, 59.0), (58.9, 58.0), (30.2, 30.0), (0.4, 0.0)):
        answer = list(engine.ask(Question("?", at=at), state, Sampling(max_tokens=1)))[-1]
        assert answer.known_until == tiny.told_at(state, at).units - 1 <= second
        assert answer.asked_at == (59.0 if at is None else at) and answer.seen_until == 59.0
        assert answer.known_until == second or kinds != ATTENDING
    kept = {snapshot.time for snapshot in state.inner.snapshots}
    assert kinds == ATTENDING or tiny.known_until(Question("?", at=30.2), state) == max(t for t in kept if t <= 30.2)


def recording(monkeypatch) -> list[int]:
    """As if the kernels ran here: passes over single tokens take the recorded way, and are counted.

    Each is made twice, as it is before it is recorded (`Tape`), which must not move anything on twice.
    """
    played, play = [], sequence_graphs.TokenPass.play

    def counted(self, token, *rest):
        played.append(token)
        return play(self, token, *rest)

    monkeypatch.setattr(sequence_graphs, "kernels_for", lambda _: "some")
    monkeypatch.setattr(sequence_graphs.TokenPass, "play", counted)
    monkeypatch.setattr(graphs.Tape, "play", lambda tape: (tape._pass(), tape._pass()))
    return played


@pytest.mark.parametrize("kinds", [LINEAR, HYBRID])
def test_recorded_tokens_are_those_of_the_plain_code(kinds, monkeypatch) -> None:
    """Also of two answers that take turns, as two visitors' do; what attends is not recorded."""
    tiny = model(kinds)
    streams = [watched(tiny, film(count), 8).inner for count in (20, 30)]
    before = [tensor.clone() for told in streams for tensor in tensors(told)]

    def said() -> torch.Tensor:
        talks = [tiny.conversation(told, 9) for told in streams]
        return torch.stack([talk.feed(ids) for ids in ([20, 30], [7], [8], [9]) for talk in talks])

    want, played = said(), recording(monkeypatch)
    got = said()
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert (want[::2] - want[1::2]).abs().amax(-1).min() > 1e-6, "two videos"
    assert played == ([7, 7, 8, 8, 9, 9] if kinds == LINEAR else [])
    for tensor, was in zip([tensor for told in streams for tensor in tensors(told)], before):
        assert torch.equal(tensor.nan_to_num(), was.nan_to_num())


def test_a_recording_that_fails_is_made_up_for(monkeypatch) -> None:
    tiny, sampling = model(LINEAR), Sampling(max_tokens=4)
    state = watched(tiny, film(9), 8)
    want = [token.id for token in tiny.ask(Question("?"), state, sampling)]
    monkeypatch.setattr(sequence_graphs, "kernels_for", lambda _: "some")
    monkeypatch.setattr(sequence_graphs.TokenPass, "play", lambda *_: 1 / 0)
    assert [token.id for token in tiny.ask(Question("?"), state, sampling)] == want
    assert tiny._recordings.tapes.off


def test_snapshots_are_few_and_dense_near_the_newest() -> None:
    for units in (1, 10, 100, 3600):
        kept = [unit for unit in range(1, units + 1) if is_kept(unit, units)]
        assert kept[0] == 1 and len(kept) <= 2 + SNAPSHOTS_KEPT * (1 + np.log2(1 + units / SNAPSHOT_UNITS))
        for second in range(1, units + 1):
            newest = max(unit for unit in kept if unit <= second)
            assert second - newest <= max(SNAPSHOT_UNITS, (units - second) / 2)


def test_a_snapshot_that_is_gone_never_comes_back() -> None:
    for unit in range(1, 200):
        kept = [is_kept(unit, units) for units in range(unit, 1000)]
        assert kept == sorted(kept, reverse=True)


def test_the_oldest_units_go_at_the_limit_however_the_video_is_cut() -> None:
    tiny, frames = model(ATTENDING, limit=100), film(60)
    states = [watched(tiny, frames, cut) for cut in (1, 13, 60)]
    whole = tensors(states[-1].inner)
    for state in states:
        assert state.dropped > 0 and len(state.inner.memory) <= 100 and "0:" in state.dropped_note
        for ours, theirs in zip(tensors(state.inner), whole):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)
    told = tiny.told_at(states[0], 50.0)
    assert told.units == 51


@pytest.mark.parametrize("kinds", [LINEAR, HYBRID, ATTENDING])
def test_asking_changes_nothing_and_says_where_it_looked(kinds) -> None:
    tiny = model(kinds)
    state = watched(tiny, film(20), 5)
    before = [tensor.clone() for tensor in tensors(state.inner)]
    tokens = list(tiny.ask(Question("what?"), state, Sampling(max_tokens=6)))
    for tensor, was in zip(tensors(state.inner), before):
        torch.testing.assert_close(tensor, was, rtol=0, atol=0, equal_nan=True)
    if kinds == LINEAR:
        assert all(token.looked is None for token in tokens)
    else:
        times, weights = tokens[0].looked
        assert len(times) == 40 and set(times) == set(map(float, range(20))) and weights.sum() == pytest.approx(1)


def test_constant_state_and_growing_memory_are_told_apart() -> None:
    linear, attending = model(LINEAR), model(ATTENDING)
    states = [watched(linear, film(count), 8) for count in (8, 64)]
    assert states[0].state_bytes == states[1].state_bytes > 0
    grown = [watched(attending, film(count), 8) for count in (8, 64)]
    assert not grown[0].state_bytes and grown[1].memory_bytes > 4 * grown[0].memory_bytes
