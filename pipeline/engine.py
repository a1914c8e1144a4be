"""Watching and answering with any Model: fair turns, token streaming, stop, timing.

The engine holds a model and a lock, and no stream: states go in and come out, so one engine serves every visitor.
One chunk or one token is one turn, and turns are taken in order of arrival. That is why a question asked in the
middle of an hour of watching waits for a chunk, never for the rest of the hour, and why watching goes on while an
answer is being written.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from pipeline.clock import mmss
from pipeline.evidence import Gaze
from pipeline.stream import Answer, Evidence, Model, Question, Sampling, StreamState, Token, UserError, VideoChunk

QUESTION_CHARACTERS = 2_000
ANSWER_TOKENS = 1_024  # a ceiling no request can raise


class FairLock:
    """A lock that is granted in order of arrival.

    `threading.Lock` promises no order: a watcher that releases and takes it again at once starves everybody else
    for as long as its video lasts.
    """

    def __init__(self) -> None:
        self._queue: deque[object] = deque()
        self._moved = threading.Condition()

    def __enter__(self) -> None:
        ticket = object()
        with self._moved:
            self._queue.append(ticket)
            try:
                self._moved.wait_for(lambda: self._queue[0] is ticket)
            except BaseException:  # Ctrl-C while waiting: a ticket left behind would block everybody for ever
                self._queue.remove(ticket)
                self._moved.notify_all()
                raise

    def __exit__(self, *_: object) -> None:
        with self._moved:
            self._queue.popleft()
            self._moved.notify_all()


class Engine:
    """A Model made safe to share between threads, with answers instead of tokens."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.name, self.about, self.backend = model.name, model.about, model.backend
        self.unit_frames, self.long_side = model.unit_frames, model.long_side
        self._turn = FairLock()

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
        try:
            with self._turn:
                seen = self.model.watch(chunk, state)
                self._check_finite(seen, chunk)
            return seen
        except Exception as error:
            if not _out_of_memory(error):
                raise
        return self._watch_halves(chunk, state)  # outside `except`: the traceback would keep the memory alive

    def _watch_halves(self, chunk: VideoChunk, state: StreamState) -> StreamState:
        frames, unit = chunk.frames, self.unit_frames
        if len(frames) <= unit:
            at = mmss(frames[0].time)
            raise UserError(
                f"Memory ran out at {at}, so watching stopped there; ask about what was seen so far, "
                "or start a shorter stream."
            )
        half = max(unit, len(frames) // 2 // unit * unit)
        for part in (frames[:half], frames[half:]):
            state = self.watch(VideoChunk(part), state)
        return state

    def _check_finite(self, state: StreamState, chunk: VideoChunk) -> None:
        """One NaN in a recurrent state stays for ever, so it must not get in."""
        if not self.model.is_finite(state):
            first, last = mmss(chunk.frames[0].time), mmss(chunk.frames[-1].time)
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
        answer, gaze, first, stopped = _empty_answer(question, state), Gaze(), None, False
        with self._turn:
            tokens = self.model.ask(question, state, sampling)
        with closing(tokens):  # without a turn: a generator may be collected by a thread that holds one
            while answer.tokens < sampling.max_tokens:
                token, stopped = self._draw(tokens, stop)
                if token is None:
                    break
                now = time.monotonic()
                first = now if first is None else first
                gaze.add(token.looked)
                answer = _grown(answer, token, gaze.moments, first - asked, now - first)
                yield answer
        yield replace(answer, done=True, stopped=stopped)

    def _draw(self, tokens: Iterator[Token], stop: threading.Event) -> tuple[Token | None, bool]:
        """The next token, or None at the end; and whether the end came by `stop`."""
        try:
            with self._turn:
                if stop.is_set():  # looked at inside the turn: it may have been set while waiting for it
                    return None, True
                return next(tokens, None), False
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


def _empty_answer(question: Question, state: StreamState) -> Answer:
    """Held frames count as seen: the question flushes them."""
    seen_until = float(max([state.seen_until, *(frame.time for frame in state.held)]))
    asked_at = seen_until if question.at is None else question.at
    return Answer(text="", asked_at=asked_at, seen_until=seen_until)


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
