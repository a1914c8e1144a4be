"""What a worker does on its way through a source: takes pictures, counts their seconds, and says what went wrong."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator

from pipeline import Frame, UserError, mmss

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
