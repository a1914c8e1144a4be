"""The embedded model's network: frame tokens, Vamba's two columns, and the locator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.layers.norms import RMSNorm
from pipeline.layers.vamba import Vamba, VambaConfig
from pipeline.questions.locator import Locator
from pipeline.towers.frame_tower import FrameFeatures

TOKENS = 10  # a frame: nine places, then the whole frame last, so that causal mixers gather into it
FEATURES = 1280  # of a frame's pooled description by the tower
TIME_WAVES = 16  # sine and cosine of a frame's second at periods from 2 s to 2 h


class FrameTokens(nn.Module):
    """FrameFeatures of F frames and their seconds -> tokens (F, 10, D)."""

    def __init__(self, d_model: int, features: int = 1280):
        super().__init__()
        self.grid, self.pooled = nn.Linear(features, d_model), nn.Linear(features, d_model)
        self.det = nn.Linear(400, d_model, bias=False)
        self.classes = nn.Embedding(1000, d_model)
        self.time = nn.Linear(2 * TIME_WAVES, d_model, bias=False)
        self.place = nn.Parameter(torch.zeros(TOKENS, d_model))
        self.norm = RMSNorm(d_model, 1e-5)
        # As small as what the language model's projections are used to: with 1.0 its first answers are noise.
        nn.init.constant_(self.norm.weight, 0.3)

    def forward(self, features: FrameFeatures, seconds_F: Tensor) -> Tensor:
        kind = self.grid.weight.dtype
        named = (self.classes(features.classes) * features.class_probs[..., None].to(kind)).sum(-2)
        whole = self.pooled(features.pooled.to(kind)) + self.det(features.det.to(kind)) + named
        tokens = torch.cat([self.grid(features.grid.to(kind)), whole[:, None]], dim=1)
        return self.norm(tokens + self.place + self.time(time_waves(seconds_F).to(kind))[:, None])


def time_waves(seconds_F: Tensor) -> Tensor:
    """(F,) -> (F, 32), sines and cosines at periods spread geometrically from 2 s to 2 h (arXiv 1706.03762, 3.5)."""
    periods = torch.logspace(math.log10(2), math.log10(7200), TIME_WAVES, device=seconds_F.device)
    angles = seconds_F.float()[:, None] * (2 * math.pi / periods)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@dataclass(frozen=True)
class EmbeddedConfig:
    """The Vamba inside and how it locates. `calibration` is fitted on held-out pictures (training/evaluate.py)."""

    vamba: VambaConfig
    locate_layer: int  # text layers that run before the locator; the first cross-attention comes later
    locate_depth: int  # mixers below the mixed half of a frame's key
    cut: float  # novelty (1 - cosine of neighbouring frames' features) from which a new shot begins
    calibration: dict[str, Sequence[float]]  # per verdict (a, b, c): sigmoid(a * margin + b + c * ln shots)
    twin: bool = False

    @classmethod
    def from_dict(cls, c: dict[str, Any]) -> EmbeddedConfig:
        own = {k: c[k] for k in ("locate_layer", "locate_depth", "cut", "calibration", "twin") if k in c}
        return cls(vamba=VambaConfig.from_dict(c), **own)


class EmbeddedNet(nn.Module):
    """All trained parts: Vamba's two columns (the twin has no video column), the frame tokens and the locator."""

    def __init__(self, cfg: EmbeddedConfig):
        super().__init__()
        self.cfg = cfg
        self.vamba, self.frames = Vamba(cfg.vamba), FrameTokens(cfg.vamba.d_model)
        self.locator = Locator(cfg.vamba.d_model)


def novelty_of(pooled_FC: Tensor, before_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """(F,) one minus the cosine to the frame before (1 for a stream's first frame), and the newest frame's features."""
    first = pooled_FC[:1] if before_C is None else before_C[None]
    novelty = 1 - F.cosine_similarity(pooled_FC, torch.cat([first, pooled_FC[:-1]]), dim=-1)
    if before_C is None:
        novelty[0] = 1.0
    return novelty, pooled_FC[-1].clone()
