"""Time: presentation stamps to seconds, and which pictures a sampling rate keeps. Standard library only."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

EPSILON = 1e-6  # seconds; container clocks are rational, ours is a double
NEAR = 0.2  # seconds; a step forward no longer than this is believed at once
LASTS = 2  # pictures after a jump that must agree with it
FIRST = 6  # pictures that say whether the first stamp of all is one of them
DAY, HOUR = 86_400.0, 4_500.0  # seconds; the longest stillness believed: of a player's file, and elsewhere (75 minutes)


@dataclass(frozen=True)
class Timeline:
    """What a container says of its seconds, in units of `time_base`.

    zero: the stamp of second 0, or None for the first picture's. ends: second at which the track ends, if that is
    known. player: a browser plays such files, and its seconds hold. sender: stamps come from the clock of whoever sent
    the stream, and may be wild.
    """

    time_base: Fraction
    rate: Fraction | None = None
    zero: int | None = None
    ends: float | None = None
    player: bool = False
    sender: bool = False


@dataclass(frozen=True)
class Waiting:
    """A picture whose seconds are not settled. pts and duration in units of the time base; None where unknown."""

    picture: Any
    pts: int | None
    duration: int | None


class Clock:
    """Presentation stamps to seconds of the video, in the order pictures are shown, never backwards.

    Nothing is decided from one stamp. A step longer than NEAR, or back, waits for the next LASTS pictures: where they
    go on from before, the stamp was a lone wild one and the picture comes just after its neighbour; where they agree
    with the step, it is a new time. A new time that lies back is a wrap or a spliced recording, and goes on from where
    the old one was; one ahead is a gap and is believed, unless it is longer than any stillness (HOUR, in a player's
    file DAY) in a file whose other pictures are closer together. A missing stamp is the last one plus its duration.

    last: seconds of the newest settled picture, -1 before the first. lone, joined: stamps and jumps not believed.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.timeline, self.zero, rate = timeline, timeline.zero, timeline.rate
        self.step = float(1 / rate) if rate and 0 < rate <= 1000 else 0.04  # seconds from picture to picture, newest
        self.stays = self.step  # seconds the newest picture stays, as its packet says
        self.longest = 0.0  # seconds between two pictures so far
        self.shift, self.last, self.lone, self.joined, self.stamped = 0.0, -1.0, 0, 0, False
        self.waiting: deque[Waiting] = deque()

    @property
    def started(self) -> bool:
        return self.last >= 0

    @property
    def end(self) -> float:
        """Second at which the newest settled picture ends. Its packet's word is taken within reason."""
        stays, ends = self.stays, self.timeline.ends if self.shift == 0 else None
        if stays > max(1.0, self.longest):
            stays = self.step if ends is None else min(stays, max(ends - self.last, self.step))
            if stays > HOUR and stays > 10 * self.longest:
                stays = self.step
        return self.last + stays

    def peek(self, pts: int) -> float:
        """Seconds of a stamp, taken at its word."""
        return float((pts - (self.zero or 0)) * self.timeline.time_base) + self.shift

    def offer(self, picture: Any, pts: int | None, duration: int | None) -> list[tuple[Any, float]]:
        """The next picture in the order of showing; gives those, with seconds, that are settled by it."""
        self.waiting.append(Waiting(picture, pts, duration))
        return self._settled(ended=False)

    def finish(self) -> list[tuple[Any, float]]:
        """The pictures that still wait: no more will come."""
        return self._settled(ended=True)

    def _settled(self, ended: bool) -> list[tuple[Any, float]]:
        settled = []
        while self.waiting:
            at = self._judged(ended)
            if at is None:
                break
            head = self.waiting.popleft()
            self._advance(at, head)
            settled.append((head.picture, at))
        return settled

    def _advance(self, at: float, head: Waiting) -> None:
        stays = float(head.duration * self.timeline.time_base) if head.duration and head.duration > 0 else None
        if self.started:
            self.longest = max(self.longest, at - self.last)
            if head.pts is not None and at == self.peek(head.pts):
                self.step = at - self.last
        elif stays is not None and stays <= 1.0:
            self.step = stays
        self.stays, self.last = stays or self.step, at

    def _judged(self, ended: bool) -> float | None:
        """Seconds of the picture that has waited longest, or None while it takes more pictures to say."""
        pts = self.waiting[0].pts
        following = self.last + (self.stays if self.stays <= 1.0 else self.step) if self.started else 0.0
        if pts is None:
            return following
        if not self.stamped:  # the first stamp of all, perhaps after pictures without any
            self.zero, self.stamped = pts if self.zero is None else self.zero, True
            self.shift = max(0.0, following - self.peek(pts)) if self.started else 0.0
        now = self.peek(pts)
        if self.started and 0 < now - self.last <= NEAR:
            return now
        need = LASTS if self.started else FIRST
        later = [self.peek(w.pts) for w in itertools.islice(self.waiting, 1, None) if w.pts is not None][:need]
        if not self.started and later and now >= 0 and 0 < later[0] - now <= NEAR:
            return self._first(now, later[:1])
        if len(later) < need and len(self.waiting) <= 3 * need and not ended:
            return None
        if not self.started:
            return self._first(now, later)
        return self._ahead(now, later) if now > self.last else self._back(now, later)

    def _first(self, now: float, later: list[float]) -> float:
        """The first picture: a later start than the container's is believed, a stamp unlike all others is not."""
        below = [x for x in later if x < now]
        steps = [b - a for a, b in itertools.pairwise([now, *later])]
        usual = statistics.median([s for s in steps[1:] if s > 0] or [self.step])
        start = now
        if 2 * len(below) > len(later):
            start, self.lone = below[0] - usual, self.lone + 1
        elif self.timeline.sender and len(steps) > 2 and min(steps) > 0 and steps[0] > max(NEAR, 10 * max(steps[1:])):
            start, self.lone = later[0] - usual, self.lone + 1
        believed = start if 0 <= start <= DAY and (start == now or now != 0) else 0.0
        self.shift += believed - start
        return believed

    def _ahead(self, now: float, later: list[float]) -> float:
        """A long step forward."""
        step = now - self.last
        for count, at in enumerate(later, 2):
            resumes = at - self.last < now - at or at - self.last <= 1.5 * count * self.step
            if self.last < at < now and resumes:
                return self._neighbour(now, at)
        if not any(at >= now for at in later):  # the last one: nothing says whether it lasts
            wild = step > HOUR or (self.timeline.sender and step > 1.0)
            return self._neighbour(now, None) if wild and step > 10 * max(self.longest, self.step) else now
        usual = max(self.longest, min(b - a for a, b in itertools.pairwise([now, *later])))
        if step > (DAY if self.timeline.player else HOUR) and step > 10 * usual:
            self.shift -= step - self.step
            self.joined += 1
            return self.last + self.step
        return now

    def _back(self, now: float, later: list[float]) -> float:
        """A step back, or none."""
        ahead = [at for at in later if at > self.last]
        if ahead or (not later and self.last - now > 1.0):
            return self._neighbour(now, ahead[0] if ahead else None)
        if self.last - now <= 1.0:
            return self.last + 1e-4
        self.shift += self.last + self.step - now
        self.joined += 1
        return self.last + self.step

    def _neighbour(self, now: float, following: float | None) -> float:
        """The seconds of a picture whose own stamp says `now` and is not believed: between its neighbours."""
        self.lone += abs(now - self.last) > NEAR
        at = self.last + self.step
        return at if following is None or at < following else (self.last + following) / 2


