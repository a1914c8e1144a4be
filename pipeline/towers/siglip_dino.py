"""ML-Mamba's eyes: DINOv2 with registers and SigLIP look at the same picture, their patch features side by side.

Key names are timm's, whose files hold the published weights. Taken from the last block but one, without the final
norm; class and register tokens are dropped. The networks take their sizes from the weights, as no config holds them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.stream import Frame
from pipeline.towers.pixels import HALF, IMAGENET_MEAN, IMAGENET_STD, normalised, squashed

Shapes = dict[str, tuple[int, ...]]
NEVER_READ = r"(norm|attn_pool|fc_norm|head)\."  # of a tower's file, besides its last block


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of one tower. `side`: pixels of the squashed picture; `table`: rows and columns of its stored positions."""

    width: int
    depth: int  # blocks, the last of which nothing reads
    heads: int
    hidden: int
    patch: int
    table: int
    prefix: int  # class and register tokens, 0 without
    scaled: bool  # LayerScale

    @classmethod
    def from_shapes(cls, shapes: Shapes, heads: int) -> ViTConfig:
        """From the shapes of a timm file's tensors, keys without the tower's name."""
        blocks = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("blocks."))
        width, _, patch, _ = shapes["patch_embed.proj.weight"]
        registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
        return cls(
            width=width,
            depth=blocks,
            heads=heads,
            hidden=shapes["blocks.0.mlp.fc1.weight"][0],
            patch=patch,
            table=math.isqrt(shapes["pos_embed"][1]),
            prefix=registers + ("cls_token" in shapes),
            scaled="blocks.0.ls1.gamma" in shapes,
        )


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class SelfAttention(nn.Module):
    """Full attention among all tokens of a picture."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x_NLD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_NLD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block (ViT, arXiv 2010.11929), with LayerScale in DINOv2."""

    def __init__(self, cfg: ViTConfig):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(cfg.width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = SelfAttention(cfg.width, cfg.heads), MLP(cfg.width, cfg.hidden)
        self.ls1, self.ls2 = (LayerScale(cfg.width) if cfg.scaled else nn.Identity() for _ in range(2))

    def forward(self, x_NLD: Tensor) -> Tensor:
        x_NLD = x_NLD + self.ls1(self.attn(self.norm1(x_NLD)))
        return x_NLD + self.ls2(self.mlp(self.norm2(x_NLD)))


class Patches(nn.Module):
    """timm's patch embedding."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)


class ViT(nn.Module):
    """One tower up to its last block but one."""

    def __init__(self, cfg: ViTConfig):
        super().__init__()
        self.cfg = cfg
        self.patch_embed = Patches(cfg.width, cfg.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, cfg.table**2, cfg.width))
        if cfg.prefix:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, cfg.width))
            self.reg_token = nn.Parameter(torch.zeros(1, cfg.prefix - 1, cfg.width))
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.depth))

    def forward(self, pixels_NCHW: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """Patch features (N, L, D), row by row, after the last block but one.

        hidden: if given, collects all tokens before and after every block, the last one's too where it is there.
        """
        grid = self.patch_embed.proj(pixels_NCHW)
        x = grid.flatten(2).transpose(1, 2) + self.positions(*grid.shape[2:])
        if self.cfg.prefix:
            x = torch.cat([torch.cat([self.cls_token, self.reg_token], dim=1).expand(len(x), -1, -1), x], dim=1)
        *blocks, last = self.blocks
        for block in [nn.Identity(), *blocks]:
            x = block(x)
            if hidden is not None:
                hidden.append(x)
        if hidden is not None and last is not None:
            hidden.append(last(x))
        return x[:, self.cfg.prefix :]

    def positions(self, rows: int, columns: int) -> Tensor:
        """The stored positions at this grid (antialiased bicubic, in fp32 as published), for patches only."""
        side, table = self.cfg.table, self.pos_embed
        if (rows, columns) == (side, side):
            return table
        wide = table.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        wide = F.interpolate(wide, (rows, columns), mode="bicubic", antialias=True)
        return wide.flatten(2).transpose(1, 2).to(table.dtype)


def tower_pixels(frames: Sequence[Frame], side: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """What DINOv2 and what SigLIP is shown of each frame, both (N, 3, side, side)."""
    pictures = [squashed(frame.rgb, side) for frame in frames]
    return normalised(pictures, IMAGENET_MEAN, IMAGENET_STD, like), normalised(pictures, HALF, HALF, like)
