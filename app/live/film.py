"""A film strip: the few pictures of a stream that differ most from each other, and not one every so many minutes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from app.live.view import Picture
from pipeline import Frame, look

LOOKED_AT = 20  # times as many pictures of an earlier run are looked at as are shown
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

    def put_back(self, pictures: Sequence[Picture]) -> None:
        """From pictures of an earlier run, in order of time: of many those that lie evenly."""
        for picture in pictures[:: max(1, len(pictures) // (LOOKED_AT * self._limit))]:
            with contextlib.suppress(OSError):  # damaged
                self.add(
                    Frame(np.asarray(Image.open(io.BytesIO(picture.jpeg)).convert("RGB")), picture.time), picture.jpeg
                )


def most_alike(times: np.ndarray, looks: np.ndarray) -> int:
    """The later one of the two pictures that differ least; of pictures all alike those that are nearest in time."""
    differ = np.abs(looks[:, None] - looks[None]).sum(-1)
    differ += TIME_SHARE * np.abs(times[:, None] - times[None]) / max(times[-1] - times[0], 1e-9)
    differ[np.triu_indices(len(times))] = np.inf  # every pair once, the later one first
    return int(np.unravel_index(differ.argmin(), differ.shape)[0])
