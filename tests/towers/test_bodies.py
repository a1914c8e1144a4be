"""Faces, palms and poses: the networks give what their files give, whoever runs them, and each square by itself."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.towers.bodies import NETS, BodyTower, Square, apart, overlap, square_of
from pipeline.towers.compiled import installed
from pipeline.towers.steps import StepNet
from tests.towers.test_towers import picture

# What the interpreter of the .tflite files gives for squares of the astronaut's photograph.
GOLDEN = Path(__file__).parents[1] / "data" / "bodies.json"
SQUARE = Square(20.0, 0.0, 400.0)


@pytest.fixture(scope="module")
def tower() -> BodyTower:
    return BodyTower.load()


@pytest.fixture(scope="module")
def plain() -> BodyTower:
    tower = BodyTower.load()
    tower.quick = {}
    return tower


def floats(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.float32)


@pytest.mark.parametrize("name", NETS)
def test_the_networks_give_what_their_files_give(plain: BodyTower, name: str) -> None:
    outputs = plain._run(name, [(picture("astronaut"), SQUARE)])
    for found, text in zip(outputs, json.loads(GOLDEN.read_text(encoding="utf-8"))[name], strict=True):
        wanted = floats(text)
        assert np.abs(found.numpy().ravel()[: len(wanted)] - wanted).max() < 1e-3 * max(
            1.0, float(np.abs(wanted).max())
        )


@pytest.mark.skipif(not installed(), reason="openvino is not installed: its wheels are for x86-64")
@pytest.mark.parametrize("name", NETS)
def test_compiled_they_find_the_same(tower: BodyTower, plain: BodyTower, name: str) -> None:
    parts = [(picture("astronaut"), SQUARE), (picture("chelsea"), Square(-30.0, 10.0, 300.0))]
    for found, wanted in zip(tower._run(name, parts), plain._run(name, parts), strict=True):
        assert float((found - wanted).abs().max()) < 1e-3 * max(1.0, float(wanted.abs().max()))
    alone = [tower._run(name, [part]) for part in parts]
    for i, together in enumerate(tower._run(name, parts)):
        assert all(torch.equal(together[n], one[i][0]) for n, one in enumerate(alone))


def test_a_face_and_a_body_are_where_they_are(tower: BodyTower) -> None:
    """The astronaut's face lies about x 175 to 275, y 70 to 180 of 512 pixels."""
    rgb, person = picture("astronaut"), (15.0, 15.0, 365.0, 508.0)
    (face, *_), *_ = tower.boxes("face", [(rgb, square_of(person, "face"))], 0.5)
    assert overlap(face.box, (175, 75, 275, 180)) > 0.5
    (pose,) = tower.poses([(rgb, square_of(person, "pose"))])
    assert pose.there > 0.9 and 175 < pose.points[0, 0] < 275 and 90 < pose.points[0, 1] < 160  # the nose
    assert pose.points[11, 0] > pose.points[12, 0]  # her left shoulder is on the right


def test_where_nobody_is_there_is_nothing(tower: BodyTower) -> None:
    """No square, no cost; a cup of coffee is no body."""
    assert tower.poses([]) == [] and tower.boxes("palm", [], 0.5) == []
    rgb = picture("coffee")
    square = Square(0.0, 0.0, float(rgb.shape[0]))
    assert tower.poses([(rgb, square)])[0].there < 0.5
    assert tower.boxes("face", [(rgb, square)], 0.6) == [[]]


def test_a_square_reaches_beyond_the_picture_into_black() -> None:
    rgb = np.full((10, 10, 3), 200, np.uint8)
    cut = Square(-10.0, 0.0, 20.0).cut(rgb, 20)
    assert not cut[:, :9].any() and (cut[1:9, 12:18] == 200).all() and not cut[12:].any()


def test_of_boxes_that_cover_each_other_the_best_is_kept() -> None:
    from pipeline.towers.bodies import Found

    a, b, c = Found(0.7, (0, 0, 10, 10)), Found(0.9, (1, 1, 11, 11)), Found(0.5, (30, 30, 40, 40))
    assert apart([a, b, c]) == [b, c]


def test_steps_that_are_not_known_are_refused() -> None:
    net = StepNet.read({"steps": [{"kind": "twist", "of": [0]}], "outputs": [1], "side": 4, "span": [0, 1]})
    with pytest.raises(AssertionError, match="twist"):
        net(torch.zeros(1, 3, 4, 4))
