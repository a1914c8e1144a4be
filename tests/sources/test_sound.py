"""The sound of a file: samples with their seconds, within limits; a file without sound gives none."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.sources.refusals import VideoError
from pipeline.sources.sound import RATE, Cue, Sound, no_sound, open_sound

SPOKEN = Path(__file__).parents[1] / "data/sound/spoken.mp4"


def film(path, sound=None, rate=RATE, codec="aac", layout="mono", late=0.0, seconds=4) -> str:
    """Plain pictures, and what is given as sound (samples,) from a second on."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=2)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout=layout) if sound is not None else None
        for shade in range(2 * seconds):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8))))
        container.mux(video.encode())
        for first in range(0, len(sound) if audio else 0, 1024):
            part = np.tile(sound[first : first + 1024].astype(np.float32), (len(audio.layout.channels), 1))
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="fltp", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first + int(late * rate)
            container.mux(audio.encode(frame))
        if audio:
            container.mux(audio.encode())
    return str(path)


def tone(seconds, rate=RATE, start=0.0, until=np.inf):
    """A tone that sounds from one second to another."""
    time = np.arange(int(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * 440 * time) * ((time >= start) & (time < until))


def blocks(path) -> list[Sound]:
    with open_sound(path) as sound:
        return [heard for heard in sound if isinstance(heard, Sound)]


def loud(found) -> list[float]:
    """Tenths of a second in which it is loud."""
    parts = [(b.time + i / RATE, b.samples[i : i + 1600]) for b in found for i in range(0, len(b.samples), 1600)]
    return [at for at, part in parts if np.abs(part).mean() > 0.1]


@pytest.mark.parametrize(
    ("rate", "codec", "layout"), [(16000, "aac", "mono"), (44100, "aac", "stereo"), (48000, "flac", "mono")]
)
def test_samples_stand_at_their_seconds_whatever_the_file_has(tmp_path, rate, codec, layout):
    name = "a.mkv" if codec == "flac" else "a.mp4"
    found = blocks(film(tmp_path / name, tone(4, rate, 1.0, 2.5), rate, codec, layout))
    assert all(block.samples.dtype == np.float32 and len(block.samples) <= RATE for block in found)
    assert abs(sum(len(block.samples) for block in found) - 4 * RATE) < 0.2 * RATE
    heard = loud(found)
    assert 0.85 <= heard[0] <= 1.1 and 2.35 <= heard[-1] <= 2.6


def test_sound_that_begins_late_does_not_begin_at_once(tmp_path):
    found = blocks(film(tmp_path / "a.mkv", tone(2), codec="flac", late=1.5))
    assert found[0].time == pytest.approx(1.5, abs=0.05) and found[-1].until == pytest.approx(3.5, abs=0.1)


def test_a_film_without_sound_says_so(tmp_path):
    with open_sound(film(tmp_path / "a.mp4")) as sound:
        assert (
            not sound.sound and not sound.subtitles and no_sound(sound) == "The video has no sound." and not list(sound)
        )


def test_what_is_no_video_is_refused_as_for_pictures(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(VideoError, match=r"not a video file we can read"):
        open_sound(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"no such video file"):
        open_sound(tmp_path / "b.mp4")


def test_a_file_cut_in_the_middle_gives_what_is_there(tmp_path):
    whole = Path(film(tmp_path / "a.mkv", tone(4), codec="flac")).read_bytes()
    (tmp_path / "b.mkv").write_bytes(whole[: len(whole) // 2])
    assert 0 < len(blocks(tmp_path / "b.mkv")) < 4 + 1


def test_closing_ends_it_and_leaves_no_process():
    sound = open_sound(SPOKEN)
    next(sound)
    process = sound._process
    sound.close()
    sound.close()
    assert not process.running and not list(sound)


def subtitled(path) -> str:
    """Matroska with a text track, its packets written by hand."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=2)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        words = container.add_mux_stream("subrip", rate=1000, time_base=Fraction(1, 1000))
        for shade in range(8):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8))))
        container.mux(video.encode())
        for at, text in ((500, "Good <i>morning</i>."), (2000, "Two lines,\nas it were.")):
            packet = av.Packet(text.encode())
            packet.stream, packet.pts, packet.dts, packet.duration = words, at, at, 1000
            packet.time_base = Fraction(1, 1000)
            container.mux(packet)
    return str(path)


def test_subtitles_come_with_their_seconds_and_without_markup(tmp_path):
    try:
        path = subtitled(tmp_path / "a.mkv")
    except (AttributeError, av.FFmpegError, ValueError, TypeError) as error:
        pytest.skip(f"PyAV writes no subtitles here ({error})")
    with open_sound(path) as sound:
        assert sound.subtitles and not sound.sound
        cues = [heard for heard in sound if isinstance(heard, Cue)]
    assert [(cue.time, cue.until, cue.text) for cue in cues] == [
        (0.5, 1.5, "Good morning."),
        (2.0, 3.0, "Two lines, as it were."),
    ]
