"""The walk of pictures through the vision tower: how they are gathered into batches must not show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.gpu.device import sent
from pipeline.stream import Frame
from pipeline.towers import qwen as vision
from tests.conftest import TINY_VISION

CONFIG = {**TINY_VISION, "depth": 2}


@pytest.fixture(scope="module")
def eyes() -> vision.QwenVision:
    torch.manual_seed(0)
    tower = vision.build_tower(CONFIG).double()
    for p in tower.parameters():
        torch.nn.init.normal_(p, 0.1, 0.2)
    return vision.QwenVision(tower)


def film(sizes: list[tuple[int, int]]) -> list[Frame]:
    noise = np.random.default_rng(0)
    return [Frame(noise.integers(0, 256, (*size, 3), np.uint8), float(i)) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("pairs", [1, 3, 4, 7])
@pytest.mark.parametrize("per_batch", [1, 3])
def test_batches_do_not_show(pairs, per_batch, eyes, monkeypatch):
    """Whole batches, a rest, a rest alone; 24 patches a pair."""
    frames = film([(56, 84)] * 2 * pairs)
    whole = eyes.tokens(frames)
    monkeypatch.setattr(vision, "PATCHES_PER_CALL", 24 * per_batch + 1)
    sizes, encode = [], eyes._encode
    monkeypatch.setattr(eyes, "_encode", lambda run: sizes.append(len(run)) or encode(run))
    cut = eyes.tokens(frames)
    assert sum(sizes) == pairs and max(sizes) <= per_batch and len(sizes) == -(-pairs // per_batch)
    assert torch.allclose(cut.tokens, whole.tokens, atol=1e-12)
    assert torch.equal(cut.times, whole.times) and torch.equal(cut.positions, whole.positions)


def test_pictures_of_several_sizes_stay_in_order(eyes):
    """A pair's second picture takes the first one's size; a new size begins a new batch."""
    frames = film([(56, 84), (56, 84), (56, 84), (84, 56), (84, 56), (84, 56)])
    together, alone = eyes.tokens(frames), [eyes.tokens(frames[i : i + 2]) for i in (0, 2, 4)]
    assert torch.allclose(together.tokens, torch.cat([seen.tokens for seen in alone], 1), atol=1e-12)
    assert together.times.tolist() == [float(i // 6 * 2) for i in range(18)]
    assert together.positions[0].tolist() == [i // 6 for i in range(18)]


def test_patches_are_the_published_ones_in_any_type():
    """(level / 255 - mean) / std: one product and one sum give the same to within fp32's rounding."""
    rgb = torch.randint(0, 256, (2, 56, 84, 3), dtype=torch.uint8)
    patches, grid = vision.Patching().patches(rgb)
    mean, std = torch.tensor(vision.CLIP_MEAN), torch.tensor(vision.CLIP_STD)
    levels = ((rgb.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    corner = levels[:, :, :14, :14].transpose(0, 1).reshape(-1)  # colour, frame, row, column
    assert grid == (1, 4, 6) and patches.dtype == torch.float32
    assert torch.allclose(patches[0], corner, atol=1e-6)
    assert torch.equal(vision.Patching().patches(rgb, torch.bfloat16)[0], patches.bfloat16())


def test_sending_to_a_cpu_is_no_copy():
    tensor = torch.arange(3)
    assert sent(tensor, "cpu") is tensor and sent(tensor, torch.device("cpu")) is tensor
