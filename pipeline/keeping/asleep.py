"""A stream's states asleep: in a file without a name, and nothing of them in memory; awake again bit for bit.

What is written is what a kept stream holds of a state (packing.py), and waking is what going on with one is: the
model's own `unpack`. What of a memory lies in a file already (memory/disk.py) stays there. The file has no name, so
nobody else can open it, and whatever ends the process, nothing of it is left.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.engine import Engine
from pipeline.stream import JSON, Growing, Packed, StreamState, UserError
from pipeline.works import out_of_memory

RESERVE = 1 << 30  # bytes of the disk that stay free
SHARE = 0.5  # of the disk that is free, where no ceiling is named
FULL = (
    "The disk has no room for another sleeping stream, so this one stays awake and keeps its place; free some of it, "
    "or allow more (--sleep-gb)."
)
LOST = (
    "What was seen lies on the disk and could not be read just now, so there is no answer yet; nothing is deleted, ask "
    "again."
)
CROWDED = (
    "There is no memory free to wake this stream, so it sleeps on and nothing of it is lost; ask again in a moment."
)


class _Where(NamedTuple):
    """A tensor's place in the file: its first byte, and what it is."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def longer(self, slots: int) -> _Where:
        """The same with so many rows more, which follow it in the file."""
        return self._replace(shape=(self.shape[0] + slots, *self.shape[1:]))


@dataclass
class _Laid:
    """One state. seen: the numbers of the slots of what grows. begun: the first of them, which are not in this file;
    None: what the newest state has of them."""

    document: dict[str, JSON]
    seen: dict[str, range]
    tensors: dict[str, _Where] = field(default_factory=dict)
    begun: dict[str, Growing] | None = None

    def within(self, other: _Laid) -> bool:
        """Whether another state has all that grew."""
        return self.seen.keys() == other.seen.keys() and all(
            slots.start == other.seen[part].start and slots.stop <= other.seen[part].stop
            for part, slots in self.seen.items()
        )


class Dormitory:
    """The disk for states that sleep. Any thread may call.

    ceiling: bytes that they may take together; None: half of what is free. folder: of their files; None: the system's.
    """

    def __init__(self, ceiling: int | None = None, folder: str | None = None) -> None:
        self.ceiling, self.folder, self.nbytes = ceiling, folder, 0
        self._lock = threading.Lock()

    def lay(self, engine: Engine, state: StreamState, earlier: Sequence[StreamState] = ()) -> Asleep:
        """Writes a state, and earlier ones of the same stream, which share what had grown by then. The states stay as
        they are: whoever lets go of them has put them to sleep. Others watch and answer meanwhile. Raises UserError."""
        engine.confirm(state)
        asleep, began = Asleep(self), time.perf_counter()
        try:
            for one in (state, *earlier):
                asleep.add(engine, one)
        except OSError as error:
            raise UserError(FULL) from error
        asleep.seconds = time.perf_counter() - began
        return asleep

    def take(self, size: int) -> None:
        """So many bytes more. Raises OSError where there is no room for them."""
        free = os.statvfs(self.folder or tempfile.gettempdir())
        left = free.f_bavail * free.f_frsize
        with self._lock:
            most = (left + self.nbytes) * SHARE if self.ceiling is None else self.ceiling
            if self.nbytes + size > most or size + RESERVE > left:
                raise OSError("no room for another sleeping stream")
            self.nbytes += size

    def give_back(self, sizes: list[int]) -> None:
        with self._lock:
            self.nbytes -= sum(sizes)


