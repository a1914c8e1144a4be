"""A clip around a moment is a video that any player opens, and shows what was there then."""

from __future__ import annotations

import pytest

import pipeline
from pipeline.__main__ import main
from pipeline.stream import UserError
from pipeline.timeline.clip import clip
from tests.fake_model import write_clip


def seconds_and_red(path) -> tuple[float, list[bool]]:
    with pipeline.open_video(path, fps=1, long_side=64) as video:
        frames = list(video)
        return video.seconds, [bool(frame.rgb[..., 0].mean() > frame.rgb[..., 2].mean()) for frame in frames]


def test_a_clip_holds_the_seconds_around_the_moment(tmp_path):
    """The video is red until 0:06, then blue."""
    video, out = write_clip(tmp_path / "whole.mp4"), tmp_path / "clip.mp4"
    assert clip(str(video), 6.0, out, around=3.0) > 20
    length, red = seconds_and_red(out)
    assert length == pytest.approx(6.0, abs=0.4) and red[:3] == [True] * 3 and not any(red[4:])


def test_at_the_edges_it_is_shorter_and_beyond_them_there_is_none(tmp_path):
    video, out = write_clip(tmp_path / "whole.mp4"), tmp_path / "clip.mp4"
    clip(str(video), 0.0, out, around=2.0)
    assert seconds_and_red(out)[0] == pytest.approx(2.0, abs=0.4)
    for at, around in ((100.0, 5.0), (3.0, 0.0), (3.0, 1e9)):
        with pytest.raises(UserError):
            clip(str(video), at, out, around)


def test_the_command_cuts_a_clip_without_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "load", lambda *_, **__: pytest.fail("no model is needed"))
    video, out = write_clip(tmp_path / "whole.mp4"), tmp_path / "clip.mp4"
    assert main(["events", str(video), "--format", "mp4", "--at", "0:06", "--around", "2", "--out", str(out)]) == 0
    assert seconds_and_red(out)[0] == pytest.approx(4.0, abs=0.4)
    assert main(["events", str(video), "--format", "mp4", "--out", str(out)]) == 2
    assert "--at" in capsys.readouterr().err
