"""Alerts: once each time a thing comes or goes, judged the same however the video is cut; rules are read once, and
what cannot be judged is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import Engine
from pipeline.stream import Rule, StreamState, Token, UserError, VideoChunk
from pipeline.timeline.alerts import ABSENT, CLEAR, ENOUGH, LASTING, LASTS, MOST, SURE, Armed
from pipeline.timeline.rules import read_rule
from pipeline.timeline.timeline import RULES, Timeline
from tests.timeline.made import Colours, scenes

SCORES = st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.9]), min_size=1, max_size=60)


class Given:
    """Scores of pictures, a second apart; a state is how many were seen."""

    says = "A thing came into view."

    def __init__(self, scores: Sequence[float], gone: bool = False, adds_up: bool = False) -> None:
        self.scores, self.gone, self.adds_up = scores, gone, adds_up

    def seen(self, state: StreamState, since: float) -> Sequence[tuple[float, float]]:
        return [(float(at), self.scores[at]) for at in range(state.frames) if at > since]


def told(
    scores: Sequence[float],
    gone: bool = False,
    cool_down: float = 0.0,
    ends: Sequence[int] = (),
    adds_up: bool = False,
) -> list[tuple]:
    armed = Armed(Rule("", "", cool_down, 1), Given(scores, gone, adds_up))
    states = [StreamState((), frames=end) for end in (*ends, len(scores))]
    return [(event.time, event.until) for state in states for event in armed.judge(state)]


@given(SCORES, st.booleans(), st.sampled_from([0.0, 5.0, 30.0]), st.sets(st.integers(1, 60), max_size=5), st.booleans())
@settings(deadline=None)
def test_how_a_video_is_cut_never_changes_the_alerts(scores, gone, cool_down, ends, adds_up):
    ends = sorted(end for end in ends if end < len(scores))
    whole = told(scores, gone, cool_down, (), adds_up and not gone)
    assert told(scores, gone, cool_down, ends, adds_up and not gone) == whole


@given(SCORES)
@settings(deadline=None)
def test_an_alert_of_chances_rests_on_pictures_that_add_up_to_enough(scores):
    for time, until in told(scores, adds_up=True):
        near = np.clip(scores[int(time) : int(until) + 1], 1e-9, 1 - 1e-9)
        assert len(near) > 1 and np.minimum(np.log(near / (1 - near)), MOST).sum() >= ENOUGH - 1e-9


def test_chances_add_up_however_weak_and_what_speaks_against_is_taken_off():
    assert told([0.1] * 4 + [0.8] * 9, adds_up=True) == [(4, 9)], "six times 1.39"
    assert told([0.1] * 4 + [0.999] * 9, adds_up=True) == [(4, 5)], "one picture alone never tells"
    assert told([0.999, 0.1, 0.1, 0.1] * 9, adds_up=True) == []
    assert told([0.8, 0.8, 0.2, 0.8, 0.8, 0.2] * 2 + [0.8] * 2, adds_up=True) == [(0, 13)]
    assert told([0.5] * 60, adds_up=True) == [], "even odds say nothing"


def test_who_stays_is_told_once_by_chances_and_again_after_absence():
    away = [0.1] * ABSENT
    assert told([0.9] * 50, adds_up=True) == [(0, 3)]
    assert told([0.9] * 5 + away + [0.9] * 5, adds_up=True) == [(0, 3), (5 + ABSENT, 8 + ABSENT)]
    assert told([0.9] * 5 + away[1:] + [0.9] * 50, adds_up=True) == [(0, 3)]


@given(SCORES, st.booleans(), st.sampled_from([0.0, 5.0, 30.0]))
@settings(deadline=None)
def test_alerts_are_never_closer_than_the_cool_down_and_rest_on_what_was_seen(scores, gone, cool_down):
    found = told(scores, gone, cool_down)
    sent = [until for _, until in found]
    assert all(b - a >= max(cool_down, 1) for a, b in itertools.pairwise(sent))
    for time, until in found:
        near = scores[int(time) : int(until) + 1]
        lasts = min(near) >= CLEAR and len(near) == LASTING and sum(near) >= LASTS * LASTING
        shown = lasts or sum(score >= SURE for score in near) >= 2
        assert (max(near) < CLEAR and len(near) == ABSENT) if gone else shown


def test_two_of_three_pictures_are_needed_and_one_alone_is_none():
    assert told([0.9, 0, 0, 0, 0, 0.9, 0, 0.9]) == [(5, 7)]
    assert told([0.9, 0, 0, 0.9, 0, 0, 0.9]) == []


def test_what_is_never_sure_is_told_when_it_lasts():
    """A person far away is at .5 in every picture."""
    assert told([0.0] * 3 + [0.5] * 9) == [(3, 2 + LASTING)]
    assert told([0.5] * (LASTING - 1) + [0.0] * 9) == []
    assert told([0.5, 0.5, 0.2, 0.5, 0.5] * 4) == [], "it flickers"
    assert told([0.4] * 20) == [], "it is likelier not there"


def test_what_stays_is_told_once_and_again_when_it_was_away():
    assert told([0] * 3 + [0.9] * 50) == [(3, 4)]
    assert told([0.9] * 5 + [0.0] * ABSENT + [0.9] * 5) == [(0, 1), (5 + ABSENT, 6 + ABSENT)]
    assert told([0.9] * 5 + [0.0] * (ABSENT - 1) + [0.9] * 5) == [(0, 1)], "the detector blinked"


def test_the_cool_down_counts_from_the_alert_that_was_sent_and_swallows_nobody_who_stays():
    visits = ([0.9] * 4 + [0.0] * ABSENT) * 2 + [0.9] * 30
    assert told(visits, cool_down=12) == [(0, 1), (8 + 2 * ABSENT, 9 + 2 * ABSENT)], (
        "the second visitor left before it was over"
    )
    assert told(visits, cool_down=20) == [(0, 1), (19, 21)]


def test_who_goes_must_have_been_there():
    assert told([0.0] * 20, gone=True) == []
    assert told([0.0] * 3 + [0.9] * 5 + [0.0] * 9, gone=True) == [(8, 7 + ABSENT)]


class Yes(Colours):
    """Keeps no index, and says yes to a rule while it sees the colour that the rule names."""

    def shows(self, state, start, end):
        return None

    caption_question = ""

    def ask(self, question, state, sampling):
        seen = [name for at, name in state.inner if at <= question.at]
        yield Token(0, "Yes." if seen[-1] in question.text else "No.")


@pytest.mark.parametrize("size", [1, 5, 30])
def test_a_model_without_an_index_is_asked(size):
    frames, model = scenes([("red", 9), ("blue", 10), ("red", 11)]), Yes()
    timeline, state = Timeline(Engine(model)), model.start()
    timeline.add_rule("tell me when it is blue")
    for at in range(0, len(frames), size):
        chunk = VideoChunk(frames[at : at + size])
        state = model.watch(chunk, state)
        timeline.watched(chunk.frames, state)
    alerts = [(e.time, e.until, e.text) for e in timeline.events if e.kind == "alert"]
    assert alerts == [(10, 12, "tell me when it is blue")]


def test_a_rule_that_comes_late_asks_a_model_from_then_on_and_goes_when_it_is_taken_away():
    frames, model = scenes([("blue", 9), ("red", 9), ("blue", 9)]), Yes()
    timeline, state = Timeline(Engine(model)), model.watch(VideoChunk(frames[:9]), model.start())
    timeline.watched(frames[:9], state)
    rule = timeline.add_rule("blue?")
    assert timeline.rules == (rule,)
    state = model.watch(VideoChunk(frames[9:]), state)
    timeline.watched(frames[9:], state)
    assert [e.time for e in timeline.events if e.kind == "alert"] == [18]
    timeline.remove_rule(rule.number)
    assert timeline.rules == () and any(e.kind == "alert" for e in timeline.events)


def test_there_is_a_most_of_rules():
    timeline = Timeline(Engine(Yes()))
    for _ in range(RULES):
        timeline.add_rule("blue?")
    with pytest.raises(UserError, match="remove another"):
        timeline.add_rule("blue?")
    assert len({rule.number for rule in timeline.rules}) == RULES


@pytest.mark.parametrize(
    "text, says",
    [
        ("tell me when a person enters", "A person came into view."),
        ("Alert me if anyone approaches the door.", "A person came into view."),
        ("let me know when my dog is there", "A dog came into view."),
        ("alert when cat or dog appears", "A cat or a dog came into view."),
        ("tell me when a man and a dog are both there", "A person and a dog are in view."),
        ("ping me when there are more than two people", "At least three people came into view."),
        ("say when at least 3 cars are there", "At least three cars came into view."),
        ("tell me when a person goes into the kitchen", "A person came into view."),
        ("Notify me when the person leaves.", "A person went out of view."),
        ("tell me when nobody is in the room", "A person went out of view."),
        ("tell me when everyone left", "A person went out of view."),
        ("let me know when the bottle is gone", "A bottle went out of view."),
        ("a person", "A person came into view."),
        ("when does a bus come?", "A bus came into view."),
    ],
)
def test_a_rule_is_read_and_says_how(text, says):
    assert read_rule(text).says == says


@pytest.mark.parametrize(
    "text",
    [
        "tell me when someone falls",
        "let me know when a red car comes into view",
        "warn me when my dog jumps on the couch",
        "tell me when the dog is left of the car",
        "alert me if there is a fire",
        "Sag mir wenn ein Hund kommt",
        "tell me when 20 people are there",
        "",
        "x" * 300,
    ],
)
def test_what_cannot_be_judged_is_refused_with_a_sentence(text):
    with pytest.raises(UserError) as refused:
        read_rule(text)
    assert "not taken" in str(refused.value) and str(refused.value).count(". ") == 0


def test_a_rule_that_cannot_be_judged_now_keeps_no_other_from_being_told():
    """It is judged after the next chunk, as if nothing had been."""

    class Full(Given):
        full = True

        def seen(self, state: StreamState, since: float) -> Sequence[tuple[float, float]]:
            if self.full:
                raise UserError("Memory ran out while answering, so the answer is cut short; ask again.")
            return super().seen(state, since)

    timeline, full = Timeline(Engine(Colours())), Full([0.9] * 5)
    timeline._armed = tuple(
        Armed(Rule("", says, 0.0, n), spotter)
        for n, (says, spotter) in enumerate([("first", full), ("other", Given([0.9] * 5))])
    )
    timeline.judge(StreamState((), frames=4))
    assert [event.text for event in timeline.events] == ["other"]
    full.full = False
    timeline.judge(StreamState((), frames=5))
    assert [(event.text, event.time) for event in timeline.events] == [("other", 0.0), ("first", 0.0)]
