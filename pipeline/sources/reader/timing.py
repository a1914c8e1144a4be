"""Time: presentation stamps to seconds, and which pictures a sampling rate keeps. Standard library only."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

EPSILON = 1e-6  # seconds; container clocks are rational, ours is a double


class Clock:
    """Presentation stamps to seconds since the first presented picture, never backwards.

    A missing stamp is the last one plus its duration. A step back of more than a second is a wrap or a spliced
    recording: time goes on from where it was. A smaller one is a bad stamp: the picture comes just after its neighbour.
    """

    def __init__(self, time_base: Fraction, rate: Fraction | None) -> None:
        self.time_base = time_base
        self.step = float(1 / rate) if rate and 0 < rate <= 1000 else 0.04  # seconds the newest picture stays
        self.base: int | None = None
        self.shift = 0.0
        self.last = -1.0

    @property
    def end(self) -> float:
        """Seconds from the first picture to the end of the newest one."""
        return self.last + self.step

    def peek(self, pts: int) -> float:
        """Seconds of a stamp that is still to come."""
        return float((pts - (self.base or 0)) * self.time_base) + self.shift

    def time(self, pts: int | None, duration: int | None) -> float:
        """Seconds of the next presented picture; `duration`, like `pts`, in units of the time base."""
        now = 0.0 if self.last < 0 else self.end
        if pts is not None and self.base is None:  # the first stamp of all, perhaps after pictures without any
            self.base, self.shift = pts, now
        elif pts is not None:
            now = self.peek(pts)
            if now <= self.last:
                now = self.repaired(now)
            self.step = min(max(now - self.last, 1e-4), 1.0)
        if duration and duration > 0:
            self.step = float(duration * self.time_base)
        self.last = now
        return now

    def repaired(self, now: float) -> float:
        if self.last - now > 1.0:
            self.shift += self.end - now
            return self.end
        return self.last + 1e-4


class Sampler:
    """Which pictures to keep: those on the screen at 0, 1/fps, 2/fps ... seconds, each once, however long it stays.

    Taking the first picture of every second instead would never show a slide that came at 0.9 s and stayed for ten. A
    picture is known to be on the screen at a tick when the next one comes later, so one is held. fps None keeps all.
    """

    def __init__(self, fps: float | None) -> None:
        self.fps = fps
        self.held: tuple[Any, float] | None = None

    def offer(self, frame: Any, at: float) -> list[tuple[Any, float]]:
        """The pictures that `frame`, presented `at` seconds, proves wanted: none or one."""
        if self.fps is None:
            return [(frame, at)]
        wanted = [self.held] if self.held and self.wants(self.held[1], at) else []
        self.held = (frame, at)
        return wanted

    def wants(self, start: float, end: float) -> bool:
        """Whether a tick lies in [start, end)."""
        return self.fps is None or math.ceil((start - EPSILON) * self.fps) / self.fps < end - EPSILON

    def finish(self, end: float) -> list[tuple[Any, float]]:
        """The picture that stays on the screen until `end`, if it is wanted."""
        wanted = [self.held] if self.held and (self.held[1] == 0 or self.wants(self.held[1], end)) else []
        self.held = None
        return wanted
