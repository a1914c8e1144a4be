"""A kept stream: a folder of segments in which a stream outlives its process, and out of which it goes on exactly.

    0000.sqlite, 0001.sqlite ...   segments (segment.py) of five minutes of video; all but the newest are sealed
    video, video.1 ...             the files that are watched one after the other, where they are files
    key                            where all of it is encrypted: its key, encrypted by the visitor's (cipher.py)

They lie in the place of whoever owns the stream, a folder within the stream's own; see taking.py.

What is in them, by kind and number:

    about 0     of the stream: model, backend, where its pictures come from; in every segment, the newest counts
    chunk i     how many frames, and how many of the source's were taken up to there; body: what grew by it
    state 0, 1  the model's state without what grows, after an even and after an odd chunk: the newest two, overwritten.
                Those of a sealed segment are points to go back to; the older, the fewer are kept
    reel n      a later source of the same stream: what `about` says of the first one, and where it begins. Written
                before any of it is watched, so that whatever ends the process does not forget it
    frame i     the i-th picture as the camera sent it
    others      what a page keeps with it: pictures, turns, and so on. `time`: the second of the stream that one belongs
                to; going back to before it leaves it out

archive.py makes one file of it to take along.

One chunk is one transaction, so whatever ends the process, at most the chunk in work is lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import safetensors.torch
from torch import Tensor

from pipeline.keeping import packing
from pipeline.keeping.cipher import Cipher
from pipeline.keeping.found import DAMAGED, NOTHING, Cut, Found, Resumed, find, notes, readable, segments, videos
from pipeline.keeping.reels import LATER, Reel, Shown, Stretch, shown_in, stretches
from pipeline.keeping.segment import Damaged, Record, Segment
from pipeline.keeping.taking import BUSY, Lease, link_or_copy, promised, take
from pipeline.stream import JSON, Model, Packed, UserError

SEGMENT_S, SEGMENT_BYTES = 300.0, 64 << 20  # of video and of disk, after which a new segment begins
POINTS = 12  # segments whose states are all kept; of the next twelve every second one's, of the 24 after them a quarter
TAKEN = "There is a kept stream in {} already, so nothing was begun; name another folder, or go on with it (resume)."


class KeptStream:
    """A stream being written by its owner, one thread at a time. lease: whether it still is the owner; folder: its
    place.

    Writing may raise sqlite3.Error or OSError, and TakenOver where somebody else owns the stream by now: nobody will
    read then what was written. What was written before is whole all the same.
    """

    def __init__(self, lease: Lease, about: dict[str, JSON], cipher: Cipher | None = None) -> None:
        self.lease, self.folder, self.about, self.cipher = lease, lease.place, about, cipher
        self._open: Segment | None = None  # the newest segment, while it is written
        self._last: Cut | None = None  # written
        self.ends: dict[str, int] = {}  # how far what grows was written
        self._began = 0.0  # second of the video at which the open segment begins
        self._sealed = _all_bytes(self.folder)
        self.found = Found(about)

    @classmethod
    def create(cls, folder: Path, about: dict[str, JSON], secret: str = "") -> KeptStream:
        """A new one. about: at least "model" and "backend". secret: by which all of it is encrypted, "": nothing is.
        Raises UserError where one is there already, OSError."""
        if segments(folder):
            raise UserError(TAKEN.format(folder.name) if promised(folder) is None else BUSY)
        lease = take(folder, carried=False)
        try:
            return cls(lease, about, Cipher.create(lease.place, secret) if secret else None)
        except BaseException:
            lease.close()
            raise

    @classmethod
    def open(cls, folder: Path, secret: str = "", by_force: bool = False) -> KeptStream:
        """An existing one, checked; `found` is what lies in it, and `resume` goes on. by_force: taken over from an
        owner that still lives. Raises UserError, OSError."""
        if not segments(folder):
            raise UserError(NOTHING)
        Cipher.of(folder, secret)  # nobody loses it to who cannot read it
        lease = take(folder, by_force)
        try:
            cipher = Cipher.of(lease.place, secret)
            found = find(lease.place, cipher)
            kept = cls(lease, found.about, cipher)
        except BaseException:
            lease.close()
            raise
        kept.found = found
        return kept

    def resume(self, model: Model) -> Resumed:
        """The newest whole state of this model; what is written comes after it, and what came after it goes."""
        resumed = self.found.newest(model)
        self.go_on_from(resumed, model)
        return resumed

    def go_on_from(self, resumed: Resumed, model: Model, until: float = math.inf) -> None:
        """What is written comes after a state that was found, and what came after it goes. until: so do notes of what
        came after that second, and later sources."""
        _cut_off(self.folder, self.found, resumed.cut.number if resumed.cut else -1, until)
        self._last = resumed.cut
        self.ends = packing.grown_to(model.pack(resumed.state)) if resumed.cut else {}
        later = [reel for reel in self.reels[1:] if reel.chunk > self.next_number or reel.begins > until]
        if later:
            stay = [replace(reel, chunk=LATER).record for reel in later if reel.begins <= until]
            self.note(stay, [("reel", reel.number) for reel in later if reel.begins > until])
        self._sealed = _all_bytes(self.folder)

    def watch_again(self, about: dict[str, JSON], model: Model) -> None:
        """All of it by another model, from the start: what was watched, said and noticed stays, what was seen goes.
        about: in place of what was said of the stream."""
        self.about = self.about | about
        self.go_on_from(Resumed(model.start()), model)
        self.note()

    @property
    def lost(self) -> bool:
        """Whether somebody else owns it by now, or it was deleted: nothing more is written."""
        return self.lease.lost

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return self._sealed + (_bytes(_files(self._open.path)) if self._open else 0)

    @property
    def next_number(self) -> int:
        """Of the next chunk."""
        return self._last.number + 1 if self._last else 0

    def fork(self, there: Path, secret: str = "") -> None:
        """The same once more in a folder of its own, which goes on by itself. What is not being written is shared by
        links and costs nothing. secret: of an encrypted one, who else may open that; "": nobody. Raises OSError, and
        UserError where there is a stream already."""
        with self._owned():
            self._seal()
        if segments(there):
            raise UserError(TAKEN.format(there.name))
        there.mkdir(parents=True, exist_ok=True)
        if self.cipher and secret:
            self.cipher.lock(there, secret)
        for path in (*segments(self.folder), *(self.folder / reel.file for reel in self.reels)):
            if path.exists():
                link_or_copy(path, there / path.name)

    # Its sources

    @property
    def reels(self) -> tuple[Reel, ...]:
        """The sources, one after the other; those that cannot be read are left out."""
        later = []
        for record in self.notes("reel").values():
            with contextlib.suppress(Damaged):
                later.append(Reel.of(record))
        return (Reel(0, self.about), *later)

    @property
    def video(self) -> Path:
        """The file that was watched first, where it was one."""
        return self.folder / "video"

    def take_video(self, path: Path) -> None:
        """A file becomes the one that is watched, by a link where that works, else as a copy. Before any chunk."""
        self.about = self.about | {"video": self._taken(path, self.video)}
        self.note()

    def go_on_with(self, about: dict[str, JSON], begins: float, over: float, path: Path | None) -> None:
        """Another source is to come. about: as of the first one. begins: second of the stream at its start. over:
        second to which the one before it is watched."""
        reel = Reel(self.reels[-1].number + 1, about, begins, LATER, over)
        if path:
            reel = replace(reel, about=about | {"video": self._taken(path, self.folder / reel.file)})
        self.note([reel.record])

    def turn_to(self, number: int) -> None:
        """The next chunk is the first of that source."""
        here = [reel for reel in self.reels if reel.number == number and reel.chunk == LATER]
        if here:
            self.note([replace(reel, chunk=self.next_number).record for reel in here])

    def give_video(self, reel: Reel, there: Path) -> None:
        """A source's file, to be watched: by a link or as a copy. Raises UserError, OSError."""
        path = self.folder / reel.file
        if not self.cipher:
            return link_or_copy(path, there)
        try:
            return self.cipher.decrypt_file(path, there)
        except ValueError as error:
            raise UserError(DAMAGED) from error

    def _taken(self, path: Path, there: Path) -> JSON:
        seal = seal_of(path)
        if self.cipher:
            self.cipher.encrypt_file(path, there)
        else:
            link_or_copy(path, there)
        self._sealed = _all_bytes(self.folder)
        return seal

    def check_video(self) -> None:
        """Whether the files are still those that were watched; UserError if not. One that is encrypted tells as it is
        given."""
        for reel in self.reels:
            path, seal = self.folder / reel.file, reel.about.get("video")
            file = path.is_file() and not path.is_symlink()
            if (file or seal) and not (file and (self.cipher or seal_of(path) == seal)):
                raise UserError(
                    "The video in this folder is missing or is not the one that was watched, so it cannot go on; put "
                    f"it back as {str(path.relative_to(self.lease.home))!r}, or start the video again."
                )

    def stretches(self, resumed: Resumed, until: float = math.inf) -> list[Stretch]:
        """What is to be watched after a state that was found; the last is what goes on."""
        return stretches(resumed.cut, self.found.cuts, self.reels, until)

    def shown(self, stretch: Stretch) -> list[Shown]:
        """What a camera showed in a stretch. Raises UserError where some of it is missing."""
        return shown_in(stretch, self.notes("frame"))

    def add(self, cut: Cut, packed: Packed, rows: dict[str, dict[str, Tensor]], records: Iterable[Record] = ()) -> None:
        """A chunk, the state after it, what grew by it, and what belongs to it: all, or nothing.

        An empty `packed` is of a state that is not kept, because watching again is sooner done than reading.
        """
        if cut.number != self.next_number:
            raise ValueError(f"chunk {cut.number} does not follow {self._last}")
        ends = packing.grown_to(packed)
        written = [_chunk(cut, rows, ends), *records]
        if packed.document:
            about: dict[str, JSON] = {"chunk": cut.number, "document": packed.document}
            written.append(Record("state", cut.number % 2, about, safetensors.torch.save(packed.tensors)))
        with self._owned():
            segment = self._segment()
            segment.put(written)
        self._last, self.ends = cut, ends
        if cut.until - self._began >= SEGMENT_S or _bytes(_files(segment.path)) >= SEGMENT_BYTES:
            with self._owned():
                self._seal()
                thin(self.folder, self.cipher)

    def note(self, records: Iterable[Record] = (), forget: Iterable[tuple[str, int]] = ()) -> None:
        """Other records, which replace those of the same kind and number; and some that are to be forgotten."""
        gone = [Record(kind, number, {"forgotten": True}) for kind, number in forget]
        with self._owned():
            self._segment().put([*gone, *records])

    def notes(self, kind: str) -> dict[int, Record]:
        """Records of a kind by number, as they were last written; those that are damaged are left out."""
        return notes(self.folder, kind, self.cipher)

    def close(self) -> None:
        """Seals what is open and lets others have it. May be called twice."""
        with contextlib.suppress(sqlite3.Error):  # a full disk: the segment opens all the same, with its log
            self._seal()
        self.lease.close()

    @contextlib.contextmanager
    def _owned(self) -> Iterator[None]:
        """Around what is written: it counts where this is still the owner afterwards. Raises TakenOver."""
        try:
            yield
        except (sqlite3.Error, OSError):
            self.lease.check()  # its place is gone, so the disk is not to blame
            raise
        self.lease.check()

    def _segment(self) -> Segment:
        if self._open is None:
            names = segments(self.folder)
            number = int(names[-1].stem) + 1 if names else 0
            segment = Segment.create(self.folder / f"{number:04}.sqlite", self.cipher)
            segment.put([Record("about", 0, self.about)])
            self._open, self._began = segment, self._last.until if self._last else 0.0
        return self._open

    def _seal(self) -> None:
        segment, self._open = self._open, None
        if segment:
            try:
                segment.seal()
            finally:
                segment.close()
                self._sealed = _all_bytes(self.folder)


