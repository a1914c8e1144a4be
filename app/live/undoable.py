"""What can be taken back for a while: a cleared conversation, a reset stream."""

from __future__ import annotations

from dataclasses import dataclass, replace

from app.live.conversation import Turn
from app.live.shared import Watched
from app.live.uploads import Source
from app.live.view import CLEAR, RESET


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

    def after(self, before: Undoable | None) -> Undoable:
        """Together with what was cleared or reset a moment before."""
        if before is None:
            return self
        words = tuple((*old, *new) for old, new in zip(before.words, self.words))
        both = replace(self, words=words, deed=RESET if RESET in (before.deed, self.deed) else CLEAR)
        if before.watch or before.upload:
            return replace(both, watch=before.watch, at_work=before.at_work, upload=before.upload)
        return both
