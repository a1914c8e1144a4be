"""A fork: a stream as it was at a second of it, which goes on by itself. The one it comes from stays as it is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from app.live import comeback, uploads
from app.live.comeback import Back
from app.live.legs import Leg, Point, Start
from app.live.shared import OURS, Seat, Watched
from app.live.switch import Switch
from app.live.view import Turn
from app.live.watching import Watch
from pipeline import UserError, mmss


def branch(
    watch: Watched | None,
    rouse: Callable[[], None],
    switch: Switch,
    other: Switch,
    words: Sequence[Sequence[Turn]],
    at: float,
    video: int,
) -> Back:
    """Of a watched stream, with what was said of it by then: out of what is kept of it, else out of memory.

    rouse: wakes it. other: of the fork. video: bytes of a file that is to follow. Raises UserError where nothing was
    seen, and where a camera's pictures of then are not there.
    """
    if isinstance(watch, Seat):
        raise UserError(OURS.format("forked"))
    if watch is None or not watch.viewings[0].frames:
        raise UserError("Nothing was seen yet, so there is nothing to go on from; start a video first.")
    rouse()
    at, told = min(at, watch.viewings[0].state.seen_until), ""
    keep = switch.keep
    if keep and keep.begun and not keep.over:
        try:
            keep.shelf.fork(keep, other.name, other.secret, video)
            back = comeback.of(keep.shelf, other.name, watch.viewings[0].engine, at, other.secret)
            return back._replace(words=comeback.until(at, words), forked=_told(at, back.start))
        except UserError as error:
            keep.shelf.delete(other.name)
            told = f" {error}"
    start = _in_memory(watch, at)
    return Back(comeback.until(at, words), start, None, forked=_told(at, start) + told)


def _told(at: float, start: Start) -> str:
    stands = start.legs[-1].until
    near = ", the nearest moment to go back to" if mmss(stands) != mmss(at) else ""
    return f"A fork: the stream as it was at {mmss(stands)}{near}. What it comes from is untouched; see My streams."


def _in_memory(watch: Watch, at: float) -> Start:
    """From the nearest state that is held; what a file showed from there on is watched again."""
    newest = watch.here
    point = newest if newest.state.seen_until <= at else watch.points.until(at)
    assert point is not None, "the first state of a stream has seen nothing"
    good = watch.viewings[0].engine.last_good(point.state)
    point = Point(good, point.position - (point.state.frames - good.frames), point.leg)
    before, legs = _legs(watch.legs, point, at)
    seen = good.seen_until if good.frames else -1.0
    return Start(
        good,
        tuple(replace(leg, source=uploads.again(leg.source)) for leg in legs),
        tuple(replace(leg, source=uploads.again(leg.source)) for leg in before),
        [picture for picture in watch.thumbnails.after(-1.0) if picture.time <= seen],
        watch.camera.now if watch.camera else 0.0,
        "",
        [event for event in watch.noticing.events if event.time <= seen],
        watch.noticing.rules,
    )


def _legs(legs: Sequence[Leg], point: Point, at: float) -> tuple[Sequence[Leg], list[Leg]]:
    """(those that are over, those to be watched from a point to a second); a camera shows nothing twice."""
    later = legs[point.leg + 1 :]
    following = list(itertools.takewhile(lambda leg: leg.begins <= at and leg.source.path is not None, later))
    here = [legs[point.leg], *following]
    ends = [*(math.nextafter(leg.begins, 0) for leg in following), at]
    if here[-1].source.path is None:
        ends[-1] = point.state.seen_until
    starts = [point.position, *(0 for _ in following)]
    todo = [replace(leg, position=n, until=end, shown=()) for leg, n, end in zip(here, starts, ends)]
    return legs[: point.leg], todo
