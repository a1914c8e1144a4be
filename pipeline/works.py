"""What waits for a turn of an engine: a word of an answer, frames to be watched, or a deed in between."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeline.stream import Pass, Steps, StreamState, Token, VideoChunk
from pipeline.turns import Flow, Work


class Chunk(Work):
    """Frames still to be watched, and the state before them. most: frames of one turn, where memory allows no more."""

    def __init__(self, chunk: VideoChunk, state: StreamState):
        super().__init__(Flow.WATCHING)
        self.whole, self.before = chunk.frames, state
        self.frames, self.state, self.most = chunk.frames, state, len(chunk.frames)
        self.alone = False  # it failed together with others'


class Writing:
    """An answer that is being written, in the model's steps, begun when it is first its turn.

    needs: the pass it waits for; given: what that pass gave. left: told when nobody will ask for its words any more.
    """

    def __init__(self, begin: Callable[[], Steps], stop: threading.Event, left: Callable[[Writing], None]):
        self._begin, self._left, self.stop = begin, left, stop
        self._steps: Steps | None = None
        self.needs: Pass | None = None
        self.given: object = None
        self.stopped = False

    @property
    def long(self) -> bool:
        """Whether its next turn is more than a word's: a question to be read."""
        return self._steps is None or (self.needs is not None and not self.needs.shared)

    @property
    def waits(self) -> bool:
        """Whether it cannot go on before its pass was made."""
        return self.needs is not None and not self.stop.is_set()

    def next(self) -> Token | None:
        """The next token, None at the end; or, where `needs` is set afterwards, None until that pass was made."""
        if self.stop.is_set():  # looked at inside the turn: it may have been set while waiting for it
            self.stopped, self.needs = True, None
            return None
        self._steps = self._steps or self._begin()
        given, self.given = self.given, None
        try:
            step = next(self._steps) if given is None else self._steps.send(given)
        except StopIteration:
            return None
        self.needs = step if isinstance(step, Pass) else None
        return None if isinstance(step, Pass) else step

    def close(self) -> None:
        self._left(self)
        if self._steps is not None:
            self._steps.close()


class Word(Work):
    """The next token of an answer; None at its end."""

    def __init__(self, writing: Writing):
        super().__init__(Flow.ANSWERS, writing)
        self.writing = writing
        self.token: Token | None = None


class Errand(Work):
    """Something else that needs the model undisturbed."""

    def __init__(self, deed: Callable[[], None]):
        super().__init__(Flow.WATCHING)
        self.deed = deed
