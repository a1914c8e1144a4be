"""What the common face of the systems of one sequence needs of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.gpu.device import sent
from pipeline.layers.mamba2 import MixerState


class Attends(Protocol):
    """Who knows the keys of earlier tokens, and keeps those of new ones."""

    def attend(self, layer: int, q_HTP: Tensor, k_KTP: Tensor, v_KTP: Tensor) -> Tensor: ...


View = Attends | None  # None where nothing attends


class KeySizes(NamedTuple):
    """Of the keys that a network's attention layers keep of every token."""

    layers: int
    heads: int
    width: int


class Net(Protocol):
    """A network that tokens pass through, from states and keys of those before them."""

    keys: KeySizes

    def start(self) -> tuple[MixerState, ...]: ...

    def embed(self, ids_T: Tensor) -> Tensor: ...

    def normed(self, x: Tensor) -> Tensor: ...

    def logits(self, x: Tensor) -> Tensor: ...

    def __call__(
        self,
        x_1TD: Tensor,
        states: tuple[MixerState, ...],
        place: int | Tensor,
        view: View,
        hidden: list[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[MixerState, ...]]:
        """The residual stream after these tokens, and the states. place: of the first of them; (1,) where recorded."""
        ...


def embedded(net: Net, ids: Sequence[int], device: torch.device) -> Tensor:
    """Inputs (1, T, D) of words."""
    return net.embed(sent(torch.tensor(ids, dtype=torch.long), device))
