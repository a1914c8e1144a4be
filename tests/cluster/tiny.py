"""What an engine's process serves in the tests of replicas: the tiny model of tests/keeping, slow enough to be ended in
the middle of a file, and a shelf."""

from __future__ import annotations

from pathlib import Path

from app.live import watching
from app.live.shelf import Shelf
from app.live.table import Sessions
from tests.keeping.streams import slow

SECONDS = 0.1  # that it takes over two pictures


def table(store: Path, places: int = 8) -> Sessions:
    watching.FPS = 12.0
    return Sessions(slow(SECONDS), None, places, Shelf(store), alone=False)
