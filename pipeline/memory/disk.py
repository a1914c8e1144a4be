"""A stream that never ends takes a bounded place in memory: its older blocks lie in a file, and are read when chosen.

The newest minutes stay where they are. A whole block that ended before them is written to the process's private file
and then let go; its times stay, for everybody asks for them. The block itself remains, so all logs that name it, older
snapshots and forks included, go on reading the same numbers from the file. What nobody names any more gives its place
back, and the file shrinks. The file has no name: whatever ends the process, nothing of it is left.

In the file a block's slots come first, so that a chosen moment is one stretch: of the published size 17 MB a pair. On a
GPU writing happens beside the computing, on a thread and a stream of its own.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import weakref
from bisect import bisect_left
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

import torch
from torch import Tensor

from pipeline.memory.log import Block, Field, Log

RESERVE = 1 << 30  # bytes of the disk that stay free
MOST_WRITTEN = 2  # blocks on their way to the file at once: more wait, so that they do not fill the GPU
UNPLACED = 1  # blocks that the disk has no place for and that wait in memory
HOURS = 24  # that a stream without an end is remembered for: its times, index and file are bounded, too
MEANS_MINUTES = 30  # of a coarse memory, that stay
MEANS_SPARE = 3 << 30  # bytes of the disk that are left for a day of it

told = logging.getLogger(__name__)


class Disk:
    """Where the blocks of a model's memories go that ended more than `minutes` before the newest whole one.

    What ended `hours` before it falls out, and where the disk is full, the oldest. unit: slots that fall out together.
    file: theirs; None: a new one in the system's folder for such files. spare: bytes of the disk to leave for others.
    """

    def __init__(self, minutes: float, unit: int = 1, hours: float = HOURS, file: Spool | None = None, spare: int = 0):
        self.minutes, self.unit, self.hours, self.file, self.spare = minutes, unit, hours, file or Spool(), spare
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="memory to disk")
        self._writing: deque[Future[None]] = deque()

    def of_means(self) -> Disk:
        """The same for a coarse memory, in the same file."""
        return Disk(max(self.minutes, MEANS_MINUTES), hours=self.hours, file=self.file)

    def far_blocks(self, log: Log) -> int:
        """How many blocks, the oldest, belong in the file: told by the times alone, not by how a video was cut."""
        return _ended_before(log, 60 * self.minutes)

    def settle(self, log: Log) -> Log:
        """The log with its far blocks sent. Where the disk is full some wait in memory, and then the oldest fall out,
        a block each time: watching goes on."""
        log = self.forget(log)
        return log if len(self.send(log)) <= UNPLACED else self._without_oldest(log, 1)

    def forget(self, log: Log) -> Log:
        """The log without its blocks that are too old."""
        old = _ended_before(log, 3600 * self.hours)
        return self._without_oldest(log, old) if old else log

    def _without_oldest(self, log: Log, blocks: int) -> Log:
        slots = min(blocks * log.block_slots - log.first, log.length)
        return log.drop_oldest(slots + -(log.gone + slots) % self.unit)

    def send(self, log: Log) -> list[Block]:
        """Sends the log's far blocks; those that found no place."""
        far = log.blocks[: self.far_blocks(log)]
        return [block for block in far if block.away is None and not self._sent(block, log)]

    def _sent(self, block: Block, log: Log) -> bool:
        fields = {name: field for name, field in log.fields.items() if name != "time"}
        with block.lock:  # an answer and the stream may both send it
            if block.away is not None:
                return True
            away = Written.claim(self.file, fields, block.slots, log.device, self.spare)
            if away is None:
                return False
            block.away = away
        if torch.device(log.device).type != "cuda":
            _move(block, away, None)
            return True
        written = torch.cuda.current_stream(log.device).record_event()
        while len(self._writing) >= MOST_WRITTEN:
            self._writing.popleft().result()
        self._writing.append(self._writer.submit(_move, block, away, written))
        return True


def _ended_before(log: Log, seconds: float) -> int:
    """How many blocks, the oldest, ended more than so long before the newest whole one."""
    whole = log.blocks[:-1]
    return bisect_left(whole, whole[-1].ended - seconds, key=lambda block: block.ended) if whole else 0


def _move(block: Block, away: Written, after: torch.cuda.Event | None) -> None:
    """Writes the block and lets go of what is in the file. What cannot be written stays in memory."""
    try:
        if after is None:
            away.write(block.tensors)
        else:
            with torch.cuda.stream(torch.cuda.Stream(away.device)) as _, torch.no_grad():
                torch.cuda.current_stream(away.device).wait_event(after)
                away.write(block.tensors)
    except OSError as error:
        told.warning("A part of a memory could not be written to the disk (%s); it stays in memory.", error)
        return
    block.tensors = {name: tensor for name, tensor in block.tensors.items() if name not in away.fields}


