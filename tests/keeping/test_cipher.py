"""What is encrypted opens by its visitor's key alone, as what it is and where it is; nothing of it can be read."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline.keeping import cipher as encryption
from pipeline.keeping.cipher import COPY, NONCE, PIECE, TAG, Cipher
from pipeline.keeping.found import find
from pipeline.keeping.kept import KeptStream, decrypted
from pipeline.keeping.segment import Damaged, Record, Segment
from pipeline.stream import UserError
from tests.keeping.streams import SECRET, about, digest, keep, states, tiny

WORDS, FACE = "what nobody else should read", b"a JPEG of somebody's face"
STEP = NONCE + PIECE + TAG


@pytest.fixture
def stream(tmp_path) -> KeptStream:
    """With a file, a picture and words."""
    engine = tiny()
    (tmp_path / "clip").write_bytes(FACE * 100_000)
    kept = KeptStream.create(tmp_path / "stream", about(engine) | {"name": "holiday.mp4"}, SECRET)
    kept.take_video(tmp_path / "clip")
    kept.note([Record("turn", 1, {"question": WORDS}), Record("frame", 0, {"time": 0.0}, FACE)])
    return kept


def test_nothing_of_it_can_be_read(stream) -> None:
    """Neither in the segment nor in its log, and the visitor's key is nowhere."""
    for closed in (False, True):
        if closed:
            stream.close()
        written = b"".join(path.read_bytes() for path in stream.folder.iterdir())
        assert len(written) > len(FACE) * 100_000
        for secret in (WORDS.encode(), FACE, b"holiday", b"tiny", SECRET.encode()):
            assert secret not in written
    with closing(KeptStream.open(stream.folder, SECRET)) as again:
        assert again.notes("turn")[1].about["question"] == WORDS and again.notes("frame")[0].body == FACE
        again.give_video(again.reels[0], stream.folder.with_name("given"))
    assert stream.folder.with_name("given").read_bytes() == FACE * 100_000


@pytest.mark.parametrize("secret", ["", "another key"])
def test_another_key_opens_nothing(secret, stream) -> None:
    stream.close()
    with pytest.raises(UserError, match="encrypted with the key of the page"):
        KeptStream.open(stream.folder, secret)
    (stream.folder / "key").unlink()
    with pytest.raises(UserError, match="encrypted with the key of the page"):
        KeptStream.open(stream.folder, SECRET)


def test_without_the_library_it_is_said(stream, monkeypatch) -> None:
    stream.close()
    monkeypatch.setattr(encryption, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install requirements-encryption\.txt"):
        KeptStream.open(stream.folder, SECRET)
    assert not encryption.can_encrypt()


def swapped(path: Path, other: Path, wanted: tuple[str, int], found: tuple[str, int]) -> None:
    """A record of one segment in the place of one in another, its digest being right, as a forger's would be."""
    with closing(sqlite3.connect(other)) as db:
        ((body,),) = db.execute("SELECT body FROM record WHERE kind = ? AND number = ?", found)
    from pipeline.keeping.segment import _digest

    with closing(sqlite3.connect(path)) as db:
        row = *wanted, "", body
        db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?)", (*row, _digest(*row)))
        db.commit()


@pytest.mark.parametrize("found", [("turn", 2), ("turn", 1), ("frame", 1)], ids=["number", "segment", "kind"])
def test_a_record_opens_at_its_own_place_alone(found, stream, tmp_path) -> None:
    stream.note([Record("turn", 2, {}), Record("frame", 1, {})])
    stream.close()
    path, other = stream.folder / "0000.sqlite", stream.folder / "0000.sqlite"
    if found == ("turn", 1):
        other = shutil.copyfile(path, tmp_path / "0001.sqlite")
        path = other
    swapped(path, other, ("turn", 1), found)
    with (
        closing(Segment.open(path, stream.cipher)) as segment,
        pytest.raises(Damaged, match="no record"),
    ):
        segment.record("turn", 1)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:STEP],
        lambda data: data[:-1],
        lambda data: data[STEP : 2 * STEP] + data[:STEP] + data[2 * STEP :],
        lambda data: data + data[-100:],
        lambda data: data[: STEP + 5] + bytes([data[STEP + 5] ^ 1]) + data[STEP + 6 :],
        lambda data: b"",
    ],
    ids=["cut at a piece", "cut", "pieces swapped", "longer", "flipped", "empty"],
)
def test_a_file_that_is_not_whole_is_refused(spoil: Callable[[bytes], bytes], stream, tmp_path) -> None:
    video = stream.folder / "video"
    assert video.stat().st_size > 2 * STEP
    video.write_bytes(spoil(video.read_bytes()))
    with pytest.raises(UserError, match="damaged or incomplete"):
        stream.give_video(stream.reels[0], tmp_path / "given")


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_a_file_of_any_size_comes_back(size, tmp_path) -> None:
    cipher, data = Cipher(bytes(32)), bytes(index % 251 for index in range(size))
    (tmp_path / "plain").write_bytes(data)
    cipher.encrypt_file(tmp_path / "plain", tmp_path / "video")
    cipher.decrypt_file(tmp_path / "video", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == data


def test_a_key_survives_the_loss_of_one_copy(tmp_path) -> None:
    cipher = Cipher.create(tmp_path, SECRET)
    sealed, key = cipher.encrypt(b"data", "here"), (tmp_path / "key").read_bytes()
    for copies in (bytes(COPY) + key[COPY:], key[:COPY], key[:COPY] + bytes(COPY)):
        (tmp_path / "key").write_bytes(copies)
        again = Cipher.of(tmp_path, SECRET)
        assert again is not None and again.decrypt(sealed, "here") == b"data"


def test_a_fork_opens_by_its_own_key(tmp_path) -> None:
    engine = tiny()
    keep(tmp_path / "stream", engine, SECRET).close()
    with closing(KeptStream.open(tmp_path / "stream", SECRET)) as stream:
        stream.fork(tmp_path / "fork", "of the fork")
    with pytest.raises(UserError, match="encrypted"):
        KeptStream.open(tmp_path / "fork", SECRET)
    *_, (_, _, last) = states(engine)
    with closing(KeptStream.open(tmp_path / "fork", "of the fork")) as fork:
        assert digest(engine, fork.resume(engine.model).state) == digest(engine, last)


def test_what_is_taken_along_can_be_read_by_anybody(tmp_path) -> None:
    engine = tiny()
    keep(tmp_path / "stream", engine, SECRET).close()
    (tmp_path / "plain").mkdir()
    assert decrypted(tmp_path / "stream", tmp_path / "plain", SECRET) == tmp_path / "plain"
    *_, (_, _, last) = states(engine)
    assert digest(engine, find(tmp_path / "plain").newest(engine.model).state) == digest(engine, last)
    assert decrypted(tmp_path / "plain", tmp_path, "") == tmp_path / "plain"
