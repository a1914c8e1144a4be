"""Sources: video files and webcams become frames with times.

`open_video` reads a file at a fixed rate, in one pass and in constant memory. The file is decoded by PyAV in a process
of its own (pipeline/sources/reader) that holds an open descriptor and nothing else; this side never looks at the file's
bytes and believes nothing the other side says beyond what it has checked. `FrameQueue` holds the newest pictures of a
webcam. Never `cv2.VideoCapture`, never a system ffmpeg: both have opened other people's files, or crashed, on uploads.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import select
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.stream import Frame, UserError

log = logging.getLogger(__name__)
READER = "pipeline.sources.reader"
MAX_PIXELS = 40_000_000

# What each kind of refusal says: cause, consequence, cure. Only numbers and a codec's name ever enter a sentence.
SENTENCES = {
    "not_found": "There is no such video file here, so nothing was watched; choose the file again.",
    "empty": "The file is empty, so there is nothing to watch; upload it again.",
    "not_a_video": "This is not a video file we can read, so nothing was watched; choose MP4, WebM, MOV, MKV or AVI.",
    "index": "The recording is incomplete: its index is missing, so nothing can be shown; upload or export it again.",
    "image_not_video": "This is a picture, not a video, so there is nothing to watch; choose a video file.",
    "no_video": "There is no video track in this file, so there is nothing to watch; choose a file with pictures.",
    "no_frames": "The video has no pictures, so there is nothing to watch; record or export it again.",
    "cannot_decode": "The video is too damaged to show a single picture; upload it again or export it as MP4 (H.264).",
    "unsupported_codec": "The video codec {codec} is not supported, so nothing was read; export it as MP4 (H.264).",
    "drm": "The video is copy-protected, so it cannot be watched here; choose an unprotected copy.",
    "too_large": "The picture is too large ({width}x{height}; limit {limit} megapixels); export the video smaller.",
    "too_heavy": "The video needs more memory than one visitor may use, so it was not read; export it smaller.",
    "too_big": "The file is larger than {limit} GB, so it was not read; cut it or export it smaller.",
    "too_slow": "Reading the video took longer than allowed and stopped; what was read is kept; export it smaller.",
    "crashed": "The video broke its reader, which stopped there; what was read is kept; export it as MP4 (H.264).",
}


class VideoError(UserError):
    """A file that cannot be watched, or not to its end. `kind` is a key of SENTENCES."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


@dataclass(frozen=True)
class Limits:
    """Ceilings no file can raise.

    pixels of one stored picture; streams in a file; bytes of the file; seconds the decoder may work (time spent waiting
    for whoever takes the frames is free); stall, seconds without a sign of life; cpu, processor seconds; memory, bytes
    of address space; threads of the decoder. skim: allow the two savings that VideoFile describes.
    """

    pixels: int = MAX_PIXELS
    streams: int = 256
    bytes: int = 16 << 30
    seconds: float = 3600.0
    stall: float = 60.0
    cpu: int = 7200
    memory: int = 2 << 30
    threads: int = 2
    skim: bool = True


@dataclass(frozen=True)
class VideoInfo:
    """width, height: upright, square pixels, before shrinking. duration: seconds, None unless believable."""

    width: int
    height: int
    duration: float | None
    codec: str
    container: str
    bytes: int


def sentence(kind: str, facts: dict[str, Any], limits: Limits) -> VideoError:
    """The error for `kind`; facts from the decoder are cut down to numbers and a plain codec name."""
    if "log" in facts:
        log.warning("decode process: %r", str(facts["log"])[:2000])
    key = "index" if facts.get("why") == "index" else kind if kind in SENTENCES else "crashed"
    if key == "too_large" and not facts.get("width"):
        key = "too_heavy"
    codec = re.sub(r"[^A-Za-z0-9_]", "", str(facts.get("codec", "")))[:20] or "of this file"
    width, height = (int(facts.get(k) or 0) for k in ("width", "height"))
    limit = limits.bytes >> 30 if key == "too_big" else limits.pixels // 1_000_000
    text = SENTENCES[key].format(codec=codec, width=width, height=height, limit=limit)
    return VideoError(kind if kind in SENTENCES else "crashed", text)


