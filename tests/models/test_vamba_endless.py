"""A Vamba on a stream without an end: where all is read back it answers exactly; else it reads what it looks at."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from pipeline.keeping.packing import whole
from pipeline.memory import disk
from pipeline.models.vamba_endless import Far
from pipeline.stream import Packed, Question, Sampling, UserError, VideoChunk
from tests.conftest import gap

SECONDS = 4.0  # that stay at hand; a frame lasts half of one
ASKED = (Question("what was it?"), Question("and before?", at=6.2), Question("late?", at=18.0))


@pytest.fixture
def models(tiny_model):
    """make(dtype, **options) -> everything kept, and the newest SECONDS."""

    def make(dtype=torch.float64, retrieve=None, **options):
        return tiny_model(dtype, **options), tiny_model(dtype, endless=SECONDS / 60, retrieve=retrieve, **options)

    return make


def told(model, state, question, words=6):
    return list(model.ask(question, state, Sampling(max_tokens=words)))


@pytest.mark.parametrize("eight_bit", [False, True])
def test_where_all_is_read_back_answers_are_exact(models, clip, cut, watch_all, eight_bit) -> None:
    """Not of the last digit: blocks are merged in another order. 41: the last frame waits for its partner."""
    plain, endless = models(retrieve=1000, eight_bit=eight_bit)
    states = [watch_all(model, clip(41), cut(41, seed)) for seed, model in enumerate((plain, endless))]
    assert states[1].disk_bytes > states[0].memory_bytes / 2 and not states[0].disk_bytes
    assert "on the disk" in states[1].dropped_note and not states[1].dropped
    for question in ASKED:
        want, got = (told(model, state, question) for model, state in zip((plain, endless), states))
        assert [t.id for t in got] == [t.id for t in want]
        for a, b in zip(want, got):
            assert np.array_equal(a.looked[0], b.looked[0]) and np.allclose(a.looked[1], b.looked[1], atol=1e-6)
    memories = [model._flushed(state).inner.memory for model, state in zip((plain, endless), states)]
    (_, want), (_, got) = (model._read(ASKED[0], memory) for model, memory in zip((plain, endless), memories))
    assert gap(got, want) < 1e-9


def test_it_reads_the_newest_and_the_moments_looked_at(models, clip, watch_all) -> None:
    _, endless = models(retrieve=6)  # three pairs
    state = watch_all(endless, clip(60), [slice(i, i + 4) for i in range(0, 60, 4)])
    memory = state.inner.memory
    near = memory.times[memory.near_from]
    assert SECONDS <= memory.times[-1] - near < SECONDS + 6
    for question in ASKED[:1]:
        decoder, _ = endless._read(question, memory)
        read = np.unique(decoder.memory.times)
        assert set(np.unique(memory.times[memory.near_from :])) <= set(read)
        assert 3 <= (read < near).sum() <= 4, "the chosen, and one that is partly near"
        assert np.isin(read, memory.times).all()
        for time in read:
            assert (decoder.memory.times == time).sum() == (memory.times == time).sum(), "no pair is cut"


def test_what_is_read_back_is_what_was_looked_at_most(models, clip, watch_all) -> None:
    _, endless = models(retrieve=6)
    memory = watch_all(endless, clip(60), [slice(0, 60)]).inner.memory
    far = Far(memory, memory.near_from, 3)
    looked = torch.zeros(len(far.seen))
    looked[[2, 5, 11]] = torch.tensor([0.2, 0.5, 0.3])
    far.found(SimpleNamespace(looked=looked, instants=SimpleNamespace(times=memory.coarse.times)))
    assert {2, 5, 11} <= set(far.chosen) and len(far.chosen) <= 4, "and one that is partly near"


def test_a_far_moment_is_read_as_it_was(models, clip, watch_all) -> None:
    plain, endless = models(retrieve=6)
    kept, far = (watch_all(m, clip(60), [slice(0, 31), slice(31, 60)]).inner.memory for m in (plain, endless))
    decoder, _ = endless._read(ASKED[0], far)
    log = decoder.memory.log
    at = torch.from_numpy(np.flatnonzero(np.isin(kept.times, decoder.memory.times)))
    for name in ("k", "v", "time"):
        assert gap(log.tensor(name), kept.log.gather(at, name)[0]) < 1e-12
    assert not any(block.away for block in log.blocks)


def test_a_question_about_an_earlier_time_reads_what_was_before_it(models, clip, watch_all) -> None:
    _, endless = models(retrieve=6)
    memory = watch_all(endless, clip(60), [slice(0, 60)]).inner.memory
    from pipeline.layers.reading import until

    then = until(memory, 12.0)
    far = Far(then, memory.near_from, 3)
    assert far.cut and far.ranking is not None and far.ranking.times[-1] == then.times[-1] <= 12.0
    answer = told(endless, watch_all(endless, clip(60), [slice(0, 60)]), Question("what?", at=12.0))
    times = answer[0].looked[0]
    assert times.max() <= 12.0 and np.unique(then.times)[-3:].tolist() == times[-3:].tolist()
    assert 3 <= len(times) <= 6


@pytest.mark.parametrize("seed", range(3))
def test_the_cuts_change_nothing(models, clip, cut, watch_all, seed) -> None:
    """Nor is it told by who has moved a block already: a snapshot's answer stays what it was."""
    _, endless = models(retrieve=6)
    video = clip(60)
    one, many = watch_all(endless, video, [slice(0, 60)]), watch_all(endless, video, cut(60, seed))
    a, b = one.inner.memory, many.inner.memory
    assert a.near_from == b.near_from and np.array_equal(a.coarse.times, b.coarse.times)
    for name in ("k", "v"):
        assert gap(b.coarse.log.tensor(name), a.coarse.log.tensor(name)) < 1e-9
    (left, _), (right, _) = (endless._read(ASKED[0], m) for m in (a, b))
    assert np.array_equal(left.memory.times, right.memory.times)
    early = watch_all(endless, video, [slice(0, 30)])
    was = [(t.id, t.looked[0].tolist(), t.looked[1].tolist()) for t in told(endless, early, ASKED[0])]
    watch_all(endless, video, [slice(30, 60)], early)
    assert was == [(t.id, t.looked[0].tolist(), t.looked[1].tolist()) for t in told(endless, early, ASKED[0])]


