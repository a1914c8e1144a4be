"""Watching and answering with any Model: fair turns, token streaming, stop, evidence, timing.

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
from dataclasses import replace

import numpy as np

from pipeline.clock import mmss
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
        answer, gaze, first = _empty_answer(question, state), _Gaze(), None
        with self._turn:
            tokens = iter(self.model.ask(question, state, sampling))
        try:
            while answer.tokens < sampling.max_tokens:
                token, stopped = self._draw(tokens, stop)
                if token is None:
                    break
                now = time.monotonic()
                first = now if first is None else first
                gaze.add(token.looked)
                answer = _grown(answer, token, gaze.moments(), first - asked, now - first)
                yield answer
            else:
                stopped = False
        finally:
            if close := getattr(tokens, "close", None):
                close()  # without a turn: a generator may be collected by a thread that holds one
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


class _Gaze:
    """Where the tokens of one answer looked, summed by time.

    A published model has hundreds of slots a picture and half a million an hour, the same ones for every token:
    they are placed once, and a token costs one pass (3 ms for an hour) instead of a sort.
    """

    def __init__(self) -> None:
        self._slots = self._mass = np.zeros(0)
        self._times: np.ndarray | None = None
        self._moments: tuple[Evidence, ...] = ()

    def add(self, looked: tuple[np.ndarray, np.ndarray] | None) -> None:
        if looked is None:
            return
        times, weights = looked
        if self._times is None or (times is not self._times and not np.array_equal(times, self._times)):
            self._place(times)
        self._mass = self._mass + np.bincount(self._places, np.reshape(weights, -1), len(self._slots))
        self._moments = moments(self._slots, self._mass)

    def _place(self, times: np.ndarray) -> None:
        slots = np.unique(np.concatenate([self._slots, np.reshape(times, -1)]))
        mass = np.zeros(len(slots))
        mass[np.searchsorted(slots, self._slots)] = self._mass
        self._times, self._slots, self._mass = times, slots, mass
        self._places = np.searchsorted(slots, np.reshape(times, -1))

    def moments(self) -> tuple[Evidence, ...]:
        return self._moments


def moments(
    times: np.ndarray, weights: np.ndarray, gap: float | None = None, share: float = 0.05, at_most: int = 6
) -> tuple[Evidence, ...]:
    """The moments that carry most of the weight, heaviest first; their weights are shares of the whole, so sum <= 1.

    times: seconds of the memory slots, in any order, repeated as often as a time has slots; weights: as many, >= 0.
    gap: seconds over which neighbours merge; None is two sampling periods (two median steps between slots).
    share: moments lighter than this share of the whole are left out.

    Attention gives every slot a little. Slots under the mean, or under a fiftieth of the peak, are background:
    without that, all slots would touch and every answer would rest on "the whole video".
    """
    slots, mass = _by_time(np.asarray(times, np.float64).reshape(-1), np.asarray(weights, np.float64).reshape(-1))
    total = mass.sum()
    if not total > 0:
        return ()
    mass = mass / total
    if gap is None:
        gap = 2 * float(np.median(np.diff(slots))) if len(slots) > 1 else 0.0
    raised = np.flatnonzero(mass >= max(mass.mean() * (1 - 1e-9), mass.max() / 50))
    breaks = np.flatnonzero(np.diff(slots[raised]) > gap * (1 + 1e-9)) + 1
    spans = [slice(run[0], run[-1] + 1) for run in np.split(raised, breaks)]
    found = [_moment(slots[span], mass[span]) for span in spans]
    return tuple(sorted((m for m in found if m.weight >= share), key=lambda m: (-m.weight, m.time))[:at_most])


def _by_time(times: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct times in order and the weight on each; what is not finite or negative weighs nothing."""
    known = np.isfinite(times)
    times, weights = times[known], np.clip(np.nan_to_num(weights[known], posinf=0.0), 0.0, None)
    order = np.lexsort((weights, times))  # by weight too, so that the sums do not depend on the order of slots
    times, first = np.unique(times[order], return_index=True)
    return times, np.add.reduceat(weights[order], first) if len(first) else weights


def _moment(slots: np.ndarray, mass: np.ndarray) -> Evidence:
    peak = float(slots[mass.argmax()])
    return Evidence(time=peak, weight=min(1.0, float(mass.sum())), start=float(slots[0]), end=float(slots[-1]))
