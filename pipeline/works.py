"""What waits for a turn of an engine: a word of an answer, frames to be watched, or a deed in between."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from pipeline.stream import Pass, Steps, StreamState, Token, UserError, VideoChunk
from pipeline.turns import Flow, Work

T = TypeVar("T")


def caught(call: Callable[[], T]) -> T | Exception:
    """What it returns, or the error that whoever asked is to get."""
    try:
        return call()
    except Exception as error:
        if not out_of_memory(error):
            return error
    return UserError("Memory ran out while answering, so the answer is cut short; ask again when it is quieter.")


def out_of_memory(error: Exception) -> bool:
    """Without importing torch, whose CUDA error is called OutOfMemoryError."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


class Chunk(Work):
    """Frames still to be watched, and the state before them. most: frames of one turn, where memory allows no more."""

    def __init__(self, chunk: VideoChunk, state: StreamState):
        super().__init__(Flow.WATCHING)
        self.whole, self.before = chunk.frames, state
        self.frames, self.state, self.most = chunk.frames, state, len(chunk.frames)
        self.alone = False  # it failed together with others'


class Writing:
    """An answer that is being written, in the model's steps, begun when it is first its turn.

    needs: the pass it waits for; given: what that pass gave. ready: tokens that nobody has taken yet, None at the end,
    or the error it ended in. left: told when nobody will ask for its words any more.
    """

    def __init__(self, begin: Callable[[], Steps], stop: threading.Event, left: Callable[[Writing], None]):
        self._begin, self._left, self.stop = begin, left, stop
        self._steps: Steps | None = None
        self.needs: Pass | None = None
        self.given: object = None
        self.ready: deque[Token | Exception | None] = deque()
        self.stopped = self.ended = False
        self._gone, self._busy = False, threading.Lock()  # held in a turn: nobody closes it meanwhile

    @property
    def long(self) -> bool:
        """Whether its next turn is more than a word's: a question to be read."""
        return self._steps is None or (self.needs is not None and not self.needs.shared)

    @property
    def waits(self) -> bool:
        """Whether it cannot go on before its pass was made."""
        return self.needs is not None and not self.stop.is_set()

    @property
    def over(self) -> bool:
        """Whether there is nothing more to be written."""
        return self.ended or self._gone or self.stop.is_set()

    def enter(self) -> bool:
        """A turn of it begins, if it can go on."""
        return not self.ended and not self._gone and self._busy.acquire(blocking=False)

    def leave(self) -> None:
        self._busy.release()
        if self._gone:
            self._close()

    def advance(self) -> bool:
        """Goes on as far as it can; whether it now needs a pass."""
        found = caught(self._next)
        if isinstance(found, Exception):
            self.fail(found)
            return False
        if self.needs is not None:
            return True
        self.ready.append(found)
        self.ended = found is None
        return False

    def give(self, found: object) -> None:
        """What its pass gave, with which it goes on."""
        self.needs, self.given = None, found
        self.advance()

    def fail(self, error: Exception) -> None:
        self.ready.append(error)
        self.ended, self.needs = True, None

    def take(self) -> Token | None:
        """The next token, if there is one; None at the end, or where it was stopped."""
        if self.stop.is_set() and not (self.ready and self.ready[0] is None):
            self.stopped = True
            return None
        found = self.ready.popleft()
        if isinstance(found, Exception):
            raise found
        return found

    def _next(self) -> Token | None:
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
        """By its reader, or at the end of a turn that it is in just now: a generator may be collected by a thread that
        holds one."""
        self._left(self)
        self._gone = True
        self._close()

    def _close(self) -> None:
        if self._steps is not None and self._busy.acquire(blocking=False):
            try:
                self._steps.close()
            finally:
                self._busy.release()


class Word(Work):
    """The next token of an answer, or its end. It may come in another's turn."""

    def __init__(self, writing: Writing):
        super().__init__(Flow.ANSWERS, writing)
        self.writing = writing

    @property
    def over(self) -> bool:
        return bool(self.writing.ready) or self.writing.stop.is_set() or self.error is not None

    @property
    def returns(self) -> bool:
        return self.over and not self.writing.over


class Errand(Work):
    """Something else that needs the model undisturbed."""

    def __init__(self, deed: Callable[[], None]):
        super().__init__(Flow.WATCHING)
        self.deed = deed
