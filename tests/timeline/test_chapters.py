"""Chapters cover the stream, are few, and say only what was seen in them; questions are about what was seen."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.timeline.chapters as chapters_module
from pipeline.stream import Event
from pipeline.timeline.chapters import MOST, chapters, suggestions, summary
from tests.timeline.made import Colours, noticed, scenes

CAPTIONS = ["", "A dog.", "A person and a dog.", "Two cars.", "A tv."]
LASTED = st.lists(st.tuples(st.sampled_from(CAPTIONS), st.integers(1, 300), st.booleans()), min_size=1, max_size=30)


def told(lasted) -> tuple[list[Event], float]:
    """Events of captions that last so many seconds, some of which begin with a cut."""
    events, start, shot = [], 0.0, 0.0
    for text, length, cut in lasted:
        if cut and start:
            events.append(Event(shot, "shot", until=start))
            shot = start
        if text:
            events.append(Event(start, "caption", text, until=start + length))
        start += length
    return [*events, Event(shot, "shot", until=start)], start


@given(LASTED)
@settings(deadline=None)
def test_chapters_cover_the_stream_are_few_and_true(lasted):
    events, end = told(lasted)
    found = chapters(events, end)
    assert 1 <= len(found) <= MOST and found[0].time == 0 and found[-1].until == end
    assert all(a.until == b.time for a, b in itertools.pairwise(found))
    assert sum(one.weight for one in found) == pytest.approx(1)
    for one in found:
        there = [e.text for e in events if e.kind == "caption" and e.time < one.until and e.until > one.time]
        said = [part[0].upper() + part[1:] + "." for part in one.text.rstrip(".").split(", then ")] if one.text else []
        assert set(said) <= set(there) and bool(said) == bool(there)
        first = [there.index(text) for text in said]
        assert first == sorted(first)


def joined_one_by_one(events, end) -> list[float]:
    """Where chapters end, by the definition: of all neighbours the cheapest are joined, all costs counted anew."""
    parts = chapters_module._parts(events, end)
    most = max(1, min(MOST, round((end / chapters_module.OF_A_CHAPTER) ** 0.5)))
    while costs := chapters_module._costs(parts):
        if len(parts) <= most and min(costs) >= chapters_module.GLIMPSE:
            break
        i = costs.index(min(costs))
        parts[i : i + 2] = [parts[i].joined(parts[i + 1])]
    return [part.end for part in parts]


@given(LASTED)
@settings(deadline=None)
def test_only_the_costs_that_changed_are_counted_anew(lasted):
    events, end = told(lasted)
    assert [one.until for one in chapters(events, end)] == joined_one_by_one(events, end)


def test_an_hour_of_two_halves_is_told_by_its_halves():
    events, end = told([("A dog.", 40, True)] * 45 + [("Two cars.", 40, True)] * 45)
    assert [(one.time, one.text) for one in chapters(events, end)] == [(0, "A dog."), (1800, "Two cars.")]


def test_a_glimpse_makes_no_chapter_of_its_own():
    events, end = told([("A dog.", 60, True), ("A tv.", 2, True), ("A dog.", 60, True), ("Two cars.", 90, True)])
    assert [one.until for one in chapters(events, end)][-1] == end and 62 not in [
        one.time for one in chapters(events, end)
    ]


def test_the_summary_has_their_times_and_owns_up_to_what_it_does_not_know():
    events, end = told([("A dog.", 40, True), ("", 60, True)])
    assert summary(events, end) == "0:00 to 0:40: A dog.\n0:40 to 1:40: I am not sure what this is."


def test_questions_are_about_what_was_seen_most_and_nothing_is_made_up():
    events, end = told([("A dog.", 10, True), ("A person and a dog.", 30, True), ("Two cars.", 5, True)])
    assert suggestions(events, end)[:2] == ("When does a dog appear?", "When does a person appear?")
    assert suggestions(*told([("", 40, True)])) == () and suggestions([], 0.0) == ()


def test_a_stream_that_is_over_has_chapters_once():
    events = noticed(Colours(), scenes([("red", 20), ("blue", 20)]), [slice(0, 11), slice(11, 40)])
    assert [(one.time, one.text) for one in events if one.kind == "chapter"] == [(0, "red."), (20, "blue.")]
