"""Files that went wrong elsewhere, each as one example of a kind: what they become, and that savings change nothing."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.sources.file import Limits, VideoError, open_video, probe
from tests.sources.test_corpus import clean
from tests.sources.test_video import X264, gray_of, read, render

CASES = Path(__file__).parents[1] / "data" / "cases"
WHOLE = Limits(skim=False)
# name: pictures at one a second, all pictures, seconds
ENDS = {
    "lone_stamp_future.ts": (12, 120, 12.0),
    "lone_stamp_past.ts": (12, 120, 12.0),
    "lone_stamp_3s_past.ts": (12, 120, 12.0),
    "lone_stamp_once.ts": (12, 120, 12.0),
    "clock_set_mid.mkv": (10, 10, 9.04),
    "ts_splice_forward_9h.ts": (10, 100, 10.0),
    "last_duration_10h.mp4": (5, 49, 4.94),
    "hold_10min.mp4": (5, 5, 601.04),
    "still_10min.mp4": (2, 2, 599.04),
    "hours_30.mkv": (31, 31, 108_000.04),
    "timescale_10MHz.mp4": (8, 80, 7.94),
    "dup_pts.mkv": (6, 60, 5.9),
    "avi_b_index.avi": (6, 60, 6.0),
    "audio_leads_5s.mp4": (10, 100, 15.0),
    "audio_leads_5s.mkv": (11, 100, 15.02),
    "edit_empty_5s.mp4": (10, 100, 15.0),
    "frag_starts_30min.mp4": (10, 100, 10.0),
    "edit_two_pieces.mp4": (4, 40, 4.0),
    "ramp_edit_two_pieces.mp4": (4, 40, 4.0),
    "mjpeg_first_then_h264.mkv": (6, 60, 6.0),
    "burst60_last_changes.mp4": (11, 180, 50.5),
    "ts_pid_change.ts": (10, 100, 10.0),
    "ts_pid_change_same_pmt.ts": (10, 100, 10.0),
    "ts_codec_change.ts": (10, 99, 10.0),
    "hik_prefix.mp4": (5, 50, 5.0),
    "ps.mpg": (5, 50, 5.0),
    "esp32.mjpeg": (1, 20, 0.8),
    "open_gop_cut_h264.ts": (5, 100, 5.56),
    "open_gop_cut_hevc.ts": (5, 100, 5.6),
    "intra_refresh_cut.ts": (5, 112, 4.7),
}


@pytest.mark.parametrize("name", sorted(ENDS))
def test_a_case_becomes_what_it_is(name):
    sampled, every, seconds = ENDS[name]
    found, whole = probe(CASES / name), probe(CASES / name, fps=None)
    assert found["ok"] and whole["ok"], (found, whole)
    assert (found["frames"], whole["frames"]) == (sampled, every)
    assert found["seconds"] == pytest.approx(seconds, abs=0.15) == whole["seconds"] and found["skipped"] == 0


def test_every_case_has_its_ending():
    assert {path.name for path in CASES.iterdir()} == set(ENDS)


@pytest.mark.parametrize("fps", [1.0, 2.5])
@pytest.mark.parametrize("name", sorted(ENDS))
def test_savings_change_no_picture_of_a_case(name, fps):
    assert_same(CASES / name, fps)


def assert_same(path: Path, fps: float) -> None:
    lazy, full = read(path, fps=fps), read(path, fps=fps, limits=WHOLE)
    assert [f.time for f in lazy] == [f.time for f in full]
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(lazy, full, strict=True))


def test_what_was_mended_is_told():
    found = probe(CASES / "lone_stamp_future.ts")
    assert found["lone_stamps"] == 6 and found["joined_jumps"] == 0 and not found["times_guessed"]
    assert probe(CASES / "ts_splice_forward_9h.ts")["joined_jumps"] == 1
    assert probe(CASES / "esp32.mjpeg")["times_guessed"]
    with open_video(CASES / "lone_stamp_once.ts") as video:
        list(video)
        assert len(video.findings.notes()) == 1 and clean(video.findings.notes()[0])


def test_a_late_picture_keeps_the_players_second():
    """Sound leads by five seconds; the first picture fills them."""
    for name, first in (("audio_leads_5s.mp4", 5.0), ("audio_leads_5s.mkv", 5.023), ("edit_empty_5s.mp4", 5.0)):
        times = [f.time for f in read(CASES / name, fps=None)]
        assert times[0] == pytest.approx(first) and times[10] == pytest.approx(first + 1)


@pytest.mark.parametrize("name", ["hold_10min.mp4", "audio_leads_5s.mp4"])
def test_the_last_picture_of_an_even_file_needs_no_end(name):
    assert [f.until for f in read(CASES / name)] == [None] * ENDS[name][0]


def test_the_last_picture_knows_where_the_source_ends(tmp_path):
    """A picture on which sound goes on, or whose own duration is long, stands until there; no other one says so."""
    path = tmp_path / "sound.mp4"
    with av.open(path, "w") as out:
        stream, sound = out.add_stream("libx264", rate=10), out.add_stream("aac", rate=8000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), gray_of(i), np.uint8), format="rgb24")
            frame.pts = i
            out.mux(stream.encode(frame))
        for i in range(160):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 8000, i * 1024
            out.mux(sound.encode(silence))
        out.mux(stream.encode(None))
        out.mux(sound.encode(None))
    frames = read(path)
    assert [f.until for f in frames[:-1]] == [None] * 3 and frames[-1].until == pytest.approx(20.5, abs=0.2)
    assert probe(path)["seconds"] == pytest.approx(20.5, abs=0.2)


def test_the_slide_that_stays_is_seen():
    """Every ten seconds a burst at 60 a second, whose last picture changes and stays."""
    frames = read(CASES / "burst60_last_changes.mp4")
    assert any(abs(int(f.rgb.mean()) - 38) < 4 and 0 < f.time < 1 for f in frames)


@pytest.mark.parametrize("bframes", [0, 3])
@pytest.mark.parametrize("rate,gop", [(10, 5), (10, 10), (10, 7), (30, 12), (30, 250), (25, 25), (30, 1), (60, 90)])
def test_savings_change_no_picture(tmp_path, rate, gop, bframes):
    stamps = [round(i / rate, 3) for i in range(9 * rate)]
    options = {"preset": "medium", "bf": str(bframes), "sc_threshold": "0", "qp": "20"}
    path = render(tmp_path / "even.mp4", stamps, gop=gop, options=options)
    assert_same(path, 1.0)
    assert_same(path, 0.7)


@pytest.mark.parametrize(
    "codec,name", [("mpeg2video", "a.ts"), ("libx265", "a.mkv"), ("libvpx-vp9", "a.webm"), ("mpeg4", "a.mp4")]
)
def test_savings_change_no_picture_in_other_codecs(tmp_path, codec, name):
    options = {"libx265": {"x265-params": "log-level=none:keyint=20"}}.get(codec, {})
    if codec == "mpeg2video":  # which knows few clocks
        path = ten_a_second(tmp_path / name, codec, 100)
    else:
        path = render(tmp_path / name, [i / 25 for i in range(200)], codec, gop=15, rate=25, options=options)
    assert_same(path, 1.0)


@pytest.mark.parametrize("seed", range(6))
def test_savings_change_no_picture_where_rates_vary(tmp_path, seed):
    """Bursts, holds, dropped pictures, jitter; and whatever stays longer than a second is there."""
    chance = np.random.default_rng(seed)
    gaps = np.concatenate(
        [chance.choice([0.017, 0.034, 0.04, 0.2], 40 + 60 * int(chance.integers(3))) for _ in range(5)]
    )
    gaps[chance.integers(0, len(gaps), 6)] = chance.uniform(1.01, 12, 6)
    stamps = [0.0, *np.round(np.cumsum(gaps), 3)]
    options = {"preset": "medium", "bf": str(seed % 4), "qp": "20"}
    path = render(tmp_path / "uneven.mkv", stamps, gop=int(chance.choice([10, 30, 250])), options=options)
    assert_same(path, 1.0)
    times = [f.time for f in read(path)]
    stays = [a for a, b in itertools.pairwise(stamps) if b - a > 1.0]
    assert all(min(abs(t - at) for t in times) < 2e-3 for at in stays)


def test_savings_save(tmp_path):
    """Groups without a picture that is wanted are not decoded."""
    from pipeline.sources.reader.reader import Reader

    path = render(tmp_path / "long.mp4", [i / 30 for i in range(900)], gop=15, options={"preset": "ultrafast"})
    fed = []
    with path.open("rb") as file:
        job = {
            "pixels": 10**7,
            "streams": 9,
            "seconds": 60,
            "threads": 1,
            "fps": 0.5,
            "skim": True,
            "long_side": 64,
            "share": False,
        }
        reader = Reader(file.fileno(), job, lambda _: None)
        decode = reader.decode
        reader.decode = lambda packet: (fed.append(packet), decode(packet))[1]
        assert len(list(reader.sampled())) == 15
    assert len(fed) < 300


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video", "libx265"])
@pytest.mark.parametrize("off", [37_600, -9800, -3, 2])
def test_wild_stamps_in_other_codecs(tmp_path, codec, off):
    found = probe(wild(ten_a_second(tmp_path / "wild.ts", codec, 120), off), fps=None)
    assert found["frames"] == 120 and found["seconds"] == pytest.approx(12.0, abs=0.2), found


def ten_a_second(path: Path, codec: str, pictures: int) -> Path:
    """Ten pictures a second, a keyframe every second, without pictures that are shown in another order."""
    options = {"libx265": {"x265-params": "log-level=none:bframes=0"}, "libx264": {"preset": "ultrafast"}}
    with av.open(path, "w") as out:
        stream = out.add_stream(codec, rate=10, options=options.get(codec, {}))
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 64, 48, "yuv420p", 10
        for i in range(pictures):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), gray_of(i), np.uint8), format="rgb24")
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def wild(path: Path, off: float) -> Path:
    """Every twentieth stamp of a transport stream rewritten in place, all of them raised by 20,000 s."""
    raw, number = bytearray(path.read_bytes()), 0
    for at in range(0, len(raw), 188):
        pid, start = int.from_bytes(raw[at + 1 : at + 3], "big") & 0x1FFF, raw[at + 1] & 0x40
        pes = at + 4 + (1 + raw[at + 4] if raw[at + 3] & 0x20 else 0)
        if pid == 256 and start and raw[pes : pes + 3] == b"\0\0\1":
            by = 20_000 + (off if number % 20 == 13 else 0)
            for field in range(pes + 9, pes + 9 + raw[pes + 8] // 5 * 5, 5):
                put_stamp(raw, field, round(by * 90_000))
            number += 1
    assert number >= 100
    path.write_bytes(raw)
    return path


def put_stamp(raw: bytearray, at: int, by: int) -> None:
    """Adds `by` to the 33-bit stamp in the five bytes at `at` (ISO 13818-1, 2.4.3.6)."""
    a, b, c, d, e = raw[at : at + 5]
    old = (a >> 1 & 7) << 30 | b << 22 | (c >> 1) << 15 | d << 7 | e >> 1
    new = (old + by) % (1 << 33)
    raw[at : at + 5] = bytes(
        [a & 0xF1 | new >> 30 << 1, new >> 22 & 0xFF, new >> 14 & 0xFE | 1, new >> 7 & 0xFF, new << 1 & 0xFE | 1]
    )


def test_a_moving_webp_is_refused_in_its_own_sentence(tmp_path):
    with av.open(tmp_path / "a.webp", "w") as out:
        stream = out.add_stream("libwebp_anim", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), gray_of(i), np.uint8), format="rgb24")
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(VideoError) as error:
        open_video(tmp_path / "a.webp")
    assert error.value.kind == "moving_picture" and clean(str(error.value))


@pytest.mark.parametrize("count,kind", [(1, "image_not_video"), (3, "image_not_video"), (12, None)])
def test_jpeg_after_jpeg_is_a_video(tmp_path, count, kind):
    render(tmp_path / "one.avi", [i / 10 for i in range(count)], "mjpeg", rate=10, pix_fmt="yuvj420p")
    with av.open(tmp_path / "one.avi") as made:
        pictures = [bytes(p) for p in made.demux(video=0) if p.size]
    (tmp_path / "row.mjpeg").write_bytes(b"".join(pictures))
    found = probe(tmp_path / "row.mjpeg", fps=None)
    assert found.get("kind") == kind and found["frames"] == (0 if kind else count)


@pytest.mark.parametrize("prefix", [1, 40, 512, 3000])
def test_a_makers_prefix_is_passed_over(tmp_path, prefix):
    (tmp_path / "cam.mp4").write_bytes(b"IMKH"[:prefix] + bytes(max(0, prefix - 4)) + (CASES / "ps.mpg").read_bytes())
    assert probe(tmp_path / "cam.mp4", fps=None)["frames"] == 50


def test_three_tracks_one_after_the_other(tmp_path):
    """A stream that goes to another track and back: the pieces are the two files of the case, and the first again."""
    first = render(tmp_path / "a.ts", [i / 10 for i in range(40)], gop=10, rate=10, **X264)
    second = ten_a_second(tmp_path / "b.ts", "mpeg2video", 40)
    (tmp_path / "aba.ts").write_bytes(first.read_bytes() + second.read_bytes() + first.read_bytes())
    found = probe(tmp_path / "aba.ts", fps=None)
    assert found["ok"] and 110 <= found["frames"] <= 120 and found["seconds"] == pytest.approx(12, abs=1.0), found
