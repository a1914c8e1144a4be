"""A word of each of several answers in one recorded pass of Vamba's text column: the weights are read once for all.

A recording serves G memories with W words each; what is missing is filled up with words that nobody reads, which look
at nothing and are kept nowhere. Where several answers are about the same memory, its keys are read once for them.
On an H100 eight words unrecorded take a processor some 60 ms to launch, recorded the GPU about the time of one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from threading import Lock
from types import ModuleType

import torch
from torch import Tensor

from pipeline.gpu.dispatch import kernels_for
from pipeline.gpu.graphs import Tape, Tapes
from pipeline.gpu.layout import HEAD, Slots, book_room
from pipeline.layers.reading import TextDecoder
from pipeline.layers.together import slots_seen
from pipeline.layers.vamba import Vamba
from pipeline.memory.memory import Memory
from pipeline.models.vamba_graphs import TextRecordings, one_slot

ANSWERS = 8  # that share a pass; with those that fill it up there are twice as many rows
ROWS = 2 * ANSWERS
STEP_SLOTS = 1 << 16  # room for a memory: a quarter more than it has, in steps of so many slots
LENGTH, COUNT, ROOM, WHERE, TOKEN, WORDS = range(6)  # of a row of `numbers`; WORDS: how many the n-th memory has

Group = list[int]  # the numbers of the answers that look at the same memory


def shared_rows(groups: Sequence[Group]) -> Iterator[tuple[int, list[Group]]]:
    """Words a memory (a power of two) and the groups of one pass, largest first, so that ROWS hold them filled up."""
    left = sorted(groups, key=len, reverse=True)
    while left:
        words = power_of_two(len(left[0]))
        now, left = left[: ROWS // words], left[ROWS // words :]
        yield words, now


def power_of_two(count: int) -> int:
    """The least one that is not below `count`."""
    return 1 << (count - 1).bit_length()


class SharedPasses:
    """The fixed places of recorded passes over memories of up to `slots` slots each, and the passes themselves.

    gaze: (watched places, rows, slots) fp32. logits: (rows, V).
    """

    def __init__(self, net: Vamba, places: Sequence[int], memory: Memory, slots: int, shared: Tapes):
        self.net, self.places, self.slots, self._shared = (
            net,
            {place: n for n, place in enumerate(places)},
            slots,
            shared,
        )
        new = net.model.embed_tokens.weight.new_zeros
        self.numbers = new(ROWS, WORDS + 1, dtype=torch.int64)
        self.books = new(ROWS, book_room(slots // 64 + 2), dtype=torch.int64)
        self.gaze, self.logits = new(len(places), ROWS, slots, dtype=torch.float32), new(ROWS, net.cfg.vocab)
        self._views = [Slots.of(book, slots, memory.log.fields) for book in self.books]
        self._pool = torch.cuda.graph_pool_handle() if shared.stream else None
        self.tapes: dict[tuple[int, int], Tape] = {}

    def holds(self, memories: Sequence[Memory]) -> bool:
        return all(len(m) <= self.slots and len(m.log.book) <= self.books.shape[1] for m in memories)

    def play(self, words: int, rows: Sequence[Sequence[tuple[TextDecoder, int]]]) -> None:
        """A pass over some memories; of each its decoders and their tokens, at most `words`."""
        memories = power_of_two(len(rows))
        numbers = torch.zeros(memories * words, WORDS + 1, dtype=torch.int64)
        for g in range(memories):
            memory = rows[min(g, len(rows) - 1)][0][0].memory
            assert memory is not None  # `TextRecordings.fits` saw to it
            self.books[g, : len(memory.log.book)].copy_(memory.log.book)
        self.books[len(rows) : memories, HEAD.index("length")] = 0  # what fills up has a book, and nothing in it
        for g, row in enumerate(rows):
            numbers[g, WORDS] = len(row)
            for w, (decoder, token) in enumerate(row):
                room = decoder.cache.room
                assert room is not None  # reserved just before
                written = (decoder.cache.length, 1, room.shape[4], room.data_ptr(), token)
                numbers[g * words + w, :WORDS] = torch.tensor(written)
        numbers = numbers.pin_memory() if self.numbers.is_cuda else numbers
        self.numbers[: len(numbers)].copy_(numbers, non_blocking=True)
        kind = (memories, words)
        if kind not in self.tapes:
            self.tapes[kind] = Tape(partial(self._pass, *kind), self._shared, self._pool)
        self.tapes[kind].play()

    def _pass(self, memories: int, words: int) -> None:
        numbers, kernels = self.numbers[: memories * words], kernels_for(self.gaze)
        assert kernels is not None  # or nothing is recorded

        def own(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return kernels.attend_text(numbers, layer, q[0], k[0], v[0])[None]

        def cross(place: int, q: Tensor) -> Tensor:
            found = [self._look(kernels, place, g, q[0, :, g * words : (g + 1) * words]) for g in range(memories)]
            return torch.cat(found, dim=1)[None]

        h = self.net.model.embed_tokens(numbers[None, :, TOKEN])
        h = self.net.read(h, numbers[:, LENGTH], own, cross)
        self.logits[: len(numbers)].copy_(self.net.logits(h)[0])

    def _look(self, kernels: ModuleType, place: int, g: int, q_HQP: Tensor) -> Tensor:
        """Attention of some words to the g-th memory; what is watched goes into `gaze`."""
        words, count = q_HQP.shape[1], self.numbers[g, WORDS:]
        if place not in self.places:
            return kernels.attend(self._views[g], place, q_HQP, count=count)[0]
        gaze = self.gaze[self.places[place], g * words : (g + 1) * words]
        return kernels.attend(self._views[g], place, q_HQP, True, count=count, weights=gaze, each=True)[0]


class SharedRecordings:
    """The recorded passes that several answers of one network share.

    alone: those of a single answer, which say what can be recorded, and with which these take turns.
    """

    def __init__(self, alone: TextRecordings):
        self.alone = alone
        self._passes: SharedPasses | None = None
        self._prepared, self._preparing = False, Lock()

    def prepare(self, memory: Memory) -> None:
        """Compiles the kernels of every number of words, once, over one slot, and prepares a single answer's: the first
        visitors to ask together waited 3 s for it (H100). memory: any."""
        self.alone.prepare(memory)
        with self._preparing:
            if not self._prepared and kernels_for(self.alone.net.model.embed_tokens.weight):
                one, other = (one_slot(self.alone.net, memory) for _ in range(2))
                for memories in ((one, other), *((one,) * n for n in (2, 4, ANSWERS))):
                    decoders = [TextDecoder(self.alone.net, memory, self.alone.places) for memory in memories]
                    self.feed(decoders, [0] * len(decoders))
                self._prepared = True

    @torch.no_grad()
    def feed(self, decoders: Sequence[TextDecoder], tokens: Sequence[int]) -> list[Tensor] | None:
        """Logits (V,) after each decoder's token, its gazes set; None where plain code must find them."""
        if not all(self.alone.fits(decoder, 1) for decoder in decoders):
            return None
        before, found = [decoder.cache.length for decoder in decoders], None
        with self.alone.tapes.turn("shared answers"):
            found = self._feed(decoders, tokens)
        if found is None:  # the plain code begins where this began
            self._passes = None
            for decoder, length in zip(decoders, before):
                decoder.cache.length, decoder.cache.used = length, [length] * len(decoder.cache.used)
        return found

    def _feed(self, decoders: Sequence[TextDecoder], tokens: Sequence[int]) -> list[Tensor]:
        cfg, weight = self.alone.net.cfg, self.alone.net.model.embed_tokens.weight
        like = weight.new_empty(1, cfg.n_kv_heads, 0, cfg.head_dim)
        logits: dict[int, Tensor] = {}
        groups: dict[tuple[object, ...], Group] = {}
        for n, decoder in enumerate(decoders):
            assert decoder.memory is not None  # it fits
            groups.setdefault(slots_seen(decoder.memory.log), []).append(n)
            decoder.cache.reserve(decoder.cache.length + 1, like)
        passes = self._room_for([decoder.memory for decoder in decoders if decoder.memory is not None])
        for words, some in shared_rows(list(groups.values())):
            passes.play(words, [[(decoders[n], tokens[n]) for n in group] for group in some])
            for g, group in enumerate(some):
                gaze = passes.gaze[:, g * words : g * words + len(group)]
                _looked([decoders[n] for n in group], gaze)
                logits |= zip(group, passes.logits[g * words : g * words + len(group)].clone())
        return [logits[n] for n in range(len(decoders))]

    def _room_for(self, memories: Sequence[Memory]) -> SharedPasses:
        if self._passes is None or not self._passes.holds(memories):
            self.alone.tapes.wait()
            self._passes = None  # before the next is made: both at once may not fit
            slots = -(-max(map(len, memories)) * 5 // 4 // STEP_SLOTS) * STEP_SLOTS
            self._passes = SharedPasses(self.alone.net, self.alone.places, memories[0], slots, self.alone.tapes)
        return self._passes


def _looked(decoders: Sequence[TextDecoder], gaze: Tensor) -> None:
    """Counts the word of each, and keeps where it looked: gaze (places, decoders, room) over their one memory."""
    instants, memory = decoders[0].instants, decoders[0].memory
    assert instants is not None and memory is not None  # they fit
    found = instants.sums(gaze[:, :, : len(memory)])
    for n, decoder in enumerate(decoders):
        decoder.cache.length += 1
        decoder.cache.used = [decoder.cache.length] * len(decoder.cache.used)
        decoder.gazes = found[:, n][None]