def _chunk(cut: Cut, rows: dict[str, dict[str, Tensor]], ends: dict[str, int]) -> Record:
    """A chunk with the slots that grew; they reach up to `ends`."""
    grown: dict[str, JSON] = {}
    grown |= {part: [ends[part] - len(next(iter(new.values()))), ends[part]] for part, new in rows.items()}
    tensors = {f"{part}.{name}": tensor for part, new in rows.items() for name, tensor in new.items()}
    body = safetensors.torch.save(tensors) if tensors else b""
    return Record("chunk", cut.number, cut.about | {"grown": grown}, body)


# --- what becomes of older segments ----------------------------------------------------------------------------------


def thin(folder: Path, cipher: Cipher | None = None) -> None:
    """A stream's points become fewer as they grow old: each time they are twice as old, every other one goes."""
    paths = segments(folder)
    for path in paths:
        number, age = int(path.stem), int(paths[-1].stem) - int(path.stem)
        step = 2 * age // POINTS
        if age and age % POINTS == 0 and step & (step - 1) == 0 and number % step:
            rewrite(path, lambda record: record.kind != "state", cipher)


def _cut_off(folder: Path, found: Found, last: int, until: float) -> None:
    """What came after a chunk goes, and what is damaged; the page's own records stay where they can be read, and belong
    to no second after `until`."""
    later = set(found.places[last + 1 :]) | found.broken
    newest = found.places[last] if last >= 0 else None  # what lies in older ones is older than it
    for path in segments(folder):
        noted = until < math.inf and (newest is None or int(path.stem) >= int(newest.stem))
        if noted or path in later or path not in found.places:
            rewrite(path, lambda record: _number(record) <= last and _second(record) <= until, found.cipher)


