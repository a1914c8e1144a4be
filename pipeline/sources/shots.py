"""Shots, from the pictures alone: where one picture looks unlike the one before it, a new shot begins."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from pipeline.stream import Event, Frame

GRID = 6  # cells a side in which a picture's colours are averaged
LEVELS = 4  # steps of red, green and blue in its histogram of colours
CUT = 0.35  # difference of two looks from which a shot may begin: pans and people that walk up stay below
MOVING = 2.5  # ... where it is so many times what the pictures before differed by
BEFORE = 5  # pictures whose differences tell how much moves in a shot


def look(rgb: np.ndarray) -> np.ndarray:
    """How a picture looks from afar: half its histogram of colours, which a moving camera hardly changes, half who
    stands where. rgb: uint8 (height, width, 3). The sum of differences between two looks is 0 to about 2."""
    small = rgb[:: max(1, rgb.shape[0] // 48), :: max(1, rgb.shape[1] // 48)]
    levels = (small // (256 // LEVELS)).astype(int)
    bins = (levels[..., 0] * LEVELS + levels[..., 1]) * LEVELS + levels[..., 2]
    colours = np.bincount(bins.ravel(), minlength=LEVELS**3) / bins.size
    cells = 2 * _cells(small) / (255 * 3 * GRID**2)
    return np.concatenate([colours / 4, cells.ravel()])


def _cells(rgb: np.ndarray) -> np.ndarray:
    """Mean colours (GRID, GRID, 3); a picture of fewer pixels than cells repeats them."""
    rows, columns = (np.arange(GRID) * size // GRID for size in rgb.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(rgb.astype(float), rows, axis=0), columns, axis=1)
    heights, widths = (
        np.maximum(np.diff(np.append(edges, size)), 1)
        for edges, size in ((rows, rgb.shape[0]), (columns, rgb.shape[1]))
    )
    return sums / (heights[:, None, None] * widths[None, :, None])


class Shots:
    """Fed one picture after the other. `going` is the shot they are in; it has no end yet."""

    def __init__(self) -> None:
        self.going: Event | None = None
        self._look: np.ndarray | None = None
        self._moved: deque[float] = deque(maxlen=BEFORE)  # what the newest pictures of this shot differed by

    def go_on(self, start: float) -> None:
        """With a shot that began at that second and whose pictures are gone: the next one belongs to it."""
        self.going = Event(start, "shot")

    def add(self, frame: Frame) -> Event | None:
        """The shot that ends where this picture begins; None where it goes on."""
        now, ended = look(frame.rgb), None
        unknown = 2.0 if self.going is None else 0.0
        change = unknown if self._look is None else float(np.abs(now - self._look).sum())
        self._look = now
        if self.going is None or self._is_cut(change):
            ended = self.end(frame.time)
            self.going = Event(frame.time if ended else 0.0, "shot", weight=min(change, 2.0) / 2)
            self._moved.clear()
        else:
            self._moved.append(change)
        return ended

    def _is_cut(self, change: float) -> bool:
        return change > CUT and (not self._moved or change > MOVING * float(np.median(self._moved)))

    def end(self, at: float) -> Event | None:
        """The shot as it is where it ends at that second; None where none has begun."""
        return replace(self.going, until=at) if self.going else None
