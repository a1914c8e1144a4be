"""How a file is split among readers never changes which pictures are seen, whatever becomes of the readers."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.sources import readers
from pipeline.sources.file import Limits, VideoError, VideoFile, open_video
from pipeline.sources.reader.reader import Reader
from pipeline.sources.reader.segments import Segment, SegmentReader, Strayed, Ticket
from pipeline.sources.readers import helpers
from pipeline.stream import Frame
from tests.sources.test_cases import CASES, ENDS
from tests.sources.test_corpus import CORPUS, VIDEOS, clean, heavy, per_file
from tests.sources.test_video import X264, noisy, render

Seen = list[tuple[float, float | None, bytes]]
SPLIT = Limits(readers=3, segment=1, alone=0, seconds=120)
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def seen(path: Path, limits: Limits, fps: float | None = 1.0) -> tuple[Seen, str]:
    """All pictures with their times, and how it ended: a kind of error, or what was found."""
    pictures: Seen = []
    try:
        with open_video(path, fps=fps, long_side=64, limits=limits) as video:
            pictures.extend(map(essence, video))
            found = video.findings
            return pictures, f"{video.seconds} {video.skipped} {found.lone_stamps} {found.joined_jumps}"
    except VideoError as error:
        return pictures, error.kind


def essence(frame: Frame) -> tuple[float, float | None, bytes]:
    return frame.time, frame.until, frame.rgb.tobytes()


def assert_any_split(path: Path, fps: float | None = 1.0) -> None:
    assert seen(path, SPLIT, fps) == seen(path, Limits(readers=1, seconds=120), fps)


# --- the same pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ENDS))
def test_a_case_is_the_same_for_any_number_of_readers(name):
    assert_any_split(CASES / name)


def splittable(entry: dict) -> bool:
    """Files that more than one reader may get, by their first bytes; attacks and bombs are left to their own tests."""
    with (CORPUS / entry["file"]).open("rb") as file:
        head = file.read(12)
    known = head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide") or head[:4] == b"\x1aE\xdf\xa3"
    return known and entry["group"] not in ("attack", "bomb") and not heavy(entry)


@per_file([e for e in VIDEOS if splittable(e)])
def test_a_file_of_the_corpus_is_the_same_for_any_number_of_readers(entry):
    assert_any_split(CORPUS / entry["file"], fps=2.0)


JOB = {"pixels": 10**7, "streams": 9, "seconds": 60, "threads": 1, "skim": True, "long_side": 64, "alone": 0}


def in_one_process(path: Path, fps: float | None, segment: int) -> tuple[list[tuple[float, bytes]], int]:
    """What a scout and a helper give, both run here: (pictures with their times, how many are the helper's)."""
    with path.open("rb") as file:
        job = JOB | {"fd": file.fileno(), "fps": fps, "segment": segment, "share": segment > 0}
        scout, helper = Reader(file.fileno(), job, lambda _: None), Reader(file.fileno(), job, lambda _: None)
        found = [
            (item, at) if isinstance(item, Ticket) else (helper.painter.paint(item).tobytes(), at)
            for item, at in scout.sampled()
        ]
    with path.open("rb") as file:
        helper = Reader(file.fileno(), JOB | {"fd": file.fileno(), "fps": fps, "share": False}, lambda _: None)
        segments = SegmentReader(helper, lambda _: None)
        theirs: dict[int, bytes] = {}
        tickets = [item for item, _ in found if isinstance(item, Ticket)]
        for cut in dict.fromkeys(id(t.segment) for t in tickets):
            mine = [t for t in tickets if id(t.segment) == cut]
            part = Segment(mine[0].segment.first, mine[0].segment.count, [(t.pts, 0.0, 0.0) for t in mine])
            theirs |= {mine[i].pts: helper.painter.paint(frame).tobytes() for frame, i in segments.frames(part)}
    return [(at, theirs[item.pts] if isinstance(item, Ticket) else item) for item, at in found], len(theirs)


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    """B-frames, open and closed groups, variable rate, all keyframes, other codecs; every picture is its own."""
    gc.freeze()  # as the reading process does: each of its collections took half a second here
    folder, chance = tmp_path_factory.mktemp("films"), np.random.default_rng(1)
    even = [i / 10 for i in range(80)]
    uneven = [0.0, *np.round(np.cumsum(chance.choice([0.02, 0.04, 0.2, 1.4], 79)), 3)]
    closed = {"preset": "medium", "bf": "3", "sc_threshold": "0", "qp": "20"}
    kinds = [
        ("closed.mp4", even, "libx264", closed),
        ("open.mkv", even, "libx264", closed | {"x264-params": "open-gop=1"}),
        ("uneven.mkv", uneven, "libx264", closed),
        ("hevc.mp4", even, "libx265", {"x265-params": "log-level=none:open-gop=0:bframes=3:keyint=12"}),
        ("vp9.webm", even, "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
        ("mpeg4.mp4", even, "mpeg4", {}),
        ("intra.mov", even, "mjpeg", {}),
    ]
    return [
        render(folder / name, stamps, codec, gop=12, options=options, paint=noisy, **pixels(codec))
        for name, stamps, codec, options in kinds
    ]


def pixels(codec: str) -> dict[str, str]:
    return {"pix_fmt": "yuvj420p"} if codec == "mjpeg" else {}


@few
@given(which=st.integers(0, 6), segment=st.integers(1, 40), fps=st.sampled_from([None, 0.3, 1.0, 2.5, 7.0]))
def test_any_cut_gives_the_same_pictures(films, which, segment, fps):
    film = films[which]
    whole, _ = in_one_process(film, fps, 0)
    parts, given_away = in_one_process(film, fps, segment)
    assert parts == whole, film.name
    assert (given_away == 0) == (film.name == "open.mkv")


def test_a_long_film_is_split_and_a_short_or_stubborn_one_is_not(films, tmp_path):
    avi = render(tmp_path / "film.avi", [i / 10 for i in range(30)], "mpeg4", gop=12, rate=10)
    cases = [(films[0], SPLIT, False), (films[1], SPLIT, True), (films[1], Limits(), False), (avi, SPLIT, True)]
    for film, limits, unsplit in cases:
        with open_video(film, limits=limits) as video:
            list(video)
            notes = video.findings.notes()
        assert video.findings.unsplit == unsplit == any("one read it" in note for note in notes)
        assert all(map(clean, notes))


# --- files that lie -------------------------------------------------------------------------------------------------


def liar(path: Path, seed: int) -> Path:
    """Damage in the middle of the pictures of a good film."""
    raw, chance = bytearray(path.read_bytes()), np.random.default_rng(seed)
    start = raw.index(b"mdat")
    for at in chance.integers(start + (len(raw) - start) // 3, start + (len(raw) - start) * 2 // 3, 12):
        raw[at] ^= 1 << int(chance.integers(8))
    hurt = path.with_name(f"hurt-{seed}.mp4")
    hurt.write_bytes(raw)
    return hurt


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_film_loses_and_repeats_nothing_more_for_being_split(tmp_path, seed):
    stamps = [i / 10 for i in range(120)]
    path = render(tmp_path / "whole.mp4", stamps, gop=10, paint=noisy, container={"movflags": "faststart"}, **X264)
    assert_any_split(liar(path, seed), fps=None)


def test_a_helper_notices_what_was_not_promised(films):
    with films[0].open("rb") as file:
        job = JOB | {"fd": file.fileno(), "fps": None, "share": False}
        stamps = [packet.pts or 0 for packet in Reader(file.fileno(), job, lambda _: None).packets()]
        segments = SegmentReader(Reader(file.fileno(), job, lambda _: None), lambda _: None)
        with pytest.raises(Strayed):  # packets from the middle of a group
            list(segments.frames(Segment(3, 9, [(stamps[5], 0.3, 0.0)])))


# --- readers that die -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_film(tmp_path_factory) -> Path:
    """Forty groups of big pictures: decoding takes long enough to be interrupted."""
    path = tmp_path_factory.mktemp("long") / "film.mp4"
    return render(path, [i / 10 for i in range(400)], gop=10, size=(640, 480), paint=large, **X264)


def large(index: int) -> np.ndarray:
    return np.tile(noisy(index), (10, 10, 1))


def opened(path: Path, **more) -> VideoFile:
    return open_video(path, fps=None, long_side=320, limits=Limits(readers=2, segment=20, alone=0, **more))


@pytest.fixture(scope="module")
def whole(long_film) -> list[Frame]:
    with opened(long_film) as video:
        return list(video)


@pytest.mark.parametrize("after", [15, 100])
@pytest.mark.parametrize("victim, signum", [(0, signal.SIGKILL), (1, signal.SIGKILL), (2, signal.SIGSEGV), (None, 9)])
def test_whichever_reader_dies_once_no_picture_is_lost(long_film, whole, after, victim, signum):
    """In the order of their starts: the scout, either helper, all of them."""
    with opened(long_film, ahead=20 * whole[0].rgb.nbytes) as video:
        frames = [next(video) for _ in range(after)]
        pids = sorted(process.pid for process in video.processes)
        killed = pids if victim is None else pids[victim : victim + 1]
        for pid in killed:
            os.kill(pid, signum)
        frames += video
    assert killed and [frame.time for frame in frames] == pytest.approx([i / 10 for i in range(400)])
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames, whole, strict=True))


@pytest.mark.parametrize("after", [1, 399])
def test_readers_that_die_at_either_end_lose_no_picture(long_film, whole, after):
    with opened(long_film) as video:
        frames = [next(video) for _ in range(after)]
        for process in video.processes:
            os.kill(process.pid, signal.SIGKILL)
        frames += video
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(frames, whole, strict=True))


