"""What a vision tower hands on."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Seen(NamedTuple):
    """What a vision tower makes of some frames. tokens (1, T, D); times (T,) seconds; positions (3, T) or None."""

    tokens: Tensor
    times: Tensor
    positions: Tensor | None = None
