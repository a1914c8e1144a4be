"""Features of training pictures, once for all steps: each picture seen along a slow pan and zoom, as a camera would.

`compute` draws the path of every picture, renders its views in batches on the device (`grid_sample`) and runs the
frozen towers on them. View 0 is the clean whole picture; the others go along the path in order, so that neighbours
look alike.

The pictures are 224x224 squashed, their true shape lost. The detector minds: it was trained on undistorted pictures. On
200 of them, with the captions as judges, landscape did best (AUC for person .90, dog .94; square .88, .92; portrait
.85, .90); choosing for each picture the shape with the highest scores only raised false alarms (person .19 -> .33).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.towers.frame_tower import FrameFeatures, FrameTower

CLASSIFIER, DETECTOR = (224, 224), (320, 416)  # height, width each network is shown
SMALLEST = 0.62  # side of the tightest crop, as a share of the picture
STRETCH = 0.15  # a crop's sides differ by up to this share either way
LIGHT = 0.25  # brightness and contrast change by up to this share
HALF = ("grid", "pooled", "class_probs", "det", "det_scores", "det_boxes")


def compute(
    pictures_rgb: Iterable[np.ndarray],
    tower: FrameTower,
    device: torch.device | str,
    views: int = 6,
    seed: int = 0,
    batch: int = 32,
) -> dict[str, Tensor]:
    """The `FrameFeatures` of n pictures (uint8 HWC, all of one size), each column (n, views, ...) on the CPU.

    Floats come as float16 (grid (n, views, 9, 1280), pooled, det (n, views, 400), ...), ids as int16. The same seed
    gives the same views, however the pictures are batched. `batch`: pictures a call, each `views` frames.
    """
    dice, parts = torch.Generator().manual_seed(seed), []
    for pictures in batches(pictures_rgb, batch):
        crops, flips, lights = (each.to(device) for each in draw(len(pictures), views, dice))
        rgb = pictures.to(device).permute(0, 3, 1, 2).float()
        classified = tower.classify(render(rgb, crops, flips, lights, CLASSIFIER))
        seen = (*classified, *tower.detect(render(rgb, crops, flips, lights, DETECTOR)))
        parts.append({name: small(name, x, views) for name, x in zip(FrameFeatures._fields, seen, strict=True)})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def small(name: str, column: Tensor, views: int) -> Tensor:
    """A column of features (pictures * views, ...) as (pictures, views, ...) on the CPU, in 16 bits."""
    return column.to(torch.float16 if name in HALF else torch.int16).unflatten(0, (-1, views)).cpu()


def batches(pictures: Iterable[np.ndarray], size: int) -> Iterator[Tensor]:
    """Pictures stacked by `size`: uint8 (up to size, height, width, 3)."""
    held = []
    for picture in pictures:
        held.append(torch.from_numpy(np.ascontiguousarray(picture)))
        if len(held) == size:
            yield torch.stack(held)
            held = []
    if held:
        yield torch.stack(held)


def draw(count: int, views: int, dice: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Paths, flips and light of `count` pictures, one picture after the other so that batching does not matter.

    crops: (count, views, 4), centre x and y, half width and half height in -1..1. flips: (count,), 1 or -1.
    lights: (count, views, 2), contrast and brightness factors. View 0 is the whole picture, unchanged.
    """
    rolls = torch.stack([torch.rand(13, generator=dice) for _ in range(count)])
    ends, flips = rolls[:, :12].unflatten(1, (2, 6)), (rolls[:, 12] < 0.5).float() * 2 - 1  # ends: start and end
    side = SMALLEST + (1 - SMALLEST) * ends[..., 0]
    ratio = 1 + STRETCH * (2 * ends[:, :1, 1] - 1)  # one for the whole path: the camera's, not the movement's
    half = torch.stack((side * ratio.sqrt(), side / ratio.sqrt()), -1).clamp(max=1)
    centre = (2 * ends[..., 2:4] - 1) * (1 - half)
    light = 1 + LIGHT * (2 * ends[..., 4:6] - 1)
    way = torch.linspace(0, 1, max(views - 1, 2))[: views - 1, None]
    known = torch.cat((centre, half, light), -1)
    path = known[:, :1] + way * (known[:, 1:] - known[:, :1])  # count, views - 1, 6
    clean = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]).expand(count, 1, 6)
    path = torch.cat((clean, path), 1)
    return path[..., :4], flips, path[..., 4:]


def render(rgb: Tensor, crops: Tensor, flips: Tensor, lights: Tensor, size: tuple[int, int]) -> Tensor:
    """Views (B * V, *size, 3) of pictures (B, 3, h, w), 0..255, for the values `draw` gives. View 0 is not flipped."""
    turn = flips[:, None].expand(crops.shape[:2]).clone()
    turn[:, 0] = 1
    theta = torch.zeros(*crops.shape[:2], 2, 3, device=rgb.device)
    theta[..., 0, 0], theta[..., 0, 2] = crops[..., 2] * turn, crops[..., 0]
    theta[..., 1, 1], theta[..., 1, 2] = crops[..., 3], crops[..., 1]
    count, views = crops.shape[:2]
    grid = F.affine_grid(theta.flatten(0, 1), [count * views, 3, *size], align_corners=False)
    wide = rgb.repeat_interleave(views, 0)
    out = F.grid_sample(wide, grid, mode="bilinear", padding_mode="border", align_corners=False)
    contrast, brightness = (lights.flatten(0, 1)[:, i, None, None, None] for i in (0, 1))
    mean = out.mean((2, 3), keepdim=True)
    return (((out - mean) * contrast + mean) * brightness).clamp(0, 255).permute(0, 2, 3, 1)
