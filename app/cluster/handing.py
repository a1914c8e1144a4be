"""Handing uploads on: a visitor's file gets a name of its own in the folder that page and engines share, and is deleted
when no stream shows it any more.

Gradio stores uploads by content, so two visitors with the same file share a path; an engine that is done with it must
not delete it under the visitor of another one.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path

from app.live.uploads import link_or_copy
from pipeline import UserError

UNUSED_S = 600.0  # what no stream shows is deleted after so long, and
HANDED_S = 30.0  # what was handed on and is no longer shown after that


class Handing:
    """Any thread may hand on; one sweeps. folder: of uploads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handed: dict[Path, float] = {}  # the player's copies: since when a stream has the file

    def on(self, path: Path) -> Path:
        """A path that no other stream has. Raises UserError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            there = Path(tempfile.mkdtemp(prefix="sent-", dir=self.folder)) / path.name
            link_or_copy(path, there)
        except OSError:
            raise UserError("The file is no longer here, so nothing was watched; choose it again.") from None
        self._handed[path] = time.monotonic()
        return there

    def sweep(self, shown: set[Path]) -> None:
        """shown: by all engines."""
        wanted = {found for path in shown if (found := _same(path))}
        now = time.monotonic()
        for path in [one for one, since in self._handed.items() if now - since > HANDED_S and _same(one) not in wanted]:
            del self._handed[path]
            _delete(path)
        for place in list(self.folder.iterdir()) if self.folder.is_dir() else []:
            files = [path for path in (place, *place.rglob("*")) if path.is_file()]
            if not any(_same(path) in wanted or path in self._handed for path in files) and _age(place) > UNUSED_S:
                for path in files:
                    _delete(path)
                with contextlib.suppress(OSError):
                    place.rmdir()


def _same(path: Path) -> tuple[int, int] | None:
    """By what two names of one file are known."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _age(place: Path) -> float:
    with contextlib.suppress(OSError):
        return time.time() - max(path.stat().st_ctime for path in (place, *place.rglob("*")))
    return 0.0


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
        path.parent.rmdir()
