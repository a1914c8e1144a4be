"""One owner a stream: who takes it has all that was told of, and who lost it writes nothing more, whatever stalls or
ends either of them, and wherever.

Two owners in one process, at every step of each other's way; and two processes, one of them stopped or killed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pipeline.engine import Engine
from pipeline.keeping import taking
from pipeline.keeping.found import Cut, find, notes, segments
from pipeline.keeping.keeper import Keeper
from pipeline.keeping.kept import KeptStream
from pipeline.keeping.packing import newer
from pipeline.keeping.segment import Record, Segment
from pipeline.keeping.taking import HALF, TakenOver, place_of, promised, remove, take
from pipeline.stream import UserError
from tests.keeping.streams import CHUNKS, about, chunks, digest, states, tiny

DEEDS = ("open", "os.mkdir", "os.rmdir", "os.rename", "os.remove", "os.link", "os.listdir", "os.scandir", "fcntl.flock")
Deed = Callable[[], object]
_before: Callable[[str], None] | None = None


def _heard(event: str, _: object) -> None:
    if _before and event in DEEDS:
        _before(event)


sys.addaudithook(_heard)  # it cannot be taken off again


@contextmanager
def at_step(number: int, deed: Deed) -> Iterator[list[bool]]:
    """Does that before the so-manieth deed on the disk within. Gives whether it came to that."""
    global _before
    steps, done = [0], []

    def before(event: str) -> None:
        global _before
        if steps[0] == number:
            _before = None
            done.append(True)
            deed()
        steps[0] += 1

    _before = before
    try:
        yield done
    finally:
        _before = None


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny()


@pytest.fixture(scope="module")
def whole(engine) -> list[str]:
    return [digest(engine, state) for *_, state in states(engine)]


@pytest.fixture(scope="module")
def stream(tmp_path_factory) -> Path:
    """Of three segments, as a process leaves it that is killed: the newest has its log. Nobody watched it."""
    home = tmp_path_factory.mktemp("taking") / "live"
    kept = KeptStream.create(home, {"backend": "none"})
    for number in range(6):
        kept.note([Record("turn", number, {}, b"word" * 1000)])
        if number in (1, 3):
            kept.fork(home.with_name(f"fork-{number}"))  # which seals what is open
    (kept.folder / "video").write_bytes(b"a video")
    shutil.copytree(home, home.with_name("stream"))
    kept.close()
    left = segments(home.with_name("stream"))
    assert len(left) == 3 and left[-1].with_name(left[-1].name + "-wal").exists()
    return home.with_name("stream")


@pytest.fixture(params=["of an owner", "of nobody yet"])
def home(request, stream, tmp_path) -> Path:
    """The same, in an owner's place or in the folder itself, as older versions kept it."""
    return shutil.copytree(stream if request.param == "of an owner" else place_of(stream), tmp_path / "stream")


