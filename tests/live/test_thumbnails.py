"""Small pictures of a stream: beyond their number too, a moment is shown by a picture of it."""

from __future__ import annotations

import numpy as np
import pytest

from app.live.thumbnails import Thumbnails
from pipeline import Frame, thumbnail


def frame(at: float, shade: int) -> Frame:
    return Frame(np.full((48, 64, 3), shade, np.uint8), at)


@pytest.mark.parametrize("length", [50, 101, 1000])
def test_what_was_there_for_a_second_keeps_its_picture_however_long_the_stream_is(length):
    """Every other one went, and another second's picture stood in."""
    kept = Thumbnails(limit=100)
    shades = [(second // 100 * 20) % 200 for second in range(length)]
    for second in range(7, length, 97):  # alone among pictures of something else
        shades[second] = 255
    for second, shade in enumerate(shades):
        kept.add(frame(float(second), shade))
    assert len(kept._pictures) <= 100
    for second, shade in enumerate(shades):
        assert kept.near(float(second)) == kept.near(second + 0.5) == thumbnail(frame(0.0, shade), 208)


def test_a_picture_stands_until_the_next_one_comes():
    kept = Thumbnails()
    assert kept.near(3.0) is None
    for at, shade in ((1.0, 10), (4.0, 200)):
        kept.add(frame(at, shade))
    dark, light = (thumbnail(frame(0.0, shade), 208) for shade in (10, 200))
    assert [kept.near(at) for at in (0.0, 1.0, 3.9, 4.0, 99.0)] == [dark, dark, dark, light, light]


def test_a_slow_drift_keeps_its_steps():
    """Each is like the one before it, but the last is nothing like the first."""
    kept = Thumbnails(limit=64)
    for second in range(250):
        kept.add(frame(float(second), second))
    shown = [round(picture.time) for picture in kept._pictures]
    assert max(np.diff(shown)) <= 32
