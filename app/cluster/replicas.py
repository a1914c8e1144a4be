"""Replicas: the streams of several engines, the engines themselves, and whoever keeps house. Needs Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from app.cluster.engines import Engines
from app.cluster.house import House
from app.cluster.sessions import FarSessions
from app.cluster.table import Where
from app.cluster.wire import Away
from app.live.census import Census, together
from app.live.table import Sessions

PATIENCE_S = 10.0  # an engine that does not answer for so long loses its streams to others, where they are kept


class Replicas(FarSessions):
    """Starts everything, and ends what it started with `shut`. Raises UserError."""

    def __init__(self, make: Callable[[], Sessions], replicas: int, store: Path, patience: float = PATIENCE_S) -> None:
        """make: an engine's table of streams, called in its process."""
        store.mkdir(parents=True, exist_ok=True)
        self.engines = Engines(make, replicas, store)
        try:
            super().__init__(Where(self.engines.wires, patience), store, patience)
            self._house = House(self, self.engines)
        except BaseException:
            self.engines.close()
            raise

    def census(self) -> Census:
        """Of all engines that answer."""
        found = []
        for engine in self.where.engines:
            try:
                found.append(engine.call("census").value)
            except Away:
                continue
        return together(found, self.standing[1])

    def shut(self) -> None:
        self._house.close()
        self.where.close()
        self.engines.close()
