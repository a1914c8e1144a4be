"""A tiny model, a stream of twenty chunks for it, its state after each; run as a program it dies of its work.

`python -m tests.keeping.streams FOLDER` watches and keeps the stream once for every place where it can be killed, each
in a folder and a process of its own, which ends itself there by SIGKILL.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from pipeline.engine import Engine
from pipeline.keeping.keeper import Keeper
from pipeline.keeping.kept import KeptStream
from pipeline.keeping.packing import whole
from pipeline.keeping.segment import Record, Segment
from pipeline.layers.vamba import Vamba
from pipeline.models.vamba_model import VambaModel
from pipeline.stream import Frame, Question, Sampling, StreamState, VideoChunk
from tests.conftest import TINY, Letters, PairEyes

CHUNKS = 20
SOME = range(0, CHUNKS, 5)  # of the chunks, where the same is done to an encrypted stream
SECRET = "a visitor's key"  # for streams that are encrypted
ROOM = (0, 20_000, 60_000, 150_000, 300_000, 600_000)  # bytes a file may have, on a disk that is full beyond


def tiny() -> Engine:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Vamba(TINY)
    for name, p in net.named_parameters():
        if name.endswith("proj.weight"):
            torch.nn.init.normal_(p, std=2 * p.shape[1] ** -0.5)
    net = net.requires_grad_(False).eval()
    return Engine(VambaModel(net, PairEyes(TINY.d_model, torch.float32), Letters(), block_slots=16))


def chunks() -> list[VideoChunk]:
    """Twenty of one to four frames, a second apart."""
    rng = np.random.default_rng(11)
    sizes = [int(n) for n in rng.integers(1, 5, CHUNKS)]
    frames = iter([Frame(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), float(i)) for i in range(sum(sizes))])
    return [VideoChunk(tuple(next(frames) for _ in range(size))) for size in sizes]


def states(engine: Engine) -> Iterator[tuple[int, int, StreamState]]:
    """(frames, position, state) after each chunk."""
    state, position = engine.start(), 0
    for chunk in chunks():
        state = engine.watch(chunk, state)
        position += len(chunk.frames)
        yield len(chunk.frames), position, state


def digest(engine: Engine, state: StreamState) -> str:
    """Of all that a state is, and of an answer from it."""
    packed = whole(engine.model.pack(state))
    found = hashlib.sha256(repr(packed.document).encode())
    for name, tensor in sorted(packed.tensors.items()):
        found.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    tokens = engine.model.ask(Question("What is it?"), state, Sampling(max_tokens=4))
    found.update(repr([token.id for token in tokens]).encode())
    return found.hexdigest()


def about(engine: Engine) -> dict:
    return {"model": "tiny", "backend": engine.backend}


def keep(folder: Path, engine: Engine, secret: str = "") -> Keeper:
    """All of the stream kept there, its keeper still open."""
    keeper = Keeper(engine, KeptStream.create(folder, about(engine), secret))
    for frames, position, state in states(engine):
        keeper.watched(frames, position, state, [Record("picture", position, {"time": 0.5}, b"jpeg" * 50)])
    return keeper


# --- the ways to die -------------------------------------------------------------------------------------------------


def kill_in(chunk: int) -> None:
    """When all of that chunk is written but its transaction is not over."""

    def put(self: Segment, records: Iterable[Record]) -> None:
        original(self, dying(list(records)))

    def dying(records: list[Record]) -> Iterator[Record]:
        yield from records
        if any(record.kind == "chunk" and record.number == chunk for record in records):
            os.kill(os.getpid(), signal.SIGKILL)

    original, Segment.put = Segment.put, put  # type: ignore[method-assign]


def kill_after(chunk: int) -> None:
    """As soon as that chunk's transaction is over."""

    def put(self: Segment, records: Iterable[Record]) -> None:
        records = list(records)
        original(self, records)
        if any(record.kind == "chunk" and record.number == chunk for record in records):
            os.kill(os.getpid(), signal.SIGKILL)

    original, Segment.put = Segment.put, put  # type: ignore[method-assign]


def fill_disk(room: int) -> None:
    """No file may grow beyond so many bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))


def in_child(deed: Callable[[int], None], number: int, folder: Path, engine: Engine, secret: str = "") -> int:
    """The wait status of a process that keeps the stream in `folder` after `deed`; 0: it came to its end."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        deed(number)
        keeper = keep(folder, engine, secret)
        keeper.close()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (folder / "error").write_text(keeper.error)
        (folder / "written").write_text(str(keeper.written))
        os._exit(0)
    finally:
        os._exit(1)


def main(root: Path) -> None:
    engine = tiny()
    for deed, secret in itertools.product((kill_in, kill_after), ("", SECRET)):
        for chunk in range(CHUNKS) if not secret else SOME:
            status = in_child(deed, chunk, root / f"{deed.__name__}-{chunk}-{secret}", engine, secret)
            assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status
    for room in ROOM:
        assert in_child(fill_disk, room, root / f"full-{room}", engine) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))


def slow(seconds: float) -> Engine:
    """The tiny model, which takes its time over every two pictures."""
    engine = tiny()
    watch = engine.model.watch

    def late(chunk, state):
        time.sleep(seconds)
        return watch(chunk, state)

    engine.model.watch = late  # type: ignore[method-assign]
    engine.model.chunk_frames = lambda backlog: 2  # type: ignore[method-assign]
    return engine
