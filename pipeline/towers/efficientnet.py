"""The frozen eyes of the embedded model: EfficientNet-Lite (1,000 ImageNet classes) and NanoDet-g (80 COCO classes).

Both only infer; their weights come from `assets/towers.safetensors` (written by `pipeline.training.pack`, batch norms
already folded into the convolutions). `FrameTower` runs both on a frame and returns `FrameFeatures`; `words` says
in plain words what they saw. Shapes: B frames, N detector cells, K detections kept.

Sources: EfficientNet-Lite, github.com/tensorflow/tpu (Apache-2.0), after arXiv 1905.11946; NanoDet-g,
github.com/RangiLyu/nanodet (Apache-2.0), whose boxes are distributions over distances (GFL, arXiv 2006.04388, eq. 6).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

ASSETS = Path(__file__).parents[2] / "assets"
KEPT = 8  # detections a frame
TOP = 5  # ImageNet classes a frame
REGIONS = 5  # whole frame, then the quarters: top left, top right, bottom left, bottom right
FLOOR = 0.3  # detections below this score are not kept; on real clips they were mostly wrong


class FrameFeatures(NamedTuple):
    """What the towers say about B frames. All float32 but `classes` and `det_ids` (int64).

    grid: (B, 9, 1280), 3x3 cells of the classifier's last map, row by row. pooled: (B, 1280), its mean over the frame.
    classes, class_probs: (B, 5), the likeliest ImageNet classes, best first.
    det: (B, 400) = 5 regions x 80 COCO classes, the best score of any box whose centre lies in the region.
    det_ids, det_scores: (B, 8) COCO classes after suppression, best first, -1 and 0 where there are fewer.
    det_boxes: (B, 8, 4), left, top, right, bottom as shares of the frame's width and height.
    """

    grid: Tensor
    pooled: Tensor
    classes: Tensor
    class_probs: Tensor
    det: Tensor
    det_ids: Tensor
    det_scores: Tensor
    det_boxes: Tensor


# ---------------------------------------------------------------- EfficientNet-Lite

# (blocks, channels) of the seven stages; kernels, strides and expansion are the same for all sizes.
LITE_STAGES = {
    0: ((1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320)),
    2: ((1, 16), (3, 24), (3, 48), (4, 88), (4, 120), (5, 208), (1, 352)),
}
LITE_KERNELS = (3, 3, 5, 3, 5, 5, 3)
LITE_STRIDES = (1, 2, 2, 2, 1, 2, 1)


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": at stride 2 the odd pixel of padding goes right and below."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(c_in, c_out, kernel, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        stride, kernel = self.stride[0], self.kernel_size[0]
        if stride > 1:
            high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
            x = F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        return super().forward(x)


class LiteBlock(nn.Module):
    """Inverted bottleneck without squeeze-and-excitation: widen, filter each channel, narrow, add."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = c_in * expand
        self.expand = SameConv(c_in, wide) if expand > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, c_out)
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        out = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return out.add_(x) if self.adds else out


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite 0 or 2. RGB 0..255, (B, 3, 224, 224) -> head map (B, 1280, 7, 7) and logits (B, 1000)."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        blocks, c_in = [], 32
        for stage, (count, c_out) in enumerate(LITE_STAGES[size]):
            for i in range(count):
                stride = LITE_STRIDES[stage] if i == 0 else 1
                blocks.append(LiteBlock(c_in, c_out, LITE_KERNELS[stage], stride, expand=6 if stage else 1))
                c_in = c_out
        self.blocks = nn.Sequential(*blocks)
        self.head = SameConv(c_in, 1280)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        x = ((rgb - 127.0) / 128.0).to(self.stem.weight.dtype)
        x = F.relu6(self.stem(x.contiguous(memory_format=torch.channels_last)), inplace=True)
        head = F.relu6(self.head(self.blocks(x)), inplace=True)
        return head, self.fc(head.mean((2, 3)))


# ---------------------------------------------------------------- NanoDet-g

