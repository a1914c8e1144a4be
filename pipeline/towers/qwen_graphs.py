"""Walks through the Qwen2-VL tower, recorded and played again (gpu/graphs.py), for few pictures at a time.

What is not recorded goes through the plain walk, which is always right.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.gpu.dispatch import kernels_for
from pipeline.gpu.graphs import Tape, Tapes, TapesByKind

LIVE_PATCHES = 5000  # of a recorded walk: 4 pairs of 640x360; more keep a GPU busy longer than a processor


class TowerRecording:
    """The fixed places of a recorded walk of some pairs' patches through a tower."""

    def __init__(self, encode: Callable[[Tensor], Tensor], pairs_NLC: Tensor, shared: Tapes):
        self.pairs = torch.empty_like(pairs_NLC, memory_format=torch.contiguous_format)
        self.tokens: Tensor | None = None  # from the first walk on
        self._encode = encode
        self.tape: Tape | None = Tape(self._walk, shared)

    def _walk(self) -> None:
        self.tokens = self._encode(self.pairs)

    def play(self, pairs_NLC: Tensor) -> Tensor:
        self.pairs.copy_(pairs_NLC)
        assert self.tape is not None  # a recording that was thrown away is nobody's
        self.tape.play()
        assert self.tokens is not None
        return self.tokens.clone()


class TowerRecordings(TapesByKind[TowerRecording]):
    """The recorded walks through one vision tower, for few pairs of the same size again and again.

    One pair keeps an H100 busy for 4 ms and a processor, with 450 launches, for 18 to 40.
    """

    def __init__(self, encode: Callable[[Tensor, int, int], Tensor], device: torch.device):
        super().__init__(device)
        self._encode = encode

    def encode(self, pairs_NLC: Tensor, h: int, w: int) -> Tensor:
        """Tokens of pairs of h x w patches each, as `encode` gives them."""
        found, kind = None, (len(pairs_NLC), h, w)
        if pairs_NLC[..., 0].numel() <= LIVE_PATCHES and kernels_for(pairs_NLC) and self.comes_again(kind):
            with self.tapes.turn("live pictures"):
                found = self.recording(kind, lambda: self._recorded(pairs_NLC, h, w)).play(pairs_NLC)
        return self._encode(pairs_NLC, h, w) if found is None else found

    def _recorded(self, pairs_NLC: Tensor, h: int, w: int) -> TowerRecording:
        return TowerRecording(lambda pairs: self._encode(pairs, h, w), pairs_NLC, self.tapes)
