"""What an engine has done since it began, counted for whoever operates it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Done:
    """Counts that only grow. pictures: watched, again and again where several streams show the same; words: of answers,
    as tokens; dropped: pictures of cameras that gave way to newer ones unseen."""

    pictures: int = 0
    words: int = 0
    answers: int = 0
    dropped: int = 0


class Tally:
    """Any thread may add."""

    def __init__(self) -> None:
        self._done, self._lock = Done(), threading.Lock()

    @property
    def done(self) -> Done:
        return self._done

    def add(self, pictures: int = 0, words: int = 0, answers: int = 0, dropped: int = 0) -> None:
        with self._lock:
            so_far = self._done
            self._done = replace(
                so_far,
                pictures=so_far.pictures + pictures,
                words=so_far.words + words,
                answers=so_far.answers + answers,
                dropped=so_far.dropped + dropped,
            )
