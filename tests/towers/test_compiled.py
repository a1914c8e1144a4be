"""The towers that OpenVINO compiles find what torch's find, each picture by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.towers.compiled import CompiledTower, installed
from pipeline.towers.frame_tower import FrameTower
from tests.towers.test_towers import picture, scene

pytestmark = pytest.mark.skipif(not installed(), reason="openvino is not installed: its wheels are for x86-64")
ROOT = Path(__file__).parents[2]
SHAPES = ((234, 416), (416, 234), (240, 320), (100, 400))


@pytest.fixture(scope="module")
def tower() -> FrameTower:
    return FrameTower.load()


@pytest.fixture(scope="module")
def plain() -> FrameTower:
    tower = FrameTower.load()
    tower.compiled = None
    return tower


def strays(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in standard deviations of what is wanted."""
    return float((found - wanted).abs().max() / wanted.std())


@pytest.mark.parametrize("size", SHAPES)
def test_both_networks_are_torch_s(tower: FrameTower, plain: FrameTower, size: tuple[int, int]) -> None:
    assert tower.compiled is not None
    frames = [scene(seed, *size) for seed in range(3)]
    for found, wanted in zip((*tower.classify(frames)[:2], tower.detect(frames)[0]), plain_parts(plain, frames)):
        assert strays(found, wanted) < 1e-4
    for found, wanted in zip(tower._maps(small := tower._resized(frames, (96, 160))), plain._maps(small)):
        assert strays(found, wanted) < 1e-4


def plain_parts(plain: FrameTower, frames: list[np.ndarray]) -> tuple[torch.Tensor, ...]:
    return (*plain.classify(frames)[:2], plain.detect(frames)[0])


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_what_is_named_is_the_same(tower: FrameTower, plain: FrameTower, name: str) -> None:
    found, wanted = tower([picture(name)]), plain([picture(name)])
    assert torch.equal(found.classes, wanted.classes) and torch.equal(found.det_ids, wanted.det_ids)
    torch.testing.assert_close(found.det_boxes, wanted.det_boxes, rtol=0, atol=1e-4)


def test_a_picture_does_not_depend_on_its_neighbours(tower: FrameTower) -> None:
    frames = [scene(seed, 234, 416) for seed in range(5)]
    together, alone = tower(frames), [tower([frame]) for frame in frames]
    for i, one in enumerate(alone):
        assert all(torch.equal(a[i], b[0]) for a, b in zip(together[:3], one[:3]))


def test_floats_go_through_torch(tower: FrameTower, plain: FrameTower) -> None:
    frames = torch.rand(2, 64, 96, 3) * 255
    assert all(torch.equal(a, b) for a, b in zip(tower(frames), plain(frames)))


def test_it_is_for_fp32_on_a_cpu() -> None:
    assert FrameTower.load(dtype=torch.bfloat16).compiled is None
    assert isinstance(FrameTower.load().compiled, CompiledTower)


def test_nobody_is_counted(tmp_path) -> None:
    """OpenVINO's telemetry writes an id of its user into the home folder as soon as it is imported."""
    code = "from pipeline.towers.frame_tower import FrameTower; assert FrameTower.load().compiled is not None"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"HOME": str(tmp_path)})
    assert not list(tmp_path.rglob("*ga_cid*")) and not (tmp_path / "intel").exists()
