"""What was asked and answered: an Answering per question, shared by the models asked, and a Conversation per model."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import cast

from app.live.view import Turn
from app.live.viewing import Viewing
from pipeline import Answer, Question, Sampling, UserError

log = logging.getLogger(__name__)

TURNS = 100  # kept of a conversation
HISTORY = 4  # earlier turns a question carries along
PATIENCE_S = 10.0  # a question waits for so long until an answer that was stopped has ended

FAILED = "Something failed on our side, so there is no answer; what was seen is safe, please ask again."
BUSY = "The last answer is still being written, so this question waits; press Stop first."


@dataclass(frozen=True)
class Answering:
    """One question being put to `models` models (1: the page's own; 2: also the one compared with).

    One stop for all of them, never taken back: an answer that has not begun when the visitor presses Stop is stopped
    as well. instead_of: the question whose turn gives way when this one's answer begins.
    """

    turn: Turn
    models: int = 1
    instead_of: int | None = None
    stopped: threading.Event = field(default_factory=threading.Event)


class Conversation:
    """The turns of one model by question; one answer is written at a time."""

    def __init__(self) -> None:
        self._turns: dict[int, Turn] = {}
        self._lock = threading.Lock()  # of the turns
        self._pen = threading.Lock()  # held while an answer is written
        self._writing: Answering | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        with self._lock:
            return tuple(self._turns.values())

    @property
    def busy(self) -> bool:
        """Whether an answer is being written that nobody has stopped."""
        writing = self._writing
        return writing is not None and not writing.stopped.is_set()

    def forget(self) -> None:
        with self._lock:
            self._turns.clear()

    def answer(
        self, answering: Answering, viewing: Viewing, picture: Callable[[float], bytes | None]
    ) -> Iterator[Answer]:
        """Grows the question's turn and yields its Answer, token by token. Waits for an answer that was stopped.

        The first Answer is empty and comes at once, so that the question shows while its answer is being thought of.
        picture: the stream's JPEG nearest to a second. Errors a visitor can mend end up as the turn's `error`. Raises
        UserError while another answer is being written.
        """
        self._take_pen()
        try:
            self._writing = answering
            question = self._begin(answering)
            if question is not None:
                yield from self._write(answering, question, viewing, picture)
        finally:
            self._writing = None
            self._pen.release()

    def _take_pen(self) -> None:
        if self._pen.acquire(blocking=False):
            return
        if self.busy or not self._pen.acquire(timeout=PATIENCE_S):
            raise UserError(BUSY)

    def _begin(self, answering: Answering) -> Question | None:
        """The question with what was said before it, its turn begun; None where it was begun before."""
        turn = answering.turn
        with self._lock:
            if turn.id in self._turns:
                return None
            if answering.instead_of is not None:
                self._turns.pop(answering.instead_of, None)
            said = [(one.question, one.answer.text) for one in self._turns.values() if one.answer and one.answer.text]
            self._turns[turn.id] = turn
            while len(self._turns) > TURNS:
                del self._turns[next(iter(self._turns))]
        return Question(turn.question, tuple(said[-HISTORY:]), turn.at)

    def _write(
        self, answering: Answering, question: Question, viewing: Viewing, picture: Callable[[float], bytes | None]
    ) -> Iterator[Answer]:
        turn = answering.turn
        answers: Generator[Answer, None, None] | None = None
        try:
            yield Answer("", 0.0, 0.0)
            growing = viewing.engine.ask(question, viewing.settled, sampling(turn.repeats), answering.stopped)
            answers = cast("Generator[Answer, None, None]", growing)  # closing it ends the answer
            for answer in answers:
                if turn.answer is None and answer.first_token_s is not None:
                    viewing.answered(answer.seen_until, answer.first_token_s)
                turn = self._keep(replace(turn, answer=answer, pictures=pictures(answer, picture)))
                yield answer
        except UserError as error:
            self._keep(replace(turn, error=str(error)))
        except GeneratorExit:  # the page went away in mid-answer: what was written stays, marked as cut
            cut = turn.answer or Answer("", 0.0, 0.0)
            if not cut.done:
                self._keep(replace(turn, answer=replace(cut, done=True, stopped=True)))
            raise
        except Exception:
            log.exception("answering failed")
            self._keep(replace(turn, error=FAILED))
        finally:
            if answers is not None:
                answers.close()

    def _keep(self, turn: Turn) -> Turn:
        """Turns are values; the conversation may have been forgotten while this one was written."""
        with self._lock:
            if turn.id in self._turns:
                self._turns[turn.id] = turn
        return turn


def sampling(repeats: int) -> Sampling:
    """From the first repetition on the words are drawn at random, or the answer would be the same."""
    return Sampling(temperature=0.7, top_p=0.9, seed=repeats) if repeats else Sampling()


def pictures(answer: Answer, picture: Callable[[float], bytes | None]) -> tuple[bytes | None, ...]:
    """Of a whole answer's moments."""
    return tuple(picture(moment.time) for moment in answer.evidence) if answer.done else ()


def clean(text: object) -> str:
    """A visitor's text as UTF-8 can carry it: a lone surrogate breaks the event stream, a NUL most tools."""
    return str(text or "").encode("utf-8", "replace").decode().replace("\0", "").strip()


def number(value: object) -> float | None:
    """A finite, non-negative number, or None, of whatever a visitor's browser or program sent."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and found >= 0 else None