def contents(home: Path) -> dict[str, bytes]:
    """Every file of a stream, by its path, but for what SQLite maps."""
    files = [path for path in home.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    return {str(path.relative_to(home)): path.read_bytes() for path in files}


def is_whole(home: Path) -> bool:
    """All of it is there, and nothing but its owner's place."""
    kept = KeptStream.open(home)
    try:
        turns = {number: record.body for number, record in kept.notes("turn").items()}
        alone = [*home.iterdir()] == [kept.folder.parent] and [*kept.folder.parent.iterdir()] == [kept.folder]
        video = (kept.folder / "video").read_bytes()
        return alone and video == b"a video" and turns == dict.fromkeys(range(6), b"word" * 1000)
    finally:
        kept.close()


# --- two owners in one process ---------------------------------------------------------------------------------------


def test_who_takes_it_goes_on_and_who_lost_it_writes_nothing_more(tmp_path, engine, whole) -> None:
    keeper, found = Keeper(engine, KeptStream.create(tmp_path / "stream", about(engine))), list(states(engine))
    for frames, position, state in found[:8]:
        keeper.watched(frames, position, state)
    assert keeper.wait()
    with pytest.raises(UserError, match="watched elsewhere"):
        KeptStream.open(tmp_path / "stream")
    assert keeper.wait() and not keeper.kept.lost, "who does not insist changes nothing"
    winner = KeptStream.open(tmp_path / "stream", by_force=True)
    resumed = winner.resume(engine.model)
    assert digest(engine, resumed.state) == whole[7]
    was = contents(tmp_path / "stream")
    keeper.watched(*found[8])
    assert not keeper.wait() and keeper.kept.lost
    assert keeper.error == str(TakenOver()) and "taken over elsewhere, so nothing more is watched" in keeper.error
    for deed in (lambda: keeper.kept.note([Record("turn", 1, {})]), lambda: keeper.kept.fork(tmp_path / "fork")):
        with pytest.raises(TakenOver):
            deed()
    keeper.close()
    assert contents(tmp_path / "stream") == was
    again = Keeper(engine, winner)
    for one in found[8:]:
        again.watched(*one)
    again.close()
    assert not again.error and digest(engine, find(tmp_path / "stream").newest(engine.model).state) == whole[-1]


def test_wherever_another_one_takes_it_meanwhile_exactly_one_has_it_all(home, tmp_path) -> None:
    """The second one from beginning to end between any two steps of the first."""
    number, done, taken = 0, True, []
    while done:
        copy = shutil.copytree(home, tmp_path / f"copy-{number}")
        other = at_step(number, lambda copy=copy: taken.append(take(copy, by_force=True)))
        with other as done, suppress(TakenOver):
            taken.append(take(copy, by_force=True))
        assert [lease.lost for lease in taken].count(False) == 1, number
        winner = next(lease for lease in taken if not lease.lost)
        assert place_of(copy) == winner.place
        for lease in taken:
            lease.close()
        assert is_whole(copy), number
        shutil.rmtree(copy)
        taken.clear()
        number += 1
    assert number > 20


def test_what_the_owner_told_of_while_it_was_taken_is_not_lost(stream, tmp_path) -> None:
    """Written between any two steps of the taker: it is refused, or the taker has it."""
    number, done, told = 0, [True], []
    while done:
        copy = shutil.copytree(stream, tmp_path / f"copy-{number}")
        owner = KeptStream.open(copy)

        def write(owner: KeptStream = owner, number: int = number) -> None:
            with suppress(TakenOver):
                owner.note([Record("turn", 7, {"said": True})])
                told.append(number)

        with at_step(number, write) as done:
            lease = take(copy, by_force=True)
        assert owner.lost and not lease.lost
        assert (7 in notes(copy, "turn")) >= (number in told), number
        owner.close()
        lease.close()
        shutil.rmtree(copy)
        number += 1
    assert 0 < len(told) < number - 5, "both befell"


def test_wherever_it_is_deleted_meanwhile_nobody_has_it_or_the_taker_all(home, tmp_path) -> None:
    number, done = 0, [True]
    while done:
        copy = shutil.copytree(home, tmp_path / f"copy-{number}")
        with at_step(number, lambda copy=copy: remove(copy)) as done:
            try:
                lease = take(copy, by_force=True)
            except TakenOver:
                lease = None
        if segments(copy):
            assert lease and not lease.lost and not done
            lease.close()
            assert is_whole(copy), number
        elif lease:
            lease.close()
        remove(copy)
        assert not copy.exists()
        number += 1


def test_whoever_lost_it_deletes_nothing(home) -> None:
    late = take(home)
    winner = take(home, by_force=True)
    was = contents(home)
    with pytest.raises(TakenOver):
        remove(home, late)
    assert contents(home) == was and not winner.lost
    remove(home, winner)
    assert not home.exists() and winner.lost


def test_a_stream_that_begins_anew_is_not_its_old_owners(tmp_path, engine) -> None:
    """Even where it is the first owner again, as the other one was."""
    home = tmp_path / "stream"
    old = KeptStream.create(home, about(engine))
    old.note()
    remove(home)
    new = KeptStream.create(home, about(engine))
    new.note()
    was = contents(home)
    assert old.lost and not new.lost and old.lease.epoch == new.lease.epoch
    with pytest.raises(TakenOver):
        old.note([Record("turn", 1, {})])
    old.close()
    assert contents(home) == was
    new.close()


def test_what_an_older_version_writes_is_left_to_it(stream, tmp_path) -> None:
    """It knows no claims, so it could not be told."""
    home = shutil.copytree(place_of(stream), tmp_path / "stream")
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="watched elsewhere"):
            take(home, by_force=True)
    take(home).close()
    assert not (home / "0000.sqlite").exists() and segments(home)


def test_a_folder_with_files_of_others_keeps_them(tmp_path, engine) -> None:
    (tmp_path / "stream").mkdir()
    for name in ("video", "key", "letter"):
        (tmp_path / "stream" / name).write_text("mine")
    KeptStream.create(tmp_path / "stream", about(engine)).close()
    assert all((tmp_path / "stream" / name).read_text() == "mine" for name in ("video", "key", "letter"))


def test_taking_is_no_writing(stream, tmp_path) -> None:
    """What is kept for a week after it was last written is not kept for longer by restarts."""
    home = shutil.copytree(stream, tmp_path / "stream")
    for path in segments(home):
        os.utime(path, (1e9, 1e9))
    take(home).close()
    assert {path.stat().st_mtime for path in segments(home)} == {1e9}


def test_what_an_owner_may_use_is_known_as_long_as_it_lives(home) -> None:
    assert promised(home) is None
    lease = take(home)
    lease.promise(12_345)
    assert promised(home) == 12_345
    lease.close()
    assert promised(home) is None


