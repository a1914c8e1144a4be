"""mmMamba's and HoVLE's eyes: there is no vision encoder, only patches, a pixel shuffle and two linear layers.

HoVLE's holistic embedding, arXiv 2412.16158; mmMamba keeps it, arXiv 2502.13145. One frame is one 448x448 tile and
becomes 256 tokens, which pass through all layers as words do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.stream import Frame
from pipeline.towers.pixels import IMAGENET_MEAN, IMAGENET_STD, normalised, squashed


class VisionEmbeddings(nn.Module):
    """Patches with learned positions, named as published; row 0 belongs to a class token that nobody reads."""

    def __init__(self, width: int, side: int, patch: int, channels: int = 3):
        super().__init__()
        self.patch_embedding = nn.Conv2d(channels, width, patch, patch)
        self.position_embedding = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """(N, rows * columns, D), row by row."""
        grid = self.patch_embedding(pixels_NCHW)
        return grid.flatten(2).transpose(1, 2) + self._positions(*grid.shape[2:])

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The learned grid, stretched for another picture (bicubic, not antialiased, in fp32: as published)."""
        grid = self.position_embedding[:, 1:]
        side = math.isqrt(grid.shape[1])
        if (rows, columns) == (side, side):
            return grid
        wide = grid.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        wide = F.interpolate(wide, (rows, columns), mode="bicubic", align_corners=False)
        return wide.flatten(2).transpose(1, 2).to(grid.dtype)


def pixel_shuffle(patches_NLD: Tensor) -> Tensor:
    """Each 2x2 block of a square grid of patches as one token of 4 D channels: (N, L / 4, 4 D), blocks row by row."""
    side = math.isqrt(patches_NLD.shape[1])
    blocks = patches_NLD.unflatten(1, (side // 2, 2, side // 2, 2)).transpose(2, 3)
    return blocks.flatten(3, 5).flatten(1, 2)


def tile_pixels(frames: Sequence[Frame], side: int, like: Tensor) -> Tensor:
    """(N, 3, side, side): each frame as one tile."""
    return normalised([squashed(frame.rgb, side) for frame in frames], IMAGENET_MEAN, IMAGENET_STD, like)
