"""How a Vamba answers about a stream without an end: from the newest minutes, and older moments it looks for.

Older keys and values lie in a file (memory/disk.py). Beside them stays a coarse memory: of every pair of pictures one
slot, the mean of its keys and of its values in every layer, 57 kB at the published size. A question is first read over
it, as over a memory; the pairs it looks at most beyond the usual (`TextDecoder.looked`) are read back, and it is read
again over them and the newest minutes. Every pair has one slot there, so old and new weigh alike. Means hide what is
small in a picture: this is an approximation, and the page says so.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from pipeline.layers.reading import TextDecoder
from pipeline.memory.memory import Memory

READ_BACK = 64  # frames, where `retrieve` names no other number


class Far:
    """What one question reads of a memory. near_from: the number of the first slot that is read anyway. count: pairs
    read back at most."""

    def __init__(self, memory: Memory, near_from: int, count: int):
        self.memory, self.near_from, self.count = memory, near_from, count
        assert memory.coarse is not None  # of a stream without an end
        times, pairs = memory.times, memory.coarse.times
        slots = max(0, min(near_from - memory.log.gone, len(times)))
        self.times = times[:slots]  # of slots that may be read back
        self.cut = 0 < slots == len(times)  # a question about a time before the newest minutes
        first = int(np.searchsorted(pairs, times[0])) if slots else 0
        last = int(np.searchsorted(pairs, self.times[-1], "right")) if slots else 0
        self.pairs = pairs[first:last]  # the same by pair
        self.seen = range(first, int(np.searchsorted(pairs, times[-1], "right")) if slots else 0)
        self.chosen = self.pairs

    @property
    def ranking(self) -> Memory | None:
        """What tells which to read back; None where all are."""
        if len(self.pairs) <= self.count:
            return None
        assert self.memory.coarse is not None
        log = self.memory.coarse.log.until(self.seen.stop).drop_oldest(self.seen.start)
        return replace(self.memory.coarse, log=log)

    def found(self, finder: TextDecoder) -> None:
        """finder: has read the question over `ranking`. A pair that is only partly far is read as a whole."""
        assert finder.looked is not None  # a question was just read
        looked = finder.looked[: len(self.pairs)].cpu().numpy()
        best = self.pairs[np.argsort(-looked, kind="stable")[: self.count]]
        self.chosen = np.union1d(best, self.pairs[-self.count :] if self.cut else self.pairs[-1:])

    def brought_back(self) -> Memory:
        slots = torch.from_numpy(np.flatnonzero(np.isin(self.times, self.chosen)))
        return self.memory.brought_back(slots, self.near_from)


def note_of(memory: Memory, frames: int) -> list[str]:
    """For the visitor, where something is far."""
    if not memory.disk_nbytes:
        return []
    share = memory.disk_nbytes / memory.nbytes
    return [f"{share:.0%} of it on the disk: of that an answer reads the {frames:,} frames its question looks at most"]
