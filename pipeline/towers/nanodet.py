"""NanoDet-g: which of 80 COCO classes a picture shows, and where. It only infers.

Source: github.com/RangiLyu/nanodet (Apache-2.0), whose boxes are distributions over distances (GFL, arXiv 2006.04388,
eq. 6). Batch norms are folded into the convolutions. Shapes: B frames, N cells, K detections kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T", Tensor, Any)  # of torch, or of a graph that is compiled
KEPT = 8  # detections a frame
REGIONS = 5  # whole frame, then the quarters: top left, top right, bottom left, bottom right
FLOOR = 0.3  # detections below this score are not kept; on real clips they were mostly wrong
BINS = 11  # a distance from the cell to a side of its box is a distribution over 0..10 strides
STRIDES = (8, 16, 32)
# In RGB order: the published network reads BGR, packing turns its first weights round.
RGB_MEAN_STD = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
LEAK = 0.1  # slope below zero of the detector's only activation


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, LEAK, inplace=True)


def conv3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution, padded by one pixel on every side."""
    return nn.Conv2d(c_in, c_out, 3, stride, 1)


class PairBlock(nn.Module):
    """Two convolutions of half the width, the second put before the first: (B, C, h, w) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = conv3(width, width // 2), conv3(width // 2, width // 2)

    def forward(self, x: Tensor) -> Tensor:
        first = leaky(self.first(x))
        return torch.cat((leaky(self.second(first)), first), 1)


class CspStage(nn.Module):
    """Cross-stage-partial stage: (B, C, h, w) -> (B, 2C, h/stride, w/stride)."""

    def __init__(self, width: int, blocks: int, stride: int) -> None:
        super().__init__()
        self.enter = conv3(width, width, stride)
        self.blocks = nn.Sequential(*(PairBlock(width) for _ in range(blocks)))
        self.leave = conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        entered = leaky(self.enter(x))
        return torch.cat((leaky(self.leave(self.blocks(entered))), entered), 1)


class NanoDet(nn.Module):
    """RGB 0..255, (B, 3, h, w), both multiples of 32 -> scores (B, N, 80), boxes (B, N, 4) as shares of w and h."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv3(3, 32, 2)
        stages = (CspStage(32, 1, 1), CspStage(64, 2, 2), CspStage(128, 2, 2), CspStage(256, 3, 2))
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(nn.Conv2d(c, 128, 1) for c in (128, 256, 512))
        self.tower = nn.ModuleList(conv3(128, 128) for _ in STRIDES)
        self.predict = nn.ModuleList(nn.Conv2d(128, 80 + 4 * BINS, 1) for _ in STRIDES)

    def maps(self, rgb: Tensor) -> list[Tensor]:
        """The raw predictions (B, 124, h, w) at strides 8, 16 and 32: 80 class logits, then 4 x 11 box logits."""
        mean, std = (rgb.new_tensor(row).view(3, 1, 1) for row in RGB_MEAN_STD)
        x = ((rgb - mean) / std).to(self.stem.weight.dtype)
        x = leaky(self.stem(x.contiguous(memory_format=torch.channels_last)))
        x = self.stages[0](F.max_pool2d(x, 3, 2, 1))
        found = []
        for stage, lateral in zip(self.stages[1:], self.lateral, strict=True):
            x = stage(x)
            found.append(lateral(x))
        fine, middle, coarse = found
        levels = self.mix(fine, middle, coarse, stretched)
        return [p(leaky(t(x))) for t, p, x in zip(self.tower, self.predict, levels, strict=True)]

    @staticmethod
    def mix(fine: T, middle: T, coarse: T, like: Callable[[T, T], T]) -> tuple[T, T, T]:
        """Path aggregation (arXiv 1803.01534) without convolutions: down from coarse to fine, then up again.

        like(x, y): x stretched to the size of y.
        """
        middle = middle + like(coarse, middle)
        fine = fine + like(middle, fine)
        middle = middle + like(fine, middle)
        return fine, middle, coarse + like(middle, coarse)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        return decoded(self.maps(rgb), *rgb.shape[-2:])


