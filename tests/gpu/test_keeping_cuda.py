"""Streams that are kept, on a GPU: what was watched there comes back and goes on, and forks know nothing of each other.

Watching stores states that are read back into other memory, so the same kernels run on the same numbers: the state is
the same bit for bit, and what goes on may differ by what the order of a sum costs. Largest differences may be, of the
state's largest number:
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bench.published import published_model
from pipeline.bench.shapes import PUBLISHED
from pipeline.engine import Engine
from pipeline.keeping import keeper as keeper_module
from pipeline.keeping.keeper import Keeper
from pipeline.keeping.kept import KeptStream
from pipeline.keeping.packing import whole
from pipeline.models.load import load
from pipeline.options import ModelOptions
from pipeline.stream import Frame, Question, Sampling, StreamState, VideoChunk
from tests.conftest import gap

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"), pytest.mark.cuda]
CUT = 0.02  # bf16 has 8 bits; a recorded pass differs from one launch by launch by 0.012 (pipeline/bench/README.md)
CHUNKS, SIZE = 7, 4


def chunks(width: int = 416, height: int = 234) -> list[VideoChunk]:
    """Coloured squares that move; a second apart."""
    rng = np.random.default_rng(3)
    frames = []
    for second in range(CHUNKS * SIZE):
        rgb = np.full((height, width, 3), 40 + 3 * second % 160, np.uint8)
        x, y = rng.integers(0, 300), rng.integers(0, 150)
        rgb[y : y + 60, x : x + 80] = rng.integers(0, 256, 3)
        frames.append(Frame(rgb, float(second)))
    return [VideoChunk(tuple(frames[at : at + SIZE])) for at in range(0, len(frames), SIZE)]


small = pytest.mark.parametrize("engine", ["embedded"], indirect=True)


@pytest.fixture(scope="module")
def engine(request) -> Iterator[Engine]:
    """The model that ships, and the published shapes with random weights: too large a state for the page to keep."""
    patch = pytest.MonkeyPatch()
    patch.setattr(keeper_module, "LARGEST_STATE", 1 << 40)
    patch.setattr(keeper_module, "LARGEST_MEMORY", 1 << 40)
    if request.param == "embedded":
        made = Engine(load("embedded", device="cuda"))
        made.warm_up()
    else:
        made = Engine(published_model(PUBLISHED, torch.device("cuda"), torch.bfloat16, ModelOptions()))
    yield made
    patch.undo()


def watched(engine: Engine, state: StreamState, of: list[VideoChunk]) -> StreamState:
    for chunk in of:
        state = engine.watch(chunk, state)
    engine.confirm(state)
    return state


def tensors(engine: Engine, state: StreamState) -> dict[str, torch.Tensor]:
    return whole(engine.between(lambda: engine.model.pack(state))).tensors


def furthest(engine: Engine, one: StreamState, other: StreamState) -> float:
    ours, theirs = tensors(engine, one), tensors(engine, other)
    assert ours.keys() == theirs.keys()
    other_ones = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    return max((gap(ours[name].double(), theirs[name].double()) for name in other_ones), default=0.0)


def answer(engine: Engine, state: StreamState) -> str:
    *_, last = engine.ask(Question("What colour is it?"), state, Sampling(max_tokens=12))
    return last.text


@pytest.fixture
def kept(tmp_path, engine) -> Path:
    """All chunks but the last three."""
    about = {"model": "embedded", "backend": engine.backend}
    with closing(Keeper(engine, KeptStream.create(tmp_path / "stream", about))) as keeper:
        state = engine.start()
        for number, chunk in enumerate(chunks()[:-3]):
            state = engine.watch(chunk, state)
            keeper.watched(SIZE, (number + 1) * SIZE, state)
    assert not keeper.error
    return tmp_path / "stream"


@pytest.mark.parametrize("engine", ["embedded", "published"], indirect=True)
def test_what_was_kept_on_a_gpu_comes_back_and_goes_on(kept, engine) -> None:
    whole_way = watched(engine, engine.start(), chunks()[:-3])
    with closing(KeptStream.open(kept)) as stream:
        resumed = stream.resume(engine.model).state
    assert resumed.frames == whole_way.frames
    back = furthest(engine, resumed, whole_way)
    on = furthest(engine, watched(engine, resumed, chunks()[-3:]), watched(engine, whole_way, chunks()[-3:]))
    print(f"state: {back:.1e}; three chunks later: {on:.1e}")
    assert back == 0 and on <= CUT
    assert answer(engine, resumed) == answer(engine, whole_way)


@small
def test_going_back_on_a_gpu_is_as_it_was_then(kept, engine) -> None:
    with closing(KeptStream.open(kept)) as stream:
        newest = stream.found.newest(engine.model, stream.found.cuts[-2].until)
    then = watched(engine, engine.start(), chunks()[:-4])
    print(f"an earlier state: {furthest(engine, newest.state, then):.1e}")
    assert newest.state.frames == then.frames and furthest(engine, newest.state, then) == 0


@small
def test_forks_on_a_gpu_know_nothing_of_each_other(kept, engine, tmp_path) -> None:
    with closing(KeptStream.open(kept)) as stream:
        stream.resume(engine.model)
        stream.fork(tmp_path / "fork")
    with closing(KeptStream.open(tmp_path / "fork")) as fork, closing(KeptStream.open(kept)) as stream:
        one, other = fork.resume(engine.model).state, stream.resume(engine.model).state
    before = tensors(engine, other)
    first = watched(engine, one, chunks()[-3:])
    second = watched(engine, one, chunks()[:3])
    after = tensors(engine, other)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert furthest(engine, watched(engine, one, chunks()[-3:]), first) <= CUT
    print(f"two ways from one state: {furthest(engine, first, second):.1e}")
    assert furthest(engine, first, second) > 0.05
