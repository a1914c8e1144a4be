"""A stream's state <-> named tensors and a small document: what every model's `pack` and `unpack` are made of.

A part is a `Packed`, and parts are joined under names: the tensor "memory.log.k" is the memory's log's keys, and
document["memory"]["log"] says where its blocks begin. Tensors are copies on the CPU, contiguous, so that they can be
written and read by safetensors; whatever is unpacked copies them again. What a state holds comes back bit for bit,
the blocks of its logs included: they decide in which order attention adds up.

A log is packed as itself: it costs nothing until `whole` makes tensors of all of it, or `newer` of what came after an
earlier slot. Many such pieces, one after the other, are `gathered` into the whole again.

Inside, whatever is missing, of another kind or impossible is a KeyError, TypeError or ValueError; `unpack_stream` makes
one sentence of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.layers.mamba2 import MixerState
from pipeline.memory.log import Log
from pipeline.memory.memory import Memory, Policy
from pipeline.stream import JSON, Frame, Packed, StreamState, UserError

B = TypeVar("B")
FORMAT = 1
LARGEST_BLOCK = 1 << 20  # slots: a garbled number must not ask for all the computer's memory
WEIGHTS_SEEN = 16  # numbers of a parameter that make its fingerprint


def pack_stream(state: StreamState[B], maker: str, inner: Packed) -> Packed:
    """A whole stream around what its model carries. maker: what may unpack it again, see `fingerprint`."""
    held = pack_frames(state.held)
    return join(
        {"inner": inner, "held": Packed(held.tensors, {})},
        format=FORMAT,
        maker=maker,
        frames=state.frames,
        seen_until=float(state.seen_until),
        held_times=held.document["times"],
    )


def unpack_stream(packed: Packed, maker: str, unpacked: Callable[[Packed], StreamState[B]]) -> StreamState[B]:
    """The stream that `pack_stream` was given.

    unpacked: from what the model carries, packed, to a state that holds it, with what follows from it (bytes, what was
    dropped). Raises UserError for what another model packed, and for anything that is damaged.
    """
    if not isinstance(packed.document, dict) or packed.document.get("maker") != maker:
        raise UserError(
            "This stream was kept by another model or another version of its weights, so it cannot go on here; "
            "load the model it was kept with, or start the video again."
        )
    try:
        if count(packed, "format") != FORMAT:
            raise ValueError("another format")
        state = unpacked(part(whole(packed), "inner"))
        held = unpack_frames(Packed(part(packed, "held").tensors, {"times": packed.document["held_times"]}))
        frames = count(packed, "frames")
        if frames < len(held):
            raise ValueError("more frames wait than were seen")
        return replace(state, frames=frames, seen_until=seconds(packed, "seen_until"), held=held)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            "What was kept of this stream is damaged or incomplete, so it cannot go on; start the video again."
        ) from error


def fingerprint(kind: str, *nets: nn.Module) -> str:
    """Says of which model a state is: `kind`, and names, shapes, types and some numbers of all its parameters."""
    digest = hashlib.sha256()
    for net in nets:
        for name, parameter in net.named_parameters():
            flat = parameter.detach().reshape(-1)
            some = flat[:: max(1, len(flat) // WEIGHTS_SEEN)].cpu().contiguous()
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} ".encode())
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return f"{kind} {digest.hexdigest()[:32]}"


# --- what grows ------------------------------------------------------------------------------------------------------


def whole(packed: Packed) -> Packed:
    """The same with tensors of all that grows."""
    rows = newer(packed, {}).items()
    tensors = packed.tensors | {f"{part}.{name}": t for part, new in rows for name, t in new.items()}
    return Packed(tensors, packed.document, begun=packed.begun)


def newer(packed: Packed, ends: Mapping[str, int]) -> dict[str, dict[str, Tensor]]:
    """Tensors of what grew, by part: its slots from `ends` on, all where that names none. Slots come first."""
    return {part: log.since(ends.get(part, 0)) for part, log in packed.growing.items()}


def grown_to(packed: Packed) -> dict[str, int]:
    """How far each part that grows has grown: what the next `newer` goes on from."""
    return {name: log.end for name, log in packed.growing.items()}


def spans(document: JSON, name: str = "") -> dict[str, range]:
    """The numbers of the slots that each part of a packed stream's document still sees. May raise ValueError."""
    if not isinstance(document, dict):
        return {}
    if {"gone", "length", "block_slots"} <= document.keys():
        here = Packed({}, document)
        gone, length = count(here, "gone"), count(here, "length")
        return {name.removesuffix("."): range(gone, gone + length)}
    return {k: v for key, value in document.items() for k, v in spans(value, f"{name}{key}.").items()}


