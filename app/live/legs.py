"""The sources of one stream, one after the other, and where a stream goes on that was watched before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from app.live.uploads import Source
from app.live.view import Picture
from pipeline import Event, Played, Rule, Shown, StreamState

POINTS = 32  # earlier states that are held of a stream, and
POINT_BYTES = 64 << 20  # their bytes without the memory, which they share
APART_S = 5.0  # seconds of video between two of them at first


@dataclass(frozen=True, eq=False)
class Leg:
    """One source of a stream, and what of it is to be watched. begins: second of the stream at its first picture.
    position: how many of its pictures were taken. until: second of the stream at which the next leg follows, or, for
    the last one, at which the stream stands until the visitor goes on. shown: what a camera showed, to be watched
    first."""

    source: Source
    begins: float = 0.0
    position: int = 0
    until: float = math.inf
    shown: Sequence[Shown] = ()


def leg_at(legs: Sequence[Leg], at: float) -> Leg:
    """The one that shows a second of the stream."""
    return next((leg for leg in reversed(legs) if leg.begins <= at), legs[0])


def played(legs: Sequence[Leg]) -> list[Played]:
    """The files among the sources, for the senses that go through them once they were watched: the last to its end."""
    ends = [*(leg.until for leg in legs[:-1]), math.inf]
    return [Played(str(leg.source.path), leg.begins, end) for leg, end in zip(legs, ends) if leg.source.path]


@dataclass(frozen=True, eq=False)
class Start:
    """Where a stream goes on that was watched before. legs: what is to be watched, in order; before: those that were.
    pictures: for the film. since: second of the video that a camera's next picture has. note: what the visitor should
    know. events and rules: what was noticed, and what is to be told."""

    state: StreamState
    legs: tuple[Leg, ...]
    before: tuple[Leg, ...] = ()
    pictures: Sequence[Picture] = ()
    since: float = 0.0
    note: str = ""
    events: Sequence[Event] = ()
    rules: Sequence[Rule] = ()

    def then(self, source: Source, fps: float) -> Start:
        """And where it would stand another source follows, with the picture that would have come next."""
        begins = self.legs[-1].until + 1 / fps
        return replace(self, legs=(*self.legs, Leg(source, begins)), since=begins)


class Point(NamedTuple):
    """A state that was, after so many pictures of a leg, given by its number."""

    state: StreamState
    position: int
    leg: int


class Points:
    """Earlier states of a stream, which share its memory: some all over it, and each leg's first. None where the oldest
    memory was dropped or moved: they would hold what the device has no room for. One thread adds."""

    def __init__(self, first: Point) -> None:
        self._points: tuple[Point, ...] = (first,)
        self._apart = APART_S

    def add(self, point: Point) -> None:
        state, newest = point.state, self._points[-1]
        if state.dropped or state.host_bytes:
            self._points = tuple(one for one in self._points if not one.state.frames)
        elif point.leg != newest.leg or state.seen_until - newest.state.seen_until >= self._apart:
            self._points = self._thinned((*self._points, point))

    @property
    def states(self) -> tuple[StreamState, ...]:
        """Of those that have seen something."""
        return tuple(point.state for point in self._points if point.state.frames)

    def put(self, states: Sequence[StreamState]) -> None:
        """Others in their place, in the same order."""
        following = iter(states)
        self._points = tuple(p._replace(state=next(following)) if p.state.frames else p for p in self._points)

    def until(self, at: float) -> Point | None:
        """The newest that had seen no more than that."""
        return next((one for one in reversed(self._points) if _seen(one) <= at), None)

    def _thinned(self, points: tuple[Point, ...]) -> tuple[Point, ...]:
        """Every other one goes where there are too many."""
        if len(points) <= POINTS and sum(one.state.state_bytes for one in points) <= POINT_BYTES:
            return points
        self._apart *= 2
        begun = [one for index, one in enumerate(points) if not index or one.leg != points[index - 1].leg]
        some = set(map(id, (*begun, *points[::2])))
        return tuple(one for one in points if id(one) in some)


def _seen(point: Point) -> float:
    return point.state.seen_until if point.state.frames else -1.0
