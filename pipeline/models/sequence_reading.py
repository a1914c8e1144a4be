"""A question and its answer read behind a stream of one sequence: the network's face, the fork, and recorded tokens.

Where nothing attends, a token is the same launches on the same sizes whatever came before, so on a GPU it is recorded
once and played again. Attention over a growing video is not: its launches depend on how much was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.gpu.dispatch import kernels_for
from pipeline.gpu.graphs import Tape, Tapes, copy_all
from pipeline.layers.mamba2 import MixerState
from pipeline.layers.streamed import Answering, Prefix, Watching
from pipeline.memory.memory import Memory

View = Watching | Answering | None  # who knows the keys of earlier tokens; None where nothing attends
TEXT_PER_CALL = 128  # question tokens of one pass: `Answering` writes out their scores over the whole video


class KeySizes(NamedTuple):
    """Of the keys that a network's attention layers keep of every token."""

    layers: int
    heads: int
    width: int


class Net(Protocol):
    """What the common face needs of a network."""

    keys: KeySizes

    def start(self) -> tuple[MixerState, ...]: ...

    def embed(self, ids_T: Tensor) -> Tensor: ...

    def normed(self, x: Tensor) -> Tensor: ...

    def logits(self, x: Tensor) -> Tensor: ...

    def __call__(
        self, x_1TD: Tensor, states: tuple[MixerState, ...], place: int, view: View, hidden: list[Tensor] | None = None
    ) -> tuple[Tensor, tuple[MixerState, ...]]: ...


def embedded(net: Net, ids: Sequence[int], device: torch.device) -> Tensor:
    """Inputs (1, T, D) of words."""
    return net.embed(torch.tensor(ids, dtype=torch.long, device=device))


class TokenPass:
    """The fixed places of one token's recorded pass through a network that only carries states."""

    logits: Tensor  # (V,), after the token
    after: tuple[MixerState, ...]

    def __init__(self, net: Net, states: Sequence[MixerState], shared: Tapes):
        self._net, self.id = net, torch.zeros(1, dtype=torch.long, device=states[0].ssm.device)
        self.states = tuple(MixerState(*map(torch.empty_like, state)) for state in states)
        self._tape = Tape(self._pass, shared)

    def _pass(self) -> None:
        x_1TD, self.after = self._net(self._net.embed(self.id), self.states, 0, None)
        self.logits = self._net.logits(x_1TD[0, -1])

    def play(self, token: int, states: Sequence[MixerState]) -> tuple[Tensor, tuple[MixerState, ...]]:
        self.id.fill_(token)
        copy_all(self.states, states)
        self._tape.play()
        return self.logits.clone(), tuple(MixerState(*(part.clone() for part in state)) for state in self.after)


class TokenRecordings:
    """One network's recorded token, for many answers at once, of which one is served at a time."""

    def __init__(self, net: Net, device: torch.device):
        self._net, self.device, self.tapes = net, device, Tapes(device)
        self._recorded: TokenPass | None = None

    def feed(self, token: int, states: tuple[MixerState, ...]) -> tuple[Tensor, tuple[MixerState, ...]] | None:
        """Logits and states after one more token, or None where plain code must find them."""
        if self._net.keys.layers or not states or self.tapes.off or kernels_for(states[0].conv) is None:
            return None
        found = None
        with self.tapes.turn("answers"):
            self._recorded = self._recorded or TokenPass(self._net, states, self.tapes)
            found = self._recorded.play(token, states)
        return found


class Conversation:
    """A question and its answer, read behind a video on a fork of it: what is carried belongs to the stream.

    place: of the next token. room: the most tokens it may have.
    """

    def __init__(
        self,
        recordings: TokenRecordings,
        net: Net,
        prefix: Prefix | None,
        states: tuple[MixerState, ...],
        memory: Memory | None,
        place: int,
        room: int,
    ):
        self._recordings, self._net, self._states, self._place = recordings, net, states, place
        self._view = None if memory is None else Answering(prefix, memory, room)
        self._times = np.zeros(0) if memory is None else memory.times
        self._seen = ~np.isnan(self._times)

    @torch.no_grad()
    def feed(self, ids: list[int]) -> Tensor:
        """Logits (V,) after the last of these tokens."""
        if len(ids) == 1 and (found := self._recordings.feed(ids[0], self._states)):
            logits, self._states = found
            self._place += 1
            return logits
        for start in range(0, len(ids), TEXT_PER_CALL):
            part = ids[start : start + TEXT_PER_CALL]
            if self._view is not None:
                self._view.gaze = None
            x_1TD, self._states = self._net(
                embedded(self._net, part, self._recordings.device), self._states, self._place, self._view
            )
            self._place += len(part)
            if self._view is not None:
                self._view.length += len(part)
        return self._net.logits(x_1TD[0, -1])

    def looked(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Where the newest token looked: the last layers' weights over visual tokens alone, scaled to sum to 1."""
        if self._view is None or self._view.gaze is None:
            return None
        weights = self._view.gaze.double().cpu().numpy()[self._seen]
        total = weights.sum()
        return (self._times[self._seen], weights / total) if total > 0 else None
