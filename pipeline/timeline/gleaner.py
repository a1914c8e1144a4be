"""Gleaner: lets the late senses go through a stream's files, once these were watched, and keeps what they found.

It lies beside the state as the timeline does, and any thread may look while one goes through: events are only appended,
and every sense says how far it has come.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline.heap import give_back
from pipeline.stream import Event, LateSense, Reach, UserError

KEPT = 5_000  # events of a stream; later ones are let go
WAIT_S = 0.2  # between two looks whether it is one's turn
_turn = threading.Lock()  # one file at a time in a process: they are in nobody's way, and memory is bounded


class Played(NamedTuple):
    """A file of a stream: its path, the stream's second at which it begins, and the one up to which it counts."""

    path: str
    begins: float = 0.0
    until: float = math.inf


class Gleaner:
    """One thread goes through the files; any may look at `events` and `reaches`.

    before: what was gleaned of the stream earlier; each sense that goes through it again replaces its own.
    """

    def __init__(self, senses: Sequence[LateSense], before: Sequence[Event] = ()) -> None:
        self._senses = tuple(senses)
        self.kinds = frozenset(kind for sense in self._senses for kind in sense.kinds)
        self.events: tuple[Event, ...] = tuple(before)
        self.reaches: tuple[Reach, ...] = tuple(Reach(sense.name, sense.doing) for sense in self._senses)

    @property
    def senses(self) -> tuple[str, ...]:
        return tuple(sense.name for sense in self._senses)

    def go_through(
        self,
        files: Sequence[Played],
        stop: threading.Event | None = None,
        wanted: Collection[str] | None = None,
        told: Callable[[Reach], None] = lambda reach: None,
    ) -> None:
        """All files with one sense after the other (wanted: names; None: all), in this thread. told: of every step."""
        stop = stop or threading.Event()
        for sense in self._senses:
            if wanted is None or sense.name in wanted:
                self._in_turn(sense, files, stop, told)

    def _in_turn(
        self, sense: LateSense, files: Sequence[Played], stop: threading.Event, told: Callable[[Reach], None]
    ) -> None:
        while not _turn.acquire(timeout=WAIT_S):
            if stop.is_set():
                return
        try:
            self._go_through(sense, files, stop, told)
        finally:
            give_back()  # reading text leaves 0.2 GB
            _turn.release()

    def _go_through(
        self, sense: LateSense, files: Sequence[Played], stop: threading.Event, told: Callable[[Reach], None]
    ) -> None:
        self.events = tuple(event for event in self.events if event.kind not in sense.kinds)
        reach = Reach(sense.name, sense.doing)
        lacks = []
        for file in files:
            try:
                for gleaned in sense.glean(file.path, stop):
                    self._keep(gleaned.events, file)
                    lacks += [gleaned.lacks] if gleaned.lacks else []
                    reach = replace(reach, until=min(file.begins + gleaned.until, file.until))
                    self._show(reach, told)
                    if stop.is_set() or reach.until >= file.until:
                        break
            except UserError as error:  # of one file: the others may do
                lacks.append(str(error))
            if stop.is_set():
                return
        found = any(event.kind in sense.kinds for event in self.events)
        self._show(replace(reach, done=True, lacks="" if found or not lacks else lacks[0]), told)

    def _keep(self, events: Sequence[Event], file: Played) -> None:
        """At their seconds of the stream, as far as the file counts."""
        shifted = (_later(event, file.begins, file.until) for event in events)
        self.events = (*self.events, *(event for event in shifted if event.time <= file.until))[:KEPT]

    def _show(self, reach: Reach, told: Callable[[Reach], None]) -> None:
        self.reaches = tuple(reach if one.sense == reach.sense else one for one in self.reaches)
        told(reach)


def _later(event: Event, seconds: float, at_most: float) -> Event:
    until = None if event.until is None else min(event.until + seconds, at_most)
    return replace(event, time=event.time + seconds, until=until)
