"""Which packets need not be decoded, decided for one group of pictures at a time, before it is decoded.

Nothing that is on the screen at a tick is ever left out: the packets' own stamps say what is on the screen when. So
where stamps are missing, uneven or out of order, a group and its neighbours are decoded whole. Standard library only.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_PACKETS, MAX_BYTES = 500, 32 << 20  # of a group held back; a longer one is cut there
UNSURE = 24  # packets decoded whole after something odd, while the clock makes up its mind


@dataclass(frozen=True)
class Group:
    """Packets in file order, from a keyframe (`keyed`) to before the next. stamps: sorted; None if one is missing."""

    packets: list[Any]
    keyed: bool
    stamps: list[int] | None

    @property
    def leading(self) -> int:
        """How many pictures are shown before the keyframe though stored after it: they need the group before."""
        return self.stamps.index(self.packets[0].pts) if self.stamps else 0


@dataclass(frozen=True)
class Plan:
    """What of a group goes to the decoder: its first `feed` packets. wanted: stamps of pictures to be given."""

    feed: int
    wanted: frozenset[int]


def grouped(packets: Iterable[Any]) -> Iterator[Group]:
    """Packets cut at keyframes, and where a group grows too long."""
    held: list[Any] = []
    size = 0
    for packet in packets:
        if held and (packet.is_keyframe or len(held) >= MAX_PACKETS or size > MAX_BYTES):
            yield group(held)
            held, size = [], 0
        held.append(packet)
        size += packet.size
    if held:
        yield group(held)


def group(packets: list[Any]) -> Group:
    stamps = [p.pts for p in packets if not p.is_discard]
    known = len(stamps) == len(packets) and None not in stamps
    return Group(packets, packets[0].is_keyframe, sorted(stamps) if known else None)


def with_neighbours(groups: Iterable[Group]) -> Iterator[tuple[Group | None, Group, Group | None]]:
    """(the one before, group, the one after)."""
    before, held = None, None
    for following in itertools.chain(groups, [None]):
        if held:
            yield before, held, following
        before, held = held, following


class Saver:
    """Plans groups. `second`: units of the time base in a second. `wants(start, end)`: whether a tick lies in there.

    cuts: keyframes stand alone in this codec, so a group may be left where the last wanted picture is decoded.
    """

    def __init__(self, second: float, wants: Callable[[int, int], bool], cuts: bool) -> None:
        self.second, self.wants, self.cuts, self.unsure = second, wants, cuts, UNSURE

    def plan(self, before: Group | None, group: Group, after: Group | None) -> Plan | None:
        """What of `group` to decode; None: all of it, nothing left out."""
        if not (before and after and self.even(before, group, after)):
            self.unsure = UNSURE
            return None
        if self.unsure > 0:
            self.unsure -= len(group.packets)
            return None
        wanted = self.wanted(group, after)
        feed = len(group.packets)
        if self.cuts and group.keyed and after.keyed and not self.needs_previous(after):
            needed = max((i + 1 for i, p in enumerate(group.packets) if p.pts in wanted), default=0)
            feed = needed if feed - needed >= max(2, feed // 8) or not needed else feed
        return Plan(feed, frozenset(wanted))

    def even(self, *groups: Group) -> bool:
        """Whether the stamps of these groups, one after the other, are evenly spaced and no more than a second apart.

        A stamp that is not where its picture is shown lies close to another one, or beyond its group.
        """
        stamps = [g.stamps or [] for g in groups]
        if not all(stamps):
            return False
        steps = [b - a for a, b in itertools.pairwise(itertools.chain.from_iterable(stamps))]
        return 0 < max(steps) <= self.second and min(steps) >= 0.5 * statistics.median_low(steps) > 0

    def wanted(self, group: Group, after: Group) -> set[int]:
        """Stamps of the pictures on the screen at a tick."""
        assert group.stamps is not None and after.stamps is not None  # of even groups
        return {a for a, b in itertools.pairwise([*group.stamps, after.stamps[0]]) if self.wants(a, b)}

    def needs_previous(self, group: Group) -> bool:
        """Whether a picture that needs the group before is wanted."""
        assert group.stamps is not None  # of an even group
        return any(self.wants(a, b) for a, b in itertools.pairwise(group.stamps[: group.leading + 1]))
