"""One pass of a text column over a memory: the conversation's own cache, and where in the video its words looked."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.gpu.ragged_tables import Tiles
from pipeline.layers.vamba import Vamba
from pipeline.memory.memory import Memory
from pipeline.stream import Pass

# cuDNN's attention, which torch prefers on an H100, prepares a plan for every new length, and every token of an answer
# is a new length. Measured there: 106 ms for a token of a new length, 37 ms for one of a length met before.
UNPLANNED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
T = TypeVar("T")
LEAST_ROOM = 256  # tokens
PIECE = 128  # tokens of a prompt in one pass at most, between which other answers get their words
# Words of prompts times slots that they look at, in a pass for which others' words wait: 30 ms of attention on an H100.
MOST_READS = 34_000_000
LEAST_PIECE = 16  # tokens: fewer take as long, a memory is read for every piece
QUESTION_END = 16  # tokens whose gaze is the question's: the chat format's last five, and before them its last words


class TextCache:
    """The text column's own keys and values of one conversation. Grows in place; lives as long as one answer."""

    def __init__(self, n_layers: int):
        self.room: Tensor | None = None  # (layers, 2, B, K, slots, P): keys, then values
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
        """Store new keys and values; returns all of the layer's."""
        start, end = self.used[layer], self.used[layer] + k_BKQP.shape[2]
        k, v = self.reserve(end, k_BKQP)[layer]
        k[:, :, start:end], v[:, :, start:end] = k_BKQP, v_BKQP
        self.used[layer] = end
        return k[:, :, :end], v[:, :, :end]

    def reserve(self, slots: int, like_BKQP: Tensor) -> Tensor:
        """The room, for that many tokens at least. It doubles, so a token is copied once on average."""
        if self.room is None or slots > self.room.shape[4]:
            B, K, _, P = like_BKQP.shape
            grown = like_BKQP.new_empty(len(self.used), 2, B, K, max(LEAST_ROOM, 2 * slots), P)
            if self.room is not None:
                kept = max(self.used)
                grown[..., :kept, :] = self.room[..., :kept, :]
            self.room = grown
        return self.room

    def copy(self, room: Tensor) -> None:
        """Begin with these words' keys and values (layers, 2, B, K, words, P); this one must be empty."""
        self.length = room.shape[4]
        self.reserve(self.length, room[0, 0])[..., : self.length, :] = room
        self.used = [self.length] * len(self.used)

    def begin_with(self, other: TextCache) -> None:
        """Copy what an earlier cache holds, layer by layer; this one must be empty."""
        for layer, used in enumerate(other.used):
            if used and other.room is not None:
                k, v = other.room[layer][..., :used, :]
                self.keep(layer, k, v)

    def rewind(self, lengths: Sequence[int]) -> None:
        """Forget each layer's tokens past its length."""
        self.used = [min(a, b) for a, b in zip(self.used, lengths)]


@dataclass(frozen=True, eq=False)
class Opening:
    """The beginning of every question about one memory, read once for all: its words' keys and values (layers, 2, B, K,
    words, P), where they looked (places, instants), and which slots are one picture. Knows no memory, so keeps none."""

    room: Tensor
    gaze: Tensor | None
    instants: Instants | None


class RecordedPasses(Protocol):
    """Something that may have recorded the pass that a decoder is about to make."""

    def feed(self, decoder: TextDecoder, ids: Sequence[int], spans: Sequence[range]) -> tuple[Tensor, Tensor] | None:
        """Logits (V,) and gazes (spans, places, instants) of these tokens, the cache moved on; None: not recorded."""
        ...


