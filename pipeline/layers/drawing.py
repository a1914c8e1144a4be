"""The next word of an answer and where it looked, brought to the processor: of many answers in one transfer.

Each transfer waits for the GPU. Eight answers had three each a word: 5 to 7 ms on an H100, where their pass takes 14.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.layers.decoding import drawn, generator
from pipeline.layers.reading import TextDecoder, looked_together, shares
from pipeline.stream import Sampling

Word = tuple[int, tuple[np.ndarray, np.ndarray] | None]  # an id, and `Token.looked`


class Drawing:
    """The words of one answer, drawn one after the other.

    looked: where the answer so far looked, not the newest word alone: scaled to 1 by itself, a comma's gaze would count
    as a noun's. None: nowhere, or nothing was watched.
    """

    def __init__(self, decoder: TextDecoder, sampling: Sampling):
        self.decoder, self.sampling, self.chance = decoder, sampling, generator(sampling)
        self.looked: Tensor | None = None
        self._begun = False
        self._ready: Word | None = None

    def take(self, logits_V: Tensor) -> Word:
        """The word after these logits, which the decoder's newest pass gave."""
        if self._ready is None:
            draw_together([self], [logits_V])
        word, self._ready = self._ready, None
        assert word is not None  # just drawn
        return word

    @property
    def looks(self) -> bool:
        """Whether it is still known where all of the answer looked."""
        return self.looked is not None or not self._begun

    def give(self, token: int, looked: Tensor | None, weights: np.ndarray) -> None:
        """What was drawn."""
        assert self.decoder.instants is not None  # whoever draws watches
        self.looked, self._begun = looked, True
        self._ready = token, shares(self.decoder.instants.times, None if looked is None else weights)


@torch.no_grad()
def draw_together(drawings: Sequence[Drawing], logits: Sequence[Tensor]) -> None:
    """The next word of each, for its `take`. logits: (V,) of each."""
    ids = drawn(torch.stack(list(logits)), [d.sampling for d in drawings], [d.chance for d in drawings])
    looks = _looks(drawings)
    numbers = torch.cat([ids.double(), *(look for look in looks if look is not None)]).cpu().numpy()
    at = len(drawings)
    for n, (one, look) in enumerate(zip(drawings, looks)):
        end = at + (0 if look is None else len(look))
        one.give(int(numbers[n]), look, numbers[at:end])
        at = end


def _looks(drawings: Sequence[Drawing]) -> list[Tensor | None]:
    """(instants,) fp64 where each answer looked, the newest pass included. In few launches: of eight answers they took
    as long as a tenth of their pass."""
    newest = looked_together([one.decoder for one in drawings])
    both = [None if look is None or not one.looks else (look, one.looked) for one, look in zip(drawings, newest)]
    there = [pair for pair in both if pair is not None]
    if not there:
        return [None] * len(drawings)
    lengths = [len(look) for look, _ in there]
    total = torch.cat([look for look, _ in there]).double()
    total += torch.cat([torch.zeros_like(look) if before is None else before for look, before in there])
    parts = iter(total.split(lengths))
    return [None if pair is None else next(parts) for pair in both]
