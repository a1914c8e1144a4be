"""Probing what is remembered: a thread that asks a stream's models of moments long ago, as the visitor would.

The kept pictures, which are seen again, are those that a camera sent, as far as they are left, else the small ones.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import numpy as np

from app.live.shared import Watched
from app.live.view import NOTHING_WATCHED, Recalled
from app.live.watching import Watch
from pipeline import Frame, Remembering, UserError, decode_jpeg, recall

log = logging.getLogger(__name__)


class Run:
    """One probe. recalled: what was found so far."""

    def __init__(self, watch: Watched) -> None:
        self._watch, self.stopped = watch, False
        self.recalled = Recalled(of=1)
        self.thread = threading.Thread(target=self._work, name="probe", daemon=True)

    def _asked(self) -> list[Remembering]:
        """Whoever watches, awake."""
        if isinstance(self._watch, Watch):
            self._watch.sleep.rouse(lambda: self.stopped)
        found = [self._watch.viewing(model) for model in (0, 1)]
        return [Remembering(one.engine, one.settled) for one in found if one and one.settled.frames]

    def _work(self) -> None:
        at = 0.0
        try:
            asked = self._asked()
            if not asked:
                raise UserError(NOTHING_WATCHED.format("remembered"))
            own, *rivals = asked
            at = own.state.seen_until
            for found in recall(own, rivals, self._pictures):
                self.recalled = Recalled(found, at, *_progress(found))
                if self.stopped:
                    return
        except UserError as error:
            self.recalled = Recalled(error=str(error))
        except Exception:
            log.exception("a probe failed")
            self.recalled = Recalled(error="Something failed on our side, so nothing was found out; press it again.")

    def _pictures(self, start: float, end: float) -> Sequence[Frame]:
        watch = self._watch
        kept = watch.recent.between(start, end) or watch.thumbnails.between(start, end)
        return [Frame(np.asarray(decode_jpeg(picture.jpeg)), picture.time) for picture in kept]


def _progress(found: Sequence[Sequence]) -> tuple[int, int]:
    """(moments asked about, of how many)."""
    old = [aged for aged in found[0] if not aged.young]
    return sum(aged.moments for aged in old), sum(aged.wanted for aged in old)


class Prober:
    """The newest probe of one session. Any thread may call."""

    def __init__(self) -> None:
        self._run: Run | None = None
        self._stopped: Run | None = None
        self._lock = threading.Lock()

    def start(self, watch: Watched | None) -> None:
        """A new one, where none is under way. Raises UserError where nothing is watched."""
        with self._lock:
            if watch is None:
                raise UserError(NOTHING_WATCHED.format("remembered"))
            if self._run is None or self._run.recalled.over:
                self._run = Run(watch)
                self._run.thread.start()

    @property
    def running(self) -> bool:
        """Whether something is being asked of the stream's states."""
        run = self._run
        return run is not None and (run.thread.is_alive() or not run.recalled.over)

    def stop(self) -> None:
        """Another stream begins, of which nothing is known."""
        with self._lock:
            run, self._run = self._run, None
        if run:
            run.stopped, self._stopped = True, run

    def join(self, timeout: float) -> None:
        """After `stop`: waits for the question that is being asked."""
        if self._stopped:
            self._stopped.thread.join(timeout)

    def view(self) -> Recalled | None:
        run = self._run
        return run.recalled if run else None
