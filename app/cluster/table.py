"""Which engine has which stream, which of them can be reached, and which one a newcomer goes to.

A stream stays where it is until its engine is lost or is to go: engines that come take newcomers and nobody else's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from app.cluster.wire import Away, Reply, Standing, Wire

log = logging.getLogger(__name__)

FRESH_S = 0.5  # for so long what an engine has is remembered; it is asked by one at a time
AGAIN_S = 1.0  # an engine that could not be reached is tried again so often
PROBE_S = 5.0  # and has so long to answer


class Engine:
    """One engine as the page sees it. Any thread may call.

    going: it is to be given back, and takes nobody any more. well: whether it answered when it was asked last; one that
    did not is asked again by a thread of its own, so that no visitor waits for it.
    """

    def __init__(self, wire: Wire, patience: float) -> None:
        self.wire, self.name, self.patience = wire, wire.name, patience
        self.going, self.well, self.born = False, True, ""
        self._standing: tuple[float, Standing] | None = None
        self._asking, self._changing = threading.Lock(), threading.Lock()
        self._over = threading.Event()
        self._prober: threading.Thread | None = None

    def call(self, verb: str, *values: Any) -> Reply:
        """Raises Away: at once, where it is known to be."""
        if not self.well:
            raise Away(self.name)
        try:
            return self._call(verb, *values, patience=self.patience)
        except Away:
            self._unwell()
            raise

    def _call(self, verb: str, *values: Any, patience: float) -> Reply:
        reply = self.wire.call(verb, *values, patience=patience)
        if reply.born and reply.born != self.born:
            self.born, self._standing = reply.born, None
        return reply

    def _unwell(self) -> None:
        with self._changing:
            if self.well and not self._over.is_set():
                log.warning("%s cannot be reached", self.name)
                self.well, self._standing = False, None
                self._prober = threading.Thread(target=self._probe, name=f"asking {self.name}", daemon=True)
                self._prober.start()

    def _probe(self) -> None:
        while not self._over.wait(AGAIN_S):
            try:
                self._call("about", patience=PROBE_S)
            except Away:
                continue
            log.warning("%s is back", self.name)
            self.well = True
            return

    def standing(self, age: float = FRESH_S) -> Standing | None:
        """What it has, as of at most so many seconds ago; None where it cannot be reached."""
        with self._asking:
            known = self._standing
            if known and time.monotonic() - known[0] < age:
                return known[1]
            try:
                found = self.call("standing").value
            except Away:
                return None
            self._standing = time.monotonic(), found
            return found

    def close(self) -> None:
        self._over.set()
        if self._prober:
            self._prober.join(PROBE_S + AGAIN_S)

    def stale(self) -> None:
        """Somebody came or went: what it has is to be asked anew."""
        self._standing = None


class Where:
    """By key: the engine of a stream and the process that had it. Bounded by the streams there are."""

    def __init__(self, wires: Callable[[], Sequence[Wire]], patience: float) -> None:
        """wires: to the engines there are, those included that are to go."""
        self._wires, self._patience = wires, patience
        self._engines: dict[str, Engine] = {}
        self._at: dict[str, tuple[Engine, str]] = {}
        self._lock = threading.Lock()

    @property
    def engines(self) -> list[Engine]:
        wires = self._wires()
        with self._lock:
            there = {one.name: self._engines.get(one.name) or Engine(one, self._patience) for one in wires}
            gone = [one for name, one in self._engines.items() if name not in there]
            self._engines = there
        for one in gone:
            one.close()
        return list(there.values())

    def close(self) -> None:
        for one in list(self._engines.values()):
            one.close()

    def put(self, key: str, engine: Engine) -> None:
        with self._lock:
            self._at[key] = engine, engine.born

    def forget(self, key: str) -> None:
        with self._lock:
            self._at.pop(key, None)

    def at(self, key: str) -> tuple[Engine, str] | None:
        """The engine that has the stream of a key, as far as is known, and its process then."""
        return self._at.get(key)

    @property
    def keys(self) -> list[str]:
        with self._lock:
            return list(self._at)

    def holder(self, name: str, age: float = FRESH_S) -> Engine | None:
        """The engine that says it has a stream of this name."""
        found = [(one, there) for one in self.engines if (there := one.standing(age))]
        return next((one for one, there in found if name in there.names), None)

    def by_room(self) -> Iterator[Engine]:
        """Where a newcomer may go, the one with most room first."""
        open_ones = [one for one in self.engines if not one.going]
        found = [(there.free, one) for one in open_ones if (there := one.standing()) and there.free > 0]
        yield from (one for _, one in sorted(found, key=lambda pair: -pair[0]))

    def free(self) -> int:
        """Places that newcomers may have."""
        return sum(there.free for one in self.engines if not one.going and (there := one.standing()))

    def ends(self) -> list[float]:
        """Seconds in which others come free, in order."""
        return sorted(end for one in self.engines if (there := one.standing()) for end in there.ends)
