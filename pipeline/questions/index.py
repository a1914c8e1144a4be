"""What was seen, frame by frame: a row of findings for every picture, and where shots begin. No weights in here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.memory.log import Field, Log
from pipeline.senses.bodies import with_bodies
from pipeline.senses.sensed import Sensed
from pipeline.towers.frame_tower import FrameFeatures

SENSED = "sensed "  # before a sense's name in the table's columns


class Index(NamedTuple):
    """A snapshot's frames, one row each: seconds, locate keys, where shots begin, and the tower's findings.

    A row holds from its time to the next row's, the first one from 0, the last one to `until` (None: its own time).
    """

    times: np.ndarray
    keys: Tensor
    starts: np.ndarray  # frame numbers at which a shot begins, the first frame included
    features: FrameFeatures
    until: float | None = None
    sensed: Sensed = MappingProxyType({})  # what the senses keep of every frame, by their names

    @property
    def end(self) -> float:
        """The newest second that was seen."""
        return float(self.times[-1] if self.until is None else max(self.until, self.times[-1]))

    def row_at(self, time: float) -> int:
        """The row that holds at `time`: the picture on the screen then."""
        return max(0, int(np.searchsorted(self.times, time, "right")) - 1)

    def shot_of(self, frame: int) -> int:
        return int(np.searchsorted(self.starts, frame, "right")) - 1

    def cut(self, start: int, stop: int) -> Index:
        """Some of the frames, as a video of their own."""
        starts = self.starts[(self.starts > start) & (self.starts < stop)] - start
        features = FrameFeatures(*(column[start:stop] for column in self.features))
        until = self.until if stop == len(self.times) else None
        sensed = {name: rows[start:stop] for name, rows in self.sensed.items()}
        starts = np.concatenate([[0], starts])
        return Index(self.times[start:stop], self.keys[start:stop], starts, features, until, sensed)

    def frames_of(self, shot: int) -> range:
        end = self.starts[shot + 1] if shot + 1 < len(self.starts) else len(self.times)
        return range(int(self.starts[shot]), int(end))


def index_log(width: int, sensed: Mapping[str, int], device: torch.device | str = "cpu") -> Log:
    """An empty table of frames. width: of a locate key; sensed: how many numbers each sense keeps. 1.9 kB a frame."""
    f32, i16 = torch.float32, torch.int16
    fields = {
        "time": Field((None,), torch.float64),
        "key": Field((None, width), torch.float16),
        "novelty": Field((None,), f32),
        "classes": Field((None, 5), i16),
        "class_probs": Field((None, 5), f32),
        "det_ids": Field((None, 8), i16),
        "det_scores": Field((None, 8), f32),
        "det_boxes": Field((None, 8, 4), f32),
        **{SENSED + name: Field((None, numbers), torch.float16) for name, numbers in sensed.items()},
    }
    return Log(fields, block_slots=512, device=device)


def read_index(log: Log, cut: float, until: float | None = None) -> Index:
    """The table of a snapshot that saw the video `until` there: an hour is 7 MB, so every question makes its own."""
    columns = {name: log.tensor(name) for name in log.fields}
    blank = torch.zeros(0)
    features = FrameFeatures(
        blank,
        blank,
        columns["classes"].long(),
        columns["class_probs"],
        blank,
        columns["det_ids"].long(),
        columns["det_scores"],
        columns["det_boxes"],
    )
    novelty = columns["novelty"].numpy()
    starts = np.flatnonzero(novelty > cut)
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    sensed = {name.removeprefix(SENSED): rows.numpy() for name, rows in columns.items() if name.startswith(SENSED)}
    features = with_bodies(features, sensed["bodies"]) if "bodies" in sensed else features
    return Index(columns["time"].numpy(), columns["key"], starts, features, until, sensed)


def spread(frames: range, at_most: int, around: int | None = None) -> tuple[int, ...]:
    """At most `at_most` of consecutive frames: those nearest `around`, else evenly spread."""
    if around is not None:
        start = min(max(around - at_most // 2, frames.start), max(frames.stop - at_most, frames.start))
        return tuple(frames[i] for i in range(start - frames.start, min(start - frames.start + at_most, len(frames))))
    picks = np.linspace(0, len(frames) - 1, min(at_most, len(frames))).round().astype(int)
    return tuple(frames[int(i)] for i in picks)
