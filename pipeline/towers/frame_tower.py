"""The frozen eyes of the embedded model: EfficientNet-Lite and NanoDet-g on whole frames, and what they saw in words.

Their weights come from `assets/towers.safetensors` (written by `pipeline.training.pack`). `FrameTower` runs both on a
frame and returns `FrameFeatures`; `things_shown` says in plain words what they saw. B: frames.
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

from pipeline.assets import ASSETS
from pipeline.towers.compiled import CompiledTower, installed
from pipeline.towers.efficientnet import LITE_STAGES, EfficientNetLite
from pipeline.towers.nanodet import NanoDet, by_region, decoded, suppress

TOP = 5  # ImageNet classes a frame


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

    def cpu(self) -> FrameFeatures:
        return FrameFeatures(*(column.cpu() for column in self))


class FrameTower(nn.Module):
    """Both networks on whole frames. Frozen; results do not depend on how frames are batched.

    size: EfficientNet-Lite 0 or 2. side: pixels of the longer side of what the detector sees, a multiple of 32.
    """

    def __init__(self, size: int = 2, side: int = 416) -> None:
        super().__init__()
        self.classifier, self.detector, self.side = EfficientNetLite(size), NanoDet(), side
        self.compiled: CompiledTower | None = None  # for bytes on a CPU; without it torch runs both networks
        self.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        path: Path = ASSETS / "towers.safetensors",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        side: int = 416,
    ) -> FrameTower:
        """The shipped weights (float16 in the file) as `dtype` on `device`. FileNotFoundError without the file.

        For fp32 on a CPU they are compiled where OpenVINO is installed: found is the same within fp32's rounding.
        """
        weights = load_file(path)
        size = 0 if weights["classifier.head.weight"].shape[1] == LITE_STAGES[0][-1][1] else 2
        tower = cls(size, side)
        tower.load_state_dict(weights)
        last = torch.channels_last
        tower.to(device=device, dtype=dtype, memory_format=last)  # type: ignore[call-overload]  # not in its stub
        if torch.device(device).type == "cpu" and dtype == torch.float32 and installed():
            tower.compiled = CompiledTower(tower.classifier, tower.detector)
        return tower

    @torch.no_grad()
    def forward(self, frames: Tensor | Sequence[np.ndarray]) -> FrameFeatures:
        """frames: RGB 0..255 (B, height, width, 3), uint8 or float, or a sequence of B uint8 arrays of any sizes."""
        return FrameFeatures(*self.classify(frames), *self.detect(frames))

    @torch.no_grad()
    def classify(self, frames: Tensor | Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """grid, pooled, classes, class_probs of every frame, squashed to a square as the training pictures were."""
        head, logits = self._classified(self._resized(frames, (224, 224)))
        head, probs = head.float(), logits.float().softmax(-1)
        class_probs, classes = probs.topk(TOP)
        grid = F.adaptive_avg_pool2d(head, 3).flatten(2).transpose(1, 2)
        return grid, head.mean((2, 3)), classes, class_probs

    @torch.no_grad()
    def detect(self, frames: Tensor | Sequence[np.ndarray]) -> list[Tensor]:
        """det, det_ids, det_scores, det_boxes of every frame. Frames of one shape are run together."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, frame in enumerate(frames):
            high, wide = frame.shape[:2]
            groups.setdefault(canvas(high, wide, self.side), []).append(i)
        parts = []
        for size, members in groups.items():
            some = frames if len(groups) == 1 else [frames[i] for i in members]
            scores, boxes = decoded(self._maps(self._resized(some, size)), *size)
            parts.append((by_region(scores, boxes), *suppress(scores, boxes)))
        order = torch.tensor([i for members in groups.values() for i in members]).argsort()
        return [torch.cat(found)[order.to(found[0].device)] for found in zip(*parts, strict=True)]

    def _classified(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        if self.compiled and rgb.dtype == torch.uint8:
            return self.compiled.classify(rgb.permute(0, 2, 3, 1).contiguous())
        return self.classifier(rgb.float())

    def _maps(self, rgb: Tensor) -> list[Tensor]:
        if self.compiled and rgb.dtype == torch.uint8:
            return self.compiled.maps(rgb.permute(0, 2, 3, 1).contiguous())
        return self.detector.maps(rgb.float())

    def _resized(self, frames: Tensor | Sequence[Tensor | np.ndarray], size: tuple[int, int]) -> Tensor:
        """Frames as RGB 0..255 (B, 3, *size), shrunk with an antialiasing filter."""
        device = self.classifier.fc.weight.device
        if isinstance(frames, Tensor):
            return _resize(frames.to(device), size)
        return torch.cat([_resize(torch.tensor(frame, device=device)[None], size) for frame in frames])


def canvas(high: int, wide: int, side: int) -> tuple[int, int]:
    """What the detector sees of a frame: the longer side is `side`, both are multiples of 32, the shape roughly kept.

    Squashed to a square instead, it found the person in 5 of 24 wide frames; with its shape kept, in 18, and quicker.
    """
    longest = max(high, wide)
    tall, broad = (max(round(n * side / longest / 32), 2) * 32 for n in (high, wide))
    return tall, broad


def _resize(frames_BHWC: Tensor, size: tuple[int, int]) -> Tensor:
    """The same filter everywhere; on the CPU bytes are several times quicker than floats, CUDA knows floats only."""
    x = frames_BHWC.permute(0, 3, 1, 2)
    x = x.float() if x.is_cuda else x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True)


# --- in words --------------------------------------------------------------------------------------------------------


@cache
def labels() -> dict[str, list[str]]:
    """The words of both networks: "imagenet" (1,000) and "coco" (80, then face and hand), by their class numbers."""
    return json.loads((ASSETS / "labels.json").read_text(encoding="utf-8"))


def place_of(box: Sequence[float]) -> str:
    """Where the middle of a box lies: "left", "centre" or "right" third of the frame."""
    middle = (box[0] + box[2]) / 2
    return "left" if middle < 1 / 3 else "right" if middle > 2 / 3 else "centre"


def things_shown(
    features: FrameFeatures, i: int, seen: float = 0.35, sure: float = 0.35
) -> list[tuple[str, float, str, int]]:
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
