"""What the embedded model costs beside watching and answering: its files, what its senses add to a picture, and what
keeping the stream does."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.engine import Engine
from pipeline.keeping.cipher import can_encrypt
from pipeline.keeping.keeper import Keeper
from pipeline.keeping.kept import KeptStream
from pipeline.keeping.reels import frame_records
from pipeline.models.embedded import EmbeddedModel
from pipeline.senses.sensed import Senses
from pipeline.sources.camera import thumbnail
from pipeline.stream import JSON, Frame, UserError, VideoChunk
from pipeline.towers.frame_tower import ASSETS, FrameFeatures

ROUNDS = 6  # chunks with the senses and without, by turns
CHUNK = 8  # pictures that are watched and kept at once; a file's on a CPU


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


def kept_over_watched(model: EmbeddedModel, frames: Sequence[Frame], secret: str = "") -> float:
    """Processor time of keeping a stream in chunks of CHUNK pictures, each with its JPEG as a camera sends it, over
    that of watching it. secret: encrypted by that."""
    engine, jpegs = Engine(model), [thumbnail(frame, frame.rgb.shape[1]) for frame in frames]
    engine.watch(VideoChunk(tuple(frames[:CHUNK])), engine.start())  # warms up
    with tempfile.TemporaryDirectory(prefix="vamba-upkeep-") as folder:
        about: dict[str, JSON] = {"model": "embedded", "backend": engine.backend}
        keeper, state = Keeper(engine, KeptStream.create(Path(folder) / "stream", about, secret)), engine.start()
        began = time.process_time()
        for first in range(0, len(frames), CHUNK):
            chunk, shown = tuple(frames[first : first + CHUNK]), jpegs[first : first + CHUNK]
            state = engine.watch(VideoChunk(chunk), state)
            sent = [replace(frame, jpeg=jpeg) for frame, jpeg in zip(chunk, shown)]
            keeper.watched(len(chunk), first + len(chunk), state, frame_records(sent, first))
        keeper.close()
        spent = time.process_time() - began
    if keeper.error:
        raise UserError(keeper.error)
    return keeper.seconds / (spent - keeper.seconds)


def keeping(model: EmbeddedModel, frames: Sequence[Frame]) -> dict[str, float]:
    """As it is, and encrypted where the library is there."""
    kept_over_watched(model, frames[:CHUNK])  # warms up
    found = {"kept_over_watched": kept_over_watched(model, frames)}
    if can_encrypt():
        found["encrypted_over_watched"] = kept_over_watched(model, frames, "a key of random letters")
    return found


def measure_upkeep(model: EmbeddedModel, frames: Sequence[Frame]) -> dict[str, Any]:
    more = [replace(frame, time=float(n)) for n, frame in enumerate(ROUNDS * list(frames))]
    return files() | with_and_without(model, frames) | keeping(model, more)
