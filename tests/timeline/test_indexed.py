"""How surely a rule's thing is in a picture: the detector's word, the classifier's, and no dog that is a cow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.questions.things import named_things
from pipeline.timeline.alerts import CLEAR, LASTS, SURE
from pipeline.timeline.indexed import calibrated, no_more_than_doubts, scores_of, seen_surely
from pipeline.towers.frame_tower import FrameFeatures, labels

COCO = {word: number for number, word in enumerate(labels()["coco"])}
RETRIEVER, OX, VASE = 207, 345, 883


def frame(detected: list[tuple[str, float]], named: tuple[int, float] = (VASE, 0.0)) -> FrameFeatures:
    """What the towers say of one picture: things with scores, and a class with its probability."""
    ids, scores = torch.full((1, 8), -1), torch.zeros(1, 8)
    for i, (word, score) in enumerate(detected):
        ids[0, i], scores[0, i] = COCO[word], score
    classes, probs = torch.full((1, 5), VASE), torch.zeros(1, 5)
    classes[0, 0], probs[0, 0] = named
    blank = torch.zeros(0)
    return FrameFeatures(blank, blank, classes, probs, blank, ids, scores, torch.zeros(1, 8, 4))


@pytest.mark.parametrize(
    "word, number, features, score",
    [
        ("person", 1, frame([("person", 0.7)]), 0.7),
        ("person", 1, frame([("dog", 0.7)]), 0.0),
        ("person", 2, frame([("person", 0.9), ("dog", 0.8), ("person", 0.6)]), 0.6),
        ("person", 3, frame([("person", 0.9), ("person", 0.6)]), 0.0),
        ("dog", 1, frame([], (RETRIEVER, 0.8)), 0.8),
        ("cow", 1, frame([("cow", 0.8)], (RETRIEVER, 0.9)), 0.1),
        ("cow", 1, frame([("cow", 0.8)], (OX, 0.9)), 0.9),
        ("cow", 1, frame([("cow", 0.8)], (VASE, 0.9)), 0.8),
        ("dog", 2, frame([("dog", 0.8), ("dog", 0.7)], (RETRIEVER, 0.9)), 0.7),
        ("animal", 1, frame([("cow", 0.8)], (RETRIEVER, 0.9)), 0.9),
        ("car", 1, frame([("car", 0.6)], (RETRIEVER, 0.9)), 0.6),
    ],
)
def test_how_surely_a_thing_is_seen(word, number, features, score):
    assert seen_surely(named_things(word), number, features)[0] == pytest.approx(score, abs=1e-6)


def test_of_what_was_never_measured_a_lasting_doubt_is_none():
    """A white table was told as a chair each time somebody left it."""
    scores = np.array([0.0, 0.29, 0.3, 0.45, 0.599, 0.6, 0.9])
    pressed = no_more_than_doubts(scores)
    assert (pressed[[0, 1, 5, 6]] == scores[[0, 1, 5, 6]]).all() and (np.diff(pressed) > 0).all()
    assert pressed[2] == CLEAR and pressed[4] < LASTS


def test_a_kind_that_is_named_too_readily_needs_more():
    """Of a bird .8 is not sure, of a dog it is. Nothing changes its order, and nothing and all stay what they are."""
    scores = np.array([0.0, 0.2, 0.5, 0.8, 0.85, 0.9, 1.0])
    on_scale = calibrated(scores, 0.85)
    assert (
        on_scale[4] == pytest.approx(SURE) and (np.diff(on_scale) > 0).all() and on_scale[0] == 0 and on_scale[-1] == 1
    )
    assert calibrated(scores, SURE) == pytest.approx(scores)
    bird, dog = (scores_of(named_things(word), 1, frame([(word, 0.8)]))[0] for word in ("bird", "dog"))
    assert bird < SURE <= dog <= scores_of(named_things("animal"), 1, frame([("dog", 0.8)]))[0]
