"""All senses together: what they keep of every frame, and what they say of some frames of one moment."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.senses.bodies import Bodies
from pipeline.senses.chosen import OF_PICTURES
from pipeline.senses.colours import Colours
from pipeline.senses.light import Light
from pipeline.senses.places import Places
from pipeline.towers.frame_tower import FrameFeatures

# Words of the places' head for what is done by whoever neither stands nor walks.
CARRIED = ("cycling", "riding", "skiing", "skateboarding", "surfing", "swimming", "climbing", "jumping")
Sensed = Mapping[str, np.ndarray]  # by a sense's name: (F, width) float16, a row a frame


class PictureSense(Protocol):
    """A sense of pictures; see the room's docstring."""

    name: str
    cost_ms: float
    width: int

    def see(self, frames: Sequence[np.ndarray], features: FrameFeatures) -> Tensor: ...


class Senses:
    """places, bodies: None where their weights are not there; then nothing is kept or said of them. wanted: names of
    the senses that keep and say something."""

    def __init__(
        self, places: Places | None = None, bodies: Bodies | None = None, wanted: Collection[str] = OF_PICTURES
    ):
        self.places, self.bodies = places if "places" in wanted else None, bodies if "bodies" in wanted else None
        self.colours, self.light = Colours(), Light()
        there: tuple[PictureSense | None, ...] = (self.places, self.bodies, self.colours, self.light)
        self._kept = [sense for sense in there if sense is not None and sense.name in wanted]

    @classmethod
    def load(cls, assets: Path, device: torch.device | str = "cpu", wanted: Collection[str] = OF_PICTURES) -> Senses:
        """With the networks of bodies on `device`; what reads the tower's features stays with them on the CPU."""
        places = "places" in wanted and (assets / "places.safetensors").is_file()
        bodies = "bodies" in wanted and (assets / "bodies.safetensors").is_file()
        return cls(Places.load(assets) if places else None, Bodies.load(assets, device) if bodies else None, wanted)

    @property
    def nets(self) -> list[nn.Module]:
        """What is trained of them."""
        own: list[nn.Module] = [] if self.places is None else [self.places.head]
        return own if self.bodies is None else [*own, *self.bodies.nets]

    @property
    def widths(self) -> dict[str, int]:
        """How many numbers a frame each sense keeps."""
        return {sense.name: sense.width for sense in self._kept}

    def see(self, frames: Sequence[np.ndarray], features: FrameFeatures) -> dict[str, Tensor]:
        """What is kept of these frames, by the sense's name: (F, width) float16. All on the CPU, the features too."""
        return {sense.name: sense.see(frames, features) for sense in self._kept}

    def placed(self, odds: Tensor) -> dict[str, Tensor]:
        """Others' shares of the places' words, as logits (F, words), in the place of the head's own numbers: a word
        that has half of the share is at its floor."""
        if self.places is None:
            return {}
        floors = torch.tensor(self.places.floors, dtype=odds.dtype).clamp(max=3e4)  # float16 ends at 65,504
        return {self.places.name: (odds + floors).half()}

    def held(self, sensed: Sensed, times: np.ndarray, starts: np.ndarray, posture: str) -> np.ndarray:
        """Frames in which somebody surely sits, stands, walks or bends, see `Bodies.held`."""
        if self.bodies is None or "bodies" not in sensed or posture not in self.bodies.words:
            return np.zeros(0, int)
        held = self.bodies.held(sensed["bodies"], times, starts)[posture]
        if posture == "sitting":  # a pose alone is right in seven of ten
            held &= self.placed_past("sitting", sensed, 0.0)
        else:  # who rides has the pose of one who stands
            for word in CARRIED:
                held &= ~self.placed_past(word, sensed)
        return np.flatnonzero(held)

    def placed_past(self, word: str, sensed: Sensed, floor: float | None = None) -> np.ndarray:
        """(F,) whether a word of the places' head is past a logit, its floor by default; nowhere without that head."""
        if self.places is None or "places" not in sensed or word not in self.places.words:
            return np.zeros(len(next(iter(sensed.values()))), bool)
        at = self.places.words.index(word)
        return sensed["places"][:, at].astype(np.float32) >= (self.places.floors[at] if floor is None else floor)

    def settings(self, sensed: Sensed, rows: Sequence[int]) -> list[str]:
        """Places, settings and actions of some frames, see `Places.sure`."""
        return self.places.sure(sensed["places"][list(rows)]) if self.places and "places" in sensed else []

    def alone(self, word: str) -> bool:
        """Whether a word of `settings` may be said where nobody is seen."""
        return self.places is None or word not in self.places.people

    def looks(self, sensed: Sensed, rows: Sequence[int]) -> list[tuple[str, float]]:
        """Light and dark, colour or black-and-white of some frames, see `Light.say`."""
        return self.light.say(sensed["light"][list(rows)]) if "light" in sensed else []
