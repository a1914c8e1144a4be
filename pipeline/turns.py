"""Whose turn it is: a model's time is shared fairly between answers that somebody waits for and watching.

Fair by time, not by turns: a word takes a fraction of what a chunk takes, so one of each in turn gave an answer a tenth
of the machine. While both wait, both get half of the time; what one leaves, the other may use. This is start-time fair
queueing (Goyal, Vin and Cheng, SIGCOMM 1996) with two flows: every turn begins at a virtual time, the later of its
flow's last end and the newest turn's beginning, and the earliest goes first. So nobody starves, and nobody saves up
turns by waiting.

Who asks for an answer comes back for the next word as soon as the last one is shown, a moment later. Whoever is owed a
turn is waited for that long (anticipatory scheduling: Iyer and Druschel, SOSP 2001); else every word of an answer would
find a chunk begun just before it.

There is no thread of its own: a thread that waits for its work does it when its turn comes, and with it what may go
with it of the works that others wait for; they find theirs done.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Generic, TypeVar

PATIENCE_S = 0.01  # how long somebody who was just handed a word is waited for
# How long watching waits for the streams that were just served, so that the next pass can be shared. Many need longer
# to come back than one, and a long pass is worth more: half as long as the last one took. Words wait for nobody: whose
# reader is not back yet gets his all the same (Engine._ahead).
GATHER_S, MOST_GATHER_S = 0.004, 0.05
READING_S = 1.0  # how long they are taken for somebody who goes on reading


class Flow(IntEnum):
    """What the time is shared between; of two that have had as much, the first goes first."""

    ANSWERS = 0
    WATCHING = 1


class Work:
    """Something a thread waits for. It is over once `done` is set, or `error`, by whoever does it.

    owner: whose it is, where more will come; not the work itself, a cycle would keep the memory it knows.
    """

    def __init__(self, flow: Flow, owner: object = None):
        self.flow, self.owner = flow, owner
        self.done = False
        self.error: BaseException | None = None

    @property
    def over(self) -> bool:
        return self.done or self.error is not None

    @property
    def returns(self) -> bool:
        """Whether its owner will be back for the next one in a moment, as readers of words are."""
        return False


W = TypeVar("W", bound=Work)


class Shares:
    """The virtual clock: how much of the machine's time each flow has had."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends = dict.fromkeys(Flow, 0.0)

    def first(self, flows: Iterable[Flow]) -> Flow:
        """Which of these is to go first."""
        return min(flows, key=lambda flow: (self._begin(flow), flow))

    def use(self, flow: Flow, seconds: float) -> None:
        """A turn of this flow took so long."""
        self._now = self._begin(flow)
        self._ends[flow] = self._now + seconds

    def _begin(self, flow: Flow) -> float:
        return max(self._now, self._ends[flow])


