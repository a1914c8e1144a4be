"""Video sources, on files made here: times, shapes, drops, bounds."""

from __future__ import annotations

import random
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.sources.file import Limits, VideoError, open_video, probe
from pipeline.sources.reader.pictures import QUARTERS, upright
from pipeline.stream import Frame, UserError
from tests.sources.test_corpus import clean

# --- files of our own -----------------------------------------------------------------------------------------------


def gray_of(index: int) -> int:
    return 20 + index % 22 * 10


def render(path: Path, stamps: list[float], codec: str = "libx264", gop: int = 250, size=(64, 48), **more) -> Path:
    """A video whose i-th picture, shown at stamps[i] seconds, is evenly gray_of(i)."""
    with av.open(path, "w", options=more.get("container", {})) as out:
        stream = out.add_stream(codec, rate=more.get("rate", 1000), options=more.get("options", {}))
        stream.width, stream.height = size
        stream.pix_fmt = more.get("pix_fmt", "yuv420p")
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = Fraction(1, 1000)
        if stream.pix_fmt == "gray":
            stream.codec_context.color_range = 2  # this is how the conversion below makes it
        if "turn" in more:
            stream.set_display_rotation(*more["turn"])
        if "sar" in more:
            stream.codec_context.sample_aspect_ratio = more["sar"]
        for i, at in enumerate(stamps):
            rgb = more["paint"](i) if "paint" in more else np.full((size[1], size[0], 3), gray_of(i), np.uint8)
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = round(at * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def read(path: Path, **how) -> list[Frame]:
    with open_video(path, **how) as source:
        return list(source)


def on_screen(stamps: list[float], end: float, fps: float) -> list[int]:
    """The rule, spelled out: at each tick the picture on the screen, each once."""
    ticks = [k / fps for k in range(int(end * fps) + 2) if k / fps < end - 1e-6]
    return sorted({max(i for i, at in enumerate(stamps) if at <= tick + 1e-6) for tick in ticks})


X264 = {"options": {"preset": "ultrafast", "qp": "10"}}


@pytest.mark.parametrize("fps", [0.5, 1.0, 3.0])
def test_uneven_times_are_sampled_by_presentation(tmp_path, fps):
    chance = random.Random(7)
    stamps = [0.0]
    while stamps[-1] < 20:
        stamps.append(round(stamps[-1] + chance.choice([0.01, 0.04, 0.3, 2.5]), 3))
    path = render(tmp_path / "vfr.mkv", stamps, **X264)
    frames = read(path, fps=fps, limits=Limits(skim=False))
    wanted = on_screen(stamps, stamps[-1] + 1e-3, fps)
    assert [f.time for f in frames] == pytest.approx([stamps[i] for i in wanted], abs=1e-6)
    assert [int(f.rgb.mean()) for f in frames] == pytest.approx([gray_of(i) for i in wanted], abs=4)


def test_a_slide_that_comes_late_in_its_second_is_seen(tmp_path):
    frames = read(render(tmp_path / "slides.mkv", [0.0, 0.9, 10.2, 10.9], **X264))
    assert [f.time for f in frames][:2] == pytest.approx([0.0, 0.9], abs=1e-6) and len(frames) <= 3


@pytest.mark.parametrize("name,codec", [("live.webm", "libvpx"), ("live.mkv", "libx264")])
def test_a_recording_without_duration(tmp_path, name, codec):
    """What a browser's recorder writes: no duration, no index; progress then follows the bytes."""
    options = {"live": "1"}
    with open(tmp_path / name, "wb") as raw:
        pipe = type(
            "Pipe", (), {"write": staticmethod(raw.write), "name": name}
        )()  # cannot seek back to patch a header
        render_live(pipe, codec, options)
    with open_video(tmp_path / name) as source:
        assert source.info.duration is None
        progress = [source.progress for _ in source]
        assert progress == sorted(progress) and source.progress == 1.0
        assert source.seconds == pytest.approx(6.0, abs=0.2) and len(progress) == 6


def render_live(pipe, codec: str, options: dict) -> None:
    with av.open(pipe, "w", format="webm" if codec == "libvpx" else "matroska", options=options) as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(60):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), gray_of(i), np.uint8), format="rgb24")
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def corners(_: int) -> np.ndarray:
    """red | green over blue | white."""
    rgb = np.zeros((64, 96, 3), np.uint8)
    rgb[:32, :48], rgb[:32, 48:], rgb[32:, :48], rgb[32:, 48:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
    return rgb


def corner_names(rgb: np.ndarray) -> str:
    height, width = rgb.shape[:2]
    spots = [rgb[y, x] > 128 for y in (height // 4, -height // 4) for x in (width // 4, -width // 4)]
    return "".join({(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}[tuple(map(int, s))] for s in spots)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirror", [False, True])
def test_pictures_are_upright(tmp_path, degrees, mirror):
    """The truth is OpenCV's own turning of the array the file was made from."""
    path = render(tmp_path / "turn.mp4", [0, 0.5], size=(96, 64), paint=corners, turn=(degrees, mirror), **X264)
    shown = np.rot90(corners(0), degrees // 90)  # counter-clockwise, as set_display_rotation says, then the mirror
    shown = shown[:, ::-1] if mirror else shown
    with open_video(path) as source:
        frame = next(source)
        assert (source.info.width, source.info.height) == (shown.shape[1], shown.shape[0])
    assert frame.rgb.shape == shown.shape and frame.rgb.flags.c_contiguous
    assert corner_names(frame.rgb) == corner_names(shown)


def test_every_orientation_is_a_distinct_one():
    turned = [upright(corners(0), matrix) for matrix in QUARTERS]
    assert all(np.array_equal(t, np.rot90(corners(0), k)) for k, t in enumerate(turned))
    transposed = upright(corners(0), (0, 1, 1, 0))
    assert np.array_equal(transposed, corners(0).transpose(1, 0, 2))


def test_pixels_become_square(tmp_path):
    path = render(tmp_path / "anamorphic.mp4", [0, 0.5], size=(96, 64), paint=corners, sar=Fraction(2, 1), **X264)
    with open_video(path, long_side=96) as source:
        assert (source.info.width, source.info.height) == (192, 64)
        assert next(source).rgb.shape == (32, 96, 3)


@pytest.mark.parametrize(
    "codec,pix_fmt,name",
    [
        ("libx264", "gray", "gray.mp4"),
        ("libx264", "yuv444p10le", "deep.mkv"),
        ("ffv1", "bgra", "alpha.mkv"),
        ("qtrle", "argb", "alpha.mov"),
        ("rawvideo", "bgr24", "plain.avi"),
        ("libx264rgb", "rgb24", "rgb.mkv"),
    ],
)
def test_every_pixel_format_becomes_the_same_gray(tmp_path, codec, pix_fmt, name):
    frames = read(render(tmp_path / name, [0, 0.5, 1.0], codec, pix_fmt=pix_fmt, rate=2), fps=None)
    assert [int(f.rgb.mean()) for f in frames] == pytest.approx([gray_of(i) for i in range(len(frames))], abs=6)
    assert len(frames) == 3 and all(f.rgb.dtype == np.uint8 and f.rgb.shape == (48, 64, 3) for f in frames)


def test_transparent_pixels_are_black(tmp_path):
    with av.open(tmp_path / "ghost.mov", "w") as out:
        stream = out.add_stream("qtrle", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "argb"
        argb = np.full((48, 64, 4), 200, np.uint8)
        argb[:, :, 0] = np.where(np.arange(64) < 32, 0, 255)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(argb, format="argb")))
        out.mux(stream.encode(None))
    rgb = read(tmp_path / "ghost.mov")[0].rgb
    assert rgb[:, :30].max() < 8 and rgb[:, 34:].min() > 190


@pytest.mark.parametrize("gop,rate", [(5, 10), (10, 10), (7, 10), (1, 10), (250, 10), (12, 30)])
def test_skimming_stays_within_what_it_promises(tmp_path, gop, rate):
    """Never a later picture, less than one period early, none twice; exact where groups are longer than a period."""
    stamps = [round(i / rate, 3) for i in range(8 * rate)]
    path = render(tmp_path / "group.mp4", stamps, gop=gop, options={"preset": "ultrafast", "sc_threshold": "0"})
    lazy, full = read(path), read(path, limits=Limits(skim=False))
    assert [round(f.time) for f in full] == list(range(8))
    assert len({f.time for f in lazy}) == len(lazy) == 8
    for seen, wanted in zip(lazy, full, strict=True):
        assert wanted.time - 1.0 < seen.time <= wanted.time
        assert int(seen.rgb.mean()) == pytest.approx(gray_of(round(seen.time * rate)), abs=5)
    if gop > rate or rate % gop == 0:
        assert [f.time for f in lazy] == [f.time for f in full]


def test_a_file_that_lies_about_keyframes_is_read_in_full(tmp_path):
    """An index that calls every picture a key must not give gray smears: the reader starts over and decodes all."""
    stamps = [i / 10 for i in range(60)]
    path = render(tmp_path / "liar.mp4", stamps, "mpeg4", options={"qscale": "2"}, paint=lambda i: noisy(i))
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"stss") : raw.index(b"stss") + 4] = b"skip"  # without the list of keyframes, all count as such
    path.write_bytes(raw)
    frames = read(path)
    assert [f.time for f in frames] == pytest.approx(range(6), abs=1e-6)
    for frame, index in zip(frames, range(0, 60, 10), strict=True):
        assert np.abs(frame.rgb.astype(int) - noisy(index)).mean() < 12


def noisy(index: int) -> np.ndarray:
    """Coarse noise that drifts, so that a picture decoded without its predecessors is visibly wrong."""
    base = np.random.default_rng(3).integers(0, 255, (6, 8, 1)).astype(np.uint8).repeat(8, 0).repeat(8, 1).repeat(3, 2)
    return np.roll(base, index, axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_loses_only_the_damaged_pictures(tmp_path, seed):
    noise = np.random.default_rng(0).integers(0, 255, (90, 48, 64, 3)).astype(np.uint8)
    stamps = [i / 30 for i in range(90)]
    path = render(tmp_path / "hurt.mp4", stamps, gop=10, paint=lambda i: noise[i], **X264)
    raw = bytearray(path.read_bytes())
    start, chance = raw.index(b"mdat") + 3000, random.Random(seed)
    for _ in range(30):
        raw[chance.randrange(start, start + 300_000)] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)
    found = probe(path, fps=None)
    assert found["ok"] and 90 - 30 <= found["frames"] <= 90
    assert found["frames"] + found["skipped"] >= 90


def test_a_cut_upload_gives_what_is_there(tmp_path):
    first = {"movflags": "faststart"}
    path = render(tmp_path / "whole.mp4", [i / 10 for i in range(100)], gop=10, container=first, **X264)
    whole = path.read_bytes()
    data = whole.index(b"mdat")
    path.write_bytes(whole[: data + (len(whole) - data) * 6 // 10])
    assert 40 <= probe(path, fps=None)["frames"] <= 80
    path.write_bytes(whole[: data + 40])
    assert probe(path)["kind"] in ("cannot_decode", "no_frames")


@pytest.mark.parametrize("lost", [100, 1500, 3000])
def test_a_recording_without_its_index_says_so(tmp_path, lost):
    path = render(tmp_path / "whole.mp4", [i / 10 for i in range(100)], **X264)
    path.write_bytes(path.read_bytes()[:-lost])
    found = probe(path)
    assert not found["ok"] and "index" in found["message"]


def test_copy_protection_is_named(tmp_path):
    key = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "00" * 16, "encryption_kid": "11" * 16}
    with av.open(tmp_path / "locked.mp4", "w", options=key) as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(10):
            out.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        out.mux(stream.encode(None))
    assert probe(tmp_path / "locked.mp4")["kind"] == "drm"


def test_a_packed_index_is_refused(tmp_path):
    """A good file whose index is zlib-compressed, as old QuickTime did it: a megabyte of it once became a gigabyte."""
    path = render(tmp_path / "packed.mov", [i / 10 for i in range(30)], **X264)
    raw = path.read_bytes()
    at = raw.index(b"moov") - 4
    moov = raw[at : at + int.from_bytes(raw[at : at + 4], "big")]
    body = zlib.compress(moov)
    cmvd = struct.pack(">I4sI", 12 + len(body), b"cmvd", len(moov)) + body
    cmov = struct.pack(">I4s", 20 + len(cmvd), b"cmov") + struct.pack(">I4s4s", 12, b"dcom", b"zlib") + cmvd
    path.write_bytes(raw[:at] + struct.pack(">I4s", 8 + len(cmov), b"moov") + cmov)
    with av.open(path) as naive:
        assert naive.streams.video  # FFmpeg itself would unpack it
    assert probe(path)["kind"] == "not_a_video"


def test_cover_art_is_no_video(tmp_path):
    with av.open(tmp_path / "song.mp4", "w") as out:
        sound, cover = out.add_stream("aac", rate=8000), out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
        out.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 8000, 0
        out.mux(sound.encode(silence))
        out.mux(sound.encode(None))
    assert probe(tmp_path / "song.mp4")["kind"] == "no_video"


@pytest.mark.parametrize(
    "name,content,kind",
    [
        ("a.mp4", b"", "empty"),
        ("b.mp4", b"#EXTM3U\n", "not_a_video"),
        ("c.mp4", b"\xff\xd8\xff\xe0" + bytes(64), "image_not_video"),
        ("d.mp4", b"\x00\x00\x00\x18ftypheic" + bytes(64), "image_not_video"),
        ("e.mp4", b"\x00\x00\x00\x08moov\x00\x00\x00\x20cmov\x00\x00\x00\x0cdcomzlib", "not_a_video"),
        ("f.mp4", b"\x00\x00\x00\x18ftypisom" + bytes(8) + b"\x00\x00\x00\x40mdat" + bytes(56), "not_a_video"),
    ],
)
def test_what_is_no_video_is_refused_by_name(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError) as error:
        open_video(tmp_path / name)
    assert error.value.kind == kind and clean(str(error.value)) and isinstance(error.value, UserError)


def test_limits_hold_before_decoding(tmp_path):
    path = render(tmp_path / "small.mp4", [0, 0.5], **X264)
    assert probe(path, limits=Limits(pixels=64 * 48 - 1))["kind"] == "too_large"
    assert probe(path, limits=Limits(bytes=100))["kind"] == "too_big"
    assert probe(path, limits=Limits(seconds=0))["kind"] == "too_slow"
    assert probe(path, limits=Limits(pixels=64 * 48))["ok"]
