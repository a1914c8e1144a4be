"""Passes of the systems of one sequence, recorded and played again (gpu/graphs.py): a word, a short run of pictures.

On an H100 a word of HoVLE after 400 pictures takes 9 ms so, and took 70 launch by launch. What changes is copied to
fixed places before: the word, its place, the states, where the conversation's keys lie, how many slots the stream has
and where (its book). One recording then serves every answer and every length of a stream up to its room. Of a stream
or an answer nothing stays in a recording, and a pass may be made twice: it reads from some places and writes to others.

Needs CUDA and this repository's kernels. What cannot be recorded goes through the plain code, which is always right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.gpu.dispatch import attention_kernels, kernels_for
from pipeline.gpu.graphs import Tape, Tapes, TapesByKind, copy_all
from pipeline.gpu.layout import Slots, book_room
from pipeline.layers.mamba2 import MixerState
from pipeline.layers.streamed import Answering, Prefix, behind
from pipeline.memory.log import Log
from pipeline.memory.memory import Memory
from pipeline.models.sequence_net import Net

LEAST_SLOTS = 1 << 18  # 16 minutes of mmMamba; doubles when a stream outgrows it, and passes are recorded anew
LIVE_TOKENS = 2400  # of a recorded run; more keep a GPU busy longer than a processor
TALK = 2  # where in `TokenPass.step` the conversation begins, behind the word and its place


def room_for(slots: int) -> int:
    """Slots that a recording is made for."""
    return max(LEAST_SLOTS, 1 << (slots - 1).bit_length())


class Book:
    """The fixed place of a stream's book, and the stream as kernels see it there."""

    def __init__(self, log: Log):
        self.room = room_for(len(log))
        most = book_room(self.room // 64 + 2)  # were the blocks as small as they may be
        self._book = torch.zeros(most, dtype=torch.int64, device=log.device)
        self.slots = Slots.of(self._book, self.room, log.fields)

    def holds(self, log: Log) -> bool:
        return len(log) <= self.room and len(log.book) <= len(self._book)

    def set(self, log: Log) -> None:
        self._book[: len(log.book)].copy_(log.book)


def fixed(states: Sequence[MixerState]) -> tuple[MixerState, ...]:
    """Places of such states."""
    return tuple(MixerState(*map(torch.empty_like, state)) for state in states)


def copied(states: Sequence[MixerState]) -> tuple[MixerState, ...]:
    new = fixed(states)
    copy_all(new, states)
    return new


# --- a word ----------------------------------------------------------------------------------------------------------


class RecordedWord:
    """`Answering` of one word at fixed places. gaze: (last layers, room) fp32."""

    def __init__(self, of: Answering, talk: Tensor):
        layers = len(of.room)
        self.book, self._talk, self._from = Book(of.memory.log), talk, of.gaze_from
        self.gaze = of.room.new_empty(layers - of.gaze_from, self.book.room, dtype=torch.float32)

    def attend(self, layer: int, q_H1P: Tensor, k_K1P: Tensor, v_K1P: Tensor) -> Tensor:
        kernels, n = kernels_for(q_H1P), layer - self._from
        assert kernels is not None  # or nothing is recorded
        gaze = self.gaze[n : n + 1] if n >= 0 else None
        return kernels.attend_words(self.book.slots, layer, self._talk, q_H1P, k_K1P, v_K1P, n >= 0, gaze)[0]


class Fed(NamedTuple):
    """What a recorded word leaves: logits (V,), states, and where it looked (slots,)."""

    logits: Tensor
    states: tuple[MixerState, ...]
    gaze: Tensor | None


class TokenPass:
    """The fixed places of one word's recorded pass. step: the word, its place, the conversation as kernels read it."""

    logits: Tensor  # (V,), after the word

    def __init__(
        self, net: Net, states: Sequence[MixerState], view: Answering | None, shared: Tapes, device: torch.device
    ):
        self._net, self.step = net, torch.zeros(TALK + 4, dtype=torch.int64, device=device)
        self.before, self.after = fixed(states), tuple(states)
        self.view = None if view is None else RecordedWord(view, self.step[TALK:])
        self._tape = Tape(self._pass, shared)

    def holds(self, view: Answering | None) -> bool:
        return self.view is None or view is None or self.view.book.holds(view.memory.log)

    def _pass(self) -> None:
        x_1TD, self.after = self._net(self._net.embed(self.step[:1]), self.before, self.step[1:TALK], self.view)
        self.logits = self._net.logits(x_1TD[0, -1])

    def play(self, token: int, states: Sequence[MixerState], place: int, view: Answering | None) -> Fed:
        step = torch.tensor([token, place, *([] if view is None else view.told(1))])
        step = (
            step.pin_memory() if self.step.is_cuda else step
        )  # so that nothing waits; torch keeps it until it is read
        self.step[: len(step)].copy_(step, non_blocking=True)
        if states:
            copy_all(self.before, states)
        if self.view is not None and view is not None:
            self.view.book.set(view.memory.log)
        self._tape.play()
        gaze = None
        if self.view is not None and view is not None:
            gaze = self.view.gaze[:, : len(view.memory)].sum(0)
        return Fed(self.logits.clone(), copied(self.after) if states else (), gaze)


class TokenRecordings:
    """One network's recorded word, for many answers at once, of which one is served at a time."""

    def __init__(self, net: Net, device: torch.device):
        self._net, self.device, self.tapes = net, device, Tapes(device)
        self.recorded: TokenPass | None = None

    def feed(self, token: int, states: tuple[MixerState, ...], place: int, view: Answering | None) -> Fed | None:
        """What one more word leaves, or None where plain code must find it. The view's keys are then written."""
        found = None
        if not self.tapes.off and self._can(states, view):
            with self.tapes.turn("answers"):
                found = self._pass_for(states, view).play(token, states, place, view)
            if found is None:
                self.recorded = None
        return found

    def _can(self, states: tuple[MixerState, ...], view: Answering | None) -> bool:
        return (
            view.kernels is not None if view is not None else bool(states) and kernels_for(states[0].conv) is not None
        )

    def _pass_for(self, states: tuple[MixerState, ...], view: Answering | None) -> TokenPass:
        if self.recorded is None or not self.recorded.holds(view):
            if self.recorded is not None:  # before the next is made: both at once may not fit
                self.tapes.wait()
                self.recorded = None
            self.recorded = TokenPass(self._net, states, view, self.tapes, self.device)
        return self.recorded


# --- a run of pictures -----------------------------------------------------------------------------------------------


class RecordedRun:
    """`Watching` of a run at fixed places. keys, values: (layers, K, T, P), to be written to the stream afterwards."""

    def __init__(self, prefix: Prefix | None, log: Log, tokens: int):
        self.book, self._prefix = Book(log), prefix
        field = log.fields["k"]
        self.keys, self.values = torch.empty(2, *field.sized(tokens), dtype=field.dtype, device=log.device)

    def attend(self, layer: int, q_HTP: Tensor, k_KTP: Tensor, v_KTP: Tensor) -> Tensor:
        kernels = kernels_for(q_HTP)
        assert kernels is not None  # or nothing is recorded
        self.keys[layer].copy_(k_KTP)
        self.values[layer].copy_(v_KTP)
        return kernels.attend_run(self.book.slots, layer, q_HTP, *behind(self._prefix, layer, k_KTP, v_KTP))


class RunPass:
    """The fixed places of a recorded run of so many tokens, over a stream of up to so many slots."""

    def __init__(
        self, net: Net, x_1TD: Tensor, states: Sequence[MixerState], prefix: Prefix | None, log: Log | None, on: Tapes
    ):
        self._net, self.x = net, torch.empty_like(x_1TD, memory_format=torch.contiguous_format)
        self.place = torch.zeros(1, dtype=torch.int64, device=x_1TD.device)
        self.before, self.after = fixed(states), tuple(states)
        self.view = None if log is None else RecordedRun(prefix, log, x_1TD.shape[1])
        self.tape: Tape | None = Tape(self._pass, on)

    def _pass(self) -> None:
        _, self.after = self._net(self.x, self.before, self.place, self.view)

    def play(self, x_1TD: Tensor, states: Sequence[MixerState], place: int, log: Log | None) -> tuple[MixerState, ...]:
        self.x.copy_(x_1TD)
        self.place.fill_(place)
        if states:
            copy_all(self.before, states)
        if self.view is not None and log is not None:
            self.view.book.set(log)
        assert self.tape is not None  # a recording that was thrown away is nobody's
        self.tape.play()
        return copied(self.after) if states else ()


class RunRecordings(TapesByKind[RunPass]):
    """One network's recorded runs of pictures, for short ones of the same length again and again."""

    def __init__(self, net: Net, device: torch.device):
        super().__init__(device)
        self._net = net

    def watch(
        self,
        x_1TD: Tensor,
        states: tuple[MixerState, ...],
        place: int,
        prefix: Prefix | None,
        memory: Memory | None,
        times: Tensor,
    ) -> tuple[tuple[MixerState, ...], Memory | None] | None:
        """States and memory after one more run, or None where plain code must find them."""
        log, T = None if memory is None else memory.log, x_1TD.shape[1]
        kind = T, 0 if log is None else room_for(len(log))
        if T > LIVE_TOKENS or not self._can(x_1TD, log) or not self.comes_again(kind):
            return None
        found = None
        with self.tapes.turn("live pictures"):
            run = self.recording(kind, lambda: RunPass(self._net, x_1TD, states, prefix, log, self.tapes))
            new = run.play(x_1TD, states, place, log)
            if memory is not None and run.view is not None:
                memory, write = memory.append(times)
                write(slice(None), run.view.keys, run.view.values)
            found = new, memory
        return found

    def _can(self, x_1TD: Tensor, log: Log | None) -> bool:
        if log is None:
            return kernels_for(x_1TD) is not None
        q = x_1TD.new_empty(log.fields["k"].sized(1)[1:])
        kernels = attention_kernels(q, len(log), log.block_slots)
        return kernels is not None and kernels.runs(q)
