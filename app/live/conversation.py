"""What was asked and answered: an Answering per question, shared by the models asked, and a Conversation per model."""

from __future__ import annotations

import logging
import math
import re
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple, cast

from app.live.view import Picture, Turn, times_said
from app.live.viewing import Viewing
from pipeline import Answer, Event, Question, Reach, Sampling, UserError, mmss

TAG = re.compile(r"</?[a-zA-Z!][^>]*>")  # markup: nobody's words
log = logging.getLogger(__name__)

TURNS = 100  # kept of a conversation
HISTORY = 4  # earlier turns a question carries along
WAITING = 8  # questions that may wait behind the one being answered
LONGEST = 2_000  # characters of a question, as the engine reads them
HALF_S = 0.5  # a time is said in whole seconds: the picture is the one in the middle of them
LOOK_S = 1.0  # whoever follows a conversation hears of it so often at least, and may then leave

FAILED = "Something failed on our side, so there is no answer; what was seen is safe, please ask again."
FULL = f"{WAITING} questions wait already, so this one was not taken; wait for an answer, or withdraw one."
PUT_ASIDE = "This was put aside before it was answered, so there is no answer; please ask it again."
NO_WORDS = "There are no words in this, so it was not understood; please ask in words."


@dataclass(frozen=True)
class Answering:
    """One question being put to `models` models (1: the page's own; 2: also the one compared with).

    One stop for all of them, never taken back. instead_of: the question whose turn gives way when this one's answer
    begins.
    """

    turn: Turn
    models: int = 1
    instead_of: int | None = None
    stopped: threading.Event = field(default_factory=threading.Event)


class Subject(NamedTuple):
    """What a question is put to. picture: the stream's JPEG nearest to a second. noticed: events
    beside the state, and how far the late senses have come. here: raises UserError where it goes on elsewhere."""

    viewing: Viewing
    picture: Callable[[float], bytes | None]
    noticed: Callable[[], tuple[tuple[Event, ...], tuple[Reach, ...]]] = lambda: ((), ())
    here: Callable[[], object] = lambda: None


