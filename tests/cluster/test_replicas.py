"""Real replicas on Ray Serve: killed in the middle of a chunk and of an answer, made more and fewer, a front started
again; every stream ends in the state of an undisturbed run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from app.cluster.sessions import GONE, FarSessions
from app.cluster.table import Where
from app.live import comeback, watching
from app.live.session import LiveSession
from app.live.shelf import Shelf, name_of
from app.live.view import Phase
from tests.cluster.tiny import SECONDS
from tests.keeping.streams import digest, slow
from tests.live.kept import CLIP, ended, newest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def undisturbed() -> str:
    """The digest of the clip, watched without interruption."""
    session = LiveSession(slow(0))
    patch = pytest.MonkeyPatch()
    patch.setattr(watching, "FPS", 12.0)
    session.open_file(CLIP, "Example")
    ended(session)
    patch.undo()
    return digest(session.engine, newest(session))


@pytest.fixture
def here(replicas) -> Iterator[FarSessions]:
    """The front, both engines well and empty."""
    until(lambda: len(replicas.where.engines) == 2 and replicas.where.free() == 16, 120)
    yield replicas
    for key in replicas.where.keys:
        replicas.delete(key)
    for name in replicas.shelf.names():
        replicas.shelf.delete(name)


def until(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.05)


def watched(here: FarSessions, keep: bool = True, frames: int = 4) -> str:
    """The key of a stream that is so far, and kept."""
    key, session = here.ensure(None)
    if keep:
        session.keep(True)
    session.open_file(CLIP, "Example")
    until(lambda: session.view().frames >= frames and (not keep or session.view().kept.nbytes))
    return key


def engine_of(here: FarSessions, key: str):
    return here.where.at(key)[0]


def pid_of(engine) -> int:
    return int(engine.born.partition("-")[0])


def kept(here: FarSessions, key: str) -> str:
    """The digest of what is kept of a stream that is over, by a model that never saw it."""
    until(lambda: here.get(key).view().phase is Phase.ENDED)
    engine_of(here, key).call("let_go", name_of(key))
    model = slow(0)
    back = comeback.of(Shelf(here.shelf.folder), name_of(key), model)
    back.keep.close()
    back.keep.join(10)
    return digest(model, back.start.state)


def test_kill_in_the_middle_of_a_chunk(here, undisturbed) -> None:
    """Both streams of the killed engine go on at the other one; that one's own is not disturbed."""
    keys = [watched(here, frames=2) for _ in range(3)]
    lost = engine_of(here, keys[0])
    mine = [key for key in keys if engine_of(here, key) is lost]
    time.sleep(SECONDS / 2)
    os.kill(pid_of(lost), signal.SIGKILL)
    began = time.monotonic()
    assert all(here.get(key).view().phase in (Phase.WATCHING, Phase.ENDED) for key in mine)
    print(f"{len(mine)} streams were watched on after {time.monotonic() - began:.1f} s")
    assert all(engine_of(here, key) is not lost for key in mine)
    assert [kept(here, key) for key in keys] == [undisturbed] * 3


def test_kill_in_the_middle_of_an_answer(here, undisturbed) -> None:
    key = watched(here)
    session = here.get(key)
    asked = session.ask("What is it?")
    answers = session.answer(asked)
    next(answers)
    os.kill(pid_of(engine_of(here, key)), signal.SIGKILL)
    last = list(answers)[-1]
    assert last.done and here.get(key).view().turn(asked).answer.text == last.text
    assert kept(here, key) == undisturbed


def test_an_engine_that_stalls_and_wakes_up_has_lost_its_stream(here, undisturbed) -> None:
    """Its visitor goes on at the other one; what the first still had in hand is written nowhere."""
    key = watched(here)
    stalled, born = here.where.at(key)
    os.kill(pid_of(stalled), signal.SIGSTOP)
    try:
        until(lambda: here.get(key) and engine_of(here, key) is not stalled, 60)
    finally:
        with suppress(ProcessLookupError):  # Serve ends what does not answer for long
            os.kill(int(born.partition("-")[0]), signal.SIGCONT)
    until(lambda: (there := stalled.standing(0.0)) and name_of(key) not in there.names, 120)
    assert engine_of(here, key) is not stalled
    assert kept(here, key) == undisturbed


def test_what_is_not_kept_is_said_to_be_lost(here) -> None:
    key = watched(here, keep=False)
    os.kill(pid_of(engine_of(here, key)), signal.SIGKILL)
    until(lambda: here.get(key).view().error == GONE, 120)
    assert here.ensure(key)[0] == key


def test_a_front_that_starts_again_finds_every_stream(here, replicas, undisturbed) -> None:
    keys = [watched(here, frames=1) for _ in range(2)]
    again = FarSessions(Where(replicas.engines.wires, 20.0), here.shelf.folder, 20.0)
    assert [again.get(key).view().phase for key in keys] == [Phase.WATCHING] * 2
    assert [kept(again, key) for key in keys] == [undisturbed] * 2


def test_two_one_two_with_eight_live_streams(here, replicas, undisturbed) -> None:
    """Fewer engines: what is kept moves. More: nothing moves."""
    keys = [watched(here, frames=1) for _ in range(8)]
    for key in keys:
        here.get(key).pause()
    assert {engine_of(here, key).name for key in keys} == {"vamba-engine-0", "vamba-engine-1"}
    file = here.shelf.folder / "replicas"
    file.write_text("1\n")
    until(lambda: len(replicas.where.engines) == 1 and all(here.get(key) for key in keys), 120)
    assert {engine_of(here, key).name for key in keys} == {"vamba-engine-0"}
    file.write_text("2\n")
    until(lambda: len(replicas.where.engines) == 2 and replicas.where.engines[1].standing(), 120)
    for key in keys:
        here.get(key).resume()
    assert {engine_of(here, key).name for key in keys} == {"vamba-engine-0"}
    assert [kept(here, key) for key in keys] == [undisturbed] * 8
