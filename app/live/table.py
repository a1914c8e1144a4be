"""Sessions: the table of a server's streams by key. A bounded number of places, freed when their page has gone.

A session is reached by a random 128-bit key and by nothing else. Gradio's own session hash is guessable and its State
is not storage (it is dropped by capacity without a word), so the page keeps only our key there.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from app.live import comeback, uploads, watching
from app.live.bed import Bed
from app.live.line import InLine, Line
from app.live.room import Kin, Place, Room
from app.live.session import LiveSession
from app.live.shared import Shared
from app.live.shelf import Shelf, name_of
from app.live.uploads import Source
from app.live.view import UPLOAD, Phase, View
from pipeline import Address, Dormitory, Engine, UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

PLACES = 8  # streams in memory at once; each holds a state, a memory and one worker
SLEEP_AFTER_S = 600.0  # a stream that is neither watched nor asked for so long goes to sleep
SHUT_S = 10  # the end of the server waits for so long for chunks that are being watched
FORKS = 3  # of one stream at a time: each takes a visitor's place
FORKED = f"There are {FORKS} forks of this stream already, so no more was begun; delete one of them (My streams)."
ISSUED = 10_000  # keys of pages that have not started anything; each is one short string


class Sessions:
    """Any thread may call. Closing a session only signals, so nobody here waits for somebody else's chunk."""

    def __init__(
        self,
        engine: Engine,
        rival: Engine | None = None,
        places: int = PLACES,
        shelf: Shelf | None = None,
        sources: Sequence[Address] = (),
        dormitory: Dormitory | None = None,
        sleep_after: float = SLEEP_AFTER_S,
        alone: bool = True,
    ) -> None:
        """shelf: where streams are kept whose visitors want it; None: nowhere. sources: the operator's, watched for
        everybody from now on. dormitory: where streams sleep that nobody wants for `sleep_after` seconds, or sooner
        where others need their place; None: nowhere. alone: no other server has this shelf, so that kept streams go on
        by themselves and are deleted when they are over; else whoever stands before the servers sees to that."""
        self.engine, self.rival, self.places, self.shelf = engine, rival, places, shelf
        self.shared = {one.name: Shared(one, engine) for one in sources}
        self.room, self.sleep_after, self.alone = Room(places, dormitory), sleep_after, alone
        self._back: dict[str, Place] = {}  # streams that went on by themselves, by the name they are kept under
        self._by_key: dict[str, Place] = {}
        self._pages: dict[str, str] = {}  # Gradio's page hash -> key; only to hear of a closed tab
        self._issued: dict[str, None] = {}  # keys without a session, oldest first
        self._line = Line()  # those of them that wait for a place
        self.came_back = 0  # kept streams that went on after a restart
        self._coming_back = threading.Lock()
        self._lock = threading.RLock()  # of the four
        self._closing = threading.Event()
        threading.Thread(target=self._reap_for_ever, name="reaper", daemon=True).start()
        if dormitory:
            threading.Thread(target=self._lull_for_ever, name="falling asleep", daemon=True).start()
        if shelf and alone:
            threading.Thread(target=self._go_on, name="going on", daemon=True).start()

    def __len__(self) -> int:
        return len(self._by_key) + len(self._back)

    def everyone(self) -> list[LiveSession]:
        """All sessions there are; whoever only counts them keeps none alive."""
        with self._lock:
            return [place.session for place in (*self._by_key.values(), *self._back.values())]

    @property
    def asleep(self) -> tuple[int, int]:
        """Streams that sleep, and the bytes that they take on the disk."""
        with self._lock:
            dormitory = self.room.dormitory
            return len(self._all) - self.room.awake(self._all), dormitory.nbytes if dormitory else 0

    @property
    def standing(self) -> tuple[int, int]:
        """Places that a newcomer may have, and keys that wait for one."""
        with self._lock:
            return max(0, self._free(time.monotonic())), self._line.waiting

    def get(self, key: str | None, page: str | None = None) -> LiveSession | None:
        """The session of a key, touched; None for a key that is unknown, foreign or over. page: who is there now."""
        with self._lock:
            if key is None or not isinstance(key, str):
                return None
            if self._back and (place := self._back.pop(name_of(key), None)):
                self._by_key[key] = place
                place.session.switch.secret = key
            place = self._by_key.get(key)
            if place is None:
                return None
            place.touch()
            if page:
                self._pages[page] = key
            return place.session

    def peek(self, key: object) -> View | None:
        """What a stream shows, without a sign of its page: whoever only looks through a list keeps nothing alive."""
        with self._lock:
            place = (self._by_key.get(key) or self._back.get(name_of(key))) if isinstance(key, str) else None
        if place is None and self.shelf and isinstance(key, str) and self.shelf.has(name := name_of(key)):
            return View(phase=Phase.PAUSED, file_name="A kept stream", kept=self.shelf.view(name))
        return place.session.view() if place else None

    def issue(self, key: str = "") -> str:
        """A key for a page that was opened, a new one unless it was made elsewhere. It takes no place until something
        is started with it.

        Without one, a question sent while a file was arriving found a session of its own, which had seen nothing.
        """
        key = key or secrets.token_urlsafe(16)
        with self._lock:
            self._issued[key] = None
            while len(self._issued) > ISSUED:
                del self._issued[next(iter(self._issued))]
        return key

    def awaits(self, key: str | None) -> bool:
        """Whether the key was issued and nothing was started with it yet."""
        return isinstance(key, str) and key in self._issued

    def ensure(self, key: str | None, page: str | None = None, program: bool = False) -> tuple[str, LiveSession]:
        """The session of a key; or a new one, under that key if it was issued and under a new one if not.

        program: nobody looks at it, so it is closed soon after the last call. Raises UserError when every place is
        taken, or the next one is somebody else's who waits for it.
        """
        with self._lock:
            session = self.get(key, page)
        if key is not None and session is not None:
            return key, session

        def begin() -> tuple[str, LiveSession]:
            there = self.get(key, page)
            if key is not None and there is not None:  # somebody else was quicker
                return key, there
            new = key if key is not None and self.awaits(key) else secrets.token_urlsafe(16)
            return new, self._put(new, self._new(new), page, program)

        return self._with_room(key, begin)

    def bring_back(self, key: str | None, page: str | None = None, by_force: bool = False) -> LiveSession | None:
        """`get`, and where there is no such session any more, the stream that is kept under its key. by_force: also
        where another process goes on with it, which loses it. Raises UserError where it is kept but cannot go on, and
        where every place is taken."""
        session = self.get(key, page)
        if session is not None and session.lost and by_force:
            self.close(key)
            session = None
        if session is not None or self.shelf is None or not isinstance(key, str) or not self.shelf.has(name_of(key)):
            return session
        with self._coming_back:  # somebody else may be bringing back the same one
            session = self.get(key, page)
            if session is None:
                session = self._new(key)
                session.go_on(comeback.of(self.shelf, session.name, self.engine, secret=key, by_force=by_force))
                try:
                    self._place(key, session, page)
                except UserError:
                    session.close()  # what is kept stays
                    raise
                self.came_back += 1
            return session

    def fork(
        self,
        key: str | None,
        at: float = math.inf,
        page: str | None = None,
        then: Source | None = None,
    ) -> tuple[str, LiveSession]:
        """A session of its own that goes on with another one's stream as it was at a second of it, and its key. then:
        the source that it goes on with. Raises UserError: nothing was seen, or every place is taken."""
        session = self.get(key)
        if key is None or session is None:
            raise UserError("Nothing was seen yet, so there is nothing to go on from; start a video first.")
        with self._lock:
            kin = self._by_key[key].kin
            if sum(place in kin for place in self._by_key.values()) > FORKS:
                raise UserError(FORKED)
        other = secrets.token_urlsafe(16)
        fork = self._new(other)
        back = session.branch(at, fork, then.path.stat().st_size if then and then.path else 0)
        try:
            fork.go_on(back.then(then, watching.FPS) if then else back)
        except UserError:
            fork.delete_kept()
            raise
        try:
            self._place(other, fork, page, kin)
        except UserError:
            fork.delete_kept()
            fork.close()
            raise
        return other, fork

    def join(self, key: str | None, kind: str, path: Path | None, page: str | None = None) -> tuple[str, LiveSession]:
        """A fork as of now that goes on with another source. path: of its file, where it has one."""
        source = uploads.take_over(path, path.name) if kind == UPLOAD and path else Source(kind, "", path)
        try:
            other, fork = self.fork(key, page=page, then=source)
        except UserError:
            uploads.let_go(source)
            raise
        return other, fork

    def delete(self, key: str | None) -> None:
        """Ends a stream and deletes all that is kept of it and of its forks."""
        session = self.get(key)
        if session:
            session.delete_kept()
        elif self.shelf and isinstance(key, str):
            self.shelf.delete(name_of(key))
        self.close(key)

    def _place(self, key: str, session: LiveSession, page: str | None, kin: Kin | None = None) -> None:
        self._with_room(key, lambda: self._put(key, session, page, kin=kin))

    def _put(
        self, key: str, session: LiveSession, page: str | None, program: bool = False, kin: Kin | None = None
    ) -> LiveSession:
        """Where there is room. With the lock held."""
        self._issued.pop(key, None)
        self._line.leave(key)
        self._by_key[key] = Place(session, program, kin)
        if page:
            self._pages[page] = key
        return session

    def _new(self, key: str) -> LiveSession:
        return LiveSession(self.engine, self.rival, self.shelf, name_of(key), key, self._admit)

    def _go_on(self) -> None:
        """Files that were being watched when the server ended are watched on, newest first, as far as there are places;
        whoever has the key finds them."""
        assert self.shelf is not None
        for name in self.shelf.names():
            if self._closing.is_set() or self.room.awake(self._all) >= self.places:
                return
            try:
                self.go_on_with(name)
            except UserError as error:
                log.warning("a kept stream does not go on by itself: %s", error)
            except Exception:
                log.exception("a kept stream does not go on by itself")

    def go_on_with(self, name: str) -> None:
        """A kept file that was being watched when its server ended is watched on, where it needs no key. Raises
        UserError where it cannot be."""
        assert self.shelf is not None
        with self._coming_back:
            if name in self.names or not comeback.goes_on_alone(self.shelf, name):
                return
            session = LiveSession(self.engine, self.rival, self.shelf, name, admit=self._admit)
            session.go_on(comeback.of(self.shelf, name, self.engine))
            with self._lock:
                self._back[name] = Place(session)
                self.came_back += 1

    @property
    def names(self) -> set[str]:
        """Under which the streams here are kept, or would be."""
        return {session.name for session in self.everyone()}

    def let_go(self, name: str) -> None:
        """Ends a stream here; what is kept of it stays, and is written when this returns."""
        with self._lock:
            keys = [key for key, place in self._by_key.items() if place.session.name == name]
            gone = [self._by_key.pop(key) for key in keys] + ([self._back.pop(name)] if name in self._back else [])
        for place in gone:
            place.session.keep_words()
            watch = place.session.watch
            place.session.close()
            if watch:
                watch.join(SHUT_S)
            place.session.join(SHUT_S)

    def wait(self, key: str) -> None:
        """Gets in line for a place, with a key that was issued; who waits already keeps theirs."""
        if self.awaits(key):
            self._line.join(key)

    def in_line(self, key: str | None) -> InLine | None:
        """Where a key stands in line, None for one that does not wait. Who asks is still there."""
        with self._lock:
            return self._line.spot(key, self._free(time.monotonic()), self.coming_free)

    @property
    def coming_free(self) -> list[float]:
        """Seconds in which streams end that nobody looks at, if nobody comes back to them; in order."""
        with self._lock:
            now = time.monotonic()
            return sorted(one.ends_in(now) for one in self._by_key.values() if not one.looked_at(now))

    # Room

    @property
    def _all(self) -> list[Place]:
        return [*self._by_key.values(), *self._back.values()]

    def _free(self, now: float) -> int:
        """Places that a newcomer may have."""
        return self.room.free(self._all, now)

    def _with_room(self, key: str | None, begin: Callable[[], T]) -> T:
        """What `begin` gives, called with the lock held once there is room for a newcomer, for which others give way.
        Raises UserError where nobody can, or where it is somebody else's turn."""
        while True:
            with self._lock:
                now = time.monotonic()
                if self._free(now) <= self._line.before(key):
                    raise UserError(
                        f"All {self.places} places are taken at the moment, so nothing was started; please try again "
                        "in a few minutes."
                    )
                if self.room.is_free(self._all):
                    return begin()
                giving = self.room.giving_way(self._by_key.values(), now)
            self._give_way(giving)

    def _admit(self, bed: Bed) -> bool:
        """A place in memory for a stream that wakes; others give way. Whether there is one."""
        while True:
            with self._lock:
                if bed.has_place or self.room.awake(self._all) < self.places:
                    bed.has_place = True
                    return True
                giving = self.room.giving_way(self._by_key.values(), time.monotonic())
            if giving is None:
                return False
            self._give_way(giving)

    def _give_way(self, place: Place | None) -> None:
        """It sleeps, or is closed."""
        if place and not self.room.lulled(place) and place.expendable(time.monotonic()):
            self.close(next((key for key, one in list(self._by_key.items()) if one is place), None))

    def _lull(self) -> None:
        """Puts streams to sleep that nobody wanted for a while."""
        now = time.monotonic()
        for place in list(self._by_key.values()):
            if now - place.session.bed.idle_since > self.sleep_after and self.room.lulled(place):
                log.info("a stream fell asleep; %s", self.counted())

    def _lull_for_ever(self) -> None:
        while not self._closing.wait(2.0):
            try:
                self._lull()
            except Exception:  # as of the reaper
                log.exception("putting streams to sleep failed")

    def counted(self) -> str:
        """How many streams there are, for whoever runs the server."""
        with self._lock:
            return self.room.told(self._all)

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
            unclaimed = [name for name, place in self._back.items() if place.overdue(now)]
            forgotten = [self._back.pop(name) for name in unclaimed]
        for key in overdue:
            self.close(key)
        for place in forgotten:
            place.session.close()
        for place in places:
            place.session.let_go_of_undoable()
            place.session.keep_words()
        with self._lock:
            self._pages = {page: key for page, key in self._pages.items() if key in self._by_key}
        return len(overdue) + len(forgotten)

    def _reap_for_ever(self) -> None:
        while not self._closing.wait(2.0):
            for duty in (self.reap, uploads.sweep, *([self.shelf.sweep] if self.shelf and self.alone else [])):
                try:
                    duty()
                except Exception:  # a reaper that dies keeps every later visitor's memory for ever
                    log.exception("closing a finished session failed")

    def shut(self) -> None:
        """Closes every session and waits a while for their workers; for the end of the server and for tests."""
        self._closing.set()
        with self._lock:
            places = [*self._by_key.values(), *self._back.values()]
        for shared in self.shared.values():
            shared.close()
        with self._lock:
            self._by_key.clear()
            self._back.clear()
        for place in places:
            place.session.keep_words()
        watches = [*self.shared.values(), *(place.session.watch for place in places)]
        for place in places:
            place.session.close()
        end = time.monotonic() + SHUT_S
        for watch in watches:
            if watch:
                watch.join(max(0.0, end - time.monotonic()))
        for place in places:
            place.session.join(max(0.0, end - time.monotonic()))
