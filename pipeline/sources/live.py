"""Live sources: pictures of a camera (RTSP), of HLS or of a folder that is recorded into, as long as they are wanted.

A source that breaks off is asked again, ever less often, and what was missed is an `Event` of kind "gap". Seconds are
the source's own from its first picture on; after a gap they go on where the clock on the wall stands by then.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.clock import mmss
from pipeline.sources.address import Address
from pipeline.sources.folder import Folder
from pipeline.sources.process import Budget, Process, checked
from pipeline.sources.refusals import Limits, VideoError, sentence
from pipeline.stream import Event, Frame, UserError

log = logging.getLogger(__name__)

LIVE = Limits(seconds=math.inf, stall=45.0, cpu=-1)  # a source may go on for weeks; who says nothing is ended
SILENCE = {"rtsp": 10.0, "hls": 30.0}  # seconds without a word, after which a connection is given up
FILES = 64  # descriptors of a reading process before its connection stands
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # seconds before the next tries
ASTRAY = 30.0  # seconds that a source's clock and ours may differ by, before ours is taken
APART = 1e-3  # seconds between two pictures at least

Offer = Callable[[np.ndarray, float], None]


class Over(Exception):
    """The source is at its end, and says so."""


class Receiver:
    """The thread that receives one live source, until `close` or until the source says that it is over.

    offer: takes a picture and its second, and returns at once. missed: is told of each gap when it is over. over: is
    called where there will be no more. room: whether another picture would be taken without loss; a folder, unlike a
    camera, can wait for that. received: pictures so far. trouble: why none comes just now, in a sentence.
    """

    def __init__(
        self,
        address: Address,
        offer: Offer,
        missed: Callable[[Event], None],
        over: Callable[[], None] = lambda: None,
        room: Callable[[], bool] = lambda: True,
        *,
        fps: float = 1.0,
        long_side: int = 640,
        limits: Limits = LIVE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address, self.received, self.trouble = address, 0, ""
        self._offer, self._missed, self._over = offer, missed, over
        self._room, self._clock = room, clock
        self._fps, self._long_side, self._limits = fps, long_side, limits
        self._began: float | None = None  # on our clock, when the first picture came
        self._last = -APART  # second of the newest picture
        self._age = 0.0  # of a new connection's first picture when it came, in seconds
        self._tries = 0  # that failed, one after the other
        self._closed = threading.Event()
        self._process: Process | None = None
        self._folder: Folder | None = None
        if address.kind == "folder":
            told = lambda start, end: missed(gap(start, end))  # noqa: E731
            self._folder = Folder(address.where, fps, long_side, self._closed, told)
        self._thread = threading.Thread(target=self._work, name="live source", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the connection at once. Safe to repeat, and from any thread."""
        self._closed.set()
        if process := self._process:
            process.kill()
        if self._folder:
            self._folder.close()

    def join(self, timeout: float) -> None:
        """After `close`: waits for the thread."""
        self._thread.join(timeout)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    # The thread

    def _work(self) -> None:
        while not self._closed.is_set():
            try:
                self._recorded(self._folder) if self._folder else self._connection()
                self.trouble = sentence("no_answer", {}, self._limits).message
            except Over:
                self._over()
                return
            except UserError as error:
                self.trouble = str(error)
            except Exception:  # a source that ends silently looks like one that shows nothing
                log.exception("a live source failed")
            wait = WAITS[min(self._tries, len(WAITS) - 1)]
            self._tries += 1
            self._closed.wait(wait)

    def _connection(self) -> None:
        """All pictures of a connection. Raises UserError, and Over."""
        shift: float | None = None
        for frame in self._frames():
            if shift is None:
                shift = self._begun(frame.time)
            elif abs(frame.time + shift - self._now()) > ASTRAY:
                shift = self._now() - frame.time
            second = max(frame.time + shift, self._last + APART)
            if self.address.kind == "hls":  # a segment's pictures come all at once
                self._closed.wait(max(0.0, second - self._now()))
            self._take(frame.rgb, second)

    def _recorded(self, folder: Folder) -> None:
        """All pictures of a folder, which has a clock of its own."""
        for frame in folder.pictures():
            while not (self._room() or self._closed.is_set()):
                self._closed.wait(0.05)
            self._take(frame.rgb, max(frame.time, self._last + APART))

    def _take(self, rgb: np.ndarray, second: float) -> None:
        if not self._closed.is_set():
            self._last, self._tries, self.trouble = second, 0, ""
            self.received += 1
            self._offer(rgb, second)

    def _now(self) -> float:
        """The second of the stream that it is on our clock."""
        return 0.0 if self._began is None else self._clock() - self._began

    def _begun(self, at: float) -> float:
        """What is added to a new connection's seconds, so that its first picture is now. What was missed is told."""
        if self._began is None:
            self._began = self._clock() - self._age
            return -at
        now = max(self._now() - self._age, self._last + APART)
        self._missed(gap(self._last, now))
        return now - at

    def _frames(self) -> Iterator[Frame]:
        """What a process reads of a connection, until it ends."""
        kind = self.address.kind
        job = asdict(self._limits) | {"live": kind, "files": FILES, "silence": SILENCE[kind]}
        process = Process(job | {"fps": self._fps, "long_side": self._long_side}, self._limits, Budget(self._limits))
        self._process = process
        try:
            if self._closed.is_set():
                return
            process.tell({"where": self.address.where})
            over = False
            while not self._closed.is_set():
                head, payload = process.message()
                with checked(self._limits):
                    if head["type"] == "info":
                        over, self._age = bool(head["over"]), self._aged(float(head["age"]))
                        if over and self._began is not None:
                            raise Over
                    elif head["type"] == "frame":
                        yield self._picture(head, payload)
                    elif head["type"] == "end":
                        break
            if over:
                raise Over
        except VideoError:
            if not self._closed.is_set():
                raise
        finally:
            self._process = None
            process.discard()

    def _aged(self, age: float) -> float:
        """A segment's pictures come all at once, and are given in their own time: as if taken when they came."""
        return age if self.address.kind == "rtsp" and 0 <= age < ASTRAY else 0.0

    def _picture(self, head: dict[str, Any], payload: np.ndarray) -> Frame:
        """One whose shape and second are what they must be, whatever the decoder became."""
        width, height, at = int(head["width"]), int(head["height"]), float(head["time"])
        side = self._long_side
        if not (0 < width <= side and 0 < height <= side and len(payload) == width * height * 3 and at >= 0):
            raise sentence("crashed", {}, self._limits)
        return Frame(payload.reshape(height, width, 3), at)


def gap(start: float, end: float) -> Event:
    """Of what was missed, in seconds of the stream."""
    return Event(start, "gap", f"Nothing came from the source from {mmss(start)} to {mmss(end)}.", until=end)
