"""Noticing: the thread that fills a stream's timeline, so that watching the next chunk waits for nothing of it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

from pipeline import Engine, Event, Frame, StreamState, Timeline

log = logging.getLogger(__name__)

FAR_BEHIND = 16  # chunks that wait, beyond which the model is asked for no captions: pictures must not pile up


class Noticing:
    """Takes chunks and the settled states after them. Its thread begins with the first and ends with `close`."""

    def __init__(self, engine: Engine) -> None:
        self._timeline = Timeline(engine)
        self._waiting: queue.SimpleQueue[tuple[Sequence[Frame], StreamState] | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    @property
    def events(self) -> tuple[Event, ...]:
        return self._timeline.events

    def watched(self, frames: Sequence[Frame], state: StreamState) -> None:
        """What a chunk showed; no frames: the stream is over. Returns at once."""
        self._waiting.put((frames, state))
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="notice", daemon=True)
            self._worker.start()

    def close(self) -> None:
        self._waiting.put(None)

    def _work(self) -> None:
        while (given := self._waiting.get()) is not None:
            frames, state = given
            hurry = self._waiting.qsize() > FAR_BEHIND
            try:
                if frames:
                    self._timeline.watched(frames, state, hurry)
                else:
                    self._timeline.finish(state, hurry)
            except Exception:  # a stream without marks is still watched and asked
                log.exception("noticing failed")
