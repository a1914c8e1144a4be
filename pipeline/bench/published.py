"""The bench at the published size: Vamba's 11.3 B shapes and Qwen2-VL-7B's, random weights, one GPU, one run.

    python -m pipeline bench --size published [--minutes 1 60] [--frames 64] [--baseline-frames 1024] [--eight-bit]
                                                  [--int8] [--fp8] [--gpu-memory GB] [--retrieve N]
                                                  [--no-tower]

Weights do not matter for speed, so none are loaded. The pictures are noise, already decoded. Everything is measured
through the models' own faces (`watch`, `ask`) from snapshots of one growing stream; beside each time stands its floor,
computed from the shapes and this GPU's rates measured in the same run. What the figures mean: pipeline/bench/README.md.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.bench import floors
from pipeline.bench.baseline import compared, measure_baseline, measure_one_pass
from pipeline.bench.floors import bytes_of
from pipeline.bench.machine import Machine, machine_conditions, part_alone, peak_memory, reset_peak_memory, timed
from pipeline.bench.mixers import measure_mixers
from pipeline.bench.shapes import (
    QUESTION,
    QUESTION_TOKENS,
    ReadyTokens,
    Shapes,
    built,
    frames_of,
    pictures_of,
    sizes,
    watch_to,
    with_floor,
)
from pipeline.gpu.dispatch import backend
from pipeline.layers.fp8 import Rounding, to_8_bits
from pipeline.layers.hash_tokenizer import HashTokenizer
from pipeline.layers.reading import TextDecoder
from pipeline.layers.vamba import Vamba
from pipeline.models.vamba_model import VambaModel
from pipeline.options import ModelOptions
from pipeline.stream import Model, Sampling, StreamState, VideoChunk
from pipeline.towers.qwen import Patching, QwenVision, as_tower, build_tower

LIVE_FRAMES = (16, 2)  # chunks of a live stream, beside the one of `--frames` that catches up
ANSWER_TOKENS = 16
LED_WORDS = 48
REPEATS = 5


@torch.no_grad()
def measure_published(
    shapes: Shapes,
    device: torch.device,
    dtype: torch.dtype,
    *,
    minutes: Sequence[int],
    frames: int,
    baseline_frames: int,
    options: ModelOptions,
    tower: bool,
) -> dict[str, Any]:
    """Everything, one thing after the other, as one JSON-able document. Times in seconds, sizes in bytes."""
    saving, rounding = options.saving(), options.rounding
    machine, marks = Machine.measured(device, dtype), sorted({minute * 60 for minute in minutes})
    watching = machine.in_fp8() if options.fp8 else machine
    shared = [count for count in _doublings(baseline_frames) if count <= marks[-1]]
    with_tower = {
        "tower": lambda: measure_tower(shapes, watching, marks[-1], frames, options.fp8),
        "all_in": lambda: measure_all_in(shapes, watching, marks[-1], frames, saving, rounding),
    }
    parts = {
        "vamba": lambda: measure_vamba(shapes, machine, watching, marks, shared, frames, saving, rounding),
        **(with_tower if tower else {}),
        "baseline": lambda: measure_baseline(shapes, machine, _doublings(baseline_frames), frames),
        "one_pass": lambda: measure_one_pass(shapes, machine, _doublings(baseline_frames)),
    }
    if shapes.vamba.mixer is not None:
        parts["mixers"] = partial(measure_mixers, shapes.vamba.mixer, machine)
    if rounding:
        parts["rounding"] = lambda: measure_rounding(shapes, machine, frames, rounding)
    document: dict[str, Any] = {
        "conditions": {
            "fps": 1.0,
            "frames_per_chunk": frames,
            "picture": list(shapes.picture),
            "question": f"{QUESTION_TOKENS} tokens",
            "max_tokens": ANSWER_TOKENS,
            **_where(machine),
        },
        "machine": _rates(machine) | ({"fp8 matmul FLOP/s": watching.flops} if options.fp8 else {}),
        "tower": None,
        "all_in": None,
    }
    document |= {name: part_alone(name, part) for name, part in parts.items()}
    for name in ("baseline", "one_pass"):
        document[f"vamba_over_{name}"] = compared(document["vamba"], document[name])
    return document


def measure_mixers_alone(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Only the row of own and published kernels."""
    assert shapes.vamba.mixer is not None  # the published size has one
    machine = Machine.measured(device, dtype)
    found = measure_mixers(shapes.vamba.mixer, machine)
    return {"conditions": _where(machine), "machine": _rates(machine), "mixers": found}


