"""A tower's patches by the kernels: levels as Pillow's, in torch's places, for any size of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.towers.qwen import CLIP_MEAN, CLIP_STD, Patching
from tests.gpu.test_cuda import DEVICE, INTERPRETED, kernels  # noqa: F401

if not INTERPRETED:
    pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
LEVEL = 1 / (255 * max(CLIP_STD))


def levels() -> torch.Tensor:
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return torch.stack([-mean / std, 1 / (255 * std)]).to(DEVICE)


@pytest.mark.parametrize(
    "size", [(360, 640), (364, 644), (480, 640), (101, 213), (30, 57), (33, 30), (720, 90), (1080, 640)]
)
def test_levels_are_those_of_pillow_and_lie_where_torch_lays_them(size, kernels):  # noqa: F811
    if INTERPRETED and size not in [(30, 57), (33, 30)]:
        pytest.skip("on a GPU only: Triton's interpreter takes minutes at this size")
    rgb, patching = torch.randint(0, 256, (2, *size, 3), dtype=torch.uint8), Patching()
    height, width = patching.size(*size)
    ours = kernels.patches(rgb.to(DEVICE), height, width, 14, 2, levels(), torch.float32).cpu()
    by_torch, grid = patching.patches(rgb)
    assert ours.shape == by_torch.shape and grid == (1, height // 14, width // 14)
    assert ((ours - by_torch).abs() > 0.01 * LEVEL).double().mean() < 4e-3
    resized = [np.array(Image.fromarray(one.numpy()).resize((width, height), Image.Resampling.BICUBIC)) for one in rgb]
    by_pillow, _ = patching.patches(torch.from_numpy(np.stack(resized)))  # of the right size: only laid out
    off = (ours - by_pillow).abs()
    assert (off > 0.01 * LEVEL).double().mean() < 2e-4 and off.max() < 1.5 * LEVEL
