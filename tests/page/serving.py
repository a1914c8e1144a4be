"""A server in a process of its own, which a test can kill: `python -m tests.page.serving PORT SHELF SECONDS`.

The tiny model of tests/keeping behind the real page; SECONDS is how long it takes over two pictures.
"""

from __future__ import annotations

import sys
from pathlib import Path

from app.live import watching
from app.live.shelf import Shelf
from app.live.table import Sessions
from tests.keeping.streams import slow


def main(port: int, shelf: Path, seconds: float) -> None:
    from app.page.ui import build, launch_options

    watching.FPS = 12.0
    sessions = Sessions(slow(seconds), None, 4, Shelf(shelf))
    build(sessions).queue().launch(server_name="127.0.0.1", server_port=port, quiet=True, **launch_options(sessions))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
