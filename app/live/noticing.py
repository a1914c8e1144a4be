"""Noticing: the thread that fills a stream's timeline, so that watching the next chunk waits for nothing of it; and the
one in which late senses go through the stream's files once these were watched, at low priority."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from pipeline import Engine, Event, Frame, Gleaner, Played, Reach, Rule, StreamState, Timeline

log = logging.getLogger(__name__)

LOW = 10  # niceness of what nobody waits for
FAR_BEHIND = 16  # chunks that wait, beyond which the model is asked for no captions: pictures must not pile up
CANNOT_JUDGE = "This model cannot judge “{}”, so you are not told of it; say it in other words."


class Noticing:
    """Takes chunks and the settled states after them. Its thread begins with the first and ends with `close`."""

    def __init__(self, engine: Engine, live: bool = False) -> None:
        """live: whether a camera or a screen is watched."""
        self._engine, self._timeline = engine, Timeline(engine, live=live)
        self._gleaner = Gleaner(engine.model.late_senses)
        self._gleaning: threading.Thread | None = None
        self._stop = threading.Event()
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None
        self._newest: StreamState | None = None
        self._closed = False
        self._undone, self._counting = 0, threading.Lock()  # deeds that wait or are at work

    def go_on(self, events: Sequence[Event], rules: Sequence[Rule], state: StreamState) -> tuple[str, ...]:
        """With what was noticed of a stream before, and what was to be told; at the beginning. Returns sentences on
        what cannot go on."""
        if state.frames:
            late = [event for event in events if event.kind in self._gleaner.kinds]
            self._gleaner = Gleaner(self._engine.model.late_senses, late)
            self._timeline.go_on([event for event in events if event not in late], state.seen_until)
            self._newest = state
        left_out = self._timeline.take_rules(rules, state)
        return tuple(CANNOT_JUDGE.format(rule.text) for rule in left_out)

    @property
    def events(self) -> tuple[Event, ...]:
        return (*self._timeline.events, *self._gleaner.events)  # as they came

    @property
    def reaches(self) -> tuple[Reach, ...]:
        """How far the late senses have come."""
        return self._gleaner.reaches

    def beside(self) -> tuple[tuple[Event, ...], tuple[Reach, ...]]:
        """A snapshot for a question: how far the late senses have come, and events, which then hold all up to there."""
        reaches = self.reaches
        return self.events, reaches

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self._timeline.rules

    def watched(self, frames: Sequence[Frame], state: StreamState) -> None:
        """What a chunk showed. Returns at once."""
        self._newest = state
        self._do(lambda: self._timeline.watched(frames, state, self._behind))

    def finish(self, state: StreamState, files: Sequence[Played]) -> None:
        """The stream is over; the late senses go through its files now. Returns at once."""
        self._do(lambda: self._timeline.finish(state, self._behind))
        if self._gleaning is None and files and self._gleaner.senses:
            self._gleaning = threading.Thread(target=self._glean, args=(files,), name="glean", daemon=True)
            self._gleaning.start()

    def add(self, event: Event) -> None:
        """Something that others noticed, such as a gap. Returns at once."""
        self._do(lambda: self._timeline.add(event))

    def judge(self, state: StreamState) -> None:
        """The rules alone, of what was watched by then. Returns at once."""
        self._newest = state
        if self.rules:
            self._do(lambda: self._timeline.judge(state))

    def let_go(self) -> None:
        """Holds no state until `judge` gives it one."""
        self._newest = None

    def add_rule(self, text: str, cool_down: float | None = None) -> Rule:
        """Raises UserError for a rule that cannot be judged. What was seen already is judged soon."""
        rule = self._timeline.add_rule(text) if cool_down is None else self._timeline.add_rule(text, cool_down)
        if state := self._newest:
            self._do(lambda: self._timeline.judge(state))
        return rule

    def remove_rule(self, number: int) -> None:
        self._timeline.remove_rule(number)

    def close(self) -> None:
        """What waits is let go."""
        self._closed = True
        self._stop.set()
        self._waiting.put(None)

    def join(self, timeout: float) -> None:
        """After `close`: waits for what is being noticed. A thread in the middle of a model's work would end a process
        that ends with an abort."""
        end = time.monotonic() + timeout
        for thread in (self._worker, self._gleaning):
            if thread:
                thread.join(max(0.0, end - time.monotonic()))

    @property
    def _behind(self) -> bool:
        return self._waiting.qsize() > FAR_BEHIND

    @property
    def busy(self) -> bool:
        """Whether something is being noticed, of a state that is held for it."""
        return self._undone > 0

    def _count(self, more: int) -> None:
        with self._counting:
            self._undone += more

    def _do(self, deed: Callable[[], None]) -> None:
        self._count(1)
        self._waiting.put(deed)
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="notice", daemon=True)
            self._worker.start()

    def _work(self) -> None:
        while self._go_on_noticing():
            pass

    def _go_on_noticing(self) -> bool:
        """What comes next; whether there is more to come. Nothing of it, nor its state, is held while it waits."""
        if (deed := self._waiting.get()) is None or self._closed:
            return False
        try:
            deed()
        except Exception:  # a stream without marks is still watched and asked
            log.exception("noticing failed")
        self._count(-1)
        return True

    def _glean(self, files: Sequence[Played]) -> None:
        with suppress(OSError, AttributeError):  # Linux alone gives one thread, and those it starts, less than others
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW)
        try:
            self._gleaner.go_through(files, self._stop)
        except Exception:
            log.exception("gleaning failed")
