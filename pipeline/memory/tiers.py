"""A memory beyond the GPU: its older blocks lie in the computer's memory, and attention reads them through two buffers.

Moving changes nothing that somebody holds: a moved block is a second one with the same numbers, and a new Log names it
in the first one's place. Whoever holds an older Log goes on reading the block on the GPU, which is freed when nobody
does. Copies run on streams of their own, beside the computing.

Attention to a memory in two places is exact: every piece gives its softmax-weighted values and their log-sum-exp, and
pieces merge by these. A piece is one layer of some blocks, copied into one buffer while the other is being read, or all
that is still on the GPU. What it costs: every word of an answer reads all of the memory, and the way from the host is
some sixty times slower than the GPU's own memory. On an H100 (50 GB/s over PCIe 5) half an hour of 640x360 on the host,
15.5 GB, takes 300 ms a word: the time of copying it, behind which all computing hides. Kernels that read pinned memory
where it lies were as quick for one query, but read it again for every 9 queries (44 ms a layer for 32, against 12).

On a CPU the same code runs, and moving copies from one place to another of the same memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from pipeline.memory.attention import QUERIES_PER_PASS, key_heads, merged, scan, weights_given
from pipeline.memory.log import Block, Log

PIECE_BYTES = 64 << 20  # of one buffer: long enough that copying hides launching, short enough to start soon
ROWS_AGAIN = 32  # rows of one key head from which on keys are read twice instead of keeping their scores
RESERVE = 2 << 30  # bytes of the computer's memory that stay free
KEYS, VALUES = ("k", "k_scale"), ("v", "v_scale")


class Tier:
    """How much of a memory stays on its device, and the way there and back for the rest. One serves a model's memories.

    nbytes: of slots that stay on the device at most; whole blocks move, and the newest never does.
    """

    def __init__(self, nbytes: float, piece_bytes: int = PIECE_BYTES):
        self.nbytes, self.piece_bytes, self.lock = nbytes, piece_bytes, Lock()
        self._buffers: list[_Buffer] = []
        self._down: _Line | None = None
        self._up: _Line | None = None
        self._helper, self._moving = ThreadPoolExecutor(1), Lock()
        self._spare: Future[dict[str, Tensor]] | None = None

    def settle(self, log: Log) -> Log:
        """The log with its oldest whole blocks moved until no more than `nbytes` are on the device.

        Which ones depends on the number of slots alone, so not on how the video was cut. Raises MemoryError where the
        computer's memory would run full: locked pages cannot be swapped out, and the system would end the process.
        """
        blocks, end = list(log.blocks), log.first + log.length
        for i in range(log.host_blocks, len(blocks) - 1):
            if (end - i * log.block_slots) * log.slot_nbytes <= self.nbytes:
                break
            with blocks[i].lock:  # an answer and the stream may both move it: one copy serves both
                twin = blocks[i].twin or self._moved(blocks[i], log)
                blocks[i].twin = twin
            blocks[i] = twin
        return log if tuple(blocks) == log.blocks else replace(log, blocks=tuple(blocks))

    def _moved(self, block: Block, log: Log) -> Block:
        """The same numbers on the host, from `arrived` on. Times stay: everybody asks for them."""
        moving = {name: tensor for name, tensor in block.tensors.items() if name != "time"}
        with self._moving:
            self._down = self._down or _Line(log.device)
            room = self._room(moving, self._down.stream is not None)
            arrived = self._down.copy([(room[n], t) for n, t in moving.items()], [_all_started(log.device)])
        return block.moved(block.tensors | room, arrived)

    def _room(self, like: dict[str, Tensor], pinned: bool) -> dict[str, Tensor]:
        """Room on the host, and the next is begun: pages are locked at 1.9 GB/s (measured), an hour's half in 8 s."""
        shapes = {name: (t.shape, t.dtype) for name, t in like.items()}
        begun, self._spare = self._spare or self._helper.submit(_locked, shapes, pinned), None
        room = begun.result()
        self._spare = self._helper.submit(_locked, shapes, pinned)
        return room

    def pieces(self, log: Log, layer: int, names: Sequence[str]) -> Iterator[tuple[Log, int]]:
        """All of a memory's layer, oldest first, as (Log on the device, layer to read there). Hold `lock` meanwhile.

        names: the fields that will be read. A piece is good until the next one is asked for.
        """
        names = [name for name in names if name in log.fields]
        self._up = self._up or _Line(log.device)
        if not self._buffers:
            self._buffers = [_Buffer(log) for _ in range(2)]
        groups, filled = self._groups(log.on_host), []
        for i in range(len(groups) + 1):
            if i < len(groups):  # the next piece is on its way while this one is read
                filled.append(self._buffers[0].fill(self._up, groups[i], layer, names))
                self._buffers.reverse()
            if i:
                buffer, piece, done = filled[i - 1]
                _wait(log.device, done)
                try:
                    yield piece, 0
                finally:
                    buffer.free = _all_started(log.device)
        if len(log.on_device):
            yield log.on_device, layer

    def _groups(self, log: Log) -> list[Log]:
        """The log in pieces of at most `piece_bytes` a layer."""
        a_block = log.slot_nbytes * log.block_slots // log.fields["k"].sized(0)[0]
        size, end, groups = max(1, int(self.piece_bytes // a_block)), log.first + log.length, []
        for i in range(0, len(log.blocks), size):
            base, blocks = i * log.block_slots, log.blocks[i : i + size]
            first, last = max(log.first, base), min(end, base + len(blocks) * log.block_slots)
            groups.append(replace(log, blocks=blocks, first=first - base, length=last - first))
        return groups


class _Buffer:
    """Room on the device for one layer of some blocks, as a Log that is written again and again."""

    def __init__(self, log: Log):
        layer = {n: f._replace(shape=(1, *f.shape[1:])) if n != "time" else f for n, f in log.fields.items()}
        self.room = replace(log, fields=layer, blocks=(), first=0, length=0)
        self.free: torch.cuda.Event | None = None
        self._read_as: dict[tuple[int, int], Log] = {}  # kept, because writing a Log's `book` waits for the GPU

    def fill(
        self, line: _Line, log: Log, layer: int, names: Sequence[str]
    ) -> tuple[_Buffer, Log, torch.cuda.Event | None]:
        """Starts copying: this buffer, the Log to read in it, and when it may be read."""
        after = [self.free, *(block.arrived for block in log.blocks)]
        if (more := len(log.blocks) - len(self.room.blocks)) > 0:
            self.room, self._read_as = self.room.reserve(more * log.block_slots)[0], {}
            after.append(_all_started(log.device))  # the new room may be old room that is still being read
        both = list(zip(self.room.blocks, log.blocks))
        done = line.copy([(to.tensors[n][0], of.tensors[n][layer]) for to, of in both for n in names], after)
        seen = log.first, log.length
        if len(self._read_as) > 100:  # a window that moves on never sees the same slots twice
            self._read_as.clear()
        return self, self._read_as.setdefault(seen, replace(self.room, first=log.first, length=log.length)), done


class _Line:
    """Copies on a stream of their own. On a CPU they happen at once, and there is nothing to wait for."""

    def __init__(self, device: torch.device | str):
        self.stream = torch.cuda.Stream(device) if torch.device(device).type == "cuda" else None

    def copy(
        self, pairs: Sequence[tuple[Tensor, Tensor]], after: Sequence[torch.cuda.Event | None]
    ) -> torch.cuda.Event | None:
        """Copies (to, from) once all of `after` have happened; returns when that is done, as an event."""
        if self.stream is None:
            for to, of in pairs:
                to.copy_(of)
            return None
        with torch.cuda.stream(self.stream):
            for event in filter(None, after):
                self.stream.wait_event(event)
            for to, of in pairs:
                to.copy_(of, non_blocking=True)
                (to if to.is_cuda else of).record_stream(self.stream)  # not to be reused before the copy is done
            return self.stream.record_event()


def _locked(shapes: dict[str, tuple[torch.Size, torch.dtype]], pinned: bool) -> dict[str, Tensor]:
    if sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values()) + RESERVE > free_host_bytes():
        raise MemoryError("The computer's memory is full.")
    return {n: torch.empty(shape, dtype=dtype, pin_memory=pinned) for n, (shape, dtype) in shapes.items()}


def _all_started(device: torch.device | str) -> torch.cuda.Event | None:
    """All that has been started so far."""
    cuda = torch.device(device).type == "cuda"
    return torch.cuda.current_stream(device).record_event() if cuda else None


def _wait(device: torch.device | str, event: torch.cuda.Event | None) -> None:
    if event is not None:
        torch.cuda.current_stream(device).wait_event(event)


def free_host_bytes(machine: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes a process may still lock: what Linux calls available, within the container's limit; elsewhere unlimited."""
    try:
        told = dict(line.split(":") for line in machine.read_text().splitlines())
        free = int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return math.inf
    try:
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        used = int((group / "memory.current").read_text()) - int(cached)
        return min(free, int((group / "memory.max").read_text()) - used)
    except (OSError, KeyError, ValueError):  # no group, or no limit ("max")
        return free


# --- attention -------------------------------------------------------------------------------------------------------


def attend(tier: Tier, log: Log, layer: int, q_HQP: Tensor, spans: Sequence[range]) -> tuple[Tensor, Tensor | None]:
    """`Memory.attend_spans` where a part lies on the host. That part is copied once, however many queries there are.

    The weights need the sum over all pieces, which is known at the end. Few queries' scores are kept until then (4
    bytes a row and slot); for many the keys are read a second time.
    """
    passes = [range(i, min(i + QUERIES_PER_PASS, q_HQP.shape[1])) for i in range(0, q_HQP.shape[1], QUERIES_PER_PASS)]
    keep = bool(spans) and q_HQP[..., 0].numel() // key_heads(log) < ROWS_AGAIN
    with tier.lock:
        pieces = tier.pieces(log, layer, KEYS + VALUES)
        found = [[scan(*piece, _some(q_HQP, part), keep) for part in passes] for piece in pieces]
        whole = [merged([part[:2] for part in parts]) for parts in zip(*found)]
        out, total_HQ = (torch.cat(parts, dim=1) for parts in zip(*whole))
        out = out.to(q_HQP.dtype)
        if not spans:
            return out, None
        if keep:  # so few queries make one pass
            scores = torch.cat([kept for ((_, _, kept), *_) in found if kept is not None], dim=-1)
            shares = (scores - total_HQ[..., None]).exp()
            return out, torch.stack([_some(shares, span).mean((0, 1)) for span in spans])
        rows = [
            torch.stack([_weights_of_piece(piece, q_HQP, total_HQ, span) for span in spans])
            for piece in tier.pieces(log, layer, KEYS)
        ]
    return out, torch.cat(rows, dim=1)


def _some(x_HQ: Tensor, queries: range) -> Tensor:
    return x_HQ[:, queries.start : queries.stop]


def _weights_of_piece(piece: tuple[Log, int], q_HQP: Tensor, total_HQ: Tensor, span: range) -> Tensor:
    """(slots,) weights of one piece, the mean over the span's queries, some of them at a time."""
    parts = [span[i : i + QUERIES_PER_PASS] for i in range(0, len(span), QUERIES_PER_PASS)]
    return reduce(
        add, (weights_given(*piece, _some(q_HQP, p), _some(total_HQ, p)) * (len(p) / len(span)) for p in parts)
    )
