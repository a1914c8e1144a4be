"""Watching and answering with any Model: fair turns, token streaming, stop, timing.

The engine holds a model and its turns (turns.py), and no stream: states go in and come out, so one engine serves every
visitor. A turn is one word, or one chunk; while somebody waits for a word, only a slice of one, since any cutting gives
the same state. That is why a question asked in the middle of an hour of watching waits for a slice, never for the rest
of the hour, and why watching goes on while an answer is being written.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from pipeline.clock import mmss
from pipeline.evidence import Gaze
from pipeline.heap import give_back
from pipeline.stream import (
    Answer,
    Evidence,
    Frame,
    Model,
    Pass,
    Question,
    Sampling,
    StreamState,
    Token,
    UserError,
    VideoChunk,
)
from pipeline.tally import Tally
from pipeline.turns import Line, Turns
from pipeline.works import Chunk, Errand, Word, Writing, caught, out_of_memory

R = TypeVar("R")

QUESTION_CHARACTERS = 2_000
ANSWER_TOKENS = 1_024  # a ceiling no request can raise
CATCHING_UP = 1_000_000  # frames of backlog: the largest chunks a model likes
AHEAD = 2  # words of an answer that are written before they are asked for, where others' pass takes them along
TIDY_S = 30.0  # of watching, after which what it freed goes back to the system: hours would leave more and more between
SLICE_S = 0.03  # of watching, while somebody waits for a word: about what a word takes
RECORDED_UNITS, RECORDED_AT = (1, 2, 4), 3  # of a live chunk or a slice on a GPU; which time its pass is recorded


class Overflowed(UserError):
    """A state that was handed out has numbers that are none. good: the state before it. lost: the frames in between."""

    def __init__(self, good: StreamState, lost: tuple[Frame, ...]) -> None:
        super().__init__(_overflowed(lost))
        self.good, self.lost = good, lost


@dataclass(frozen=True, eq=False)
class Doubt:
    """What a state must be asked before it is believed, and what it was `before` it saw `frames`."""

    finite: Callable[[], bool]
    before: StreamState
    frames: tuple[Frame, ...]


class Engine:
    """A Model made safe to share between threads, with answers instead of tokens."""

    def __init__(self, model: Model, clock: Callable[[], float] = time.monotonic) -> None:
        self.model, self._clock = model, clock
        self.name, self.about, self.backend = model.name, model.about, model.backend
        self.unit_frames, self.long_side = model.unit_frames, model.long_side
        self._turns: Turns[Chunk | Word | Errand] = Turns(self._do, Line(self._together), clock)
        self._doubts: WeakKeyDictionary[StreamState, Doubt] = WeakKeyDictionary()
        self._writing: dict[Writing, None] = {}  # answers that are being read, the oldest first
        self.tally = Tally()
        self._tidied = clock()
        self._frame_s = math.inf  # what a frame took in the newest turn of watching

    def start(self) -> StreamState:
        """A stream that has seen nothing."""
        return self.model.start()

    def warm_up(self) -> None:
        """Watches grey pictures and answers, for nothing: live, beside an answer, catching up. On a GPU kernels are
        compiled and passes recorded by that, which takes seconds; on a CPU there is nothing to compile."""
        state = self.start()
        if not self.backend.startswith("cuda"):
            return
        grey = np.full((round(self.long_side * 9 / 16), self.long_side, 3), 128, np.uint8)
        small = [units * self.unit_frames for units in RECORDED_UNITS for _ in range(RECORDED_AT)]
        for count in (*small, self.chunk_frames(CATCHING_UP)):
            frames = tuple(Frame(grey, float(state.frames + n)) for n in range(count))
            state = self.watch(VideoChunk(frames), state)
        with suppress(UserError):  # a checkpoint without a tokenizer
            list(self.ask(Question("What is there?"), state, Sampling(max_tokens=2)))
        self.confirm(state)

    def chunk_frames(self, backlog: int) -> int:
        """How many frames to watch in one go when `backlog` frames wait: few when live, many when catching up.

        The cut changes speed and latency, never results. A multiple of `unit_frames`, at least one unit.
        """
        return max(1, int(self.model.chunk_frames(backlog)))

    def watch(self, chunk: VideoChunk, state: StreamState) -> StreamState:
        """The state after also seeing `chunk`; `state` itself stays as it was and stays usable.

        A chunk too large for the device's memory is halved and tried again (any cutting gives the same state).
        Raises UserError when even the smallest chunk does not fit, and when the new state is not finite; the
        caller's `state` is then the last good one. A GPU tells that one chunk late, so that it has work while it is
        waited for: Overflowed says that `state` itself is not finite, and which one is. After the last chunk `confirm`.
        """
        work = Chunk(chunk, state)
        self._turns.run(work)
        self.tally.add(pictures=len(chunk.frames))
        self._tidy()
        return work.state

    @property
    def waiting(self) -> int:
        """Chunks and words that somebody waits for, those at work included."""
        return self._turns.waiting

    @property
    def turn_s(self) -> float:
        """Seconds that the model has been at work on one turn. One that takes minutes hangs."""
        return self._turns.turn_s

    def _tidy(self) -> None:
        if self._clock() - self._tidied >= TIDY_S:
            self._tidied = self._clock()
            give_back()

    def confirm(self, state: StreamState) -> None:
        """Waits until it is known that `state` is finite. Raises Overflowed where it is not."""
        doubt = self._doubts.get(state)
        if doubt and not doubt.finite():
            raise Overflowed(doubt.before, doubt.frames)
        self._doubts.pop(state, None)

    def last_good(self, state: StreamState) -> StreamState:
        """`state`, or the one before it where it turns out not to be finite."""
        try:
            self.confirm(state)
        except Overflowed as error:
            return error.good
        return state

    def between(self, deed: Callable[[], R]) -> R:
        """What `deed` gives, in a turn of its own, while the model neither watches nor writes: a packed state, say."""
        results: list[R] = []
        self._turns.run(Errand(lambda: results.append(deed())))
        return results[0]

    def _together(self, waiting: Sequence[Chunk | Word | Errand]) -> Sequence[Chunk | Word | Errand]:
        """Of those who wait, who go in one turn: all words that may share a pass, and one question to be read, or all
        where these share passes as well."""
        if isinstance(waiting[0], Chunk):
            return self._small_chunks(waiting)
        if not isinstance(waiting[0], Word):
            return waiting[:1]
        words = [work for work in waiting if isinstance(work, Word)][: self.model.answers_together]
        if self.model.reads_together:
            return words
        long = next((word for word in words if word.writing.long), None)
        return [word for word in words if word is long or not word.writing.long]

    def _do(self, works: Sequence[Chunk | Word | Errand]) -> None:
        """One turn."""
        self._write([work for work in works if isinstance(work, Word)])
        chunks = [work for work in works if isinstance(work, Chunk)]
        if len(chunks) > 1:
            self._see_together(chunks)
        elif chunks:
            self._see(chunks[0])
        for work in works:
            if isinstance(work, Errand):
                work.deed()
                work.done = True

    def _small_chunks(self, waiting: Sequence[Chunk | Word | Errand]) -> Sequence[Chunk | Word | Errand]:
        """The chunks that go in one turn: as many whole ones as fit into it together; the first at least."""
        first, *others = waiting
        assert isinstance(first, Chunk)
        left = min(self.model.frames_together, self._slice_frames()) - len(first.frames)
        together: list[Chunk | Word | Errand] = [first]
        for work in others:
            if isinstance(work, Chunk) and not (work.alone or first.alone) and len(work.frames) <= left:
                together.append(work)
                left -= len(work.frames)
        return together

    def _see_together(self, works: Sequence[Chunk]) -> None:
        """Whole chunks of several streams in one pass. What fails so is watched one by one."""
        began = self._clock()
        states = caught(
            lambda: self.model.watch_together([VideoChunk(w.frames) for w in works], [w.state for w in works])
        )
        if isinstance(states, Exception):
            for work in works:
                work.alone = True
            return
        for work, state in zip(works, states):
            judged = caught(partial(self._judge, state, work))
            work.error = judged if isinstance(judged, Exception) else None
            work.state, work.done = state, True
        self._settle(states)
        self._frame_s = (self._clock() - began) / sum(len(work.frames) for work in works)

    def _write(self, words: Sequence[Word]) -> None:
        """A word of each answer, or a piece of its question; and of others that are read on, a word beforehand."""
        asked = [word.writing for word in words]
        inside = [one for one in (*asked, *self._ahead(asked)) if one.enter()]
        try:
            going = {one.needs: one for one in inside if (one.waits or one.advance()) and one.needs is not None}
            for needs, given in self._passed(list(going)).items():
                if isinstance(given, Exception):
                    going[needs].fail(given)
                else:
                    going[needs].give(given)
        finally:
            for one in inside:
                one.leave()

    def _ahead(self, asked: Sequence[Writing]) -> list[Writing]:
        """Answers whose readers are still busy with the last word: a pass costs the same with theirs, and nobody has to
        be waited for. Those with the fewest words in store."""
        if not asked:
            return []
        others = [one for one in list(self._writing) if one not in asked and not one.long and not one.over]
        others = sorted((one for one in others if len(one.ready) < AHEAD), key=lambda one: len(one.ready))
        return others[: max(0, self.model.answers_together - len(asked))]

    def _passed(self, passes: Sequence[Pass]) -> dict[Pass, object]:
        """What those that go in this turn give, or the error they end in. What cannot be shared, for want of memory, is
        not."""
        chosen = self.model.joined(passes)
        shared = [one for one in chosen if one.shared or self.model.reads_together]
        found: dict[Pass, object] = {}
        if len(shared) > 1:
            gave = caught(lambda: self.model.passed(shared))
            if not isinstance(gave, Exception):
                found = dict(zip(shared, gave))
        return {one: found[one] if one in found else self._passed_alone(one) for one in chosen}

    def _passed_alone(self, one: Pass) -> object:
        return caught(lambda: self.model.passed([one])[0])

    def _see(self, work: Chunk) -> None:
        """A slice of a chunk. Memory that runs out halves what is tried in the next turn."""
        frames, began = work.frames[: self._frames_a_turn(work)], self._clock()
        seen = self._seen(frames, work)
        if seen is None:
            work.most = self._half(frames)
            return
        self._settle([seen])
        self._frame_s = (self._clock() - began) / len(frames)
        work.state, work.frames = seen, work.frames[len(frames) :]
        work.done = not work.frames

    def _settle(self, states: Sequence[StreamState]) -> None:
        """Waits until a GPU has done a slice, where somebody waits for a word: else the word would wait for it instead,
        answers would be taken for having had that time, and slices for being quick."""
        if self._turns.answering:
            for doubt in filter(None, map(self._doubts.get, states)):
                doubt.finite()

    def _seen(self, frames: tuple[Frame, ...], work: Chunk) -> StreamState | None:
        """The state after these frames; None where memory ran out (the error's traceback would keep it alive)."""
        try:
            seen = self.model.watch(VideoChunk(frames), work.state)
            self._judge(seen, work)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return None
        return seen

    def _frames_a_turn(self, work: Chunk) -> int:
        """As many as fit, unless somebody waits for a word: then a slice of time."""
        return int(min(work.most, self._slice_frames()))

    def _slice_frames(self) -> float:
        """How many frames may be watched in one turn: any number, unless somebody waits for a word."""
        if not self._turns.answering:
            return math.inf
        units = max(1, int(SLICE_S / max(self._frame_s, 1e-6)) // self.unit_frames)
        return (1 << (units.bit_length() - 1)) * self.unit_frames  # few lengths: each one's pass is recorded on a GPU

    def _half(self, frames: Sequence[Frame]) -> int:
        if len(frames) <= self.unit_frames:
            at = mmss(frames[0].time)
            raise UserError(
                f"Memory ran out at {at}, so watching stopped there; ask about what was seen so far, "
                "or start a shorter stream."
            )
        return max(self.unit_frames, len(frames) // 2 // self.unit_frames * self.unit_frames)

    def _judge(self, seen: StreamState, work: Chunk) -> None:
        self._confirm_before(work)
        self._doubt(seen, work)

    def _confirm_before(self, work: Chunk) -> None:
        """The state before a slice. One from the middle of a chunk nobody holds: then the chunk as a whole failed."""
        try:
            self.confirm(work.state)
        except Overflowed as error:
            if work.state is work.before:
                raise
            raise UserError(str(error)) from None

    def _doubt(self, seen: StreamState, work: Chunk) -> None:
        """One NaN in a recurrent state stays for ever, so it must not get in."""
        finite = self.model.finite_later(seen)
        if finite is False:
            raise UserError(_overflowed(work.frames))
        if callable(finite):
            self._doubts[seen] = Doubt(finite, work.before, work.whole)

    def ask(
        self,
        question: Question,
        state: StreamState,
        sampling: Sampling | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Answer]:
        """The answer, growing by one token a step; the last Answer has `done` set and is whole.

        Where `state` turns out not to be finite, the one before it answers; whoever watches on is told.
        Setting `stop` ends it within one token with `stopped` set; closing the iterator ends it without a last
        Answer. Raises UserError at once for a question that cannot be asked.
        """
        sampling, state = sampling or Sampling(), self.last_good(state)
        question = checked(question, sampling)
        if not state.frames and not state.held:
            raise UserError("Nothing has been seen yet, so there is nothing to answer from; start a video first.")
        return self._answers(question, state, sampling, stop or threading.Event(), time.monotonic())

    def _answers(
        self, question: Question, state: StreamState, sampling: Sampling, stop: threading.Event, asked: float
    ) -> Iterator[Answer]:
        known = self.model.known_until(question, state)
        answer, gaze, first = _empty_answer(question, state, known), Gaze(), None
        answer = replace(answer, basis=self.model.basis(question, state))
        writing = Writing(lambda: self.model.steps(question, state, sampling), stop, self._forget)
        self._writing[writing] = None
        with closing(writing):  # without a turn: a generator may be collected by a thread that holds one
            while answer.tokens < sampling.max_tokens:
                token = self._draw(writing)
                if token is None:
                    break
                now = time.monotonic()
                first = now if first is None else first
                gaze.add(token.looked)
                self.tally.add(words=1)
                answer = _grown(answer, token, gaze.moments, first - asked, now - first)
                yield answer
        self.tally.add(answers=1)
        yield replace(answer, done=True, stopped=writing.stopped)

    def _draw(self, writing: Writing) -> Token | None:
        """The next token, which may be there already, or in its turn; None at the end."""
        if not writing.ready:
            self._turns.run(Word(writing))
        return writing.take()

    def _forget(self, writing: Writing) -> None:
        """Nobody will ask for its words any more."""
        self._writing.pop(writing, None)
        self._turns.forget(writing)


def _overflowed(frames: Sequence[Frame]) -> str:
    return (
        f"The model's numbers overflowed between {mmss(frames[0].time)} and {mmss(frames[-1].time)}, so that part was "
        "left out; go on watching, or start the stream again."
    )


def checked(question: Question, sampling: Sampling) -> Question:
    """The question as the model gets it: valid UTF-8 (a lone surrogate breaks every encoder downstream).

    Raises UserError for what cannot be asked; callers may do so before an hour is watched for nothing.
    """
    _check_sampling(sampling)
    text = _clean(question.text).strip()
    if not text:
        raise UserError("The question is empty, so there is nothing to answer; type one first.")
    if len(text) > QUESTION_CHARACTERS:
        raise UserError(
            f"The question has {len(text):,} characters and at most {QUESTION_CHARACTERS:,} are read; shorten it."
        )
    if question.at is not None and not (math.isfinite(question.at) and question.at >= 0):
        raise UserError("The question is pinned to a time that does not exist; pick a moment of the video.")
    return replace(question, text=text, history=tuple((_clean(q), _clean(a)) for q, a in question.history))


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def _check_sampling(sampling: Sampling) -> None:
    if not 1 <= sampling.max_tokens <= ANSWER_TOKENS:
        raise UserError(f"An answer of {sampling.max_tokens} tokens cannot be given; ask for 1 to {ANSWER_TOKENS:,}.")
    if not (0 <= sampling.temperature <= 2 and 0 < sampling.top_p <= 1):
        raise UserError(
            "These sampling values do not work; choose a temperature of 0 to 2 and a top-p above 0, up to 1."
        )


def _empty_answer(question: Question, state: StreamState, known_until: float) -> Answer:
    """Held frames count as seen: the question flushes them."""
    seen_until = float(max([state.seen_until, *(frame.time for frame in state.held)]))
    asked_at = seen_until if question.at is None else question.at
    return Answer(text="", asked_at=asked_at, seen_until=seen_until, known_until=known_until)


def _grown(answer: Answer, token: Token, evidence: tuple[Evidence, ...], first_s: float, since_s: float) -> Answer:
    """The rate counts the tokens after the first, whose time is mostly the reading of the question."""
    return replace(
        answer,
        text=answer.text + token.text,
        tokens=answer.tokens + 1,
        evidence=evidence,
        first_token_s=first_s,
        tokens_per_s=answer.tokens / since_s if answer.tokens and since_s > 0 else None,
    )
