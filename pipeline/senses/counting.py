"""How many came and went, from how many of a kind are detected in each frame; and the most at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.towers.frame_tower import FrameFeatures

SEEN = 0.4  # score from which a detection counts


class Traffic(NamedTuple):
    """there: how many at the start; came, went: entrances and exits since; most: the most at once.

    Somebody who comes twice counts twice, and two who change places within a second as one: `came` is about right.
    """

    there: int
    came: int
    went: int
    most: int


def counts(features: FrameFeatures, kinds: tuple[int, ...]) -> np.ndarray:
    """(F,) how many things of these COCO kinds are detected in each frame."""
    wanted = np.isin(features.det_ids.numpy(), kinds) & (features.det_scores.numpy() >= SEEN)
    return wanted.sum(1)


def traffic(seen: np.ndarray) -> Traffic:
    """Of counts in consecutive frames (F,), after a median over three, so that a miss of one frame is no exit."""
    if not len(seen):
        return Traffic(0, 0, 0, 0)
    padded = np.concatenate([seen[:1], seen, seen[-1:]])
    steady = np.median(np.stack([padded[:-2], padded[1:-1], padded[2:]]), axis=0).astype(int)
    steps = np.diff(steady)
    return Traffic(int(steady[0]), int(steps[steps > 0].sum()), int(-steps[steps < 0].sum()), int(steady.max()))
