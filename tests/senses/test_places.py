"""The sense of places: what ships can be read, a sure word comes first, and what is never sure is never said."""

from functools import cache

import numpy as np
import pytest
import torch

from pipeline.senses.places import Places
from pipeline.towers.frame_tower import ASSETS, FrameFeatures
from pipeline.training.data import Picture
from pipeline.training.places import NEVER, WORDS, floor_of, target


@cache
def places() -> Places:
    return Places.load(ASSETS)


def test_what_ships_knows_the_words_of_the_training():
    assert places().words == tuple(WORDS) and places().people <= set(WORDS)
    sayable = [word for word, floor in zip(places().words, places().floors, strict=True) if floor < NEVER]
    assert {"water", "snow", "street", "grass", "cycling"} <= set(sayable)


def test_numbers_do_not_depend_on_the_batch():
    blank = torch.zeros(3, 1)
    torch.manual_seed(0)
    some = FrameFeatures(torch.rand(3, 9, 1280), torch.rand(3, 1280), *[blank] * 6)
    together = places().see(None, some)
    alone = torch.cat([places().see(None, FrameFeatures(*(c[i : i + 1] for c in some))) for i in range(3)])
    assert together.shape == (3, places().width) and torch.allclose(together.float(), alone.float(), atol=2e-2)


def test_only_words_past_their_floors_are_said_surest_first():
    numbers = np.full((2, places().width), -50.0)
    for word, over in (("snow", 1.0), ("water", 3.0), ("grass", -0.1)):
        i = places().words.index(word)
        numbers[:, i] = places().floors[i] + over
    said = places().say(numbers)
    assert [word for word, _ in said] == ["water", "snow"] and all(0.5 < chance < 1 for _, chance in said)
    assert places().say(np.full((1, places().width), -50.0)) == []


def test_a_picture_that_fits_everything_fits_nothing():
    assert places().say(np.full((1, places().width), 30.0)) == []


@pytest.mark.parametrize("unlike, expected", [([], 1.0), ([3.0] * 10, 3.0)])
def test_a_floor_keeps_its_promises(unlike, expected):
    """Thirty hits from 1 up, misses below: the floor is where the hits begin, or where pictures unlike them end."""
    scores = np.concatenate([np.linspace(1, 9, 30), np.linspace(-9, 0.9, 50)])
    yes = np.arange(80) < 30
    found = floor_of(scores, yes, np.array(unlike), np.array([-1.0]))
    kept = scores >= found
    assert yes[kept].mean() >= 0.85 and (found >= expected if unlike else found <= expected)


def test_a_word_with_few_hits_is_never_said():
    assert floor_of(np.array([3.0, 1.0, 0.0]), np.array([True, False, False]), np.array([]), np.array([0.0])) == NEVER


def test_captions_and_classes_give_targets():
    words = list(WORDS)
    lines = ("A dog runs through snow.", "Snow on a field.", "A brown dog.")
    wanted = target(Picture("a", "flickr", "train", lines))
    assert wanted[words.index("snow")] == 1 and wanted[words.index("beach")] == 0 and wanted[words.index("field")] == -1
    oven = target(Picture("0651_train_microwave", "imagenet", "train", (), "microwave"))
    assert oven[words.index("beach")] == 0 and oven[words.index("kitchen")] == -1
