"""Switch: whether a visitor wants their stream kept, and what became of that."""

from __future__ import annotations

from collections.abc import Generator

from app.live import comeback
from app.live.keep import Keep
from app.live.shared import OURS, Seat, Watched
from app.live.shelf import Shelf
from app.live.view import KeptView
from app.live.watching import FPS, Watch
from pipeline import Engine, TakenOver, UserError, can_encrypt


class Switch:
    """One command at a time. shelf, name: where the stream is kept if it is to be, and as what. secret: the visitor's
    key, "" while nobody has come with it yet."""

    def __init__(self, engine: Engine, shelf: Shelf | None, name: str, secret: str = "") -> None:
        self.engine, self.shelf, self.name, self.secret = engine, shelf, name, secret
        self.on = self.encrypt = False
        self.keep: Keep | None = None
        self._closing: Keep | None = None  # the newest that was closed
        self._refused = ""  # why it could not be kept

    def turn(self, on: bool, watch: Watched | None, encrypt: bool = False) -> None:
        """On or off. What is kept stays. encrypt: what is kept from now on, where the library is there. Raises
        UserError where there is no room."""
        if on and isinstance(watch, Seat):
            raise UserError(OURS.format("kept"))
        self.on, self._refused = on and self.shelf is not None, ""
        self.encrypt = encrypt and can_encrypt() and bool(self.secret)
        if self.on and isinstance(watch, Watch):
            self._begin(watch)
        if not on:
            self.end(watch)

    def follow(self, watch: Watch) -> None:
        """Another stream begins: where this is on, it is kept in place of the one before."""
        if self.on:
            try:
                self._begin(watch)
            except UserError as error:
                self.on, self._refused = False, str(error)

    def go_on(self, keep: Keep | None) -> None:
        """A stream goes on, with who keeps it."""
        self.on, self.keep = keep is not None, keep
        self.encrypt = keep is not None and keep.encrypted

    def end(self, watch: Watched | None) -> None:
        """Nothing more is written; what waits is written in the background."""
        if watch:
            watch.keep(None)
        if self.keep:
            self._closing = self.keep
            self.keep.close()
        self.keep = None

    def delete(self, watch: Watched | None) -> None:
        """All that is kept of this stream and of its forks, at once. Raises UserError where it was taken over."""
        self._check_ours()
        if self.keep:
            self.keep.delete()
        elif self.shelf:
            self.shelf.delete(self.name)
        self.on, self._refused, self.keep = False, "", None
        if watch:
            watch.keep(None)

    @property
    def lost(self) -> bool:
        """Whether somebody else goes on with the stream."""
        return self.keep is not None and self.keep.taken

    def join(self, timeout: float) -> None:
        """After `end`: waits for what is still being written."""
        if self._closing:
            self._closing.join(timeout)

    def taken_along(self) -> Generator[bytes, None, None]:
        """An archive of what is kept, piece by piece. Raises UserError, where nothing is kept too."""
        if self.shelf is None or not self.shelf.has(self.name):
            raise UserError("Nothing is kept of this stream, so nothing was taken along; switch keeping on first.")
        self._check_ours()
        return self.shelf.taken(self.name, self.keep, self.secret)

    def view(self) -> KeptView | None:
        if self.keep:
            return self.keep.view()
        if self._refused:
            return KeptView(0, 0.0, self._refused)
        return self.shelf.view(self.name) if self.shelf and self.shelf.has(self.name) else None

    def _check_ours(self) -> None:
        """Raises UserError where somebody else goes on with what was kept here last."""
        newest = self.keep or self._closing
        if newest and newest.taken:
            raise TakenOver

    def _begin(self, watch: Watch) -> None:
        assert self.shelf is not None
        self.end(watch)
        source = watch.legs[0].source
        size = sum(leg.source.path.stat().st_size for leg in watch.legs if leg.source.path)
        secret = self.secret if self.encrypt else ""
        kept = self.shelf.create(self.name, comeback.about(source, self.engine), size, secret)
        self.keep = Keep(self.shelf, self.name, kept, self.engine)
        self.keep.follow(watch.legs[: watch.here.leg + 1], FPS)
        watch.keep(self.keep)
