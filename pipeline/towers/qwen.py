"""Qwen2-VL's eyes, as every published system here uses them: frames in, visual tokens out.

Frames are encoded in pairs (temporal patch 2). Attention never crosses a pair (the published `cu_seqlens` hold one
window per pair), so pairs are independent, equal-sized ones are batched, and any grouping gives the same tokens. The
weights' module is transformers' `Qwen2VisionTransformerPretrainedModel`; only the walk through it is ours, because
transformers loops over the pairs in Python when flash-attention is missing (thousands of loops for an hour).

Letters here: N pairs, L patches of one pair, E tower width, and the key of pipeline/stream.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import QuickGELUActivation
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    Qwen2VLVisionBlock,
    VisionAttention,
    VisionMlp,
)

from pipeline.gpu.device import sent
from pipeline.gpu.dispatch import kernels_for
from pipeline.layers.fp8 import Rows, added_and_normed, normed, through_gelu
from pipeline.stream import Frame
from pipeline.towers.qwen_graphs import TowerRecordings
from pipeline.towers.seen import Seen

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's CLIP, which Qwen2-VL's image processor keeps
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ROTARY_BASE = 10_000.0  # of the tower's 2-D rotary positions
# 22 pairs of 644x364; the widest activation is then 269 MB in bf16. A call is some 450 launches, 18 to 40 ms of a
# processor: with three calls for 64 frames a slow one could not keep up (145 ms, where the GPU needs 121). An H100 is
# at its best with this many, by 1 to 2 % against 8 or 16: few multiprocessors are idle in a product's last round.
PATCHES_PER_CALL = 26_500
_ARCHITECTURE = ("depth", "embed_dim", "hidden_size", "hidden_act", "mlp_ratio", "num_heads", "in_channels")
_PATCHING = ("patch_size", "spatial_merge_size", "temporal_patch_size")


def build_tower(vision_config: dict[str, Any]) -> Qwen2VisionTransformerPretrainedModel:
    """The tower a checkpoint's `vision_config` describes, with untrained weights; its keys are those under `visual.`.

    Only the fields that shape the network are read: published configs are full of other, version-bound ones.
    """
    known = {key: vision_config[key] for key in _ARCHITECTURE + _PATCHING if vision_config.get(key) is not None}
    if "in_chans" in vision_config:  # Qwen2-VL-7B's config.json spells it so
        known.setdefault("in_channels", vision_config["in_chans"])
    tower = Qwen2VisionTransformerPretrainedModel._from_config(Qwen2VLVisionConfig(**known))
    # `_rotation` below computes the angles; the module's own tables would stay empty after a meta-device build.
    tower.rotary_pos_emb = nn.Identity()
    return tower.eval()


def as_tower(visual: nn.Module | None) -> Qwen2VisionTransformerPretrainedModel:
    """What a network of `build_tower`'s holds as its `visual`."""
    assert isinstance(visual, Qwen2VisionTransformerPretrainedModel)
    return visual


def published_key(key: str) -> str:
    """Qwen2-VL's keys as transformers 5 saves them, under the names they were published with."""
    return re.sub(r"^model\.(visual\.|language_model\.)", lambda m: "visual." if "visual" in m[1] else "model.", key)


