"""Reels: the sources of one stream, one after the other, as a file and then another one; and a camera's pictures, kept
as they were sent, from which a stream can be watched again."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest

from pipeline.clock import mmss
from pipeline.keeping import packing
from pipeline.keeping.found import DAMAGED, Cut
from pipeline.keeping.segment import Damaged, Record
from pipeline.sources.camera import decode_jpeg, shrink
from pipeline.stream import JSON, Frame, Packed, UserError

LATER = 1 << 40  # the number of a chunk that is still to come
UNSEEN = (
    "What the camera showed until {} was not kept picture by picture, so the stream cannot go back to before that; "
    "choose a later moment."
)


@dataclass(frozen=True)
class Reel:
    """One source of a stream. number: from 0. about: "source" (what kind it is), "name", "fps", and of a file its seal,
    "video". begins: second of the stream at its first picture. chunk: number of the first chunk that shows it, LATER
    before there is one. over: second to which the source before it is watched."""

    number: int
    about: dict[str, JSON]
    begins: float = 0.0
    chunk: int = 0
    over: float = math.inf

    @property
    def file(self) -> str:
        """The name of its video in the folder."""
        return f"video.{self.number}" if self.number else "video"

    @property
    def record(self) -> Record:
        over: dict[str, JSON] = {"over": self.over} if self.over < math.inf else {}
        return Record("reel", self.number, self.about | {"begins": self.begins, "chunk": self.chunk} | over)

    @classmethod
    def of(cls, record: Record) -> Reel:
        """Raises Damaged for what is none."""
        here = Packed({}, record.about)
        try:
            begins, chunk = packing.seconds(here, "begins"), packing.count(here, "chunk")
            over = packing.seconds(here, "over") if "over" in record.about else math.inf
            return cls(record.number, record.about, begins, chunk, over)
        except (KeyError, ValueError) as error:
            raise Damaged(f"reel {record.number}: {error}") from error


@dataclass(frozen=True)
class Stretch:
    """What of a reel is to be watched: its pictures after the first `position`, up to second `until` of the stream.
    cuts: the chunks in which they were watched before, as far as they were; number: of their first picture in the
    stream."""

    reel: Reel
    position: int
    until: float
    cuts: tuple[Cut, ...] = ()
    number: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pictures a chunk; one that was left out counts with the next."""
        ends = [self.position, *(cut.position for cut in self.cuts)]
        return tuple(end - start for start, end in pairwise(ends) if end > start)


def stretches(cut: Cut | None, cuts: Sequence[Cut], reels: Sequence[Reel], until: float) -> list[Stretch]:
    """What comes after a chunk, reel by reel; where a reel gave way to the next one, only what was watched of it."""
    first = cut.number + 1 if cut else 0
    begun = max(index for index, reel in enumerate(reels) if reel.chunk <= first) if cut else 0
    found = []
    for reel, after in zip_longest(reels[begun:], reels[begun + 1 :]):
        start = max(first, reel.chunk)
        position = cut.position if cut and cut.number >= reel.chunk else 0
        over = min(after.over, math.nextafter(after.begins, 0)) if after else math.inf
        watched = tuple(cuts[start : after.chunk if after else None])
        number = sum(one.frames for one in cuts[:start])
        found.append(Stretch(reel, position, min(until, over), watched, number))
        if after and until < after.begins:
            break
    return found


# --- a camera's pictures ---------------------------------------------------------------------------------------------


def frame_records(frames: Iterable[Frame], first: int) -> list[Record]:
    """What the camera sent, byte by byte: another picture would be watched otherwise. first: its number in the
    stream."""
    numbered = enumerate(frames, first)
    return [Record("frame", number, {"time": frame.time}, frame.jpeg) for number, frame in numbered if frame.jpeg]


@dataclass(frozen=True)
class Shown:
    """Pictures of one chunk as a camera sent them, still JPEGs."""

    records: tuple[Record, ...]

    @property
    def until(self) -> float:
        return _time(self.records[-1])

    def frames(self, long_side: int) -> tuple[Frame, ...]:
        """As the camera's queue gave them. Raises UserError for what is no picture."""
        return tuple(Frame(shrink(decode_jpeg(r.body), long_side), _time(r), jpeg=r.body) for r in self.records)


def shown_in(stretch: Stretch, frames: dict[int, Record]) -> list[Shown]:
    """What a camera showed in a stretch, in the chunks of then, the last one cut at its end. Raises UserError where
    pictures are missing."""
    number, shown = stretch.number, []
    for cut in stretch.cuts:
        records = [frames[index] for index in range(number, number + cut.frames) if index in frames]
        here = tuple(record for record in records if _time(record) <= stretch.until)
        if len(records) < cut.frames:
            raise UserError(UNSEEN.format(mmss(cut.until)))
        if here:
            shown.append(Shown(here))
        if len(here) < len(records):
            break
        number += cut.frames
    return shown


def _time(record: Record) -> float:
    """Raises UserError for what is no second."""
    try:
        return packing.seconds(Packed({}, record.about), "time")
    except (KeyError, ValueError):
        raise UserError(DAMAGED) from None
