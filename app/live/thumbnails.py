"""Small JPEGs of a stream by time: a bounded number, and where one is missing the one before it looks like it."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Iterable, Sequence

import numpy as np

from app.live.view import Picture
from pipeline import Event, Frame, thumbnail

KEPT = 7_200  # pictures of a stream: every one of two hours; about 36 MB
WIDTH = 208  # pixels
POINTS = 12  # a side, at which two pictures are compared
ALERTED = 50  # newest alerts whose pictures are in a view
EDGE_S = 0.001  # a moment's time may be rounded


class Thumbnails:
    """At most `limit` pictures; when there are more, a quarter goes: those that differ least from the one before.

    A scene that stands can be told by its first picture; what was there for a second alone cannot, and stays. One
    thread adds, any may look.
    """

    def __init__(self, limit: int = KEPT) -> None:
        self._pictures: list[Picture] = []
        self._changes: list[float] = []  # how much each differs from the one before it in the stream
        self._limit = limit
        self._before: np.ndarray | None = None
        self._lock = threading.Lock()

    def add(self, frame: Frame) -> bytes:
        """The frame's picture, which is kept."""
        picture, points = Picture(frame.time, thumbnail(frame, WIDTH)), sampled(frame)
        change = np.inf if self._before is None else float(np.abs(points - self._before).mean())
        self._before = points
        with self._lock:
            self._pictures.append(picture)
            self._changes.append(change)
            if len(self._pictures) > self._limit:
                self._thin()
        return picture.jpeg

    def _thin(self) -> None:
        """Of two neighbours never both at once; what a picture that goes differed by, the one after it inherits."""
        gone: set[int] = set()
        for index in np.argsort(self._changes[:-1], kind="stable"):
            if len(gone) == max(1, self._limit // 4):
                break
            if not {index - 1, index + 1} & gone:
                gone.add(int(index))
        for index in gone:
            self._changes[index + 1] += self._changes[index]
        self._pictures = [one for index, one in enumerate(self._pictures) if index not in gone]
        self._changes = [one for index, one in enumerate(self._changes) if index not in gone]

    def put_back(self, pictures: Sequence[Picture]) -> None:
        """Pictures of an earlier run, in order of time, before any other; of too many those that lie evenly."""
        with self._lock:
            self._pictures = list(pictures[:: -(-len(pictures) // self._limit) or 1])
            self._changes = [1.0] * len(self._pictures)  # not known any more

    def after(self, at: float) -> list[Picture]:
        """Those of later than a second, oldest first."""
        with self._lock:
            return self._pictures[bisect.bisect(self._pictures, at, key=lambda picture: picture.time) :]

    def between(self, start: float, end: float) -> list[Picture]:
        """Those from one second to another, oldest first."""
        return [picture for picture in self.after(start - EDGE_S) if picture.time <= end]

    def near(self, at: float) -> bytes | None:
        """The picture that stands at `at`, or the first one; None where nothing was seen yet."""
        with self._lock:
            right = bisect.bisect(self._pictures, at + EDGE_S, key=lambda picture: picture.time)
            return self._pictures[max(right - 1, 0)].jpeg if self._pictures else None

    def of_alerts(self, events: Iterable[Event]) -> tuple[Picture, ...]:
        """Where the newest alerts begin and end."""
        alerts = sorted((event for event in events if event.kind == "alert"), key=lambda one: one.time)
        seconds = sorted({at for one in alerts[-ALERTED:] for at in (one.time, one.until) if at is not None})
        return tuple(Picture(at, jpeg) for at in seconds if (jpeg := self.near(at)))


def sampled(frame: Frame) -> np.ndarray:
    """A few of its points, as numbers that can be subtracted."""
    height, width = frame.rgb.shape[:2]
    rows, columns = (np.linspace(0, size - 1, POINTS).astype(int) for size in (height, width))
    return frame.rgb[np.ix_(rows, columns)].astype(np.int16)
