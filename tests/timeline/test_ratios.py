"""What pictures say for a thing: of the kinds that were learnt alone, from an index as the shipped model makes it."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from safetensors import safe_open

from pipeline.assets import ASSETS
from pipeline.questions.things import named_things
from pipeline.timeline.indexed import IndexSpotter
from pipeline.timeline.ratios import Found, Ratios, numbers_of
from pipeline.timeline.rules import read_rule
from pipeline.towers.frame_tower import FrameFeatures
from tests.timeline.test_indexed import frame

PERSON, WORDS, KEY = named_things("person"), 64, 256


def found(features: FrameFeatures, surely: float) -> Found:
    return Found(features, np.array([surely]), np.zeros((1, WORDS), np.float32), np.zeros((1, KEY), np.float32))


@pytest.mark.parametrize(
    "rule, adds_up",
    [
        ("tell me when a person enters", True),
        ("tell me when my dog comes", True),
        ("tell me when a dog or a person comes", True),
        ("tell me when a cat comes", False),
        ("tell me when a cat or a dog comes", False),
        ("tell me when an animal comes", False),
        ("tell me when two persons come", False),
        ("tell me when everybody left", False),
    ],
)
def test_what_was_learnt_is_for_one_of_a_learnt_kind_that_comes(rule, adds_up):
    assert IndexSpotter(read_rule(rule), lambda state: state.inner, Ratios.load()).adds_up is adds_up
    assert not IndexSpotter(read_rule(rule), lambda state: state.inner, None).adds_up


def test_they_were_learnt_from_the_model_that_ships():
    """A run that is shipped has other locate keys: then learn them again (pipeline/training/ratios.py)."""
    with safe_open(ASSETS / "alerts.safetensors", "numpy") as file:
        of = file.metadata()["embedded.safetensors"]
    assert of == hashlib.sha256((ASSETS / "embedded.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("word", ["person", "dog"])
def test_a_picture_in_which_the_thing_is_surely_seen_says_more(word):
    things, ratios = named_things(word), Ratios.load()
    said = [ratios.of(things, found(frame([(word, sure)]), sure))[0] for sure in (0.0, 0.75)]
    assert said[0] + 1 < said[1]


def test_what_else_is_seen_counts():
    """A person who is half seen beside a dog: less than alone."""
    alone, beside = frame([("person", 0.47)]), frame([("person", 0.47), ("dog", 0.8)])
    said = [Ratios.load().of(PERSON, found(features, 0.47))[0] for features in (alone, beside)]
    assert said[1] < said[0]


def test_every_picture_is_weighed_by_itself():
    one, other = found(frame([("person", 0.9), ("dog", 0.4)]), 0.9), found(frame([("cat", 0.6)]), 0.0)
    features = FrameFeatures(*(joined(a, b) for a, b in zip(one.features, other.features)))
    both = Found(features, *(np.concatenate(pair) for pair in zip(one[1:], other[1:])))
    assert np.array_equal(numbers_of(PERSON, both)[1:], numbers_of(PERSON, other))
    assert np.array_equal(numbers_of(PERSON, both)[:1], numbers_of(PERSON, one))


def joined(a, b):
    return a if not a.numel() else a.new_tensor(np.concatenate([a.numpy(), b.numpy()]))


def test_where_the_file_is_missing_no_kind_is_known(tmp_path):
    assert not Ratios.load(tmp_path).knows(PERSON)
