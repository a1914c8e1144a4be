"""How a Vamba answers about a stream without an end: from the newest minutes, and older moments it looks for.

Older keys and values lie in a file (memory/disk.py). Beside them stays a coarse memory: of every pair of pictures one
slot, the mean of its keys and of its values in every layer, 57 kB at the published size. A question is first read over
it, as over a memory; the pairs it looks at most beyond the usual (`TextDecoder.looked`) are read back, and it is read
again over them and the newest minutes. Every pair has one slot there, so old and new weigh alike. Of the coarse memory,
too, only the newest half hour stays: older means lie in the file, and a mean of each minute of them says, by the same
reading, in which minutes to look. So what stays on the GPU, and what a question reads, is the same after a day as after
an hour, but for 3 MB an hour. Means hide what is small in a picture: this is an approximation, and the page says so.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pipeline.layers.reading import TextDecoder
from pipeline.memory.memory import Memory

READ_BACK = 64  # frames, where `retrieve` names no other number
MINUTES_BACK = 32  # of the coarse memory


class Far:
    """What one question reads of a memory. near_from: the number of the first slot that is read anyway. count: slots of
    the coarse memory whose slots are read back at most; in here they are called groups."""

    def __init__(self, memory: Memory, near_from: int, count: int):
        self.memory, self.near_from, self.count = memory, near_from, count
        assert memory.coarse is not None  # of a stream without an end
        times, groups = memory.times, memory.coarse.times
        slots = max(0, min(near_from - memory.log.gone, len(times)))
        self.times = times[:slots]  # of slots that may be read back
        self.cut = 0 < slots == len(times)  # a question about a time before the newest minutes
        first = int(np.searchsorted(groups, times[0])) if slots else 0
        last = int(np.searchsorted(groups, self.times[-1])) + 1 if slots else 0
        self.groups = groups[first:last]  # seconds of their last slots
        self.seen = range(first, int(np.searchsorted(groups, times[-1], "right")) if slots else 0)
        self.chosen = np.arange(len(self.groups))

    @property
    def ranking(self) -> Memory | None:
        """What tells which to read back; None where all are. It may itself be too long to be read."""
        if len(self.groups) <= self.count:
            return None
        assert self.memory.coarse is not None
        log = self.memory.coarse.log.until(self.seen.stop).drop_oldest(self.seen.start)
        return replace(self.memory.coarse, log=log)

    def found(self, finder: TextDecoder) -> None:
        """finder: has read the question over `ranking`, or a part of it. A group that is only partly far is read as a
        whole."""
        assert finder.looked is not None and finder.instants is not None  # a question was just read
        looked, seconds = finder.looked.cpu().numpy(), finder.instants.times
        far = int(np.searchsorted(seconds, self.groups[-1], "right"))
        best = seconds[np.argsort(-looked[:far], kind="stable")[: self.count]]
        newest = np.arange(len(self.groups))[-self.count if self.cut else -1 :]
        self.chosen = np.union1d(np.searchsorted(self.groups, best), newest)

    def brought_back(self) -> Memory:
        """The chosen groups' slots and all of the newest; what no group holds yet belongs to these."""
        ends = np.searchsorted(self.times, self.groups, "right")
        starts = np.concatenate([[0], ends])
        parts = [np.arange(starts[group], ends[group]) for group in self.chosen]
        slots = np.concatenate([*parts, np.arange(starts[-1], len(self.times))])
        return self.memory.brought_back(torch.from_numpy(slots), self.near_from)


def note_of(memory: Memory, frames: int) -> list[str]:
    """For the visitor, where something is far."""
    if not memory.disk_nbytes:
        return []
    share = memory.disk_nbytes / memory.nbytes
    note = f"{share:.0%} of it on the disk: of that an answer reads the {frames:,} frames its question looks at most"
    if memory.coarse is not None and memory.coarse.disk_nbytes and memory.coarse.coarse is not None:
        note += f", in the {MINUTES_BACK} of {len(memory.coarse.coarse):,} minutes whose means it looks at most"
    return [note]
