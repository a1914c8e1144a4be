"""One file of a kept stream: records in an SQLite database, each with a digest of its own, a transaction at a time.

A record is (kind, number, about, body): what it is of, JSON for people and programs, and bytes. SQLite makes a
transaction whole or nothing, whatever ends the process in the middle; the digests tell what changed afterwards. Files
may come from strangers: version, schema, sizes and digests are checked before a byte is believed.

Of a stream that is encrypted (cipher.py) `about` is empty and the body holds both, so the digests need no key.

While a segment is written it has a log beside it (`-wal`); `seal` folds that in, and a sealed one never changes.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.keeping.cipher import Cipher
from pipeline.stream import JSON

APPLICATION, VERSION = 0x56616D62, 1  # "Vamb"
ENCRYPTED = 0x10000 + VERSION  # the version of one whose records are encrypted
LENGTH = 4  # bytes that say in an encrypted body how long `about` is
PAGE, LOG = 16 << 10, 8 << 20  # bytes: for records of kilobytes to megabytes, written twice as quickly as in pages of 4
LARGEST = 1 << 30  # bytes of one record; SQLite itself ends a little above
SCHEMA = (
    "CREATE TABLE record (kind TEXT NOT NULL, number INTEGER NOT NULL, about TEXT NOT NULL, body BLOB NOT NULL, "
    "digest BLOB NOT NULL, PRIMARY KEY (kind, number))"
)


class Damaged(ValueError):
    """A segment, or a record of it, is not what was written. The message is for the log; users are told by a sentence
    of whoever knows what it costs them."""


class Empty(Damaged):
    """Its writer was ended before anything was in it."""


class OtherVersion(Damaged):
    """Written by a newer or older version of this program."""


class Locked(Damaged):
    """Encrypted, and whoever opens it has no key."""


@dataclass(frozen=True)
class Record:
    """kind, number: which one, unique in its segment. about: JSON. body: bytes, may be empty."""

    kind: str
    number: int
    about: dict[str, JSON]
    body: bytes = b""


class Segment:
    """An open database. One thread at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection, cipher: Cipher | None) -> None:
        self.path, self._db, self._cipher = path, connection, cipher

    @classmethod
    def create(cls, path: Path, cipher: Cipher | None = None) -> Segment:
        """A new, empty one. Raises sqlite3.Error or OSError where it cannot be written."""
        segment = cls(path, sqlite3.connect(path, isolation_level=None, check_same_thread=False), cipher)
        segment._db.execute(f"PRAGMA page_size = {PAGE}")
        segment._db.execute("PRAGMA journal_mode = WAL")
        segment._db.execute(f"PRAGMA wal_autocheckpoint = {LOG // PAGE}")
        segment._db.execute("PRAGMA synchronous = FULL")  # what was committed outlives a power cut, too
        segment._db.execute("BEGIN IMMEDIATE")
        segment._db.execute(SCHEMA)
        segment._db.execute(f"PRAGMA application_id = {APPLICATION}")
        segment._db.execute(f"PRAGMA user_version = {ENCRYPTED if cipher else VERSION}")
        segment._db.execute("COMMIT")
        return segment

    @classmethod
    def open(cls, path: Path, cipher: Cipher | None = None) -> Segment:
        """An existing one to read, checked as a whole but for its records. Raises Damaged."""
        try:
            mode = "rw" if _has_log(path) else "ro"
            address = f"{path.absolute().as_uri()}?mode={mode}"
            database = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
            segment = cls(path, database, cipher)
            try:
                segment._check()
            except BaseException:
                segment.close()
                raise
            return segment
        except sqlite3.Error as error:
            raise Damaged(f"{path.name}: {error}") from error

    def _check(self) -> None:
        """SQLite's own advice for files of strangers, then ours."""
        for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST + (1 << 20))
        schema = self._db.execute("SELECT type, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        if self._one("PRAGMA application_id") != APPLICATION:
            raise Damaged(f"{self.path.name} is no kept stream") if schema else Empty(f"{self.path.name} is empty")
        version = self._one("PRAGMA user_version")
        if version == ENCRYPTED and not self._cipher:
            raise Locked(f"{self.path.name} is encrypted")
        if version != (ENCRYPTED if self._cipher else VERSION):
            raise OtherVersion(f"{self.path.name} is of version {version}, not {VERSION}")
        if schema != [("table", SCHEMA)]:
            raise Damaged(f"{self.path.name} has another schema")

    def _one(self, query: str) -> object:
        return self._db.execute(query).fetchone()[0]

    def put(self, records: Iterable[Record]) -> None:
        """All of them, or none where it fails (sqlite3.Error); one of the same kind and number is replaced."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for record in records:
                about, body = self._closed(record)
                row = record.kind, record.number, about, body
                self._db.execute("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?)", (*row, _digest(*row)))
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def listed(self) -> list[tuple[str, int]]:
        """(kind, number) of every record, in this order. Raises Damaged."""
        try:
            return self._db.execute("SELECT kind, number FROM record ORDER BY kind, number").fetchall()
        except sqlite3.Error as error:
            raise Damaged(f"{self.path.name}: {error}") from error

    def records(self, kind: str) -> Iterator[Record]:
        """Those of a kind by number, each one checked. Raises Damaged at the first that is not what was written."""
        return (self.record(*key) for key in self.listed() if key[0] == kind)

    def record(self, kind: str, number: int) -> Record:
        """One, checked. Raises Damaged, also where there is none."""
        try:
            row = self._db.execute(
                "SELECT about, body, digest FROM record WHERE kind = ? AND number = ?", (kind, number)
            ).fetchone()
        except (sqlite3.Error, MemoryError) as error:
            raise Damaged(f"{self.path.name}: {error}") from error
        if row is None or [type(value) for value in row] != [str, bytes, bytes]:
            raise Damaged(f"{self.path.name} has no whole {kind} {number}")
        about, body, digest = row
        if _digest(kind, number, about, body) != digest:
            raise Damaged(f"{self.path.name}: {kind} {number} is not what was written")
        try:
            return self._opened(kind, number, about, body)
        except ValueError as error:
            raise Damaged(f"{self.path.name}: {kind} {number} is no record") from error

    def _closed(self, record: Record) -> tuple[str, bytes]:
        """`about` and body as they are written."""
        about = json.dumps(record.about, allow_nan=False)
        if not self._cipher:
            return about, record.body
        head = about.encode()
        plain = len(head).to_bytes(LENGTH, "big") + head + record.body
        return "", self._cipher.encrypt(plain, self._place(record.kind, record.number))

    def _opened(self, kind: str, number: int, about: str, body: bytes) -> Record:
        """Raises ValueError."""
        if self._cipher:
            plain = self._cipher.decrypt(body, self._place(kind, number))
            start = LENGTH + int.from_bytes(plain[:LENGTH], "big")
            about, body = plain[LENGTH:start].decode(), plain[start:]
        told = json.loads(about)
        if not isinstance(told, dict):
            raise ValueError("no document")
        return Record(kind, number, told, body)

    def _place(self, kind: str, number: int) -> str:
        """What a record is bound to: it opens in no other segment and as no other one."""
        return f"{self.path.stem} {kind} {number}"

    def seal(self) -> None:
        """Folds the log in and closes: one file that no longer changes."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.execute("PRAGMA journal_mode = DELETE")
        self.close()

    def close(self) -> None:
        self._db.close()


def _digest(kind: str, number: int, about: str, body: bytes) -> bytes:
    """SHA-256 over all of a record as it is written."""
    digest = hashlib.sha256(f"{kind} {number} {len(about)} {about}".encode("utf-8", "surrogatepass"))
    digest.update(body)
    return digest.digest()


def _has_log(path: Path) -> bool:
    """Whether its writer was ended before it sealed: opening folds the log in, which writes."""
    return path.with_name(path.name + "-wal").exists()