class Line(Generic[W]):
    """Who waits, and who is next. Knows neither threads nor a clock: times are told.

    together: of the waiting works of one flow, in order of arrival, those that go in one turn; the first at least.
    """

    def __init__(self, together: Callable[[Sequence[W]], Sequence[W]] = lambda waiting: waiting[:1]) -> None:
        self._together = together
        self._waiting: list[W] = []
        self._readers: dict[object, float] = {}  # who were handed a word and did not come back yet: when that was
        self._shares = Shares()
        # Chunks that the newest turn of them ended, when that was, and how long their streams are waited for.
        self._watched, self._watched_at, self._gather_s = 0, -math.inf, GATHER_S
        self.doing: Sequence[W] = ()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, work: W) -> None:
        self._readers.pop(work.owner, None)
        self._waiting.append(work)

    def leave(self, work: W) -> None:
        """Gives up waiting; what is being done is done."""
        self._waiting = [other for other in self._waiting if other is not work]

    def forget(self, owner: object) -> None:
        """This reader will not be back."""
        self._readers.pop(owner, None)

    def answering(self, now: float) -> bool:
        """Whether somebody waits for a word, or has read one a moment ago."""
        return any(work.flow is Flow.ANSWERS for work in self._waiting) or self._handed_since(now - READING_S)

    def next(self, now: float) -> Sequence[W]:
        """The works of the next turn. None while a turn is on, and where somebody who is owed it is waited for."""
        going = [work for work in self._waiting if not work.over]  # others' turns may have ended some
        flows = {work.flow for work in going}
        if self.doing or not flows:
            return ()
        flow = self._shares.first(flows | ({Flow.ANSWERS} if self._handed_since(now - PATIENCE_S) else set()))
        waiting = [work for work in going if work.flow is flow]
        return () if not waiting or self._gathers(flow, len(waiting), now) else self._together(waiting)

    def _gathers(self, flow: Flow, waiting: int, now: float) -> bool:
        """Whether a moment more may bring as many streams as were watched last."""
        return flow is Flow.WATCHING and waiting < self._watched and now - self._watched_at < self._gather_s

    def finish(self, began: float, now: float) -> None:
        """The turn is over. What is not waits for another one, behind the others."""
        flow, took = self.doing[0].flow, now - began
        self._shares.use(flow, took)
        if flow is Flow.WATCHING:
            self._watched, self._watched_at = sum(work.done for work in self.doing), now
            self._gather_s = min(MOST_GATHER_S, max(GATHER_S, took / 2))
        self._readers |= {work.owner: now for work in self._waiting if work.returns}
        again = self.doing if flow is Flow.WATCHING else ()  # an unread question keeps its place
        left = [work for work in self._waiting if not work.over]
        self._waiting = [*(w for w in left if w not in again), *(w for w in left if w in again)]
        self.doing = ()

    def _handed_since(self, then: float) -> bool:
        return any(handed > then for handed in self._readers.values())


class Turns(Generic[W]):
    """Works of many threads on one machine, one turn at a time.

    do: some works of one flow, one turn of each; sets `done` or `error` of those that are over then. Others get further
    turns.
    """

    def __init__(
        self, do: Callable[[Sequence[W]], None], line: Line[W], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._do, self._line, self._clock = do, line, clock
        self._moved = threading.Condition()  # guards the line
        self._began: float | None = None  # when the turn at work began

    def run(self, work: W) -> None:
        """Returns when the work is over; raises its error. Done by this thread, or in another one's turn."""
        with self._moved:
            self._line.join(work)
            self._tell()  # somebody may be waiting for just this one
        try:
            while works := self._turn_of(work):
                self._take(works)
        finally:  # also of Ctrl-C: a work left behind would block everybody for ever
            with self._moved:
                self._line.leave(work)
                self._tell()
        if work.error is not None:
            raise work.error

    @property
    def answering(self) -> bool:
        """Whether somebody waits for a word, or has read one a moment ago."""
        with self._moved:
            return self._line.answering(self._clock())

    @property
    def waiting(self) -> int:
        """Works that are not over, those of the turn at work included."""
        with self._moved:
            return len(self._line)

    @property
    def turn_s(self) -> float:
        """Seconds that the turn at work has taken so far; 0 between two."""
        began = self._began
        return 0.0 if began is None else self._clock() - began

    def forget(self, owner: object) -> None:
        """This reader will not be back."""
        with self._moved:
            self._line.forget(owner)
            self._moved.notify_all()

    def _tell(self) -> None:
        """Whoever waits looks again; not during a turn, when it would be for nothing and cost all of them time."""
        if not self._line.doing:
            self._moved.notify_all()

    def _turn_of(self, work: W) -> Sequence[W]:
        """Waits until it is this work's turn: the works that go with it. None once it is over."""
        with self._moved:
            while not work.over:
                works = self._line.next(self._clock())
                if works and works[0] is work:
                    self._line.doing = works
                    return works
                self._moved.wait(None if self._line.doing else GATHER_S)
        return ()

    def _take(self, works: Sequence[W]) -> None:
        self._began = began = self._clock()
        try:
            self._do(works)
        except Exception as error:
            for work in works:
                work.error = work.error or error
        finally:
            with self._moved:
                self._line.finish(began, self._clock())
                self._began = None
                self._moved.notify_all()
