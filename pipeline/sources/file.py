"""Video files become frames with times.

`open_video` reads a file at a fixed rate, in one pass and in constant memory. The file is decoded by PyAV in a process
of its own (pipeline/sources/reader) that holds an open descriptor and nothing else; this side never looks at the file's
bytes and believes nothing the other side says beyond what it has checked. Never `cv2.VideoCapture`, never a system
ffmpeg: both have opened other people's files, or crashed, on uploads.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sources.refusals import Limits, VideoError, open_regular, sentence
from pipeline.stream import Frame

READER = "pipeline.sources.reader"
ORDINARY = Limits()


@dataclass(frozen=True)
class VideoInfo:
    """width, height: upright, square pixels, before shrinking. duration: seconds, None unless believable."""

    width: int
    height: int
    duration: float | None
    codec: str
    container: str
    bytes: int


@dataclass(frozen=True)
class Findings:
    """What was mended or left out of a file, known at its end.

    lone_stamps: pictures whose time was wild and lies between their neighbours' instead. joined_jumps: jumps of the
    clock that were not believed. times_guessed: the file holds no times; they are counted at a guessed rate.
    left_out: codec of a later part that cannot be read, or "".
    """

    lone_stamps: int = 0
    joined_jumps: int = 0
    times_guessed: bool = False
    left_out: str = ""

    def notes(self) -> list[str]:
        """The same in sentences, for the visitor."""
        notes = []
        if self.lone_stamps:
            notes.append(f"Wild times of {self.lone_stamps} pictures were set between their neighbours'.")
        if self.joined_jumps:
            notes.append(f"The file's clock jumps; parts were joined there ({self.joined_jumps} times).")
        if self.times_guessed:
            notes.append("The file holds no times, so they are counted at a guessed rate.")
        if self.left_out:
            notes.append(f"A later part ({self.left_out}) cannot be read and was left out; export it as MP4 (H.264).")
        return notes


def open_video(
    path: str | os.PathLike, *, fps: float | None = 1.0, long_side: int = 640, limits: Limits = ORDINARY
) -> VideoFile:
    """The pictures of a video file, `fps` a second (None: every one), longer side at most `long_side` pixels.

    Returns once the first picture is decoded. Raises VideoError where there is none to come.
    """
    if fps is not None and not (math.isfinite(fps) and 0 < fps <= 1000):
        raise ValueError("fps must be above 0 and at most 1000")
    if not 1 <= long_side <= 8192:
        raise ValueError("long_side must be 1 to 8192 pixels")
    fd = open_regular(path, limits)
    try:
        return VideoFile(fd, fps, long_side, limits)
    finally:
        os.close(fd)


class VideoFile:
    """Iterator of Frame over one file, and a context manager. One thread iterates; any thread may close.

    Seconds are those a browser's player shows. Which pictures: those on the screen at 0, 1/fps, 2/fps ... seconds, each
    once (gaps are not filled with copies), each with its own presentation time; the first is on the screen from 0 on.
    So nothing that stays longer than 1/fps is missed, however unevenly pictures come. Limits.skim: pictures that are
    neither wanted nor needed for others are not decoded; what is given is the same.

    info: VideoInfo. skipped: damaged packets so far. progress: 0..1. seconds: the end of the last picture, known at the
    end, like findings.
    """

    def __init__(self, fd: int, fps: float | None, long_side: int, limits: Limits) -> None:
        self.limits, self.long_side = limits, long_side
        self.skipped, self.progress, self.seconds, self.findings = 0, 0.0, 0.0, Findings()
        self._lock, self._closed, self._worked, self._last = threading.Lock(), False, 0.0, 0.0
        job = asdict(limits) | {"fd": fd, "fps": fps, "long_side": long_side}
        self._child = started(job, limits)
        self._finalizer = weakref.finalize(self, discard, self._child)
        try:
            self.info = self._read_info(os.fstat(fd).st_size)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> VideoFile:
        return self

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __next__(self) -> Frame:
        with self._lock:
            if self._closed:
                raise StopIteration
            try:
                return self._next_frame()
            except VideoError:
                stopped = self._closed
                self._finish()
                if stopped:  # close() from another thread killed the decoder: an end, not an error
                    raise StopIteration from None
                raise

    def close(self) -> None:
        """Stop the decoder at once and free everything. Safe to repeat, and from another thread."""
        self._closed = True
        self._child.kill()
        with self._lock:
            self._finish()

    def _finish(self) -> None:
        self._closed = True
        self._finalizer()

    def _next_frame(self) -> Frame:
        while True:
            head, payload = self._message()
            with self._checked():
                self.skipped = max(self.skipped, int(head.get("skipped", 0)))
                self.progress = max(self.progress, min(1.0, float(head.get("progress", 0))))
                if head["type"] == "frame":
                    return self._frame(head, payload)
                if head["type"] == "end":
                    self.progress, self.seconds = 1.0, float(head["seconds"])
                    self.findings = Findings(
                        int(head["lone"]), int(head["joined"]), bool(head["untimed"]), plain(head["unread"])
                    )
                    self._finish()
                    raise StopIteration

    @contextlib.contextmanager
    def _checked(self) -> Iterator[None]:
        """Nonsense from a decoder gone wild becomes an error like its death."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise sentence("crashed", {}, self.limits) from None

    def _frame(self, head: dict, payload: bytearray) -> Frame:
        """A frame whose shape and time are what they must be, whatever the decoder became."""
        width, height, at = int(head["width"]), int(head["height"]), float(head["time"])
        until = None if head.get("until") is None else float(head["until"])
        good = 0 < width <= self.long_side and 0 < height <= self.long_side and len(payload) == width * height * 3
        if not (good and math.isfinite(at) and at >= self._last and (until is None or at <= until < math.inf)):
            raise sentence("crashed", {}, self.limits)
        self._last = at
        return Frame(np.frombuffer(payload, np.uint8).reshape(height, width, 3), at, until)

    def _read_info(self, size: int) -> VideoInfo:
        while True:
            head, _ = self._message()
            with self._checked():
                if head["type"] == "info":
                    seconds = None if head["duration"] is None else float(head["duration"])
                    words = plain(head["codec"]), plain(head["container"])
                    return VideoInfo(int(head["width"]), int(head["height"]), seconds, *words, size)

    def _message(self) -> tuple[dict, bytearray]:
        """The next header and payload. Raises VideoError for the decoder's errors, its death, silence and nonsense."""
        with self._checked():
            text, payload = struct.unpack("<II", self._bytes(8))
            if text > 8192 or payload > 3 * self.long_side**2:
                raise ValueError("message too long")
            head = json.loads(self._bytes(text))
            body = self._bytes(payload)
            if head["type"] == "error":
                raise sentence(str(head["kind"]), dict(head["facts"]), self.limits)
            return head, body

    def _bytes(self, n: int) -> bytearray:
        """Exactly `n` bytes from the decoder."""
        assert self._child.stdout is not None  # a pipe
        data, pipe = bytearray(n), self._child.stdout.fileno()
        got = 0
        while got < n:
            self._wait(pipe)
            count = os.readv(pipe, [memoryview(data)[got:]])
            if count == 0:
                raise self._died()
            got += count
        return data

    def _wait(self, pipe: int) -> None:
        """Until the decoder has said something, within its budget of seconds."""
        start = time.monotonic()
        allowed = min(self.limits.stall, self.limits.seconds - self._worked)
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        heard = ready.poll(max(0, allowed) * 1000)
        self._worked += time.monotonic() - start
        if not heard:
            raise sentence("too_slow", {}, self.limits)

    def _died(self) -> VideoError:
        try:
            code = self._child.wait(10)
        except subprocess.TimeoutExpired:
            code = None
        return sentence("too_slow" if code in (-signal.SIGXCPU, -signal.SIGKILL) else "crashed", {}, self.limits)