def test_readers_that_die_again_and_again_end_in_a_sentence(long_film):
    with opened(long_film, ahead=1 << 20) as video:
        frames = []
        with pytest.raises(VideoError) as error:
            for frame in video:
                frames.append(frame)
                for process in video.processes:
                    os.kill(process.pid, signal.SIGKILL)
        assert clean(str(error.value)) and len(frames) < 400


@pytest.mark.parametrize("wait", [0.0, 0.3, 1.0])
def test_close_leaves_no_process_behind(long_film, wait):
    video = opened(long_film)
    next(video)
    time.sleep(wait)
    pids = [process.pid for process in video.processes]
    began = time.monotonic()
    video.close()
    assert time.monotonic() - began < 2 and video.processes == []
    assert pids or wait  # on a quick machine all is read within a second
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids) and list(video) == []


def test_a_forgotten_file_leaves_no_process_behind(long_film):
    video = opened(long_film)
    next(video)
    pids = [process.pid for process in video.processes]
    del video
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


# --- memory ---------------------------------------------------------------------------------------------------------


def test_what_waits_to_be_taken_is_bounded(long_film):
    """Decoders run ahead of a slow taker, and then stand still."""
    one = 320 * 240 * 3
    with opened(long_film, ahead=20 * one) as video:
        next(video)
        time.sleep(1.5)
        assert 0 < video._readers._bytes <= 24 * one
        assert len(list(video)) == 399


