"""Room: the visitors' places, which of their streams lie in memory, and who gives way to whom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from weakref import WeakSet

from app.live.session import LiveSession
from pipeline import Dormitory, UserError

log = logging.getLogger(__name__)

IDLE_S = 600  # a session without a file is closed after so long without a sign of its page
KEEP_S = 3600  # one with a file goes on watching, and keeps what it saw, for so long without its page
PROGRAM_S = 300  # a program's session is closed after so long without a call
LEFT_S = 6  # after the page said goodbye; a reconnecting page shows itself within a second
LOOKED_AT_S = 5  # a page that is open is heard of more often than this
UNUSED_S = 30  # without a stream and without a sign of its page: gives way to a newcomer
ASLEEP = 16  # sleeping streams for each place: a thread and some 10 MB of pictures and words stay in memory
SLEEPLESS_S, RESTLESS_S = 60, 5  # one that could not be written, or was just wanted, is left awake for so long


class Place:
    """A session in the table, and when its page was last heard of (on a monotonic clock: a changed wall clock must not
    end a stream)."""

    def __init__(self, session: LiveSession, program: bool = False, kin: Kin | None = None) -> None:
        """kin: the places of what this is a fork of, and of its forks: who looks at one comes back to any."""
        self.session, self.program = session, program
        self.touched = time.monotonic()
        self.left: float | None = None
        self.kin: Kin = WeakSet() if kin is None else kin
        self.kin.add(self)
        self.sleepless_until = -math.inf  # it could not be put to sleep

    def touch(self) -> None:
        """The page is there."""
        for place in list(self.kin):
            place.touched, place.left = time.monotonic(), None

    def overdue(self, now: float) -> bool:
        """Whether nobody will come back."""
        return self.ends_in(now) < 0 or (
            self.left is not None and now - self.left > LEFT_S and not self.session.has_file
        )

    def ends_in(self, now: float) -> float:
        """Seconds until it is closed, if nobody comes back to it meanwhile."""
        kept = PROGRAM_S if self.program else KEEP_S if self.session.has_file else IDLE_S
        return self.touched + kept - now

    def looked_at(self, now: float) -> bool:
        return now - self.touched < LOOKED_AT_S

    def expendable(self, now: float) -> bool:
        """Whether it gives way to a newcomer: its page has gone, or it holds nothing and is not looked at."""
        return self.left is not None or (self.session.holds_nothing and now - self.touched > UNUSED_S)

    def may_sleep(self, now: float) -> bool:
        """Whether its stream could be on the disk as well: nobody watches it, and nobody asks."""
        return now >= self.sleepless_until and self.session.bed.may_sleep and not self.session.holds_nothing


Kin = WeakSet[Place]  # a stream and its forks


class Room:
    """Places are of streams that lie in memory, at most so many; others sleep in the dormitory, where there is one.

    Whoever calls holds the table's lock, but for `lulled`, which takes seconds.
    """

    def __init__(self, places: int, dormitory: Dormitory | None) -> None:
        self.places, self.dormitory = places, dormitory
        self.most = places * (1 + ASLEEP) if dormitory else places  # streams, sleeping ones included

    def awake(self, places: Iterable[Place]) -> int:
        """Streams that lie in memory, or are being woken."""
        return sum(place.session.bed.has_place for place in places)

    def is_free(self, places: Sequence[Place]) -> bool:
        """Whether somebody else may come, as it is."""
        return self.awake(places) < self.places and len(places) < self.most

    def free(self, places: Sequence[Place], now: float) -> int:
        """How many may come, for whom others give way."""
        gone = [place for place in places if place.expendable(now)]
        giving = [place for place in places if place.expendable(now) or self.may_sleep(place, now)]
        return min(self.places - self.awake(places) + self.awake(giving), self.most - len(places) + len(gone))

    def may_sleep(self, place: Place, now: float) -> bool:
        return self.dormitory is not None and place.may_sleep(now)

    def giving_way(self, places: Iterable[Place], now: float) -> Place | None:
        """Who loses least by it: who holds nothing, then who sleeps instead and was idle longest, at last who has left
        and was heard of last. None: nobody."""
        places = list(places)
        if len(places) >= self.most:
            return min((p for p in places if p.expendable(now)), key=lambda place: place.touched, default=None)
        here = [place for place in places if place.session.bed.has_place]
        gone = sorted((place for place in here if place.expendable(now)), key=lambda place: place.touched)
        sleepy = [place for place in here if self.may_sleep(place, now)]
        sleepy.sort(key=lambda place: place.session.bed.idle_since)
        empty = [place for place in gone if place.session.holds_nothing]
        return next(iter([*empty, *sleepy, *gone]), None)

    def lulled(self, place: Place) -> bool:
        """Puts its stream to sleep, where that may be; whether it sleeps. Where not, it is left alone for a while."""
        now = time.monotonic()
        if self.dormitory is None or not place.may_sleep(now):
            return False
        try:
            asleep = place.session.bed.fall_asleep(self.dormitory)
        except UserError as error:
            log.warning("a stream is not put to sleep: %s", error)
            place.sleepless_until = time.monotonic() + SLEEPLESS_S
            return False
        if not asleep:
            place.sleepless_until = time.monotonic() + RESTLESS_S
        return asleep

    def told(self, places: Sequence[Place]) -> str:
        """How many streams there are, for whoever runs the server."""
        awake, disk = self.awake(places), self.dormitory.nbytes / 1e6 if self.dormitory else 0.0
        return f"{awake} of {self.places} places in memory are taken, {len(places) - awake} sleep on {disk:,.0f} MB"