def plain(word: object) -> str:
    """A codec's or container's name as the decoder gives it, cut down to letters and digits."""
    return re.sub(r"[^A-Za-z0-9_]", "", str(word))[:20]


def started(job: dict, limits: Limits) -> subprocess.Popen:
    """The decode process, in an empty folder that is gone as soon as it runs. Raises VideoError."""
    try:
        try:
            folder = tempfile.mkdtemp(prefix="decode-")
        except OSError:  # no folder for temporary files: it opens nothing anyway
            return spawn(job, "/")
        try:
            return spawn(job, folder)
        finally:
            os.rmdir(folder)
    except OSError:  # no memory, no processes, no descriptors left
        raise sentence("no_reader", {}, limits) from None


def spawn(job: dict, folder: str) -> subprocess.Popen:
    """The decode process: no secrets, no GPU, one descriptor. Its limits it sets itself."""
    env = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    if "LD_LIBRARY_PATH" in os.environ:  # some Pythons do not start without
        env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return subprocess.Popen(
        [sys.executable, "-B", "-P", "-m", READER, json.dumps(job)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd=folder,
        env=env,
        pass_fds=(job["fd"],),
        start_new_session=True,
    )


def discard(child: subprocess.Popen) -> None:
    child.kill()
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def probe(path: str | os.PathLike, fps: float | None = 1.0, limits: Limits = ORDINARY) -> dict[str, Any]:
    """Read a file to its end as watching would, without a model, and say what it holds.

    {"ok": True, "frames": pictures given at `fps` (None: all), "seconds": second at which the last picture ends,
    "duration": what the header promises or None, "width", "height", "skipped", "codec", "container", the Findings, and
    "notes": the same in sentences}, or {"ok": False, "kind", "message"} with the frames read until then.
    """
    frames = 0
    try:
        with open_video(path, fps=fps, long_side=64, limits=limits) as video:
            for _ in video:
                frames += 1
    except VideoError as error:
        return {"ok": False, "kind": error.kind, "message": error.message, "frames": frames}
    about = asdict(video.info) | asdict(video.findings) | {"notes": video.findings.notes()}
    return {"ok": True, "frames": frames, "seconds": round(video.seconds, 6), "skipped": video.skipped} | about
