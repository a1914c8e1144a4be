"""A film strip: the few pictures of a stream that differ most from each other, and not one every so many minutes."""

from __future__ import annotations

import numpy as np

from app.live.view import Picture
from pipeline import Frame

GRID = 6  # cells a side in which a picture's colours are averaged
LEVELS = 4  # steps of red, green and blue in its histogram of colours
TIME_SHARE = 0.08  # what lying as far apart as the stream is long adds to how much two pictures differ


class Film:
    """At most `limit` pictures. One more comes in as another goes: the one that is most like another. So a strip
    hardly moves while nothing new is seen, and keeps the first picture of every scene. One thread adds, any may look.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._looks: list[np.ndarray] = []
        self.pictures: tuple[Picture, ...] = ()  # in order of time

    def add(self, frame: Frame, jpeg: bytes) -> None:
        pictures = [*self.pictures, Picture(frame.time, jpeg)]
        self._looks.append(look(frame.rgb))
        if len(pictures) > self._limit:
            spare = most_alike(np.array([picture.time for picture in pictures]), np.array(self._looks))
            del pictures[spare], self._looks[spare]
        self.pictures = tuple(pictures)


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


def most_alike(times: np.ndarray, looks: np.ndarray) -> int:
    """The later one of the two pictures that differ least; of pictures all alike those that are nearest in time."""
    differ = np.abs(looks[:, None] - looks[None]).sum(-1)
    differ += TIME_SHARE * np.abs(times[:, None] - times[None]) / max(times[-1] - times[0], 1e-9)
    differ[np.triu_indices(len(times))] = np.inf  # every pair once, the later one first
    return int(np.unravel_index(differ.argmin(), differ.shape)[0])
