"""Shelf: where a server keeps the streams whose visitors asked for it: names, room, and how long.

A stream's folder is named by a hash of its key, so whoever lists the disk cannot open a session with it. Room is
reserved before a stream is taken, and given back as it is deleted; what is still wanted is never deleted for others.
Several processes may share a shelf: each stream has one owner (pipeline/keeping/taking.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Collection, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from app.live.view import KeptView
from pipeline import KeptStream, Lease, UserError, archived, decrypted, is_encrypted, place_of, promised, remove

CEILING = 20_000_000_000  # bytes of all kept streams together, unless told otherwise
SHARE = 0.9  # of the disk that may be used
LARGEST = 1_000_000_000  # bytes a stream may grow to beside its video
DAYS = 7.0  # a stream is kept for so long after something was last written
NAME = re.compile(r"[0-9a-f]{32}")
PATIENCE_S = 2.0  # who reserves room waits for so long for another process that does
TAKEN = ".taken-"  # what is being taken along
MARK = "fork-of-"  # a file so called, and of what, lies in the folder of a fork


class Writer(Protocol):
    """Who writes a stream."""

    @property
    def name(self) -> str: ...

    @property
    def encrypted(self) -> bool: ...

    def fork(self, there: Path, secret: str = "") -> None: ...


class Shelf:
    """Any thread may call. folder: made where it is missing; UserError where it cannot be written."""

    def __init__(self, folder: Path, ceiling: int = CEILING, about: dict[str, Any] | None = None) -> None:
        """about: the model that watches, as `python -m pipeline resume` must know it."""
        self.folder, self.ceiling, self.about = folder, ceiling, about or {}
        self._reserved: dict[str, int] = {}  # of streams that are being written
        self._lock = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".written"
            probe.write_bytes(b"")
            probe.unlink()
            for half in folder.glob(TAKEN + "*"):
                shutil.rmtree(half, ignore_errors=True)
        except OSError as error:
            raise UserError(
                f"The folder for kept streams cannot be written ({error.strerror}), so nothing was started; name "
                "another one with --store."
            ) from None

    def create(self, name: str, about: dict[str, Any], video: int, secret: str = "") -> KeptStream:
        """A new stream in place of an older one of the same name. video: bytes of the file that comes with it. secret:
        the visitor's key, where it is to be encrypted.

        Raises UserError where there is no room for it, or where it is being watched elsewhere.
        """
        self.delete(name)
        with self._reserving():
            self._reserve(name, video + LARGEST)
            try:
                return self._promised(name, KeptStream.create(self.folder / name, self.about | about, secret))
            except OSError:
                self.release(name)
                raise UserError(
                    "The disk cannot be written, so this stream is not kept; watching goes on without."
                ) from None
            except UserError:
                self.release(name)
                raise

    def fork(self, keep: Writer, name: str, secret: str, video: int) -> None:
        """What somebody writes once more, under another name, for another key. It counts in full, and goes with what it
        comes from. video: bytes of a file that comes with it. Raises UserError where there is no room for it, or what
        is kept cannot be read."""
        with self._reserving():
            self._reserve(name, _bytes(self.folder / keep.name) + video + LARGEST)
        try:
            there = self.folder / name
            keep.fork(there, secret)
            for line in [MARK + keep.name, *(path.name for path in (self.folder / keep.name).glob(MARK + "*"))]:
                (there / line).touch()
        except BaseException as error:
            self.delete(name)
            if isinstance(error, OSError):
                raise UserError("The disk cannot be written, so the fork is not kept.") from None
            raise

    def taken(self, name: str, keep: Writer | None, secret: str) -> Generator[bytes, None, None]:
        """An archive of what is kept under a name, piece by piece, for anybody to read. keep: who writes it. Raises
        UserError at first."""
        there = self.folder / f"{TAKEN}{secrets.token_hex(8)}"  # links, which cost nothing
        plain = Path(tempfile.mkdtemp(prefix="vamba-live-"))  # where it is watched, too: of what is encrypted, copies
        try:
            if keep:
                keep.fork(there, secret)
            else:
                with closing(KeptStream.open(self.folder / name, secret)) as kept:
                    kept.fork(there, secret)
            yield from archived(decrypted(there, plain, secret))
        except OSError:
            raise UserError("The disk cannot be read, so nothing was taken along; try again in a moment.") from None
        finally:
            for folder in (there, plain):
                shutil.rmtree(folder, ignore_errors=True)

    def open(self, name: str, secret: str = "", by_force: bool = False) -> KeptStream:
        """A kept one, to go on with. by_force: taken over from an owner that still lives. Raises UserError."""
        with self._lock:
            videos = sum(path.stat().st_size for path in place_of(self.folder / name).glob("video*"))
            self._reserved[name] = max(self._reserved.get(name, 0), videos + LARGEST)
        try:
            return self._promised(name, KeptStream.open(self.folder / name, secret, by_force))
        except BaseException:
            self.release(name)
            raise

    def _promised(self, name: str, kept: KeptStream) -> KeptStream:
        """Others count with it from now on."""
        kept.lease.promise(self.limit(name))
        return kept

    def limit(self, name: str) -> int:
        """Bytes that a stream which is being written may take."""
        return self._reserved.get(name, LARGEST)

    def release(self, name: str) -> None:
        """It is no longer written."""
        with self._lock:
            self._reserved.pop(name, None)

    @contextmanager
    def _reserving(self) -> Iterator[None]:
        """One at a time, of all who share the shelf; for so long as it takes, but not for one that is stalled: then
        there may be a stream too many."""
        handle = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self._lock:
                end = time.monotonic() + PATIENCE_S
                while time.monotonic() < end:
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    time.sleep(0.01)
                yield
        finally:
            os.close(handle)

    def has(self, name: str) -> bool:
        return bool(NAME.fullmatch(name)) and (self.folder / name).is_dir()

    def names(self) -> list[str]:
        """Of all that is kept, the newest first."""
        found = [path for path in self.folder.iterdir() if NAME.fullmatch(path.name) and path.is_dir()]
        return [path.name for path in sorted(found, key=_written, reverse=True)]

    def until(self, name: str) -> float:
        """When a stream will be deleted if nothing more is written: seconds as `time.time` counts them."""
        return _written(self.folder / name) + DAYS * 86_400

    def view(self, name: str) -> KeptView:
        """Of a stream that nobody writes."""
        return KeptView(_bytes(self.folder / name), self.until(name), "", self.encrypted(name))

    def encrypted(self, name: str) -> bool:
        return is_encrypted(self.folder / name)

    def delete(self, name: str, lease: Lease | None = None) -> None:
        """All of it and of its forks, at once; nothing where there is none. lease: as its owner. Raises UserError where
        that is lost."""
        if lease:
            lease.check()
        for mark in self.folder.glob(f"*/{MARK}{name}") if NAME.fullmatch(name) else ():
            if NAME.fullmatch(mark.parent.name) and mark.parent.name != name:
                self.delete(mark.parent.name)
        self._remove(name, lease)

    def _remove(self, name: str, lease: Lease | None = None) -> None:
        self.release(name)
        if self.has(name):
            with contextlib.suppress(OSError):
                remove(self.folder / name, lease)

    def sweep(self, now: float | None = None, but: Collection[str] = ()) -> int:
        """Deletes what is kept for longer than was said, its forks not with it, and halves of what was deleted; returns
        how many streams. but: names of those that others write."""
        now, written = time.time() if now is None else now, {*self._reserved, *but}
        over = [name for name in self.names() if name not in written and self.until(name) < now]
        over = [name for name in over if promised(self.folder / name) is None]
        for name in over:
            self._remove(name)
        for half in self.folder.glob(".gone-*"):  # of an older version
            shutil.rmtree(half, ignore_errors=True)
        return len(over)

    def _reserve(self, name: str, size: int) -> None:
        written = {other: _bytes(self.folder / other) for other in self.names()}
        elsewhere = {other: max(promised(self.folder / other) or 0, n) for other, n in written.items()}
        whole = sum((elsewhere | self._reserved).values())
        disk = shutil.disk_usage(self.folder)
        coming = whole - sum(written.values())  # promised and not on the disk yet
        if whole + size > self.ceiling or disk.used + coming + size > SHARE * disk.total:
            raise UserError(
                "There is no room to keep another stream here, so this one is not kept; watching goes on without, and "
                "room comes back when others delete theirs."
            )
        self._reserved[name] = size


def name_of(key: str) -> str:
    """The folder of a key's stream."""
    return hashlib.blake2b(key.encode(), digest_size=16, person=b"vamba-stream").hexdigest()


def _written(folder: Path) -> float:
    """When something was last written."""
    times, place = [0.0], place_of(folder)
    for path in list(place.glob("*.sqlite*")) or [place]:
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def _bytes(folder: Path) -> int:
    total, place = 0, place_of(folder)
    for path in place.iterdir() if place.is_dir() else ():
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
