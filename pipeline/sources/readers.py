"""The readers of one file: a scout that goes through all of it, and helpers for the parts it gives away (reader/).

Pictures come out in the file's order, whoever decoded them, through a queue that is filled while nobody takes from it
and that holds a bounded number of bytes. A reader that does not read stands still: its pipe is full.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.sources.process import Budget, Died, Message, Process, checked
from pipeline.sources.refusals import Limits, VideoError
from pipeline.stream import UserError

Job = dict[str, Any]
MOST = 256  # readers of a file
AHEAD_EACH, MOST_AHEAD = 32 << 20, 256 << 20  # bytes of pictures that may wait: for each reader, and at most
WAITING = 4  # segments for each helper that may wait to be read
NOTHING = np.empty(0, np.uint8)


def cores() -> int:
    """Processors this process may use: of the machine, or of the container it was given (cgroup version 2)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open("/sys/fs/cgroup/cpu.max") as file:
        quota, period = map(float, file.read().split())
        count = min(count, max(1, round(quota / period)))
    return count


def choose_readers(count: int | None) -> None:
    """How many processes read a file from now on, where its limits name no number; None: as VAMBA_READERS says, or one
    for each core. UserError for a number that cannot be."""
    told = os.environ.get("VAMBA_READERS") or None
    if count is None and told:
        count = int(told) if told.isdecimal() else 0
    if count is not None and not 1 <= count <= MOST:
        raise UserError(f"So many processes cannot read a file together; choose 1 to {MOST} readers.")
    global _chosen
    _chosen = count


_chosen: int | None = None


def wanted(limits: Limits) -> int:
    """Readers of a file, if its pictures leave room for so many."""
    return limits.readers or _chosen or cores()


def ahead(limits: Limits) -> int:
    """Bytes of pictures that may wait to be taken."""
    return min(MOST_AHEAD, AHEAD_EACH * wanted(limits)) if limits.ahead is None else limits.ahead


