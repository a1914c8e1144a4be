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
from contextlib import closing
from dataclasses import replace
from typing import TypeVar

from pipeline.clock import mmss
from pipeline.evidence import Gaze
from pipeline.stream import (
    Answer,
    Evidence,
    Frame,
    Model,
    Question,
    Sampling,
    StreamState,
    Token,
    Tokens,
    UserError,
    VideoChunk,
)
from pipeline.turns import Flow, Line, Turns, Work

R = TypeVar("R")

QUESTION_CHARACTERS = 2_000
ANSWER_TOKENS = 1_024  # a ceiling no request can raise
SLICE_S = 0.03  # of watching, while somebody waits for a word: about what a word takes


class Chunk(Work):
    """Frames still to be watched, and the state before them. most: frames of one turn, where memory allows no more."""

    def __init__(self, chunk: VideoChunk, state: StreamState):
        super().__init__(Flow.WATCHING, self)
        self.frames, self.state, self.most = chunk.frames, state, len(chunk.frames)


class Writing:
    """An answer that is being written: its tokens, made when it is first its turn, and whether it is to stop.

    left: told when nobody will ask for its tokens any more.
    """

    def __init__(self, begin: Callable[[], Tokens], stop: threading.Event, left: Callable[[Writing], None]):
        self._begin, self._left, self.stop = begin, left, stop
        self.tokens: Tokens | None = None
        self.stopped = False

    def next(self) -> Token | None:
        """None at the end."""
        if self.stop.is_set():  # looked at inside the turn: it may have been set while waiting for it
            self.stopped = True
            return None
        self.tokens = self.tokens or self._begin()
        return next(self.tokens, None)

    def close(self) -> None:
        self._left(self)
        if self.tokens is not None:
            self.tokens.close()


class Word(Work):
    """The next token of an answer; None at its end."""

    def __init__(self, writing: Writing):
        super().__init__(Flow.ANSWERS, writing)
        self.writing = writing
        self.token: Token | None = None


class Errand(Work):
    """Something else that needs the model undisturbed."""

    def __init__(self, deed: Callable[[], None]):
        super().__init__(Flow.WATCHING, self)
        self.deed = deed


