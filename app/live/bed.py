"""Bed: whether a session's stream has a place in memory or sleeps on the disk, for the table of sessions and for the
session's own commands."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from app.live.shared import Watched
from app.live.watching import Watch
from pipeline import Dormitory, UserError

NO_PLACE = (
    "All places are taken at the moment, so nothing was started; what was watched sleeps on, please try again in a few "
    "minutes."
)


class Bed:
    """One session's. Any thread may call.

    has_place: whether its stream may lie in memory; whoever gave it, `admit`, counts. It is given back asleep.
    """

    def __init__(
        self,
        watch: Callable[[], Watched | None],
        stays_awake: Callable[[], bool],
        commands: threading.RLock,
        admit: Callable[[Bed], bool] | None,
    ) -> None:
        """watch: the session's stream. stays_awake: whether it may not sleep, as while something is asked of it.
        commands: held by a command at work. admit: gives `has_place` back after a sleep, where there is room; whether
        it did. None: there is."""
        self._watch, self._stays_awake, self._commands, self._admit = watch, stays_awake, commands, admit
        self.has_place = True
        self._wanted_at = time.monotonic()

    @property
    def may_sleep(self) -> bool:
        """Whether nobody wants the stream at this moment: it is neither watched nor asked."""
        watch = self._watch()
        return self.has_place and isinstance(watch, Watch) and watch.rests and self._idle(watch)

    @property
    def idle_since(self) -> float:
        """When the stream was wanted last, as `time.monotonic` counts."""
        watch = self._watch()
        return max(self._wanted_at, watch.rests_since) if isinstance(watch, Watch) else self._wanted_at

    def fall_asleep(self, dormitory: Dormitory) -> bool:
        """Puts the stream on the disk, where nobody wants it; whether it sleeps. Takes seconds. Raises UserError where
        it could not be written: it stays awake then, and keeps its place."""
        watch = self._watch()
        return isinstance(watch, Watch) and watch.fall_asleep(dormitory, lambda: self._idle(watch), self._give_back)

    def _give_back(self) -> None:
        self.has_place = False

    def _idle(self, watch: Watch) -> bool:
        if not self._commands.acquire(blocking=False):
            return False
        try:
            return self._watch() is watch and not self._stays_awake()
        finally:
            self._commands.release()

    def wanted(self) -> None:
        """Somebody asks."""
        self._wanted_at = time.monotonic()

    def rouse(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Returns once the stream is awake; see `Sleep.rouse`."""
        if isinstance(watch := self._watch(), Watch):
            watch.sleep.rouse(given_up)

    def rouse_soon(self) -> None:
        """It wakes by itself; nobody waits for it."""
        if isinstance(watch := self._watch(), Watch) and watch.sleep.deep:
            watch.sleep.begin()

    def admitted(self) -> bool:
        """Whether it has a place in memory (again)."""
        return self.has_place or self._admit is None or self._admit(self)

    def take_place(self) -> None:
        """Before another stream begins. Raises UserError where there is no room for it in memory."""
        if not self.admitted():
            raise UserError(NO_PLACE)
