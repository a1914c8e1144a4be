"""The example clip: what is drawn is lit and where it should be, what sounds is heard, and the file is of this code."""

import av
import cv2
import numpy as np
import pytest

from pipeline.assets import example_clip
from pipeline.senses.sound import RATE as HEARD_AT
from pipeline.senses.sound import is_music
from pipeline.training import example_clip as clip
from pipeline.training.drawn import sound
from pipeline.training.drawn.grain import SIZE, read, tile
from pipeline.training.drawn.paints import plain
from pipeline.training.drawn.rays import FAR, Ball, Cone, Plane, Scene, camera, vector

WIDE, HIGH = 96, 54
GREY = plain(vector(0.5, 0.5, 0.5), 0.0)
SHOTS = pytest.mark.parametrize("shot", clip.SHOTS, ids=lambda shot: shot.name)


def scene(*shapes) -> Scene:
    dark = lambda rays: np.zeros_like(rays)  # noqa: E731
    return Scene(shapes, vector(0, 1, 0), vector(1, 1, 1), dark, vector(0, 0, 0), vector(0, 0, 0))


@pytest.mark.parametrize(
    "shape", [Ball(vector(1, 2, 9), vector(2, 1, 3), GREY), Cone(vector(1, 1, 9), 2, 2, 0.5, GREY)]
)
def test_rays_end_on_the_surface_where_its_normal_looks_back(shape):
    rays = camera(vector(0, 0, 0), vector(1, 2, 9), 1.0, 64, 64).reshape(-1, 3)
    far = shape.reached(vector(0, 0, 0), rays)
    hit = far < FAR
    points = rays[hit] * far[hit, None]
    assert 50 < hit.sum() < len(rays)
    if isinstance(shape, Ball):
        off = np.abs((((points - shape.centre) / shape.radii) ** 2).sum(1) - 1)
    else:
        up = points[:, 1] - shape.foot[1]
        wide = np.hypot(points[:, 0] - shape.foot[0], points[:, 2] - shape.foot[2])
        off = np.minimum(np.abs(wide - (2 - 0.75 * up)), np.minimum(np.abs(up), np.abs(up - 2)))
    assert off.max() < 1e-3
    assert ((shape.normal(points) * rays[hit]).sum(1) < 1e-2).all()


def test_a_ball_throws_its_shadow_on_the_ground_and_nowhere_else():
    floor, ball = Plane(1, 0.0, GREY), Ball(vector(0, 3, 8), vector(1, 1, 1), GREY)
    down = np.array([[x, -4.0, 8.0] for x in (-4, 0, 4)], np.float32)
    light = scene(floor, ball).seen(vector(0, 4, 0), down / np.linalg.norm(down, axis=1)[:, None])[:, 0]
    assert light[1] < 0.2 * light[0] and light[0] == pytest.approx(light[2], rel=1e-4) and light[0] > 0.3


def test_noise_tiles_without_a_seam():
    made = tile(1.5, 1)
    u = np.linspace(-1, 2, 7 * SIZE, dtype=np.float32)
    values = read(made, u, np.full_like(u, 0.3))
    assert np.abs(np.diff(values)).max() < 0.2 and values.std() > 0.3
    np.testing.assert_allclose(read(made, u + 1, u * 0 + 0.3), values, atol=0.02)


@SHOTS
def test_each_shot_is_lit_and_moves(shot):
    first, again, last = (shot.draw(second, WIDE, HIGH) for second in (0, 0, shot.seconds - 1))
    assert first.shape == (HIGH, WIDE, 3) and first.min() >= 0 and first.max() <= 1 and np.isfinite(first).all()
    assert (first == again).all(), "the same every time"
    assert first.std() > 0.08 and np.abs(first - last).mean() > 0.005


def test_a_title_comes_and_goes():
    picture = np.full((clip.HEIGHT, clip.WIDTH, 3), 0.5, np.float32)
    letters = clip.lettering("ABC", (0.5, 0.5))
    start, end = clip.TITLE_S
    assert 0.001 < letters.mean() < 0.05
    assert (clip.titled(picture, letters, start) == picture).all() and (
        clip.titled(picture, letters, end) == picture
    ).all()
    whole = clip.titled(picture, letters, (start + end) / 2)
    assert whole.max() == pytest.approx(1) and whole.min() < 0.5


def test_the_music_is_music_to_the_sense_and_the_sea_is_not():
    for samples, so in ((sound.music(6), True), (sound.waves(6), False)):
        heard = sound.resampled(samples[: 4 * sound.RATE] * 0.2, sound.RATE * sound.RATE // HEARD_AT).astype(np.float32)
        assert len(heard) == 4 * HEARD_AT and is_music(heard) == so


def test_the_sentence_is_spoken():
    pytest.importorskip("espeakng_loader", reason="espeakng_loader brings the voice")
    said = sound.spoken(clip.SENTENCE)
    assert 1 < len(said) / sound.RATE < 5 and 0.2 < np.abs(said).max() <= 1


def test_the_clip_that_ships_is_drawn_by_this_code():
    """Of each shot a picture at a whole second, but for grain, and what the codec left out."""
    path = example_clip()
    if not path.is_file() or path.stat().st_size < 1000:
        pytest.skip("assets/ are not here")
    starts = np.cumsum([0, *(shot.seconds for shot in clip.SHOTS)]).tolist()
    at = {start * clip.FPS + 7 * clip.FPS: shot for start, shot in zip(starts, clip.SHOTS) if shot.seconds > 7}
    with av.open(str(path)) as container:
        assert {stream.type for stream in container.streams} == {"video", "audio"}
        shown = {i: frame.to_ndarray(format="rgb24") for i, frame in enumerate(container.decode(video=0)) if i in at}
    assert starts[-1] == clip.SECONDS == 71 and shown.keys() == at.keys()
    for index, shot in at.items():
        drawn = shot.draw(7.0, WIDE * 2, HIGH * 2) * cv2.resize(clip.vignette(), (WIDE * 2, HIGH * 2))[..., None]
        seen = cv2.resize(shown[index], (WIDE * 2, HIGH * 2), interpolation=cv2.INTER_AREA) / 255
        assert np.abs(seen - drawn).mean() < 0.03, shot.name