def helpers(limits: Limits, width: int, height: int) -> int:
    """How many readers may share a file of such pictures: as many as asked for, and as fit in the memory for them.

    A decoder holds up to 17 pictures (H.264 and HEVC, their highest levels), of three bytes a pixel at ten bits.
    """
    each = limits.reader + 20 * 3 * width * height
    return max(1, min(wanted(limits), limits.together // each))


@dataclass(eq=False)
class Part:
    """A run of pictures that one reader decodes. messages: those not yet taken; ended: there will be no more.

    segment: what a helper is to read, None for the scout's own. given: pictures so far. failed: what ended it early.
    """

    segment: dict[str, Any] | None = None
    messages: deque[Message] = field(default_factory=deque)
    given: int = 0
    ended: bool = False
    failed: VideoError | None = None


class Strayed(VideoError):
    """A helper found that the file's stamps lie, so what was planned after them is worth nothing."""

    def __init__(self) -> None:
        super().__init__("crashed", "The pictures of a part are not those that the file promised.")


class Readers:
    """All processes of one file. One thread takes with `message`; any thread may `close`.

    job: what the scout is told. Everything it needs of the file is the descriptor, which must stay open until `close`.
    """

    def __init__(self, job: Job, limits: Limits, budget: Budget) -> None:
        self.job, self.limits, self.budget = job, limits, budget
        self.closed = False
        self._changed = threading.Condition()  # guards what follows
        self._parts: deque[Part] = deque()  # in the file's order
        self._unread: deque[Part] = deque()  # segments that no helper has taken yet
        self._bytes, self._scouting, self._count = 0, True, 1
        self._ahead = ahead(limits)
        self._processes: set[Process] = set()
        self._threads: list[threading.Thread] = []
        self._begin(self._scout, self._start(job))

    # For whoever watches

    @property
    def processes(self) -> list[Process]:
        with self._changed:
            return list(self._processes)

    def message(self) -> Message | None:
        """The next one in the file's order; None after `close`. Raises VideoError where a part ended early."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self.closed or (self._parts and self._ready(self._parts[0])))
                if self.closed:
                    return None
                part = self._parts[0]
                if part.messages:
                    head, payload = part.messages.popleft()
                    self._bytes -= payload.nbytes
                    self._changed.notify_all()
                    return head, payload
                if part.failed:
                    raise part.failed
                self._parts.popleft()
                self._changed.notify_all()

    def _ready(self, part: Part) -> bool:
        return bool(part.messages) or part.ended

    def close(self) -> None:
        """Ends every process at once, and waits for that. Safe to repeat."""
        with self._changed:
            self.closed = True
            for process in self._processes:
                process.kill()
            self._changed.notify_all()
        for thread in list(self._threads):
            thread.join()

    # Threads, one for each process

    def _begin(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, name="video reader", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _start(self, job: Job) -> Process:
        process = Process(job, self.limits, self.budget)
        with self._changed:
            self._processes.add(process)
            if self.closed:
                process.kill()
        return process

    def _end(self, process: Process) -> None:
        process.discard()
        with self._changed:
            self._processes.discard(process)

    def _put(self, part: Part, message: Message) -> None:
        """Adds to a part once there is room: always for the picture that is waited for."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.closed or self._bytes < self._ahead or (part is self._parts[0] and not part.messages)
            )
            part.messages.append(message)
            part.given += message[0]["type"] == "frame"
            self._bytes += message[1].nbytes
            self._changed.notify_all()

    def _finish(self, part: Part, failed: VideoError | None = None) -> None:
        with self._changed:
            part.ended, part.failed = True, failed
            self._changed.notify_all()

    # The scout

    def _scout(self, process: Process) -> None:
        part: Part | None = None
        try:
            while not self.closed:
                head, payload = process.message()
                with checked(self.limits):
                    if part and head["type"] == "segment":
                        self._finish(part)
                        part = None
                    if head["type"] == "info":
                        self._count = helpers(self.limits, int(head["width"]), int(head["height"]))
                if head["type"] == "segment":
                    self._give_away(head)
                    continue
                part = part or self._add(Part())
                self._put(part, (head, payload))
                if head["type"] == "end":
                    break
            self._finish(part or self._add(Part()))
        except VideoError as error:
            self._finish(part or self._add(Part()), error)
        finally:
            self._end(process)
            with self._changed:
                self._scouting = False
                self._changed.notify_all()

    def _add(self, part: Part) -> Part:
        with self._changed:
            self._parts.append(part)
            if part.segment:
                self._unread.append(part)
            self._changed.notify_all()
        return part

    def _give_away(self, segment: dict[str, Any]) -> None:
        """To the helpers, who are called when there is something for them for the first time."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or len(self._unread) < WAITING * self._count)
        self._add(Part(segment))
        if len(self._threads) == 1:
            self.budget.readers = self._count
            for _ in range(self._count):
                self._begin(self._help)

    # The helpers

    def _help(self) -> None:
        process: Process | None = None
        try:
            while part := self._next_segment():
                process = self._read(part, process)
        finally:
            if process:
                self._end(process)

    def _next_segment(self) -> Part | None:
        """The next one that nobody reads; None where there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self.closed or self._unread or not self._scouting)
            return self._unread.popleft() if self._unread and not self.closed else None

    def _read(self, part: Part, process: Process | None) -> Process | None:
        """A part, by a process that may have to be started. One whose reader died is read on once by another."""
        failed: VideoError | None = None
        for _ in range(2):
            try:
                process = process or self._start(self.job | self._helping())
                self._read_with(part, process)
                return process
            except VideoError as error:
                failed = error
                if process:
                    self._end(process)
                process = None
                if not isinstance(error, Died):
                    break
        self._finish(part, failed)
        return None

    def _helping(self) -> Job:
        return {"helps": True, "share": False, "threads": 1, "cpu": max(1, self.limits.cpu // self._count)}

    def _read_with(self, part: Part, process: Process) -> None:
        """Raises VideoError where the process ends early or strays."""
        with checked(self.limits):
            assert part.segment is not None  # the scout's own parts are not read here
            wanted, until = list(part.segment["wanted"])[part.given :], part.segment["until"]
            process.tell({"first": part.segment["first"], "count": part.segment["count"], "wanted": wanted})
            last = len(wanted) - 1
            while not self.closed:
                head, payload = process.message()
                if head["type"] == "strayed":
                    raise Strayed
                if head["type"] == "done":
                    break
                if head["type"] == "frame":
                    place = int(head["place"])
                    _, at, progress = wanted[place]
                    times = {"time": at, "progress": progress, "until": until if place == last else None}
                    self._put(part, (head | times, payload))
        self._finish(part)