def _where(machine: Machine) -> dict[str, Any]:
    return {"dtype": str(machine.dtype), "kernels": backend(machine.device), **machine_conditions()}


def _rates(machine: Machine) -> dict[str, float]:
    return {
        "matmul FLOP/s": machine.flops,
        "copy bytes/s": machine.bytes,
        "bytes/s from the host": machine.bus,
    }


def _doublings(most: int) -> list[int]:
    """128, 256, 512 ... `most`."""
    return sorted({most, *(n for n in (128 << i for i in range(16)) if n < most)})


def _median_s(call: Callable[[], Any]) -> float:
    call()  # compiles, allocates
    return statistics.median(timed(call)[0] for _ in range(REPEATS))


# --- Vamba -----------------------------------------------------------------------------------------------------------


def measure_vamba(
    shapes: Shapes,
    machine: Machine,
    watching: Machine,
    marks: list[int],
    shared: list[int],
    per_chunk: int,
    saving: dict[str, Any],
    rounding: Rounding | None,
) -> dict[str, Any]:
    """The column and its memory, frame by frame to the last mark; chunks and questions from snapshots at the marks.

    The peak beside what was watched is that of watching alone, as the baseline's is; questions have their own.
    watching: the rates that what watches could reach.
    """
    net = built(machine, lambda: Vamba(shapes.vamba), rounding)
    eyes = ReadyTokens(shapes, machine, max(per_chunk, *LIVE_FRAMES))
    model = VambaModel(net, eyes, HashTokenizer(shapes.vamba.vocab), name="Vamba, published shapes", **saving)
    for count in {per_chunk, *LIVE_FRAMES}:  # compile, and warm up
        model.watch(VideoChunk(frames_of(shapes, 0, count)), model.start())
    state, spent, most, watched, rows = model.start(), 0.0, 0, [], []
    first: StreamState | None = None
    for stop in sorted({*marks, *shared}):
        reset_peak_memory()
        seconds, state = watch_to(model, state, shapes, stop, per_chunk)
        spent += seconds
        floor = watching.floor_s(floors.column_flops(net) * stop // 2 * shapes.pair_tokens)
        kept = sizes(net, state.state_bytes, state.memory_bytes, most, state.host_bytes)
        watched.append({"frames": stop, "watch": with_floor(spent, floor), **kept})
        most = kept["peak"] or 0
        if stop in marks:
            first = first or state
            rows.append(_mark(model, state, shapes, machine, watching, per_chunk))
    growth = _late_over_early(model, first, state, shapes, per_chunk) if first and len(rows) > 1 else None
    finite = model.is_finite(state)
    return {
        "name": model.name,
        "backend": model.backend,
        **saving,
        "int8": rounding == "int8",
        "fp8": rounding == "fp8",
        "weights": bytes_of(net),
        "watched": watched,
        "marks": rows,
        "chunk_last_over_first": growth,
        "finite": finite,
        **peak_memory(),
    }


def _late_over_early(model: VambaModel, early: StreamState, late: StreamState, shapes: Shapes, count: int) -> float:
    """A chunk from each state in turns: under load a GPU lowers its clock within seconds by more than is looked for."""
    spent: dict[int, list[float]] = {early.frames: [], late.frames: []}
    for state in (early, late) * (REPEATS + 1):
        chunk = VideoChunk(frames_of(shapes, state.frames, count))
        spent[state.frames].append(timed(partial(model.watch, chunk, state))[0])
    return statistics.median(spent[late.frames][1:]) / statistics.median(spent[early.frames][1:])


def _mark(
    model: VambaModel, state: StreamState, shapes: Shapes, machine: Machine, watching: Machine, per_chunk: int
) -> dict[str, Any]:
    """Answers and chunks from one snapshot. The peak is that of watching so far and answering."""
    answers, chunks = _answers(model, state, machine), {}
    peak = peak_memory().get("peak_gpu")  # the chunks go on watching for some minutes
    for count in sorted({per_chunk, *LIVE_FRAMES}, reverse=True):
        flops, read = floors.column_flops(model.net) * count // 2 * shapes.pair_tokens, floors.column_bytes(model.net)
        floor = watching.floor_s(flops, read + state.state_bytes)
        chunks[str(count)] = with_floor(_chunk_s(model, state, shapes, count), floor)
    return {"frames": state.frames, "slots": len(state.inner.memory), "chunks": chunks, **answers, "peak": peak}


def _answers(model: VambaModel, state: StreamState, machine: Machine) -> dict[str, dict[str, float]]:
    ids = range(1, 1 + QUESTION_TOKENS)
    about = model.net, state.inner.memory, model.watch_layers, model._recordings  # as `ask` reads
    decoders = iter([TextDecoder(*about) for _ in range(REPEATS + 1)])
    question = _median_s(lambda: _next_id(next(decoders), ids))
    first, later = _answer(model, state)
    bare_question, bare_token = _bare_tokens(model, state)
    weights, kept, host = floors.text_bytes(model.net), state.memory_bytes, state.host_bytes
    flops = [floors.answer_flops(model.net, tokens, state) for tokens in (QUESTION_TOKENS, 1)]
    many, bare = (machine.floor_s(count, weights + kept - host, host) for count in flops)
    one = bare
    if model.retrieve and model.retrieve < state.frames:  # the answer itself reads a part of the memory, on the GPU
        one = machine.floor_s(0.0, weights + kept * model.retrieve / state.frames)
    return {
        "question": with_floor(question, many),
        "question_without_evidence": with_floor(bare_question, many),
        "first_token": with_floor(first, many),
        "token": with_floor(later, one),
        "token_without_evidence": with_floor(bare_token, bare),
    }


def _chunk_s(model: Model, state: StreamState, shapes: Shapes, count: int) -> float:
    """Median seconds of one of the chunks that follow a snapshot one after the other, as in a stream.

    All of them from the snapshot itself would each copy a block of its memory, up to 235 MB, which a stream never does.
    """
    spent = []
    for _ in range(1 + REPEATS):  # the first does copy
        seconds, state = watch_to(model, state, shapes, state.frames + count, count)
        spent.append(seconds)
    return statistics.median(spent[1:])


def _answer(model: Model, state: StreamState) -> tuple[float, float]:
    """Seconds to the first token and median seconds of a later one, by `ask`: opening, question, evidence and words."""

    def answer() -> list[float]:
        tokens = iter(model.ask(QUESTION, state, Sampling(max_tokens=ANSWER_TOKENS)))
        return [timed(lambda: next(tokens))[0] for _ in range(ANSWER_TOKENS)]

    answer()
    spent = answer()
    return spent[0], statistics.median(spent[1:])


def _bare_tokens(model: VambaModel, state: StreamState) -> tuple[float, float]:
    """The same launch by launch: nobody asks where it looked, and the next id is all that leaves the GPU."""
    for _ in range(2):  # the first compiles: 1.7 s
        decoder, spent = TextDecoder(model.net, state.inner.memory), []
        first, token = timed(partial(_next_id, decoder, range(1, 1 + QUESTION_TOKENS)))
    for _ in range(ANSWER_TOKENS):
        seconds, token = timed(partial(_next_id, decoder, [token]))
        spent.append(seconds)
    return first, statistics.median(spent)


def _next_id(decoder: TextDecoder, ids: Sequence[int]) -> int:
    return int(decoder.feed(ids).argmax())


def measure_rounding(shapes: Shapes, machine: Machine, per_chunk: int, rounding: Rounding) -> dict[str, Any]:
    """How far a network with 8-bit weights strays from the one it was rounded from, both watching and answering.

    It is led along the exact answer's words, so that one slip does not spoil what follows. fp8: the tower watches noise
    as well, and `own` is how far the network in its own type strays from itself in fp32, in the same units.
    """
    if rounding == "int8":
        net, eyes = built(machine, lambda: Vamba(shapes.vamba)), ReadyTokens(shapes, machine, per_chunk)
        model = VambaModel(net, eyes, HashTokenizer(shapes.vamba.vocab))
        exact, words = _led(model, shapes, per_chunk, None)
        to_8_bits(net, rounding)
        return _strayed(_led(model, shapes, per_chunk, words)[0], exact)
    net = _with_eyes(shapes, machine, {}, None).net
    exact, words = _led(_seeing(shapes, net, {}), shapes, per_chunk, None)
    wide, _ = _led(_seeing(shapes, net.float(), {}), shapes, per_chunk, words)
    to_8_bits(net.to(machine.dtype), rounding)
    rounded, _ = _led(_seeing(shapes, net, {}), shapes, per_chunk, words)
    return _strayed(rounded, exact) | {"own": _strayed(exact, wide)}


def _strayed(logits: Tensor, exact: Tensor) -> dict[str, Any]:
    apart, same = (logits - exact) / exact.std(), logits.argmax(-1) == exact.argmax(-1)
    return {
        "words": len(same),
        "rms_in_std": float(apart.square().mean().sqrt()),
        "most_in_std": float(apart.abs().max()),
        "same_word": float(same.float().mean()),
        "same_answer_for": int(same.long().cumprod(0).sum()),
    }


def _led(model: VambaModel, shapes: Shapes, frames: int, words: list[int] | None) -> tuple[Tensor, list[int]]:
    """Logits (words, V) of a greedy answer, or along given words, after watching so many frames; and the words."""
    pictures = pictures_of(shapes, frames) if model.net.visual is not None else None
    state = model.watch(VideoChunk(frames_of(shapes, 0, frames, pictures)), model.start())
    decoder, ids, logits, led = TextDecoder(model.net, state.inner.memory), list(range(1, 1 + QUESTION_TOKENS)), [], []
    for n in range(LED_WORDS):
        logits.append(decoder.feed(ids).float())
        led.append(words[n] if words else int(logits[-1].argmax()))
        ids = led[-1:]
    return torch.stack(logits), led


def published_model(shapes: Shapes, device: torch.device, dtype: torch.dtype, options: ModelOptions) -> VambaModel:
    """The published size with random weights, tower included, as a visitor would meet it."""
    machine = Machine(device, dtype, math.inf, math.inf)
    return _with_eyes(shapes, machine, options.saving(), options.rounding)


def _with_eyes(shapes: Shapes, machine: Machine, saving: dict[str, Any], rounding: Rounding | None) -> VambaModel:
    tower = built(machine, lambda: build_tower(shapes.baseline["vision_config"]))
    return _seeing(shapes, built(machine, lambda: Vamba(shapes.vamba, tower), rounding), saving)


def _seeing(shapes: Shapes, net: Vamba, saving: dict[str, Any]) -> VambaModel:
    """With nothing recorded yet."""
    eyes = QwenVision(as_tower(net.visual), Patching(shapes.baseline["vision_config"]["patch_size"]))
    return VambaModel(net, eyes, HashTokenizer(shapes.vamba.vocab), name="Vamba, published shapes", **saving)


def measure_all_in(
    shapes: Shapes, machine: Machine, frames: int, per_chunk: int, saving: dict[str, Any], rounding: Rounding | None
) -> dict[str, Any]:
    """Pictures in, memory out: the tower, the column and the memory over the whole video, each picture uploaded."""
    model = _with_eyes(shapes, machine, saving, rounding)
    net, tower = model.net, as_tower(model.net.visual)
    pictures = pictures_of(shapes, per_chunk)
    model.watch(VideoChunk(frames_of(shapes, 0, per_chunk, pictures)), model.start())
    seconds, state = watch_to(model, model.start(), shapes, frames, per_chunk, pictures)
    flops = floors.column_flops(net) * shapes.pair_tokens + floors.tower_flops(tower, shapes.pair_tokens)
    floor = machine.floor_s(flops * (frames // 2))
    kept = sizes(net, state.state_bytes, state.memory_bytes, host=state.host_bytes)
    return {"frames": frames, "watch": with_floor(seconds, floor), **kept, **peak_memory()}


def measure_tower(shapes: Shapes, machine: Machine, frames: int, per_chunk: int, fp8: bool = False) -> dict[str, Any]:
    """The tower alone, pixels included: single chunks, and `frames` frames as catching up takes them, without waits."""
    tower = built(machine, lambda: build_tower(shapes.baseline["vision_config"]))
    if fp8:
        to_8_bits(tower, "fp8")
    eyes, found = QwenVision(tower, Patching(shapes.baseline["vision_config"]["patch_size"])), {}
    flops, pictures = floors.tower_flops(tower, shapes.pair_tokens), pictures_of(shapes, per_chunk)
    for count in sorted({per_chunk, *LIVE_FRAMES}, reverse=True):
        chunk = frames_of(shapes, 0, count, pictures_of(shapes, count))
        floor = machine.floor_s(flops * count // 2, bytes_of(tower))
        found[str(count)] = with_floor(_median_s(partial(eyes.tokens, chunk)), floor)

    def watch() -> None:
        for start in range(0, frames, per_chunk):
            eyes.tokens(frames_of(shapes, start, min(per_chunk, frames - start), pictures))

    floor = machine.floor_s(flops * frames // 2, bytes_of(tower))
    return {"chunks": found, "frames": frames, "watch": with_floor(timed(watch)[0], floor)}