def test_fewer_readers_run_less_far_ahead():
    assert readers.ahead(Limits(readers=1)) < readers.ahead(Limits(readers=2)) == 64 << 20
    assert readers.ahead(Limits(readers=8)) == readers.ahead(Limits(readers=16)) == 256 << 20
    assert readers.ahead(Limits(readers=2, ahead=5)) == 5


def resident(video: VideoFile) -> int:
    """Bytes of memory of this process and of all readers."""
    pids = [os.getpid(), *(process.pid for process in video.processes)]
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of processes from /proc")
def test_thirty_hours_take_no_more_memory_than_the_first(tmp_path):
    """Nothing grows with what was read: not the scout's plans, not the parts that are done."""
    pictures, size, ahead = 1800, (320, 240), 16 << 20
    path = render(tmp_path / "days.mp4", [60.0 * i for i in range(pictures)], gop=20, size=size, **X264)
    with open_video(path, limits=Limits(readers=2, segment=20, alone=0, ahead=ahead)) as video:
        held = []
        for i, _ in enumerate(video):
            if i % 60 == 59 and len(video.processes) == 3:
                held.append(resident(video))
    assert video.seconds == pytest.approx(60.0 * pictures, abs=61) and len(held) > 10
    assert max(held) - min(held[:10]) < ahead + (64 << 20) < pictures * size[0] * size[1] * 3


def test_decoders_run_ahead_of_a_slow_taker(long_film):
    with opened(long_film, ahead=256 << 20) as video:
        next(video)
        deadline = time.monotonic() + 60
        while video.processes and time.monotonic() < deadline:
            time.sleep(0.05)
        began = time.monotonic()
        assert len(list(video)) == 399 and time.monotonic() - began < 1


def test_large_pictures_have_few_readers():
    many = Limits(readers=64)
    assert helpers(many, 640, 360) == 64 > helpers(many, 1920, 1080) >= 32 > helpers(many, 3840, 2160) >= 12
    assert 4 >= helpers(many, 7680, 4320) >= helpers(many, 8192, 4320) >= 1
    assert helpers(Limits(readers=64, together=1), 64, 48) == 1


def test_two_threads_may_open_and_close_at_once(films):
    """Descriptors of one file must not be closed under another's reader."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(4):
                with open_video(films[0], limits=SPLIT) as video:
                    next(video)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