class Written:
    """A block's tensors in the file, field after field, each with its slots first."""

    def __init__(self, file: Spool, place: Place, fields: dict[str, Field], device: torch.device | str):
        self.file, self.place, self.fields, self.device = file, place, fields, device
        slots = place.size // sum(field.bytes_per_slot() for field in fields.values())
        self.starts, at = {}, 0
        for name, field in fields.items():
            self.starts[name], at = at, at + slots * field.bytes_per_slot()

    @classmethod
    def claim(
        cls, file: Spool, fields: dict[str, Field], slots: int, device: torch.device | str, spare: int = 0
    ) -> Written | None:
        """Room for a block of so many slots; None where the disk is full."""
        place = file.claim(slots * sum(field.bytes_per_slot() for field in fields.values()), spare)
        return None if place is None else cls(file, place, fields, device)

    def write(self, tensors: dict[str, Tensor]) -> None:
        for name, field in self.fields.items():
            rows = tensors[name].movedim(field.slot_dim, 0).contiguous().cpu()
            self.file.write(rows.view(-1).view(torch.uint8), self.place.start + self.starts[name])

    def rows(self, name: str, start: int, count: int) -> Tensor:
        field = self.fields[name]
        size = field.bytes_per_slot()
        read = self.file.read(count * size, self.place.start + self.starts[name] + start * size)
        rows = read.view(field.dtype).view(count, *(n for n in field.shape if n is not None))
        return rows.to(self.device).movedim(0, field.slot_dim)


class Place:
    """Some bytes of the file, which are free again when nobody holds this."""

    def __init__(self, start: int, size: int):
        self.start, self.size = start, size


class Spool:
    """A file without a name, in places that are used again. Any thread may call it."""

    def __init__(self, folder: str | None = None):
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # as long as this lives
        self._lock, self._end = Lock(), 0
        self._free: dict[int, list[int]] = {}  # by size: where
        self._given_back: deque[tuple[int, int]] = deque()  # not yet among the free

    @property
    def nbytes(self) -> int:
        """Bytes of the disk that it takes."""
        return os.fstat(self._file.fileno()).st_size

    def claim(self, size: int, spare: int = 0) -> Place | None:
        """Room for so many bytes, which will not run out while they are written, and leave so many spare on the disk;
        None where there is none."""
        with self._lock:
            self._sort()
            if free := self._free.get(size):
                start = free.pop()
            elif self._room(size, spare):
                start, self._end = self._end, self._end + size
            else:
                return None
        place = Place(start, size)
        weakref.finalize(place, self._release, start, size).atexit = False
        return place

    def _room(self, size: int, spare: int) -> bool:
        number = self._file.fileno()
        free = os.fstatvfs(number)
        if free.f_bavail * free.f_frsize < size + spare + RESERVE:
            return False
        try:
            if sys.platform == "linux":
                os.posix_fallocate(number, self._end, size)
        except OSError as error:
            told.debug("no room on the disk", exc_info=error)
            os.ftruncate(number, self._end)
            return False
        return True

    def _release(self, start: int, size: int) -> None:
        """Called wherever Python lets go of a place, so it waits for nobody: who has the lock sorts later."""
        self._given_back.append((start, size))
        if self._lock.acquire(blocking=False):
            try:
                self._sort()
            finally:
                self._lock.release()

    def _sort(self) -> None:
        """Puts what was given back among the free, and the file ends where the last place does."""
        while self._given_back:
            start, size = self._given_back.popleft()
            self._free.setdefault(size, []).append(start)
        ends, was = {start + size: (start, size) for size, all in self._free.items() for start in all}, self._end
        while self._end in ends:
            start, size = ends[self._end]
            self._free[size].remove(start)
            self._end = start
        if self._end < was:
            os.ftruncate(self._file.fileno(), self._end)

    def write(self, data: Tensor, start: int) -> None:
        """data: (bytes,) uint8 on the CPU."""
        left = data.numpy().data
        while left:
            done = os.pwrite(self._file.fileno(), left, start)
            left, start = left[done:], start + done

    def read(self, count: int, start: int) -> Tensor:
        """(count,) uint8."""
        data = torch.empty(count, dtype=torch.uint8)
        left = data.numpy().data
        while left:
            done = os.preadv(self._file.fileno(), [left], start)
            if not done:
                raise OSError("the memory's file is shorter than what was written")
            left, start = left[done:], start + done
        return data


def disk_nbytes(log: Log) -> int:
    """Bytes of the visible slots that lie in a file."""
    slot = log.slot_nbytes - log.fields["time"].bytes_per_slot()
    return slot * sum(len(seen) for block, seen in log.seen() if block.away)
