"""Streams: one engine and its streams, as a page in another process reaches them. Everything is a call by name with
plain values; what of it takes long, it tells of in parts."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from pathlib import Path
from typing import Any

from app.cluster.wire import About, Reply, Sender, Sent, Standing
from app.live import uploads
from app.live.census import Census, census
from app.live.session import LiveSession
from app.live.table import Sessions
from app.live.view import View
from pipeline import UserError, decode_jpeg

PULSE_S = 2.0
# Commands of a session that are plain values both ways
SOURCE = "open_file", "open_camera", "pause", "resume", "again", "reset", "compare"
ASKING = "ask", "retry", "withdraw", "stop_answer", "mark", "clear_chat", "undo"
BESIDE = "add_rule", "remove_rule", "probe", "keep", "delete_kept"
DEEDS = frozenset((*SOURCE, *ASKING, *BESIDE))
OF_ALL = "about", "pulse", "standing", "census", "leave", "go_on", "let_go"
OF_ONE = (
    "look",
    "peek",
    "begin",
    "bring_back",
    "do",
    "offer",
    "changed",
    "fork",
    "join",
    "clip",
    "take",
    "close",
    "delete",
)
VERBS = frozenset((*OF_ALL, *OF_ONE))


class Nobody(Exception):
    """The stream that was meant is not here."""


class Streams:
    """Any thread may call `call`."""

    def __init__(self, sessions: Sessions) -> None:
        self._over = threading.Event()
        self.sessions, self.born, self._sender = sessions, f"{os.getpid()}-{secrets.token_hex(8)}", Sender()

    def call(self, verb: str, *values: Any) -> Reply:
        if verb not in VERBS:
            raise ValueError(f"{verb!r} is nothing that streams can be asked for")
        try:
            return Reply(self.born, getattr(self, verb)(*values))
        except Nobody:
            return Reply(self.born, here=False)
        except UserError as error:
            return Reply(self.born, refused=str(error))

    # Of all of them

    def about(self) -> tuple[About, ...]:
        """Of the models."""
        engines = [self.sessions.engine, *([self.sessions.rival] if self.sessions.rival else [])]
        return tuple(About(one.name, one.backend, one.about) for one in engines)

    def pulse(self) -> None:
        """Takes a while."""
        self._over.wait(PULSE_S)

    def standing(self) -> Standing:
        for one in self.sessions.everyone():
            if one.lost:  # this engine stalled, and another one has taken the stream
                self.sessions.let_go(one.name)
        everyone = self.sessions.everyone()
        views = [one.view() for one in everyone]
        return Standing(
            free=self.sessions.standing[0],
            places=self.sessions.places,
            ends=tuple(self.sessions.coming_free),
            names=frozenset(one.name for one in everyone),
            kept=frozenset(one.name for one in everyone if (keep := one.switch.keep) and not keep.over),
            uploads=frozenset(view.upload for view in views if view.upload),
        )

    def census(self) -> Census:
        return census(self.sessions)

    # Coming and going

    def begin(self, key: str, page: str | None, program: bool, held: bytes) -> Sent:
        """A new session under a key that was made elsewhere."""
        if self.sessions.get(key) is None:
            self.sessions.issue(key)
        _, session = self.sessions.ensure(key, page, program)
        return self._sender.send(key, session.view(), held)

    def bring_back(self, key: str, page: str | None, by_force: bool, held: bytes) -> Sent:
        session = self.sessions.bring_back(key, page, by_force)
        if session is None:
            raise Nobody
        return self._sender.send(key, session.view(), held)

    def fork(self, key: str, at: float, page: str | None) -> str:
        self._session(key)
        return self.sessions.fork(key, at, page)[0]

    def join(self, key: str, kind: str, path: Path | None, page: str | None) -> str:
        self._session(key)
        return self.sessions.join(key, kind, path, page)[0]

    def leave(self, page: str | None) -> None:
        self.sessions.leave(page)

    def close(self, key: str) -> None:
        self.sessions.close(key)

    def delete(self, key: str) -> None:
        self.sessions.delete(key)

    def go_on(self, name: str) -> bool:
        """A kept file is watched on; whether it is, or was already."""
        self.sessions.go_on_with(name)
        return name in self.sessions.names

    def let_go(self, name: str) -> None:
        self.sessions.let_go(name)

    # Of one

    def look(self, key: str, page: str | None, held: bytes) -> Sent:
        return self._sent(key, self._session(key, page), held)

    def peek(self, key: str) -> View | None:
        return self.sessions.peek(key)

    def do(self, key: str, deed: str, values: tuple, held: bytes) -> tuple[Any, Sent]:
        """A command; what it gives, and what is seen then."""
        if deed not in DEEDS:
            raise ValueError(f"{deed!r} is no command of a session")
        session = self._session(key)
        return getattr(session, deed)(*values), self._sent(key, session, held)

    def offer(self, key: str, jpeg: bytes) -> None:
        self._session(key).offer(decode_jpeg(jpeg), jpeg)

    def changed(self, key: str, model: int, held: bytes) -> tuple[bool, Sent]:
        """Waits a moment for something new of a conversation; whether more will come, and what is seen now."""
        session = self._session(key)
        for look, _ in enumerate(session.follow(model)):
            sent = self._sent(key, session, held)
            if look or sent.body is not None:
                break
        busy = session.conversations[model].busy
        if not busy:  # what was said is written now, and not some seconds later: an engine that is killed loses none
            session.keep_words()
            sent = self._sent(key, session, held)
        return busy, sent

    def clip(self, key: str, at: float) -> bytes:
        with tempfile.TemporaryDirectory(prefix="vamba-live-clip-") as folder:
            out = Path(folder) / "clip.mp4"
            self._session(key).clip(at, out)
            return out.read_bytes()

    def take(self, key: str) -> str:
        """An archive of what is kept, as a file that whoever asked deletes."""
        pieces = self._session(key).take_along()
        folder = uploads.folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix="tmp-taken-", delete=False) as file:
            for piece in pieces:
                file.write(piece)
        return file.name

    def _session(self, key: str, page: str | None = None) -> LiveSession:
        session = self.sessions.get(key, page)
        if session is None:
            raise Nobody
        return session

    def _sent(self, key: str, session: LiveSession, held: bytes) -> Sent:
        return self._sender.send(key, session.view(), held)
