"""Visitors whose streams are kept, on servers that are ended and started again: the set-up that their tests share.

The tiny model of tests/keeping, slow enough to be ended in the middle of a file.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.live import watching
from app.live.session import LiveSession
from app.live.shelf import Shelf
from app.live.table import Sessions
from app.live.view import Phase
from pipeline import Engine
from tests.keeping.streams import slow

CLIP = Path(__file__).parents[1] / "data/corpus/valid/h264_faststart.mp4"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Many pictures of a short file, uploads in a folder of this test."""
    monkeypatch.setattr(watching, "FPS", 12.0)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))


@pytest.fixture
def upload(tmp_path) -> Path:
    path = tmp_path / "gradio" / "clip.mp4"
    path.parent.mkdir()
    shutil.copyfile(CLIP, path)
    return path


@pytest.fixture
def served(tmp_path) -> Iterator[Callable[..., Sessions]]:
    """served(engine) -> the table of a server that was started, on the same shelf every time."""
    tables: list[Sessions] = []

    def serve(engine: Engine, places: int = 8) -> Sessions:
        tables.append(Sessions(engine, None, places, Shelf(tmp_path / "shelf")))
        return tables[-1]

    yield serve
    for table in tables:
        table.shut()


class Visit(NamedTuple):
    """A visitor and the server they are at."""

    table: Sessions
    key: str
    session: LiveSession

    @property
    def keeper(self) -> Any:
        return self.session.switch.keep.keeper

    def ask(self, question: str = "What is it?") -> int:
        """A question that was answered."""
        asked = self.session.ask(question)
        until(lambda: self.session.view().turn(asked).over)
        return asked


@pytest.fixture
def visit(served, upload) -> Callable[..., Visit]:
    """visit() -> a visitor whose upload was watched to its end; with `frames`, so far as that and written. table: of
    the server, else a new one. seconds: that the model takes over two pictures."""

    def come(
        frames: int | None = None,
        seconds: float = 0.0,
        keep: bool = True,
        encrypt: bool = False,
        table: Sessions | None = None,
    ) -> Visit:
        table = served(slow(seconds)) if table is None else table  # an empty one is false
        key, session = table.ensure(None)
        if keep:
            session.keep(True, encrypt)
        session.open_file(upload)
        if frames is None:
            until(lambda: session.view().phase is Phase.ENDED)
        else:
            until(lambda: session.view().frames >= frames and (not keep or session.switch.keep.keeper.written))
        return Visit(table, key, session)

    return come


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def ended(session: LiveSession) -> None:
    until(lambda: session.view().phase is Phase.ENDED)


def stands(session: LiveSession) -> None:
    until(lambda: session.view().phase is Phase.PAUSED)


def newest(session: LiveSession):
    return session.watch.viewings[0].state


def killed(shelf: Path) -> None:
    """What lies on the shelf is as a server leaves it that is killed now: copied while it is written."""
    copy = shelf.with_name("copy")
    shutil.copytree(shelf, copy)
    shutil.rmtree(shelf)
    copy.rename(shelf)
