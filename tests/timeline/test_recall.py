"""Recall by age: which moments are asked about, what counts as recalled, and that no number stands alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import Engine
from pipeline.stream import Frame, Model, StreamState, Token, UserError, VideoChunk
from pipeline.timeline.recall import AGES, MOMENTS, Remembering, Score, moments, named, recall


@given(st.floats(0, 20_000), st.sampled_from(AGES))
def test_moments_lie_around_an_age_within_the_stream(seen_until, age):
    found = moments(seen_until, age)
    assert len(found) == (MOMENTS if seen_until >= age else 0)
    assert all(0 <= at <= seen_until and 0.7 * age <= seen_until - at <= 1.3 * age for at in found)
    assert list(found) == sorted(set(found))


def test_what_is_doubted_or_denied_is_not_named():
    words = {"dog": "A dog.", "doubt": "I am not sure what this is. My best guesses: dog.", "no": "A man, but no dog."}
    dog, none, man = (named(text) for text in words.values())
    assert len(dog) == 1 and none == [] and len(man) == 1 and man != dog
    assert named("Nobody, only a street.") == [] and named("A dog and a dog. Perhaps a cat.") == dog


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_share_lies_in_its_interval_and_nothing_has_none(named_ones, more):
    score = Score(named_ones, named_ones + more)
    low, high = score.interval
    assert 0 <= low <= high <= 1
    if score.of:
        assert low <= score.share <= high and score.document["share"] == score.share
    else:
        assert (low, high) == (0, 1) and score.document["share"] is None is score.document["interval"]


def test_the_interval_is_wilsons():
    """Newcombe 1998, table I: 81 of 263 and 15 of 148."""
    assert Score(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Score(15, 148).interval == pytest.approx((0.0624, 0.1605), abs=5e-5)


class Forgetful(Model):
    """Sees a dog in light pictures and a cat in dark ones, and forgets what is older than `keeps` seconds."""

    name = "Forgetful"

    def __init__(self, keeps: float) -> None:
        self.keeps = keeps

    def start(self):
        return StreamState(())

    def watch(self, chunk, state):
        seen = tuple((frame.time, "dog" if frame.rgb.mean() > 99 else "cat") for frame in chunk.frames)
        return StreamState(state.inner + seen, (), state.frames + len(seen), chunk.seen_until)

    def shows(self, state, start, end):
        return " ".join(f"A {word}." for word in dict(((w, 0) for at, w in state.inner if start <= at < end)))

    def ask(self, question, state, sampling):
        minutes, _, rest = question.text.rstrip("?").split(" ")[-1].partition(":")
        at = 60 * int(minutes) + int(rest)
        told = self.shows(state, at - 1, at + 1) if state.seen_until - at <= self.keeps else "I do not know."
        yield Token(1, told)


def picture(second: float) -> Frame:
    return Frame(np.full((4, 4, 3), 200 if second // 20 % 2 else 20, np.uint8), second)


def watched(keeps: float, seconds: int) -> Remembering:
    engine = Engine(Forgetful(keeps))
    state = engine.watch(VideoChunk(tuple(picture(float(i)) for i in range(seconds))), engine.start())
    return Remembering(engine, state)


def test_who_forgets_recalls_less_with_age_and_who_is_young_is_told():
    own, rival = watched(10_000, 1000), watched(200, 1000)
    steps = list(recall(own, [rival], lambda a, b: [picture(float(i)) for i in range(int(a) + 1, int(b) + 1)]))
    first, last = steps[0], steps[-1]
    assert [aged.young for aged in last[0]] == [False, False, False, True]
    assert all(aged.moments == 0 for one in first for aged in one)
    assert len(steps) == 1 + 3 * MOMENTS
    for aged, forgotten in zip(last[0][:3], last[1][:3]):
        assert aged.moments == MOMENTS and aged.index.of >= MOMENTS and aged.pictures.of >= MOMENTS
        assert aged.index.share > 0.8 and aged.pictures.share > 0.8
        assert (forgotten.index.of, forgotten.pictures.of) == (aged.index.of, aged.pictures.of)
    assert last[1][0].index.share > 0.8 and last[1][1].index.share == 0 == last[1][2].pictures.share
    assert last[0][3].index.of == 0


def test_kept_pictures_tell_by_themselves():
    """Where the index is wrong and the pictures are right, the two numbers differ."""
    own = watched(10_000, 100)
    (_, *_, last) = recall(own, [], lambda a, b: [Frame(np.zeros((4, 4, 3), np.uint8), a)])
    assert last[0][0].index.share > 0.8 and last[0][0].pictures.of == MOMENTS
    assert last[0][0].pictures.share < 0.8
    (_, *_, last) = recall(own, [], lambda a, b: [])
    assert last[0][0].pictures.of == 0


def test_what_cannot_be_probed_is_a_sentence():
    engine = Engine(Forgetful(1))
    with pytest.raises(UserError, match="nothing to remember"):
        next(recall(Remembering(engine, engine.start()), [], lambda a, b: []))

    class Indexless(Forgetful):
        def shows(self, state, start, end):
            return None

    engine = Engine(Indexless(1))
    state = engine.watch(VideoChunk((picture(0.0),)), engine.start())
    with pytest.raises(UserError, match="keeps no index"):
        next(recall(Remembering(engine, state), [], lambda a, b: []))
