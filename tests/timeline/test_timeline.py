"""What happened when: shots and captions are what the pictures say, however they come in chunks, and they stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine import Engine
from pipeline.sources.shots import Shots
from pipeline.stream import Frame, UserError, VideoChunk
from pipeline.timeline.captions import Captions
from pipeline.timeline.timeline import UNSEEN, Timeline
from tests.timeline.made import COLOURS, Colours, noticed, of, scenes

WHOLE = [slice(None)]
SCENES = st.lists(st.tuples(st.sampled_from(list(COLOURS)), st.integers(1, 12)), min_size=1, max_size=6)


@given(SCENES, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_how_a_video_is_cut_never_changes_what_is_noticed(lengths, seed):
    frames = scenes(lengths)
    ends = sorted(set(np.random.default_rng(seed).integers(1, len(frames) + 1, 4)) | {len(frames)})
    slices = [slice(int(a), int(b)) for a, b in zip([0, *ends], ends)]
    assert noticed(Colours(), frames, slices) == noticed(Colours(), frames, WHOLE)


def test_that_property_can_go_red():
    """A producer that begins anew with a chunk is found out."""

    class Careless(Timeline):
        def watched(self, frames, state, hurry=False):
            self._captions.going = None
            super().watched(frames, state, hurry)

    frames = scenes([("red", 12)])
    one, other = ([slice(0, 6), slice(6, 12)], WHOLE)
    careless = [noticed(Colours(), frames, cut, Careless(Engine(Colours()))) for cut in (one, other)]
    assert careless[0] != careless[1]


@pytest.mark.parametrize("seed", range(3))
def test_nor_what_a_model_without_an_index_is_asked(tiny_model, cut, seed):
    """The prompt is about a second that was wholly seen, so a state that has seen more says the same of it."""
    frames = scenes([("red", 7), ("blue", 9), ("green", 34)])
    model = tiny_model(torch.float64)
    events = noticed(model, frames, WHOLE)
    assert len(of("shot", events)) == 3 and all(text for *_, text in of("caption", events))
    assert of("caption", events)[-1][0] >= 16
    assert noticed(model, frames, cut(len(frames), seed)) == events


def test_a_model_that_is_behind_is_not_asked(tiny_model):
    frames, model = scenes([("red", 7), ("blue", 9)]), tiny_model()
    timeline = Timeline(Engine(model))
    state = model.watch(VideoChunk(frames), model.start())
    timeline.watched(frames, state, hurry=True)
    timeline.finish(state, hurry=True)
    assert not of("caption", timeline.events) and len(of("shot", timeline.events)) == 2


def test_a_caption_lasts_as_long_as_what_it_says_and_nothing_is_said_of_what_is_unsure():
    events = noticed(Colours(), scenes([("red", 9), ("grey", 8), ("blue", 10)]), WHOLE)
    assert of("caption", events) == [(0, 9, "red"), (17, 26, "blue")]
    assert of("shot", events) == [(0, 9, ""), (9, 17, ""), (17, 26, "")]


def test_two_shots_that_show_the_same_are_one_caption():
    bright, dark = (np.full((36, 64, 3), (level, 0, 0), np.uint8) for level in (250, 110))
    frames = tuple(Frame(bright if second < 8 else dark, float(second)) for second in range(16))
    events = noticed(Colours(), frames, WHOLE)
    assert len(of("shot", events)) == 2 and of("caption", events) == [(0, 15, "red")]


def test_what_has_ended_never_changes_and_what_goes_on_has_no_end():
    frames, model = scenes([("red", 9), ("grey", 8), ("blue", 10)]), Colours()
    timeline, state, before = Timeline(Engine(model)), model.start(), ()
    for frame in frames:
        state = model.watch(VideoChunk((frame,)), state)
        timeline.watched([frame], state)
        ended = tuple(event for event in timeline.events if event.until is not None)
        assert ended[: len(before)] == before
        going = [event.kind for event in timeline.events if event.until is None]
        assert going.count("shot") == 1 and len(going) <= 2
        before = ended
    assert len(before) == 3


def test_a_picture_that_is_watched_again_is_noticed_once():
    frames, model = scenes([("red", 9), ("blue", 10)]), Colours()
    assert noticed(model, frames, [slice(0, 12), slice(6, 19)]) == noticed(model, frames, WHOLE)


def test_a_stream_without_end_keeps_a_bounded_number_and_rare_kinds_longest():
    frames = scenes([("red", 40), ("blue", 1), ("green", 1), ("grey", 1)] + [("blue", 1), ("grey", 1)] * 30)
    events = noticed(Colours(), frames, WHOLE, Timeline(Engine(Colours()), limit=12))
    assert len(events) == 12 and len(of("caption", events)) >= 4 and of("chapter", events)


def test_a_pan_and_a_crowd_are_no_cuts():
    """A moving camera changes every picture; a cut changes one much more than those before it."""
    wide = np.random.default_rng(0).integers(0, 255, (6, 40, 3)).repeat(12, 0).repeat(12, 1).astype(np.uint8)
    shots = Shots()
    pan = [shots.add(Frame(wide[:, at : at + 96], float(at))) for at in range(0, 240, 8)]
    assert not any(pan) and shots.going.time == 0
    assert shots.add(Frame(np.zeros((72, 96, 3), np.uint8), 300.0)).until == 300


def test_captions_know_no_words_of_their_own():
    captions = Captions(2)
    said = [event for at in range(6) for event in captions.add(float(at), at == 0, lambda a, b: f"{a:g} to {b:g}")]
    assert [event.text for event in [*said, *captions.end(6.0, lambda a, b: "")]] == ["0 to 2", "2 to 4"]


@pytest.mark.parametrize("at", [5, 9, 12])
def test_a_stream_that_goes_on_later_keeps_what_it_had(at):
    """Shots are those of one run; a caption that went on is told anew from there."""
    frames, model = scenes([("red", 9), ("blue", 10), ("grey", 6)]), Colours()
    first, state = Timeline(Engine(model)), model.watch(VideoChunk(frames[:at]), model.start())
    first.watched(frames[:at], state)
    again = Timeline(Engine(model))
    again.go_on(first.events, state.seen_until)
    state = model.watch(VideoChunk(frames[at:]), state)
    again.watched(frames[at:], state)
    again.finish(state)
    whole = noticed(model, frames, WHOLE)
    shots = {(event.time, event.until) for event in whole if event.kind == "shot"}
    assert {(e.time, e.until) for e in again.events if e.kind == "shot"} == (shots if at != 9 else {(0, 19), (19, 24)})
    assert [e.text for e in again.events if e.kind == "caption"][-1] == "blue"


@pytest.mark.parametrize("size", [1, 4, 30])
def test_where_a_camera_sent_nothing_there_is_a_gap_and_no_caption(size):
    """However the stream is cut. What was seen ends with its last picture, and begins anew after the gap."""
    frames = scenes([("red", 9), ("blue", 10)])
    frames = tuple(frame if frame.time < 6 else frame.later(60.0) for frame in frames)
    slices = [slice(at, at + size) for at in range(0, len(frames), size)]
    events = noticed(Colours(), frames, slices, Timeline(Engine(Colours()), live=True))
    assert of("gap", events) == [(5, 66, UNSEEN)]
    assert of("caption", events) == [(0, 5, "red"), (66, 69, "red"), (69, 78, "blue")]
    assert [(start, end) for start, end, _ in of("shot", events)] == [(0, 5), (66, 69), (69, 78)]
    assert "Nothing was seen" in "".join(text for *_, text in of("chapter", events))
    still = noticed(Colours(), frames, slices)
    assert not of("gap", still), "the last picture of a file stands until the next one"


def test_rules_go_on_with_their_stream():
    """As if they had been there all along: nothing is told twice, and who is still there has come before."""
    frames, model = scenes([("red", 6), ("blue", 10), ("red", 6), ("blue", 6)]), Seeing()
    whole, state = Timeline(Engine(model)), model.start()
    rule = whole.add_rule("blue", 0.0)
    for at in range(0, len(frames), 4):
        state = model.watch(VideoChunk(frames[at : at + 4]), state)
        whole.watched(frames[at : at + 4], state)
        if at == 8:
            again, half = Timeline(Engine(model)), state
            again.go_on(whole.events, state.seen_until)
            assert again.take_rules((rule, replace(rule, text="what no model judges", number=9)), state)[0].number == 9
        elif at > 8:
            half = model.watch(VideoChunk(frames[at : at + 4]), half)
            again.watched(frames[at : at + 4], half)
    assert of("alert", again.events) == of("alert", whole.events) and len(of("alert", whole.events)) == 2
    assert again.rules == (rule,) and again.add_rule("red").number == 10, "numbers are not given twice"


class Seeing(Colours):
    """Judges rules of one colour by its index."""

    def spotter(self, rule):
        if rule not in COLOURS:
            raise UserError("No.")
        return Looking(rule)


class Looking:
    gone = adds_up = False

    def __init__(self, colour: str) -> None:
        self.colour, self.says = colour, f"{colour} came into view."

    def seen(self, state, since):
        return [(at, float(name == self.colour)) for at, name in state.inner if at > since]
