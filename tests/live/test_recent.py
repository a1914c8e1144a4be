"""The newest pictures of a camera: a bounded room, those around alerts last, and clips of what is left."""

from __future__ import annotations

import pytest

from app.live.recent import AROUND, Recent
from pipeline import Frame, UserError, open_video
from tests.fake_model import BLUE, RED, fake_engine, picture, until

JPEG = b"x" * 1_000


def filled(seconds: int, newest: int, marked: int, alerts=()) -> Recent:
    recent = Recent(newest, marked)
    for at in range(seconds):
        recent.add([Frame(picture(RED), float(at), jpeg=JPEG)], lambda: alerts)
    return recent


def times(recent: Recent, at: float) -> list[float]:
    return [one.time for one in recent.around(at)]


@pytest.mark.parametrize("seconds", [5, 50, 500])
def test_it_never_takes_more_than_its_room_however_long_the_stream(seconds):
    recent = filled(seconds, 20_000, 12_000, range(0, seconds, 30))
    assert recent.nbytes <= 32_000
    assert times(recent, seconds - 1.0) == [float(at) for at in range(max(0, seconds - 6), seconds)]


def test_what_is_around_an_alert_outlives_what_is_not():
    recent = filled(300, 20_000, 12_000, (100.0,))
    assert times(recent, 100.0) == [float(at) for at in range(95, 106)]
    with pytest.raises(UserError, match="from 4:40 on"):
        recent.around(150.0)


def test_of_too_many_alerts_the_oldest_give_way():
    recent = filled(300, 20_000, 12_000, (50.0, 100.0, 150.0))
    assert len(times(recent, 150.0)) == 11 and len(times(recent, 100.0)) < 11
    with pytest.raises(UserError):
        recent.around(50.0)


def test_a_live_stream_gives_a_clip_of_its_own_seconds(made, tmp_path):
    """A camera that shows red for twenty seconds, then blue; also one that changes its size in between."""
    session = made(fake_engine())
    session.open_camera()
    for at in range(40):
        shown = picture(RED if at < 20 else BLUE)
        session.watch.camera.offer(shown if at < 22 else shown[:30], time=float(at))
        until(lambda: session.watch.camera.waiting == 0)
    until(lambda: session.view().frames == 40)
    session.clip(20.0, tmp_path / "clip.mp4")
    with open_video(tmp_path / "clip.mp4", fps=1, long_side=64) as video:
        red = [bool(frame.rgb[..., 0].mean() > frame.rgb[..., 2].mean()) for frame in video]
        assert video.seconds == pytest.approx(2 * AROUND, abs=0.3)
    assert red[:5] == [True] * 5 and not any(red[5:])
    with pytest.raises(UserError, match="from 0:00 on"):
        session.clip(90.0, tmp_path / "none.mp4")


def test_a_stream_of_a_file_gives_a_clip_of_the_file_and_no_stream_none(made, clip, tmp_path):
    session = made(fake_engine())
    with pytest.raises(UserError, match="nothing to cut"):
        session.clip(3.0, tmp_path / "clip.mp4")
    session.open_file(clip, "Example")
    session.clip(3.0, tmp_path / "clip.mp4")
    with open_video(tmp_path / "clip.mp4", fps=1, long_side=64) as video:
        assert len(list(video)) == 9
    assert session.watch.recent.nbytes == 0, "a file is there to be read again"
