"""All senses together: what they keep of every frame, and what they say of some frames of one moment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.senses.chosen import OF_PICTURES
from pipeline.senses.colours import Colours
from pipeline.senses.light import Light
from pipeline.senses.places import Places
from pipeline.towers.frame_tower import FrameFeatures

Sensed = Mapping[str, np.ndarray]  # by a sense's name: (F, width) float16, a row a frame


class PictureSense(Protocol):
    """A sense of pictures; see the room's docstring."""

    name: str
    cost_ms: float
    width: int

    def see(self, frames: Sequence[np.ndarray], features: FrameFeatures) -> Tensor: ...


class Senses:
    """places: None where its head is not there; then nothing is kept or said of places. wanted: names of the senses
    that keep and say something."""

    def __init__(self, places: Places | None = None, wanted: Collection[str] = OF_PICTURES):
        self.places, self.colours, self.light = places if "places" in wanted else None, Colours(), Light()
        there: tuple[PictureSense | None, ...] = (self.places, self.colours, self.light)
        self._kept = [sense for sense in there if sense is not None and sense.name in wanted]

    @classmethod
    def load(cls, assets: Path, device: torch.device | str = "cpu", wanted: Collection[str] = OF_PICTURES) -> Senses:
        """With the places' head on `device`, where the tower's features lie."""
        there = "places" in wanted and (assets / "places.safetensors").is_file()
        return cls(Places.load(assets, device) if there else None, wanted)

    @property
    def nets(self) -> list[nn.Module]:
        """What is trained of them."""
        return [] if self.places is None else [self.places.head]

    @property
    def widths(self) -> dict[str, int]:
        """How many numbers a frame each sense keeps."""
        return {sense.name: sense.width for sense in self._kept}

    def see(self, frames: Sequence[np.ndarray], features: FrameFeatures) -> dict[str, Tensor]:
        """What is kept of these frames, by the sense's name: (F, width) float16 on the CPU."""
        return {sense.name: sense.see(frames, features) for sense in self._kept}

    def settings(self, sensed: Sensed, rows: Sequence[int]) -> list[str]:
        """Places, settings and actions of some frames, see `Places.sure`."""
        return self.places.sure(sensed["places"][list(rows)]) if self.places and "places" in sensed else []

    def alone(self, word: str) -> bool:
        """Whether a word of `settings` may be said where nobody is seen."""
        return self.places is None or word not in self.places.people

    def looks(self, sensed: Sensed, rows: Sequence[int]) -> list[tuple[str, float]]:
        """Light and dark, colour or black-and-white of some frames, see `Light.say`."""
        return self.light.say(sensed["light"][list(rows)]) if "light" in sensed else []
