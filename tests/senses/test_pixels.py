"""Senses of pixels and of counts: painted things have their colours, grey pictures none, and who comes is counted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.senses.colours import CENTRE, TERMS, Colours, shares
from pipeline.senses.counting import counts, traffic
from pipeline.senses.light import Light
from pipeline.towers.frame_tower import FrameFeatures

PAINTS = {
    "black": (10, 10, 12),
    "white": (245, 245, 240),
    "grey": (128, 128, 130),
    "red": (200, 20, 25),
    "orange": (240, 130, 20),
    "yellow": (240, 220, 40),
    "green": (30, 140, 50),
    "blue": (30, 70, 200),
    "purple": (110, 40, 160),
    "pink": (250, 130, 190),
    "brown": (120, 75, 40),
}


def painted(rgb: tuple[int, int, int], high: int = 90, wide: int = 120) -> np.ndarray:
    return np.full((high, wide, 3), rgb, np.uint8)


def detected(*boxes: tuple[int, float, float, float, float]) -> FrameFeatures:
    """One frame's features with these (kind, left, top, right, bottom) detections."""
    ids, places = torch.full((1, 8), -1), torch.zeros(1, 8, 4)
    for i, (kind, *box) in enumerate(boxes):
        ids[0, i], places[0, i] = kind, torch.tensor(box)
    blank = torch.zeros(1, 1)
    return FrameFeatures(blank, blank, blank, blank, blank, ids, (ids >= 0).float(), places)


@pytest.mark.parametrize("name", TERMS)
def test_a_paint_has_its_name(name):
    assert TERMS[int(shares(painted(PAINTS[name])).argmax())] == name


def test_a_thing_has_the_colour_of_its_box_not_of_the_frame():
    frame = painted(PAINTS["blue"])
    frame[20:60, 30:80] = PAINTS["red"]
    numbers = Colours().see([frame], detected((41, 30 / 120, 20 / 90, 80 / 120, 60 / 90))).numpy()
    assert Colours().say(numbers, 0)[0][0] == "red"
    assert Colours().say(numbers)[0][0] == "blue"
    assert Colours().say(numbers, 1) == []  # no such detection


@pytest.mark.parametrize("high, wide, chest", [(120, 60, slice(26, 61)), (90, 120, slice(66, 90))])
def test_of_a_person_the_chest_counts(high, wide, chest):
    """Of somebody standing it is in the upper half of the box, of a portrait at its bottom."""
    frame = painted(PAINTS["green"], high, wide)
    frame[chest] = PAINTS["orange"]
    numbers = Colours().see([frame], detected((0, 0, 0, 1, 1))).numpy()
    assert [term for term, _ in Colours().say(numbers, 0)] == ["orange"]


def test_the_middle_of_a_frame_has_its_own_colours():
    frame = painted(PAINTS["blue"])
    frame[15:75, 20:100] = PAINTS["red"]
    numbers = Colours().see([frame], detected()).numpy()
    assert [term for term, _ in Colours().say(numbers, CENTRE)] == ["red"]
    assert [term for term, _ in Colours().say(numbers)] == ["blue", "red"], "two that share the picture are both named"


def test_what_is_nearly_black_has_no_colours():
    assert [word for word, _ in Light().say(Light().see([painted((8, 8, 8))]).numpy())] == ["dark"]


def test_nothing_but_black_or_white_is_said_to_be_so():
    for value, word in ((0, "black"), (3, "black"), (254, "white")):
        assert Light().say(Light().see([painted((value,) * 3)]).numpy())[0][0] == word
    for value in (8, 128, 245):
        assert not {"black", "white"} & dict(Light().say(Light().see([painted((value,) * 3)]).numpy())).keys()


def test_grey_and_sepia_are_black_and_white():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (60, 80, 1), dtype=np.uint8).repeat(3, 2)
    sepia = np.clip(grey * 0.8 + np.array([40, 20, 0]), 0, 255).astype(np.uint8)
    colour = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for frame, said in ((grey, "black and white"), (sepia, "black and white"), (colour, "in colour")):
        assert said in dict(Light().say(Light().see([frame]).numpy()))


@given(st.integers(0, 255))
def test_brighter_is_never_darker(value):
    said = dict(Light().say(Light().see([painted((value, value, value))]).numpy()))
    assert ("dark" in said) == (value <= 56) and ("bright" in said) == (value >= 153)


@given(st.lists(st.integers(0, 5), max_size=40))
def test_who_came_and_did_not_go_is_there(seen):
    found = traffic(np.array(seen, int))
    assert found.most >= found.there >= 0 and found.there + found.came - found.went >= 0


def test_one_after_the_other_are_counted_and_a_missed_frame_is_no_exit():
    seen = np.array([0, 0, 1, 1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 0, 2, 2, 2])
    assert traffic(seen) == (0, 4, 2, 2)


def test_only_sure_detections_of_the_kind_count():
    features = detected((0, 0, 0, 1, 1), (0, 0, 0, 0.5, 1), (41, 0, 0, 1, 1))
    assert counts(features, (0,)).tolist() == [2]
    features.det_scores[0, 0] = 0.3
    assert counts(features, (0,)).tolist() == [1]