@torch.no_grad()
def encode_pairs(
    tower: Qwen2VisionTransformerPretrainedModel, patches: torch.Tensor, grid_thw: torch.Tensor
) -> torch.Tensor:
    """Visual tokens (T, d) of patches (sum of t*h*w, C*2*14*14) laid out as Qwen2-VL's image processor lays them out.

    grid_thw: (videos, 3) patch counts per video: pairs, rows, columns; rows and columns are multiples of the merge
    size. Memory is bounded: PATCHES_PER_CALL patches at a time, whole pairs. Raises ValueError where the grid and the
    patches disagree.
    """
    grid = [tuple(int(n) for n in row) for row in grid_thw.tolist()]
    if sum(t * h * w for t, h, w in grid) != len(patches):
        raise ValueError(f"the grid {grid} does not count {len(patches)} patches")
    tokens, start = [], 0
    for t, h, w in grid:
        pairs_NLC = patches[start : start + t * h * w].reshape(t, h * w, -1)
        start += t * h * w
        for group in pairs_NLC.split(max(1, PATCHES_PER_CALL // (h * w))):
            tokens.append(_encode_equal(tower, group, h, w))
    return torch.cat(tokens)


def places_of(grid: Sequence[tuple[int, int, int]], merge: int) -> torch.Tensor:
    """(3, T): pair, row and column of every token; each video starts at 0."""
    places = []
    for t, h, w in grid:
        axes = torch.meshgrid(torch.arange(t), torch.arange(h // merge), torch.arange(w // merge), indexing="ij")
        places.append(torch.stack([axis.flatten() for axis in axes]))
    return torch.cat(places, dim=1)


def _encode_equal(tower: Qwen2VisionTransformerPretrainedModel, pairs_NLC: torch.Tensor, h: int, w: int):
    """Tokens (N * L / merge^2, d) of N pairs of one size (the tower of arXiv 2409.12191, section 2.1)."""
    proj = tower.patch_embed.proj.weight
    # A convolution whose stride is its kernel is one matrix product, and the patches already lie in its order.
    x_NLE = F.linear(pairs_NLC.to(proj.device, proj.dtype), proj.flatten(1))
    blocks = cast(Sequence[Qwen2VLVisionBlock], tower.blocks)
    turn = _rotation(h, w, tower.spatial_merge_size, blocks[0].attn.head_dim, proj.device)
    more = None  # what the last half block adds
    for block in blocks:
        x_NLE, taken = _add_norm(x_NLE, more, block.norm1, block.attn.qkv)
        x_NLE, taken = _add_norm(x_NLE, _attend(block.attn, taken, turn), block.norm2, block.mlp.fc1)
        more = _mlp(block.mlp, taken, block.norm2)
    return tower.merger(x_NLE if more is None else x_NLE + more)


def _add_norm(
    x_NLE: torch.Tensor, more: torch.Tensor | None, norm: nn.LayerNorm, linear: nn.Module
) -> tuple[torch.Tensor, torch.Tensor | Rows]:
    """The sum and its norm, as `linear` takes it: two launches were a tenth of the tower's time, all of it memory's."""
    return (x_NLE, normed(norm, x_NLE, linear)) if more is None else added_and_normed(x_NLE, more, norm, linear)


def _attend(attn: VisionAttention, x_NLE: torch.Tensor | Rows, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Full attention inside each pair."""
    qkv_NHLP = attn.qkv(x_NLE).unflatten(-1, (3 * attn.num_heads, -1)).transpose(1, 2)
    q_and_k, v = qkv_NHLP.split([2 * attn.num_heads, attn.num_heads], dim=1)
    q, k = _rotate(q_and_k, *turn).chunk(2, dim=1)
    out_NHLP = F.scaled_dot_product_attention(q, k, v)
    return attn.proj(out_NHLP.transpose(1, 2).flatten(2))


def _mlp(mlp: VisionMlp, x_NLE: torch.Tensor | Rows, norm: nn.LayerNorm) -> torch.Tensor:
    """norm: what x came out of. On a GPU torch's quick GELU, three passes over the tower's widest tensor, was a seventh
    of the tower's time."""
    if not isinstance(mlp.act, QuickGELUActivation):
        return mlp.fc2(mlp.act(mlp.fc1(x_NLE)))
    if isinstance(x_NLE, Rows):
        return mlp.fc2(through_gelu(mlp.fc1, x_NLE, norm))
    inner = mlp.fc1(x_NLE)
    kernels = kernels_for(inner)
    return mlp.fc2(kernels.quick_gelu(inner) if kernels else mlp.act(inner))


def _rotation(h: int, w: int, merge: int, head_dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (L, head_dim / 2) of each patch's row and column, in the patches' window-by-window order."""
    rows = torch.arange(h, device=device).view(h // merge, 1, merge, 1).expand(-1, w // merge, -1, merge)
    columns = torch.arange(w, device=device).view(1, w // merge, 1, merge).expand(h // merge, -1, merge, -1)
    quarter = torch.arange(0, head_dim // 2, 2, device=device, dtype=torch.float32)
    frequencies = 1.0 / ROTARY_BASE ** (quarter / (head_dim // 2))
    angles = torch.cat([rows.reshape(-1, 1) * frequencies, columns.reshape(-1, 1) * frequencies], dim=-1)
    return angles.cos(), angles.sin()


def _rotate(x_NHLP: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions over the whole head, halves paired; at least in fp32, as published, then back.

    By torch this was a third of the tower's time on a GPU: eight passes over queries and keys, most of them in fp32.
    """
    if kernels := kernels_for(x_NHLP):
        return kernels.rotate(x_NHLP, cos, sin)
    a, b = x_NHLP.to(torch.promote_types(x_NHLP.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x_NHLP.dtype)


def resize(frames_FCHW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Frames of whole levels 0..255 (fp32) at another size: the Pillow bicubic of the published image processors.

    torch's antialiased bicubic has Pillow's kernel (a = -0.5), and like Pillow we resize columns first and round to
    whole levels after each direction; rounding once instead differed from it in 20 % of the values, this way in 0.04 %
    (by 1 level of 255, seldom by 2).
    """
    for size in ((frames_FCHW.shape[-2], width), (height, width)):
        if size != tuple(frames_FCHW.shape[-2:]):
            frames_FCHW = F.interpolate(frames_FCHW, size, mode="bicubic", antialias=True)
            frames_FCHW = frames_FCHW.add_(0.5).floor_().clamp_(0, 255)
    return frames_FCHW


@dataclass(frozen=True)
class Patching:
    """How frames become patches: sizes in pixels, budgets in pixels of one frame (Qwen2-VL's image processor)."""

    patch: int = 14
    merge: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280

    @property
    def unit(self) -> int:
        """Pixels of a token's side."""
        return self.patch * self.merge

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width the tower sees: the nearest multiples of a token's side within the pixel budget.

        640x360 becomes 644x364. Unlike the published function it accepts any shape: a sliver is stretched, not refused.
        """
        unit = self.unit
        tall, wide = round(height / unit) * unit, round(width / unit) * unit
        if tall * wide > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            tall, wide = (max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))
        elif tall * wide < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            tall, wide = (math.ceil(side * grow / unit) * unit for side in (height, width))
        return tall, wide

    def patches(
        self, rgb_FHWC: torch.Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Patches (t*h*w, C*2*patch*patch) and their grid (t, h, w), of an even number of equal uint8 frames.

        Resized on the frames' own device, so that only uint8 pixels travel.
        """
        height, width = self.size(*rgb_FHWC.shape[1:3])
        mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
        # (level / 255 - mean) / std in one pass, rounded to `dtype` before the patches are laid out and not after
        levels = sent(torch.stack([-mean / std, 1 / (255 * std)]), rgb_FHWC.device)
        t, h, w, m, p = len(rgb_FHWC) // 2, height // self.patch, width // self.patch, self.merge, self.patch
        if kernels := kernels_for(rgb_FHWC):
            return kernels.patches(rgb_FHWC, height, width, p, m, levels, dtype), (t, h, w)
        frames_FCHW = resize(rgb_FHWC.permute(0, 3, 1, 2).float(), height, width)
        shift, scale = levels.view(2, 3, 1, 1)
        frames_FCHW = torch.addcmul(shift, frames_FCHW, scale).to(dtype)
        windows = frames_FCHW.view(t, 2, 3, h // m, m, p, w // m, m, p)
        # pair, window row, window column, row and column in the window, colour, frame of the pair, pixel row and column
        return windows.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * h * w, 3 * 2 * p * p), (t, h, w)


class QwenVision:
    """The vision room's face for a model: whole pairs of frames in, tokens and their seconds out.

    unit_frames: 2. long_side: pixels of a frame's longer side worth sending (Vamba's published demo clamps to 640).
    """

    unit_frames = 2

    def __init__(self, tower: Qwen2VisionTransformerPretrainedModel, patching: Patching | None = None, long_side=640):
        self.tower = tower
        self.patching = patching or Patching(**_sides(tower))
        self.long_side = long_side
        weight = tower.patch_embed.proj.weight
        self._live = TowerRecordings(lambda pairs, h, w: _encode_equal(tower, pairs, h, w), weight.device)

    @classmethod
    def of_checkpoint(cls, tower: Qwen2VisionTransformerPretrainedModel, folder: Path) -> QwenVision:
        """With the checkpoint's own pixel budget, where preprocessor_config.json gives one."""
        sizes = _sides(tower)
        try:
            given = json.loads((folder / "preprocessor_config.json").read_text())
            sizes |= {key: int(given[key]) for key in ("min_pixels", "max_pixels") if given.get(key)}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            pass  # the published defaults hold
        return cls(tower, Patching(**sizes))

    @torch.no_grad()
    def tokens(self, frames: Sequence[Frame]) -> Seen:
        """Tokens (1, T, d) in order of time, the second (T,) of each, and its place (3, T): pair, row, column, from 0.

        frames: whole pairs; ValueError otherwise. A token's second is its pair's first frame's. A pair's second frame
        takes the first one's size; sizes may change between pairs.
        """
        if not frames or len(frames) % 2:
            raise ValueError(f"the tower encodes pairs of frames, not {len(frames)} frames")
        tokens, times, places, done = [], [], [], 0
        pairs = zip(frames[::2], frames[1::2])
        for shape, group in groupby(pairs, key=lambda pair: pair[0].rgb.shape[:2]):
            alike = list(group)
            rows, columns = (side // self.patching.unit for side in self.patching.size(*shape))
            most = max(1, PATCHES_PER_CALL // (rows * columns * self.patching.merge**2))
            # The rest goes first: a GPU that is idle begins as soon as these few pictures are gathered.
            bounds = [0, *range(len(alike) % most or most, len(alike) + 1, most)]
            tokens += [self._encode(alike[start:stop]) for start, stop in pairwise(bounds)]
            seconds = torch.tensor([first.time for first, _ in alike], dtype=torch.float64)
            times.append(seconds.repeat_interleave(rows * columns))
            axes = torch.arange(done, done + len(alike)), torch.arange(rows), torch.arange(columns)
            places.append(torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")]))
            done += len(alike)
        all_tokens = torch.cat(tokens)
        return Seen(all_tokens[None], torch.cat(times), sent(torch.cat(places, dim=1), all_tokens.device))

    def _encode(self, pairs: list[tuple[Frame, Frame]]) -> torch.Tensor:
        """Tokens (T, d) of equal-sized pairs. Pixels travel to the device as uint8: a quarter of fp32's bytes.

        Gathered in page-locked memory, so that a GPU fetches them when it comes to it and nobody waits.
        """
        weight = self.tower.patch_embed.proj.weight
        pictures = [picture for a, b in pairs for picture in (a.rgb, _like(b.rgb, a.rgb))]
        rgb_FHWC = torch.empty(len(pictures), *pictures[0].shape, dtype=torch.uint8, pin_memory=weight.is_cuda)
        np.stack(pictures, out=rgb_FHWC.numpy())
        patches, (N, h, w) = self.patching.patches(sent(rgb_FHWC, weight.device), weight.dtype)
        return self._live.encode(patches.view(N, h * w, -1), h, w)


def _sides(tower: Qwen2VisionTransformerPretrainedModel) -> dict[str, int]:
    """Of a patch in pixels, and of a token in patches; named as in `Patching`."""
    patch = tower.config.patch_size
    assert isinstance(patch, int)  # transformers' configs may hold two numbers, Qwen2-VL's patches are square
    return {"patch": patch, "merge": tower.spatial_merge_size}


def _like(rgb: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The picture at another's size: a camera may turn between the two frames of a pair."""
    if rgb.shape == other.shape:
        return rgb
    frame_1CHW = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].float()
    return resize(frame_1CHW, *other.shape[:2])[0].permute(1, 2, 0).byte().numpy()
