"""What a vision tower hands on, and its face for a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from pipeline.stream import Frame


class Seen(NamedTuple):
    """What a vision tower makes of some frames. tokens (1, T, D); times (T,) seconds; positions (3, T) or None."""

    tokens: Tensor
    times: Tensor
    positions: Tensor | None = None


class Vision(Protocol):
    """A tower as a model uses it. long_side: pixels of a frame's longer side worth sending."""

    unit_frames: int
    long_side: int

    def tokens(self, frames: Sequence[Frame]) -> Seen:
        """What it makes of whole units of frames, in order of time."""
        ...