class Conversation:
    """The turns of one model by question. Answers are written one after the other by a thread of its own, which
    lives while there is something to write: a page that goes away cuts nothing.

    subject: what a question is put to. May wait for a first picture; raises UserError where there is none to come.
    """

    def __init__(self, subject: Callable[[Answering], Subject]) -> None:
        self._subject = subject
        self._turns: dict[int, Turn] = {}
        self._waiting: deque[Answering] = deque()
        self._writing: Answering | None = None
        self._forgotten = 0  # turns that were one too many
        self._changed = threading.Condition()  # guards all of these
        self._changes = 0

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Oldest first; what waits knows its place, 2 for who comes next."""
        with self._changed:
            places = {answering.turn.id: place for place, answering in enumerate(self._waiting, 2)}
            again = {answering.instead_of for answering in self._expected()}
            return tuple(
                replace(turn, place=places.get(turn.id, 0), again=turn.id in again) for turn in self._turns.values()
            )

    @property
    def forgotten(self) -> int:
        """How many of the oldest turns are not kept any more."""
        return self._forgotten

    @property
    def busy(self) -> bool:
        """Whether something is being written or waits."""
        return self._writing is not None

    # Asking

    def put(self, answering: Answering) -> None:
        """Answers the question when its turn has come. A question put once more comes first: it waited already."""
        with self._changed:
            if answering.instead_of in self._turns:
                self._waiting.appendleft(answering)
            else:
                self._waiting.append(answering)
                self._show(answering.turn)
            if self._writing is None:
                self._writing = self._waiting.popleft()
                threading.Thread(target=self._write_all, args=(self._writing,), name="answers", daemon=True).start()
            self._tell()

    def full(self) -> bool:
        return len(self._waiting) >= WAITING

    def withdraw(self, question: int) -> None:
        """Takes a question back that still waits; any other stays as it is."""
        with self._changed:
            waiting = [answering for answering in self._waiting if answering.turn.id == question]
            for answering in waiting:
                self._waiting.remove(answering)
                self._turns.pop(question, None)
            self._tell()

    def stop(self, question: int | None = None) -> None:
        """Ends the answer being written, within one token; with a question, only an answer to that one. What waits
        stays, and the next one begins."""
        writing = self._writing
        if writing and question in (None, writing.turn.id):
            writing.stopped.set()

    def mark(self, question: int, wrong: bool) -> None:
        """Notes whether the visitor calls the answer wrong."""
        with self._changed:
            if turn := self._turns.get(question):
                self._turns[question] = replace(turn, wrong=wrong)
            self._tell()

    def take_out(self) -> tuple[Turn, ...]:
        """The turns, forgotten here; what was not answered yet says so. Nothing waits any more."""
        with self._changed:
            self.stop()
            self._waiting.clear()
            turns = tuple(put_aside(turn) for turn in self._turns.values())
            self._turns.clear()
            self._tell()
        return turns

    def put_back(self, turns: Iterable[Turn]) -> None:
        """Turns that were taken out, before what was said since."""
        with self._changed:
            self._turns = {turn.id: turn for turn in turns} | self._turns
            self._tell()

    # Following

    def follow(self) -> Iterator[None]:
        """At once, whenever something changes, and now and then; until nothing is being written or waits."""
        while True:
            with self._changed:
                told, busy = self._changes, self.busy
            yield
            if not busy:
                return
            with self._changed:
                self._changed.wait_for(lambda told=told: self._changes != told, LOOK_S)  # type: ignore[misc]

    def answers(self, question: int) -> Iterator[Answer]:
        """The Answer to a question as it grows, from the empty one on. Nothing for one that is not known (any more),
        and no more where it ends in an error."""
        before = None
        for _ in self.follow():
            turn = self.turn(question)
            if turn is None and self.expects(question):
                continue
            if turn is None or turn.error:
                return
            answer = turn.answer or Answer("", 0.0, 0.0)
            if answer != before:
                yield answer
            before = answer
            if answer.done:
                return

    def turn(self, question: int) -> Turn | None:
        with self._changed:
            return self._turns.get(question)

    def expects(self, question: int) -> bool:
        """Whether the question is being answered or waits."""
        with self._changed:
            return any(answering.turn.id == question for answering in self._expected())

    def _expected(self) -> tuple[Answering, ...]:
        return (*([self._writing] if self._writing else []), *self._waiting)

    def _tell(self) -> None:
        """Something changed. Called with the lock held."""
        self._changes += 1
        self._changed.notify_all()

    # Writing

    def _write_all(self, first: Answering) -> None:
        answering: Answering | None = first
        while answering is not None:
            self._answer(answering)
            with self._changed:
                answering = self._writing = self._waiting.popleft() if self._waiting else None
                self._tell()

    def _answer(self, answering: Answering) -> None:
        """Grows the question's turn to a whole answer, or to the sentence why there is none."""
        try:
            if answering.turn.question and not re.search(r"\w", TAG.sub("", answering.turn.question)):
                raise UserError(NO_WORDS)
            self._write(answering, self._subject(answering))
        except UserError as error:
            self._fail(answering, str(error))
        except Exception:
            log.exception("answering failed")
            self._fail(answering, FAILED)

    def _write(self, answering: Answering, subject: Subject) -> None:
        viewing, turn = subject.viewing, answering.turn
        question = Question(turn.question, self._said_before(answering), turn.at, *subject.noticed())
        growing = viewing.engine.ask(question, viewing.settled, sampling(turn.repeats), answering.stopped)
        timed = False
        with closing(cast("Generator[Answer, None, None]", growing)) as answers:
            for answer in answers:
                subject.here()
                if not timed and answer.first_token_s is not None:
                    viewing.answered(answer.seen_until, answer.first_token_s)
                    timed = True
                self._grow(answering, pictured(replace(turn, answer=answer), subject.picture))

    def _said_before(self, answering: Answering) -> tuple[tuple[str, str], ...]:
        """(question, answer) pairs about the same stream, without what is asked now."""
        turn, now = answering.turn, (answering.turn.id, answering.instead_of)
        before = [one for one in self.turns if one.stream == turn.stream and one.id not in now]
        return tuple((one.question, one.answer.text) for one in before if one.answer and one.answer.text)[-HISTORY:]

    def _grow(self, answering: Answering, turn: Turn) -> None:
        """The turn as far as it is answered. One that is asked again takes the place of the old one now, and not
        before: it may be stopped, or fail, and then nothing is lost. What was forgotten meanwhile stays forgotten, and
        what was put aside and put back stays without an answer."""
        old = answering.instead_of
        with self._changed:
            if old in self._turns and turn.answer and turn.answer.text:
                self._turns = {
                    turn.id if key == old else key: turn if key == old else one for key, one in self._turns.items()
                }
            if (shown := self._turns.get(turn.id)) and not shown.error:
                self._turns[turn.id] = replace(turn, wrong=shown.wrong)
            self._tell()

    def _fail(self, answering: Answering, error: str) -> None:
        with self._changed:
            turn = self._turns.get(answering.turn.id)
            if turn is not None:
                self._turns[turn.id] = replace(turn, error=error)
            elif answering.instead_of in self._turns:
                self._show(replace(answering.turn, error=error))
            self._tell()

    def _show(self, turn: Turn) -> None:
        self._turns[turn.id] = turn
        while len(self._turns) > TURNS:
            del self._turns[next(iter(self._turns))]
            self._forgotten += 1


def put_aside(turn: Turn) -> Turn:
    """A turn of a conversation that is cleared: an answer being written ends here, a question without one says so."""
    if turn.error or (turn.answer and turn.answer.done):
        return turn
    if turn.answer and turn.answer.text:
        return replace(turn, answer=replace(turn.answer, done=True, stopped=True))
    return replace(turn, answer=None, error=PUT_ASIDE)


def sampling(repeats: int) -> Sampling:
    """From the first repetition on the words are drawn at random, or the answer would be the same."""
    return Sampling(temperature=0.7, top_p=0.9, seed=repeats) if repeats else Sampling()


def pictured(turn: Turn, picture: Callable[[float], bytes | None]) -> Turn:
    """Where its answer is whole: with the pictures of its moments, and of the other times that its words say."""
    answer = turn.answer
    if answer is None or not answer.done:
        return turn
    shown = {mmss(moment.time) for moment in answer.evidence}
    times = [at for at in times_said(answer) if mmss(at) not in shown]
    return replace(
        turn,
        pictures=tuple(picture(moment.time) for moment in answer.evidence),
        said=tuple(Picture(at, jpeg) for at in times if (jpeg := picture(at + HALF_S))),
    )


def refusal(text: str) -> str:
    """Why a visitor's text is no question, in a sentence; "" where it is one."""
    if not text:
        return "There is no question yet, so nothing was asked; type one first."
    if len(text) > LONGEST:
        return f"The question has {len(text):,} characters and at most {LONGEST:,} are read; shorten it."
    return ""


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
