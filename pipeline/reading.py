"""One pass of a text column over a memory: the conversation's own cache, and where in the video its words looked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.memory import Memory

if TYPE_CHECKING:
    from pipeline.models.vamba import Vamba

# cuDNN's attention, which torch prefers on an H100, prepares a plan for every new length, and every token of an answer
# is a new length. Measured there: 106 ms for a token of a new length, 37 ms for one of a length met before.
UNPLANNED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
QUESTION_END = 16  # tokens whose gaze is the question's: the chat format's last five, and before them its last words


class TextCache:
    """The text column's own keys and values of one conversation. Grows in place; lives as long as one answer."""

    def __init__(self, n_layers: int):
        self.room: list[tuple[Tensor, Tensor] | None] = [None] * n_layers  # (B, K, capacity, P), twice
        self.used = [0] * n_layers
        self.length = 0  # tokens whose layers have all run
        self._mask: Tensor | None = None

    def attend(self, layer: int, q_BHQP: Tensor, k_BKQP: Tensor, v_BKQP: Tensor) -> Tensor:
        """Causal attention of the new tokens to the cached ones and each other, keeping their keys and values.

        `is_causal` aligns the mask to the first key, which is wrong as soon as the cache is not empty: hence the
        explicit mask.
        """
        k, v = self.keep(layer, k_BKQP, v_BKQP)
        Q, S = q_BHQP.shape[2], k.shape[2]
        if Q > 1 and (self._mask is None or self._mask.shape != (Q, S)):  # made once for all layers
            self._mask = torch.ones(Q, S, dtype=torch.bool, device=q_BHQP.device).tril(S - Q)
        mask = None if Q == 1 else self._mask
        return F.scaled_dot_product_attention(q_BHQP, k, v, attn_mask=mask, enable_gqa=True)

    def keep(self, layer: int, k_BKQP: Tensor, v_BKQP: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values; returns all of the layer's. Room doubles, so a token is copied once on average."""
        start, end = self.used[layer], self.used[layer] + k_BKQP.shape[2]
        room = self.room[layer]
        if room is None or end > room[0].shape[2]:
            shape = (*k_BKQP.shape[:2], max(256, 2 * end), k_BKQP.shape[3])
            grown = k_BKQP.new_empty(shape), v_BKQP.new_empty(shape)
            if room is not None:
                for new, old in zip(grown, room):
                    new[:, :, :start] = old[:, :, :start]
            self.room[layer] = room = grown
        room[0][:, :, start:end], room[1][:, :, start:end] = k_BKQP, v_BKQP
        self.used[layer] = end
        return room[0][:, :, :end], room[1][:, :, :end]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Forget each layer's tokens past its length."""
        self.used = [min(a, b) for a, b in zip(self.used, lengths)]


class Reader:
    """A text column in front of one memory.

    `watch_layers` are places in `cross_layers` whose attention is kept; `looked` makes one measure of it.
    """

    def __init__(self, net: Vamba, memory: Memory | None, watch_layers: Sequence[int] = ()):
        self.net, self.memory, self.watch_layers = net, memory, set(watch_layers)
        self._watched = self.watch_layers  # in the newest pass
        self.cache = TextCache(net.cfg.n_layers)
        self.seen: dict[int, Tensor] = {}  # per watched place: (slots,) weights of the newest pass, summing to 1
        self.usual: Tensor | None = None  # (watched places, moments) the same of words that ask for nothing
        self.moments = Moments(memory) if memory is not None and watch_layers else None

    @torch.no_grad()
    def feed(self, ids: Sequence[int], watched: bool = True) -> Tensor:
        """Logits (V,) after the given tokens. watched: whether anybody will ask where they looked."""
        net, device = self.net, self.net.model.embed_tokens.weight.device
        positions = torch.arange(self.cache.length, self.cache.length + len(ids), device=device)
        h = net.model.embed_tokens(torch.tensor([list(ids)], device=device))
        self.seen, self._watched = {}, self.watch_layers if watched else set()
        with sdpa_kernel(UNPLANNED) if h.is_cuda else nullcontext():
            h = net.read(h, positions, self.cache.attend, self._cross if self.memory is not None else None)
        self.cache.length += len(ids)
        return net.logits(h[:, -1:])[0, 0]

    def question(self, opening: Sequence[int], ids: Sequence[int]) -> Tensor:
        """Logits (V,) after a prompt; `looked` is then the gaze of its last tokens, which have read all of it.

        opening: the beginning that every prompt shares; where its words look is taken for usual.
        """
        self.feed(opening)
        self.settle()
        if head := ids[:-QUESTION_END]:
            self.feed(head, watched=False)
        return self.feed(ids[-QUESTION_END:])

    def _cross(self, place: int, q_BHQP: Tensor) -> Tensor:
        out, weights = self.memory.attend(place, q_BHQP[0], want_weights=place in self._watched)
        if weights is not None:
            self.seen[place] = weights
        return out[None]

    def settle(self) -> None:
        """Take where the newest pass looked for what every word looks at: `looked` counts only what exceeds it."""
        self.usual = self.moments.sums(self._gaze()) if self.seen else None

    def _gaze(self) -> Tensor:
        """(watched places, slots): all at once, because an operation per place would cost a launch per place."""
        return torch.stack(list(self.seen.values()))

    @property
    def looked(self) -> Tensor | None:
        """Where the newest pass looked more than usual: (slots,) weights >= 0, or None where nothing was watched.

        A softmax must put its weight somewhere, and what attention is not using lies on a few slots that any word
        finds (attention sinks, arXiv 2309.17453), or evenly on all. Both say nothing about the question and both are in
        the weights of the prompt's opening, which is the same for every question: so each moment counts with what it
        got beyond that. A layer that looks everywhere alike then adds next to nothing, and needs no scale of its own.
        A memory of one moment has nothing to compare: all lies on it.
        """
        if not self.seen:
            return None
        return self.moments.raised(self._gaze(), self.usual).sum(0)


class Moments:
    """Which slots of a memory belong to one picture (or pair): neighbours with the same time."""

    def __init__(self, memory: Memory):
        self.times = memory.times  # (slots,), ascending
        first = np.flatnonzero(np.diff(self.times, prepend=-np.inf))
        ends = np.append(first[1:], len(self.times))
        self.bounds, self.slots = list(zip(first.tolist(), ends.tolist())), len(self.times)
        self._ends = torch.as_tensor(ends, device=memory.log.device)
        self._counts = self._ends.diff(prepend=self._ends.new_zeros(1))

    def __len__(self) -> int:
        return len(self.bounds)

    def sums(self, weights: Tensor) -> Tensor:
        """(..., slots) -> (..., moments), fp64: by one running sum, which does not depend on the order of GPU threads.

        It runs through all rows: a row's own would keep one multiprocessor busy per row and leave the others idle.
        """
        rows = torch.arange(0, weights.numel(), self.slots, device=weights.device)
        running = weights.flatten().cumsum(0, dtype=torch.float64)[(rows[:, None] + self._ends - 1).flatten()]
        return running.diff(prepend=running.new_zeros(1)).view(*weights.shape[:-1], -1)

    def raised(self, weights: Tensor, usual: Tensor | None) -> Tensor:
        """(..., slots), as given: of each moment's weight only what exceeds the usual (None: an equal share a slot)."""
        if len(self) == 1:
            return weights
        mass, usual = self.sums(weights), self._counts.double() / self.slots if usual is None else usual
        kept = (mass - usual).clamp_min(0) / mass.clamp_min(torch.finfo(torch.float64).tiny)
        return weights * kept.to(weights.dtype).repeat_interleave(self._counts, dim=-1, output_size=self.slots)

    def best(self, looked: Tensor, count: int) -> Tensor:
        """Slots (int64, ascending) of the `count` moments with most weight."""
        chosen = self.sums(looked).topk(count).indices.sort().values.tolist()
        return torch.cat([torch.arange(*self.bounds[i]) for i in chosen])


def until(memory: Memory, second: float) -> Memory:
    """What the memory held at that second; its first moment at least, so that there is something to answer from."""
    times = memory.times
    return replace(memory, log=memory.log.until(int(np.searchsorted(times, max(second, times[0]), "right"))))
