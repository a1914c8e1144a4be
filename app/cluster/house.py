"""Keeping house before several engines: streams whose engine is to go are moved, kept files that nobody watches any
more are watched on, and what nobody needs is deleted. Whoever starts again finds all of that out by asking."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Protocol

from app.cluster.sessions import FarSessions
from app.cluster.table import Engine
from app.cluster.wire import Away, Standing
from app.live.shelf import name_of

log = logging.getLogger(__name__)

EVERY_S = 1.0
ALONE_S = 3.0  # a kept file that no engine has for so long goes on by itself
SWEPT_S = 10.0


class Crew(Protocol):
    """Those who start engines and end them."""

    def follow(self) -> None:
        """Starts what is wanted and not there. May raise."""

    def is_wanted(self, name: str) -> bool:
        """Whether an engine is to stay."""

    def dismiss(self, name: str) -> None:
        """Ends an engine that holds nothing any more."""


class House:
    """Its thread begins at once and ends with `close`."""

    def __init__(self, sessions: FarSessions, crew: Crew) -> None:
        self._sessions, self._crew = sessions, crew
        self._alone: dict[str, float] = {}  # kept streams that no engine has, since when
        self._refused: set[str] = set()  # those of them that do not go on by themselves
        self._swept = time.monotonic()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="keeping house", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(30.0)

    def _work(self) -> None:
        while not self._closing.wait(EVERY_S):
            self.round()

    def round(self) -> None:
        """All duties once; one that fails keeps nobody from the others."""
        for duty in (self._crew.follow, self._move_out, self._watch_on, self._sweep):
            try:
                duty()
            except Away as error:
                log.info("%s cannot be reached, so some of the house is kept later", error)
            except Exception:
                log.exception("keeping house failed")

    def _standings(self) -> dict[Engine, Standing] | None:
        """Of all engines; None where one cannot be reached, and so what is not seen may still be there."""
        found = {one: one.standing() for one in self._sessions.where.engines}
        return {one: there for one, there in found.items() if there} if all(found.values()) else None

    # Engines that are to go

    def _move_out(self) -> None:
        """Kept streams move to engines that stay, as far as there is room; the others are waited for."""
        where = self._sessions.where
        for engine in where.engines:
            engine.going = not self._crew.is_wanted(engine.name)
        for engine in [one for one in where.engines if one.going]:
            standing = engine.standing(0.0)
            if standing is None:
                continue
            if not standing.names:
                log.info("%s holds nothing any more and is ended", engine.name)
                self._crew.dismiss(engine.name)
                continue
            for name in sorted(standing.kept)[: where.free()]:
                self._move(engine, name)

    def _move(self, engine: Engine, name: str) -> None:
        engine.call("let_go", name)
        engine.stale()
        key = next((key for key in self._sessions.where.keys if name_of(key) == name), None)
        if key:
            self._sessions.get(key)  # it comes back elsewhere, and what was asked is asked again
        else:
            self._alone[name] = 0.0  # at once

    # Streams that nobody has

    def _watch_on(self) -> None:
        """Files that were being watched when their engine ended, and whose pages do not come."""
        standings = self._standings()
        if standings is None:
            return
        held = set().union(*(there.names for there in standings.values()))
        alone = [name for name in self._sessions.shelf.names() if name not in held]
        self._refused &= set(alone)
        self._alone = {name: self._alone.get(name, time.monotonic()) for name in alone}
        for name, since in self._alone.items():
            if name not in self._refused and time.monotonic() - since > ALONE_S and not self._go_on(name):
                self._refused.add(name)

    def _go_on(self, name: str) -> bool:
        for engine in self._sessions.where.by_room():
            reply = engine.call("go_on", name)
            engine.stale()
            if reply.refused:
                log.warning("a kept stream does not go on by itself: %s", reply.refused)
            return bool(reply.value)
        return True  # there is no room now; once more later

    # What nobody needs

    def _sweep(self) -> None:
        if time.monotonic() - self._swept < SWEPT_S or (standings := self._standings()) is None:
            return
        self._swept = time.monotonic()
        self._sessions.shelf.sweep(but=set().union(*(there.names for there in standings.values())))
        self._sessions.handing.sweep({Path(upload) for there in standings.values() for upload in there.uploads})
