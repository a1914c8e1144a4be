"""Sleep: a stream that nobody wants lies on the disk, and is back with the next question or picture.

All of its models' states go, the earlier ones that a fork may go back to as well; what a page shows of it stays.
Falling asleep begins with a copy, so whoever comes meanwhile finds the stream awake: then the copy is thrown away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from app.live.conversation import PUT_ASIDE
from app.live.legs import Points
from app.live.noticing import Noticing
from app.live.viewing import Viewing
from pipeline import Asleep, Dormitory, StreamState, UserError, outline

log = logging.getLogger(__name__)

POLL_S = 0.05  # who waits for a stream that wakes looks so often whether they still want it
PLACE_S = 0.2  # a stream that has no place to wake in asks for one so often
FAILED = "Something failed on our side, so this stream was not woken; nothing of it is lost, ask again."


class _Slept(NamedTuple):
    viewing: Viewing
    laid: Asleep


class Sleep:
    """One stream's. Any thread may call."""

    def __init__(self, guard: threading.Condition, admit: Callable[[], bool]) -> None:
        """guard: the stream's own lock; states are dropped and put back under it. admit: gives a stream that wakes its
        place back, where there is one."""
        self._guard, self._admit = guard, admit
        self._slept: tuple[_Slept, ...] = ()
        self._points: Points | None = None
        self._noticing: Noticing | None = None
        self._one = threading.Lock()  # nobody else puts this stream to sleep, or wakes it
        self._waker: threading.Thread | None = None
        self._error = ""
        self._closed = False

    @property
    def deep(self) -> bool:
        """Whether it sleeps: its states lie on the disk alone."""
        return bool(self._slept)

    @property
    def waking(self) -> bool:
        waker = self._waker
        return self.deep and waker is not None and waker.is_alive()

    @property
    def seconds(self) -> float | None:
        """What waking takes, about; None where it is awake."""
        slept = self._slept
        return sum(one.laid.seconds for one in slept) if slept else None

    def fall(
        self,
        dormitory: Dormitory,
        parts: tuple[Sequence[Viewing], Points, Noticing],
        may: Callable[[], bool],
        dropped: Callable[[], None],
    ) -> bool:
        """Puts the stream to sleep where it may; whether it sleeps. parts: what holds its states. may: asked with the
        guard held, before and after copying. dropped: called with the guard held, once nothing is held any more.

        Raises UserError where a state could not be written; the stream is awake then, as it was.
        """
        viewings, points, noticing = parts
        with self._one:
            if self.deep:
                return self._sleeps_on(dropped)
            if not self._ready(viewings, may):
                return False
            states = [viewing.state for viewing in viewings]
            laid = [
                dormitory.lay(viewing.engine, state, () if n else points.states)
                for n, (viewing, state) in enumerate(zip(viewings, states))
            ]
            with self._guard:
                same = all(viewing.state is state for viewing, state in zip(viewings, states))
                if self._closed or not (same and self._ready(viewings, may)):
                    return False
                for viewing, state in zip(viewings, states):
                    viewing.put(outline(state))
                points.put([outline(state) for state in points.states])
                noticing.let_go()
                self._slept, self._points, self._noticing = tuple(map(_Slept, viewings, laid)), points, noticing
                dropped()
        return True

    def _sleeps_on(self, dropped: Callable[[], None]) -> bool:
        """One that could not be woken holds nothing, but was given its place back for that."""
        with self._guard:
            if not self.waking:
                dropped()
            return not self.waking

    def _ready(self, viewings: Sequence[Viewing], may: Callable[[], bool]) -> bool:
        with self._guard:
            return may() and all(viewing.at_rest and viewing.state.frames for viewing in viewings)

    def rouse(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Returns once the stream is awake. given_up: whether whoever waits has given up; it wakes all the same. Raises
        UserError."""
        with self._guard:
            if not self.deep:
                return
        waker = self.begin()
        while waker.is_alive() and self.deep:
            if given_up():
                raise UserError(PUT_ASIDE)
            waker.join(POLL_S)
        if self.deep:
            raise UserError(self._error or PUT_ASIDE)

    def begin(self) -> threading.Thread:
        """Begins to wake it, where nobody has begun."""
        with self._guard:
            if self._waker is None or not self._waker.is_alive():
                self._waker, self._error = threading.Thread(target=self._wake, name="waking", daemon=True), ""
                self._waker.start()
            return self._waker

    def _wake(self) -> None:
        while not self._closed and not self._admit():
            time.sleep(PLACE_S)
        try:
            with self._one:
                slept = self._slept
                self._put_back(slept, [one.laid.wake(one.viewing.engine) for one in slept])
        except UserError as error:
            self._error = str(error)
        except Exception:
            log.exception("waking a stream failed")
            self._error = FAILED

    def _put_back(self, slept: Sequence[_Slept], found: Sequence[Sequence[StreamState]]) -> None:
        with self._guard:
            if self._closed or not slept:
                return
            for one, (state, *_) in zip(slept, found):
                one.viewing.put(state)
            newest, *earlier = found[0]
            if self._points and self._noticing:
                self._points.put(earlier)
                self._noticing.judge(newest)
            self._slept = ()

    def close(self) -> None:
        """What lies on the disk goes."""
        with self._guard:
            self._closed, self._slept = True, ()

    def join(self, timeout: float) -> None:
        """After `close`: waits for what is being woken."""
        if self._waker:
            self._waker.join(timeout)
