"""The shelf of kept streams: names give nothing away, room is reserved before it is taken, nothing goes too soon."""

import os
import time
from pathlib import Path

import pytest

from app.live import shelf as shelves
from app.live.shelf import DAYS, LARGEST, Shelf, name_of
from pipeline import KeptStream, Record, UserError

KEYS = ["first key", "second key", "third key"]


def kept(shelf: Shelf, key: str, video: int = 0) -> KeptStream:
    stream = shelf.create(name_of(key), {"backend": "cpu"}, video)
    stream.note([Record("turn", 1, {}, b"word" * 100)])
    return stream


def test_a_name_says_nothing_of_its_key_and_is_always_the_same() -> None:
    names = [name_of(key) for key in KEYS]
    assert len(set(names)) == 3 and names == [name_of(key) for key in KEYS]
    assert all(shelves.NAME.fullmatch(name) and "key" not in name for name in names)


def test_room_is_reserved_before_a_stream_is_taken(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shelves.shutil, "disk_usage", lambda _: Disk(10**12, 0))
    shelf = Shelf(tmp_path / "shelf", ceiling=2 * LARGEST + 1_000_000)
    first, second = kept(shelf, "first", video=200_000), kept(shelf, "second")
    with pytest.raises(UserError, match="no room to keep another stream"):
        kept(shelf, "third")
    first.close()
    shelf.release(name_of("first"))  # it took less than it might have
    third = kept(shelf, "third")
    for stream in (second, third):
        stream.close()
    assert len(shelf.names()) == 3  # and nothing was deleted to make room


def test_a_disk_that_is_nearly_full_takes_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shelves.shutil, "disk_usage", lambda _: Disk(10**12, 9 * 10**11 - LARGEST // 2))
    with pytest.raises(UserError, match="no room"):
        kept(Shelf(tmp_path / "shelf", ceiling=10**13), "first")


class Disk:
    def __init__(self, total: int, used: int) -> None:
        self.total, self.used, self.free = total, used, total - used


def test_what_is_over_is_deleted_and_nothing_else(tmp_path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    for key in KEYS:
        kept(shelf, key).close()
        shelf.release(name_of(key))
    open_again = shelf.open(name_of(KEYS[2]))
    old = time.time() - DAYS * 86_400 - 60
    for key in KEYS[1:]:
        folder = tmp_path / "shelf" / name_of(key)
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (old, old))
    assert shelf.sweep() == 1
    assert set(shelf.names()) == {name_of(KEYS[0]), name_of(KEYS[2])}  # the third is being watched
    assert shelf.until(name_of(KEYS[0])) == pytest.approx(time.time() + DAYS * 86_400, abs=60)
    open_again.close()


def test_delete_leaves_nothing(tmp_path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    stream = kept(shelf, "first")
    stream.close()
    shelf.delete(name_of("first"))
    shelf.delete(name_of("first"))
    assert list((tmp_path / "shelf").iterdir()) == [] and not shelf.has(name_of("first"))


@pytest.mark.parametrize("name", ["", "..", "../x", "a" * 32 + "/..", ".gone-x", "A" * 32])
def test_no_name_leads_out_of_the_shelf(name, tmp_path) -> None:
    shelf = Shelf(tmp_path / "shelf")
    (tmp_path / "x").mkdir()
    assert not shelf.has(name)
    shelf.delete(name)
    assert (tmp_path / "x").is_dir() and (tmp_path / "shelf").is_dir()


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Shelf(Path(tmp_path / "file" / "shelf"))
