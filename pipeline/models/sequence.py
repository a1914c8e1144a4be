"""Systems whose video is one causal sequence of visual tokens and words: mmMamba, HoVLE, ML-Mamba, Gemamba.

Such a system has no separate memory: a question would go into the same states and keys that the video goes into. So it
is asked on a fork: states are values, and the conversation's keys are its own (layers/streamed.py). What comes before
the video is read once; then every unit of frames is appended, with the text the system puts around it; the question and
the answer are read behind it and dropped.

That a long stream is answered from what was carried through it is more than these systems were trained for, so their
streams keep some pictures, too, and by default an answer is read from a few of those, encoded anew (models/native.py).

A recurrent state cannot be taken back. For questions pinned to an earlier second the stream keeps some of its own
states, ever fewer the older they are; keys are cut to the second exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.clock import mmss
from pipeline.gpu.device import told_later
from pipeline.gpu.dispatch import backend
from pipeline.keeping import packing
from pipeline.layers.decoding import TextStream, generator, sample
from pipeline.layers.mamba2 import MixerState
from pipeline.layers.streamed import Prefix, Watching
from pipeline.memory.memory import Memory
from pipeline.models.native import NativeForm, Reservoir
from pipeline.models.sequence_graphs import RunRecordings, TokenRecordings
from pipeline.models.sequence_net import embedded
from pipeline.models.sequence_reading import Conversation
from pipeline.models.told import Snapshot, Told, is_kept, pack_told, unpack_told
from pipeline.stream import (
    Basis,
    Frame,
    Model,
    Packed,
    Question,
    Sampling,
    StreamState,
    Token,
    Tokens,
    UserError,
    VideoChunk,
)
from pipeline.weights.checkpoint import read_tokenizer

TOKENS_PER_CALL = 4096  # of one pass through the layers
BLOCK_SLOTS = 8192  # of the keys' storage
KEPT_AFTER_DROP = 0.75  # of the limit: dropping in strides keeps long passes long


class Eyes(Protocol):
    """Frames in, visual tokens out: (units, tokens, D) of whole units, each closed in itself."""

    unit_frames: int
    long_side: int

    def tokens(self, frames: Sequence[Frame]) -> Tensor: ...


class Prompt(Protocol):
    """A system's chat format around a stream of units, in ids."""

    @property
    def opening(self) -> Sequence[int]:
        """Before the first unit."""
        ...

    @property
    def stops(self) -> Collection[int]:
        """Tokens that end an answer."""
        ...

    def before(self, unit: int) -> list[int]:
        """In front of the tokens of that unit, counted from 1."""
        ...

    def after(self, unit: int) -> list[int]:
        """Behind them."""
        ...

    def question(self, question: Question, units: int) -> list[int]:
        """Behind the newest unit: earlier turns, the question, and the opened answer."""
        ...


class Unit(NamedTuple):
    """One unit's inputs (1, t, D), the text around its pictures too, and every token's second (T,); NaN for text."""

    parts: tuple[Tensor, ...]
    times: Tensor


