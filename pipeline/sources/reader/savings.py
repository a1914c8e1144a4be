"""Which packets need not be decoded, decided for one group of pictures at a time, before it is decoded.

Nothing that is on the screen at a tick is ever left out: the packets' own stamps say what is on the screen when. So
where stamps are missing, uneven or out of order, a group and its neighbours are decoded whole. What is decided of a
group follows from the group and its neighbours alone, not from all that came before. Standard library only.
"""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

MAX_PACKETS, MAX_BYTES = 500, 32 << 20  # of a group held back; a longer one is cut there
SETTLED = 24  # pictures before a group that must be even too: the clock may take so many to make up its mind


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


def needed(group: Group, wanted: Iterable[int]) -> int:
    """How many packets of a group to decode, so that the wanted stamps come; all where little would be saved."""
    stamps, count = set(wanted), len(group.packets)
    least = max((i + 1 for i, p in enumerate(group.packets) if p.pts in stamps), default=0)
    return least if count - least >= max(2, count // 8) or not least else count


def with_neighbours(groups: Iterable[Group]) -> Iterator[tuple[tuple[int | None, ...], Group, Group | None]]:
    """(stamps of the SETTLED pictures before it, None for an unknown one; the group; the one after)."""
    before: deque[int | None] = deque(maxlen=SETTLED)
    held: Group | None = None
    for following in itertools.chain(groups, [None]):
        if held:
            yield tuple(before), held, following
            before.extend(held.stamps or [None])
        held = following


class Saver:
    """Plans groups. `second`: units of the time base in a second. `wants(start, end)`: whether a tick lies in there.

    cuts: keyframes stand alone in this codec, so a group may be left where the last wanted picture is decoded.
    """

    def __init__(self, second: float, wants: Callable[[int, int], bool], cuts: bool) -> None:
        self.second, self.wants, self.cuts = second, wants, cuts

    def plan(self, before: Sequence[int | None], group: Group, after: Group | None) -> Plan | None:
        """What of `group` to decode; None: all of it, nothing left out."""
        if not (after and len(before) >= SETTLED and self.even(before, group.stamps or [None], after.stamps or [None])):
            return None
        wanted = self.wanted(group, after)
        whole = not (self.cuts and group.keyed and after.keyed and not self.needs_previous(after))
        return Plan(len(group.packets) if whole else needed(group, wanted), frozenset(wanted))

    def even(self, *stamps: Sequence[int | None]) -> bool:
        """Whether these stamps, one after the other, are evenly spaced and no more than a second apart.

        A stamp that is not where its picture is shown lies close to another one, or beyond its group.
        """
        known = [stamp for stamp in itertools.chain.from_iterable(stamps) if stamp is not None]
        if len(known) < sum(map(len, stamps)):
            return False
        steps = [b - a for a, b in itertools.pairwise(known)]
        return 0 < max(steps) <= self.second and min(steps) >= 0.5 * statistics.median_low(steps) > 0

    def wanted(self, group: Group, after: Group) -> set[int]:
        """Stamps of the pictures on the screen at a tick."""
        assert group.stamps is not None and after.stamps is not None  # of even groups
        return {a for a, b in itertools.pairwise([*group.stamps, after.stamps[0]]) if self.wants(a, b)}

    def needs_previous(self, group: Group) -> bool:
        """Whether a picture that needs the group before is wanted."""
        assert group.stamps is not None  # of an even group
        return any(self.wants(a, b) for a, b in itertools.pairwise(group.stamps[: group.leading + 1]))