def stretched(x: Tensor, target: Tensor) -> Tensor:
    """x (B, C, h, w) in the size of `target`."""
    return F.interpolate(x, size=target.shape[-2:], mode="bilinear")


def decoded(maps: Sequence[Tensor], high: int, wide: int) -> tuple[Tensor, Tensor]:
    """What `NanoDet.maps` found in pictures of this size -> scores (B, N, 80), boxes (B, N, 4)."""
    raw = torch.cat([level.flatten(2) for level in maps], 2).float().transpose(1, 2)  # B, N, 124
    bins = torch.arange(BINS, device=raw.device, dtype=torch.float32)
    reach = raw[..., 80:].unflatten(-1, (4, BINS)).softmax(-1) @ bins  # left, top, right, bottom in strides
    centre, stride = cells(high, wide, raw.device)
    reach = reach * stride[:, None]
    boxes = torch.cat((centre - reach[..., :2], centre + reach[..., 2:]), -1)
    shares = boxes / torch.tensor([wide, high, wide, high], device=raw.device)
    return raw[..., :80].sigmoid(), shares.clamp(0, 1)


def cells(high: int, wide: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres (N, 2) in pixels and strides (N,) of every cell of the three maps, in the order of `NanoDet.maps`."""
    centres, strides = [], []
    for stride in STRIDES:
        down, across = ((torch.arange(n // stride, device=device) + 0.5) * stride for n in (high, wide))
        y, x = torch.meshgrid(down, across, indexing="ij")
        centres.append(torch.stack((x, y), -1).flatten(0, 1))
        strides.append(torch.full((x.numel(),), float(stride), device=device))
    return torch.cat(centres), torch.cat(strides)


# --- from cells to detections ----------------------------------------------------------------------------------------


def overlap(boxes: Tensor) -> Tensor:
    """Intersection over union of every pair: (B, K, 4) -> (B, K, K)."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return shared / (area[:, :, None] + area[:, None, :] - shared).clamp(min=1e-9)


def suppress(scores: Tensor, boxes: Tensor, most: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy non-maximum suppression of a whole batch at once, among each frame's `most` best candidates.

    A candidate goes if a better one of its class overlaps it by half, or one of any class covers nearly the same box
    (a bottle is not also a vase).

    scores (B, N, 80), boxes (B, N, 4) -> ids (B, 8), scores (B, 8), boxes (B, 8, 4); id -1 where nothing is left.
    The loop runs over candidates, never over frames, so that a GPU takes thousands of frames a second.
    """
    score, where = scores.flatten(1).topk(most)
    ids = where % scores.shape[-1]
    box = boxes.gather(1, (where // scores.shape[-1])[..., None].expand(-1, -1, 4))
    limit = torch.where(ids[:, :, None] == ids[:, None, :], 0.5, 0.8)
    rival = (overlap(box) > limit).triu(1)  # a candidate is only put out by a better one
    keep = score >= FLOOR
    for i in range(most):
        keep = keep & ~(rival[:, i] & keep[:, i : i + 1])
    kept, order = torch.where(keep, score, 0.0).topk(KEPT)
    ids = torch.where(kept > 0, ids.gather(1, order), -1)
    return ids, kept, box.gather(1, order[..., None].expand(-1, -1, 4)) * (kept > 0)[..., None]


def by_region(scores: Tensor, boxes: Tensor) -> Tensor:
    """The best score of each class in the whole frame and its quarters: (B, N, 80), (B, N, 4) -> (B, 5 * 80)."""
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    quarter = (centre[..., 0] >= 0.5).long() + 2 * (centre[..., 1] >= 0.5).long()  # B, N
    parts = [(scores * (quarter == q)[..., None]).amax(1) for q in range(REGIONS - 1)]
    return torch.cat((scores.amax(1), *parts), -1)