class Sampler:
    """Which pictures to keep: those on the screen at 0, 1/fps, 2/fps ... seconds, each once, however long it stays.

    The first picture is on the screen from second 0. Taking the first picture of every second instead would never show
    a slide that came at 0.9 s and stayed for ten. A picture is known to be on the screen at a tick when the next one
    comes later, so one is held. fps None keeps all.
    """

    def __init__(self, fps: float | None) -> None:
        self.fps = fps
        self.held: tuple[Any, float] | None = None
        self.since = 0.0  # second from which on the held one is on the screen

    def offer(self, picture: Any, at: float) -> list[tuple[Any, float]]:
        """The pictures that `picture`, presented `at` seconds, proves wanted: none or one."""
        if self.fps is None:
            return [(picture, at)]
        wanted = [self.held] if self.held and self.wants(self.since, at) else []
        self.since = at if self.held else 0.0
        self.held = (picture, at)
        return wanted

    def wants(self, start: float, end: float) -> bool:
        """Whether a tick lies in [start, end)."""
        return self.fps is None or math.ceil((start - EPSILON) * self.fps) / self.fps < end - EPSILON

    def finish(self, end: float) -> list[tuple[Any, float]]:
        """The picture that stays on the screen until `end`, if it is wanted."""
        wanted = [self.held] if self.held and self.wants(self.since, end) else []
        self.held = None
        return wanted
