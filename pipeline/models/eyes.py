"""The eyes of the systems of one sequence: pictures in, visual tokens out, a few pictures at a time by a recorded pass.

A live picture's towers are some hundred launches that a GPU is done with long before a processor is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.gpu.dispatch import kernels_for
from pipeline.gpu.graphs import Tape, Tapes, TapesByKind
from pipeline.stream import Frame

LIVE_PIXELS = 1 << 20  # of a recorded pass: two clips of 224 x 224, five pictures of 448 x 448


class EyesPass:
    """The fixed places of a recorded pass over so many pictures."""

    tokens: Tensor

    def __init__(self, see: Callable[..., Tensor], pixels: Sequence[Tensor], shared: Tapes):
        self._see, self._pixels = see, [torch.empty_like(part) for part in pixels]
        self.tape: Tape | None = Tape(self._pass, shared)

    def _pass(self) -> None:
        self.tokens = self._see(*self._pixels)

    def play(self, pixels: Sequence[Tensor]) -> Tensor:
        torch._foreach_copy_(self._pixels, list(pixels))
        assert self.tape is not None  # a recording that was thrown away is nobody's
        self.tape.play()
        return self.tokens.clone()


class Eyes(TapesByKind[EyesPass]):
    """pixels: of frames, what the towers take, (N, ...) each on the device. see: tokens (units, tokens, D) of that.

    per_call: frames that are seen at once, whole units, which bounds what the towers' widest layers take.
    """

    def __init__(
        self,
        pixels: Callable[[Sequence[Frame]], Sequence[Tensor]],
        see: Callable[..., Tensor],
        device: torch.device,
        *,
        long_side: int,
        unit_frames: int = 1,
        per_call: int,
    ):
        super().__init__(device)
        self._pixels, self._see, self._per_call = pixels, see, per_call
        self.long_side, self.unit_frames = long_side, unit_frames

    def tokens(self, frames: Sequence[Frame]) -> Tensor:
        groups = [frames[start : start + self._per_call] for start in range(0, len(frames), self._per_call)]
        return torch.cat([self._some(self._pixels(group)) for group in groups])

    def _some(self, pixels: Sequence[Tensor]) -> Tensor:
        found, kind = None, pixels[0].shape
        if pixels[0].numel() <= 3 * LIVE_PIXELS and kernels_for(pixels[0]) and self.comes_again(kind):
            with self.tapes.turn("eyes"):
                found = self.recording(kind, lambda: EyesPass(self._see, pixels, self.tapes)).play(pixels)
        return self._see(*pixels) if found is None else found
