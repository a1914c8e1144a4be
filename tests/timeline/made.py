"""Videos of plain scenes, and a model that keeps an index of their colours, for the tests of the timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.engine import Engine
from pipeline.stream import Event, Frame, Model, StreamState, VideoChunk
from pipeline.timeline.timeline import Timeline

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200), "grey": (90, 90, 90)}


class Colours(Model[tuple[tuple[float, str], ...]]):
    """Says the colours it saw, and of grey pictures nothing."""

    name, long_side = "Colours", 64

    def start(self) -> StreamState:
        return StreamState(())

    def watch(self, chunk: VideoChunk, state: StreamState) -> StreamState:
        seen = tuple((frame.time, nearest(frame.rgb)) for frame in chunk.frames)
        return replace(state, inner=state.inner + seen, frames=state.frames + len(seen), seen_until=chunk.seen_until)

    def ask(self, question, state, sampling):
        raise AssertionError("what it saw is in its index")

    def shows(self, state: StreamState, start: float, end: float) -> str:
        return " ".join(sorted({name for at, name in state.inner if start <= at < end and name != "grey"}))


def nearest(rgb: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.abs(rgb.mean((0, 1)) - COLOURS[name]).sum()))


def scenes(lengths: Sequence[tuple[str, int]], seed: int = 0) -> tuple[Frame, ...]:
    """A picture a second of (colour, seconds) scenes, with noise, and never twice the same."""
    rng = np.random.default_rng(seed)
    names = [name for name, length in lengths for _ in range(length)]
    noise = rng.integers(-8, 9, (len(names), 36, 64, 3))
    pictures = np.clip(np.array([COLOURS[name] for name in names])[:, None, None] + noise, 0, 255).astype(np.uint8)
    return tuple(Frame(rgb, float(second)) for second, rgb in enumerate(pictures))


def noticed(model: Model, frames: Sequence[Frame], slices: Sequence[slice], timeline: Timeline | None = None):
    """The events of a video that was watched in these chunks, the first time it is over."""
    timeline, state = timeline or Timeline(Engine(model)), model.start()
    for part in slices:
        state = model.watch(VideoChunk(tuple(frames[part])), state)
        timeline.watched(frames[part], state)
    timeline.finish(state)
    return timeline.events


def of(kind: str, events: Sequence[Event]) -> list[tuple[float, float | None, str]]:
    return [(event.time, event.until, event.text) for event in events if event.kind == kind]
