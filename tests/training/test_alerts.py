"""How alerts are measured: the interval is the textbook's, footage holds what it says, a false alarm is counted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pipeline.training.alerts import (
    HOLDS,
    SIZE,
    WORDS,
    Made,
    Tally,
    alerts_of,
    poisson_interval,
    shown_for,
    told_of,
    varied,
)
from pipeline.training.data import Picture


@pytest.mark.parametrize("count, low, high", [(0, 0.0, 3.689), (1, 0.025, 5.572), (10, 4.795, 18.39)])
def test_the_interval_is_garwoods(count, low, high):
    assert poisson_interval(count) == pytest.approx((low, high), abs=0.005)


def test_footage_is_varied_and_of_one_size():
    rgb = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    frames = varied([rgb] * 6, np.random.default_rng(1), 0.6)
    assert {frame.shape for frame in frames} == {(SIZE[1], SIZE[0], 3)}
    assert not any(np.array_equal(a, b) for a, b in itertools.pairwise(frames))


def test_a_caption_that_may_tell_of_a_thing_is_no_footage_without_it():
    still = Picture("", "flickr", "test", ("A man rides his bike.",) * 4 + ("A cyclist.",))
    assert {"person", "bicycle"} <= told_of(still) and "dog" not in told_of(still)
    assert shown_for(still, "person") and not shown_for(still, "bicycle")


def test_false_alarms_and_visits_are_counted():
    tally, frames = Tally(dict.fromkeys(WORDS, False)), [np.zeros((2, 2, 3), np.uint8)] * 5
    silent = dict.fromkeys(WORDS, [0.0] * 5)
    tally.add(Made(frames, frozenset({"dog"}), "dog"), {**silent, "dog": [0.9] * 5})
    tally.add(Made(frames, frozenset({"dog"}), "dog"), {**silent, "cat": [0.9] * 5})
    told = tally.told()
    assert told["recall"] == {"dog": [1, 2]} and told["false_of"] == {"cat": 1} and told["false"] == 1
    assert told["rule_hours"] == pytest.approx(10 * (len(WORDS) - 1) / 3600, abs=0.01)
    assert alerts_of([0.9] * 3 + [0.0] * 9 + [0.9] * 3) == 2


def test_where_nobody_is_in_a_clip_of_persons_is_footage_without_them():
    clip = "intel_one-by-one-person-detection.mp4"
    made = Made([np.zeros((2, 2, 3), np.uint8)] * 3, frozenset(HOLDS[clip].split()), "", clip, (5, 12, 139))
    assert made.may_show("person") == [False, True, False] and made.may_show("dog") == [False] * 3
    elsewhere = made._replace(clip="", numbers=())
    assert elsewhere.may_show("person") == [True] * 3
    tally = Tally(dict.fromkeys(WORDS, False))
    tally.add(made, {word: [0.1, 0.2, 0.3] for word in WORDS})
    assert tally.without["person"] == [0.1, 0.3] and tally.without["dog"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("chance, told", [(0.9, 1), (0.6, 0), (0.4, 0)])
def test_chances_add_up_to_an_alert(chance, told):
    assert alerts_of([0.1] * 3 + [chance] * 6, adds_up=True) == told
