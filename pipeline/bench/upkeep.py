"""What the embedded model costs beside watching and answering: its files, and what its senses add to a picture."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.models.embedded import EmbeddedModel
from pipeline.senses.sensed import Senses
from pipeline.stream import Frame, VideoChunk
from pipeline.towers.frame_tower import ASSETS, FrameFeatures

ROUNDS = 6  # chunks with the senses and without, by turns


class NoSenses(Senses):
    """Senses that keep nothing."""

    def see(self, frames: Sequence[np.ndarray], features: FrameFeatures) -> dict[str, Tensor]:
        return {}

    @property
    def widths(self) -> dict[str, int]:
        return {}


def files(folder: Path = ASSETS) -> dict[str, int]:
    """Bytes of all that ships beside the code, and of the largest file."""
    sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()]
    return {"assets_bytes": sum(sizes), "largest_asset_bytes": max(sizes)}


def with_and_without(model: EmbeddedModel, frames: Sequence[Frame]) -> dict[str, float]:
    """Milliseconds of processor time a picture, medians over ROUNDS: the wall clock would tell how busy it is."""
    own, spent = model.senses, dict[str, list[float]](senses=[], none=[])
    try:
        for name, senses in itertools.islice(itertools.cycle([("senses", own), ("none", NoSenses())]), 2 * ROUNDS + 2):
            model.senses = senses
            began = time.process_time()
            model.watch(VideoChunk(tuple(frames)), model.start())
            spent[name].append((time.process_time() - began) / len(frames) * 1e3)
    finally:
        model.senses = own
    seen, blind = (statistics.median(spent[name][1:]) for name in ("senses", "none"))  # the first of each warms up
    return {"picture_cpu_ms": seen, "picture_cpu_ms_without_senses": blind, "senses_over_none": seen / blind}


def measure_upkeep(model: EmbeddedModel, frames: Sequence[Frame]) -> dict[str, Any]:
    return files() | with_and_without(model, frames)
