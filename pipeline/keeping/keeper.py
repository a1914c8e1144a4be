"""Keeper: writes a stream as it is watched, in the background, in order, a chunk at a time.

Watching waits for it only where it is several chunks behind, and never for long: a keeper that fails (a full disk, a
disk that hangs) stops, says so in `error`, and watching goes on without it.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Full, Queue
from typing import TypeAlias

from torch import Tensor

from pipeline.clock import mmss
from pipeline.engine import Engine
from pipeline.keeping import packing
from pipeline.keeping.found import Cut
from pipeline.keeping.kept import KeptStream
from pipeline.keeping.segment import Record
from pipeline.keeping.taking import TakenOver
from pipeline.stream import Packed, StreamState, UserError

log = logging.getLogger(__name__)
Rows: TypeAlias = dict[str, dict[str, Tensor]]  # what grew, by part

WAITING = 4  # chunks that may wait to be written; each holds a copy of a state
PATIENCE_S = 30.0  # watching waits for so long for a disk that is too slow
LARGEST_STATE = 32 << 20  # bytes: a larger state would be written longer than it took to watch
LARGEST_MEMORY = (
    1 << 20
)  # bytes a frame: beyond this, watching again is sooner done than reading (30.9 GB an hour: 24 s
# at 1.3 GB/s, and 11.8 s of an H100 for the same hour of pictures, which are 0.2 GB)
UNTIL = "keeping stopped at {}; watching goes on, and what was kept until then stays."


class Keeper:
    """Any thread may call; one writes. error: why keeping stopped, in a sentence, or ""."""

    def __init__(self, engine: Engine, kept: KeptStream, limit: int | None = None) -> None:
        """limit: bytes of the whole folder, beyond which keeping stops."""
        self.engine, self.kept, self.limit, self.error = engine, kept, limit, ""
        self.written = kept.next_number  # chunks, those of before included
        self.seconds = 0.0  # of a processor, spent on keeping
        self._states, self._until, self._closed = True, 0.0, False
        self._ends = dict(kept.ends)  # how far what grows was copied
        self._jobs: Queue[Callable[[], None] | None] = Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="keeper", daemon=True)
        self._thread.start()

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return self.kept.nbytes

    def keeps(self, state: StreamState) -> bool:
        """Whether such a state is kept; where it is not, going on means to watch again."""
        return self._states and _worth_keeping(state)

    def watched(self, frames: int, position: int, state: StreamState, records: Iterable[Record] = ()) -> None:
        """A chunk of so many frames was watched. position: frames of the source taken with it. records: what belongs
        to it.

        The state is copied at once and written later: what is watched next waits for a copy, never for a disk.
        """
        if self.error or self._closed:
            return
        self._states = self.keeps(state)
        try:
            with self._timed():
                packed, rows = (
                    self.engine.between(partial(self._copied, state)) if self._states else (Packed({}, {}), {})
                )
        except UserError as error:  # of a model that cannot be kept, or whose numbers overflowed
            self.error = str(error)
            return
        self._ends = packing.grown_to(packed)
        self._put(partial(self._add, frames, position, state.seen_until, packed, rows, tuple(records)))

    def note(self, records: Iterable[Record] = (), forget: Sequence[tuple[str, int]] = ()) -> None:
        """Other records, see `KeptStream.note`."""
        self._put(partial(self.kept.note, tuple(records), forget))

    def fork(self, there: Path, secret: str = "") -> None:
        """All that was watched until now, in a folder of its own (see `KeptStream.fork`). Waits for that. Raises
        UserError where it did not work."""
        self._put(partial(self.kept.fork, there, secret))
        if not self.wait():
            raise UserError("What is kept could not be copied, so nothing was begun; try again in a moment.")

    def wait(self) -> bool:
        """Until all that was told is written; whether it was."""
        done, end = threading.Event(), time.monotonic() + PATIENCE_S
        self._put(done.set)
        while not (done.wait(0.05) or self.error or self._closed or time.monotonic() > end):
            pass
        return done.is_set() and not self.error

    def do(self, job: Callable[[], None]) -> None:
        """Something else that belongs between two chunks, such as taking the file over. May raise OSError."""
        self._put(job)

    def close(self) -> None:
        """Writes what waits, and ends; what comes later is not written. May be called twice."""
        self._closed = True
        if self._thread.is_alive():
            self._jobs.put(None)
            self._thread.join()
        self.kept.close()

    def _put(self, job: Callable[[], None]) -> None:
        if self.error or self._closed:
            return
        try:
            self._jobs.put(job, timeout=PATIENCE_S)
        except Full:
            self._stop("The disk is too slow")

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self.error:
                self._try(job)

    def _try(self, job: Callable[[], None]) -> None:
        try:
            with self._timed():
                job()
            if self.limit is not None and self.nbytes > self.limit:
                self._stop(f"The {self.limit / 1e9:.1f} GB that a kept stream may take are full")
        except TakenOver as error:
            self.error = str(error)
        except (sqlite3.Error, OSError) as error:
            log.warning("keeping stopped", exc_info=error)
            self._stop("The disk is full" if _full(error) else "The disk failed")
        except Exception:
            log.exception("keeping failed")
            self._stop("Something failed on our side")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.thread_time()
        try:
            yield
        finally:
            self.seconds += time.thread_time() - began

    def _stop(self, why: str) -> None:
        self.error = f"{why}, so {UNTIL.format(mmss(self._until))}"

    def _add(
        self, frames: int, position: int, until: float, packed: Packed, rows: Rows, records: tuple[Record, ...]
    ) -> None:
        cut = Cut(self.kept.next_number, frames, position, float(until))
        self.kept.add(cut, packed, rows, records)
        self.written, self._until = cut.number + 1, cut.until

    def _copied(self, state: StreamState) -> tuple[Packed, Rows]:
        """The state, and what grew. Between two turns, because copying from a GPU that records its graphs ends them."""
        self.engine.confirm(state)
        packed = self.engine.model.pack(state)
        return packed, packing.newer(packed, self._ends)


def _worth_keeping(state: StreamState) -> bool:
    return state.state_bytes <= LARGEST_STATE and state.memory_bytes <= LARGEST_MEMORY * max(state.frames, 1)


def _full(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code == sqlite3.SQLITE_FULL or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
