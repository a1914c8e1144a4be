"""Taking: who owns a kept stream, where several processes may share its folder.

    7/             claimed by its seventh owner: a folder is made by a rename that only one of two can do
    7/5f0c1a2b/    the place where this owner alone writes; .half until it is whole
    7/.../lock     held by whoever owns that place, as long as its process lives; in it, the bytes it may use

A stream that nobody has owned yet, such as an unpacked archive, a fork or one of an older version, lies in the folder
itself.

The owner before is not asked, because it may be stalled, late or dead by half. Who takes a stream claims the next
number, then copies into a place of its own what the newest place holds (by links, but for the segment that may be open
there), and makes that visible by one rename. An owner looks whether the next number is claimed after it has written and
before it says so; whatever it told of was therefore written before the claim and is in the copy, and what it writes
later lies in a place that nobody reads. So nothing here depends on a clock, on a lock that ends with its holder, or on
what a stalled process does when it wakes; the lock only keeps those out who do not insist. Wherever a taker is ended,
the next one takes the stream.

The folder may lie on any file system whose rename is atomic and seen at once by all who share it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.stream import UserError

EPOCH = re.compile(r"[1-9]\d{0,8}", re.ASCII)
SEGMENT = re.compile(r"\d{4,9}\.sqlite", re.ASCII)
CARRIED = re.compile(rf"{SEGMENT.pattern}|video(\.\d{{1,4}})?|key", re.ASCII)
OURS = re.compile(rf"({CARRIED.pattern})(-wal|-shm|-journal)?|\d{{4,9}}\.new|key\.new|lock", re.ASCII)
BESIDE = ("-wal", "-journal")  # what belongs to a segment while it is written
HALF, LOCK = ".half", "lock"
GLANCES, GLANCE_S = 5, 0.01
TRIES = 100  # an owner that lives writes at most once more after a claim
BUSY = "This kept stream is being watched elsewhere, so nothing was begun here; end that first."


class TakenOver(UserError):
    """Somebody else owns the stream by now: nothing more of it is watched, written or answered here."""

    def __init__(self) -> None:
        super().__init__(
            "This stream was taken over elsewhere, so nothing more is watched here; reload the page to go on there."
        )


class Lease:
    """Who owns a stream from one taking to the next. Any thread may ask. home: the stream's folder; place: where this
    owner writes."""

    def __init__(self, home: Path, epoch: int, place: Path, lock: int) -> None:
        self.home, self.epoch, self.place, self._lock, self._lost = home, epoch, place, lock, False

    @property
    def lost(self) -> bool:
        """Whether it was taken over or deleted; once so, for ever. The claim is looked for first: a claim that went
        away again, by a third owner, did so after the place."""
        self._lost = self._lost or (self.home / str(self.epoch + 1)).exists() or not self.place.exists()
        return self._lost

    def check(self) -> None:
        """Raises TakenOver. To be called after whatever was written, before anybody is told."""
        if self.lost:
            raise TakenOver

    def promise(self, nbytes: int) -> None:
        """Says how many bytes the owner may use, for others to count with (`promised`)."""
        if self._lock >= 0:
            os.pwrite(self._lock, f"{nbytes:<20}".encode(), 0)

    def close(self) -> None:
        """Those who do not insist may have it. May be called twice."""
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1


def take(home: Path, by_force: bool = False, carried: bool = True) -> Lease:
    """Makes the caller the stream's owner. by_force: also where its owner still lives. carried: with all that is in it;
    else it begins empty.

    Raises TakenOver where somebody else was quicker, UserError where it is somebody else's, OSError: the owner before
    may have lost it then, and the next one takes it all the same.
    """
    home.mkdir(parents=True, exist_ok=True)
    with _undisturbed(home, by_force):
        epoch = _claim(home, HALF)
        half = home / str(epoch) / HALF
        lock = -1
        try:
            lock = _locked(half)
            if carried:
                _carry(place_of(home, epoch), half)
            lease = Lease(home, epoch, _published(half), lock)
            lease.check()
            _clear(home, epoch)
            return lease
        except BaseException as error:
            shutil.rmtree(half, ignore_errors=True)
            if lock >= 0:
                os.close(lock)
            if isinstance(error, FileNotFoundError):  # whoever was quicker has cleared it away
                raise TakenOver from error
            raise


def remove(home: Path, lease: Lease | None = None) -> None:
    """All of a stream, at once, whoever owns it. lease: only as its owner; raises TakenOver where that is lost. May
    raise OSError."""
    if lease:
        lease.check()
        epoch = lease.epoch
        _away(lease.place)  # which is nobody else's: who claims it now finds nothing
        if (home / str(epoch + 1)).exists():
            raise TakenOver
    else:
        epoch = 1 + max(_epochs(home), default=0)
        with contextlib.suppress(OSError):  # a full disk: whoever takes it at this very moment may have it then
            epoch = _claim(home, secrets.token_hex(4))  # with an empty place in it
    _clear(home, epoch)
    if not (home / str(epoch + 1)).exists():  # else somebody begins anew there, with nothing
        _away(home / str(epoch))
        for path in [path for path in home.iterdir() if not path.is_dir()]:
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            home.rmdir()


def place_of(home: Path, below: int | None = None) -> Path:
    """Where a stream lies: the place of its newest owner (before number `below`), or the folder itself."""
    for epoch in sorted(_epochs(home), reverse=True):
        if below is None or epoch < below:
            with contextlib.suppress(OSError):
                for path in (home / str(epoch)).iterdir():
                    if path.name != HALF:
                        return path
    return home


def promised(home: Path) -> int | None:
    """Bytes that the owner of a stream may use; None where no process owns it."""
    try:
        lock = os.open(place_of(home) / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        told = os.pread(lock, 20, 0).strip()
        return int(told) if told.isdigit() else 0
    finally:
        os.close(lock)


def link_or_copy(path: Path, there: Path) -> None:
    """A second name for a file, which costs nothing; a copy where it lies on another file system. Raises OSError."""
    there.unlink(missing_ok=True)
    try:
        os.link(path, there)
    except OSError:
        _copy(path, there)


# --- the steps -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _undisturbed(home: Path, by_force: bool) -> Iterator[None]:
    """Holds the lock of the newest place, so that who does not insist stays out. Raises UserError where somebody has
    it and this one does not insist; who wrote into the folder itself is of an older version, which knows no claims."""
    while True:
        place = place_of(home)
        with contextlib.ExitStack() as held:
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(place / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                held.callback(os.close, lock)
                if not _flocked(lock) and (not by_force or place == home):
                    raise UserError(BUSY)
                if place == home:
                    held.close()  # another taker may insist, but not against that version
            if place == place_of(home):
                yield
                return


def _flocked(lock: int) -> bool:
    """Whether nobody else has it, who does more than look (`promised`)."""
    for _ in range(GLANCES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(GLANCE_S)
    return False


def _claim(home: Path, inner: str) -> int:
    """The next number, and what is in its folder from the first moment on."""
    while True:
        new = home / f".{secrets.token_hex(4)}"
        epoch = 1 + max(_epochs(home), default=0)
        try:
            (new / inner).mkdir(parents=True)
            os.rename(new, home / str(epoch))  # fails where somebody has it: no such folder is empty
            _sync(home)
            return epoch
        except OSError as error:
            shutil.rmtree(new, ignore_errors=True)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise


def _published(half: Path) -> Path:
    place = half.with_name(secrets.token_hex(4))  # by a name of its own: nobody of before can mean this one
    _sync(half)
    os.rename(half, place)
    _sync(place.parent)
    return place


def _carry(old: Path, new: Path) -> None:
    """All of a stream but what its owner may still write is shared by links: that is copied. Raises OSError."""
    paths = sorted(path for path in old.iterdir() if CARRIED.fullmatch(path.name) and not path.is_symlink())
    segments = [path for path in paths if SEGMENT.fullmatch(path.name)]
    newest = max(segments, key=lambda path: int(path.stem), default=None)
    for path in paths:
        beside = [path.with_name(path.name + end) for end in BESIDE]
        if path == newest or (path in segments and any(one.exists() for one in beside)):
            _copy_whole([path, *beside], new)
        else:
            link_or_copy(path, new / path.name)


def _copy_whole(paths: list[Path], there: Path) -> None:
    """Files as they were at one moment: what was still the same when all were copied was so together."""
    for _ in range(TRIES):
        for path in paths:
            with contextlib.suppress(*([FileNotFoundError] if path != paths[0] else [])):
                _copy(path, there / path.name)
        if all(_digest(path) == _digest(there / path.name) for path in paths):
            return
    raise OSError(errno.EBUSY, "somebody who owns it no longer writes on", str(paths[0]))


def _copy(path: Path, there: Path) -> None:
    """With its time: copying is no writing."""
    there.unlink(missing_ok=True)
    shutil.copy2(path, there)
    _sync(there)


def _digest(path: Path) -> str:
    """ "" where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except FileNotFoundError:
        return ""


def _clear(home: Path, epoch: int) -> None:
    """What earlier owners left, the oldest first, see `Lease.lost`; and what ended takers did."""
    for old in sorted(number for number in _epochs(home) if number < epoch):
        _away(home / str(old))
    for path in list(home.iterdir()):
        if path.name.startswith(".") and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    flat = [path for path in home.iterdir() if OURS.fullmatch(path.name) and not path.is_dir()]
    segments = [path for path in flat if SEGMENT.fullmatch(path.name)]
    if (
        segments
    ):  # else these are somebody's own files; the segments go last, so whatever ends this, the next one goes on
        for path in (*(path for path in flat if path not in segments), *segments):
            path.unlink(missing_ok=True)


def _away(folder: Path) -> None:
    """At once under its name; then its files."""
    gone = folder.with_name(f".{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _epochs(home: Path) -> list[int]:
    try:
        named = [path for path in home.iterdir() if EPOCH.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    return [int(path.name) for path in named if path.is_dir() and not path.is_symlink()]


def _locked(place: Path) -> int:
    lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def _sync(path: Path) -> None:
    """What is in a file or a folder outlives a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
