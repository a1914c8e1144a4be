"""Places, settings and actions: a small trained head on the frame tower's features.

The pooled feature and the nine cells of EfficientNet-Lite2 go through one shared layer; a word's score is its best
over the ten. `pipeline.training.places` trains it and fits each word's floor on pictures its head never saw.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.towers.frame_tower import FrameFeatures

NEVER = 1e4  # the floor of a word that is not to be said
# Past its floor by so much a word was right in .965 of 172 sayings on Flickr8k's dev and test pictures; of 31
# sayings on 954 held-out class pictures the class rules out two.
SURE = 1.0
# Said of an espresso, a cat's face, a galaxy or an office, which no threshold mends.
TOO_READY = {"man", "woman", "child", "hat", "playground", "playing basketball", "sitting", "jumping", "boat", "rocks"}
AT_ONCE = 4  # a picture past more floors than this is unlike all that was learnt: on average .6 are passed


class PlacesHead(nn.Module):
    """grid (F, 9, 1280) and pooled (F, 1280) -> logits (F, words)."""

    def __init__(self, words: int, width: int = 256, features: int = 1280):
        super().__init__()
        self.norm = nn.LayerNorm(features, elementwise_affine=False)
        self.hidden, self.word = nn.Linear(features, width), nn.Linear(width, words)
        self.drop = nn.Dropout(0.3)

    def forward(self, grid: Tensor, pooled: Tensor) -> Tensor:
        cells = torch.cat([pooled[:, None], grid], 1).float()
        hidden = nn.functional.gelu(self.hidden(self.drop(self.norm(cells))))
        return self.word(self.drop(hidden)).amax(1)


class Places:
    """words: what it can say; floors: logits from which each may be said; people: those that need a person."""

    name, cost_ms = "places", 1.0

    def __init__(self, head: PlacesHead, words: Sequence[str], floors: Sequence[float], people: Sequence[str]):
        self.head, self.words, self.people = head.eval(), tuple(words), frozenset(people)
        self.floors, self.width = np.maximum(floors, 0.0), len(words)  # less likely than not: not said

    @classmethod
    def load(cls, assets: Path) -> Places:
        """From `places.json` and `places.safetensors`. FileNotFoundError without them."""
        config = json.loads((assets / "places.json").read_text(encoding="utf-8"))
        head = PlacesHead(len(config["words"]))
        head.load_state_dict({k: w.float() for k, w in load_file(assets / "places.safetensors").items()})
        return cls(head.requires_grad_(False), config["words"], config["floors"], config["people"])

    @torch.no_grad()
    def see(self, frames: object, features: FrameFeatures) -> Tensor:
        """(F, words) float16 logits."""
        return self.head(features.grid, features.pooled).half()

    def sure(self, numbers: np.ndarray) -> list[str]:
        """Words to be said as facts: SURE past their floors, and none that was too ready on real clips."""
        least = 1 / (1 + np.exp(-SURE))
        return [word for word, certain in self.say(numbers) if certain >= least and word not in TOO_READY]

    def says(self, word: str) -> bool:
        """Whether it may ever say this word."""
        return word in self.words and self.floors[self.words.index(word)] < NEVER and word not in TOO_READY

    def say(self, numbers: np.ndarray) -> list[tuple[str, float]]:
        """Words past their floor, with how far past on a scale where .5 is the floor. numbers: (F, words)."""
        over = np.asarray(numbers, float).mean(0) - self.floors
        if (over >= 0).sum() > AT_ONCE:
            return []
        certain = 1 / (1 + np.exp(-over.clip(-30, 30)))
        return [(self.words[i], float(certain[i])) for i in np.argsort(-over) if over[i] >= 0]