def test_a_coarse_slot_is_the_mean_of_its_pair(models, clip, watch_all) -> None:
    _, endless = models()
    memory = watch_all(endless, clip(20), [slice(0, 6), slice(6, 20)]).inner.memory
    times = memory.times
    assert np.array_equal(memory.coarse.times, np.unique(times))
    for i, time in enumerate(memory.coarse.times):
        at = torch.from_numpy(np.flatnonzero(times == time))
        for name in ("k", "v"):
            assert gap(memory.coarse.log.tensor(name)[:, :, i], memory.log.gather(at, name)[0].mean(2)) < 1e-12


def test_several_streams_at_once_have_their_coarse_memories(models, clip) -> None:
    _, endless = models()
    chunks = [VideoChunk(clip(n)) for n in (8, 14, 6)]
    together = endless.watch_together(chunks, [endless.start() for _ in chunks])
    for chunk, state in zip(chunks, together):
        alone = endless.watch(chunk, endless.start())
        for name in ("k", "v", "time"):
            ours, want = (s.inner.memory.coarse.log.tensor(name) for s in (state, alone))
            assert gap(ours, want) < 1e-9


@pytest.mark.parametrize("eight_bit", [False, True])
def test_it_is_packed_and_goes_on(models, clip, watch_all, eight_bit) -> None:
    plain, endless = models(retrieve=6, eight_bit=eight_bit)
    video = clip(60)
    state = watch_all(endless, video, [slice(0, 21), slice(21, 41)])
    packed = whole(endless.pack(state))
    again = endless.unpack(Packed(load(save(packed.tensors)), json.loads(json.dumps(packed.document))))
    assert again.disk_bytes == state.disk_bytes > 0
    ends = [watch_all(endless, video, [slice(41, 60)], s) for s in (state, again)]
    answers = [[t.id for t in told(endless, s, ASKED[0])] for s in ends]
    assert (
        answers[0] == answers[1]
        and gap(
            ends[1].inner.memory.coarse.log.tensor("k").double(), ends[0].inner.memory.coarse.log.tensor("k").double()
        )
        == 0
    )
    kept = plain.pack(watch_all(plain, video, [slice(0, 20)]))
    with pytest.raises(UserError, match="kept without --endless"):
        endless.unpack(kept)


def test_on_a_full_disk_it_goes_on_and_says_what_it_lost(models, clip, watch_all, monkeypatch) -> None:
    _, endless = models(retrieve=6)
    monkeypatch.setattr(disk.Spool, "_room", lambda self, size, spare: self._end < 6 * size)
    state = watch_all(endless, clip(200), [slice(i, i + 2) for i in range(0, 200, 2)])
    memory = state.inner.memory
    assert memory.dropped and f"{memory.dropped:,} oldest memory slots dropped" in state.dropped_note
    assert memory.times[0] > 20 and told(endless, state, ASKED[0])
    decoder, _ = endless._read(ASKED[0], memory)
    assert np.isin(decoder.memory.times, memory.times).all()


def test_memory_on_the_device_is_flat(models, clip, watch_all) -> None:
    """But for the coarse memory and the times."""
    _, endless = models()
    state, sizes = endless.start(), []
    for start in range(0, 300, 4):
        frames = [replace(frame, time=frame.time + start / 2) for frame in clip(4)]
        state = endless.watch(VideoChunk(tuple(frames)), state)
        log = state.inner.memory.log
        sizes.append(sum(t.nbytes for b in log.blocks for name, t in b.tensors.items() if name != "time"))
    assert max(sizes[20:]) <= max(sizes[:20]) and state.disk_bytes > 3 * max(sizes)


