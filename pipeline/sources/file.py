"""Video files become frames with times.

`open_video` reads a file at a fixed rate, in one pass and in bounded memory. The file is decoded by PyAV in processes
of their own (pipeline/sources/reader) that hold an open descriptor and nothing else; this side never looks at the
file's bytes and believes nothing the other side says beyond what it has checked. How many processes there are, and how
the file is split among them, never changes which pictures are seen. Never `cv2.VideoCapture`, never a system ffmpeg:
both have opened other people's files, or crashed, on uploads.
"""

from __future__ import annotations

import math
import os
import re
import threading
import weakref
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.sources.process import Budget, Died, Message, Process, checked
from pipeline.sources.readers import Readers, Strayed, wanted
from pipeline.sources.refusals import Limits, VideoError, open_regular, sentence
from pipeline.stream import Frame

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
    left_out: codec of a later part that cannot be read, or "". unsplit: a long file that one process had to read.
    """

    lone_stamps: int = 0
    joined_jumps: int = 0
    times_guessed: bool = False
    left_out: str = ""
    unsplit: bool = False

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
        if self.unsplit:
            notes.append("The file cannot be read by several readers at once, so one read it, which took longer.")
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
    return VideoFile(open_regular(path, limits), fps, long_side, limits)


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
        self._last, self._strayed, self._deaths = -1.0, False, 0
        self._lock, self._changing, self._closed = threading.Lock(), threading.Lock(), False
        self._budget = Budget(limits)
        share = wanted(limits) > 1
        self._job = asdict(limits) | {"fd": fd, "fps": fps, "long_side": long_side, "share": share, "helps": False}
        self._readers = self._read_from(-1.0)
        self._finalizer = weakref.finalize(self, os.close, fd)
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
                self._finish()
                raise

    @property
    def processes(self) -> list[Process]:
        """Those that read the file at the moment."""
        return self._readers.processes

    def close(self) -> None:
        """Stop the decoders at once and free everything. Safe to repeat, and from another thread."""
        with self._changing:
            self._closed = True
            self._readers.close()
        with self._lock:
            self._finish()

    def _finish(self) -> None:
        self._closed = True
        self._readers.close()
        self._finalizer()

    def _read_from(self, after: float) -> Readers:
        """Readers that give what comes after a second."""
        readers = Readers(self._job | {"after": after}, self.limits, self._budget)
        weakref.finalize(self, readers.close)
        return readers

    def _message(self) -> Message:
        """The next one in the file's order. Raises VideoError, and StopIteration once closed."""
        while True:
            try:
                message = self._readers.message()
            except (Strayed, Died) as failed:
                self._go_on(failed)
                continue
            if message is None:
                raise StopIteration
            return message

    def _go_on(self, failed: VideoError) -> None:
        """After the pictures given so far, with new readers; only one where the file's stamps lie.

        Raises what failed where it did so before.
        """
        if isinstance(failed, Strayed):
            self._strayed = True
            self._job |= {"share": False}
        else:
            self._deaths += 1
        if self._deaths > 1:
            raise failed
        with self._changing:
            if not self._closed:
                self._readers.close()
                self._readers = self._read_from(self._last)

    def _next_frame(self) -> Frame:
        while True:
            head, payload = self._message()
            with checked(self.limits):
                self.skipped = max(self.skipped, int(head.get("skipped", 0)))
                self.progress = max(self.progress, min(1.0, float(head.get("progress", 0))))
                if head["type"] == "frame":
                    return self._frame(head, payload)
                if head["type"] == "end":
                    self._conclude(head)
                    raise StopIteration

    def _conclude(self, head: dict) -> None:
        self.progress, self.seconds = 1.0, float(head["seconds"])
        unsplit = bool(head["unsplit"]) or self._strayed
        self.findings = Findings(
            int(head["lone"]), int(head["joined"]), bool(head["untimed"]), plain(head["unread"]), unsplit
        )
        self._finish()

    def _frame(self, head: dict, payload: np.ndarray) -> Frame:
        """A frame whose shape and time are what they must be, whatever the decoder became."""
        width, height, at = int(head["width"]), int(head["height"]), float(head["time"])
        until = None if head.get("until") is None else float(head["until"])
        good = 0 < width <= self.long_side and 0 < height <= self.long_side and len(payload) == width * height * 3
        if not (
            good and math.isfinite(at) and at >= max(0.0, self._last) and (until is None or at <= until < math.inf)
        ):
            raise sentence("crashed", {}, self.limits)
        self._last = at
        return Frame(payload.reshape(height, width, 3), at, until)

    def _read_info(self, size: int) -> VideoInfo:
        while True:
            head, _ = self._message()
            with checked(self.limits):
                if head["type"] == "info":
                    seconds = None if head["duration"] is None else float(head["duration"])
                    words = plain(head["codec"]), plain(head["container"])
                    return VideoInfo(int(head["width"]), int(head["height"]), seconds, *words, size)


def plain(word: object) -> str:
    """A codec's or container's name as the decoder gives it, cut down to letters and digits."""
    return re.sub(r"[^A-Za-z0-9_]", "", str(word))[:20]


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
