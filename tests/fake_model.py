"""A small deterministic VideoModel for tests of the page: it counts frames and remembers their mean colours."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from pipeline import Engine, StreamState
from pipeline.stream import Token


class FakeModel:
    """Sees the mean colour of every frame. `delay` seconds a frame and a token; `grow` bytes of memory a frame."""

    unit_frames = 1
    long_side = 224
    backend = "cpu, fp32"
    about = "A counting model for tests: it knows when it saw which colour, and nothing else."

    def __init__(
        self, name: str = "Fake Vamba", delay: float = 0.0, grow: int = 3_000, constant: int = 290_000
    ) -> None:
        self.name, self.delay, self.grow, self.constant = name, delay, grow, constant

    def start(self) -> StreamState:
        return StreamState(backbone=(), state_bytes=self.constant)

    def watch(self, chunk, state):
        time.sleep(self.delay * len(chunk.frames))
        seen = tuple((frame.time, tuple(int(c) for c in frame.rgb.mean((0, 1)))) for frame in chunk.frames)
        return replace(
            state,
            backbone=state.backbone + seen,
            frames=state.frames + len(seen),
            seen_until=chunk.frames[-1].time,
            memory_bytes=state.memory_bytes + self.grow * len(seen),
        )

    def ask(self, question, state, sampling):
        times = np.array([at for at, _ in state.backbone])
        weights = np.exp(-0.5 * ((times - times.mean()) / 1.5) ** 2)
        first, last = state.backbone[0], state.backbone[-1]
        words = (
            f"{state.frames} frames; first {first[1]}; last {last[1]}; history {len(question.history)}; {question.text}"
        )
        for index, word in enumerate(words.split(" ")):
            time.sleep(self.delay)
            yield Token(index, word if index == 0 else f" {word}", (times, weights / weights.sum()))


def fake_engine(*args, **options) -> Engine:
    return Engine(FakeModel(*args, **options))