def open_video(
    path: str | os.PathLike, *, fps: float | None = 1.0, long_side: int = 640, limits: Limits = Limits()
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


def open_regular(path: str | os.PathLike, limits: Limits) -> int:
    """A read-only descriptor of a regular file within limits. Raises VideoError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # NONBLOCK: a FIFO must not hang us
    except (OSError, ValueError):
        raise sentence("not_found", {}, limits) from None
    found = os.fstat(fd)
    kind = None
    if not stat.S_ISREG(found.st_mode):
        kind = "not_a_video"
    elif found.st_size == 0:
        kind = "empty"
    elif found.st_size > limits.bytes:
        kind = "too_big"
    if kind:
        os.close(fd)
        raise sentence(kind, {}, limits)
    return fd


class VideoFile:
    """Iterator of Frame over one file, and a context manager. One thread iterates; any thread may close.

    Which pictures: those on the screen at 0, 1/fps, 2/fps ... seconds after the first one, each once (gaps are not
    filled with copies), each with its own presentation time. Two savings, both switched by Limits.skim, may replace a
    wanted picture by an earlier one, never by a later one; its time stays its own. Where keyframes are at most one
    period (1/fps) apart, the last keyframe is taken: less than a period early. Where there are ten or more pictures a
    period, those that no other picture refers to are left out: early by one run of them (1 to 3 pictures in practice;
    a run of more than 24 makes the reader start over without savings).

    info: VideoInfo. skipped: damaged packets so far. progress: 0..1. seconds: length read, known at the end.
    """

    def __init__(self, fd: int, fps: float | None, long_side: int, limits: Limits) -> None:
        self.limits, self.long_side = limits, long_side
        self.skipped, self.progress, self.seconds = 0, 0.0, 0.0
        self._lock, self._closed, self._worked, self._last = threading.Lock(), False, 0.0, 0.0
        job = asdict(limits) | {"fd": fd, "fps": fps, "long_side": long_side}
        self._folder = tempfile.TemporaryDirectory(prefix="decode-")
        self._child = spawn(job, self._folder.name)
        self._finalizer = weakref.finalize(self, discard, self._child, self._folder)
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
        good = 0 < width <= self.long_side and 0 < height <= self.long_side and len(payload) == width * height * 3
        if not (good and math.isfinite(at) and at >= self._last):
            raise sentence("crashed", {}, self.limits)
        self._last = at
        return Frame(np.frombuffer(payload, np.uint8).reshape(height, width, 3), at)

    def _read_info(self, size: int) -> VideoInfo:
        while True:
            head, _ = self._message()
            with self._checked():
                if head["type"] == "info":
                    seconds = None if head["duration"] is None else float(head["duration"])
                    words = [re.sub(r"[^A-Za-z0-9_]", "", str(head[k]))[:20] for k in ("codec", "container")]
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


def spawn(job: dict, folder: str) -> subprocess.Popen:
    """The decode process: no secrets, no GPU, an empty folder, one descriptor. Its limits it sets itself."""
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


def discard(child: subprocess.Popen, folder: tempfile.TemporaryDirectory) -> None:
    child.kill()
    child.wait()
    child.stdout.close()
    folder.cleanup()


# --- webcam ---------------------------------------------------------------------------------------------------------


class FrameQueue:
    """The newest pictures of a live source, at most `maxlen`; older ones give way and are counted, never silently.

    offered == taken + waiting + dropped, always. Times are seconds since the first picture, on a clock that only goes
    forward. Any threads may offer, take and close.
    """

    def __init__(self, maxlen: int = 8, long_side: int = 640, clock: Callable[[], float] = time.monotonic) -> None:
        if maxlen < 1:
            raise ValueError("maxlen must be at least 1")
        self.maxlen, self.long_side, self.closed = maxlen, long_side, False
        self.offered = self.taken = self.dropped = 0
        self._clock, self._first, self._last = clock, None, 0.0
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        return len(self._frames)

    def offer(self, rgb: np.ndarray, time: float | None = None) -> None:
        """Queue one uint8 (height, width, 3) picture; returns at once. time: seconds, if the source has its own clock.

        After close() pictures are ignored. Raises UserError for anything that is not such a picture.
        """
        arrived = self._clock()
        check_picture(rgb)
        if time is not None and not (isinstance(time, int | float) and math.isfinite(time) and time >= 0):
            raise UserError("The camera sent a picture without a usable time, so it was left out; restart the camera.")
        small = shrink(rgb, self.long_side)
        with self._changed:
            if self.closed:
                return
            if self._first is None:
                self._first = arrived
            self._last = max(self._last, arrived - self._first if time is None else float(time))
            self._frames.append(Frame(small, self._last))
            self.offered += 1
            if len(self._frames) > self.maxlen:
                self._frames.popleft()
                self.dropped += 1
            self._changed.notify()

    def take(self, n: int, timeout: float) -> list[Frame]:
        """The `n` oldest waiting frames or fewer. Waits up to `timeout` seconds for the first; [] if none came."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self.closed, timeout)
            frames = [self._frames.popleft() for _ in range(min(n, len(self._frames)))]
            self.taken += len(frames)
            return frames

    def close(self) -> None:
        """No more offers; what waits can still be taken."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


def check_picture(rgb: Any) -> None:
    """Raise UserError unless `rgb` is a uint8 (height, width, 3) array of a sane size."""
    good = isinstance(rgb, np.ndarray) and rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
    if not good or not 0 < rgb.shape[0] * rgb.shape[1] <= MAX_PIXELS or max(rgb.shape) > 32_000:
        raise UserError(
            "The camera sent something that is not a colour picture, so it was left out; restart the camera."
        )


def shrink(rgb: np.ndarray, long_side: int) -> np.ndarray:
    """A copy whose longer side is at most `long_side` pixels, contiguous."""
    height, width = rgb.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    if scale == 1.0:
        return np.array(rgb, order="C")
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(np.ascontiguousarray(rgb), size, interpolation=cv2.INTER_AREA)


# --- small helps ----------------------------------------------------------------------------------------------------


def thumbnail(frame: Frame, width: int = 160) -> bytes:
    """A JPEG of `frame`, at most `width` pixels wide."""
    height = max(1, round(frame.rgb.shape[0] * width / frame.rgb.shape[1]))
    small = frame.rgb
    if width < small.shape[1]:
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def probe(path: str | os.PathLike, fps: float | None = 1.0, limits: Limits = Limits()) -> dict[str, Any]:
    """Read a file to its end as watching would, without a model, and say what it holds.

    {"ok": True, "frames": pictures given at `fps` (None: all), "seconds": first picture to the end of the last,
    "duration": what the header promises or None, "width", "height", "skipped", "codec", "container"}, or {"ok": False,
    "kind", "message"} with the frames read until then.
    """
    frames = 0
    try:
        with open_video(path, fps=fps, long_side=64, limits=limits) as video:
            for _ in video:
                frames += 1
    except VideoError as error:
        return {"ok": False, "kind": error.kind, "message": error.message, "frames": frames}
    about = asdict(video.info)
    return {"ok": True, "frames": frames, "seconds": round(video.seconds, 6), "skipped": video.skipped} | about