class SequenceModel(Model[Told]):
    """The common face (`stream.Model`) of these systems.

    eyes, prompt: see above. limit: the most slots of keys kept; None: all. Beyond it the oldest units go. native: what
    the system was trained on; None: no pictures are kept for it. streamed: answer from what was carried all the same.
    """

    def __init__(
        self,
        net: Any,
        eyes: Eyes,
        prompt: Prompt,
        tokenizer: Any,
        *,
        name: str,
        about: str,
        limit: int | None = None,
        native: NativeForm | None = None,
        streamed: bool = False,
    ):
        self.net, self.eyes, self.prompt, self.tokenizer = net.eval(), eyes, prompt, tokenizer
        self.name, self.about, self.limit = name, about, limit
        self.native, self.streamed = native, streamed or native is None
        self.unit_frames, self.long_side = eyes.unit_frames, eyes.long_side
        self._recordings, self._runs = TokenRecordings(net, self.device), RunRecordings(net, self.device)
        self.prefix, self._opened = self._read_opening()

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.net.parameters()).dtype

    @property
    def backend(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.device.type}, {kind}; {backend(self.device) if self._opened else 'torch attention'}"

    def chunk_frames(self, backlog: int) -> int:
        """Live: one unit. Catching up: the more the better until the kernels are full."""
        most = 64 if self.device.type == "cuda" else 8
        return max(self.unit_frames, min(backlog, most) // self.unit_frames * self.unit_frames)

    def is_finite(self, state: StreamState[Told]) -> bool:
        """Whether all recurrent states, or the last layer's keys, to which all trouble comes, are numbers."""
        return self.finite_later(state)()

    def finite_later(self, state: StreamState[Told]) -> Callable[[], bool]:
        told = state.inner
        parts = [torch.isfinite(s.ssm).all() for s in told.states]
        if told.memory is not None:
            parts += [torch.isfinite(part[-1]).all() for found in told.memory.log.views("k", "v") for part in found]
        return told_later(torch.stack(parts).all()) if parts else lambda: True

    def start(self) -> StreamState[Told]:
        pictures = Reservoir(self.native.room) if self.native else None
        return self._state(StreamState(told := replace(self._blank(), pictures=pictures)), told)

    def _blank(self) -> Told:
        """Before the first unit."""
        return Told(self._opened, self._empty(BLOCK_SLOTS), len(self.prompt.opening))

    def watch(self, chunk: VideoChunk, state: StreamState[Told]) -> StreamState[Told]:
        frames = state.held + chunk.frames
        whole = len(frames) // self.unit_frames * self.unit_frames
        told = self._see(frames[:whole], state.inner) if whole else state.inner
        if told.pictures is not None and self.native:
            told = replace(told, pictures=told.pictures.see(chunk.frames, self.native.fitted))
        state = self._state(state, told)
        count = state.frames + len(chunk.frames)
        return replace(state, held=frames[whole:], frames=count, seen_until=chunk.seen_until)

    def ask(self, question: Question, state: StreamState[Told], sampling: Sampling) -> Tokens:
        """Tokens of the answer. A unit without all its frames is filled with its last one, on the fork.

        A question pinned to a second is answered from what the stream still knows of itself up to that second.
        """
        chosen, conversation, ids = self._opening(question, state, sampling.max_tokens)
        return self._answer(conversation, ids, sampling, chosen)

    def first_logits(self, question: Question, state: StreamState[Told]) -> Tensor:
        _, conversation, ids = self._opening(question, state, 0)
        return conversation.feed(ids)

    def _opening(
        self, question: Question, state: StreamState[Told], words: int
    ) -> tuple[tuple[Frame, ...], Conversation, list[int]]:
        """The pictures that are read anew, a fork with room for so many words, and the question's ids."""
        chosen = self._chosen(question, state)
        told = self._see(chosen, self._blank()) if chosen else self.told_at(state, question.at)
        ids = self.prompt.question(question, told.units)
        return chosen, self.conversation(told, len(ids) + words), ids

    def _chosen(self, question: Question, state: StreamState[Told]) -> tuple[Frame, ...]:
        """Whole units of the pictures that an answer in the native form is read from; none for one that is streamed."""
        pictures = state.inner.pictures
        if self.native is None or self.streamed or pictures is None:
            return ()
        return tuple(self.native.choose(pictures.until(question.at)))

    def basis(self, question: Question, state: StreamState[Told]) -> Basis:
        if self.native is None:
            return super().basis(question, state)
        if chosen := self._chosen(question, state):
            return self.native.basis(chosen)
        return self.native.carried(min(self.told_at(state, question.at).units * self.unit_frames, state.frames))

    def conversation(self, told: Told, room: int) -> Conversation:
        """On a fork of the stream, of at most `room` tokens."""
        return Conversation(self._recordings, self.net, self.prefix, told.states, told.memory, told.length, room)

    def known_until(self, question: Question, state: StreamState[Told]) -> float:
        """A pinned question is answered from a snapshot or from whole units, which may end earlier; in the native form
        the newest of its pictures may be older, too."""
        if (chosen := self._chosen(question, state)) and state.inner.pictures:
            newest = chosen[-1] is state.inner.pictures.newest
            return super().known_until(question, state) if newest else chosen[-1].time
        if question.at is None or question.at >= state.seen_until or not state.inner.units:
            return super().known_until(question, state)
        told = self.told_at(state, question.at)
        if told.memory is not None:
            return float(np.nanmax(told.memory.times))
        return next(s.time for s in state.inner.snapshots if s.units == told.units)

    def told_at(self, state: StreamState[Told], second: float | None) -> Told:
        """The stream as it was at that second (None: now), at least its first unit.

        Keys are cut behind the last unit that had ended by then; recurrent states come from the newest snapshot that is
        no later, or else from the first.
        """
        told = state.inner
        if second is None or second >= state.seen_until:
            fill = state.held[-1:] * (self.unit_frames - len(state.held))
            return self._see(state.held + fill, told) if state.held else told
        if told.memory is not None and not told.states:
            return self._cut(told, told.memory, second)
        if not told.snapshots:
            return told
        at = max((s for s in told.snapshots if s.time <= second), default=told.snapshots[0], key=lambda s: s.units)
        memory = told.memory
        if memory is not None:
            memory = replace(memory, log=memory.log.until(at.length - len(self.prompt.opening)))
        return replace(told, states=at.states, memory=memory, length=at.length, units=at.units)

    def _cut(self, told: Told, memory: Memory, second: float) -> Told:
        times = memory.times
        seen = times[~np.isnan(times)]
        kept, held = int(np.searchsorted(seen, second, side="right")) // told.per_unit, len(seen) // told.per_unit
        kept = min(held, max(kept, 1))
        slots = self._slots(told, memory, kept)
        memory = replace(memory, log=memory.log.until(slots))
        return replace(told, memory=memory, length=told.length - len(times) + slots, units=told.units - held + kept)

    def _slots(self, told: Told, memory: Memory, units: int) -> int:
        """How many slots the memory's first so many units take, with the text around them."""
        if not units:
            return 0
        seen = np.flatnonzero(~np.isnan(memory.times))
        number = told.units - len(seen) // told.per_unit + units
        return int(seen[units * told.per_unit - 1]) + 1 + len(self.prompt.after(number))

    @torch.no_grad()
    def _see(self, frames: tuple[Frame, ...], told: Told) -> Told:
        """The sequence after whole units, in runs that end where a snapshot is due or where old units must go."""
        tokens_NLD, size = self.eyes.tokens(frames), self.unit_frames
        told = replace(told, per_unit=tokens_NLD.shape[1])
        last = told.units + len(tokens_NLD)
        run: list[Unit] = []
        numbers = range(told.units + 1, last + 1)
        for number, tokens_LD, (before, after) in zip(numbers, tokens_NLD, self._texts(numbers)):
            start = (number - numbers.start) * size
            unit = self._unit(before, tokens_LD, after, frames[start : start + size])
            coming = sum(len(u.times) for u in (*run, unit))
            if self.limit and told.memory is not None and len(told.memory) + coming > self.limit:
                told, run = self._drop(self._append(told, run), self.limit, len(unit.times)), []
            run.append(unit)
            due = bool(told.states) and is_kept(number, last)
            if due or number == last or sum(len(u.times) for u in run) >= TOKENS_PER_CALL:
                told, run = self._append(told, run), []
            if due:
                snapshot = Snapshot(frames[start + size - 1].time, number, told.length, told.states)
                told = replace(told, snapshots=(*told.snapshots, snapshot))
        snapshots = tuple(s for s in told.snapshots if is_kept(s.units, last))
        return replace(told, snapshots=snapshots)

    def _texts(self, numbers: range) -> Iterator[tuple[Tensor, Tensor]]:
        """The text before and behind each of these units, embedded together: one by one they take a processor longer
        than the pictures take a GPU."""
        texts = [ids for n in numbers for ids in (self.prompt.before(n), self.prompt.after(n))]
        parts = self.embedded([token for ids in texts for token in ids]).split([len(ids) for ids in texts], dim=1)
        return zip(parts[::2], parts[1::2])

    def _unit(self, before: Tensor, tokens_LD: Tensor, after: Tensor, frames: tuple[Frame, ...]) -> Unit:
        seconds = torch.tensor([frame.time for frame in frames], dtype=torch.float64)
        share = torch.arange(len(tokens_LD)) * len(frames) // len(tokens_LD)  # a frame's tokens lie side by side
        none = seconds.new_full((before.shape[1] + after.shape[1],), torch.nan)
        times = torch.cat([none[: before.shape[1]], seconds[share], none[before.shape[1] :]])
        return Unit((before, tokens_LD[None].to(before.dtype), after), times)

    def embedded(self, ids: Sequence[int]) -> Tensor:
        return embedded(self.net, ids, self.device)

    def _append(self, told: Told, run: list[Unit]) -> Told:
        if not run:
            return told
        x_1TD, times = (
            torch.cat([part for unit in run for part in unit.parts], dim=1),
            torch.cat([u.times for u in run]),
        )
        seen = self._runs.watch(x_1TD, told.states, told.length, self.prefix, told.memory, times)
        states, memory = seen or self._watched(x_1TD, told, times)
        return replace(
            told,
            states=states,
            memory=memory,
            length=told.length + len(times),
            units=told.units + len(run),
        )

    def _watched(self, x_1TD: Tensor, told: Told, times: Tensor) -> tuple[tuple[MixerState, ...], Memory | None]:
        """States and memory after a run, launch by launch."""
        view = Watching(self.prefix, told.memory, times) if told.memory is not None else None
        _, states = self.net(x_1TD, told.states, told.length, view)
        return states, None if view is None else view.memory

    def _drop(self, told: Told, limit: int, needed: int) -> Told:
        """Without the oldest units, so that KEPT_AFTER_DROP of the limit is left, or room for `needed` slots."""
        memory = told.memory
        assert memory is not None  # whoever drops has counted its slots
        held = int((~np.isnan(memory.times)).sum()) // told.per_unit
        target = max(0, min(int(KEPT_AFTER_DROP * limit), limit - needed))
        units = next((n for n in range(held) if len(memory) - self._slots(told, memory, n) <= target), held)
        gone = self._slots(told, memory, units)
        memory = replace(memory, log=memory.log.drop_oldest(gone))
        return replace(told, memory=memory, dropped=told.dropped + gone)

    def _state(self, state: StreamState[Told], told: Told) -> StreamState[Told]:
        note, memory = "", told.memory
        growing = sum(s.nbytes for snapshot in told.snapshots for s in snapshot.states)
        if memory is not None:
            growing += memory.nbytes + (self.prefix.k.nbytes + self.prefix.v.nbytes if self.prefix else 0)
        if told.pictures is not None:
            growing += told.pictures.nbytes
        if memory is not None and told.dropped:
            first = np.nanmin(memory.times)
            note = f"Only {self.limit:,} tokens fit, so what came before {mmss(first)} is no longer seen."
        return replace(
            state,
            inner=told,
            state_bytes=sum(s.nbytes for s in told.states),
            memory_bytes=growing,
            host_bytes=told.pictures.nbytes if told.pictures and self.device.type != "cpu" else 0,
            dropped=told.dropped,
            dropped_note=note,
        )

    def pack(self, state: StreamState[Told]) -> Packed:
        return packing.pack_stream(state, self._maker, pack_told(state.inner))

    def unpack(self, packed: Packed) -> StreamState[Told]:
        return packing.unpack_stream(packed, self._maker, self._unpacked)

    def _unpacked(self, kept: Packed) -> StreamState[Told]:
        told = unpack_told(kept, self.start().inner)
        return self._state(StreamState(told), told)

    @cached_property
    def _maker(self) -> str:
        return packing.fingerprint("sequence and pictures" if self.native else "sequence", self.net)

    @torch.no_grad()
    def _read_opening(self) -> tuple[Prefix | None, tuple[MixerState, ...]]:
        """Keys of the fixed text in front of every video, and the states after it."""
        ids, states = self.prompt.opening, self.net.start()
        if not ids:
            return None, states
        memory = self._empty(len(ids))
        view = None if memory is None else Watching(None, memory, torch.full((len(ids),), torch.nan))
        _, states = self.net(self.embedded(ids), states, 0, view)
        return None if view is None else Prefix(*next(view.memory.log.views("k", "v"))), states

    def _empty(self, block_slots: int) -> Memory | None:
        layers, heads, width = self.net.keys
        if not layers:
            return None
        return Memory.empty(layers, heads, width, self.dtype, self.device, block_slots=block_slots)

    def _answer(
        self, conversation: Conversation, ids: list[int], sampling: Sampling, chosen: tuple[Frame, ...]
    ) -> Tokens:
        """No torch context is held over a `yield`: other models run on this thread in between.

        What was read from a single picture rests on that.
        """
        text, chance = TextStream(self.tokenizer), generator(sampling)
        only = (np.array([chosen[0].time]), np.ones(1)) if len(chosen) == 1 else None
        for left in reversed(range(sampling.max_tokens)):
            token = sample(conversation.feed(ids), sampling, chance)
            looked, ids = only or conversation.looked(), [token]
            if token in self.prompt.stops:
                if rest := text.flush():
                    yield Token(token, rest, looked)
                return
            yield Token(token, text.push(token) + ("" if left else text.flush()), looked)


def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer; UserError without one, since text stands among the frames from the beginning."""
    tokenizer = read_tokenizer(folder)
    if tokenizer is None:
        raise UserError(
            "This checkpoint has no tokenizer, which it needs to watch as well as to answer, so it was not loaded; "
            "add its tokenizer files."
        )
    return tokenizer
