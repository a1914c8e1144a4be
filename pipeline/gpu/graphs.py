"""Passes recorded once and played again (CUDA graphs): many launches become one.

A recording repeats the same kernels on the same addresses, so everything that changes lies at fixed places and is
copied there before. What is recorded is the caller's affair: a `Tape` takes a function without arguments. Passes are
played one at a time, each after the one before, so a recording serves any number of threads.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

log = logging.getLogger(__name__)

KINDS = 4  # of short passes (lengths of chunks, sizes of pictures) whose recordings are kept
USES = 1  # of a kind until it is recorded
LIBRARIES_FULL = ("ALLOCATION_FAILED", "ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "out of memory")
T = TypeVar("T")


class Recorded(Protocol):
    """A recorded pass and the fixed places of its tensors. tape: None once it was thrown away."""

    tape: Tape | None


Recording = TypeVar("Recording", bound=Recorded)


def copy_all(to: Sequence[tuple[Tensor, ...]], of: Sequence[tuple[Tensor, ...]]) -> None:
    """One launch for each place of the tuples: what stands at the same place has the same type."""
    for ours, theirs in zip(zip(*to), zip(*of)):
        torch._foreach_copy_(ours, theirs)


def no_room(error: BaseException | None) -> bool:
    """Whether an error, or what it came of, is a want of memory. Of what cuDNN and cuBLAS take for themselves they say
    so in words only: on a full card their first use inside a recording failed so (H100)."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in LIBRARIES_FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


class Tapes:
    """What some recordings share: the stream they are made on, and turns."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.off = False  # set for good by the first failure
        self._lock, self._done = Lock(), torch.cuda.Event() if self.stream else None

    def wait(self) -> None:
        """For all that was played: a recording must not be thrown away before."""
        if self._done:
            self._done.synchronize()

    @contextmanager
    def turn(self, what: str) -> Iterator[None]:
        """One pass at a time, and each after the one before, on whatever streams. No failure gets out of it.

        Running out of memory may have passed by the next time; the plain code needs less. Other failures are final.
        """
        with self._lock:
            try:
                if self._done:
                    self._done.wait()
                yield
            except Exception as error:  # whatever a driver finds wrong with recording
                if no_room(error):
                    torch.cuda.empty_cache()  # libraries take theirs beside torch, which keeps what it once had
                    log.warning(
                        "The GPU's memory was too full for recorded %s; this once they ran unrecorded (%s).",
                        what,
                        error,
                    )
                else:
                    self.off = True
                    log.warning("Recording %s failed; from here on it runs unrecorded.", what, exc_info=True)
            else:
                if self._done:
                    self._done.record()


class Tape:
    """A function without arguments whose tensors lie at fixed places: run plainly once, then recorded and played.

    What it reads it must not change, so that one run more gives the same: whoever records rehearses first, and a pass
    that carried its states on in place was a word ahead from there on.
    The plain run compiles kernels and fills caches, which must not happen inside a recording, and its result counts.
    pool: of tapes that share the memory between their kernels. They may where nothing in it is read after a tape has
    played, since tapes play one after the other. A pool that no recording uses any more must not be used again.
    made: recordings of this process so far; somebody waited for each.
    """

    made = 0

    def __init__(self, passes: Callable[[], None], shared: Tapes, pool: tuple[int, int] | None = None):
        self._pass, self._shared, self._pool, self._met = passes, shared, pool, False
        self._graph: torch.cuda.CUDAGraph | None = None

    def play(self) -> None:
        aside = self._shared.stream
        if aside is None:  # as under Triton's interpreter
            self._pass()
        elif self._met:
            self._graph = self._graph or self._on(aside, self._rehearsed)
            self._graph.replay()
        else:
            self._on(aside, self._pass)
            self._met = True

    def _on(self, aside: torch.cuda.Stream, call: Callable[[], T]) -> T:
        here = torch.cuda.current_stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            found = call()
        here.wait_stream(aside)
        return found

    def _rehearsed(self) -> torch.cuda.CUDAGraph:
        """Once more plainly first, by the thread that records: cuBLAS and cuDNN make themselves ready in every thread
        that first needs them, which a recording refuses, and each visitor's question comes in a thread of its own."""
        self._pass()
        return self._recorded()

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """Not by `torch.cuda.graph`, which waits for the GPU and gives all spare memory back first.

        Other threads may go on using the GPU meanwhile (`thread_local`).
        """
        Tape.made += 1
        graph = torch.cuda.CUDAGraph()
        pool: Any = self._pool  # torch's type for it is private
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            self._pass()
        finally:
            graph.capture_end()
        return graph


class TapesByKind(Generic[Recording]):
    """Recordings of short passes, one for each kind (a length, a size) that comes again and again."""

    def __init__(self, device: torch.device):
        self.tapes = Tapes(device)
        self._kept: dict[Hashable, Recording] = {}  # the one used last at the end
        self._met: Counter[Hashable] = Counter()

    def comes_again(self, kind: Hashable) -> bool:
        """Whether this kind came before and can be recorded."""
        self._met[kind] += 1
        return not self.tapes.off and self._met[kind] > USES

    def recording(self, kind: Hashable, make: Callable[[], Recording]) -> Recording:
        """This kind's recording, made if need be; the one that was not used for longest gives way."""
        found = self._kept.pop(kind, None)
        if found is None and len(self._kept) == KINDS:
            self.tapes.wait()
            self._kept.pop(next(iter(self._kept))).tape = None  # lets go of the graph and its memory
        self._kept[kind] = found = found or make()
        return found
