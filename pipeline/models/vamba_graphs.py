"""Passes of both columns and of the tower recorded once and played again (CUDA graphs): a token is one launch, not 750.

On an H100 at minute 60 a token's kernels run for 17 ms and take a processor 45 ms to launch; a live chunk of two frames
runs for 4.5 ms and takes 25. A recording repeats the same kernels on the same addresses, so everything that changes
lies at fixed places and is copied there before: for words the tokens, how many came before them and where their keys
lie (`step`), how many slots the memory has and where they lie (`book`). One recording then serves every answer, every
length of a conversation and every memory up to `Fixed.slots`. Of an answer or a stream nothing stays in a recording: a
pass copies in, plays and copies out under a lock, in one stream's order.

Needs CUDA and this repository's kernels. What cannot be recorded goes through the plain code of `Reader`, `Vamba.watch`
and the tower, which is always right.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.gpu.dispatch import attention_kernels, kernels_for
from pipeline.gpu.layout import Slots, book_room
from pipeline.layers.mamba2 import MixerState
from pipeline.memory.memory import Memory

if TYPE_CHECKING:
    from pipeline.layers.reading import Reader, TextCache
    from pipeline.layers.vamba import Vamba

log = logging.getLogger(__name__)

ROWS = (1, 64, 128)  # tokens of a recorded pass; fewer are filled up, more take several passes
LEAST_SLOTS = 1 << 20  # 117 minutes of 640x360; doubles when a memory outgrows it, and passes are recorded anew
LIVE_TOKENS = 2400  # of a recorded chunk: 16 frames of 640x360; more keep a GPU busy longer than a processor
LIVE_PATCHES = 5000  # of a recorded walk through the tower: 4 pairs of 640x360, for the same reason
LIVE_KINDS = 3  # lengths of chunks, and sizes of pictures, whose recordings are kept
LIVE_USES = 1  # of a kind until it is recorded
ONE_SLOT = torch.zeros(1)  # its time
LENGTH, COUNT, SPANS, IDS = 0, 1, 4, 8  # places in `Fixed.step`; 2 and 3: the cache's room and its address


class Tapes:
    """What some recordings share: the stream they are made on, and turns."""

    def __init__(self, device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.off = False  # set for good by the first failure
        self._lock, self._done = Lock(), torch.cuda.Event() if self.stream else None

    def wait(self) -> None:
        """For all that was played: a recording must not be thrown away before."""
        if self._done:
            self._done.synchronize()

    @contextmanager
    def turn(self, what: str) -> Iterator[None]:
        """One pass at a time, and each after the one before, on whatever streams. No failure gets out of it.

        Running out of memory may have passed by the next time; the plain code needs less. Others are told, once.
        """
        with self._lock:
            try:
                if self._done:
                    self._done.wait()
                yield
            except torch.OutOfMemoryError:
                pass
            except Exception:  # whatever a driver finds wrong with recording
                self.off = True
                log.warning("Recording %s failed; from here on it runs unrecorded.", what, exc_info=True)
            else:
                if self._done:
                    self._done.record()


class Tape:
    """A function without arguments whose tensors lie at fixed places: run plainly once, then recorded and played.

    The plain run compiles kernels and fills caches, which must not happen inside a recording, and its result counts.
    pool: of tapes that share the memory between their kernels. They may where nothing in it is read after a tape has
    played, since tapes play one after the other. A pool that no recording uses any more must not be used again.
    """

    def __init__(self, run: Callable[[], None], shared: Tapes, pool: tuple[int, int] | None = None):
        self._run, self._shared, self._pool, self._graph, self._met = run, shared, pool, None, False

    def play(self) -> None:
        if self._shared.stream is None:  # as under Triton's interpreter
            self._run()
        elif self._met:
            self._graph = self._graph or self._aside(self._recorded)
            self._graph.replay()
        else:
            self._aside(self._run)
            self._met = True

    def _aside(self, call: Callable):
        here, aside = torch.cuda.current_stream(), self._shared.stream
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            found = call()
        here.wait_stream(aside)
        return found

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """Not by `torch.cuda.graph`, which waits for the GPU and gives all spare memory back first.

        Other threads may go on using the GPU meanwhile (`thread_local`).
        """
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(self._pool, capture_error_mode="thread_local")
        try:
            self._run()
        finally:
            graph.capture_end()
        return graph


# --- the text column -------------------------------------------------------------------------------------------------


class Fixed:
    """The fixed places of recorded passes over memories of up to `slots` slots, and the passes themselves.

    gaze: (watched places, 2 spans, slots) fp32: 4 bytes a slot each. logits: (V,) after the last real token.
    """

    def __init__(self, net: Vamba, places: Sequence[int], memory: Memory, shared: Tapes):
        self.net, self.places = net, {place: n for n, place in enumerate(places)}
        self.slots = max(LEAST_SLOTS, 1 << (len(memory) - 1).bit_length())
        weight = net.model.embed_tokens.weight
        new, most = weight.new_zeros, book_room(self.slots // 64 + 2)  # were the blocks as small as they may be
        self.step, self.book = new(IDS + ROWS[-1], dtype=torch.int64), new(most, dtype=torch.int64)
        self.gaze, self.logits = new(len(places), 2, self.slots, dtype=torch.float32), new(net.cfg.vocab)
        self._view = Slots.of(self.book, self.slots, memory.log.fields)
        pool = torch.cuda.graph_pool_handle() if shared.stream else None
        self.tapes = {rows: Tape(lambda rows=rows: self._pass(rows), shared, pool) for rows in ROWS}

    def holds(self, memory: Memory) -> bool:
        return len(memory) <= self.slots and len(memory.log.book) <= len(self.book)

    def set(self, ids: Sequence[int], spans: Sequence[tuple[int, int]], cache: TextCache, memory: Memory) -> None:
        """Copies in what changes. From locked memory, so that nothing waits; torch keeps it until it is read."""
        room = cache.room
        head = [cache.length, len(ids), room.shape[4], room.data_ptr()]
        head += [i for span in (*spans, (0, 0), (0, 0))[:2] for i in span]
        step = torch.tensor([*head, *ids])
        step = step.pin_memory() if room.is_cuda else step
        self.step[: len(step)].copy_(step, non_blocking=True)
        self.book[: len(memory.log.book)].copy_(memory.log.book)

    def _pass(self, rows: int) -> None:
        """`rows` tokens from `step`, of which the first COUNT are real. What lies behind them is worked through too,
        and read by nobody: causal attention never looks ahead, and all else is token by token."""
        net, step, one, kernels = self.net, self.step, rows == 1, kernels_for(self.gaze)
        count, spans = step[COUNT : COUNT + 1], step[SPANS:IDS].view(2, 2)
        recorded = {} if one else {"count": count, "spans": spans}

        def own(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return kernels.attend_text(step, layer, q[0], k[0], v[0])[None]

        def cross(place: int, q: Tensor) -> Tensor:
            if place not in self.places:
                return kernels.attend(self._view, place, q[0], **({} if one else {"count": count}))[0][None]
            return kernels.attend(self._view, place, q[0], True, weights=self.gaze[self.places[place]], **recorded)[0][
                None
            ]

        h = net.model.embed_tokens(step[None, IDS : IDS + rows])
        h = net.read(h, step[LENGTH] + torch.arange(rows, device=step.device), own, cross)
        self.logits.copy_(net.logits(h.index_select(1, count - 1))[0, 0])


class Recordings:
    """The recorded passes of one network's text column, for many answers at once, of which one is served at a time.

    places: in `cross_layers`, whose attention is kept.
    """

    def __init__(self, net: Vamba, places: Sequence[int]):
        self.net, self.places = net, sorted(set(places))
        self.tapes = Tapes(net.model.embed_tokens.weight.device)
        self._fixed: Fixed | None = None
        self._prepared = False

    @torch.no_grad()
    def prepare(self, memory: Memory) -> None:
        """Compiles and records every pass, once, over one slot: so that no question waits for it. memory: any."""
        from pipeline.layers.reading import Reader

        if self._prepared or not kernels_for(self.net.model.embed_tokens.weight):
            return
        self._prepared, cfg = True, self.net.cfg
        memory, write = replace(memory, log=replace(memory.log, blocks=(), length=0, block_slots=64)).append(ONE_SLOT)
        kind = self.net.model.embed_tokens.weight
        write(slice(None), *kind.new_zeros(2, len(cfg.cross_layers), cfg.n_kv_heads, 1, cfg.head_dim))
        for rows in (*ROWS, *ROWS):
            Reader(self.net, memory, self.places, self).feed([0] * rows)

    def feed(self, reader: Reader, ids: Sequence[int], spans: Sequence[range]) -> tuple[Tensor, Tensor] | None:
        """Logits (V,) and gazes (spans, places, moments) as of `Reader`'s plain pass, or None where it must do it."""
        cache, found = reader.cache, None
        if self._fits(reader, spans):
            before = cache.length
            with self.tapes.turn("answers"):
                found = self._feed(reader, ids, spans)
            if found is None:  # the plain code begins where this began
                cache.length, cache.used, self._fixed = before, [before] * len(cache.used), None
        return found

    def _fits(self, reader: Reader, spans: Sequence[range]) -> bool:
        weight, memory, cfg = self.net.model.embed_tokens.weight, reader.memory, self.net.cfg
        if self.tapes.off or not reader.moments or reader.watch_layers != self.places or len(spans) > 2:
            return False
        if memory.host_slots:
            return False
        q = weight.new_empty(cfg.n_heads, 1, cfg.head_dim)
        return attention_kernels(q, len(memory), memory.log.block_slots) is not None

    def _feed(self, reader: Reader, ids: Sequence[int], spans: Sequence[range]) -> tuple[Tensor, Tensor]:
        cfg, cache, memory, gazes = self.net.cfg, reader.cache, reader.memory, {}
        like = self.net.model.embed_tokens.weight.new_empty(1, cfg.n_kv_heads, 0, cfg.head_dim)
        fixed = self._room_for(memory)
        for part in _parts(len(ids)):
            cache.reserve(cache.length + len(part), like)
            seen = {i: both for i, span in enumerate(spans) if (both := _overlap(span, part))}
            inside = [(both.start - part.start, both.stop - part.start) for both in seen.values()]
            fixed.set([ids[i] for i in part], inside, cache, memory)
            fixed.tapes[next(rows for rows in ROWS if rows >= len(part))].play()
            cache.length += len(part)
            cache.used = [cache.length] * cfg.n_layers
            found = reader.moments.sums(fixed.gaze[:, : len(seen), : len(memory)])
            for n, (i, both) in enumerate(seen.items()):
                gazes[i] = gazes.get(i, 0) + found[:, n] * (len(both) / len(spans[i]))
        return fixed.logits.clone(), torch.stack([gazes[i] for i in range(len(spans))])

    def _room_for(self, memory: Memory) -> Fixed:
        if self._fixed is None or not self._fixed.holds(memory):
            if self._fixed is not None:  # before the next is made: both at once may not fit
                self.tapes.wait()
                self._fixed.tapes.clear()
                self._fixed = None
            self._fixed = Fixed(self.net, self.places, memory, self.tapes)
        return self._fixed


