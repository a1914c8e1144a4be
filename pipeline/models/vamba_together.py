"""Words and prompts of several answers in one recorded pass of Vamba's text column: the weights are read once for all.

A pass takes so many words of so many answers: one of each that is being written, all (or a piece) of a question that is
being read. Which words are whose, and where each one's keys, memory and looks lie, stands in tables that are copied in
before (gpu/ragged.py), so the few recordings of `KINDS` serve every mixture, every memory and every length, and none is
made while somebody waits. Where several answers are about the same memory, its keys are read once for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.gpu.dispatch import kernels_for
from pipeline.gpu.graphs import Tape, Tapes
from pipeline.gpu.layout import book_of
from pipeline.gpu.ragged_tables import LOOK_AT, TILE_AT, Sheet, Tiles
from pipeline.layers.reading import TextDecoder
from pipeline.layers.together import slots_seen
from pipeline.layers.vamba import Vamba
from pipeline.memory.memory import Memory
from pipeline.models.vamba_graphs import TextRecordings, one_slot

ANSWERS = 32  # that share a pass
WORDS = 256  # that share a pass
# Sums that the words of one pass keep together, one for each picture and each tile of slots that they look at: 112
# bytes each at the published size.
MOST_KEPT = 1 << 23
TALK = ("length", "count", "room", "where", "first")  # of `attend_text`'s conversations


class Kind(NamedTuple):
    """A recorded pass: how many words and answers it holds, rows of a tile, parts that a memory is cut into.

    each: words of one answer, at most. long: rows of a tile where more than `tile` look at the same memory.
    """

    words: int
    answers: int
    tile: int
    splits: int
    each: int = 1
    long: int = 0


# Words alone: with few words a memory and with many. With prompts, words that look at the same memory as a prompt are
# in its tiles, where they cost little; tiles are many, so memories are cut less. Tiles of 128 rows read no faster, and
# more of them stays empty: two took 23.5 ms of a pass where a memory of an hour is read in 11 (H100).
KINDS = (
    Kind(8, 8, 16, 66),
    Kind(8, 8, 64, 66),
    Kind(ANSWERS, ANSWERS, 16, 33),
    Kind(ANSWERS, ANSWERS, 64, 33),
    Kind(64, ANSWERS, 16, 33, 64, 64),
    Kind(WORDS, ANSWERS, 16, 16, 128, 64),
)


@dataclass(eq=False)
class Part:
    """What one answer has in a pass: its next words, and of which of them looks are wanted. number: whose it is."""

    number: int
    decoder: TextDecoder
    ids: Sequence[int]
    spans: Sequence[range]
    looks: list[int] = field(default_factory=list)  # where each span's look begins, in floats

    @property
    def memory(self) -> Memory:
        assert self.decoder.memory is not None  # `TextRecordings.fits` saw to it
        return self.decoder.memory

    @property
    def tiles(self) -> Tiles:
        assert self.decoder.instants is not None  # `TextRecordings.fits` saw to it
        return self.decoder.instants.tiles

    @property
    def kept(self) -> int:
        """Sums that a row of attention keeps, of all words whose look is wanted."""
        return sum(map(len, self.spans)) * self.tiles.sums


def groups_of(parts: Sequence[Part]) -> list[list[Part]]:
    """Those that look at the same slots, together."""
    groups: dict[tuple[object, ...], list[Part]] = {}
    for part in parts:
        groups.setdefault(slots_seen(part.memory.log), []).append(part)
    return list(groups.values())


def passes_of(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """As few passes as hold all of them, in order."""
    now: list[Part] = []
    for part in parts:
        words = sum(len(p.ids) for p in now) + len(part.ids)
        kept = sum(p.kept for p in now) + part.kept
        if now and (len(now) == ANSWERS or words > WORDS or kept > MOST_KEPT):
            yield now
            now = []
        now.append(part)
    if now:
        yield now


def kind_of(groups: Sequence[Sequence[Part]], heads: int) -> Kind:
    """The smallest recording that holds these. heads: query heads of a key head."""
    sizes = [len(part.ids) for group in groups for part in group]
    rows = heads * max(map(len, groups))
    holds = [k for k in KINDS if k.words >= sum(sizes) and k.answers >= len(sizes) and k.each >= max(sizes)]
    alike = [k for k in holds if k.words == holds[0].words]
    return next((kind for kind in alike if kind.tile >= rows), alike[-1])


class SharedPass:
    """One kind of recorded pass: the tables it reads, and its logits (answers, V) after each answer's last word."""

    def __init__(self, kind: Kind, net: Vamba, places: Sequence[int], like: Memory, tapes: Tapes, pool: Any):
        self.kind, self.net, self.places = kind, net, {place: n for n, place in enumerate(places)}
        cfg, weight = net.cfg, net.model.embed_tokens.weight
        self.heads, kernels = cfg.n_heads // cfg.n_kv_heads, kernels_for(weight)
        assert kernels is not None  # or nothing is recorded
        rows = partial(kernels.tile_shape, weight.new_empty(1, 1, cfg.head_dim))
        self.tile, self.long = min(kind.tile, rows(kind.tile)[0]), min(kind.long, rows(max(1, kind.long))[0])
        looks = kind.answers if kind.each == 1 else 2 * kind.answers
        self.sheet = Sheet(
            {
                "count": (1,),
                "talks": (kind.answers, len(TALK)),
                "last": (kind.answers,),
                "tiles": (kind.answers + kind.answers * self.heads // self.tile, len(TILE_AT)),
                "long": (self.long and kind.answers + kind.words * self.heads // self.long, len(TILE_AT)),
                "kept": (kind.words,),
                "looks": (looks, len(LOOK_AT)),
                "ids": (kind.words,),
                "positions": (kind.words,),
            },
            weight.device,
        )
        self.nothing = book_of(0, 0, like.log.block_slots, ()).to(weight.device)
        self.logits = weight.new_empty(kind.answers, cfg.vocab)
        self.eight_bit = like.log.slots.eight_bit
        self.tape = Tape(self._pass, tapes, pool)

    def play(self, groups: Sequence[Sequence[Part]], scratch: Tensor, looks: Tensor) -> None:
        """scratch: fp32, where sums go meanwhile; looks: fp32, where each part's looks go."""
        sheet, free, none = self.sheet, scratch.data_ptr(), (self.nothing.data_ptr(), *[0] * (len(TILE_AT) - 1))
        sheet.clear({"tiles": none, "long": none})
        word = 0
        for group in groups:
            start, some = word, group[0]
            for part in group:
                free = self._write(part, word, free, looks)
                word += len(part.ids)
            assert some.decoder.instants is not None  # they fit
            begin, end = start * self.heads, word * self.heads
            name, size = ("long", self.long) if self.long and end - begin > self.tile else ("tiles", self.tile)
            tiles, ends = some.tiles, some.decoder.instants.ends
            known = (tiles.places.data_ptr(), tiles.sums, ends.data_ptr(), tiles.mixed.data_ptr(), len(tiles.mixed))
            for row in range(begin, end, size):
                sheet.add(name, (some.memory.log.book.data_ptr(), row, end, *known))
        sheet.add("count", (word,))
        sheet.send()
        self.tape.play()

    def _write(self, part: Part, word: int, free: int, looks: Tensor) -> int:
        """Puts one answer into the tables; returns where scratch is still free."""
        sheet, cache, tiles = self.sheet, part.decoder.cache, part.tiles
        room, instants, n = cache.room, part.decoder.instants, len(part.ids)
        assert room is not None and instants is not None  # reserved just before; `fits` saw to it
        sheet.add("talks", (cache.length, n, room.shape[4], room.data_ptr(), word))
        sheet.add("last", (word + n - 1,))
        sheet.put("ids", word, part.ids)
        sheet.put("positions", word, range(cache.length, cache.length + n))
        each = 4 * self.net.cfg.n_heads * tiles.sums  # bytes of a word's sums
        for span, look in zip(part.spans, part.looks):
            seen = tiles.sums, tiles.first, instants.ends.data_ptr(), len(instants), looks.data_ptr() + 4 * look
            sheet.add("looks", (free, len(span), word + span.start, *seen))
            sheet.put("kept", word + span.start, range(free, free + each * len(span), each))
            free += each * len(span)
        return free

    def _pass(self) -> None:
        kernels, at, kind, net = kernels_for(self.logits), self.sheet.there, self.kind, self.net
        assert kernels is not None  # or nothing is recorded
        long = (at["long"], self.long) if self.long else ()
        tables = (at["count"], at["tiles"], at["kept"], at["looks"], self.tile)
        to = kernels.Ragged(*tables, kind.splits, net.cfg.n_kv_heads, self.eight_bit, *long)

        def own(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return kernels.attend_text(at["talks"], layer, q[0], k[0], v[0], kind.each)[None]

        def cross(place: int, q: Tensor) -> Tensor:
            return kernels.attend_ragged(to, place, q[0], self.places.get(place))[None]

        h = net.read(net.model.embed_tokens(at["ids"][None]), at["positions"], own, cross)
        self.logits.copy_(net.logits(h.index_select(1, at["last"]))[0])


class SharedRecordings:
    """The recorded passes that several answers of one network share.

    alone: those of a single answer, which say what can be recorded, and with which these take turns.
    """

    def __init__(self, alone: TextRecordings):
        self.alone = alone
        self._passes: dict[Kind, SharedPass] = {}
        self._scratch: Tensor | None = None
        self._pool: tuple[int, int] | None = None
        self._prepared, self._preparing = False, Lock()

    def prepare(self, memory: Memory) -> None:
        """Compiles and records every kind of pass, once, over one slot, and a single answer's: so that nobody waits for
        it later. memory: any."""
        self.alone.prepare(memory)
        with self._preparing:
            if not self._prepared and kernels_for(self.alone.net.model.embed_tokens.weight):
                one = one_slot(self.alone.net, memory)
                for kind in KINDS:
                    for _ in range(2):  # run, then recorded
                        self._play(kind, one)
                self._prepared = True

    @torch.no_grad()
    def _play(self, kind: Kind, memory: Memory) -> None:
        decoder = TextDecoder(self.alone.net, memory, self.alone.places)
        with self.alone.tapes.turn("shared answers"):
            self._serve([[Part(0, decoder, [0] * kind.each, [range(kind.each)])]], kind)

    @torch.no_grad()
    def feed(
        self, decoders: Sequence[TextDecoder], ids: Sequence[Sequence[int]], spans: Sequence[Sequence[range] | None]
    ) -> list[Tensor] | None:
        """Logits (V,) after each decoder's ids, its gazes set; None where plain code must find them.

        spans: as `TextDecoder.feed` takes them.
        """
        wanted = [[range(len(some))] if one is None else one for some, one in zip(ids, spans)]
        parts = [Part(n, *one) for n, one in enumerate(zip(decoders, ids, wanted))]
        if not all(len(p.ids) <= KINDS[-1].each and self.alone.fits(p.decoder, len(p.spans)) for p in parts):
            return None
        before, found = [decoder.cache.length for decoder in decoders], None
        with self.alone.tapes.turn("shared answers"):
            found = self._feed(parts)
        if found is None:  # the plain code begins where this began
            self.alone.tapes.wait()
            self._passes.clear()
            for decoder, length in zip(decoders, before):
                decoder.cache.length, decoder.cache.used = length, [length] * len(decoder.cache.used)
        return found

    def _feed(self, parts: Sequence[Part]) -> list[Tensor]:
        cfg = self.alone.net.cfg
        logits: dict[int, Tensor] = {}
        for some in passes_of(parts):
            groups = groups_of(some)
            after = self._serve(groups, kind_of(groups, cfg.n_heads // cfg.n_kv_heads))
            logits |= zip((part.number for group in groups for part in group), after)
        return [logits[n] for n in range(len(parts))]

    def _serve(self, groups: Sequence[Sequence[Part]], kind: Kind) -> Tensor:
        """Logits (answers, V) of one pass, the groups' parts in order; their caches and gazes are set."""
        parts = [part for group in groups for part in group]
        looks = self._room_for_looks(parts)
        for part in parts:
            part.decoder.cache.reserve(part.decoder.cache.length + len(part.ids), self.alone.no_keys)
        one = self._pass_of(kind, parts[0].memory)
        one.play(groups, self._scratch_for(parts), looks)
        for part in parts:
            _looked(part, looks, len(self.alone.places))
        return one.logits[: len(parts)].clone()

    def _pass_of(self, kind: Kind, like: Memory) -> SharedPass:
        """They share the memory between their kernels (see `Tape`), as long as there are any."""
        if not self._passes and self.alone.tapes.stream:
            self._pool = torch.cuda.graph_pool_handle()
        if kind not in self._passes:
            one = SharedPass(kind, self.alone.net, self.alone.places, like, self.alone.tapes, self._pool)
            self._passes[kind] = one
        return self._passes[kind]

    def _room_for_looks(self, parts: Sequence[Part]) -> Tensor:
        """(floats,) for every span's look, (places, instants), one behind the other."""
        size = 0
        for part in parts:
            assert part.decoder.instants is not None  # they fit
            for _ in part.spans:
                part.looks.append(size)
                size += len(self.alone.places) * len(part.decoder.instants)
        return self.alone.net.model.embed_tokens.weight.new_empty(size, dtype=torch.float32)

    def _scratch_for(self, parts: Sequence[Part]) -> Tensor:
        """(floats,) for the sums of every word whose look is wanted."""
        size = self.alone.net.cfg.n_heads * sum(part.kept for part in parts)
        if self._scratch is None or self._scratch.numel() < size:
            self._scratch = None  # before the next is made: both at once may not fit
            weight = self.alone.net.model.embed_tokens.weight
            self._scratch = weight.new_empty(max(1, size * 5 // 4), dtype=torch.float32)
        return self._scratch


def _looked(part: Part, looks: Tensor, places: int) -> None:
    """Counts the words of one, and keeps where they looked."""
    decoder, cache = part.decoder, part.decoder.cache
    assert decoder.instants is not None  # they fit
    cache.length += len(part.ids)
    cache.used = [cache.length] * len(cache.used)
    shape = (len(part.spans), places, len(decoder.instants))
    decoder.gazes = looks[part.looks[0] :][: shape[0] * shape[1] * shape[2]].view(shape)
