"""Recent: the newest pictures of a camera as it sent them, and those around its alerts, in a stated room; and clips."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from app.live.view import Picture
from pipeline import Frame, UserError, clip, decode_jpeg, mmss, thumbnail, write_clip

NEWEST = 24_000_000  # bytes: at a picture a second of 640 x 480 about 8 minutes
MARKED = 8_000_000  # bytes of pictures around alerts that are older
AROUND = 5.0  # seconds of a clip before and after its moment
WIDTH = 640  # pixels of what did not come as a JPEG


class Recent:
    """One thread adds, any may look. Of more than there is room for the oldest go, those around alerts last."""

    def __init__(self, newest: int = NEWEST, marked: int = MARKED) -> None:
        self._rooms = newest, marked
        self._newest: deque[Picture] = deque()
        self._marked: deque[Picture] = deque()
        self._bytes = [0, 0]
        self._lock = threading.Lock()

    def add(self, frames: Iterable[Frame], moments: Callable[[], Sequence[float]]) -> None:
        """moments: the seconds of the alerts so far."""
        with self._lock:
            for frame in frames:
                self._put(0, self._newest, Picture(frame.time, frame.jpeg or thumbnail(frame, WIDTH)))
            gone = self._over(0, self._newest)
            alerts = moments() if gone else ()
            for picture in gone:
                if any(abs(picture.time - at) <= AROUND for at in alerts):
                    self._put(1, self._marked, picture)
            self._over(1, self._marked)

    def _put(self, room: int, pictures: deque[Picture], picture: Picture) -> None:
        pictures.append(picture)
        self._bytes[room] += len(picture.jpeg)

    def _over(self, room: int, pictures: deque[Picture]) -> list[Picture]:
        """What there is no room for any more, oldest first."""
        gone = []
        while self._bytes[room] > self._rooms[room]:
            gone.append(pictures.popleft())
            self._bytes[room] -= len(gone[-1].jpeg)
        return gone

    @property
    def nbytes(self) -> int:
        return sum(self._bytes)

    @property
    def newest(self) -> Picture | None:
        """None where nothing came yet."""
        with self._lock:
            return self._newest[-1] if self._newest else None

    def between(self, start: float, end: float) -> list[Picture]:
        """Those from one second to another that are left, oldest first."""
        with self._lock:
            return [one for one in (*self._marked, *self._newest) if start <= one.time <= end]

    def around(self, at: float) -> list[Picture]:
        """Those of a clip, oldest first. Raises UserError where there are none."""
        with self._lock:
            found = [one for one in (*self._marked, *self._newest) if abs(one.time - at) <= AROUND]
            since = self._newest[0].time if self._newest else 0.0
        if not found:
            raise UserError(
                f"The pictures of {mmss(at)} are not there (any more), so there is no clip of it; choose a moment from "
                f"{mmss(since)} on, or an alert."
            )
        return found

    def clip(self, at: float, out: str | Path) -> None:
        """Each picture at its own second."""
        write_clip([Frame(decode_jpeg(picture.jpeg), picture.time) for picture in self.around(at)], out)


def cut(video: Path | None, recent: Recent, at: float, out: str | Path) -> None:
    """An MP4 of AROUND seconds on each side of a moment: of a file from the file, of a camera from what is left.
    Raises UserError."""
    if video:
        clip(str(video), at, out, AROUND)
    else:
        recent.clip(at, out)
