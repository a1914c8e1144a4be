"""Live sources of our own for tests: a real RTSP server, HLS over HTTP, a folder that somebody records into."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import pytest

from tests.sources.test_video import X264, render

PYTHON = "/usr/bin/python3"  # the system's own, which finds Debian's packages
SERVER = Path(__file__).with_name("rtsp_server.py")
MISSING = "no RTSP server: apt-get install gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-good"
RATE = 10  # pictures a second


@functools.cache
def has_rtsp_server() -> bool:
    program = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, GstRtspServer; "
    program += "Gst.init(None); assert Gst.ElementFactory.find('rtph264pay') and Gst.ElementFactory.find('qtdemux')"
    with contextlib.suppress(OSError):
        return subprocess.run([PYTHON, "-c", program], capture_output=True).returncode == 0
    return False


needs_rtsp_server = pytest.mark.skipif(not has_rtsp_server(), reason=MISSING)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def clip(path: Path, seconds: float = 60.0) -> Path:
    """H.264 whose grey says its second: 20 + 3 a second."""
    stamps = [i / RATE for i in range(round(seconds * RATE))]
    how = {**X264, "paint": lambda i: _grey(i / RATE), "gop": RATE}
    return render(path, stamps, **how)


def _grey(second: float):
    import numpy as np

    return np.full((48, 64, 3), 20 + round(3 * second), np.uint8)


def second_of(rgb) -> float:
    """The clip's second that a picture says, to a third of a second."""
    return (float(rgb.mean()) - 20) / 3


class RtspServer:
    """Shows a clip at `url`; may be killed and started again at the same address."""

    def __init__(self, path: Path, *login: str) -> None:
        self.path, self.login, self.port = path, login, free_port()
        at = f"{login[0]}:{login[1]}@" if login else ""
        self.url = f"rtsp://{at}127.0.0.1:{self.port}/live"
        self.start()

    def start(self) -> None:
        command = [PYTHON, str(SERVER), str(self.path), str(self.port), *self.login]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._process.stdout is not None and self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def rtsp_server(path: Path, *login: str) -> Iterator[RtspServer]:
    server = RtspServer(path, *login)
    try:
        yield server
    finally:
        server.kill()


class Hls:
    """A live playlist over HTTP of segments made beforehand; `publish` adds the next one, `end` says it is over."""

    def __init__(self, folder: Path, segments: int = 8, seconds: int = 2) -> None:
        self.folder, self.seconds, self._count = folder, seconds, 0
        self._parts = segmented(clip(folder / "whole.mp4", segments * seconds), folder, seconds)
        self.asked: list[str] = []  # paths
        asked = self.asked

        class Quiet(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                asked.append(self.path)

        handler = functools.partial(Quiet, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/live.m3u8"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def publish(self, count: int = 1) -> None:
        self._count += count
        self._write("")

    def end(self) -> None:
        self._write("#EXT-X-ENDLIST\n")

    def _write(self, tail: str) -> None:
        lines = [f"#EXTINF:{self.seconds},\n{part.name}\n" for part in self._parts[: self._count]]
        head = f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:{self.seconds}\n#EXT-X-MEDIA-SEQUENCE:0\n"
        (self.folder / "new.m3u8").write_text(head + "".join(lines) + tail)
        os.replace(self.folder / "new.m3u8", self.folder / "live.m3u8")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def segmented(path: Path, folder: Path, seconds: int) -> list[Path]:
    """The clip as MPEG transport segments."""
    options = {"segment_time": str(seconds), "segment_format": "mpegts", "reset_timestamps": "0"}
    with (
        av.open(str(path)) as source,
        av.open(str(folder / "part%03d.ts"), "w", format="segment", options=options) as out,
    ):
        stream = source.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                out.mux(packet)
    return sorted(folder.glob("part*.ts"))


class Recorder:
    """Records a clip into a folder, a file of some seconds after the other, each at the time at which it is whole."""

    def __init__(self, folder: Path, seconds: float = 1.0) -> None:
        self.folder, self.seconds, self.count = folder, seconds, 0
        self._whole = folder.parent / "made"
        self._whole.mkdir()

    def record(self, count: int = 1, age: float = 0.0) -> None:
        """The next files, as if written so many seconds ago."""
        for _ in range(count):
            made = self._whole / f"{self.count:04}.mp4"
            begins = self.count * self.seconds
            stamps = [i / RATE for i in range(round(self.seconds * RATE))]
            paint = functools.partial(lambda begins, i: _grey(begins + i / RATE), begins)
            render(made, stamps, **{**X264, "paint": paint})
            shutil.copy(made, self.folder / f".{made.name}")
            os.replace(self.folder / f".{made.name}", self.folder / made.name)
            self.count += 1
            then = time.time() - age
            os.utime(self.folder / made.name, (then, then))
