"""Evidence: from where tokens looked to a few moments and their pictures."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Engine, Question, Sampling, VideoChunk
from pipeline.evidence import moments
from pipeline.stream import Token
from tests.test_engine import ColourModel, frame, watched

slot_lists = st.lists(
    st.tuples(st.integers(0, 60).map(lambda n: n / 2), st.floats(0, 10, allow_subnormal=False)), max_size=60
)


@given(slots=slot_lists, gap=st.one_of(st.none(), st.floats(0, 20)), at_most=st.integers(1, 7))
def test_moments_are_shares_in_order_and_apart(slots, gap, at_most):
    times, weights = np.array([t for t, _ in slots]), np.array([w for _, w in slots])
    found = moments(times, weights, gap=gap, share=0.05, at_most=at_most)
    assert len(found) <= at_most
    assert sum(m.weight for m in found) <= 1 + 1e-9
    assert all(m.start <= m.time <= m.end and m.time in times for m in found)
    assert [m.weight for m in found] == sorted((m.weight for m in found), reverse=True)
    assert all(m.weight >= 0.05 for m in found)
    by_time = sorted(found, key=lambda m: m.start)
    assert all(later.start - sooner.end > (gap or 0) for sooner, later in pairwise(by_time))


@given(slots=slot_lists, seed=st.integers(0, 99))
def test_moments_do_not_depend_on_the_order_of_slots(slots, seed):
    shuffled = [slots[i] for i in np.random.default_rng(seed).permutation(len(slots))]
    assert moments(*_arrays(slots)) == moments(*_arrays(shuffled))


@given(slots=slot_lists)
def test_moments_do_not_depend_on_how_a_time_is_split_into_slots(slots):
    halves = [(t, w / 2) for t, w in slots for _ in range(2)]
    for one, two in zip(moments(*_arrays(slots)), moments(*_arrays(halves)), strict=True):
        assert (one.time, one.start, one.end) == (two.time, two.start, two.end)
        assert one.weight == pytest.approx(two.weight)


def _arrays(slots: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([t for t, _ in slots]), np.array([w for _, w in slots])


@given(
    where=st.lists(st.integers(2, 117).map(lambda n: n * 30), min_size=1, max_size=3, unique=True),
    mass=st.floats(0.3, 0.95),
    seed=st.integers(0, 99),
)
def test_planted_peaks_are_found_in_a_noisy_hour(where, mass, seed):
    """An hour at 1 fps under attention noise; each planted peak is three seconds wide."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(3600, 5.0)) * (1 - mass)
    for second in where:
        weights[second - 1 : second + 2] += np.array([0.25, 0.5, 0.25]) * mass / len(where)
    found = moments(np.arange(3600.0), weights)
    assert sorted(m.time for m in found[: len(where)]) == sorted(where)
    for m in found[: len(where)]:
        assert m.weight == pytest.approx(mass / len(where), abs=0.05)
        assert m.time - 6 <= m.start <= m.end <= m.time + 6


def test_neighbours_within_two_sampling_periods_merge():
    times = np.arange(0, 100, 2.0)
    weights = np.zeros(50)
    weights[[10, 12, 15]] = 1, 2, 1  # at 20, 24 and 30 s: the gap of 4 s is two periods, that of 6 s is not
    assert [(m.start, m.time, m.end, m.weight) for m in moments(times, weights)] == [
        (20, 24, 24, 0.75),
        (30, 30, 30, 0.25),
    ]


def test_background_is_no_moment():
    """Twenty times the background in three slots of a hundred; without a floor everything would merge into one."""
    weights = np.ones(100)
    weights[60:63] = 20
    assert [(m.start, m.end) for m in moments(np.arange(100.0), weights)] == [(60, 62)]


def test_light_moments_are_left_out():
    weights = np.zeros(100)
    weights[[10, 50, 90]] = 0.90, 0.06, 0.04
    assert [m.time for m in moments(np.arange(100.0), weights)] == [10, 50]


def test_what_is_not_a_number_weighs_nothing():
    times = np.array([0.0, 1.0, np.nan, 3.0, 4.0, 9.0])
    weights = np.array([np.nan, np.inf, 1.0, -5.0, 0.0, 1.0])
    assert [(m.time, m.weight) for m in moments(times, weights)] == [(9.0, 1.0)]
    assert moments(times, np.zeros(6)) == () and moments(np.zeros(0), np.zeros(0)) == ()


def test_a_planted_needle_is_the_evidence_of_the_answer():
    """Two red seconds in a grey, noisy ten minutes; the answer says where and the evidence points there."""
    engine = Engine(ColourModel())
    state = engine.start()
    for start in range(0, 600, 10):
        seconds = range(start, start + 10)
        state = engine.watch(
            VideoChunk(tuple(frame(s, "red" if s in (421, 422) else "grey", noise=40) for s in seconds)), state
        )
    answers = list(engine.ask(Question("When was it red?"), state, Sampling(max_tokens=8)))
    best = answers[-1].evidence[0]
    assert 421 <= best.time <= 422 and (best.start, best.end) == (421, 422) and best.weight > 0.9
    assert answers[0].evidence, "evidence grows with the answer"
    assert "7:01" in answers[-1].text or "7:02" in answers[-1].text


def test_evidence_sums_over_tokens_that_look_at_the_same_slots():
    class Glancing(ColourModel):
        def ask(self, question, state, sampling):
            for where in (0, 9, 9, 9):
                yield Token(0, "x", (np.arange(10.0), np.eye(10)[where]))

    engine = Engine(Glancing())
    *_, last = engine.ask(Question("x"), watched(engine, [frame(0)]))
    assert [(m.time, m.weight) for m in last.evidence] == [(9, 0.75), (0, 0.25)]


def test_evidence_sums_over_tokens_that_look_at_different_slots():
    class Wandering(ColourModel):
        def ask(self, question, state, sampling):
            yield Token(0, "a", (np.array([1.0, 2.0]), np.array([1.0, 0.0])))
            yield Token(1, "b")
            yield Token(2, "c", (np.array([50.0]), np.array([1.0])))
            yield Token(3, "d", (np.array([50.0, 51.0]), np.array([0.0, 1.0])))

    engine = Engine(Wandering())
    *_, last = engine.ask(Question("x"), watched(engine, [frame(0)]))
    assert [(m.start, m.end, round(m.weight, 3)) for m in last.evidence] == [(50, 51, 0.667), (1, 1, 0.333)]
