"""A picture stands until the next one: what is on the screen at a time, in a stretch, and before the end."""

from __future__ import annotations

import numpy as np
import pytest

from tests.questions.made import index, plan

HOLD = index([0.0] * 5)._replace(times=np.array([0.0, 1.0, 2.0, 600.0, 601.0]))  # nothing moves for ten minutes


@pytest.mark.parametrize("asked,row", [("0:00", 0), ("0:02", 2), ("5:02", 2), ("9:00", 2), ("10:00", 3), ("10:01", 4)])
def test_at_a_time_it_is_the_picture_on_the_screen(asked, row):
    verdict = plan("at", HOLD, f"What do you see at {asked}?")
    assert not verdict.late and verdict.time == HOLD.times[row]


def test_a_stretch_begins_with_the_picture_already_on_the_screen():
    verdict = plan("at", HOLD, "What is shown between 2:00 and 3:00?")
    assert not verdict.late and verdict.time == 2.0 and verdict.frames == (2,)


def test_before_the_first_picture_the_first_is_on_the_screen():
    """Sound leads by five seconds; the player shows the first picture meanwhile."""
    late = index([0.0] * 5)._replace(times=np.arange(5.0, 10.0))
    assert plan("at", late, "What do you see at 0:02?").time == 5.0
    assert plan("at", late, "What is shown between 0:01 and 0:03?").time == 5.0


def test_only_beyond_the_end_it_has_not_been_reached():
    assert plan("at", HOLD, "What do you see at 12:00?").late
    assert plan("at", HOLD, "What is shown between 12:00 and 13:00?").late
    longer = HOLD._replace(until=900.0)  # the last picture stands until the end
    assert plan("at", longer, "What do you see at 12:00?").time == 601.0
    assert plan("at", longer, "What is shown between 12:00 and 13:00?").time == 601.0
    assert plan("at", longer, "What do you see at 16:00?").late