class Engine:
    """A Model made safe to share between threads, with answers instead of tokens."""

    def __init__(self, model: Model, clock: Callable[[], float] = time.monotonic) -> None:
        self.model, self._clock = model, clock
        self.name, self.about, self.backend = model.name, model.about, model.backend
        self.unit_frames, self.long_side = model.unit_frames, model.long_side
        self._turns: Turns[Chunk | Word | Errand] = Turns(self._do, Line(), clock)
        self._frame_s = math.inf  # what a frame took in the newest turn of watching

    def start(self) -> StreamState:
        """A stream that has seen nothing."""
        return self.model.start()

    def chunk_frames(self, backlog: int) -> int:
        """How many frames to watch in one go when `backlog` frames wait: few when live, many when catching up.

        The cut changes speed and latency, never results. A multiple of `unit_frames`, at least one unit.
        """
        return max(1, int(self.model.chunk_frames(backlog)))

    def watch(self, chunk: VideoChunk, state: StreamState) -> StreamState:
        """The state after also seeing `chunk`; `state` itself stays as it was and stays usable.

        A chunk too large for the device's memory is halved and tried again (any cutting gives the same state).
        Raises UserError when even the smallest chunk does not fit, and when the new state is not finite; the
        caller's `state` is then the last good one.
        """
        work = Chunk(chunk, state)
        self._turns.run(work)
        return work.state

    def between(self, deed: Callable[[], R]) -> R:
        """What `deed` gives, in a turn of its own, while the model neither watches nor writes: a packed state, say."""
        results: list[R] = []
        self._turns.run(Errand(lambda: results.append(deed())))
        return results[0]

    def _do(self, works: Sequence[Chunk | Word | Errand]) -> None:
        """One turn."""
        for work in works:
            if isinstance(work, Word):
                work.token = self._drawn(work.writing)
                work.done, work.returns = True, work.token is not None
            elif isinstance(work, Errand):
                work.deed()
                work.done = True
            else:
                self._see(work)

    def _see(self, work: Chunk) -> None:
        """A slice of a chunk. Memory that runs out halves what is tried in the next turn."""
        frames, began = work.frames[: self._frames_a_turn(work)], self._clock()
        seen = self._seen(frames, work)
        if seen is None:
            work.most = self._half(frames)
            return
        self._frame_s = (self._clock() - began) / len(frames)
        work.state, work.frames = seen, work.frames[len(frames) :]
        work.done = not work.frames

    def _seen(self, frames: tuple[Frame, ...], work: Chunk) -> StreamState | None:
        """The state after these frames; None where memory ran out (the error's traceback would keep it alive)."""
        try:
            seen = self.model.watch(VideoChunk(frames), work.state)
            self._check_finite(seen, work.frames)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            return None
        return seen

    def _frames_a_turn(self, work: Chunk) -> int:
        """As many as fit, unless somebody waits for a word: then a slice of time."""
        if not self._turns.answering:
            return work.most
        units = int(SLICE_S / max(self._frame_s, 1e-6)) // self.unit_frames
        return min(work.most, max(1, units) * self.unit_frames)

    def _half(self, frames: Sequence[Frame]) -> int:
        if len(frames) <= self.unit_frames:
            at = mmss(frames[0].time)
            raise UserError(
                f"Memory ran out at {at}, so watching stopped there; ask about what was seen so far, "
                "or start a shorter stream."
            )
        return max(self.unit_frames, len(frames) // 2 // self.unit_frames * self.unit_frames)

    def _check_finite(self, state: StreamState, frames: Sequence[Frame]) -> None:
        """One NaN in a recurrent state stays for ever, so it must not get in."""
        if not self.model.is_finite(state):
            first, last = mmss(frames[0].time), mmss(frames[-1].time)
            raise UserError(
                f"The model's numbers overflowed between {first} and {last}, so that part was left out; "
                "go on watching, or start the stream again."
            )

    def ask(
        self,
        question: Question,
        state: StreamState,
        sampling: Sampling | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Answer]:
        """The answer, growing by one token a step; the last Answer has `done` set and is whole.

        Setting `stop` ends it within one token with `stopped` set; closing the iterator ends it without a last
        Answer. Raises UserError at once for a question that cannot be asked.
        """
        sampling = sampling or Sampling()
        question = checked(question, sampling)
        if not state.frames and not state.held:
            raise UserError("Nothing has been seen yet, so there is nothing to answer from; start a video first.")
        return self._answers(question, state, sampling, stop or threading.Event(), time.monotonic())

    def _answers(
        self, question: Question, state: StreamState, sampling: Sampling, stop: threading.Event, asked: float
    ) -> Iterator[Answer]:
        known = self.model.known_until(question, state)
        answer, gaze, first = _empty_answer(question, state, known), Gaze(), None
        writing = Writing(lambda: self.model.ask(question, state, sampling), stop, self._turns.forget)
        with closing(writing):  # without a turn: a generator may be collected by a thread that holds one
            while answer.tokens < sampling.max_tokens:
                token = self._draw(writing)
                if token is None:
                    break
                now = time.monotonic()
                first = now if first is None else first
                gaze.add(token.looked)
                answer = _grown(answer, token, gaze.moments, first - asked, now - first)
                yield answer
        yield replace(answer, done=True, stopped=writing.stopped)

    def _draw(self, writing: Writing) -> Token | None:
        """The next token, in its turn; None at the end."""
        word = Word(writing)
        self._turns.run(word)
        return word.token

    def _drawn(self, writing: Writing) -> Token | None:
        try:
            return writing.next()
        except Exception as error:
            if not _out_of_memory(error):
                raise
        raise UserError("Memory ran out while answering, so the answer is cut short; ask again when it is quieter.")


def _out_of_memory(error: Exception) -> bool:
    """Without importing torch, whose CUDA error is called OutOfMemoryError."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


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
