"""Sessions: the table of a server's streams by key. A bounded number of places, freed when their page has gone.

A session is reached by a random 128-bit key and by nothing else. Gradio's own session hash is guessable and its State
is not storage (it is dropped by capacity without a word), so the page keeps only our key there.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time

from app.live import uploads
from app.live.session import LiveSession
from pipeline import Engine, UserError

log = logging.getLogger(__name__)

PLACES = 8  # visitors at once; each holds a state, a memory and one worker
IDLE_S = 600  # a session without a file is closed after so long without a sign of its page
KEEP_S = 3600  # one with a file goes on watching, and keeps what it saw, for so long without its page
LEFT_S = 6  # after the page said goodbye; a reconnecting page shows itself within a second
UNUSED_S = 30  # without a stream and without a sign of its page: gives way to a newcomer
SHUT_S = 10  # the end of the server waits for so long for chunks that are being watched
ISSUED = 10_000  # keys of pages that have not started anything; each is one short string


class Place:
    """A session in the table, and when its page was last heard of (on a monotonic clock: a changed wall clock must not
    end a stream)."""

    def __init__(self, session: LiveSession) -> None:
        self.session = session
        self.touched = time.monotonic()
        self.left: float | None = None

    def touch(self) -> None:
        """The page is there."""
        self.touched, self.left = time.monotonic(), None

    def overdue(self, now: float) -> bool:
        """Whether nobody will come back."""
        if self.session.has_file:
            return now - self.touched > KEEP_S
        return now - self.touched > IDLE_S or (self.left is not None and now - self.left > LEFT_S)

    def expendable(self, now: float) -> bool:
        """Whether it gives way to a newcomer: its page has gone, or it holds nothing and is not looked at."""
        return self.left is not None or (self.session.watch is None and now - self.touched > UNUSED_S)


class Sessions:
    """Any thread may call. Closing a session only signals, so nobody here waits for somebody else's chunk."""

    def __init__(self, engine: Engine, rival: Engine | None = None, places: int = PLACES) -> None:
        self.engine, self.rival, self.places = engine, rival, places
        self._by_key: dict[str, Place] = {}
        self._pages: dict[str, str] = {}  # Gradio's page hash -> key; only to hear of a closed tab
        self._issued: dict[str, None] = {}  # keys without a session, oldest first
        self._lock = threading.RLock()  # of the three
        self._closing = threading.Event()
        threading.Thread(target=self._reap_for_ever, name="reaper", daemon=True).start()

    def __len__(self) -> int:
        return len(self._by_key)

    def get(self, key: str | None, page: str | None = None) -> LiveSession | None:
        """The session of a key, touched; None for a key that is unknown, foreign or over. page: who is there now."""
        with self._lock:
            place = self._by_key.get(key) if isinstance(key, str) else None
            if key is None or place is None:
                return None
            place.touch()
            if page:
                self._pages[page] = key
            return place.session

    def issue(self) -> str:
        """A key for a page that was opened. It takes no place until something is started with it.

        Without one, a question sent while a file was arriving found a session of its own, which had seen nothing.
        """
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._issued[key] = None
            while len(self._issued) > ISSUED:
                del self._issued[next(iter(self._issued))]
        return key

    def awaits(self, key: str | None) -> bool:
        """Whether the key was issued and nothing was started with it yet."""
        return isinstance(key, str) and key in self._issued

    def ensure(self, key: str | None, page: str | None = None) -> tuple[str, LiveSession]:
        """The session of a key; or a new one, under that key if it was issued and under a new one if not.

        Raises UserError when every place is taken.
        """
        with self._lock:
            session = self.get(key, page)
            if key is not None and session is not None:
                return key, session
            retired = self._make_room()
            key = key if key is not None and self.awaits(key) else secrets.token_urlsafe(16)
            self._issued.pop(key, None)
            session = LiveSession(self.engine, self.rival)
            self._by_key[key] = Place(session)
            if page:
                self._pages[page] = key
        if retired:
            retired.close()
        return key, session

    def _make_room(self) -> LiveSession | None:
        """Takes out the session that nobody has looked at for longest, where every place is taken."""
        if len(self._by_key) < self.places:
            return None
        gone = [key for key, place in self._by_key.items() if place.expendable(time.monotonic())]
        if not gone:
            raise UserError(
                f"All {self.places} places are taken at the moment, so nothing was started; please try again in a "
                "few minutes."
            )
        return self._by_key.pop(min(gone, key=lambda key: self._by_key[key].touched)).session

    def leave(self, page: str | None) -> None:
        """A page said goodbye. A dropped connection looks the same, so a session with a file only becomes the
        first to make room; it is kept for `KEEP_S`."""
        with self._lock:
            place = self._by_key.get(self._pages.pop(page or "", ""))
            if place:
                place.left = time.monotonic()

    def close(self, key: str | None) -> None:
        """Frees a session at once; a key that is not there is no error."""
        with self._lock:
            place = self._by_key.pop(key, None) if isinstance(key, str) else None
        if place:
            place.session.close()

    def reap(self, now: float | None = None) -> int:
        """Closes what is overdue, and lets go of what was cleared or reset a while ago; returns how many it closed."""
        now = time.monotonic() if now is None else now
        with self._lock:
            places = list(self._by_key.values())
            overdue = [key for key, place in self._by_key.items() if place.overdue(now)]
        for key in overdue:
            self.close(key)
        for place in places:
            place.session.let_go_of_kept()
        with self._lock:
            self._pages = {page: key for page, key in self._pages.items() if key in self._by_key}
        return len(overdue)

    def _reap_for_ever(self) -> None:
        while not self._closing.wait(2.0):
            for duty in (self.reap, uploads.sweep):
                try:
                    duty()
                except Exception:  # a reaper that dies keeps every later visitor's memory for ever
                    log.exception("closing a finished session failed")

    def shut(self) -> None:
        """Closes every session and waits a while for their workers; for the end of the server and for tests."""
        self._closing.set()
        with self._lock:
            places = list(self._by_key.values())
            self._by_key.clear()
        watches = [place.session.watch for place in places]
        for place in places:
            place.session.close()
        end = time.monotonic() + SHUT_S
        for watch in watches:
            if watch:
                watch.join(max(0.0, end - time.monotonic()))