class TextDecoder:
    """A text column in front of one memory.

    `watch_layers` are places in `cross_layers` whose attention is kept; `looked` makes one measure of it.
    recordings: passes recorded for the GPU, taken where they fit. opening: what a question begins with, of this memory.
    """

    def __init__(
        self,
        net: Vamba,
        memory: Memory | None,
        watch_layers: Sequence[int] = (),
        recordings: RecordedPasses | None = None,
        opening: Opening | None = None,
    ):
        self.net, self.memory, self.watch_layers = net, memory, sorted(set(watch_layers))
        self.recordings, self.cache = recordings, TextCache(net.cfg.n_layers)
        self.gazes: Tensor | None = None  # (spans, watched places, instants) of the newest pass: each sums to 1
        self.usual: Tensor | None = None  # (watched places, instants) the same of words that ask for nothing
        if opening is not None:
            self.cache.copy(opening.room)
            self.instants, self.usual = opening.instants, opening.gaze
        else:
            self.instants = Instants(memory) if memory is not None and watch_layers else None

    @torch.no_grad()
    def feed(self, ids: Sequence[int], spans: Sequence[range] | None = None) -> Tensor:
        """Logits (V,) after the given tokens. spans: the tokens whose gazes are wanted, in order; None: all, as one."""
        spans = [range(len(ids))] if spans is None else spans
        passed = self.recordings.feed(self, ids, spans) if self.recordings else None
        logits, self.gazes = passed or self._plain(ids, spans)
        return logits

    def question(self, opening: Sequence[int], ids: Sequence[int]) -> Tensor:
        """Logits (V,) after a prompt; `looked` is then the gaze of its last tokens, which have read all of it.

        opening: the beginning that every prompt shares; where its words look is taken for usual.
        """
        return served(self.question_in_pieces(opening, ids))

    def question_in_pieces(self, opening: Sequence[int], ids: Sequence[int]) -> Generator[Pass, Tensor, Tensor]:
        """`question`, its passes handed out: of a long prompt there are several, so that others' words come between."""
        prompt, known = [*opening, *ids], self.cache.length  # of the opening nothing, or all of it
        asking = range(max(len(opening), len(prompt) - QUESTION_END), len(prompt))
        spans = [range(len(opening)), asking]
        found: dict[int, Tensor] = {} if self.usual is None else {0: self.usual}  # gazes by span
        for piece in even_parts(len(prompt) - known, self.piece):
            part = range(known + piece.start, known + piece.stop)
            inside = {i: both for i, span in enumerate(spans) if (both := overlap(span, part))}
            wanted = [range(both.start - part.start, both.stop - part.start) for both in inside.values()]
            logits = yield Pass(self, prompt[part.start : part.stop], wanted or None)
            if self.gazes is not None:
                for gaze, (i, both) in zip(self.gazes, inside.items()):
                    found[i] = found.get(i, 0) + gaze * (len(both) / len(spans[i]))
        self.gazes = torch.stack([found[0], found[1]]) if len(found) == len(spans) else None
        self.usual = None if self.gazes is None else self.gazes[0]
        return logits

    @property
    def piece(self) -> int:
        """Tokens of a prompt in one pass: over a large memory fewer, so that others wait for a piece no longer."""
        return min(PIECE, max(LEAST_PIECE, MOST_READS // max(1, len(self.memory or ()))))

    def opened(self, count: int) -> Opening:
        """A copy of the question's first words, for others about the same memory. Once the question has been read."""
        assert self.cache.room is not None  # something was read
        return Opening(self.cache.room[..., :count, :].clone(), self.usual, self.instants)

    def _plain(self, ids: Sequence[int], spans: Sequence[range]) -> tuple[Tensor, Tensor | None]:
        """The pass and its gazes by torch's own code, which is always right."""
        net, device = self.net, self.net.model.embed_tokens.weight.device
        positions = torch.arange(self.cache.length, self.cache.length + len(ids), device=device)
        h = net.model.embed_tokens(torch.tensor([list(ids)], device=device))
        looks: list[Tensor] = []
        memory = self.memory
        cross = None if memory is None else lambda place, q: self._look(memory, place, q, spans, looks)
        with sdpa_kernel(UNPLANNED) if h.is_cuda else nullcontext():
            h = net.read(h, positions, self.cache.attend, cross)
        self.cache.length += len(ids)
        logits = net.logits(h[:, -1:])[0, 0]
        if self.instants is None or not looks:
            return logits, None
        return logits, self.instants.sums(torch.stack(looks)).transpose(0, 1)

    def cross_attend(self, place: int, q_BHQP: Tensor) -> Tensor:
        """Attention to the memory, which must be there."""
        assert self.memory is not None
        return self.memory.attend(place, q_BHQP[0])[0][None]

    def _look(self, memory: Memory, place: int, q_BHQP: Tensor, spans: Sequence[range], looks: list[Tensor]) -> Tensor:
        """The same; where the place is watched, the weights (spans, slots) are added to `looks`."""
        if place not in self.watch_layers:
            return self.cross_attend(place, q_BHQP)
        out, weights = memory.attend_spans(place, q_BHQP[0], spans)
        looks += [] if weights is None else [weights]
        return out[None]

    def looked_at(self, count: int, looks: Sequence[Tensor]) -> None:
        """Takes the weights (spans, slots) of so many ids read in a shared pass, at each watched place in order."""
        self.cache.length += count
        self.gazes = None
        if self.instants is not None and looks:
            self.gazes = self.instants.sums(torch.stack(list(looks), dim=1))

    @property
    def looked(self) -> Tensor | None:
        """Where the newest pass looked more than usual: (instants,) weights >= 0, or None where nothing was watched.

        A softmax must put its weight somewhere, and what attention is not using lies on a few slots that any word
        finds (attention sinks, arXiv 2309.17453), or evenly on all. Both say nothing about the question and both are in
        the weights of the prompt's opening, which is the same for every question: so each moment counts with what it
        got beyond that. A layer that looks everywhere alike then adds next to nothing, and needs no scale of its own.
        A memory of one moment has nothing to compare: all lies on it.
        """
        if self.gazes is None or self.instants is None:
            return None
        return self.instants.raised(self.gazes[-1], self.usual)


def looked_together(decoders: Sequence[TextDecoder]) -> list[Tensor | None]:
    """`looked` of each, of all in a few launches: those that have something to compare stand side by side."""
    pairs = [
        None if one.gazes is None or one.usual is None or len(one.instants or ()) < 2 else (one.gazes[-1], one.usual)
        for one in decoders
    ]
    there = [pair for pair in pairs if pair is not None]
    if len(there) < 2 or len({len(gaze) for gaze, _ in there}) > 1:
        return [one.looked for one in decoders]
    gazes, usual = (torch.cat(some, dim=1) for some in zip(*there))
    raised = iter((gazes - usual).clamp_min_(0).sum(0).split([gaze.shape[1] for gaze, _ in there]))
    return [one.looked if pair is None else next(raised) for one, pair in zip(decoders, pairs)]


def served(reading: Generator[Pass, Tensor, T]) -> T:
    """What a reading in passes of `TextDecoder`s comes to, each pass made at once."""
    given: Tensor | None = None
    while True:
        try:
            one = next(reading) if given is None else reading.send(given)
        except StopIteration as end:
            return end.value
        given = one.reader.feed(one.ids, one.spans)


def even_parts(count: int, most: int) -> list[range]:
    """0 .. count in as few parts of at most so many as can be, of about the same length."""
    parts = -(-count // most)
    return [range(a, b) for a, b in pairwise(count * i // parts for i in range(parts + 1))]


def overlap(a: range, b: range) -> range:
    start = max(a.start, b.start)
    return range(start, max(start, min(a.stop, b.stop)))


class Instants:
    """Which slots of a memory belong to one picture (or pair): neighbours with the same time."""

    def __init__(self, memory: Memory):
        times = memory.log.tensor("time")  # (slots,), ascending
        end = torch.arange(len(times), len(times) + min(len(times), 1), device=times.device)
        self.ends = torch.cat([times.diff().nonzero()[:, 0] + 1, end])
        self._counts = self.ends.diff(prepend=self.ends.new_zeros(1))
        self.times, self.slots = times[self.ends - 1].cpu().numpy(), len(times)  # times: (instants,)
        self._first = memory.log.first

    def __len__(self) -> int:
        return len(self.times)

    @cached_property
    def tiles(self) -> Tiles:
        """How the kernels' tiles of slots lie to the pictures."""
        return Tiles.of(self.ends, self._first, self.slots)

    def sums(self, weights: Tensor) -> Tensor:
        """(..., slots) -> (..., instants), fp64: by one running sum, which does not depend on the order of GPU threads.

        It runs through all rows: a row's own would keep one multiprocessor busy per row and leave the others idle.
        """
        rows = torch.arange(0, weights.numel(), self.slots, device=weights.device)
        running = weights.flatten().cumsum(0, dtype=torch.float64)[(rows[:, None] + self.ends - 1).flatten()]
        return running.diff(prepend=running.new_zeros(1)).view(*weights.shape[:-1], -1)

    def raised(self, gaze: Tensor, usual: Tensor | None) -> Tensor:
        """(places, instants) -> (instants,): what each got beyond the usual (None: an equal share of every slot)."""
        if len(self) == 1:
            return gaze.sum(0)
        usual = self._counts.double() / self.slots if usual is None else usual
        return (gaze - usual).clamp_min(0).sum(0)

    def best(self, looked: Tensor, count: int) -> Tensor:
        """Slots (int64, ascending, on the CPU) of the `count` instants with most weight."""
        chosen, ends = looked.topk(count).indices.sort().values, self.ends.tolist()
        return torch.cat([torch.arange(ends[i - 1] if i else 0, ends[i]) for i in chosen.tolist()])


def until(memory: Memory, second: float) -> Memory:
    """What the memory held at that second; its first moment at least, so that there is something to answer from."""
    times = memory.times
    return replace(memory, log=memory.log.until(int(np.searchsorted(times, max(second, times[0]), "right"))))


def shares(times: np.ndarray, looked: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
    """`Token.looked`: scaled to sum to 1; None where the token looked nowhere in particular."""
    if looked is None or not (total := looked.sum()) > 0:
        return None
    return times, looked / total