def test_of_many_takers_at_once_one_has_it(home) -> None:
    ready, taken = threading.Barrier(6), []

    def taker(by_force: bool) -> None:
        ready.wait()
        with suppress(UserError):
            taken.append(take(home, by_force))

    threads = [threading.Thread(target=taker, args=[n % 2 == 0]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [lease.lost for lease in taken].count(False) == 1
    for lease in taken:
        lease.close()
    assert is_whole(home)


# --- two processes ---------------------------------------------------------------------------------------------------


def in_child(deed: Deed) -> int:
    """The pid of a process that does that; its exit status: 0, or 7 where the stream was taken over."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        deed()
        status = 0
    except TakenOver:
        status = 7
    finally:
        os._exit(status)


def test_killed_at_any_step_of_taking_it_can_be_taken_again(home, tmp_path) -> None:
    number, killed = 0, True
    while killed:
        copy = shutil.copytree(home, tmp_path / f"copy-{number}")

        def doomed(copy: Path = copy, number: int = number) -> None:
            with at_step(number, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                take(copy)

        killed = os.WIFSIGNALED(os.waitpid(in_child(doomed), 0)[1])
        assert is_whole(copy), number
        shutil.rmtree(copy)
        number += 1
    assert number > 20


@pytest.mark.parametrize("moment", ["in the transaction", "after it", "as it is sealed", "as it takes the stream"])
def test_stopped_in_the_middle_of_a_commit_it_loses_the_stream_and_its_commit(
    moment, tmp_path, engine, whole, monkeypatch
) -> None:
    """It wakes when the winner has written; what is there is what the winner wrote, byte by byte."""
    home, found, carry = tmp_path / "stream", list(states(engine)), taking._carry

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def owner() -> None:
        kept = KeptStream.create(home, about(engine))
        for number, (frames, position, state) in enumerate(found[:5]):
            if number == 4:
                stops_in(moment, stop)
            packed = engine.model.pack(state)
            kept.add(Cut(number, frames, position, state.seen_until), packed, newer(packed, kept.ends))
        if moment == "as it is sealed":
            kept.fork(tmp_path / "fork")
        if moment == "as it takes the stream":
            monkeypatch.setattr("pipeline.keeping.taking._carry", lambda *places: (stop(), carry(*places)))
            take(home, by_force=True)

    child = in_child(owner)
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
    winner = KeptStream.open(home, by_force=True)
    resumed = winner.resume(engine.model)
    assert resumed.cut and resumed.cut.number == (3 if moment == "in the transaction" else 4)
    state = resumed.state
    for number, chunk in enumerate(chunks()[resumed.cut.number + 1 :], resumed.cut.number + 1):
        state = engine.watch(chunk, state)
        packed = engine.model.pack(state)
        cut = Cut(number, len(chunk.frames), state.frames, state.seen_until)
        winner.add(cut, packed, newer(packed, winner.ends))
    winner.close()
    was = contents(home)
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert contents(home) == was
    assert digest(engine, find(home).newest(engine.model).state) == whole[-1]
    assert len(find(home).cuts) == CHUNKS


def stops_in(moment: str, stop: Callable[[], None]) -> None:
    """Stops the process at that moment, once."""
    put, seal = Segment.put, Segment.seal

    def stopping_put(self: Segment, records: list[Record]) -> None:
        def until_the_last() -> Iterator[Record]:
            yield from records
            stop()

        put(self, until_the_last() if moment == "in the transaction" else records)
        if moment == "after it":
            stop()

    def stopping_seal(self: Segment) -> None:
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        stop()
        seal(self)

    if moment in ("in the transaction", "after it"):
        Segment.put = stopping_put  # type: ignore[method-assign]
    if moment == "as it is sealed":
        Segment.seal = stopping_seal  # type: ignore[method-assign]


def test_an_owner_that_wakes_in_the_middle_of_a_copy_spoils_nothing(stream, tmp_path, monkeypatch) -> None:
    """It writes, and folds its log in, while the taker copies the segment that is open."""
    home = shutil.copytree(stream, tmp_path / "stream")
    owner, copy2, awake = KeptStream.open(home), shutil.copy2, []
    owner.note([Record("turn", 7, {}, b"word" * 50_000)])
    newest = segments(home)[-1]

    def slowly(source: Path, there: Path) -> None:
        copy2(source, there)
        if not source.name.startswith(newest.name):
            return
        awake.append(1)
        if len(awake) == 6:
            owner.close()
        elif len(awake) < 6:
            with pytest.raises(TakenOver):
                owner.note([Record("turn", 7 + len(awake), {}, b"more" * 50_000)])

    monkeypatch.setattr("pipeline.keeping.taking.shutil.copy2", slowly)
    kept = KeptStream.open(home, by_force=True)
    assert len(awake) > 6 and not kept.found.broken
    assert kept.notes("turn")[7].body == b"word" * 50_000 and {*range(6)} <= {*kept.notes("turn")}
    kept.close()
    assert not [*home.rglob(HALF)]


def test_a_lost_lease_stays_lost(home) -> None:
    leases = [take(home, by_force=True) for _ in range(4)]
    began = time.process_time()
    assert [lease.lost for lease in leases] == [True, True, True, False]
    for _ in range(1000):
        leases[-1].check()
    assert time.process_time() - began < 0.5, "it is asked at every commit and every word"
