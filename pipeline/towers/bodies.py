"""Faces, palms and poses of persons that a detector found: that they are there and where, never whose they are.

MediaPipe's networks (mediapipe 0.10.21, Apache-2.0): BlazeFace (arXiv 1907.05047) for faces, the palm detector of
MediaPipe Hands (arXiv 2006.10214), BlazePose (arXiv 2006.10204) for the 33 landmarks of a body. Each sees a square cut
around a person, so a picture without persons costs nothing. Weights: `assets/bodies.*` (pipeline.training.pack_bodies).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.assets import ASSETS
from pipeline.towers.compiled import CompiledSteps, installed
from pipeline.towers.steps import StepNet

LANDMARKS = 33  # nose, eyes, ears, mouth, shoulders (11, 12), elbows, wrists, hands, hips (23, 24), knees, ankles, feet
NETS = ("face", "palm", "pose")
SSD_CELLS = {"face": ((16, 2), (8, 6)), "palm": ((24, 2), (12, 6))}  # cells a side, boxes a cell
REACH = {"face": 1.0, "palm": 1.1, "pose": 1.25}  # side of the square that is cut, by what is looked at
ALIKE = 0.3  # intersection over union from which two boxes are one face, or one palm
TRIED = 32  # of a net's boxes, the best
MOST = 4  # boxes that are kept of one square

Box = tuple[float, float, float, float]  # left, top, right, bottom


class Pose(NamedTuple):
    """there: 0..1. points: (33, 2), x and y in the picture's pixels. seen: (33,) 0..1, whether each is to be seen.
    world: (33, 3) metres from the middle of the hips."""

    there: float
    points: np.ndarray
    seen: np.ndarray
    world: np.ndarray


class Found(NamedTuple):
    """A face or a palm. score: 0..1; box: in the picture's pixels."""

    score: float
    box: Box


class Square(NamedTuple):
    """A part of a picture in its pixels, which may reach beyond it."""

    left: float
    top: float
    side: float

    def cut(self, rgb: np.ndarray, pixels: int) -> np.ndarray:
        """uint8 (pixels, pixels, 3), black beyond the picture."""
        zoom = pixels / self.side
        move = np.array([[zoom, 0, -self.left * zoom], [0, zoom, -self.top * zoom]], np.float32)
        return cv2.warpAffine(rgb, move, (pixels, pixels), flags=cv2.INTER_LINEAR)


def square_of(box: Box, name: str) -> Square:
    """What a net is shown of a person's box (pixels): all of it, of a standing person's the upper part for the face."""
    left, top, right, bottom = box
    wide, high = right - left, bottom - top
    if name == "face":
        side = max(wide, min(high, 1.3 * wide)) * REACH[name]
        return Square((left + right - side) / 2, top - 0.1 * side, side)
    side = max(wide, high) * REACH[name]
    return Square((left + right - side) / 2, (top + bottom - side) / 2, side)


class BodyTower(nn.Module):
    """The three networks. Each square is looked at by itself."""

    def __init__(self, nets: dict[str, StepNet]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(nets)
        self.quick: dict[str, Callable[[Tensor], list[Tensor]]] = {}  # compiled ones, for bytes on a CPU

    @classmethod
    def load(cls, assets: Path = ASSETS, device: torch.device | str = "cpu") -> BodyTower:
        """From `bodies.json` and `bodies.safetensors`, compiled on a CPU where OpenVINO is installed."""
        described = json.loads((assets / "bodies.json").read_text(encoding="utf-8"))
        tower = cls({name: StepNet.read(described[name]) for name in NETS})
        weights = load_file(assets / "bodies.safetensors")
        tower.load_state_dict({f"nets.{k}": w.float() for k, w in weights.items() if k.split(".")[0] in NETS})
        if torch.device(device).type == "cpu" and installed():
            tower.quick = {name: CompiledSteps(net) for name, net in tower.nets.items() if isinstance(net, StepNet)}
        return tower.to(device)

    def poses(self, parts: Sequence[tuple[np.ndarray, Square]]) -> list[Pose]:
        """One for each (picture, square)."""
        if not parts:
            return []
        rows, there, world = (each.flatten(1).cpu().numpy() for each in self._run("pose", parts))
        found = []
        for (_, square), landmarks, sure, metres in zip(parts, rows, there[:, 0], world, strict=True):
            numbers = landmarks.reshape(-1, 5)[:LANDMARKS]  # x, y, z, seen, inside: six more points are its own aids
            scale = square.side / self._side("pose")
            points = np.stack([square.left + numbers[:, 0] * scale, square.top + numbers[:, 1] * scale], 1)
            found.append(Pose(float(sure), points, _sigmoid(numbers[:, 3]), metres.reshape(-1, 3)[:LANDMARKS]))
        return found

    def boxes(self, name: str, parts: Sequence[tuple[np.ndarray, Square]], least: float) -> list[list[Found]]:
        """name: "face" or "palm". For each (picture, square) those of at least that score, best first."""
        if not parts:
            return []
        numbers, logits = (each.cpu().numpy() for each in self._run(name, parts))
        side, anchors = self._side(name), _anchors(name)
        found = []
        for (_, square), row, sure in zip(parts, numbers, _sigmoid(logits[..., 0]), strict=True):
            best = [i for i in np.argsort(-sure)[:TRIED] if sure[i] >= least]
            middle, half = anchors[best] + row[best, :2] / side, row[best, 2:4] / side / 2
            shares = np.concatenate([middle - half, middle + half], 1)
            corner = np.array([square.left, square.top] * 2)
            boxes = [Found(float(sure[i]), tuple(b)) for i, b in zip(best, (corner + shares * square.side).tolist())]
            found.append(apart(boxes)[:MOST])
        return found

    def _side(self, name: str) -> int:
        net = self.nets[name]
        assert isinstance(net, StepNet)
        return net.side

    def _run(self, name: str, parts: Sequence[tuple[np.ndarray, Square]]) -> list[Tensor]:
        cuts = np.stack([square.cut(rgb, self._side(name)) for rgb, square in parts])
        rgb = torch.from_numpy(cuts).permute(0, 3, 1, 2)
        if quick := self.quick.get(name):
            return quick(rgb)
        return self.nets[name](rgb.to(next(self.nets[name].parameters()).device).float())


def apart(found: Sequence[Found]) -> list[Found]:
    """Without those that a better one covers."""
    kept: list[Found] = []
    for each in sorted(found, key=lambda one: -one.score):
        if all(overlap(each.box, other.box) < ALIKE for other in kept):
            kept.append(each)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    shared = _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))
    return shared / max(_area(a) + _area(b) - shared, 1e-9)


def within(a: Box, b: Box) -> float:
    """The share of a that lies in b."""
    return _area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))) / max(_area(a), 1e-9)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _anchors(name: str) -> np.ndarray:
    """(N, 2) middles of a net's cells as shares, in the order of its outputs."""
    parts = []
    for side, boxes in SSD_CELLS[name]:
        y, x = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
        parts.append(np.repeat((np.stack([x, y], -1).reshape(-1, 2) + 0.5) / side, boxes, axis=0))
    return np.concatenate(parts)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))