# --- parts -----------------------------------------------------------------------------------------------------------


def join(parts: Mapping[str, Packed], **plain: JSON) -> Packed:
    """One part of several, and of plain values."""
    tensors = {f"{name}.{key}": tensor for name, one in parts.items() for key, tensor in one.tensors.items()}
    logs = [(f"{name}.{key}", log) for name, one in parts.items() for key, log in one.growing.items()]
    growing = {name.removesuffix("."): log for name, log in logs}
    return Packed(tensors, {**plain, **{name: one.document for name, one in parts.items()}}, growing)


def part(packed: Packed, name: str) -> Packed:
    """The part of that name."""
    document, start = packed.document[name], name + "."
    if not isinstance(document, dict):
        raise TypeError(f"{name} is no part")
    tensors = {key.removeprefix(start): t for key, t in packed.tensors.items() if key.startswith(start)}
    begun = {
        (key + ".").removeprefix(start)[:-1]: b for key, b in packed.begun.items() if (key + ".").startswith(start)
    }
    return Packed(tensors, document, begun=begun)


def count(packed: Packed, name: str) -> int:
    """A plain whole number, 0 or more."""
    value = packed.document[name]
    if type(value) is not int or value < 0:  # True is an int, too
        raise ValueError(f"{name} is no count")
    return value


def seconds(packed: Packed, name: str) -> float:
    """A plain number that is finite and not negative."""
    return _seconds(packed.document[name])


def pack_tensor(tensor: Tensor) -> Tensor:
    """A copy on the CPU."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def unpack_tensor(packed: Packed, name: str, like: Tensor) -> Tensor:
    """A copy where `like` is; of its type and shape, or a ValueError."""
    tensor = packed.tensors[name]
    if tensor.shape != like.shape or tensor.dtype != like.dtype:
        raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {like.dtype} {tuple(like.shape)}")
    return tensor.to(like.device, copy=True)


def pack_mixers(states: Sequence[MixerState]) -> Packed:
    named = {f"{i}.{name}": pack_tensor(t) for i, state in enumerate(states) for name, t in state._asdict().items()}
    return Packed(named, {"count": len(states)})


def unpack_mixers(packed: Packed, start: Sequence[MixerState]) -> tuple[MixerState, ...]:
    """start: the model's own states before the first frame, which say what these must look like."""
    if count(packed, "count") != len(start):
        raise ValueError("another number of mixers")
    return tuple(
        MixerState(*(unpack_tensor(packed, f"{i}.{name}", tensor) for name, tensor in state._asdict().items()))
        for i, state in enumerate(start)
    )


def pack_frames(frames: Sequence[Frame]) -> Packed:
    """Pictures and their seconds."""
    pictures = {str(i): torch.from_numpy(frame.rgb.copy()) for i, frame in enumerate(frames)}
    return Packed(pictures, {"times": [[float(f.time), None if f.until is None else float(f.until)] for f in frames]})


def unpack_frames(packed: Packed) -> tuple[Frame, ...]:
    times, pictures = packed.document["times"], packed.tensors
    if not isinstance(times, list) or set(pictures) != {str(i) for i in range(len(times))}:
        raise ValueError("other pictures than times")
    return tuple(
        Frame(_picture(pictures[str(i)]), _seconds(time), None if until is None else _seconds(until))
        for i, (time, until) in enumerate(map(_pair, times))
    )


