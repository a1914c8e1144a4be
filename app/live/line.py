"""Line: who waits for a place, first come first; and where somebody stands in it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

LINE_S = 15  # who waits for a place and is not heard of for so long waits no more


class InLine(NamedTuple):
    """Where somebody stands who waits for a place: 1 for who comes next. seconds: in which a place is free for them at
    the latest, in whole minutes (a page need not hear of each second), None where nobody knows. free: it is their turn
    now."""

    place: int
    seconds: float | None
    free: bool


class Line:
    """Any thread may call."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}  # by key, first come first: when last heard of
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        now = time.monotonic()
        return sum(now - heard < LINE_S for heard in list(self._heard.values()))

    def join(self, key: str) -> None:
        """Who waits already keeps their place."""
        with self._lock:
            self._heard[key] = time.monotonic()

    def leave(self, key: str) -> None:
        with self._lock:
            self._heard.pop(key, None)

    def before(self, key: str | None) -> int:
        """How many come before this one; all of them, where it does not wait."""
        with self._lock:
            self._forget(time.monotonic())
            return list(self._heard).index(key) if key in self._heard else len(self._heard)

    def spot(self, key: str | None, free: int, ends: Sequence[float]) -> InLine | None:
        """None for who does not wait; who asks is still there. free: places that a newcomer may have. ends: seconds in
        which others come free, in order."""
        with self._lock:
            now = time.monotonic()
            self._forget(now, key)
            if key is None or key not in self._heard:
                return None
            self._heard[key] = now
            place = list(self._heard).index(key) + 1
            seconds = 60.0 * math.ceil(max(ends[place - 1], 1.0) / 60) if place <= len(ends) else None
            return InLine(place, seconds, free >= place)

    def _forget(self, now: float, but: str | None = None) -> None:
        self._heard = {one: heard for one, heard in self._heard.items() if now - heard < LINE_S or one == but}
