"""Streams whose engine is lost: kept ones go on elsewhere to the same state, others are said to be lost; nobody's is
mixed up. In one process; tests/cluster/test_replicas.py does the same to real ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from app.cluster.house import House
from app.cluster.sessions import GONE, FarSessions
from app.cluster.table import Where
from app.live import watching
from app.live.session import LiveSession
from app.live.shelf import name_of
from app.live.view import Phase
from pipeline import UserError
from tests.cluster.near import Near, near
from tests.keeping.streams import digest, slow
from tests.live.kept import CLIP, ended, newest, quick, until, upload

__all__ = ["quick", "upload"]  # fixtures


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


class Crew:
    """Says which engines are to stay; none is started or ended here."""

    def __init__(self, wires: list[Near]) -> None:
        self.wires, self.wanted = wires, len(wires)

    def follow(self) -> None: ...

    def is_wanted(self, name: str) -> bool:
        return int(name.rpartition("-")[2]) < self.wanted

    def dismiss(self, name: str) -> None:
        self.wires[:] = [one for one in self.wires if one.name != name]


class Served:
    def __init__(self, store: Path, engines: int, seconds: float, places: int = 4) -> None:
        self.wires = near(store, *[lambda: slow(seconds)] * engines, places=places)
        self.all, self.crew = list(self.wires), Crew(self.wires)
        self.front = self.another_front(store)
        self.house = House(self.front, self.crew)

    def another_front(self, store: Path) -> FarSessions:
        return FarSessions(Where(lambda: list(self.wires), 2.0), store, 5.0)

    def engine_of(self, key: str) -> Near:
        return next(one for one in self.wires if key in one.streams.sessions._by_key)

    def session(self, key: str) -> LiveSession:
        return self.engine_of(key).streams.sessions._by_key[key].session

    def close(self) -> None:
        self.house.close()
        self.front.where.close()
        for one in self.all:
            one.streams.sessions.shut()


@pytest.fixture
def served(tmp_path) -> Callable[..., Served]:
    """served(engines, seconds) -> a front over so many engines; seconds: that each takes over two pictures."""
    opened = []

    def make(engines: int = 2, seconds: float = 0.05, places: int = 4) -> Served:
        opened.append(Served(tmp_path / "store", engines, seconds, places))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def watched(there: Served, upload: Path, frames: int = 6, keep: bool = True) -> str:
    """The key of a stream that is so far, and written so far."""
    key, session = there.front.ensure(None)
    if keep:
        session.keep(True)
    session.open_file(upload, name="clip.mp4")
    until(lambda: session.view().frames >= frames)
    if keep:
        until(lambda: there.session(key).switch.keep.keeper.written)
    return key


def finished(there: Served, key: str) -> str:
    until(lambda: there.front.get(key).view().phase is Phase.ENDED)
    session = there.session(key)
    return digest(session.engine, newest(session))


def test_a_killed_engines_stream_goes_on_elsewhere_to_the_same_state(served, upload, undisturbed) -> None:
    there = served()
    key = watched(there, upload)
    lost = there.engine_of(key)
    lost.cut = True
    lost.killed()
    assert there.front.get(key).view().phase is Phase.WATCHING
    assert there.engine_of(key) is not lost
    assert finished(there, key) == undisturbed


def test_a_stream_goes_on_at_its_engines_next_process_where_there_is_no_other(served, upload, undisturbed) -> None:
    there = served(engines=1)
    key = watched(there, upload)
    there.wires[0].killed()
    assert finished(there, key) == undisturbed


def test_a_question_whose_answer_was_cut_off_is_asked_again(served, upload) -> None:
    there = served()
    key = watched(there, upload)
    session = there.front.get(key)
    first = session.ask("What is it?")
    until(lambda: session.view().turn(first).over)
    there.session(key).keep_words()
    until(lambda: there.session(key).switch.keep.keeper.wait())
    lost, slow_one = there.engine_of(key), there.session(key)
    slow_one.conversations[0].put = lambda answering: slow_one.conversations[0]._show(answering.turn)  # never answered
    second = session.ask("And now?")
    lost.cut = True
    lost.killed()
    until(lambda: (turn := session.view().turn(second)) is not None and turn.over)
    view = session.view()
    assert [turn.question for turn in view.conversations[0]] == ["What is it?", "And now?"]
    assert view.turn(first).answer.text and view.turn(second).answer.text


def test_a_stream_that_was_not_kept_is_said_to_be_lost_and_its_key_starts_anew(served, upload) -> None:
    there = served()
    key = watched(there, upload, keep=False)
    lost = there.engine_of(key)
    lost.killed()
    view = there.front.get(key).view()
    assert view.error == GONE and view.told().kind == "error"
    with pytest.raises(UserError, match="was not kept"):
        there.front.get(key).ask("What?")
    again, session = there.front.ensure(key)
    session.open_file(CLIP, "Example")
    assert again == key and there.front.get(key).view().phase is Phase.WATCHING


def test_an_engine_that_only_does_not_answer_loses_nothing_that_is_not_kept(served, upload) -> None:
    there = served()
    key = watched(there, upload, keep=False)
    stalled = there.engine_of(key)
    stalled.cut = True
    assert "does not answer" in there.front.get(key).view().error
    stalled.cut = False
    until(lambda: there.front.get(key).view().phase is Phase.ENDED and not there.front.get(key).view().error)


def test_a_stalled_engine_loses_what_is_kept_and_writes_nothing_more_of_it(served, upload, undisturbed) -> None:
    there = served()
    key = watched(there, upload)
    stalled = there.engine_of(key)
    stalled.cut = True  # it works on, and does not know
    until(lambda: there.front.get(key) and there.front.where.at(key)[0].name != stalled.name)
    stalled.cut = False
    until(lambda: name_of(key) not in stalled.streams.standing().names)
    assert there.front.where.at(key)[0].name != stalled.name
    assert finished(there, key) == undisturbed


def test_growing_moves_no_stream(served, upload, tmp_path) -> None:
    there = served(engines=1)
    keys = [watched(there, upload, frames=1) for _ in range(4)]
    [new] = near(tmp_path / "store", lambda: slow(0.05))
    new.name = "engine-1"
    there.wires.append(new)
    there.all.append(new)
    there.crew.wanted = 2
    newcomer, _ = there.front.ensure(None)
    for _ in range(3):
        there.house.round()
        assert all(there.front.get(key) for key in keys)
    assert all(there.engine_of(key) is there.wires[0] for key in keys) and there.engine_of(newcomer) is new


def test_shrinking_moves_what_is_kept_and_waits_for_the_rest(served, upload, undisturbed) -> None:
    there = served()
    stays, goes = there.wires
    staying = watched(there, upload, frames=1)
    loose = watched(there, upload, frames=1, keep=False)
    moving = [watched(there, upload, frames=1) for _ in range(2)][1]
    assert [there.engine_of(key) for key in (staying, loose, moving)] == [stays, goes, goes]
    there.crew.wanted = 1
    until(lambda: there.front.get(moving) and there.engine_of(moving) is stays)
    assert goes in there.wires and there.engine_of(loose) is goes, "somebody's stream is there"
    there.front.close(loose)
    until(lambda: goes not in there.wires)
    assert [finished(there, key) for key in (staying, moving)] == [undisturbed] * 2


def test_a_front_that_starts_again_finds_every_stream(served, upload, tmp_path) -> None:
    there = served()
    keys = [watched(there, upload, frames=1, keep=False) for _ in range(3)]
    new = there.another_front(tmp_path / "store")
    for key in keys:
        assert new.get(key).view().file_name == "clip.mp4" and new.where.at(key)[0].name == there.engine_of(key).name
    assert new.get("x" * 22) is None


def test_a_kept_file_whose_page_has_gone_goes_on_by_itself(served, upload, undisturbed, monkeypatch) -> None:
    monkeypatch.setattr("app.cluster.house.ALONE_S", 0.0)
    there = served()
    key = watched(there, upload)
    there.front.where.forget(key)
    lost = there.engine_of(key)
    lost.killed()
    until(lambda: any(one.streams.sessions.names for one in there.wires))
    assert finished(there, key) == undisturbed


def test_a_full_store_keeps_nothing_more_and_watching_goes_on(served, upload) -> None:
    there = served()
    for one in there.wires:
        one.streams.sessions.shelf.ceiling = 10
    _, session = there.front.ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().phase is Phase.ENDED)
    assert "no room to keep another stream" in session.view().kept.told and not session.view().keeping


def test_uploads_are_deleted_when_no_stream_shows_them(served, upload, monkeypatch) -> None:
    """The player's copy and the engine's are one file by two names; two visitors with the same file keep theirs."""
    monkeypatch.setattr("app.cluster.handing.HANDED_S", 0.0)
    monkeypatch.setattr("app.cluster.handing.UNUSED_S", 0.0)
    there = served(seconds=0.0)
    first, second = (watched(there, upload, frames=1, keep=False) for _ in range(2))
    assert there.engine_of(first) is not there.engine_of(second)
    folder = there.front.handing.folder

    def swept() -> None:
        for engine in there.front.where.engines:
            engine.stale()
        there.house._swept = -1e9
        there.house._sweep()

    swept()
    there.front.close(first)
    swept()
    assert upload.exists() and Path(there.front.get(second).view().upload).exists()
    there.front.close(second)
    swept()
    assert not upload.exists() and not [path for path in folder.rglob("*") if path.is_file()]


def test_nobody_reaches_anothers_stream(served, upload) -> None:
    there = served()
    keys = [watched(there, upload, frames=1) for _ in range(3)]
    for number, key in enumerate(keys):
        there.front.get(key).ask(f"Question {number}")
    there.wires[0].cut = True
    there.wires[0].killed()
    for number, key in enumerate(keys):
        until(lambda key=key: all(turn.over for turn in there.front.get(key).view().conversations[0]))
        assert [turn.question for turn in there.front.get(key).view().conversations[0]] == [f"Question {number}"]
