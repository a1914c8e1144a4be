"""A film strip shows scenes: whatever differs is in it, and it stays still while nothing new is seen."""

from __future__ import annotations

import numpy as np
import pytest

from app.live.film import Film
from pipeline import Frame, look

LIMIT = 12


def noisy(colour: tuple[int, int, int], second: float) -> np.ndarray:
    """A picture of one colour, never twice the same."""
    noise = np.random.default_rng(round(second)).integers(-6, 7, (90, 160, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def strip(scenes: list[tuple[tuple[int, int, int], int]], limit: int = LIMIT) -> list[float]:
    """The seconds on the strip of a video of (colour, seconds) scenes, a picture a second."""
    film, second = Film(limit), 0
    for colour, length in scenes:
        for _ in range(length):
            film.add(Frame(noisy(colour, second), float(second)), b"")
            second += 1
    return [picture.time for picture in film.pictures]


def test_every_scene_of_an_uneven_hour_is_on_the_strip():
    """An hour in one room, into which something comes for a few seconds now and then."""
    room, visits = (120, 110, 100), [(200, 30, 30), (30, 200, 30), (30, 30, 200), (230, 230, 40), (10, 10, 10)]
    scenes = [part for visit in visits for part in ((room, 700), (visit, 5))]
    times = strip(scenes)
    begins = np.cumsum([0] + [length for _, length in scenes])
    for (colour, length), begin in zip(scenes, begins):
        if colour != room:
            assert any(begin <= time < begin + length for time in times), colour
    assert len(times) == LIMIT


def test_the_first_picture_of_a_scene_stands_for_it():
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    assert strip([(colour, 50) for colour in colours], limit=4) == [0, 50, 100, 150]


def test_where_all_is_alike_the_strip_is_spread_in_time():
    times = strip([((90, 90, 90), 600)])
    assert times[0] == 0 and len(times) == LIMIT and max(np.diff(times)) < 200 and times[-1] > 400


def test_a_strip_hardly_moves_while_nothing_new_is_seen():
    film, changes = Film(LIMIT), 0
    colours = [(20 * step, 255 - 20 * step, 128) for step in range(LIMIT)]
    for second in range(600):
        before = film.pictures
        film.add(Frame(noisy(colours[min(second // 5, LIMIT - 1)], second), float(second)), b"")
        changes += second >= 120 and film.pictures != before
    assert changes <= 3


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (48, 64), (1080, 1920)])
def test_pictures_of_any_size_have_a_look(size):
    black, white = (look(np.full((*size, 3), value, np.uint8)) for value in (0, 255))
    assert black.shape == white.shape and np.isfinite(black).all()
    assert np.abs(black - white).sum() > 0.9 and np.abs(black - black).sum() == 0


def test_a_picture_less_than_the_limit_is_all_kept():
    assert strip([((1, 2, 3), LIMIT)]) == list(range(LIMIT))
