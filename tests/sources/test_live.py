"""Live sources: what comes in, at which second, what happens when they break off, and what they may not do."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources import live
from pipeline.sources.address import address, addresses
from pipeline.sources.live import Receiver
from pipeline.stream import Event, UserError
from tests.sources.serving_live import (
    Hls,
    Recorder,
    clip,
    free_port,
    needs_rtsp_server,
    rtsp_server,
    second_of,
    segmented,
)

# --- addresses -------------------------------------------------------------------------------------------------------


def test_an_address_has_a_name_and_shows_nothing_else(tmp_path):
    door = address("Front  door=rtsp://admin:s3cret@camera.local:554/user=a&password=b", "Source 1")
    assert (door.kind, door.name) == ("rtsp", "Front door")
    assert door.where == "rtsp://admin:s3cret@camera.local:554/user=a&password=b"
    assert "s3cret" not in repr(door) and "camera" not in repr(door)
    hls, bare = addresses(["https://example.org/tv/live.m3u8?token=abc=1", f"{tmp_path}"])
    assert (hls.kind, hls.name, bare.kind, bare.name) == ("hls", "Source 1", "folder", "Source 2")


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "concat:a.ts|b.ts",
        "http://example.org/s3cret.mp4",
        "ftp://u:s3cret@h/a.m3u8",
        "rtsp://u:s3cret@host:99999/x",
        "rtsp:///s3cret",
        "/no/such/s3cret",
        "tcp://u:s3cret@host",
        "Door=udp://s3cret@1",
        "",
    ],
)
def test_what_is_no_live_source_is_refused_without_its_secrets(text):
    with pytest.raises(UserError) as refused:
        address(text, "Source 1")
    assert "nothing was started" in str(refused.value) and "s3cret" not in str(refused.value)


def test_two_sources_need_two_names(tmp_path):
    with pytest.raises(UserError, match="called Yard"):
        addresses([f"Yard={tmp_path}", f"Yard={tmp_path}"])


# --- receiving -------------------------------------------------------------------------------------------------------


class Seen:
    """What a receiver gave: pictures with their seconds and when they came, gaps, whether it is over."""

    def __init__(self) -> None:
        self.pictures: list[tuple[np.ndarray, float, float]] = []
        self.gaps: list[Event] = []
        self.over = False

    def offer(self, rgb: np.ndarray, second: float) -> None:
        self.pictures.append((rgb, second, time.monotonic()))

    def end(self) -> None:
        self.over = True

    @property
    def seconds(self) -> list[float]:
        return [second for _, second, _ in self.pictures]


@pytest.fixture
def receive() -> Iterator[Callable[..., tuple[Receiver, Seen]]]:
    """receive(address, ...) -> (Receiver, Seen), closed afterwards within a second."""
    open_ones: list[Receiver] = []

    def start(where: str, **more) -> tuple[Receiver, Seen]:
        seen = Seen()
        receiver = Receiver(address(where, "Test"), seen.offer, seen.gaps.append, seen.end, fps=2.0, **more)
        open_ones.append(receiver)
        return receiver, seen

    yield start
    for receiver in open_ones:
        began = time.monotonic()
        receiver.close()
        receiver.join(5)
        assert not receiver.running and time.monotonic() - began < 1.0


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def on_the_clock(seen: Seen, within: float) -> None:
    """Seconds rise, and are those of a clock on the wall, but for what piled up while a connection was opened."""
    assert all(a < b for a, b in zip(seen.seconds, seen.seconds[1:]))
    ahead = [second - came for _, second, came in seen.pictures]
    gaps = [seen.seconds.index(gap.until) for gap in seen.gaps]
    steady = [ahead[at - 1] for at in (*gaps, len(ahead))]  # of every connection the newest
    assert max(ahead) - min(steady) < within, (ahead, steady)


@needs_rtsp_server
def test_rtsp_that_is_killed_and_restarted_goes_on_after_an_honest_gap(tmp_path, receive, caplog):
    """The server starts its clip anew for everybody, so seconds after the gap are ours to get right."""
    caplog.set_level(logging.DEBUG)
    with rtsp_server(clip(tmp_path / "clip.mp4"), "admin", "s3cret") as server:
        receiver, seen = receive(server.url)
        until(lambda: len(seen.pictures) >= 12)
        begin = len(seen.pictures)
        assert seen.seconds[0] == 0 and seen.pictures[0][0].shape == (48, 64, 3)
        apart = [second_of(rgb) - second for rgb, second, _ in seen.pictures]
        assert max(apart) - min(apart) < 0.7  # its own clock
        server.kill()
        until(lambda: receiver.trouble)
        assert "asked again" in receiver.trouble and "s3cret" not in receiver.trouble
        before = len(seen.pictures)
        time.sleep(1.5)
        assert len(seen.pictures) == before and not seen.gaps
        server.start()
        until(lambda: len(seen.pictures) >= before + 12)
        assert before >= begin and not receiver.trouble
        (told,) = seen.gaps
        assert (told.kind, told.time, told.until) == ("gap", seen.seconds[before - 1], seen.seconds[before])
        assert told.until - told.time > 1.5
        assert second_of(seen.pictures[before][0]) < 2 < seen.seconds[before]  # the clip began anew, the stream did not
        on_the_clock(seen, within=1.0)
    assert "s3cret" not in caplog.text and "admin" not in caplog.text


@needs_rtsp_server
def test_a_wrong_password_is_no_answer_and_is_said_nowhere(tmp_path, receive):
    with rtsp_server(clip(tmp_path / "clip.mp4", 5), "admin", "right") as server:
        receiver, seen = receive(server.url.replace("right", "wr0ng"))
        until(lambda: receiver.trouble)
        assert "wr0ng" not in receiver.trouble and not seen.pictures


@needs_rtsp_server
def test_the_reading_process_shows_no_address_and_can_open_nothing_more(tmp_path, receive):
    with rtsp_server(clip(tmp_path / "clip.mp4"), "admin", "s3cret") as server:
        receiver, seen = receive(server.url)
        until(lambda: seen.pictures)
        proc = Path(f"/proc/{receiver._process.pid}")
        told = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
        assert b"s3cret" not in told and b"127.0.0.1" not in told
        limits = {line[:26].strip(): line[26:47].strip() for line in (proc / "limits").read_text().splitlines()}
        taken = sorted(int(name) for name in os.listdir(proc / "fd"))
        assert limits["Max open files"] == str(len(taken)) and taken == list(range(len(taken)))  # none is free
        assert limits["Max file size"] == "0"


def test_a_source_that_is_not_there_is_asked_ever_less_often(receive, monkeypatch):
    asked: list[float] = []
    frames = Receiver._frames

    def counted(self):
        asked.append(time.monotonic())
        return frames(self)

    monkeypatch.setattr(Receiver, "_frames", counted)
    monkeypatch.setattr(live, "WAITS", (0.1, 0.4, 30.0))
    receiver, seen = receive(f"rtsp://u:s3cret@127.0.0.1:{free_port()}/x")
    until(lambda: len(asked) == 3)
    assert asked[2] - asked[1] > asked[1] - asked[0] - 0.1 and not seen.gaps
    until(lambda: receiver.trouble)
    assert "s3cret" not in receiver.trouble


@pytest.fixture
def hls(tmp_path) -> Iterator[Hls]:
    server = Hls(tmp_path)
    yield server
    server.close()


def test_hls_is_received_as_it_is_published_and_ends_when_it_says_so(hls, receive):
    hls.publish(2)
    _, seen = receive(hls.url)
    until(lambda: seen.pictures)
    for _ in range(3):
        time.sleep(1.0)
        hls.publish()
    until(lambda: len(seen.pictures) >= 10)
    on_the_clock(seen, within=1.5)  # a segment's pictures come at once, and are given in their time
    apart = [second_of(rgb) - second for rgb, second, _ in seen.pictures]
    assert max(apart) - min(apart) < 0.7 and not seen.gaps
    hls.end()
    until(lambda: seen.over)


def playlist(folder: Path, name: str, *segments: str, tag: str = "") -> None:
    lines = [f"#EXTINF:2,\n{segment}\n" for segment in segments]
    head = f"#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n{tag}"
    (folder / name).write_text(head + "".join(lines) + "#EXT-X-ENDLIST\n")


@pytest.mark.parametrize("trick", ["file", "concat", "subfile", "data", "playlist", "map", "key", "redirect"])
def test_hls_opens_nothing_but_http(hls, receive, trick, tmp_path_factory):
    """A playlist names a good video of this machine, which nobody may see through it."""
    private = tmp_path_factory.mktemp("private")
    secret = segmented(clip(private / "secret.mp4", 4), private, 2)[0]
    playlist(private, "inner.m3u8", f"{secret}")
    (hls.folder / "redirect.ts").write_bytes(b"")
    target, tag = f"file://{secret}", ""
    if trick == "concat":
        target = f"concat:{secret}|{secret}"
    if trick == "subfile":
        target = f"subfile,,start,0,end,0,,:{secret}"
    if trick == "data":
        target = "data:video/mp2t;base64,AAAA"
    if trick == "map":
        target, tag = "part000.ts", f'#EXT-X-MAP:URI="file://{secret}"\n'
    if trick == "key":
        target, tag = "part000.ts", f'#EXT-X-KEY:METHOD=AES-128,URI="file://{secret}"\n'
    playlist(hls.folder, "live.m3u8", target, tag=tag)
    if trick == "playlist":
        inner = f"file://{private}/inner.m3u8"
        (hls.folder / "live.m3u8").write_text(f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{inner}\n")
    if trick == "redirect":
        (hls.folder / "live.m3u8").write_text(f"#EXTM3U\n#EXTINF:2,\nhttp://127.0.0.1:{free_port()}/gone.ts\n")
    receiver, seen = receive(hls.url)
    until(lambda: receiver.trouble or seen.over or seen.pictures)
    assert not seen.pictures, "a file of this machine was shown"


def test_the_same_video_is_shown_over_http(hls, receive):
    """The test before can fail: what its playlists name is a good video."""
    playlist(hls.folder, "live.m3u8", "part000.ts")
    _, seen = receive(hls.url)
    until(lambda: seen.over)
    assert len(seen.pictures) >= 3


def test_a_folder_is_followed_in_order_from_its_newest_whole_video_on(tmp_path, receive):
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "notes.txt").write_text("no video")
    os.utime(folder / "notes.txt", (1, 1))
    recorder = Recorder(folder)
    recorder.record(3, age=10.0)
    _, seen = receive(f"Yard={folder}")
    until(lambda: len(seen.pictures) >= 2)
    assert second_of(seen.pictures[0][0]) >= 1.5  # the first two are history
    for _ in range(3):
        recorder.record()
        time.sleep(1.0)
    until(lambda: second_of(seen.pictures[-1][0]) > 4)
    assert all(a < b for a, b in zip(seen.seconds, seen.seconds[1:]))
    shown = [round(second_of(rgb)) for rgb, _, _ in seen.pictures]
    assert shown == sorted(shown) and set(range(3, 5)) <= set(shown)
    (told,) = seen.gaps  # nothing was recorded for ten seconds before the fourth
    assert told.time == pytest.approx(0.95, abs=0.1) and told.until - told.time == pytest.approx(10.5, abs=2.5)


def test_a_folder_far_behind_leaves_out_the_older_videos(tmp_path, receive):
    folder = tmp_path / "recordings"
    folder.mkdir()
    recorder = Recorder(folder)
    recorder.record(1, age=60.0)
    taken: list[int] = []
    _, seen = receive(f"{folder}", room=lambda: bool(taken))
    for age in range(40, 10, -3):
        recorder.record(1, age=float(age))
    taken.append(1)
    until(lambda: seen.pictures and second_of(seen.pictures[-1][0]) >= 9.5)
    assert len({round(second_of(rgb)) for rgb, _, _ in seen.pictures}) < 8 and seen.gaps


def test_a_process_that_speaks_nonsense_is_ended(receive, monkeypatch):
    """Nothing that a reading process says is believed: here pictures larger than were asked for."""
    script = "import sys,json,struct,os\nsys.stdin.readline()\n"
    head = json.dumps({"type": "frame", "width": 9000, "height": 1, "time": 0.0})
    script += f"h={head!r}.encode()\nos.write(1, struct.pack('<II', len(h), 3) + h + b'abc')\n"
    monkeypatch.setattr("pipeline.sources.process.READER", "live_nonsense")
    folder = Path(os.environ.get("PYTEST_TMP", "/tmp")) / f"nonsense-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    (folder / "live_nonsense.py").write_text(script)
    monkeypatch.syspath_prepend(str(folder))
    receiver, seen = receive(f"rtsp://127.0.0.1:{free_port()}/x")
    until(lambda: receiver.trouble)
    assert not seen.pictures and "broke its reader" in receiver.trouble
