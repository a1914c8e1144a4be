"""A system's native form: the few pictures its weights were trained on, kept of a stream while it is watched.

mmMamba, HoVLE, ML-Mamba and Gemamba were trained on some thirty pictures, on one, on eight. So a stream of theirs holds
two things: what is carried from picture to picture ("streamed", longer than they ever saw), and a bounded number of the
pictures themselves, from which a question chooses as many as the system was trained on and has them encoded anew
("native").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from pipeline.clock import mmss
from pipeline.keeping import packing
from pipeline.stream import Basis, Frame, Packed


@dataclass(frozen=True, eq=False)
class Reservoir:
    """Pictures of a stream: every `stride`-th from the first on, at most `room` (an even number), and the newest.

    When there is no room every other one goes and the stride doubles. So what is held depends on which pictures were
    seen, on no cut and on none that is still to come. frames: how many were seen.
    """

    room: int
    stride: int = 1
    frames: int = 0
    spread: tuple[Frame, ...] = ()
    newest: Frame | None = None

    def see(self, frames: Sequence[Frame], fitted: Callable[[Frame], Frame]) -> Reservoir:
        """After these pictures, too, each as `fitted` makes it once it is kept."""
        spread, stride = list(self.spread), self.stride
        for number, frame in enumerate(frames, self.frames):
            if number % stride:
                continue
            if len(spread) == self.room:  # then this one is of the doubled stride, too
                spread, stride = spread[::2], 2 * stride
            spread.append(frame)
        seen = self.frames + len(frames)
        kept = tuple(map(fitted, spread))
        newest = kept[-1] if (seen - 1) % stride == 0 else fitted(frames[-1])
        return replace(self, stride=stride, frames=seen, spread=kept, newest=newest)

    def until(self, second: float | None) -> tuple[Frame, ...]:
        """Those of that second or before (None: all), in order; at least the first, where there is one."""
        if self.newest is None:
            return ()
        held = self.spread if self.newest is self.spread[-1] else (*self.spread, self.newest)
        return held[:1] + tuple(frame for frame in held[1:] if second is None or frame.time <= second)

    @property
    def nbytes(self) -> int:
        return sum(frame.rgb.nbytes for frame in self.until(None))

    def pack(self) -> Packed:
        pictures = packing.pack_frames(self.until(None))
        return packing.join({"pictures": pictures}, stride=self.stride, frames=self.frames)

    def unpack(self, packed: Packed) -> Reservoir:
        """What was packed, with this one's room. May raise KeyError, TypeError or ValueError."""
        frames, stride = packing.count(packed, "frames"), packing.count(packed, "stride")
        held = packing.unpack_frames(packing.part(packed, "pictures"))
        spread = -(-frames // max(1, stride))
        if spread > self.room or len(held) != spread + bool(frames and (frames - 1) % stride):
            raise ValueError("other pictures than were kept")
        return replace(self, stride=stride, frames=frames, spread=held[:spread], newest=held[-1] if held else None)


@dataclass(frozen=True)
class NativeForm:
    """Which pictures a system was trained to see. choose: of those at hand, in order. fitted: as its eyes take them.

    room: pictures kept to choose from. trained: how many pictures, in words.
    """

    room: int
    choose: Callable[[Sequence[Frame]], Sequence[Frame]]
    fitted: Callable[[Frame], Frame]
    trained: str

    def basis(self, chosen: Sequence[Frame]) -> Basis:
        times = sorted({mmss(frame.time) for frame in chosen})
        distinct = len({id(frame) for frame in chosen})
        if distinct == 1:
            return Basis("native", f"one picture, of {times[0]}")
        return Basis("native", f"{distinct} pictures, {mmss(chosen[0].time)} to {mmss(chosen[-1].time)}")

    def carried(self, frames: int) -> Basis:
        """Of an answer from what is carried, after so many pictures."""
        return Basis("streamed", f"carried through {frames:,} pictures, trained on {self.trained}")


def fitted(squash: Callable[[np.ndarray, int], np.ndarray], side: int) -> Callable[[Frame], Frame]:
    """Makes a frame's picture the square that a tower takes; one that is such a square already stays."""

    def fit(frame: Frame) -> Frame:
        rgb = squash(frame.rgb, side)
        return frame if rgb is frame.rgb else replace(frame, rgb=rgb)

    return fit


def evenly(most: int) -> Callable[[Sequence[Frame]], Sequence[Frame]]:
    """Chooses so many, spread from the first to the newest; all where there are no more."""

    def choose(frames: Sequence[Frame]) -> Sequence[Frame]:
        if len(frames) <= most:
            return frames
        return [frames[int(place)] for place in np.linspace(0, len(frames) - 1, most).round()]

    return choose


def newest(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Chooses the newest alone."""
    return frames[-1:]


def middles(count: int) -> Callable[[Sequence[Frame]], Sequence[Frame]]:
    """Chooses the middle one of each of `count` equal stretches; of fewer than `count`, all and the last one again
    (VideoMamba's sampling "middle")."""

    def choose(frames: Sequence[Frame]) -> Sequence[Frame]:
        ends = np.linspace(0, len(frames), min(count, len(frames)) + 1).astype(int)
        chosen = [frames[(start + end - 1) // 2] for start, end in pairwise(ends)]
        return chosen + chosen[-1:] * (count - len(chosen))

    return choose
