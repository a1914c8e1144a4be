"""Passes of Vamba's two columns, recorded and played again (gpu/graphs.py): a token is one launch, not 750.

On an H100 at minute 60 a token's kernels run for 17 ms and take a processor 45 ms to launch; a live chunk of two frames
runs for 4.5 ms and takes 25. What changes is copied to fixed places before: for words the tokens, how many came before
them and where their keys lie (`step`), how many slots the memory has and where they lie (`book`). One recording then
serves every answer, every length of a conversation and every memory up to `TextPasses.slots`. Of an answer or a stream
nothing stays in a recording: a pass copies in, plays and copies out under a lock, in one stream's order.

Needs CUDA and this repository's kernels. What cannot be recorded goes through the plain code of `TextDecoder` and
`Vamba.watch`, which is always right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from pipeline.gpu.dispatch import attention_kernels, kernels_for
from pipeline.gpu.graphs import Tape, Tapes, TapesByKind, copy_all
from pipeline.gpu.layout import Slots, book_room
from pipeline.layers.mamba2 import MixerState
from pipeline.layers.reading import TextCache, TextDecoder, even_parts, overlap
from pipeline.layers.vamba import Vamba
from pipeline.memory.memory import Memory, Write

ROWS = (1, 64, 128)  # tokens of a recorded pass; fewer are filled up, more take several passes
LEAST_SLOTS = 1 << 20  # 117 minutes of 640x360; doubles when a memory outgrows it, and passes are recorded anew
LIVE_TOKENS = 2400  # of a recorded chunk: 16 frames of 640x360; more keep a GPU busy longer than a processor
ONE_SLOT = torch.zeros(1)  # its time
LENGTH, COUNT, SPANS, IDS = 0, 1, 4, 8  # places in `TextPasses.step`; 2 and 3: the cache's room and its address


# --- the text column -------------------------------------------------------------------------------------------------


class TextPasses:
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
        self.tapes = {rows: Tape(partial(self._pass, rows), shared, pool) for rows in ROWS}

    def holds(self, memory: Memory) -> bool:
        return len(memory) <= self.slots and len(memory.log.book) <= len(self.book)

    def set(self, ids: Sequence[int], spans: Sequence[tuple[int, int]], cache: TextCache, memory: Memory) -> None:
        """Copies in what changes. From locked memory, so that nothing waits; torch keeps it until it is read."""
        room = cache.room
        assert room is not None  # reserved just before
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
        assert kernels is not None  # or nothing is recorded

        def own(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return kernels.attend_text(step, layer, q[0], k[0], v[0])[None]

        def cross(place: int, q: Tensor) -> Tensor:
            if place not in self.places:
                out, _ = kernels.attend(self._view, place, q[0], **({} if one else {"count": count}))
            else:
                gaze = self.gaze[self.places[place]]
                out, _ = kernels.attend(self._view, place, q[0], True, weights=gaze, **recorded)
            return out[None]

        h = net.model.embed_tokens(step[None, IDS : IDS + rows])
        h = net.read(h, step[LENGTH] + torch.arange(rows, device=step.device), own, cross)
        self.logits.copy_(net.logits(h.index_select(1, count - 1))[0, 0])


class TextRecordings:
    """The recorded passes of one network's text column, for many answers at once, of which one is served at a time.

    places: in `cross_layers`, whose attention is kept.
    """

    def __init__(self, net: Vamba, places: Sequence[int]):
        self.net, self.places = net, sorted(set(places))
        self.tapes = Tapes(net.model.embed_tokens.weight.device)
        self._passes: TextPasses | None = None
        self._prepared, self._preparing = False, Lock()
        # A query, and keys of no tokens: made once, each tensor that a pass makes costs it time.
        cfg, new = net.cfg, net.model.embed_tokens.weight.new_empty
        self._query, self.no_keys = new(cfg.n_heads, 1, cfg.head_dim), new(1, cfg.n_kv_heads, 0, cfg.head_dim)

    @torch.no_grad()
    def prepare(self, memory: Memory) -> None:
        """Compiles and records every pass, once, over one slot: so that no question waits for it. memory: any."""
        with self._preparing:  # streams of several visitors begin at once
            if not self._prepared and kernels_for(self.net.model.embed_tokens.weight):
                self._record_all(memory)
                self._prepared = True

    def _record_all(self, memory: Memory) -> None:
        memory = one_slot(self.net, memory)
        for rows in (*ROWS, *ROWS):
            TextDecoder(self.net, memory, self.places, self).feed([0] * rows)

    def feed(self, decoder: TextDecoder, ids: Sequence[int], spans: Sequence[range]) -> tuple[Tensor, Tensor] | None:
        """Logits (V,) and gazes (spans, places, instants) of these tokens, or None where plain code must find them."""
        cache, found = decoder.cache, None
        if self.fits(decoder, len(spans)):
            before = cache.length
            with self.tapes.turn("answers"):
                found = self._feed(decoder, ids, spans)
            if found is None:  # the plain code begins where this began
                cache.length, cache.used, self._passes = before, [before] * len(cache.used), None
        return found

    def fits(self, decoder: TextDecoder, spans: int) -> bool:
        """Whether recorded passes can serve this decoder, with gazes of so many spans."""
        memory = decoder.memory
        if self.tapes.off or not decoder.instants or decoder.watch_layers != self.places or spans > 2:
            return False
        if memory is None or memory.host_slots:
            return False
        return attention_kernels(self._query, len(memory), memory.log.block_slots) is not None

    def _feed(self, decoder: TextDecoder, ids: Sequence[int], spans: Sequence[range]) -> tuple[Tensor, Tensor]:
        cfg, cache, memory, instants = self.net.cfg, decoder.cache, decoder.memory, decoder.instants
        assert memory is not None and instants is not None  # `fits` saw to it
        gazes: dict[int, Tensor] = {}
        passes = self._room_for(memory)
        for part in even_parts(len(ids), ROWS[-1]):
            cache.reserve(cache.length + len(part), self.no_keys)
            seen = {i: both for i, span in enumerate(spans) if (both := overlap(span, part))}
            inside = [(both.start - part.start, both.stop - part.start) for both in seen.values()]
            passes.set([ids[i] for i in part], inside, cache, memory)
            passes.tapes[next(rows for rows in ROWS if rows >= len(part))].play()
            cache.length += len(part)
            cache.used = [cache.length] * cfg.n_layers
            found = instants.sums(passes.gaze[:, : len(seen), : len(memory)])
            for n, (i, both) in enumerate(seen.items()):
                gazes[i] = gazes.get(i, 0) + found[:, n] * (len(both) / len(spans[i]))
        return passes.logits.clone(), torch.stack([gazes[i] for i in range(len(spans))])

    def _room_for(self, memory: Memory) -> TextPasses:
        if self._passes is None or not self._passes.holds(memory):
            if self._passes is not None:  # before the next is made: both at once may not fit
                self.tapes.wait()
                self._passes.tapes.clear()
                self._passes = None
            self._passes = TextPasses(self.net, self.places, memory, self.tapes)
        return self._passes


def one_slot(net: Vamba, like: Memory) -> Memory:
    """A memory of one slot of zeros, to compile and record over."""
    cfg, weight = net.cfg, net.model.embed_tokens.weight
    memory, write = replace(like, log=replace(like.log, blocks=(), length=0, block_slots=64)).append(ONE_SLOT)
    write(slice(None), *weight.new_zeros(2, len(cfg.cross_layers), cfg.n_kv_heads, 1, cfg.head_dim))
    return memory


# --- the video column ------------------------------------------------------------------------------------------------


class ChunkRecording:
    """The fixed places of a recorded pass over T tokens of the video column. States and keys are copied out."""

    def __init__(
        self, net: Vamba, v_BTD: Tensor, states: Sequence[MixerState], positions: Tensor | None, shared: Tapes
    ):
        cfg, T = net.cfg, v_BTD.shape[1]
        self.net, self.v = net, torch.empty_like(v_BTD, memory_format=torch.contiguous_format)
        self.before = [MixerState(*map(torch.empty_like, state)) for state in states]
        self.after: Sequence[MixerState] = ()
        self.positions = None if positions is None else torch.empty_like(positions)
        # In the order in which projections leave: both of a layer are kept in one launch, and quickly.
        self.kept = v_BTD.new_empty(len(cfg.cross_layers), 2, T, cfg.n_kv_heads, cfg.head_dim)
        self.keys, self.values = self.kept.transpose(2, 3).unbind(1)
        self.tape: Tape | None = Tape(self._pass, shared)

    def _pass(self) -> None:
        def keep(place: int, k: Tensor, v: Tensor) -> None:
            torch.stack((k[0].transpose(0, 1), v[0].transpose(0, 1)), out=self.kept[place])

        self.after = self.net.watch(self.v, tuple(self.before), keep, self.positions)

    def play(self, v_BTD: Tensor, states: Sequence[MixerState], positions: Tensor | None) -> tuple[MixerState, ...]:
        self.v.copy_(v_BTD)
        if positions is not None and self.positions is not None:
            self.positions.copy_(positions)
        copy_all(self.before, states)
        assert self.tape is not None  # a recording that was thrown away is nobody's
        self.tape.play()
        new = tuple(MixerState(*map(torch.empty_like, state)) for state in self.after)
        copy_all(new, self.after)
        return new


class Place:
    """Where new slots go in a memory, found when the first of them come: by then a GPU has the whole pass to do, and
    does not wait until room is made (a chunk of 16 frames often needs a new block: 0.8 ms)."""

    def __init__(self, memory: Memory, times: Tensor):
        self.memory, self._times = memory, times
        self._write: Write | None = None

    def write(self, layer: int | slice, k: Tensor, v: Tensor) -> None:
        """As that of `Memory.append`. `memory` is the new one from then on."""
        if self._write is None:
            self.memory, self._write = self.memory.append(self._times)
        self._write(layer, k, v)


class ChunkRecordings(TapesByKind[ChunkRecording]):
    """The recorded passes of one network's video column, for short chunks of the same length again and again."""

    def __init__(self, net: Vamba):
        super().__init__(net.model.embed_tokens.weight.device)
        self.net = net

    def watch(
        self, v_BTD: Tensor, states: tuple[MixerState, ...], write: Callable, positions: Tensor | None
    ) -> tuple[MixerState, ...]:
        """As `Vamba.watch`, but `write` is that of `Memory.append`: all layers are written at once where it can be."""
        new, T = None, v_BTD.shape[1]
        if len(v_BTD) == 1 and T <= LIVE_TOKENS and kernels_for(v_BTD) and self.comes_again(T):
            with self.tapes.turn("live chunks"):
                chunk = self.recording(T, lambda: ChunkRecording(self.net, v_BTD, states, positions, self.tapes))
                new = chunk.play(v_BTD, states, positions)
                write(slice(None), chunk.keys, chunk.values)
        if new is None:
            new = self.net.watch(v_BTD, states, lambda place, k, v: write(place, k[0], v[0]), positions)
        return new