def pack_log(log: Log) -> Packed:
    """Its visible slots, which only grow, and where its blocks begin."""
    numbers = {"first": log.first, "length": log.length, "gone": log.gone, "block_slots": log.block_slots}
    return Packed({}, dict(numbers), {"": log})


def unpack_log(packed: Packed, start: Log, settle: Callable[[Log], Log] = lambda log: log) -> Log:
    """start: the model's own log before the first frame. settle: what moves old blocks to the host or a file, asked
    block by block, so that a memory larger than the GPU's comes back, too."""
    first, length, gone, block_slots = (count(packed, name) for name in ("first", "length", "gone", "block_slots"))
    if not 0 < block_slots <= LARGEST_BLOCK or first > block_slots or set(packed.tensors) != set(start.fields):
        raise ValueError("no log of this kind")
    begun: Log | None = packed.begun.get("")
    length -= len(begun or ())
    for name, field in start.fields.items():
        tensor, shape = packed.tensors[name], [length, *(n for n in field.shape if n is not None)]
        if list(tensor.shape) != shape or tensor.dtype != field.dtype:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {field.dtype} {tuple(shape)}")
    log = _unseen(replace(start, block_slots=block_slots), first, gone) if begun is None else begun
    if (log.first, log.gone, log.block_slots) != (first, gone, block_slots):
        raise ValueError("another log was begun")
    for begin in range(0, length, block_slots):
        slots = slice(begin, min(begin + block_slots, length))
        rows = {n: packed.tensors[n][slots].movedim(0, f.slot_dim) for n, f in start.fields.items()}
        log = settle(log.append(**rows))
    return log


def _unseen(start: Log, first: int, gone: int) -> Log:
    """An empty log whose next slot comes after `first` ones of its first block that cannot be seen any more."""
    rows = {name: torch.zeros(field.sized(first)) for name, field in start.fields.items()}
    return replace(start.append(**rows).drop_oldest(first), gone=gone)


def pack_memory(memory: Memory) -> Packed:
    policy, amount = memory.policy, memory.policy.amount
    coarse = {} if memory.coarse is None else {"coarse": pack_log(memory.coarse.log)}
    return join(
        {"log": pack_log(memory.log), **coarse},
        policy=[policy.kind, None if math.isinf(amount) else amount],  # JSON has no infinity
        dropped=memory.dropped,
    )


def unpack_memory(packed: Packed, start: Memory) -> Memory:
    """start: the model's own memory before the first frame. The policy is the kept one's, the tier the model's."""
    kind, amount = _pair(packed.document["policy"])
    if not isinstance(kind, str):
        raise TypeError(f"{kind!r} is no kind of policy")
    policy = Policy(kind, math.inf if amount is None else _seconds(amount))
    kept = part(packed, "log")
    log = unpack_log(kept, start.log, start.settled)
    coarse = start.coarse
    if coarse is not None:
        if "coarse" not in packed.document:
            raise UserError(
                "This stream was kept without --endless, so it cannot go on with it; go on without, or start it again."
            )
        coarse = replace(coarse, log=unpack_log(part(packed, "coarse"), coarse.log, coarse.settled)).coarsened()
    lost = log.gone - count(kept, "gone")  # where the disk is full
    return replace(start, log=log, policy=policy, dropped=count(packed, "dropped") + lost, coarse=coarse)


def _seconds(value: JSON) -> float:
    """A number that is finite and not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value!r} is no number of seconds")
    return float(value)


def _pair(value: JSON) -> tuple[JSON, JSON]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{value!r} are not two")
    return value[0], value[1]


def _picture(tensor: Tensor) -> np.ndarray:
    if tensor.dtype != torch.uint8 or tensor.dim() != 3 or tensor.shape[2] != 3 or not tensor.numel():
        raise ValueError("no picture")
    return tensor.cpu().numpy().copy()
