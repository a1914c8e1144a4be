"""A kept stream survives what ends or spoils it: at most the chunk in work is lost, and what goes on is bit-identical.

Killed at every commit, writes torn at every 512th byte, a full disk, flipped bits: see streams.py, whose stream of
twenty chunks is watched without interruption beside. All of it also where what is kept is encrypted.
"""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.engine import Engine
from pipeline.keeping import kept as keeping
from pipeline.keeping.cipher import Cipher, is_encrypted
from pipeline.keeping.found import find, segments
from pipeline.keeping.kept import KeptStream
from pipeline.keeping.packing import newer
from pipeline.keeping.segment import Segment
from pipeline.keeping.taking import place_of
from pipeline.stream import UserError
from tests.keeping.streams import CHUNKS, ROOM, SECRET, SOME, about, chunks, digest, keep, states, tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny()


@pytest.fixture(scope="module")
def whole(engine) -> list[str]:
    """Digests of the stream that nothing befell: before the first chunk, and after each."""
    return [digest(engine, engine.start()), *(digest(engine, state) for *_, state in states(engine))]


@pytest.fixture(scope="module")
def dead(tmp_path_factory) -> Path:
    """Folders of streams whose processes were ended."""
    root = tmp_path_factory.mktemp("dead")
    subprocess.run([sys.executable, "-m", "tests.keeping.streams", root], check=True, cwd=ROOT, timeout=500)
    return root


def gone_on(folder: Path, engine: Engine, whole: list[str]) -> int:
    """The chunk after which the stream goes on; its state, and that at the end, are those of the whole one."""
    kept = KeptStream.open(folder, SECRET)
    try:
        resumed = kept.resume(engine.model)
        number = resumed.cut.number if resumed.cut else -1
        assert digest(engine, resumed.state) == whole[number + 1]
        assert resumed.position == sum(len(chunk.frames) for chunk in chunks()[: number + 1])
        state = resumed.state
        for chunk in chunks()[number + 1 :]:
            state = engine.watch(chunk, state)
        assert digest(engine, state) == whole[-1]
        return number
    finally:
        kept.close()


KILLED = [(chunk, "") for chunk in range(CHUNKS)] + [(chunk, SECRET) for chunk in SOME]
killed = pytest.mark.parametrize(("chunk", "secret"), KILLED, ids=[f"{n}-{'encrypted' * bool(s)}" for n, s in KILLED])


@killed
def test_killed_within_a_transaction_only_that_chunk_is_lost(chunk, secret, dead, engine, whole) -> None:
    folder = dead / f"kill_in-{chunk}-{secret}"
    assert is_encrypted(folder) == bool(secret) and gone_on(folder, engine, whole) == chunk - 1


@killed
def test_killed_after_a_transaction_nothing_is_lost(chunk, secret, dead, engine, whole) -> None:
    assert gone_on(dead / f"kill_after-{chunk}-{secret}", engine, whole) == chunk


@pytest.mark.parametrize("room", ROOM)
def test_a_full_disk_stops_keeping_in_a_sentence_and_watching_goes_on(room, dead, engine, whole) -> None:
    """The process watched to the end; what was kept until the disk was full is whole."""
    folder = dead / f"full-{room}"
    assert "watching goes on" in (folder / "error").read_text()
    written = int((folder / "written").read_text())
    assert written < CHUNKS and (written > 0) == (room > 60_000)
    if written:
        assert gone_on(folder, engine, whole) == written - 1
    else:
        with pytest.raises(UserError, match=r"can(not)? go on"):
            KeptStream.open(folder)


@pytest.mark.parametrize("pages", [4, 6, 9])
def test_a_disk_that_is_full_for_sqlite_is_called_so(pages, tmp_path, engine, whole, monkeypatch) -> None:
    create = Segment.create.__func__

    def small(cls, path: Path, cipher: None) -> Segment:
        segment = create(cls, path)
        segment._db.execute(f"PRAGMA max_page_count = {pages}")
        return segment

    monkeypatch.setattr(Segment, "create", classmethod(small))
    keeper = keep(tmp_path / "stream", engine)
    keeper.close()
    assert keeper.error.startswith("The disk is full, so keeping stopped at 0:")
    assert gone_on(tmp_path / "stream", engine, whole) == keeper.written - 1 < CHUNKS - 1


@pytest.fixture(params=["", SECRET], ids=["plain", "encrypted"])
def torn(request, tmp_path, engine) -> tuple[Path, int]:
    """A stream as a process leaves it that ends without a word, and where in its log the last chunk begins."""
    kept, before = KeptStream.create(tmp_path / "live", about(engine), request.param), 0
    for number, (frames, position, state) in enumerate(states(engine)):
        before = log_of(kept.folder).stat().st_size if number else 0
        packed = engine.model.pack(state)
        kept.add(keeping.Cut(number, frames, position, state.seen_until), packed, newer(packed, kept.ends))
    shutil.copytree(kept.folder, tmp_path / "dead")
    kept.close()
    return tmp_path / "dead", before


