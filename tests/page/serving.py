"""A server in a process of its own, which a test can kill: `python -m tests.page.serving PORT SHELF SECONDS`.

The tiny model of tests/keeping behind the real page; SECONDS is how long it takes over two pictures.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from app.live import watching
from app.live.shelf import Shelf
from app.live.table import Sessions
from pipeline import Engine
from tests.keeping.streams import tiny


def slow(seconds: float) -> Engine:
    """The tiny model, which takes its time over every two pictures."""
    engine = tiny()
    watch = engine.model.watch

    def late(chunk, state):
        time.sleep(seconds)
        return watch(chunk, state)

    engine.model.watch = late  # type: ignore[method-assign]
    engine.model.chunk_frames = lambda backlog: 2  # type: ignore[method-assign]
    return engine


def main(port: int, shelf: Path, seconds: float) -> None:
    from app.page.ui import build, launch_options

    watching.FPS = 12.0
    sessions = Sessions(slow(seconds), None, 4, Shelf(shelf))
    build(sessions).queue().launch(server_name="127.0.0.1", server_port=port, quiet=True, **launch_options(sessions))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
