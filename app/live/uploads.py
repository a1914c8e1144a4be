"""A source, and a visitor's file on disk: our own copy to watch, Gradio's copy for the player, the end of both.

Gradio stores uploads by content, so two visitors with the same file share a path, and cleans them by age; pieces of
aborted uploads it keeps for ever. So every session watches a copy of its own, and the last user deletes Gradio's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from app.live.view import UPLOAD
from pipeline import UserError

ABORTED_S = 600  # an upload that stopped arriving is deleted after so long

_users: Counter[Path] = Counter()
_lock = threading.Lock()


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
        return Source(UPLOAD, name, own_copy(path), upload=path)
    except UserError:
        give_up(path)
        raise


def let_go(source: Source) -> None:
    """Deletes what of a source is a visitor's; a file of ours (the example) stays."""
    if source.upload and source.path:
        delete_copy(source.path)
        give_up(source.upload)


def own_copy(path: Path) -> Path:
    """A copy in a folder of its own; a hard link where that works, which costs nothing. Raises UserError."""
    own = Path(tempfile.mkdtemp(prefix="vamba-live-")) / "video"  # never the visitor's name: %03d or -i mean things
    try:
        os.link(path, own)
    except OSError:  # another file system
        try:
            shutil.copyfile(path, own)
        except OSError:
            delete_copy(own)
            raise UserError("The file is no longer here, so nothing was watched; choose it again.") from None
    return own


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
            if folder() in path.resolve().parents:
                path.unlink(missing_ok=True)


def folder() -> Path:
    """Where Gradio keeps uploads."""
    return Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir()) / "gradio").resolve()


def sweep(older_than: float = ABORTED_S) -> int:
    """Deletes pieces of uploads that stopped arriving; returns how many. Only in a folder that is ours alone."""
    swept = 0
    for piece in folder().glob("tmp*") if "GRADIO_TEMP_DIR" in os.environ else ():
        with contextlib.suppress(OSError):
            if piece.is_file() and time.time() - piece.stat().st_mtime > older_than:
                piece.unlink()
                swept += 1
    return swept
