"""What travels between the page and the engines: plain values, pictures as the JPEGs they came as, and Views.

A View is mostly pictures, and two of one stream share nearly all of them: what the other side holds already is named by
its hash and does not travel again; a View that has not changed does not travel at all.
"""

from __future__ import annotations

import io
import pickle
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from app.live.view import View

LARGE = 500  # bytes from which on something is a picture, and named by its hash
RECENT = 4  # versions of a stream's View that an engine remembers the pictures of
STREAMS = 4_000  # of which it does so


class Away(Exception):
    """An engine did not answer in time, or its process is gone. What it was asked for may have been done."""


class Wire(Protocol):
    """The way to an engine. name: of the engine. gone: its process ended, as far as is known."""

    @property
    def name(self) -> str: ...

    def call(self, verb: str, *values: Any, patience: float) -> Reply:
        """Raises Away."""


class Reply(NamedTuple):
    """born: of the process that answers, another one after each start. refused: the sentence of a UserError. here:
    whether it has the stream that was meant."""

    born: str
    value: Any = None
    refused: str = ""
    here: bool = True


class About(NamedTuple):
    """Of a model, for the page."""

    name: str
    backend: str
    about: str


class Standing(NamedTuple):
    """What an engine has. free: places for newcomers; ends: seconds in which others come free. names, kept: of its
    streams, and of those that are kept. uploads: files that its visitors' players show."""

    free: int
    places: int
    ends: tuple[float, ...] = ()
    names: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    uploads: frozenset[str] = frozenset()


class Sent(NamedTuple):
    """A View. body: pickled, its pictures by hash; None where it is the one that the other side holds. pictures: those
    of them that the other side has not."""

    version: bytes
    body: bytes | None
    pictures: dict[bytes, bytes]


@dataclass(frozen=True)
class Held:
    """A View that came, with its pictures by hash."""

    version: bytes = b""
    view: View = field(default_factory=View)
    pictures: dict[bytes, bytes] = field(default_factory=dict)

    def after(self, sent: Sent) -> Held:
        """The View that was sent to who holds this one."""
        if sent.body is None:
            return self
        pictures = self.pictures | sent.pictures
        unpickler = _Unpickler(sent.body, pictures)
        view = unpickler.load()
        return Held(sent.version, view, unpickler.used)


class Sender:
    """An engine's side: which pictures the other side has. Any thread may call."""

    def __init__(self) -> None:
        self._versions: OrderedDict[str, OrderedDict[bytes, frozenset[bytes]]] = OrderedDict()
        self._lock = threading.Lock()

    def send(self, key: str, view: View, held: bytes) -> Sent:
        """held: the version that the other side has."""
        pickler = _Pickler()
        body = pickler.packed(view)
        version = blake2b(body, digest_size=16).digest()
        with self._lock:
            versions = self._versions.setdefault(key, OrderedDict())
            self._versions.move_to_end(key)
            there = versions.get(held, frozenset())
            versions[version] = frozenset(pickler.pictures)
            while len(versions) > RECENT:
                versions.popitem(last=False)
            while len(self._versions) > STREAMS:
                self._versions.popitem(last=False)
        if version == held:
            return Sent(version, None, {})
        return Sent(version, body, {name: jpeg for name, jpeg in pickler.pictures.items() if name not in there})


class _Pickler(pickle.Pickler):
    def __init__(self) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file, protocol=5)
        self.pictures: dict[bytes, bytes] = {}

    def packed(self, view: View) -> bytes:
        self.dump(view)
        return self._file.getvalue()

    def persistent_id(self, value: Any) -> bytes | None:
        if type(value) is not bytes or len(value) < LARGE:
            return None
        name = blake2b(value, digest_size=16).digest()
        self.pictures[name] = value
        return name


class _Unpickler(pickle.Unpickler):
    def __init__(self, body: bytes, pictures: dict[bytes, bytes]) -> None:
        super().__init__(io.BytesIO(body))
        self._pictures = pictures
        self.used: dict[bytes, bytes] = {}

    def persistent_load(self, name: bytes) -> bytes:
        self.used[name] = self._pictures[name]
        return self.used[name]
