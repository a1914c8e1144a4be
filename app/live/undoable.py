"""What can be taken back for a while: a cleared conversation, a reset stream."""

from __future__ import annotations

from dataclasses import dataclass

from app.live.conversation import Turn
from app.live.shared import Watched
from app.live.uploads import Source


@dataclass(frozen=True)
class Undoable:
    """What Clear or Reset took away, until it is forgotten for good. A stream is held still meanwhile, and keeps its
    visitor's place; at_work: whether it was watching."""

    deed: str
    words: tuple[tuple[Turn, ...], ...]
    since: float
    watch: Watched | None = None
    at_work: bool = False
    upload: Source | None = None