@pytest.fixture
def short_means(monkeypatch) -> None:
    """Means of means after few seconds."""
    monkeypatch.setattr(disk, "MEANS_MINUTES", SECONDS / 60)
    monkeypatch.setattr("pipeline.memory.memory.COARSE_SLOTS", 4)
    monkeypatch.setattr("pipeline.memory.means.SPAN", 3)
    monkeypatch.setattr("pipeline.models.vamba_model.MINUTES_BACK", 2)


@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("at", [None, 22.5])
def test_old_means_lie_in_the_file_and_are_looked_for_by_means_of_them(
    models, clip, cut, watch_all, short_means, monkeypatch, eight_bit, at
) -> None:
    _, endless = models(retrieve=6, eight_bit=eight_bit)
    state = watch_all(endless, clip(150), cut(150, 1))
    memory = state.inner.memory
    pairs, minutes = memory.coarse, memory.coarse.coarse
    assert [b.away is not None for b in pairs.log.blocks] == sorted([b.away is not None for b in pairs.log.blocks])[
        ::-1
    ]
    assert pairs.log.blocks[0].away and pairs.disk_nbytes and "minutes whose means" in state.dropped_note
    assert np.array_equal(minutes.times, pairs.times[2::3]) and len(minutes) == len(pairs) // 3
    keys, spans = (torch.cat([k for k, _ in m.blocks(0, torch.float64)], 1) for m in (pairs, minutes))
    want = keys[:, : 3 * len(minutes)].unflatten(1, (-1, 3)).mean(2)
    assert gap(spans, want) < (0.01 if eight_bit else 1e-12)
    asked = Question("what?", at=at)
    read, near = [], memory.near_from
    over = type(endless)._read_over

    def noted(self, memory, *ids):
        read.append(memory)
        return over(self, memory, *ids)

    monkeypatch.setattr(type(endless), "_read_over", noted)
    told(endless, state, asked, 1)
    by_minute, by_pair, final = read
    end = pairs.times[pairs.times <= (at or memory.times[-1])][-1]
    assert np.array_equal(by_minute.times, minutes.times[minutes.times <= end]), "all minutes are compared"
    chosen = by_pair.times[by_pair.times < memory.times[near]]
    assert len(by_pair) < 30 and np.isin(chosen, pairs.times[pairs.times <= end]).all() and end in by_pair.times
    assert {int(n) for n in np.searchsorted(minutes.times, chosen)} <= set(range(len(minutes) + 1))
    assert np.isin(final.times, memory.times[memory.times <= end]).all() and end == final.times[-1]
    monkeypatch.setattr("pipeline.models.vamba_model.MINUTES_BACK", 1000)
    read.clear()
    told(endless, state, asked, 1)
    assert np.array_equal(read[0].times, pairs.times[pairs.times <= end]), "few minutes are read as a whole"


def test_means_do_not_depend_on_the_cuts_and_come_back(models, clip, cut, watch_all, short_means) -> None:
    _, endless = models(retrieve=6)
    video = clip(120)
    one, many = watch_all(endless, video, [slice(0, 120)]), watch_all(endless, video, cut(120, 2))
    again = endless.unpack(whole(endless.pack(many)))
    want = one.inner.memory.coarse.coarse.log
    assert len(want) == 20 and again.disk_bytes == many.disk_bytes
    for state in (many, again):
        log = state.inner.memory.coarse.coarse.log
        assert torch.equal(log.tensor("time"), want.tensor("time")) and log.end == want.end
        assert gap(log.tensor("k"), want.tensor("k")) < 1e-9


def test_on_a_full_disk_the_means_outlive_what_they_are_of(models, clip, watch_all, short_means, monkeypatch) -> None:
    _, endless = models(retrieve=6)
    monkeypatch.setattr(disk.Spool, "_room", lambda self, size, spare: not spare or self._end < 6 * size)
    state = watch_all(endless, clip(200), [slice(i, i + 2) for i in range(0, 200, 2)])
    memory = state.inner.memory
    assert memory.dropped and memory.coarse.times[0] < memory.times[0] and told(endless, state, ASKED[0])


def test_a_day_is_all_that_is_kept_of_anything(models, clip, watch_all, short_means) -> None:
    _, endless = models(retrieve=6)
    endless.disk.hours = 20 / 3600
    state = watch_all(endless, clip(300), [slice(i, i + 4) for i in range(0, 300, 4)])
    memory = state.inner.memory
    for level in (memory, memory.coarse):
        assert 18 < memory.times[-1] - level.times[0] < 30
    assert memory.coarse.coarse.times[0] < 150 and told(endless, state, ASKED[0])
