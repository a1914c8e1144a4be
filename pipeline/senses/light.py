"""Light and dark, colour or black-and-white, from a frame's pixels.

Black-and-white is told by how little the colours spread: sqrt(var(R - G) + var((R + G) / 2 - B)), as in Hasler and
Süsstrunk's colourfulness (2003). A tint over the whole picture (sepia) does not spread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.towers.frame_tower import FrameFeatures

STEP = 4  # every fourth pixel both ways is looked at
GREY, COLOURED = 4.0, 9.0  # spread (of 255) up to which a picture is black-and-white, and from which it is not
DARK, BRIGHT = 0.22, 0.6  # mean of R, G and B, 0..1
NIGHT = 0.04  # mean up to which a picture has no colours that could be told
BLACK, WHITE = 0.015, 0.985  # mean up to which, and from which, there is nothing in a picture


class Light:
    """Two numbers a frame: the mean of R, G and B in 0..1, and the spread of its colours in 0..255."""

    name, cost_ms, width = "light", 0.3, 2

    def see(self, frames: Sequence[np.ndarray], features: FrameFeatures | None = None) -> Tensor:
        """(F, 2) float16."""
        return torch.tensor([measures(rgb) for rgb in frames], dtype=torch.float16).reshape(-1, 2)

    def say(self, numbers: np.ndarray) -> list[tuple[str, float]]:
        """Says "black and white" or "in colour", "dark" or "bright", in between neither; "black" or "white" first where
        there is nothing else. numbers: (F, 2)."""
        mean, spread = np.median(np.asarray(numbers, float), axis=0)
        said = [("black" if mean <= BLACK else "white", 0.99)] if mean <= BLACK or mean >= WHITE else []
        if mean > NIGHT and (spread <= GREY or spread >= COLOURED):
            said.append(("black and white" if spread <= GREY else "in colour", 0.95))
        if mean <= DARK or mean >= BRIGHT:
            said.append(("dark" if mean <= DARK else "bright", 0.9))
        return said


def measures(rgb: np.ndarray) -> tuple[float, float]:
    """Mean (0..1) and spread of colours (0..255) of a picture, uint8 (h, w, 3)."""
    red, green, blue = (rgb[::STEP, ::STEP, i].astype(np.float32) for i in range(3))
    spread = np.sqrt((red - green).var() + ((red + green) / 2 - blue).var())
    return float((red + green + blue).mean() / 3 / 255), float(spread)
