"""Gemamba's eyes: VideoMamba (arXiv 2403.06977) looks at a closed clip and gives one token per frame.

All layers look both ways, so every token depends on the clip's last frame: a clip cannot be split in time, and clips
know nothing of each other. Stochastic depth, which the reference leaves on at inference by mistake, is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.layers.mamba1 import BidirectionalMamba1
from pipeline.layers.norms import RMSNorm
from pipeline.stream import Frame
from pipeline.towers.pixels import CLIP_MEAN, CLIP_STD, normalised, squashed_as_tensor

EPS = 1e-5  # of every norm


@dataclass(frozen=True)
class VideoMambaConfig:
    """Sizes; the defaults are the published "middle" encoder's."""

    width: int = 576
    depth: int = 32
    side: int = 224  # pixels
    patch: int = 16
    frames: int = 8  # of one clip

    @classmethod
    def from_dict(cls, c: dict[str, Any]) -> VideoMambaConfig:
        """From the reference's own constants, where a config holds them (the published one does not)."""
        ours = {"width": "embed_dim", "depth": "depth", "side": "img_size", "patch": "patch_size"}
        return cls(frames=c.get("num_frames", 8), **{name: c[theirs] for name, theirs in ours.items() if theirs in c})


class Layer(nn.Module):
    """Pre-norm residual mixer; the residual stream is in fp32 or better whatever the weights are in."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.mixer = RMSNorm(width, EPS), BidirectionalMamba1(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(_rms(x, self.norm)).to(x.dtype)


class Patches(nn.Module):
    """The published patch embedding, frame by frame."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        kernel = (1, patch, patch)
        self.proj = nn.Conv3d(3, width, kernel, kernel)


class VideoMamba(nn.Module):
    """Key names are the published ones; its `clip_decoder`, which nothing here reads, is left out."""

    def __init__(self, cfg: VideoMambaConfig):
        super().__init__()
        self.cfg = cfg
        self.patch_embed = Patches(cfg.width, cfg.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (cfg.side // cfg.patch) ** 2 + 1, cfg.width))
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, cfg.frames, cfg.width))
        self.layers = nn.ModuleList(Layer(cfg.width) for _ in range(cfg.depth))
        self.norm, self.pool_norm = RMSNorm(cfg.width, EPS), nn.LayerNorm(cfg.width, eps=EPS)

    def tokens(self, pixels_NCFHW: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """All tokens (N, 1 + frames * patches, D) of whole clips, class token first, after the last norm.

        hidden: if given, collects the residual stream before and after every layer.
        """
        x = self._embedded(pixels_NCFHW)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        for layer in [nn.Identity(), *self.layers]:
            x = layer(x)
            if hidden is not None:
                hidden.append(x)
        return _rms(x, self.norm)

    def _embedded(self, pixels_NCFHW: Tensor) -> Tensor:
        grid = self.patch_embed.proj(pixels_NCFHW).flatten(3).permute(0, 2, 3, 1)  # N frames patches D
        grid = grid + self.pos_embed[:, None, 1:] + self.temporal_pos_embedding[:, :, None]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(grid), -1, -1)
        return torch.cat([first, grid.flatten(1, 2)], dim=1)

    def pooled(self, tokens_NTD: Tensor) -> Tensor:
        """One vector per frame (N, frames, D): the class token plus the mean of the frame's patches, normalised."""
        first, grid = tokens_NTD[:, :1], tokens_NTD[:, 1:].unflatten(1, (self.cfg.frames, -1))
        return self.pool_norm(first + grid.mean(2))


def _rms(x: Tensor, norm: RMSNorm) -> Tensor:
    """The norm of a stream that is wider than the weights, in the weights' type."""
    return (F.rms_norm(x, x.shape[-1:], eps=norm.eps) * norm.weight.to(x.dtype)).to(norm.weight.dtype)


def clip_pixels(frames: Sequence[Frame], cfg: VideoMambaConfig, like: Tensor) -> Tensor:
    """(N, 3, frames, side, side) of whole clips."""
    pictures = [squashed_as_tensor(frame.rgb, cfg.side) for frame in frames]
    return normalised(pictures, CLIP_MEAN, CLIP_STD, like).unflatten(0, (-1, cfg.frames)).transpose(1, 2)
