"""Colours of detected things, from the pixels of their boxes: shares of the eleven basic colour terms.

Terms after Berlin and Kay (1969); a pixel's term is read off its hue, saturation and value by fixed borders. Of a box
only the middle counts, where the thing covers most; of a person the chest, so that it is the clothes' colour. Where
it is depends on how much of the person the box holds: of a portrait it is the lower part.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.towers.frame_tower import FrameFeatures
from pipeline.towers.nanodet import KEPT

TERMS = ("black", "white", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
PERSON = 0  # of COCO's categories
MIDDLE = (0.2, 0.2, 0.8, 0.8)  # left, top, right, bottom as shares of a box
CHEST, PORTRAIT_CHEST = (0.3, 0.22, 0.7, 0.5), (0.05, 0.75, 0.95, 1.0)
STANDING = 1.5  # height by width from which a person's box holds more than head and shoulders
WHOLE, CENTRE = KEPT, KEPT + 1  # rows behind those of the detections
SAMPLED = 32  # pixels a side that are looked at
MOST, SECOND, BOTH = 0.45, 0.25, 0.65  # shares from which a term, a second one, two together are said


def terms(rgb: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) -> index into TERMS of every pixel, (h, w)."""
    hue, saturation, value = (c.astype(int) for c in cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)))
    hue = hue * 2
    pale, dim = saturation < 115, value < 115
    rules = (
        (value < 45, "black"),
        ((saturation < 40) & (value > 180), "white"),
        (saturation < 45, "grey"),
        ((saturation < 75) & (value < 75), "black"),
        ((hue < 12) | (hue >= 345), np.where(pale & (value > 150), TERMS.index("pink"), TERMS.index("red"))),
        (hue < 42, np.where(pale | (value < 170), TERMS.index("brown"), TERMS.index("orange"))),
        (hue < 68, np.where(dim, TERMS.index("brown"), TERMS.index("yellow"))),
        (hue < 165, "green"),
        (hue < 255, "blue"),
        (hue < 295, "purple"),
        (hue >= 295, np.where(dim, TERMS.index("purple"), TERMS.index("pink"))),
    )
    found = np.full(hue.shape, -1)
    for where, term in rules:
        index = TERMS.index(term) if isinstance(term, str) else term
        found = np.where((found < 0) & where, index, found)
    return found


def shares(rgb: np.ndarray) -> np.ndarray:
    """(11,) share of every term among the pixels of a picture; zeros for an empty one."""
    if not rgb.size:
        return np.zeros(len(TERMS))
    down, across = (max(1, n // SAMPLED) for n in rgb.shape[:2])
    found = terms(np.ascontiguousarray(rgb[::down, ::across]))
    return np.bincount(found.ravel(), minlength=len(TERMS)) / found.size


def inside(rgb: np.ndarray, box: Sequence[float], part: Sequence[float]) -> np.ndarray:
    """The pixels of a part of a box; both are left, top, right, bottom as shares."""
    high, wide = rgb.shape[:2]
    left, top, right, bottom = box
    xs = [round(wide * (left + (right - left) * part[i])) for i in (0, 2)]
    ys = [round(high * (top + (bottom - top) * part[i])) for i in (1, 3)]
    return rgb[ys[0] : ys[1], xs[0] : xs[1]]


def part_of(id: int, box: Sequence[float], rgb: np.ndarray) -> tuple[float, float, float, float]:
    """The part of a detection's box that counts."""
    if id != PERSON:
        return MIDDLE
    left, top, right, bottom = box
    high, wide = rgb.shape[:2]
    return CHEST if (bottom - top) * high >= STANDING * (right - left) * wide else PORTRAIT_CHEST


class Colours:
    """A row of shares for each of a frame's eight detections, in their order, for the whole frame and its middle."""

    name, cost_ms, width = "colours", 1.0, (KEPT + 2) * len(TERMS)

    def see(self, frames: Sequence[np.ndarray], features: FrameFeatures) -> Tensor:
        """(F, 110) float16."""
        rows = [self._frame(rgb, features, i) for i, rgb in enumerate(frames)]
        return torch.from_numpy(np.stack(rows)).half()

    def _frame(self, rgb: np.ndarray, features: FrameFeatures, i: int) -> np.ndarray:
        ids, boxes = features.det_ids[i].tolist(), features.det_boxes[i].tolist()
        found = [
            shares(inside(rgb, box, part_of(id, box, rgb))) if id >= 0 else np.zeros(len(TERMS))
            for id, box in zip(ids, boxes, strict=True)
        ]
        return np.concatenate([*found, shares(rgb), shares(inside(rgb, (0, 0, 1, 1), MIDDLE))])

    def say(self, numbers: np.ndarray, row: int = WHOLE) -> list[tuple[str, float]]:
        """Terms of a detection (its place among the eight), of the WHOLE frame or its CENTRE; numbers: (F, 110)."""
        return self.named(np.asarray(numbers, float).reshape(-1, KEPT + 2, len(TERMS))[:, row])

    def row(self, numbers: np.ndarray, row: int) -> np.ndarray:
        """(11,) shares of one row of one frame, (110,)."""
        return np.asarray(numbers, float).reshape(KEPT + 2, len(TERMS))[row]

    def named(self, found: np.ndarray) -> list[tuple[str, float]]:
        """Terms of shares (n, 11): one past MOST, or two that cover BOTH together, or none; best first.

        Beside one past MOST a second one is named where it has SECOND.
        """
        mean = found.mean(0)
        best = np.argsort(-mean)[:2]
        if mean[best[0]] < MOST and mean[best].sum() < BOTH:
            return []
        said = best if mean[best[1]] >= SECOND else best[:1]
        return [(TERMS[i], float(mean[i])) for i in said]
