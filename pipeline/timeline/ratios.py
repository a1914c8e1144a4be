"""How much likelier a picture is where a thing is in view than where it is not: log-likelihood ratios.

A logistic regression a kind weighs all that was found in a picture, so that a person whom the detector half sees counts
for more on a beach than beside a bird. Kinds with enough pictures to learn from have one (pipeline/training/ratios.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from pipeline.assets import ASSETS
from pipeline.questions.things import ANIMAL_CLASSES, Things
from pipeline.towers.frame_tower import FrameFeatures

STEPS = (0.001, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8)  # of how surely the thing is seen
KINDS = 80  # of the detector
MORE = 2  # of the thing, beside the surest
PLACES_SCALE, KEY_SCALE = 0.25, 3.0  # so that one penalty suits all numbers


class Found(NamedTuple):
    """What is known of F pictures. features: the towers' findings; surely: (F,) how surely the thing is seen, 0 to 1;
    places: (F, W) logits of the places' words; keys: (F, K) locate keys."""

    features: FrameFeatures
    surely: np.ndarray
    places: np.ndarray
    keys: np.ndarray


def numbers_of(things: Things, found: Found) -> np.ndarray:
    """(F, N) float32: what a regression weighs of each picture."""
    ids, scores = found.features.det_ids.numpy(), found.features.det_scores.numpy()
    own = np.isin(ids, things.coco)
    others = np.zeros((len(ids), KINDS))
    rows, columns = np.nonzero((ids >= 0) & (ids < KINDS) & ~own)
    np.maximum.at(others, (rows, ids[rows, columns]), scores[rows, columns])
    more = -np.sort(-scores * own, axis=1)[:, 1 : 1 + MORE]
    animal = (found.features.class_probs * (found.features.classes < ANIMAL_CLASSES)).sum(1).numpy()
    step = np.eye(len(STEPS) + 1)[np.digitize(found.surely, STEPS)]
    parts = (step, others, animal[:, None], more, found.places * PLACES_SCALE, found.keys * KEY_SCALE)
    return np.concatenate(parts, 1).astype(np.float32)


class Ratios:
    """weights: (N + 1,) of a kind's numbers, the constant last, by the COCO number of the kind."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights = {named: weight.astype(np.float64) for named, weight in weights.items()}

    @classmethod
    def load(cls, assets: Path = ASSETS) -> Ratios:
        """From `alerts.safetensors`; where it is missing no kind is known."""
        file = assets / "alerts.safetensors"
        return cls(load_file(file) if file.is_file() else {})

    def knows(self, things: Things) -> bool:
        return _kind(things) in self._weights

    def of(self, things: Things, found: Found) -> np.ndarray:
        """(F,) natural logarithms, above 0 where the thing is likelier there. KeyError for a kind it does not know."""
        weight = self._weights[_kind(things)]
        return numbers_of(things, found) @ weight[:-1] + weight[-1]


def _kind(things: Things) -> str:
    """Of one kind alone: what is a dog or a cat has no ratio."""
    return str(things.coco[0]) if len(things.coco) == 1 else ""