BINS = 11  # a distance from the cell to a side of its box is a distribution over 0..10 strides
STRIDES = (8, 16, 32)
# In RGB order: the published network reads BGR, packing turns its first weights round.
RGB_MEAN_STD = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def leaky(x: Tensor) -> Tensor:
    """The detector's only activation."""
    return F.leaky_relu(x, 0.1, inplace=True)


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
        levels = self._mix(*found)
        return [p(leaky(t(x))) for t, p, x in zip(self.tower, self.predict, levels, strict=True)]

    @staticmethod
    def _mix(fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Path aggregation (arXiv 1803.01534) without convolutions: down from coarse to fine, then up again."""

        def like(x: Tensor, target: Tensor) -> Tensor:
            return F.interpolate(x, size=target.shape[-2:], mode="bilinear")

        middle = middle + like(coarse, middle)
        fine = fine + like(middle, fine)
        middle = middle + like(fine, middle)
        return fine, middle, coarse + like(middle, coarse)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        high, wide = rgb.shape[-2:]
        raw = torch.cat([level.flatten(2) for level in self.maps(rgb)], 2).float().transpose(1, 2)  # B, N, 124
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


# ---------------------------------------------------------------- from cells to detections


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


# ---------------------------------------------------------------- the tower


class FrameTower(nn.Module):
    """Both networks on whole frames. Frozen; results do not depend on how frames are batched.

    size: EfficientNet-Lite 0 or 2. side: pixels of the longer side of what the detector sees, a multiple of 32.
    """

    def __init__(self, size: int = 2, side: int = 416) -> None:
        super().__init__()
        self.classifier, self.detector, self.side = EfficientNetLite(size), NanoDet(), side
        self.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        path: Path = ASSETS / "towers.safetensors",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        side: int = 416,
    ) -> FrameTower:
        """The shipped weights (float16 in the file) as `dtype` on `device`. FileNotFoundError without the file."""
        weights = load_file(path)
        size = 0 if weights["classifier.head.weight"].shape[1] == LITE_STAGES[0][-1][1] else 2
        tower = cls(size, side)
        tower.load_state_dict(weights)
        return tower.to(device=device, dtype=dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def forward(self, frames: Tensor | Sequence[np.ndarray]) -> FrameFeatures:
        """frames: RGB 0..255 (B, height, width, 3), uint8 or float, or a sequence of B uint8 arrays of any sizes."""
        return FrameFeatures(*self.classify(frames), *self.detect(frames))

    @torch.no_grad()
    def classify(self, frames: Tensor | Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """grid, pooled, classes, class_probs of every frame, squashed to a square as the training pictures were."""
        head, logits = self.classifier(self._resized(frames, (224, 224)))
        head, probs = head.float(), logits.float().softmax(-1)
        class_probs, classes = probs.topk(TOP)
        grid = F.adaptive_avg_pool2d(head, 3).flatten(2).transpose(1, 2)
        return grid, head.mean((2, 3)), classes, class_probs

    @torch.no_grad()
    def detect(self, frames: Tensor | Sequence[np.ndarray]) -> list[Tensor]:
        """det, det_ids, det_scores, det_boxes of every frame. Frames of one shape are run together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, frame in enumerate(frames):
            groups.setdefault(canvas(*frame.shape[:2], self.side), []).append(i)
        parts = []
        for size, members in groups.items():
            some = frames if len(groups) == 1 else [frames[i] for i in members]
            scores, boxes = self.detector(self._resized(some, size))
            parts.append((by_region(scores, boxes), *suppress(scores, boxes)))
        order = torch.tensor([i for members in groups.values() for i in members]).argsort()
        return [torch.cat(column)[order.to(column[0].device)] for column in zip(*parts, strict=True)]

    def _resized(self, frames: Tensor | Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
        """Frames as float RGB 0..255 (B, 3, *size), shrunk with an antialiasing filter."""
        device = self.classifier.fc.weight.device
        if isinstance(frames, Tensor):
            return _resize(frames.to(device), size)
        return torch.cat([_resize(torch.tensor(frame, device=device)[None], size) for frame in frames])


def canvas(high: int, wide: int, side: int) -> tuple[int, int]:
    """What the detector sees of a frame: the longer side is `side`, both are multiples of 32, the shape roughly kept.

    Squashed to a square instead, it found the person in 5 of 24 wide frames; with its shape kept, in 18, and quicker.
    """
    longest = max(high, wide)
    return tuple(max(round(n * side / longest / 32), 2) * 32 for n in (high, wide))


def _resize(frames_BHWC: Tensor, size: tuple[int, int]) -> Tensor:
    """The same filter everywhere; on the CPU bytes are several times quicker than floats, CUDA knows floats only."""
    x = frames_BHWC.permute(0, 3, 1, 2)
    x = x.float() if x.is_cuda else x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True).float()


# ---------------------------------------------------------------- words


@cache
def labels() -> dict[str, list[str]]:
    """The words of both networks: "imagenet" (1,000) and "coco" (80), in the order of their class numbers."""
    return json.loads((ASSETS / "labels.json").read_text(encoding="utf-8"))


def place_of(box: Sequence[float]) -> str:
    """Where the middle of a box lies: "left", "centre" or "right" third of the frame."""
    middle = (box[0] + box[2]) / 2
    return "left" if middle < 1 / 3 else "right" if middle > 2 / 3 else "centre"


def words(features: FrameFeatures, i: int, seen: float = 0.35, sure: float = 0.35) -> list[tuple[str, float, str, int]]:
    """What frame i shows: (word, score 0..1, place or "", count), best first.

    Detections of at least `seen` are grouped by word, with the best one's score; the place is given if all share it.
    ImageNet classes of at least probability `sure` follow the same order, without place, unless already detected.
    """
    groups: dict[str, list[tuple[float, str]]] = {}
    found = zip(features.det_ids[i].tolist(), features.det_scores[i].tolist(), features.det_boxes[i].tolist())
    for id, score, box in found:
        if id >= 0 and score >= seen:
            groups.setdefault(labels()["coco"][id], []).append((score, place_of(box)))
    said = [(word, max(hits)[0], shared_place(hits), len(hits)) for word, hits in groups.items()]
    for id, prob in zip(features.classes[i].tolist(), features.class_probs[i].tolist()):
        word = labels()["imagenet"][id]
        if prob >= sure and word not in groups:
            said.append((word, prob, "", 1))
    return sorted(said, key=lambda entry: -entry[1])


def shared_place(hits: Sequence[tuple[float, str]]) -> str:
    """The place of all (score, place) hits, or "" if they are spread over the frame."""
    places = {place for _, place in hits}
    return places.pop() if len(places) == 1 else ""
