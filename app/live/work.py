"""What a worker does on its way through a source: takes pictures, counts their seconds, and says what went wrong."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.live.viewing import Viewing
from pipeline import Frame, UserError, mmss, open_video

log = logging.getLogger(__name__)


def attempted(work: Callable[[], None], seen_until: Callable[[], float]) -> str:
    """The sentence of what went wrong, or ""."""
    try:
        work()
    except UserError as error:
        return str(error)
    except Exception:
        log.exception("watching failed")
        return (
            f"Something failed on our side at {mmss(seen_until())}, so watching stopped there; ask about what was seen "
            "so far, or press Reset and start again."
        )
    return ""


def later(frames: Iterable[Frame], seconds: float) -> Iterator[Frame]:
    """In the seconds of a stream in which something came before."""
    return (frame.later(seconds) if seconds else frame for frame in frames)


def take(frames: Iterator[Frame], count: int) -> tuple[list[Frame], UserError | None]:
    """Up to `count` frames, and the error that cut them short: what was read before a file broke is watched too."""
    taken: list[Frame] = []
    try:
        for frame in itertools.islice(frames, count):
            taken.append(frame)
    except UserError as error:
        return taken, error
    return taken, None


def catch_up(
    late: Viewing,
    frames: Iterator[Frame],
    left: Callable[[], int],
    wanted: Callable[[], bool],
    feed: Callable[[Viewing, list[Frame]], None],
) -> None:
    """Shows a model that joined late what others have seen. frames: of the file, `left` of them at this moment."""
    broken = None
    while not broken and wanted():
        late.watch_again()
        chunk, broken = take(frames, late.engine.chunk_frames(max(left(), 1)))
        if not chunk:
            break
        feed(late, chunk)
        late.settle()
    with suppress(UserError):  # what it leaves out is shown beside it
        late.conclude()
    late.settle()
    late.behind = False


class Videos:
    """The files that are being read, so that another thread can end a read that waits."""

    def __init__(self) -> None:
        self._open: list[Any] = []

    @contextmanager
    def open(self, path: Path, fps: float, long_side: int) -> Iterator[Any]:
        with open_video(path, fps=fps, long_side=long_side) as video:
            self._open.append(video)
            try:
                yield video
            finally:
                self._open.remove(video)

    def close(self) -> None:
        for video in list(self._open):
            video.close()
