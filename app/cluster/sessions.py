"""The face of streams that live in other processes: a table of sessions and their commands, over calls to engines.

Nothing of a stream is here but its newest View. One whose engine is lost goes on at another out of the store, where its
visitor had it kept; what was asked and not answered is asked again there.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.cluster.far import Asked, FarSession
from app.cluster.handing import Handing
from app.cluster.table import Engine, Where
from app.cluster.wire import Away, Held, Reply, Sent
from app.live import uploads
from app.live.line import InLine, Line
from app.live.shelf import Shelf, name_of
from app.live.view import UPLOAD, Phase, View
from pipeline import UserError

log = logging.getLogger(__name__)

ISSUED = 10_000  # keys of pages that have not started anything
LOST = 1_000  # streams of which it is remembered that they were lost
AGAIN_S = 0.2  # who moves a stream tries so often
MOVES = 4  # of a stream within one call
GONE = (
    "The engine that watched this stream ended, and the stream was not kept, so what was seen is lost; start it again, "
    "and switch on Keep where it must not be."
)
AWAY = (
    "The engine that watches this stream does not answer at the moment; wait a little, or start the stream again under "
    "a new page."
)

SILENT = "No engine answers at the moment, so nothing was started; please try again in a minute."
FULL = "All {} places are taken at the moment, so nothing was started; please try again in a few minutes."


class FarSessions:
    """`Sessions` over engines elsewhere. Any thread may call."""

    def __init__(self, where: Where, folder: Path, patience: float) -> None:
        """folder: the store. patience: seconds that a visitor waits for a stream to be moved, at most."""
        self.where, self.shelf, self.patience = where, Shelf(folder), patience
        self.handing = Handing(uploads.folder())
        first = next(iter(where.engines))
        self.engine, *rivals = first.call("about").value
        self.rival = rivals[0] if rivals else None
        self.shared: dict[str, Any] = {}
        self._line = Line()
        self._issued: OrderedDict[str, None] = OrderedDict()
        self._held: dict[str, Held] = {}  # by key: the newest View
        self._asked: dict[str, dict[int, Asked]] = {}  # by key and number: not answered yet
        self._lost: OrderedDict[str, None] = OrderedDict()
        self._moving = [threading.Lock() for _ in range(16)]
        self._lock = threading.Lock()

    # Finding

    def get(self, key: str | None, page: str | None = None) -> FarSession | None:
        if not isinstance(key, str) or not key:
            return None
        try:
            seen = self.look(key, page)
        except UserError as error:  # it is lost, or nobody can tell at the moment
            seen = View(phase=Phase.ENDED, error=str(error))
        return FarSession(self, key, seen) if seen else None

    def look(self, key: str, page: str | None = None) -> View | None:
        """What is seen of a stream; None where there is none. Raises UserError where it cannot be reached."""
        reply = self._at_owner(key, lambda engine, held: engine.call("look", key, page, held.version))
        return self._view(key, reply.value) if reply else None

    def peek(self, key: object) -> View | None:
        if not isinstance(key, str):
            return None
        found = self.where.at(key)
        engine = found[0] if found else self.where.holder(name_of(key))
        try:
            if engine and (view := engine.call("peek", key).value):
                return view
        except Away:
            return self._held[key].view if key in self._held else None
        if self.shelf.has(name := name_of(key)):
            return View(phase=Phase.PAUSED, file_name="A kept stream", kept=self.shelf.view(name))
        return None

    def bring_back(self, key: str | None, page: str | None = None, by_force: bool = False) -> FarSession | None:
        session = self.get(key, page)
        if session is not None or not isinstance(key, str) or not self.shelf.has(name_of(key)):
            return session
        with self._moves(key):
            return self.get(key, page) or FarSession(self, key, self._bring(key, page, by_force))

    # Beginning

    def issue(self) -> str:
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._issued[key] = None
            while len(self._issued) > ISSUED:
                self._issued.popitem(last=False)
        return key

    def awaits(self, key: str | None) -> bool:
        return isinstance(key, str) and key in self._issued

    def ensure(self, key: str | None, page: str | None = None, program: bool = False) -> tuple[str, FarSession]:
        known = isinstance(key, str) and key in self._lost
        session = None if known else self.get(key, page)
        if key is not None and session is not None:
            return key, session
        new = key if key is not None and (known or self.awaits(key)) else secrets.token_urlsafe(16)
        if self.where.free() > self._line.before(key):
            for engine in self.where.by_room():
                try:
                    reply = engine.call("begin", new, page, program, b"")
                except Away:
                    continue
                engine.stale()
                if not reply.refused:
                    self._began(new, engine)
                    return new, FarSession(self, new, self._view(new, reply.value))
        raise UserError(self._full())

    def _full(self) -> str:
        places = sum(there.places for one in self.where.engines if (there := one.standing()))
        if not places:
            return SILENT
        return (
            f"All {places} places are taken at the moment, so nothing was started; please try again in a few minutes."
        )

    def _began(self, key: str, engine: Engine) -> None:
        self.where.put(key, engine)
        self._line.leave(key)
        with self._lock:
            self._issued.pop(key, None)
            self._lost.pop(key, None)

    def fork(self, key: str | None, at: float = math.inf, page: str | None = None) -> tuple[str, FarSession]:
        return self._another(key, "fork", at, page)

    def join(self, key: str | None, kind: str, path: Path | None, page: str | None = None) -> tuple[str, FarSession]:
        return self._another(key, "join", kind, self.handing.on(path) if kind == UPLOAD and path else path, page)

    def _another(self, key: str | None, verb: str, *values: Any) -> tuple[str, FarSession]:
        """A stream that is made of one, at the same engine."""
        if key is None or self.get(key) is None:
            raise UserError("Nothing was seen yet, so there is nothing to go on from; start a video first.")
        new = self.call(key, verb, *values)
        if found := self.where.at(key):
            self.where.put(new, found[0])
            found[0].stale()
        return new, FarSession(self, new)

    # A place

    def wait(self, key: str) -> None:
        if self.awaits(key):
            self._line.join(key)

    def in_line(self, key: str | None) -> InLine | None:
        return self._line.spot(key, self.where.free(), self.where.ends()) if self._line.waiting else None

    @property
    def standing(self) -> tuple[int, int]:
        """Places that newcomers may have, and keys that wait for one."""
        return self.where.free(), self._line.waiting

    # Ending

    def leave(self, page: str | None) -> None:
        """Nobody here knows whose page it was."""
        for engine in self.where.engines:
            try:
                engine.call("leave", page)
            except Away:
                continue

    def close(self, key: str | None) -> None:
        self._end(key, "close")

    def delete(self, key: str | None) -> None:
        self._end(key, "delete")
        if isinstance(key, str):
            self.shelf.delete(name_of(key))

    def _end(self, key: str | None, verb: str) -> None:
        if not isinstance(key, str):
            return
        found = self.where.at(key)
        engine = found[0] if found else self.where.holder(name_of(key))
        if engine:
            try:
                engine.call(verb, key)
            except Away:
                log.warning("a stream could not be closed; its engine does that when nobody comes")
            engine.stale()
        self._forget(key)

    def _forget(self, key: str) -> None:
        self.where.forget(key)
        self._held.pop(key, None)
        self._asked.pop(key, None)

    # Calling

    def do(self, key: str, deed: str, *values: Any) -> tuple[Any, View]:
        """A command of a session; what it gives, and what is seen then. Raises UserError."""
        value, sent = self.call(key, "do", deed, values, with_held=True)
        return value, self._view(key, sent)

    def changed(self, key: str, model: int) -> tuple[bool, View]:
        """Waits for something new of a conversation, for a second at most; whether more will come."""
        try:
            busy, sent = self.call(key, "changed", model, with_held=True)
        except UserError as error:
            return False, View(phase=Phase.ENDED, error=str(error))
        return busy, self._view(key, sent)

    def call(self, key: str, verb: str, *values: Any, with_held: bool = False) -> Any:
        """What a verb of a stream's engine gives. Raises UserError."""

        def deed(engine: Engine, held: Held) -> Reply:
            return engine.call(verb, key, *values, *([held.version] if with_held else []))

        reply = self._at_owner(key, deed)
        if reply is None:
            raise UserError("This stream is over, so nothing was done; start it again.")
        if reply.refused:
            raise UserError(reply.refused)
        return reply.value

    def _at_owner(self, key: str, deed: Callable[[Engine, Held], Reply]) -> Reply | None:
        """A reply of the stream's engine, wherever that is by now; None where there is no such stream. Raises UserError
        where it cannot be reached."""
        for _ in range(MOVES):
            with self._lock:
                lost = key in self._lost
            if lost:
                raise UserError(GONE)
            found = self.where.at(key)
            if found is None:
                engine = self.where.holder(name_of(key))
                if engine is None:
                    return None
                self.where.put(key, engine)
                found = engine, engine.born
            engine, born = found
            try:
                reply = deed(engine, self._held.get(key, Held()))
            except Away:
                self._move(key, found)
                continue
            if reply.here and (reply.born == born or not born):
                return reply
            if reply.here:  # it came back by itself there
                self.where.put(key, engine)
                return reply
            if reply.born == born and not engine.going:  # it was closed
                self._forget(key)
                return None
            self._move(key, found)
        raise UserError(AWAY)

    def _view(self, key: str, sent: Sent) -> View:
        held = self._held.get(key, Held()).after(sent)
        self._held[key] = held
        if asked := self._asked.get(key):
            for number in list(asked):
                turn = held.view.turn(number)
                if turn is None or turn.over:
                    asked.pop(number, None)
        return held.view

    def hand_on(self, path: Path) -> Path:
        """A visitor's upload for one stream."""
        return self.handing.on(path)

    def asked(self, key: str, number: int, question: Asked) -> None:
        """It is asked again, should the engine be lost before it was answered."""
        self._asked.setdefault(key, {})[number] = question

    # Moving

    def _moves(self, key: str) -> threading.Lock:
        return self._moving[hash(key) % len(self._moving)]

    def _move(self, key: str, found: tuple[Engine, str]) -> None:
        """A stream goes on at another engine, or at the same one's next process. Raises UserError where it cannot."""
        with self._moves(key):
            if self.where.at(key) != found:
                return  # somebody else moved it
            if not self.shelf.has(name_of(key)):
                self._give_up(key, found)
            asked = dict(self._asked.get(key, {}))
            log.warning("a stream moves away from %s", found[0].name)
            self._bring(key, None, by_force=True)  # its engine may only stall: what it writes later is refused
            view = self._held[key].view
            for number, question in asked.items():
                if view.turn(number) is None:
                    FarSession(self, key).ask(*question)

    def _give_up(self, key: str, found: tuple[Engine, str]) -> None:
        """Raises UserError: a stream that was not kept cannot move. It is lost once its process is known to be gone."""
        engine, born = found
        if engine.born == born:
            raise UserError(AWAY)
        self._forget(key)
        with self._lock:
            self._lost[key] = None
            while len(self._lost) > LOST:
                self._lost.popitem(last=False)
        raise UserError(GONE)

    def _bring(self, key: str, page: str | None, by_force: bool) -> View:
        """A kept stream goes on wherever there is most room. Raises UserError."""
        end, refused = time.monotonic() + self.patience, self._full
        told = ""
        while True:
            for engine in self.where.by_room():
                try:
                    reply = engine.call("bring_back", key, page, by_force, b"")
                except Away:
                    continue
                engine.stale()
                if reply.here and not reply.refused:
                    self._began(key, engine)
                    self._held.pop(key, None)
                    return self._view(key, reply.value)
                told = reply.refused
            if time.monotonic() > end:
                raise UserError(told or refused())
            time.sleep(AGAIN_S)