def _parts(count: int) -> list[range]:
    """0 .. count in as few passes as can be, of about the same length."""
    passes = -(-count // ROWS[-1])
    return [range(a, b) for a, b in pairwise(count * i // passes for i in range(passes + 1))]


def _overlap(a: range, b: range) -> range:
    start = max(a.start, b.start)
    return range(start, max(start, min(a.stop, b.stop)))


# --- the video column ------------------------------------------------------------------------------------------------


class Chunk:
    """The fixed places of a recorded pass over T tokens of the video column. States and keys are copied out."""

    def __init__(
        self, net: Vamba, v_BTD: Tensor, states: Sequence[MixerState], positions: Tensor | None, shared: Tapes
    ):
        cfg, T = net.cfg, v_BTD.shape[1]
        self.net, self.v = net, torch.empty_like(v_BTD, memory_format=torch.contiguous_format)
        self.before = [MixerState(*map(torch.empty_like, state)) for state in states]
        self.after: Sequence[MixerState] = ()
        self.positions = None if positions is None else torch.empty_like(positions)
        self.keys, self.values = v_BTD.new_empty(2, len(cfg.cross_layers), cfg.n_kv_heads, T, cfg.head_dim)
        self.tape = Tape(self._pass, shared)

    def _pass(self) -> None:
        def keep(place: int, k: Tensor, v: Tensor) -> None:
            self.keys[place].copy_(k[0])
            self.values[place].copy_(v[0])

        self.after = self.net.watch(self.v, tuple(self.before), keep, self.positions)

    def play(self, v_BTD: Tensor, states: Sequence[MixerState], positions: Tensor | None) -> tuple[MixerState, ...]:
        self.v.copy_(v_BTD)
        if positions is not None:
            self.positions.copy_(positions)
        _copy(self.before, states)
        self.tape.play()
        new = tuple(MixerState(*map(torch.empty_like, state)) for state in self.after)
        _copy(new, self.after)
        return new


def _copy(to: Sequence[MixerState], of: Sequence[MixerState]) -> None:
    """In two launches: convolutions' rows and states differ in their type."""
    for ours, theirs in zip(zip(*to), zip(*of)):
        torch._foreach_copy_(ours, theirs)


class Live:
    """Recordings of short passes, one for each kind (a length, a size) that comes again and again."""

    def __init__(self, device: torch.device):
        self.tapes = Tapes(device)
        self._kept: dict[Hashable, Any] = {}  # the one used last at the end
        self._met: Counter[Hashable] = Counter()

    def _again(self, kind: Hashable) -> bool:
        """Whether this kind came before and can be recorded."""
        self._met[kind] += 1
        return not self.tapes.off and self._met[kind] > LIVE_USES

    def _of(self, kind: Hashable, make: Callable[[], Any]) -> Any:
        """Its recording; the one that was not used for longest gives way."""
        found = self._kept.pop(kind, None)
        if found is None and len(self._kept) == LIVE_KINDS:
            self.tapes.wait()
            self._kept.pop(next(iter(self._kept))).tape = None
        self._kept[kind] = found = found or make()
        return found


class LiveRecordings(Live):
    """The recorded passes of one network's video column, for short chunks of the same length again and again."""

    def __init__(self, net: Vamba):
        super().__init__(net.model.embed_tokens.weight.device)
        self.net = net

    def watch(
        self, v_BTD: Tensor, states: tuple[MixerState, ...], write: Callable, positions: Tensor | None
    ) -> tuple[MixerState, ...]:
        """As `Vamba.watch`, but `write` is that of `Memory.append`: all layers are written at once where it can be."""
        new, T = None, v_BTD.shape[1]
        if len(v_BTD) == 1 and T <= LIVE_TOKENS and kernels_for(v_BTD) and self._again(T):
            with self.tapes.turn("live chunks"):
                chunk = self._of(T, lambda: Chunk(self.net, v_BTD, states, positions, self.tapes))
                new = chunk.play(v_BTD, states, positions)
                write(slice(None), chunk.keys, chunk.values)
        if new is None:
            new = self.net.watch(v_BTD, states, lambda place, k, v: write(place, k[0], v[0]), positions)
        return new


# --- the vision tower ------------------------------------------------------------------------------------------------


class Glance:
    """The fixed places of a recorded walk of some pairs' patches through a tower."""

    def __init__(self, encode: Callable[[Tensor], Tensor], pairs_NLC: Tensor, shared: Tapes):
        self.pairs, self.tokens = torch.empty_like(pairs_NLC, memory_format=torch.contiguous_format), None
        self._encode, self.tape = encode, Tape(self._walk, shared)

    def _walk(self) -> None:
        self.tokens = self._encode(self.pairs)

    def play(self, pairs_NLC: Tensor) -> Tensor:
        self.pairs.copy_(pairs_NLC)
        self.tape.play()
        return self.tokens.clone()


class LiveTower(Live):
    """The recorded walks through one vision tower, for few pairs of the same size again and again.

    One pair keeps an H100 busy for 4 ms and a processor, with 450 launches, for 18 to 40.
    """

    def __init__(self, encode: Callable[[Tensor, int, int], Tensor], device: torch.device):
        super().__init__(device)
        self._encode = encode

    def encode(self, pairs_NLC: Tensor, h: int, w: int) -> Tensor:
        """Tokens of pairs of h x w patches each, as `encode` gives them."""
        found, kind = None, (len(pairs_NLC), h, w)
        if pairs_NLC[..., 0].numel() <= LIVE_PATCHES and kernels_for(pairs_NLC) and self._again(kind):
            with self.tapes.turn("live pictures"):
                glance = self._of(kind, lambda: Glance(lambda x: self._encode(x, h, w), pairs_NLC, self.tapes))
                found = glance.play(pairs_NLC)
        return self._encode(pairs_NLC, h, w) if found is None else found