def log_of(folder: Path) -> Path:
    return folder / "0000.sqlite-wal"


def spoilt(folder: Path, file: str, spoil) -> Path:
    """A copy of the folder whose file's bytes went through `spoil`."""
    copy = folder.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    (copy / file).write_bytes(spoil((copy / file).read_bytes()))
    return copy


def resumed_at(folder: Path, engine: Engine, whole: list[str]) -> int | None:
    """The chunk after which it goes on, rightly; None: it was refused in a sentence."""
    kept = None
    try:
        kept = KeptStream.open(folder, SECRET)
        resumed = kept.resume(engine.model)
    except UserError as error:
        assert "cannot go on" in str(error) or "no kept stream" in str(error)
        return None
    finally:
        if kept:
            kept.close()
    number = resumed.cut.number if resumed.cut else -1
    assert digest(engine, resumed.state) == whole[number + 1]
    return number


def test_a_last_write_torn_anywhere_costs_that_chunk_alone(torn, engine, whole) -> None:
    """At every 512th byte of it, of an encrypted one at every eighth of those. The log before it is read, too, torn at
    some of its bytes."""
    folder, before = torn
    size = log_of(folder).stat().st_size
    assert size - before > 10_000
    step = 512 if not is_encrypted(folder) else 8 * 512
    for end in [*range(before, size, step), size]:
        at = resumed_at(spoilt(folder, log_of(folder).name, lambda data, end=end: data[:end]), engine, whole)
        assert at == (CHUNKS - 1 if end == size else CHUNKS - 2), end
    for end in range(0, before, before // (12_288 // step) // 512 * 512):
        at = resumed_at(spoilt(folder, log_of(folder).name, lambda data, end=end: data[:end]), engine, whole)
        assert at is None or at < CHUNKS - 1


@pytest.fixture(params=["", SECRET], ids=["plain", "encrypted"])
def sealed(request, tmp_path, engine, monkeypatch) -> Path:
    """A stream of several sealed segments."""
    monkeypatch.setattr(keeping, "SEGMENT_S", 12.0)
    keep(tmp_path / "sealed", engine, request.param).close()
    assert len(segments(tmp_path / "sealed")) > 3
    return place_of(tmp_path / "sealed")


def test_a_segment_torn_anywhere_is_refused_or_goes_on_rightly(sealed, engine, whole) -> None:
    for file in sorted(sealed.glob("*.sqlite")):
        size = file.stat().st_size
        for end in range(0, size, size // 12 // 512 * 512):
            resumed_at(spoilt(sealed, file.name, lambda data, end=end: data[:end]), engine, whole)


def test_a_flipped_bit_is_noticed_wherever_it_is(sealed, engine, whole) -> None:
    """What goes on is never wrong, and something always goes on, but where the stream says who may."""
    rng, found = np.random.default_rng(5), []
    for file in [*sorted(sealed.glob("*.sqlite")), *sealed.glob("key")]:
        for place in rng.integers(0, file.stat().st_size, 8 if is_encrypted(sealed) else 24):
            flip = lambda data, at=int(place): data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]  # noqa: E731
            found.append(resumed_at(spoilt(sealed, file.name, flip), engine, whole))
    assert found.count(None) < len(found) / 10 and CHUNKS - 1 in found and any(n is not None and n < 9 for n in found)


def test_a_damaged_newest_state_costs_one_chunk_and_is_told(sealed, engine, whole) -> None:
    newest = sorted(sealed.glob("*.sqlite"))[-1]
    with sqlite3.connect(newest) as db:
        db.execute(
            "UPDATE record SET body = zeroblob(length(body)) WHERE kind = 'state' AND number = ?", [(CHUNKS - 1) % 2]
        )
    db.close()
    assert resumed_at(spoilt(sealed, newest.name, lambda data: data), engine, whole) == CHUNKS - 2


def test_a_damaged_chunk_takes_what_came_after_it_along_and_the_rest_is_told(sealed, engine, whole) -> None:
    second = sorted(sealed.glob("*.sqlite"))[1]
    places = find(sealed, Cipher.of(sealed, SECRET)).places
    first = len(places) - len([path for path in places if path >= second])
    with sqlite3.connect(second) as db:
        db.execute("UPDATE record SET about = about || ' ' WHERE kind = 'chunk' AND number = ?", [first])
    db.close()
    kept = KeptStream.open(sealed, SECRET)
    resumed = kept.resume(engine.model)
    kept.close()
    assert resumed.cut.number == first - 1 and "damaged, so the stream goes on from there" in resumed.note
    assert gone_on(sealed, engine, whole) == first - 1
