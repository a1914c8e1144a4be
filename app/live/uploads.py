"""A source, and a visitor's file on disk: our own copy to watch, Gradio's copy for the player, the end of both.

Gradio stores uploads by content, so two visitors with the same file share a path, and cleans them by age; pieces of
aborted uploads it keeps for ever. So every session watches a copy of its own, and the last user deletes Gradio's. What
nobody watches goes after ten minutes, and all uploads together have a ceiling, reserved before one is accepted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from app.live.view import UPLOAD
from pipeline import UserError

UNUSED_S = 600  # an upload that stopped arriving, or that no stream opened, is deleted after so long
SHARE = 0.5  # of the disk that is free, for all uploads together, unless a ceiling is given

_users: Counter[Path] = Counter()
_arrived: dict[Path, float] = {}  # uploads that are complete, and when they came (monotonic seconds)
_lock = threading.Lock()


class Room:
    """Space on disk for the uploads of all visitors together. ceiling: bytes; None: SHARE of what is free.

    What an upload will need is reserved before any of it is accepted, and given back when it is whole or over. Any
    threads may reserve and release.
    """

    def __init__(self, ceiling: int | None = None) -> None:
        self.ceiling, self.reserved, self._lock = ceiling, 0, threading.Lock()

    def reserve(self, size: int) -> None:
        """Raises UserError where `size` more bytes do not fit."""
        with self._lock:
            used = sum(sizes(folder()))
            free = shutil.disk_usage(existing(folder())).free - self.reserved
            ceiling = SHARE * (used + free) if self.ceiling is None else self.ceiling
            if size > min(ceiling - used - self.reserved, free):
                raise UserError(
                    "There is no room for this upload beside those of other visitors, so it was not taken; "
                    "try again in ten minutes, or choose a smaller file."
                )
            self.reserved += size

    def release(self, size: int) -> None:
        """Of what was reserved, so much is on the disk or will not come."""
        with self._lock:
            self.reserved -= size


room = Room()


@dataclass(frozen=True)
class Source:
    """What is watched. name: as the visitor wrote it, only ever shown escaped. path: what is read, None for a camera.

    upload: Gradio's copy of a visitor's file, which the player shows; `path` is then a copy of our own.
    """

    kind: str
    name: str = ""
    path: Path | None = None
    upload: Path | None = None


def take_over(path: Path, name: str) -> Source:
    """A visitor's upload as a source: its player's copy counted, a copy of our own to watch. Raises UserError.

    May take seconds where the copy is on another file system.
    """
    use(path)
    try:
        return Source(UPLOAD, name, own_copy(partial(link_or_copy, path)), upload=path)
    except UserError:
        give_up(path)
        raise


def again(source: Source) -> Source:
    """The same for another stream: a copy of its own to watch, and one more who plays it. Raises UserError."""
    if not source.upload or not source.path:
        return source
    use(source.upload)
    return Source(source.kind, source.name, own_copy(partial(link_or_copy, source.path)), source.upload)


def put_back(own: Path, name: str) -> Source:
    """Our copy of a file that was kept, as the source it was, with one for the player."""
    suffix = Path(name).suffix if re.fullmatch(r"\.\w{1,5}", Path(name).suffix, re.ASCII) else ""
    folder().mkdir(parents=True, exist_ok=True)
    shown = Path(tempfile.mkdtemp(prefix="kept-", dir=folder())) / f"video{suffix}"
    link_or_copy(own, shown)
    use(shown)
    return Source(UPLOAD, name, own, upload=shown)


def let_go(source: Source) -> None:
    """Deletes what of a source is a visitor's; a file of ours (the example) stays."""
    if source.upload and source.path:
        delete_copy(source.path)
        give_up(source.upload)


def own_copy(give: Callable[[Path], None]) -> Path:
    """A copy in a folder of its own. give: puts it there. Raises UserError."""
    own = Path(tempfile.mkdtemp(prefix="vamba-live-")) / "video"  # never the visitor's name: %03d or -i mean things
    try:
        give(own)
    except UserError:
        delete_copy(own)
        raise
    except OSError as error:
        delete_copy(own)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError("The disk is full, so nothing was watched; try again in ten minutes.") from None
        raise UserError("The file is no longer here, so nothing was watched; choose it again.") from None
    return own


def link_or_copy(path: Path, there: Path) -> None:
    """A hard link where that works, which costs nothing. Raises OSError."""
    try:
        os.link(path, there)
    except OSError:  # another file system
        shutil.copyfile(path, there)


def delete_copy(own: Path) -> None:
    shutil.rmtree(own.parent, ignore_errors=True)


def use(path: Path) -> None:
    """One more session plays this upload."""
    with _lock:
        _users[path] += 1


def give_up(path: Path) -> None:
    """One less; the last one deletes it. Never a file outside Gradio's uploads."""
    with _lock:
        _users[path] -= 1
        if _users[path] <= 0:
            del _users[path]
            remove(path)


def let_all_go(sources: Iterable[Source], but: Source | None = None) -> None:
    """Each once: who let go of one twice deleted it under another visitor. but: what is still wanted."""
    for source in {id(one): one for one in sources}.values():
        if source is not but:
            let_go(source)


def folder() -> Path:
    """Where Gradio keeps uploads."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").resolve()


def sizes(place: Path) -> Iterator[int]:
    """Bytes of every file below `place`; what vanishes meanwhile counts nothing."""
    for name, _, files in os.walk(place):
        for file in files:
            with contextlib.suppress(OSError):
                yield os.stat(os.path.join(name, file)).st_size


def existing(place: Path) -> Path:
    """`place`, or the nearest folder above it that exists."""
    return next(path for path in (place, *place.parents) if path.is_dir())


def arrived(paths: Iterable[str]) -> None:
    """These uploads are complete."""
    with _lock:
        _arrived.update((Path(path), time.monotonic()) for path in paths)


def sweep(older_than: float = UNUSED_S) -> int:
    """Deletes uploads that no stream opened, and pieces of uploads that stopped arriving; returns how many.

    Pieces only in a folder that is ours alone.
    """
    swept = 0
    with _lock:
        for path in [p for p, since in _arrived.items() if time.monotonic() - since > older_than]:
            del _arrived[path]
            if path not in _users:
                swept += remove(path)
    for piece in folder().glob("tmp*") if "GRADIO_TEMP_DIR" in os.environ else ():
        with contextlib.suppress(OSError):
            if piece.is_file() and time.time() - piece.stat().st_mtime > older_than:
                swept += remove(piece)
    return swept


def remove(path: Path) -> bool:
    """Deletes a file below Gradio's uploads, and its folder if that is empty then. Never a file elsewhere."""
    if folder() not in path.resolve().parents:
        return False
    with contextlib.suppress(OSError):
        path.unlink()
        if path.parent.resolve() != folder():
            path.parent.rmdir()
        return True
    return not path.exists()
