"""The native form: which pictures a stream keeps, which of them are read, what an answer then says of itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import Engine
from pipeline.keeping.packing import whole
from pipeline.models.native import NativeForm, Reservoir, evenly, fitted, middles, newest
from pipeline.models.sequence import SequenceModel
from pipeline.stream import NATIVE, Frame, Packed, Question, Sampling, VideoChunk
from pipeline.towers.pixels import squashed
from tests.fake_model import FakeModel
from tests.models.test_sequence import ATTENDING, HYBRID, LINEAR, film, watched
from tests.models.test_sequence import model as sequence_model

ROOM, FIVE = 8, evenly(5)
BLANK = np.zeros((2, 3, 3), np.uint8)


def native_model(kinds, streamed: bool = False, choose=FIVE) -> SequenceModel:
    form = NativeForm(ROOM, choose, fitted(squashed, 4), "some 5")
    return sequence_model(kinds, native=form, streamed=streamed)


def held(frames: list[Frame], cuts: list[int]) -> Reservoir:
    pictures, start = Reservoir(ROOM), 0
    for size in cuts:
        if part := frames[start : start + size]:
            pictures = pictures.see(part, lambda frame: frame)
        start += size
    return pictures


def seconds(frames) -> list[float]:
    return [frame.time for frame in frames]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_what_is_kept_depends_on_no_cut_and_is_bounded_even_and_newest(cuts) -> None:
    count = sum(cuts)
    frames = [Frame(BLANK, float(n)) for n in range(count)]
    cut, one = held(frames, cuts), held(frames, [count])
    assert seconds(cut.until(None)) == seconds(one.until(None)) and cut.stride == one.stride and cut.frames == count
    times = seconds(cut.spread)
    assert times == [float(n) for n in range(0, count, cut.stride)]  # evenly, from the first on
    assert len(times) <= ROOM and (cut.stride == 1 or 2 * len(times) > ROOM)  # never fewer than half
    assert cut.newest is frames[-1] and cut.until(None)[-1] is frames[-1]


@given(st.integers(1, 300), st.floats(0, 300))
def test_of_an_earlier_second_nothing_later_is_shown(count, second) -> None:
    frames = [Frame(BLANK, float(n)) for n in range(count)]
    kept = held(frames, [count])
    then = seconds(kept.until(second))
    assert then and then == [t for t in seconds(kept.until(None)) if t <= second]


def test_what_each_system_was_trained_on_is_chosen() -> None:
    frames = [Frame(BLANK, float(n)) for n in range(100)]
    assert seconds(FIVE(frames)) == [0, 25, 50, 74, 99] and FIVE(frames[:4]) == frames[:4]
    assert seconds(newest(frames)) == [99]
    assert seconds(middles(8)(frames)) == [5, 18, 30, 43, 55, 68, 80, 93]  # VideoMamba's own sampler on 100 frames
    assert seconds(middles(8)(frames[:3])) == [0, 1, 2, 2, 2, 2, 2, 2]


def test_pictures_are_kept_as_the_tower_takes_them() -> None:
    large = Frame(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8), 1.0, 5.0)
    fit = fitted(squashed, 4)
    small = fit(large)
    assert small.rgb.shape == (4, 4, 3) and (small.time, small.until) == (1.0, 5.0) and fit(small) is small


@pytest.mark.parametrize("kinds", [LINEAR, HYBRID, ATTENDING])
def test_a_native_answer_is_that_of_a_short_stream_of_its_pictures(kinds) -> None:
    tiny, frames, sampling = native_model(kinds), film(50), Sampling(max_tokens=5)
    state = watched(tiny, frames, 7)
    for at in (None, 33.3, 12.0, 0.0):
        chosen = FIVE(state.inner.pictures.until(at))
        alone = native_model(kinds, streamed=True)
        short = alone.watch(VideoChunk(tuple(chosen)), alone.start())
        want = [(token.id, token.text) for token in alone.ask(Question("?"), short, sampling)]
        assert [(token.id, token.text) for token in tiny.ask(Question("?", at=at), state, sampling)] == want
        assert tiny.known_until(Question("?", at=at), state) == chosen[-1].time <= (49.0 if at is None else at)


@pytest.mark.parametrize("kinds", [LINEAR, HYBRID, ATTENDING])
def test_both_modes_answer_from_one_stream_and_say_which_they_are(kinds) -> None:
    """Also after it was kept and taken up by a model that was told otherwise."""
    native, streamed, frames = native_model(kinds), native_model(kinds, streamed=True), film(50)
    plain = sequence_model(kinds)
    state = watched(native, frames, 11)
    sampling = Sampling(max_tokens=5)
    told = [("native", native), ("streamed", streamed)]
    answers = {mode: list(Engine(model).ask(Question("?"), state, sampling))[-1] for mode, model in told}
    assert {name: answer.basis.mode for name, answer in answers.items()} == {"native": "native", "streamed": "streamed"}
    assert answers["native"].basis.words == "5 pictures, 0:00 to 0:49"
    assert answers["streamed"].basis.words == "carried through 50 pictures, trained on some 5"
    carried = [token.id for token in streamed.ask(Question("?"), state, sampling)]
    assert carried == [token.id for token in plain.ask(Question("?"), watched(plain, frames, 50), sampling)]
    taken_up = streamed.unpack(whole(native.pack(state)))
    assert carried == [token.id for token in streamed.ask(Question("?"), taken_up, sampling)]
    again = native.unpack(whole(native.pack(state)))
    more = VideoChunk(tuple(film(60)[50:]))
    on = [native.watch(more, one).inner.pictures for one in (state, again)]
    assert seconds(on[0].until(None)) == seconds(on[1].until(None))


def test_asking_keeps_the_stream_as_it_was() -> None:
    tiny = native_model(HYBRID)
    state = watched(tiny, film(30), 7)
    before = (state.inner.length, state.inner.units, seconds(state.inner.pictures.until(None)))
    list(tiny.ask(Question("?"), state, Sampling(max_tokens=3)))
    assert before == (state.inner.length, state.inner.units, seconds(state.inner.pictures.until(None)))


def test_an_answer_from_one_picture_rests_on_it() -> None:
    tiny = native_model(LINEAR, choose=newest)
    state = watched(tiny, film(20), 6)
    for at, second in ((None, 19.0), (9.0, 8.0)):
        answer = list(Engine(tiny).ask(Question("?", at=at), state, Sampling(max_tokens=3)))[-1]
        assert [(moment.time, moment.weight) for moment in answer.evidence] == [(second, 1.0)]
        assert answer.known_until == second and answer.basis.words == f"one picture, of 0:{second:02.0f}"


def test_where_attention_looked_are_the_pictures_that_were_read() -> None:
    tiny = native_model(ATTENDING)
    state = watched(tiny, film(50), 50)
    token = next(tiny.ask(Question("?"), state, Sampling(max_tokens=1)))
    assert sorted(set(token.looked[0])) == seconds(FIVE(state.inner.pictures.until(None)))


def test_what_is_kept_is_counted_and_stays_within_bounds() -> None:
    tiny, plain = native_model(LINEAR), sequence_model(LINEAR)
    sizes = []
    for count in (20, 50):
        mine, bare = watched(tiny, film(count), 9), watched(plain, film(count), 9)
        sizes.append(mine.memory_bytes - bare.memory_bytes)
        assert mine.state_bytes == bare.state_bytes and sizes[-1] == mine.inner.pictures.nbytes
    assert all(0 < size <= (ROOM + 1) * 4 * 4 * 3 for size in sizes)


@pytest.mark.parametrize("change", [{"stride": 3}, {"frames": 17}, {"frames": 400}])
def test_garbled_pictures_are_refused(change) -> None:
    packed = held([Frame(BLANK, float(n)) for n in range(20)], [20]).pack()
    assert seconds(Reservoir(ROOM).unpack(packed).until(None)) == [0, 4, 8, 12, 16, 19]
    with pytest.raises(ValueError, match="pictures"):
        Reservoir(ROOM).unpack(Packed(packed.tensors, {**packed.document, **change}))


def test_a_model_says_when_a_stream_is_longer_than_its_authors_tested() -> None:
    model = FakeModel()
    state = model.watch(VideoChunk(tuple(film(6))), model.start())
    assert model.basis(Question("?"), state) == NATIVE
    model.trained_frames = 5
    assert model.basis(Question("?"), state) == ("streamed", "carried through 6 pictures, tested on 5")
