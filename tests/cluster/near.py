"""Engines in this process behind the wire of several: what goes through it is pickled, and it can be cut."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.cluster.streams import Streams
from app.cluster.wire import Away, Reply
from app.live.shelf import Shelf
from app.live.table import Sessions
from pipeline import Engine


class Near:
    """A wire to an engine here. cut: nobody gets through."""

    def __init__(self, name: str, make: Callable[[], Sessions]) -> None:
        self.name, self._make = name, make
        self.streams, self.cut, self.calls = Streams(make()), False, 0

    def call(self, verb: str, *values: Any, patience: float) -> Reply:
        self.calls += 1
        if self.cut:
            raise Away(self.name)
        said = pickle.loads(pickle.dumps((verb, values)))
        return pickle.loads(pickle.dumps(self.streams.call(said[0], *said[1])))

    def killed(self) -> None:
        """The process is another one, which knows nothing; what was kept is what lies on the disk."""
        old = self.streams.sessions
        for session in old.everyone():
            if session.watch:
                session.watch.keep(None)
            if keep := session.switch.keep:
                keep.keeper.close()
        self.streams = Streams(self._make())
        old.shelf = None
        old.shut()


def near(store: Path, *engines: Callable[[], Engine], rival: Callable[[], Engine] | None = None, places: int = 4):
    """Wires to engines that share a store."""

    def maker(engine: Callable[[], Engine]) -> Callable[[], Sessions]:
        return lambda: Sessions(engine(), rival() if rival else None, places, Shelf(store), alone=False)

    return [Near(f"engine-{n}", maker(engine)) for n, engine in enumerate(engines)]
