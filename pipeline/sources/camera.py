"""Pictures of a camera: the newest wait in a queue, older ones give way and are counted. And pictures read and made
small."""

from __future__ import annotations

import io
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.stream import Frame, UserError

MAX_PIXELS = 40_000_000
JPEG_PIXELS = 2_000_000  # the page sends 640 pixels a side


class FrameQueue:
    """The newest pictures of a live source, at most `maxlen`; older ones give way and are counted, never silently.

    offered == taken + waiting + dropped, always. Times are seconds on a clock that only goes forward and says `since`
    at the first picture. Any threads may offer, take and close.
    """

    def __init__(
        self,
        maxlen: int = 8,
        long_side: int = 640,
        clock: Callable[[], float] = time.monotonic,
        since: float = 0.0,
        gave_way: Callable[[], None] = lambda: None,
    ) -> None:
        """gave_way: told of every picture that is dropped."""
        if maxlen < 1:
            raise ValueError("maxlen must be at least 1")
        self.maxlen, self.long_side, self.closed = maxlen, long_side, False
        self.offered = self.taken = self.dropped = 0
        self._clock, self._since, self._last = clock, since, since
        self._gave_way = gave_way
        self._first: float | None = clock() if since else None  # what passes until the first picture counts, then
        self._frames: deque[Frame] = deque()
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        return len(self._frames)

    @property
    def now(self) -> float:
        """The second that a picture would have that came now."""
        return self._since + (0.0 if self._first is None else self._clock() - self._first)

    def offer(self, rgb: np.ndarray, time: float | None = None, jpeg: bytes = b"") -> None:
        """Queue one uint8 (height, width, 3) picture; returns at once. time: seconds, if the source has its own clock.
        jpeg: what it was read from.

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
            at = self._since + arrived - self._first if time is None else float(time)
            self._last = max(self._last, at)
            self._frames.append(Frame(small, self._last, jpeg=jpeg))
            self.offered += 1
            if len(self._frames) > self.maxlen:
                self._frames.popleft()
                self.dropped += 1
                self._gave_way()
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


def decode_jpeg(jpeg: bytes) -> np.ndarray:
    """uint8 (height, width, 3). Raises UserError for what is no JPEG of a sane size."""
    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
            if picture.width * picture.height <= JPEG_PIXELS:
                return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError):
        pass
    raise UserError("The camera sent something that is not a picture, so it was left out; reload the page.")


def shrink(rgb: np.ndarray, long_side: int) -> np.ndarray:
    """A copy whose longer side is at most `long_side` pixels, contiguous."""
    height, width = rgb.shape[:2]
    scale = min(1.0, long_side / max(height, width))
    if scale == 1.0:
        return np.array(rgb, order="C")
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(np.ascontiguousarray(rgb), size, interpolation=cv2.INTER_AREA)


def thumbnail(frame: Frame, width: int = 160) -> bytes:
    """A JPEG of `frame`, at most `width` pixels wide."""
    height = max(1, round(frame.rgb.shape[0] * width / frame.rgb.shape[1]))
    small = frame.rgb
    if width < small.shape[1]:
        small = cv2.resize(small, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()