def _number(record: Record) -> int:
    """The chunk that a record belongs to; -1 for the page's own, and for sources."""
    of = {"chunk": record.number, "state": record.about.get("chunk")}.get(record.kind, -1)
    return of if isinstance(of, int) else -1


def _second(record: Record) -> float:
    """The second of the stream that a record of the page's belongs to; 0 where it is of none."""
    time = record.about.get("time")
    return float(time) if isinstance(time, (int, float)) else 0.0


def rewrite(path: Path, wanted: Callable[[Record], bool], cipher: Cipher | None = None) -> None:
    """Puts a sealed segment with its wanted records in its place: whoever has the old one by a link keeps it."""
    records = [record for record in readable(path, cipher=cipher) if wanted(record)]
    new = path.with_suffix(".new")
    for file in _files(new):
        file.unlink(missing_ok=True)
    if any(record.kind != "about" for record in records):
        segment = Segment.create(new, cipher)
        try:
            segment.put(records)
            segment.seal()
        finally:
            segment.close()
    for file in _files(path)[1:]:  # the log of one that was never sealed: it must not be taken for the new one's
        file.unlink(missing_ok=True)
    if new.exists():
        os.replace(new, path)
    else:
        path.unlink()


def decrypted(folder: Path, there: Path, secret: str) -> Path:
    """Where what lies in a folder that nobody writes can be read by anybody: there, or `there` as copies of what is
    encrypted. Raises OSError, UserError."""
    cipher = Cipher.of(folder, secret)
    if not cipher:
        return folder
    for path in segments(folder):
        segment = Segment.create(there / path.name)
        try:
            segment.put(readable(path, cipher=cipher))
            segment.seal()
        finally:
            segment.close()
    for path in videos(folder):
        try:
            cipher.decrypt_file(path, there / path.name)
        except ValueError as error:
            raise UserError(DAMAGED) from error
    return there


def seal_of(path: Path) -> JSON:
    with path.open("rb") as file:
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _files(path: Path) -> list[Path]:
    return [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))]


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.exists())


def _all_bytes(folder: Path) -> int:
    """0 where it is gone: taken over, or deleted."""
    with contextlib.suppress(FileNotFoundError):
        return _bytes(folder.iterdir())
    return 0
