"""The router of kinds: plain wordings of every sort, slips of the fingers, and probabilities that are ones."""

from functools import cache

import pytest

from pipeline.questions.router import Known, Router, slips
from pipeline.towers.frame_tower import ASSETS


@cache
def router() -> Router:
    return Router.load(ASSETS)


@pytest.mark.parametrize(
    "text, kind",
    [
        ("Please sum up this recording for me.", "describe"),
        ("At which point does the ferry show up?", "when"),
        ("When do we see the ferry for the last time?", "last"),
        ("For how many seconds is the ferry there?", "howlong"),
        ("How many minutes does this recording have?", "length"),
        ("What colour is the ferry?", "colour"),
        ("What has the captain got on?", "wearing"),
        ("Is there a ferry in it?", "yesno"),
        ("Is this filmed indoors?", "where"),
        ("What does the captain say?", "said"),
        ("What is written on the ferry?", "text"),
        ("What is the captain's name?", "cannot"),
        ("Wie viele Boote sieht man?", "foreign"),
    ],
)
def test_plain_wordings(text, kind):
    assert next(iter(router().kinds(text, Known(thing=True)))) == kind


def test_slips_of_the_fingers_do_not_matter():
    assert next(iter(router().kinds("waht coulor is teh boat", Known(thing=True)))) == "colour"
    assert router().spelling("waht coulor has teh Škoda at 0:15?") == "what color has the Škoda at 0:15?"


def test_every_slip_is_found():
    assert {"whatt", "wat", "waht", "whot"} <= set(slips("what"))


def test_chances_add_up_best_first():
    chances = list(router().kinds("Who is that?", Known()).values())
    assert abs(sum(chances) - 1) < 1e-4 and chances == sorted(chances, reverse=True)


def test_a_question_is_read_alone():
    """What was asked before changes nothing, nor does an endless question stop it."""
    first = router().kinds("Where is this?", Known())
    router().kinds("why " * 500, Known(number=True))
    assert router().kinds("Where is this?", Known()) == first
