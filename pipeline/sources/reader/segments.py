"""Giving parts of a file away: which groups may be decoded by another process, and how that process decodes them.

One process, the scout, goes through all packets in file order. Groups that stand alone it does not decode: their
packets' stamps go through the same clock and sampler as decoded pictures would, and what is wanted of them becomes a
Segment for another reader. Every reader goes through the packets from the file's start by itself and counts them, so
no seek can land elsewhere; and it checks, picture by picture, that the decoder gives what the stamps promised. Where it
does not, the reader says so, and the file is read on by one process that decodes everything in order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import av

from .savings import Group, grouped, needed

SHARED = ("mov", "matroska")  # demuxers whose stamps are those of pictures, and whose tracks do not change
PARAMETERS = {"h264": {7, 8}, "hevc": {32, 33, 34}}  # types of NAL units that hold parameter sets
FRESH = {"h264": {5}, "hevc": set(range(16, 22))}  # and of keyframes after which nothing refers to what was before


class Strayed(Exception):
    """The decoder did not give what the packets' stamps promised, or failed."""


@dataclass
class Segment:
    """Consecutive packets that stand alone: the `count` from the one numbered `first`.

    wanted: (stamp, seconds, progress of the file 0..1) of each picture to be given, in order.
    """

    first: int
    count: int = 0
    wanted: list[tuple[int, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Ticket:
    """Stands for a picture that another reader decodes."""

    segment: Segment
    pts: int


def nal_types(packet: av.Packet, codec: str, length: int) -> set[int]:
    """Types of the NAL units of a packet in which each follows its length (ISO 14496-15), in `length` bytes."""
    data, at, types = memoryview(packet), 0, set()
    while at + length < len(data):
        size, head = int.from_bytes(data[at : at + length], "big"), data[at + length]
        types.add(head & 31 if codec == "h264" else head >> 1 & 63)
        at += length + size
    return types


class Sharing:
    """Decides which groups are given away, a group and the one after it at a time, and numbers their packets.

    alone: pixels that the scout still decodes itself; a short file is not worth other processes.
    """

    def __init__(self, stream: av.VideoStream, packets: int, alone: float) -> None:
        self.codec, context = stream.codec_context.name, stream.codec_context
        extra = context.extradata or b""
        self.length = 0  # of a NAL unit's length in bytes; 0: another codec, or units are not stored so
        if self.codec in FRESH and len(extra) > 22 and extra[0] == 1:
            self.length = (extra[4] if self.codec == "h264" else extra[21]) % 4 + 1
        self.pixels, self.packets, self.alone = context.width * context.height, packets, alone
        self.parameters: set[int] | None = None  # kinds of parameter sets in the first keyframe
        self.at, self.segment, self.newest = 0, Segment(0), -math.inf

    def gives(self, group: Group, after: Group | None) -> bool:
        """Whether another reader may have this group; to be asked about every group in turn."""
        self.at += len(group.packets)
        self.alone -= self.pixels * len(group.packets)
        before, self.newest = self.newest, max([self.newest, *(group.stamps or [])])
        good = self.stands_alone(group, before) and (after is None or self.stands_alone(after, self.newest))
        return self.alone < 0 and good

    def stands_alone(self, group: Group, before: float) -> bool:
        """Whether its pictures are known by distinct stamps, all after `before`, and need nothing that was before."""
        key, stamps = group.packets[0], group.stamps
        if not (group.keyed and stamps and stamps[0] == key.pts > before and len(set(stamps)) == len(stamps)):
            return False
        if any(packet.has_sidedata("new_extradata") for packet in group.packets):
            return False
        return self.codec not in FRESH or (self.length > 0 and self.fresh(nal_types(key, self.codec, self.length)))

    def fresh(self, types: set[int]) -> bool:
        """Whether a keyframe of these NAL units starts anew, with its parameter sets where the first one's were."""
        parameters = types & PARAMETERS[self.codec]
        if self.parameters is None:
            self.parameters = parameters
        return bool(types & FRESH[self.codec]) and parameters == self.parameters

    def tickets(self, group: Group) -> Iterator[Ticket]:
        """The pictures of the group that `gives` was asked about last, in the order of showing."""
        first, count, segment = self.at - len(group.packets), len(group.packets), self.segment
        if segment.first + segment.count != first or segment.count >= self.packets:
            segment = self.segment = Segment(first)
        segment.count += count
        assert group.stamps is not None  # of a group that stands alone
        for pts in group.stamps:
            yield Ticket(segment, pts)


class Decoding(Protocol):
    """The reader, as far as it matters here."""

    context: av.VideoCodecContext
    skipped: int
    spares: bool

    def packets(self) -> Iterator[av.Packet]: ...
    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]: ...


class SegmentReader:
    """Decodes segments, in file order, in a process that has the file for itself. `check` refuses a picture."""

    def __init__(self, reader: Decoding, check: Callable[[av.VideoFrame], None]) -> None:
        self.reader, self.check = reader, check
        self.packets, self.at = reader.packets(), 0
        # Concealment borrows from pictures that are not there: damage is left to who has decoded all before it.
        reader.context.options = reader.context.options | {"err_detect": "explode"}

    def frames(self, segment: Segment) -> Iterator[tuple[av.VideoFrame, int]]:
        """(picture, its place among the wanted ones). Raises Strayed."""
        places = {pts: place for place, (pts, _, _) in enumerate(segment.wanted)}
        for group in grouped(self.taken(segment)):
            for frame in self.decoded(group, {p.pts for p in group.packets if p.pts in places}):
                assert frame.pts is not None  # of a promised one
                yield frame, places[frame.pts]

    def taken(self, segment: Segment) -> Iterator[av.Packet]:
        """Its packets. What lies before is passed over."""
        ahead, count = segment.first - self.at, 0
        for packet in itertools.islice(self.packets, ahead, ahead + segment.count):
            count += 1
            yield packet
        self.at = segment.first + count
        if count < segment.count or self.reader.skipped:
            raise Strayed

    def decoded(self, group: Group, wanted: set[int]) -> Iterator[av.VideoFrame]:
        """The wanted pictures of a group; one is held back until the next picture has come as promised."""
        if not wanted:
            return
        fed = group.packets[: needed(group, wanted)]
        kept = {p.pts for p in fed if p.pts in wanted or not self.reader.spares}
        promised, held = iter(sorted(p.pts for p in fed)), None
        for frame in self.pictures(fed, kept):
            self.check_order(frame, promised, kept)
            self.check(frame)
            if held is not None:
                yield held
            held = frame if frame.pts in wanted else None
            wanted.discard(frame.pts)
        if wanted or not kept.isdisjoint(promised):
            raise Strayed
        if held is not None:
            yield held

    def pictures(self, fed: list[av.Packet], kept: set[int]) -> Iterator[av.VideoFrame]:
        """What the decoder gives, from the keyframe until it is empty. Raises Strayed for a picture without stamps."""
        context = self.reader.context
        context.flush_buffers()
        first = True
        for packet in [*fed, None]:
            if packet is not None:
                context.skip_frame = "DEFAULT" if packet.pts in kept else "NONREF"
            for frame in self.reader.decode(packet):
                if self.reader.skipped or frame.is_corrupt or frame.pts is None or (first and not frame.key_frame):
                    raise Strayed
                first = False
                yield frame
        if self.reader.skipped:
            raise Strayed

    def check_order(self, frame: av.VideoFrame, promised: Iterator[Any], kept: set[int]) -> None:
        """Raises Strayed unless only pictures that may be left out lie between this one and the one before."""
        for pts in promised:
            if pts == frame.pts:
                return
            if pts in kept:
                break
        raise Strayed
