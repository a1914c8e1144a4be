"""What a stream of one sequence carries (models/sequence.py), as a value, and packed to be kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pipeline.keeping import packing
from pipeline.layers.mamba2 import MixerState
from pipeline.memory.memory import Memory
from pipeline.models.native import Reservoir
from pipeline.stream import Packed

SNAPSHOT_UNITS, SNAPSHOTS_KEPT = (
    16,
    8,
)  # a snapshot every so many units, where a pass ends; of each age's, about so many are kept


class Snapshot(NamedTuple):
    """The states as they were after `units` units, the newest frame of which was at `time`; `length` tokens in all."""

    time: float
    units: int
    length: int
    states: tuple[MixerState, ...]


@dataclass(frozen=True, eq=False)
class Told:
    """All that the sequence carries.

    states: of every recurrent layer. memory: keys and values of every attention layer from the first unit on, or None
    where nothing attends; a slot of text has no time (NaN). length: tokens so far, so the next one's position. units:
    how many were appended; per_unit: visual tokens of each. dropped: slots that a limit has let go.
    """

    states: tuple[MixerState, ...]
    memory: Memory | None
    length: int
    units: int = 0
    per_unit: int = 1
    dropped: int = 0
    snapshots: tuple[Snapshot, ...] = ()
    pictures: Reservoir | None = None


def is_kept(unit: int, units: int) -> bool:
    """Whether the snapshot after `unit` is kept when there are `units`: of both counts alone, so no cut matters.

    Dense near the newest, then half as dense each time the age doubles; and the first, to have one to answer from.
    """
    if unit == 1 or unit % SNAPSHOT_UNITS:
        return unit == 1
    place = unit // SNAPSHOT_UNITS
    return units // SNAPSHOT_UNITS - place < SNAPSHOTS_KEPT * (place & -place)  # times the largest power of 2 in it


def pack_told(told: Told) -> Packed:
    snapshots = {str(i): _pack_snapshot(snapshot) for i, snapshot in enumerate(told.snapshots)}
    parts = {
        "states": packing.pack_mixers(told.states),
        "snapshots": packing.join(snapshots, count=len(snapshots)),
        "memory": Packed({}, {}) if told.memory is None else packing.pack_memory(told.memory),
    }
    if told.pictures is not None:
        parts["pictures"] = told.pictures.pack()
    return packing.join(parts, length=told.length, units=told.units, per_unit=told.per_unit, dropped=told.dropped)


def unpack_told(kept: Packed, start: Told) -> Told:
    """start: the model's own before the first frame. May raise KeyError, TypeError or ValueError."""
    memory, snapshots = start.memory, packing.part(kept, "snapshots")
    if memory is not None:
        memory = packing.unpack_memory(packing.part(kept, "memory"), memory)
    length, units, per_unit, dropped = (
        packing.count(kept, name) for name in ("length", "units", "per_unit", "dropped")
    )
    if dropped and not memory:
        raise ValueError("everything was dropped")
    states = packing.unpack_mixers(packing.part(kept, "states"), start.states)
    many = packing.count(snapshots, "count")
    parts = [_unpack_snapshot(packing.part(snapshots, str(i)), start) for i in range(many)]
    pictures = None if start.pictures is None else start.pictures.unpack(packing.part(kept, "pictures"))
    return Told(states, memory, length, units, per_unit, dropped, tuple(parts), pictures)


def _pack_snapshot(snapshot: Snapshot) -> Packed:
    states = {"states": packing.pack_mixers(snapshot.states)}
    return packing.join(states, time=snapshot.time, units=snapshot.units, length=snapshot.length)


def _unpack_snapshot(kept: Packed, start: Told) -> Snapshot:
    states = packing.unpack_mixers(packing.part(kept, "states"), start.states)
    return Snapshot(packing.seconds(kept, "time"), packing.count(kept, "units"), packing.count(kept, "length"), states)
