"""What lies in a kept stream's folder, read and checked: how far it is whole, the states it can go on from, its notes.

Nothing is believed before its digest was right: a chunk counts if it and all before it are whole, a state if its
chunks do.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.clock import mmss
from pipeline.keeping import packing
from pipeline.keeping.cipher import LOCKED, Cipher
from pipeline.keeping.segment import Damaged, Empty, Locked, OtherVersion, Record, Segment
from pipeline.keeping.taking import SEGMENT as NAME
from pipeline.keeping.taking import place_of
from pipeline.stream import JSON, Model, Packed, StreamState, UserError

log = logging.getLogger(__name__)

VIDEO = re.compile(r"video(\.\d{1,4})?", re.ASCII)
DAMAGED = "What was kept of this stream is damaged or incomplete, so it cannot go on; start the video again."
NOTHING = "There is no kept stream here, so nothing can go on; name a folder that was given to --keep."
LOST = "Some of what was kept after {} is damaged, so the stream goes on from there."
VERSION = (
    "This stream was kept by another version of this program, so it cannot go on here; use that version, or start the "
    "video again."
)


@dataclass(frozen=True)
class Cut:
    """A chunk that was watched. number: from 0. position: frames of the source taken until after it. until: seconds
    of the video seen with it."""

    number: int
    frames: int
    position: int
    until: float

    @property
    def about(self) -> dict[str, JSON]:
        return {"frames": self.frames, "position": self.position, "until": self.until}

    @classmethod
    def of(cls, record: Record) -> Cut:
        """Raises Damaged for what is no cut."""
        try:
            here = Packed({}, record.about)
            frames, position = packing.count(here, "frames"), packing.count(here, "position")
            return cls(record.number, frames, position, packing.seconds(here, "until"))
        except (KeyError, ValueError) as error:
            raise Damaged(f"chunk {record.number}: {error}") from error


class Point(NamedTuple):
    """A state that a stream can go on from: after which chunk, and where it lies."""

    chunk: int
    segment: Path
    slot: int


@dataclass(frozen=True, eq=False)
class Resumed:
    """A stream as it was after `cut` (None: it had seen nothing). note: what was lost, in a sentence, or ""."""

    state: StreamState
    cut: Cut | None = None
    note: str = ""

    @property
    def position(self) -> int:
        """Frames of the source that were taken."""
        return self.cut.position if self.cut else 0


@dataclass(frozen=True)
class Found:
    """A folder's stream as far as it is whole.

    cuts, places: of every whole chunk, and the segment it lies in. points: whole states by chunk. broken: segments in
    which a chunk is damaged, or that cannot be read. cipher: what opens them, where they are encrypted.
    """

    about: dict[str, JSON]
    cuts: tuple[Cut, ...] = ()
    places: tuple[Path, ...] = ()
    points: tuple[Point, ...] = ()
    broken: frozenset[Path] = frozenset()
    cipher: Cipher | None = None

    def newest(self, model: Model, until: float = math.inf) -> Resumed:
        """The newest whole state of this model that had seen no more than `until` seconds of the video.

        Where no state is whole it is one that has seen nothing: what was watched is in the folder. Bit for bit what was
        watched where the same code runs on the same kind of device. Raises UserError for another model, other weights,
        another device.
        """
        check_backend(self.about, model)
        for point in reversed(self.points):
            if self.cuts[point.chunk].until > until:
                continue
            try:
                return self._restored(point, model)
            except Damaged as error:
                log.warning("a kept state is damaged: %s", error)
        return Resumed(model.start(), None, LOST.format(mmss(0)) if self.broken else "")

    def _restored(self, point: Point, model: Model) -> Resumed:
        with closing(Segment.open(point.segment, self.cipher)) as segment:
            record = segment.record("state", point.slot)
        document = record.about.get("document")
        try:
            wanted = packing.spans(document)
        except ValueError as error:
            raise Damaged(f"state {point.slot}: {error}") from error
        tensors = tensors_of(record) | self._rows(wanted, point.chunk)
        state = model.unpack(Packed(tensors, document if isinstance(document, dict) else {}))
        cut = self.cuts[point.chunk]
        return Resumed(state, cut, LOST.format(mmss(cut.until)) if self.broken else "")

    def _rows(self, wanted: dict[str, range], last: int) -> dict[str, Tensor]:
        """Tensors of what grew, put together from the chunks up to `last`. Raises Damaged where slots are missing."""
        pieces: dict[str, list[Tensor]] = {}
        reached = {part: span.start for part, span in wanted.items()}
        for record in self._chunks(last):
            tensors = tensors_of(record)
            for part, (start, stop) in grown(record).items():
                if part not in wanted or stop < reached[part]:
                    continue
                if start > reached[part]:
                    raise Damaged(f"slots {reached[part]} to {start} of {part} are missing")
                for name in [name for name in tensors if name.startswith(part + ".")]:
                    pieces.setdefault(name, []).append(tensors[name][reached[part] - start :])
                reached[part] = stop
        if any(reached[part] != span.stop for part, span in wanted.items()):
            raise Damaged("slots are missing at the end")
        return {name: torch.cat(parts) for name, parts in pieces.items()}

    def _chunks(self, last: int) -> Iterator[Record]:
        """The records of the chunks up to that number."""
        for path, numbers in itertools.groupby(range(last + 1), lambda number: self.places[number]):
            with closing(Segment.open(path, self.cipher)) as segment:
                yield from (segment.record("chunk", number) for number in numbers)


def find(folder: Path, cipher: Cipher | None = None) -> Found:
    """Reads all of a stream and checks it; of what its segments say about it, the newest counts. Raises UserError where
    there is nothing, or of another version, or no key to it."""
    about: dict[str, JSON] = {}
    cuts: list[Cut] = []
    places: list[Path] = []
    points: list[Point] = []
    broken = set()
    for path in segments(folder):
        try:
            with closing(Segment.open(path, cipher)) as segment:
                about = _about(segment, about)
                whole = _add_cuts(segment, cuts)
                places += [path] * (len(cuts) - len(places))
                points += _points(segment, len(cuts))
            broken |= set() if whole else {path}
        except OtherVersion as error:
            raise UserError(VERSION) from error
        except Locked as error:
            raise UserError(LOCKED) from error
        except Empty:
            continue
        except Damaged as error:
            log.warning("a kept segment is damaged: %s", error)
            broken.add(path)
    if not about:
        raise UserError(DAMAGED if broken else NOTHING)
    return Found(about, tuple(cuts), tuple(places), tuple(sorted(points)), frozenset(broken), cipher)


def _about(segment: Segment, before: dict[str, JSON]) -> dict[str, JSON]:
    """What a segment says of the stream; where that is damaged, what one before it said. Raises Damaged."""
    try:
        return segment.record("about", 0).about
    except Damaged:
        if not before:
            raise
        return before


def _add_cuts(segment: Segment, cuts: list[Cut]) -> bool:
    """Those of a segment that follow, one by one; whether these are all."""
    try:
        for record in segment.records("chunk"):
            if record.number != len(cuts):
                raise Damaged(f"chunk {record.number} follows {len(cuts) - 1}")
            cuts.append(Cut.of(record))
    except Damaged as error:
        log.warning("a kept chunk is damaged: %s", error)
        return False
    return True


def _points(segment: Segment, chunks: int) -> Iterator[Point]:
    """Whole states of a segment, of which the first `chunks` chunks are whole."""
    for kind, slot in segment.listed():
        if kind == "state":
            try:
                chunk = packing.count(Packed({}, segment.record(kind, slot).about), "chunk")
            except (Damaged, KeyError, ValueError) as error:
                log.warning("a kept state is damaged: %s", error)
                continue
            if chunk < chunks:
                yield Point(chunk, segment.path, slot)


def notes(folder: Path, kind: str, cipher: Cipher | None = None) -> dict[int, Record]:
    """Whole records of a kind from all segments by number; newer ones replace older ones, or say they are forgotten."""
    found: dict[int, Record] = {}
    for path in segments(folder):
        found.update((record.number, record) for record in readable(path, kind, cipher))
    return {number: record for number, record in sorted(found.items()) if not record.about.get("forgotten")}


def readable(path: Path, kind: str | None = None, cipher: Cipher | None = None) -> Iterator[Record]:
    """Every whole record of a segment, or those of a kind; none where it cannot be read."""
    try:
        with closing(Segment.open(path, cipher)) as segment:
            for key in segment.listed():
                if kind in (None, key[0]):
                    with contextlib.suppress(Damaged):
                        yield segment.record(*key)
    except Damaged as error:
        log.warning("a kept segment is damaged: %s", error)


def segments(folder: Path) -> list[Path]:
    """A stream's segments, oldest first; never what only points elsewhere."""
    return sorted(_named(folder, NAME), key=lambda path: int(path.stem))


