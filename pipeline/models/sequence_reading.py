"""A question and its answer, read behind a stream of one sequence on a fork of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pipeline.gpu.device import sent
from pipeline.layers.mamba2 import MixerState
from pipeline.layers.streamed import Answering, Prefix
from pipeline.memory.memory import Memory
from pipeline.models.sequence_graphs import TokenRecordings
from pipeline.models.sequence_net import Net, embedded

TEXT_PER_CALL = 128  # question tokens of one pass: torch's code writes out their scores over the whole video


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
        self._device = recordings.device
        self._view = None if memory is None else Answering(prefix, memory, room)
        times = np.zeros(0) if memory is None else memory.times
        seen = np.flatnonzero(~np.isnan(times))
        self._times, self._seen = times[seen], sent(torch.from_numpy(seen), recordings.device)

    @torch.no_grad()
    def feed(self, ids: list[int]) -> Tensor:
        """Logits (V,) after the last of these tokens."""
        if len(ids) == 1 and (found := self._recordings.feed(ids[0], self._states, self._place, self._view)):
            self._states = found.states
            self._moved(1)
            if self._view is not None:
                self._view.gaze = found.gaze
            return found.logits
        for start in range(0, len(ids), TEXT_PER_CALL):
            part = ids[start : start + TEXT_PER_CALL]
            if self._view is not None:
                self._view.gaze = None
            x_1TD, self._states = self._net(
                embedded(self._net, part, self._device), self._states, self._place, self._view
            )
            self._moved(len(part))
        return self._net.logits(x_1TD[0, -1])

    def _moved(self, words: int) -> None:
        self._place += words
        if self._view is not None:
            self._view.length += words

    def looked(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Where the newest token looked: the last layers' weights over visual tokens alone, scaled to sum to 1."""
        if self._view is None or self._view.gaze is None:
            return None
        weights = self._view.gaze[self._seen].double().cpu().numpy()
        total = weights.sum()
        return (self._times, weights / total) if total > 0 else None
