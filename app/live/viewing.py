"""Viewing: one model's run over a stream, with its newest state, its backlog and what it costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from app.live.view import ModelView, Sample
from pipeline import Engine, Frame, Overflowed, StreamState, UserError, VideoChunk

SAMPLES = 400  # kept measurements


class Viewing:
    """One thread watches; any may ask or look.

    A chunk the model could not take stays as the backlog and is offered again, so that one failure loses nothing. If
    it fails again it is left out, counted and said: offering it for ever would end the stream there.
    """

    def __init__(
        self,
        engine: Engine,
        behind: bool = False,
        since: float = 0.0,
        state: StreamState | None = None,
        watched: Callable[[Sequence[Frame], int, StreamState], None] | None = None,
    ) -> None:
        """state: to go on from. watched: told of every chunk, the frames of the source up to there, and the state after
        it."""
        self.engine = engine
        self.state: StreamState = engine.start() if state is None else state
        self.settled = self.state  # after the newest chunk that every model has seen: what questions are asked of
        self.behind = behind  # joined late and must first see what the others have seen
        self.since = since  # the second of the video from which on it has watched
        self.backlog: list[Frame] = []
        self._suspect = 0  # of the backlog: its first frames, which overflowed and took the others along
        self.frames = self.state.frames  # seen
        self._earlier = 0  # frames of earlier sources
        self._watched = watched
        self.left_out = 0  # frames that failed twice
        self._samples: list[Sample] = []
        self._first_tokens: list[tuple[float, float]] = []
        self._lock = threading.Lock()

    def watch(self, frames: list[Frame]) -> None:
        """Shows the frames to the model. Raises UserError; the state is then the last good one, the frames backlog."""
        self.backlog = frames
        began = time.perf_counter()
        try:
            state = self.engine.watch(VideoChunk(tuple(frames)), self.state)
        except Overflowed as error:
            self._go_back(error)
            raise
        ms = (time.perf_counter() - began) * 1000 / len(frames)
        with self._lock:
            self.state, self.backlog = state, []
            self.frames += len(frames)
            self._samples.append(Sample(frames[-1].time, ms, state.state_bytes, state.memory_bytes))
            if len(self._samples) > SAMPLES:  # every other one: the whole video stays on the plot
                self._samples = self._samples[1::2]
        if self._watched:
            self._watched(frames, self.position, state)

    def begin(self, position: int) -> None:
        """Another source follows, of which it has had so many frames."""
        self._earlier = self.frames + self.left_out - position

    @property
    def newest(self) -> tuple[StreamState, int]:
        """The newest state, and `position` after it."""
        with self._lock:
            return self.state, self.position

    @property
    def position(self) -> int:
        """Frames of the source it has had, those it left out included."""
        return self.frames + self.left_out - self._earlier

    def _go_back(self, error: Overflowed) -> None:
        """To before a chunk that turned out to overflow; it is offered again with the backlog."""
        with self._lock:
            self.state, self.frames = error.good, self.frames - len(error.lost)
            self.backlog, self._suspect = [*error.lost, *self.backlog], len(error.lost)

    def conclude(self) -> None:
        """After the last chunk: waits until the newest state is known to be good. Raises UserError for what is left out
        because it was not."""
        try:
            self.engine.confirm(self.state)
        except Overflowed as error:
            self._go_back(error)
            self.watch_again()
            raise

    def watch_again(self) -> None:
        """Offers the backlog once more, where there is one; what fails again is left out."""
        frames, suspect, self._suspect = self.backlog, self._suspect, 0
        for part in (frames[:suspect], frames[suspect:]):
            self._watch_at_last(part)
        self.backlog = []

    def _watch_at_last(self, frames: list[Frame]) -> None:
        if not frames:
            return
        try:
            self.watch(frames)
            self.engine.confirm(self.state)
        except Overflowed as error:
            self._go_back(error)
            self.left_out += len(frames)
        except UserError:
            self.left_out += len(frames)
        self._suspect = 0

    def settle(self) -> None:
        """Every model has seen this much: from now on questions are asked of it."""
        self.settled = self.state

    @property
    def at_rest(self) -> bool:
        """Whether all that it was shown is seen, and questions are asked of that."""
        return self.state is self.settled and not self.backlog and not self.behind

    def put(self, state: StreamState) -> None:
        """The same state in another form: asleep, or awake again."""
        with self._lock:
            self.state = self.settled = state

    def answered(self, at: float, seconds: float) -> None:
        """An answer's first token came after so many wall seconds; at: second of the video it had seen."""
        self._first_tokens.append((at, seconds))

    def view(self) -> ModelView:
        with self._lock:
            left_out = f"{self.left_out:,} frames left out" if self.left_out else ""
            return ModelView(
                name=self.engine.name,
                backend=self.engine.backend,
                frames=self.frames,
                seen_until=self.state.seen_until,
                state_bytes=self.state.state_bytes,
                memory_bytes=self.state.memory_bytes,
                note=" · ".join(note for note in (self.state.dropped_note, left_out) if note),
                samples=tuple(self._samples),
                first_tokens=tuple(self._first_tokens),
                behind=self.behind,
                since=self.since,
            )


def settle(viewings: Sequence[Viewing]) -> None:
    """Questions are asked of what every model has seen: in the middle of a chunk one is ahead of the other."""
    if not any(viewing.backlog for viewing in viewings):
        for viewing in viewings:
            viewing.settle()


def conclude(viewings: Sequence[Viewing]) -> UserError | None:
    """After the last chunk; why one of them left some of it out."""
    failed = None
    for viewing in viewings:
        try:
            viewing.conclude()
        except UserError as error:
            failed = error
    settle(viewings)
    return failed