def videos(folder: Path) -> list[Path]:
    """The files that were watched; never what only points elsewhere."""
    return sorted(_named(folder, VIDEO))


def _named(folder: Path, name: re.Pattern[str]) -> list[Path]:
    try:
        named = [path for path in place_of(folder).iterdir() if name.fullmatch(path.name)]
    except OSError:
        return []
    return [path for path in named if path.is_file() and not path.is_symlink()]


def tensors_of(record: Record) -> dict[str, Tensor]:
    """What safetensors holds in a record's body. Raises Damaged."""
    try:
        return safetensors.torch.load(record.body) if record.body else {}
    except (SafetensorError, KeyError, ValueError) as error:
        raise Damaged(f"{record.kind} {record.number} holds no tensors") from error


def grown(record: Record) -> dict[str, tuple[int, int]]:
    """Which slots of which parts a chunk's body holds, from and up to. Raises Damaged."""
    told = record.about.get("grown")
    if not isinstance(told, dict):
        raise Damaged(f"chunk {record.number} does not say what it holds")
    return {part: _slots(span, record) for part, span in told.items()}


def _slots(span: JSON, record: Record) -> tuple[int, int]:
    if isinstance(span, list) and len(span) == 2:
        start, stop = span
        if type(start) is int and type(stop) is int and 0 <= start <= stop:
            return start, stop
    raise Damaged(f"chunk {record.number} does not say which slots it holds")


def check_backend(about: dict[str, JSON], model: Model) -> None:
    """Other code rounds otherwise. Raises UserError."""
    if about.get("backend") != model.backend:
        raise UserError(
            f"This stream was watched on {str(about.get('backend'))[:60]} and here {model.backend} runs, so it cannot "
            "go on exactly; go on where it was kept, or watch it again."
        )
