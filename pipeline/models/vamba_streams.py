"""One pass of Vamba's video column for the chunks of several streams: each state its own row, chunks of any lengths.

Rows are filled up to the longest. A mixer's state passes over what was filled up unchanged (a step of size 0), and
nothing of it is written to a memory. Streams whose chunks differ much in length go in passes of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.gpu.device import sent
from pipeline.gpu.graphs import copy_all
from pipeline.layers.mamba2 import MixerState
from pipeline.layers.vamba import Vamba
from pipeline.memory.memory import Memory
from pipeline.stream import Frame, StreamState, VideoChunk
from pipeline.towers.seen import Vision

# On a GPU fewer go one after the other: a recorded column takes 5.5 ms a pair there, launching this pass 25 (H100).
FEWEST_UNRECORDED = 4
MOST_FILLED = 1.5  # rows filled up may take so many times the work of what is really there


@dataclass(eq=False)
class Stream:
    """One stream's whole units of frames, and what it carries: before, and after `watch_streams`."""

    frames: tuple[Frame, ...]
    states: tuple[MixerState, ...]
    memory: Memory
    tokens_TD: Tensor | None = None
    times: Tensor | None = None

    @property
    def length(self) -> int:
        return 0 if self.tokens_TD is None else len(self.tokens_TD)


def split_units(
    chunks: Sequence[VideoChunk], states: Sequence[StreamState[Any]], unit: int
) -> tuple[list[StreamState[Any]], dict[int, Stream]]:
    """The states with their frames counted and the odd ones held, and by number the streams that have whole units."""
    found, streams = [], {}
    for n, (chunk, state) in enumerate(zip(chunks, states)):
        frames = state.held + chunk.frames
        whole, count = len(frames) // unit * unit, state.frames + len(chunk.frames)
        found.append(replace(state, held=frames[whole:], frames=count, seen_until=chunk.seen_until))
        if whole:
            streams[n] = Stream(frames[:whole], state.inner.states, state.inner.memory)
    return found, streams


@torch.no_grad()
def watch_streams(net: Vamba, vision: Vision, streams: Sequence[Stream]) -> None:
    """Sets every stream's states and memory to those after its frames. A failure leaves all as they were."""
    if streams:
        _see(vision, streams)
    found = [one for group in _groups(net, streams) for one in _watch(net, group)]
    for stream, states, memory in found:
        stream.states, stream.memory = states, memory


def _see(vision: Vision, streams: Sequence[Stream]) -> None:
    """The tokens of all streams: pictures of one size go through the tower together."""
    sizes: dict[object, list[Stream]] = {}
    for stream in streams:
        shapes = {frame.rgb.shape[:2] for frame in stream.frames}
        sizes.setdefault(shapes.pop() if len(shapes) == 1 else stream, []).append(stream)
    for alike in sizes.values():
        seen = vision.tokens(tuple(frame for stream in alike for frame in stream.frames))
        total, frames = seen.tokens.shape[1], sum(len(stream.frames) for stream in alike)
        counts = [total * len(stream.frames) // frames for stream in alike]
        for stream, tokens, times in zip(alike, seen.tokens[0].split(counts), seen.times.split(counts)):
            stream.tokens_TD, stream.times = tokens, times


def _groups(net: Vamba, streams: Sequence[Stream]) -> list[list[Stream]]:
    """Streams of about the same length, of exactly the same where no step may be 0."""
    mixer = net.cfg.mixer
    most = MOST_FILLED if mixer is None or mixer.dt_limit[0] == 0 else 1.0
    groups: list[list[Stream]] = []
    for stream in sorted(streams, key=lambda one: one.length):
        if groups and stream.length * (len(groups[-1]) + 1) <= most * (
            sum(s.length for s in groups[-1]) + stream.length
        ):
            groups[-1].append(stream)
        else:
            groups.append([stream])
    return groups


def _watch(net: Vamba, group: Sequence[Stream]) -> list[tuple[Stream, tuple[MixerState, ...], Memory]]:
    lengths, longest = [stream.length for stream in group], max(stream.length for stream in group)
    tokens = [stream.tokens_TD for stream in group if stream.tokens_TD is not None]
    v_BTD = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    lengths_B = None if min(lengths) == longest else sent(torch.tensor(lengths), v_BTD.device)
    states = tuple(MixerState(*map(torch.cat, zip(*layer))) for layer in zip(*(stream.states for stream in group)))
    cfg, (B, T) = net.cfg, v_BTD.shape[:2]
    keys, values = v_BTD.new_empty(2, len(cfg.cross_layers), B, cfg.n_kv_heads, T, cfg.head_dim)

    def keep(place: int, k_BKTP: Tensor, v_BKTP: Tensor) -> None:
        keys[place].copy_(k_BKTP)
        values[place].copy_(v_BKTP)

    after = _rows_of(net.watch(v_BTD, states, keep, lengths_B=lengths_B))
    found = []
    for row, stream in enumerate(group):
        assert stream.times is not None  # `_see` has set it
        memory, write = stream.memory.append(stream.times)
        write(slice(None), keys[:, row, :, : stream.length], values[:, row, :, : stream.length])
        found.append((stream, after[row], memory.applied()))
    return found


def _rows_of(states: Sequence[MixerState]) -> list[tuple[MixerState, ...]]:
    """Each row's own states, copied: a view of one row would keep the states of all streams alive with it."""
    layers = [(state.conv.split(1), state.ssm.split(1)) for state in states]
    theirs = [[MixerState(*both) for both in zip(*layer)] for layer in layers]
    ours = [[MixerState(*map(torch.empty_like, state)) for state in layer] for layer in theirs]
    copy_all([state for layer in ours for state in layer], [state for layer in theirs for state in layer])
    return list(zip(*ours))
