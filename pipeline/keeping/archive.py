"""A kept stream as one file to take along: an uncompressed tar of its segments and videos, with their sizes and digests
first; and back into a folder, which believes nothing of a stranger's file.

Uncompressed, so nothing can unpack to more than it is. Only plain files by the names of a kept stream come out, each
once, into a new folder, and only where all of their bytes are those that the first entry told.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.keeping.found import NAME, VIDEO, segments, videos
from pipeline.stream import UserError

FORMAT = 1
CONTENTS = "contents.json"
LARGEST_CONTENTS = 4 << 20  # bytes
PIECE = 1 << 20
SPOILT = (
    "This archive is damaged, incomplete or no stream that was taken along, so nothing of it was opened; take it again."
)


def archived(folder: Path) -> Iterator[bytes]:
    """The archive of a folder that nobody writes, piece by piece; `size_of` says how long it is."""
    files = [*segments(folder), *videos(folder)]
    listed = [{"name": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)} for path in files]
    told = json.dumps({"format": FORMAT, "files": listed}).encode()
    yield _header(CONTENTS, len(told)) + told + _padding(len(told))
    for path in files:
        size = path.stat().st_size
        yield _header(path.name, size)
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece
        yield _padding(size)
    yield bytes(2 * tarfile.BLOCKSIZE)


def unpacked(archive: Path) -> Path:
    """The new folder beside an archive in which its stream lies. Raises UserError for what is none, or not whole, and
    where there is such a folder already; nothing is left then.

    It has that name only once it is whole, so whatever ends the process, nobody takes a part of a stream for all of it;
    what an ended process left goes with the next one.
    """
    folder = archive.with_suffix("")
    if folder == archive or folder.exists():
        raise UserError(
            f"There is something called {folder.name!r} beside this archive already, so it was not opened; go on with "
            "that folder, or move one of them."
        )
    half = folder.with_name(f".{folder.name}.unpacking")
    half.mkdir(exist_ok=True)
    with _alone(half):
        try:
            _empty(half)
            with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                _unpack(tar, half)
            half.rename(folder)
        except BaseException as error:
            shutil.rmtree(half)
            if isinstance(error, (tarfile.TarError, ValueError, KeyError, TypeError, EOFError, OverflowError)):
                raise UserError(SPOILT) from error
            raise
    return folder


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else unpacks there meanwhile. Raises UserError where somebody does."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(
            "This archive is being opened by somebody else, so it was not opened here; wait for them."
        ) from None
    finally:
        os.close(handle)


def _empty(folder: Path) -> None:
    """Of what a process left that was ended."""
    for path in folder.iterdir():
        path.unlink()


def _unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """Raises ValueError and the like for whatever is not as it must be."""
    wanted = _contents(tar)
    while member := tar.next():
        size, digest = wanted.pop(member.name)  # a second one of a name is not there any more
        if not _plain(member) or member.size != size:
            raise ValueError(f"{member.name} is not what was told")
        if _copy(tar, member, folder / member.name) != digest:
            raise ValueError(f"{member.name} has another digest")
    if wanted:
        raise ValueError("files are missing")


def _contents(tar: tarfile.TarFile) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 by name, as the first entry tells."""
    first = tar.next()
    if first is None or first.name != CONTENTS or not _plain(first) or first.size > LARGEST_CONTENTS:
        raise ValueError("no contents")
    told = json.loads(_opened(tar, first).read())
    if told["format"] != FORMAT:
        raise ValueError("another format")
    wanted = {}
    for one in told["files"]:
        name, size, digest = one["name"], one["bytes"], one["sha256"]
        if not (isinstance(name, str) and _named(name) and type(size) is int and isinstance(digest, str)):
            raise ValueError("no file of a stream")
        wanted[name] = (size, digest)
    return wanted


def _named(name: str) -> bool:
    return bool(NAME.fullmatch(name) or VIDEO.fullmatch(name))


def _plain(member: tarfile.TarInfo) -> bool:
    """A file with its own bytes: no link, no device, no folder, no holes."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is no file")
    return file


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, there: Path) -> str:
    """The digest of what was copied; the file is new."""
    digest, left = hashlib.sha256(), member.size
    source = _opened(tar, member)
    handle = os.open(there, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        while piece := source.read(min(PIECE, left)):
            digest.update(piece)
            file.write(piece)
            left -= len(piece)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
