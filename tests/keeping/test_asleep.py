"""States that sleep in a file: awake again bit for bit, nothing of them in memory meanwhile, within a stated room."""

from __future__ import annotations

import gc
import os
import weakref

import pytest

from pipeline.engine import Engine
from pipeline.keeping import asleep
from pipeline.keeping.asleep import Dormitory
from pipeline.stream import UserError
from tests.keeping.test_packing import (
    EMBEDDED,
    answered,
    assert_equal,
    model_of,  # noqa: F401
    pictures,
    shipped,  # noqa: F401
    watched,
)


def laid(model, frames, slices):
    """(the newest state, earlier ones)."""
    states = [model.start()]
    for part in slices:
        states.append(watched(model, frames, [part], states[-1]))
    return states[-1], states[-2::-5][:3]


SOME = ["eight bits", "window", "on the host", "state and keys", "qwen2-vl", "embedded", "twin"]


@pytest.mark.parametrize("name", SOME)
def test_what_slept_goes_on_as_if_it_had_not(name, model_of, cut) -> None:  # noqa: F811
    model, frames = model_of(name), pictures(17 if name in EMBEDDED else 31)
    slices = cut(len(frames) - 5, 3)
    state, earlier = laid(model, frames, slices)
    woken, *before = Dormitory().lay(Engine(model), state, earlier).wake(Engine(model))
    for one, other in zip((woken, *before), (state, *earlier), strict=True):
        assert_equal(model, one, other)
    rest = [slice(len(frames) - 5, len(frames) - 2), slice(len(frames) - 2, len(frames))]
    onward = watched(model, frames, rest, woken)
    assert_equal(model, onward, watched(model, frames, rest, state))
    assert answered(model, onward) == answered(model, watched(model, frames, rest, state))
    for one, other in zip(before[:1], earlier):  # each goes on by itself, whatever became of the newest
        assert_equal(model, watched(model, frames, rest, one), watched(model, frames, rest, other))


def test_earlier_states_share_what_grew_with_the_newest(tiny_model, cut) -> None:
    """As before they slept: in memory and in the file."""
    model, frames = tiny_model(), pictures(31)
    state, earlier = laid(model, frames, cut(31, 3))
    one, many = (Dormitory().lay(Engine(model), state, some) for some in ((), earlier))
    assert many.nbytes - one.nbytes <= len(earlier) * (state.state_bytes + 4 * frames[0].rgb.nbytes)
    newest, *before = many.wake(Engine(model))
    assert before[0].inner.memory.log.blocks[0] is newest.inner.memory.log.blocks[0]


@pytest.mark.parametrize("eight_bit", [False, True])
def test_what_lies_in_a_file_already_stays_there(tiny_model, eight_bit) -> None:
    model, frames = tiny_model(endless=3 / 60, eight_bit=eight_bit), pictures(60)
    state = watched(model, frames, [slice(0, 30), slice(30, 60)])
    assert state.disk_bytes > state.memory_bytes / 2
    dormitory = Dormitory()
    slept = dormitory.lay(Engine(model), state)
    assert slept.nbytes <= state.state_bytes + state.memory_bytes - state.disk_bytes + 4 * frames[0].rgb.nbytes
    file, before = model.disk.file, model.disk.file.nbytes
    expected = answered(model, state), answered(model, state, at=2.0)
    del state
    gc.collect()
    assert file.nbytes == before
    (woken,) = slept.wake(Engine(model))
    assert file.nbytes == before and (answered(model, woken), answered(model, woken, at=2.0)) == expected
    more = watched(model, pictures(70), [slice(60, 70)], woken)
    assert_equal(model, more, watched(model, pictures(70), [slice(0, 30), slice(30, 60), slice(60, 70)]))


def test_a_state_that_sleeps_is_held_by_nobody_and_its_file_goes_with_it(tiny_model) -> None:
    model = tiny_model()
    engine, dormitory = Engine(model), Dormitory()
    state = watched(model, pictures(20), [slice(0, 20)])
    slept = dormitory.lay(engine, state)
    there, fd = weakref.ref(state), slept._file.fileno()
    assert os.fstat(fd).st_nlink == 0 and dormitory.nbytes == slept.nbytes == os.fstat(fd).st_size > 0
    del state
    assert there() is None
    del slept
    assert dormitory.nbytes == 0
    with pytest.raises(OSError):
        os.fstat(fd)


@pytest.mark.parametrize("room", ["ceiling", "disk", "written"])
def test_a_full_disk_is_told_and_takes_nothing(tiny_model, room, monkeypatch) -> None:
    model = tiny_model()
    engine, dormitory = Engine(model), Dormitory(ceiling=1_000 if room == "ceiling" else None)
    state = watched(model, pictures(20), [slice(0, 20)])
    if room == "disk":
        monkeypatch.setattr(asleep, "RESERVE", 1 << 62)
    if room == "written":
        monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="stays awake"):
        dormitory.lay(engine, state)
    gc.collect()
    assert dormitory.nbytes == 0
    assert answered(model, state), "it is as it was"


def test_what_cannot_be_read_is_told_and_asked_for_again(tiny_model, monkeypatch) -> None:
    model = tiny_model()
    engine = Engine(model)
    state = watched(model, pictures(20), [slice(0, 20)])
    slept = Dormitory().lay(engine, state)
    with monkeypatch.context() as broken:
        broken.setattr(os, "preadv", lambda *_: 0)
        with pytest.raises(UserError, match="ask again"):
            slept.wake(engine)
    with monkeypatch.context() as full:
        full.setattr(model, "unpack", lambda packed: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(UserError, match="no memory free"):
            slept.wake(engine)
    assert_equal(model, slept.wake(engine)[0], state)


def test_a_model_whose_streams_cannot_be_kept_stays_awake() -> None:
    from tests.fake_model import FakeModel

    model = FakeModel()
    with pytest.raises(UserError, match="cannot be kept"):
        Dormitory().lay(Engine(model), watched(model, pictures(3), [slice(0, 3)]))
