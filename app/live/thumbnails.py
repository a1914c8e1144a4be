"""Small JPEGs of a stream by time: a bounded number, always spread over everything seen."""

from __future__ import annotations

import bisect
import threading

from app.live.view import Picture
from pipeline import Frame, thumbnail

KEPT = 2400  # pictures of a stream: every second one of an hour; about 12 MB
WIDTH = 208  # pixels


class Thumbnails:
    """At most `limit` pictures; when there are more, every other one goes. One thread adds, any may look."""

    def __init__(self, limit: int = KEPT) -> None:
        self._pictures: list[Picture] = []
        self._limit, self._apart = limit, 0.0
        self._lock = threading.Lock()

    def add(self, frame: Frame) -> bytes:
        """The frame's picture, kept unless it is too near the newest one."""
        picture = Picture(frame.time, thumbnail(frame, WIDTH))
        if self._pictures and frame.time - self._pictures[-1].time < self._apart:
            return picture.jpeg
        with self._lock:
            self._pictures.append(picture)
            if len(self._pictures) > self._limit:
                self._pictures = self._pictures[::2]
                span = self._pictures[-1].time - self._pictures[0].time
                self._apart = 0.9 * span / max(len(self._pictures) - 1, 1)
        return picture.jpeg

    def near(self, at: float) -> bytes | None:
        """The picture whose time is nearest to `at`, or None where nothing was seen yet."""
        with self._lock:
            right = bisect.bisect(self._pictures, at, key=lambda picture: picture.time)
            around = self._pictures[max(right - 1, 0) : right + 1]
        return min(around, key=lambda picture: abs(picture.time - at)).jpeg if around else None
