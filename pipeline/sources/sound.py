"""The sound of a video file, and its subtitle track, read by a process of its own with the limits of pictures.

An hour passes through in blocks of a second; nothing of it is kept. External files that a video refers to are never
opened: the process can open none.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.sources.file import plain
from pipeline.sources.process import Budget, Process, checked
from pipeline.sources.refusals import Limits, VideoError, open_regular, sentence

RATE = 16_000  # samples a second, whatever the file has; as reader/sound.py
PAYLOAD_SIDE = 256  # what a message may carry is told as a picture's side: 196 kB, three seconds of samples


@dataclass(frozen=True, eq=False)
class Sound:
    """samples: float32 in -1..1, one channel, RATE a second, about a second of them. time: of the first, as a player
    shows it."""

    time: float
    samples: np.ndarray

    @property
    def until(self) -> float:
        return self.time + len(self.samples) / RATE


@dataclass(frozen=True)
class Cue:
    """A subtitle: seconds from and to, and its words without markup."""

    time: float
    until: float
    text: str


def open_sound(path: str | os.PathLike, limits: Limits | None = None) -> SoundFile:
    """Raises VideoError where the file cannot be read at all. One without sound gives none."""
    limits = limits or Limits()
    return SoundFile(open_regular(path, limits), limits)


class SoundFile:
    """Iterator of Sound and Cue in the file's order, and a context manager. One thread iterates; any may close.

    sound: whether there is a track that is read; unread: the codec of one that cannot be. subtitles: whether there is
    such a track. progress: 0..1. skipped: damaged packets.
    """

    def __init__(self, fd: int, limits: Limits) -> None:
        self.limits, self.progress, self.skipped = limits, 0.0, 0
        self._last, self._closed, self._lock = 0.0, False, threading.Lock()
        job = asdict(limits) | {"fd": fd, "sound": True, "long_side": PAYLOAD_SIDE, "helps": False}
        try:
            self._process = Process(job, limits, Budget(limits))
        except VideoError:
            os.close(fd)
            raise
        self._finalizer = weakref.finalize(self, _end, self._process, fd)
        try:
            self._read_info()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> SoundFile:
        return self

    def __enter__(self) -> SoundFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __next__(self) -> Sound | Cue:
        with self._lock:
            while not self._closed:
                try:
                    heard = self._heard(*self._process.message())
                except VideoError:
                    if self._closed:  # meanwhile, by another thread
                        break
                    raise
                if heard is not None:
                    return heard
        raise StopIteration

    def close(self) -> None:
        """Ends the reader at once. Safe to repeat, and from another thread."""
        self._closed = True
        self._process.kill()
        with self._lock:
            self._finalizer()

    def _heard(self, head: dict, payload: np.ndarray) -> Sound | Cue | None:
        with checked(self.limits):
            self.skipped = max(self.skipped, int(head.get("skipped", 0)))
            self.progress = max(self.progress, min(1.0, float(head.get("progress", 0))))
            if head["type"] == "end":
                self._closed = True
            elif head["type"] == "block":
                return self._block(float(head["time"]), payload.view(np.float32))
            elif head["type"] == "cue":
                return self._cue(float(head["time"]), float(head["until"]), str(head["text"]))
        return None

    def _block(self, at: float, samples: np.ndarray) -> Sound:
        """Samples that are numbers, at a second that is no earlier than the last, whatever the reader became."""
        if not (math.isfinite(at) and at >= self._last - 1e-3 and np.isfinite(samples).all()):
            raise sentence("crashed", {}, self.limits)
        self._last = at
        return Sound(at, samples)

    def _cue(self, at: float, until: float, text: str) -> Cue:
        if not 0 <= at <= until < math.inf:
            raise sentence("crashed", {}, self.limits)
        return Cue(at, until, text.encode("utf-8", "replace").decode())

    def _read_info(self) -> None:
        head, _ = self._process.message()
        with checked(self.limits):
            if head["type"] != "info":
                raise ValueError("no info first")
            self.sound, self.subtitles = bool(head["sound"]), bool(head["subtitles"])
            self.unread = plain(head["unread"])


def _end(process: Process, fd: int) -> None:
    process.discard()
    os.close(fd)


def no_sound(sound: SoundFile) -> str:
    """Why nothing can be heard, in a sentence."""
    if sound.unread:
        return f"I cannot hear this video: its sound ({sound.unread}) is of a kind that is not read here."
    return "The video has no sound."