class Asleep:
    """States that sleep, the newest first. seconds: what writing them took, and waking them about takes."""

    def __init__(self, dormitory: Dormitory) -> None:
        self._file = tempfile.TemporaryFile(dir=dormitory.folder, buffering=0)  # noqa: SIM115  # as long as this lives
        self._dormitory, self._sizes = dormitory, list[int]()
        self._laid: list[_Laid] = []
        self._elsewhere = False  # whether some of what grew lies on the host, where it is not shared
        self.seconds = 0.0
        weakref.finalize(self, dormitory.give_back, self._sizes).atexit = False

    @property
    def nbytes(self) -> int:
        """Bytes of the disk."""
        return sum(self._sizes)

    def add(self, engine: Engine, state: StreamState) -> None:
        """One state more. Copied between two turns, piece by piece, and written meanwhile."""
        packed = engine.between(partial(engine.model.pack, state))
        seen = {part: range(log.end - len(log), log.end) for part, log in packed.growing.items()}
        laid = _Laid(packed.document, seen)
        own = not self._laid or self._elsewhere or not laid.within(self._laid[0])
        self._elsewhere = self._elsewhere or bool(state.host_bytes)
        for name, tensor in packed.tensors.items():
            self._write(laid, name, tensor)
        if own:
            halves = {part: log.split() for part, log in packed.growing.items()}
            laid.begun = {part: begun for part, (begun, _) in halves.items() if len(begun)}
            for part, (_, new) in halves.items():
                self._write_rows(engine, laid, part, new)
        self._laid.append(laid)

    def wake(self, engine: Engine) -> list[StreamState]:
        """The states, the newest first, on the device again; the file stays until nobody holds this. Raises
        UserError."""
        try:
            return self._woken(engine)
        except OSError as error:
            raise UserError(LOST) from error
        except Exception as error:
            if not out_of_memory(error):
                raise
        raise UserError(CROWDED)  # outside of the handler, whose traceback would keep all that was brought back

    def _woken(self, engine: Engine) -> list[StreamState]:
        first, *earlier = self._laid
        newest = self._one(engine, first, first.begun or {})
        grown = engine.between(partial(engine.model.pack, newest)).growing if earlier else {}
        found = [newest]
        for laid in earlier:
            shared = {part: grown[part].until(len(slots)) for part, slots in laid.seen.items()}
            found.append(self._one(engine, laid, shared if laid.begun is None else laid.begun))
        return found

    def _one(self, engine: Engine, laid: _Laid, begun: Mapping[str, Growing]) -> StreamState:
        """Read first, so that the turn in which it goes to the device is short."""
        tensors = {name: self._read(where) for name, where in laid.tensors.items()}
        for part, log in begun.items():
            for name, none in log.until(0).since(0).items():
                tensors.setdefault(f"{part}.{name}", none)
        packed = Packed(tensors, laid.document, begun=dict(begun))
        return engine.between(partial(engine.model.unpack, packed))

    def _write_rows(self, engine: Engine, laid: _Laid, part: str, new: Growing) -> None:
        for name, none in new.until(0).since(0).items():
            laid.tensors[f"{part}.{name}"] = _Where(self.nbytes, none.dtype, tuple(none.shape))
        rows = new.pieces()
        take: Callable[[], tuple[str, Tensor] | None] = partial(next, rows, None)
        while (piece := engine.between(take)) is not None:
            self._write(laid, f"{part}.{piece[0]}", piece[1])

    def _write(self, laid: _Laid, name: str, tensor: Tensor) -> None:
        """After what was written; what goes on with the last tensor becomes one with it."""
        data = tensor.contiguous().reshape(-1).view(torch.uint8)
        start = self.nbytes
        self._dormitory.take(len(data))
        self._sizes.append(len(data))
        before = laid.tensors.get(name)
        if before and len(before.shape) and before.shape[0]:
            laid.tensors[name] = before.longer(len(tensor))
        else:
            laid.tensors[name] = _Where(start, tensor.dtype, tuple(tensor.shape))
        left = data.numpy().data
        while left:
            done = os.pwrite(self._file.fileno(), left, start)
            left, start = left[done:], start + done

    def _read(self, where: _Where) -> Tensor:
        tensor = torch.empty(where.shape, dtype=where.dtype)
        left, start = tensor.view(-1).view(torch.uint8).numpy().data, where.start
        while left:
            done = os.preadv(self._file.fileno(), [left], start)
            if not done:
                raise OSError("the file of a sleeping stream is shorter than what was written")
            left, start = left[done:], start + done
        return tensor


def outline(state: StreamState) -> StreamState:
    """What may be known of a state that sleeps: all but what it carries."""
    return replace(state, inner=None)
