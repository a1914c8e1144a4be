"""What producers read of an index of frames (questions/index.py): words for a caption, and no more rows than needed."""

from __future__ import annotations

import math

import numpy as np

from pipeline.memory.log import Log
from pipeline.questions.facts import Known, described
from pipeline.questions.index import Index, read_index
from pipeline.senses.sensed import Senses


def rows_between(log: Log, start: float, end: float) -> Index:
    """The frames of some seconds as a video of one shot: those whose time is at least `start` and less than `end`."""
    first, last = (int(n) for n in np.searchsorted(log.tensor("time").numpy(), (start, end)))
    return read_index(log.drop_oldest(first).until(max(last - first, 0)), math.inf)


def shown(log: Log, senses: Senses, start: float, end: float) -> str:
    """A few words for what the pictures of some seconds surely show, as a sentence; "" where that is nothing."""
    index = rows_between(log, start, end)
    words = described(Known(index, senses), range(len(index.times))) if len(index.times) else ""
    return words and f"{words[0].upper()}{words[1:]}."
