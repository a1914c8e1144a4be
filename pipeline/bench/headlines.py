"""The papers' headlines measured again: published shapes, random weights, one GPU, one run.

    python -m pipeline bench --size published --headlines [--minutes 1 60] [--frames 64]

mmMamba (arXiv 2502.13145, its figure of 103,000 tokens) beside HoVLE, its transformer teacher, each in its best
streaming form: keys kept, nothing computed twice. ML-Mamba a picture and Gemamba a clip. All through the models' own
faces, from pictures of the size that the towers take (making them so is the processor's work, and a row of its own).
Beside each time stands its floor (floors.py). What the figures mean: pipeline/bench/README.md.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from pipeline.bench.floors import bytes_of
from pipeline.bench.machine import Machine, machine_conditions, part_alone, peak_memory, reset_peak_memory, timed
from pipeline.bench.shapes import with_floor
from pipeline.bench.systems import Sizes, Subject, gemamba_subject, ml_mamba_subject, mmmamba_subject
from pipeline.gpu.dispatch import backend
from pipeline.models.sequence import SequenceModel
from pipeline.stream import Frame, Question, Sampling, StreamState, VideoChunk
from pipeline.towers.pixels import squashed

PAPER = {"linear": {"word": 20.6, "memory_saved": 0.758}, "hybrid": {"word": 13.5, "memory_saved": 0.602}}
LIVE = 16  # pictures of a chunk
WORDS, REPEATS, KERNELS_SHOWN = 12, 5, 8
MINUTES_OF_ML_MAMBA = 10  # at most: an hour of it takes minutes
QUESTION = Question("what happens in this video and who is to be seen in it")


@torch.no_grad()
def measure_headlines(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, *, minutes: Sequence[int], per_chunk: int
) -> dict[str, Any]:
    """Everything, one system after the other, as one JSON-able document. Times in seconds, sizes in bytes."""
    machine = Machine.measured(device, dtype)
    early, late = min(minutes) * 60, max(minutes) * 60
    found: dict[str, Any] = {
        "conditions": {
            "dtype": str(dtype),
            "kernels": backend(device),
            "pictures_per_chunk": per_chunk,
            "pictures_compared": [early, late],
            **machine_conditions(),
        },
        "machine": {"matmul FLOP/s": machine.flops, "copy bytes/s": machine.bytes},
    }
    for name, config in sizes.mmmamba.items():
        marks = (early, late) if name == "linear" else None
        make = partial(mmmamba_subject, config, machine, name)
        found[name] = part_alone(name, partial(measure_long, make, machine, sizes.tokens, per_chunk, marks))
    found["over_hovle"] = {name: over(found[name], found["hovle"], PAPER[name]) for name in PAPER if name in found}
    make = partial(gemamba_subject, sizes.gemamba, machine)
    found["gemamba"] = part_alone("gemamba", partial(measure_pictures, make, machine, per_chunk, None))
    make, some = partial(ml_mamba_subject, sizes.ml_mamba, machine), (early, min(late, MINUTES_OF_ML_MAMBA * 60))
    found["ml_mamba"] = part_alone("ml_mamba", partial(measure_pictures, make, machine, per_chunk, some))
    found["squash_s"] = _squash_s()
    return found


# --- measuring -------------------------------------------------------------------------------------------------------


class Stream:
    """A subject's stream of noise."""

    def __init__(self, subject: Subject):
        self.subject = subject
        shape = (LIVE, subject.side, subject.side, 3)
        self.pictures = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self.state = subject.model.start()

    def chunk(self, state: StreamState, count: int) -> VideoChunk:
        return VideoChunk(
            tuple(Frame(self.pictures[(state.frames + i) % LIVE], float(state.frames + i)) for i in range(count))
        )

    def watch(self, state: StreamState, until: int, per_chunk: int) -> StreamState:
        while state.frames < until:
            state = self.subject.model.watch(self.chunk(state, min(per_chunk, until - state.frames)), state)
        return state

    def warm_up(self, per_chunk: int) -> None:
        """Compiles and records."""
        state = self.subject.model.start()
        for count in (LIVE, LIVE, per_chunk):
            state = self.watch(state, state.frames + count, count)
        for _ in range(2):
            words_s(self.subject.model, state)

    def chunk_s(self, state: StreamState, count: int) -> float:
        """Median seconds of one of the chunks that follow, one after the other, as in a stream."""
        spent = []
        for _ in range(1 + REPEATS):
            seconds, state = timed(partial(self.watch, state, state.frames + count, count))
            spent.append(seconds)
        return statistics.median(spent[1:])


def words_s(model: SequenceModel, state: StreamState) -> tuple[float, float]:
    """Seconds to the first word and median seconds of a later one, as `ask` gives them, evidence included."""
    tokens = iter(model.ask(QUESTION, state, Sampling(max_tokens=WORDS)))
    spent = [timed(lambda: next(tokens))[0] for _ in range(WORDS)]
    return spent[0], statistics.median(spent[1:])


def measure_long(
    make: Callable[[], Subject], machine: Machine, tokens: int, per_chunk: int, marks: tuple[int, int] | None
) -> dict[str, Any]:
    """A stream of so many tokens, and what words and chunks cost behind it. marks: pictures to compare the cost at."""
    subject = make()
    model, stream = subject.model, Stream(subject)
    stream.warm_up(per_chunk)
    each = per_picture(stream)
    pictures = math.ceil((tokens - len(model.prompt.opening)) / each / LIVE) * LIVE  # where a chunk ends
    reset_peak_memory()
    spent, state = timed(partial(stream.watch, model.start(), pictures, per_chunk))
    length = state.inner.length
    watching = peak_memory().get("peak_gpu")
    square = subject.attention * length**2 / 2
    first, later = words_s(model, state)
    found = {
        **_what(subject, state),
        "tokens": length,
        "pictures": pictures,
        "tokens_a_picture": each,
        "watch": with_floor(spent, machine.floor_s(subject.picture_flops(each) * pictures + square)),
        "chunk": _chunk(stream, state, machine, each),
        "first_word": first,
        "word": with_floor(later, _word_floor(subject, state, machine)),
        "native_first_word": _native(subject, state),
        "peak_watching": watching,
        "peak_of": peak_of(subject, state, watching),
        "peak": peak_memory().get("peak_gpu"),
        "peak_floor": bytes_of(subject.net) + state.state_bytes + kept(state)["keys"],
        "profile": {
            "word": profiled(lambda: words_s(model, state)),
            "chunk": profiled(lambda: model.watch(stream.chunk(state, LIVE), state)),
        },
    }
    return found | ({"late_over_early": _late_over_early(stream, *marks, per_chunk)} if marks else {})


def measure_pictures(
    make: Callable[[], Subject], machine: Machine, per_chunk: int, marks: tuple[int, int] | None
) -> dict[str, Any]:
    """What one unit (a picture, a clip) and a chunk cost, and an answer behind them."""
    subject = make()
    model, stream = subject.model, Stream(subject)
    stream.warm_up(per_chunk)
    each, unit = per_picture(stream), model.unit_frames
    state = stream.watch(model.start(), 4 * LIVE, LIVE)
    first, later = words_s(model, state)
    weights = sum(bytes_of(part) for part in stream.subject.net.children())
    flops = subject.picture_flops(each)
    found = {
        **_what(subject, state),
        "unit": {"pictures": unit, **with_floor(stream.chunk_s(state, unit), machine.floor_s(flops * unit, weights))},
        "tokens_a_picture": each,
        "chunk": _chunk(stream, state, machine, each),
        "first_word": first,
        "word": with_floor(later, _word_floor(subject, state, machine)),
        "native_first_word": _native(subject, state),
        "peak": peak_memory().get("peak_gpu"),
        "profile": {"chunk": profiled(lambda: model.watch(stream.chunk(state, LIVE), state))},
    }
    return found | ({"late_over_early": _late_over_early(stream, *marks, per_chunk)} if marks else {})


def per_picture(stream: Stream) -> float:
    """Tokens that a picture takes, with the text around it."""
    model, start = stream.subject.model, stream.subject.model.start()
    unit = model.unit_frames
    after = stream.watch(start, 2 * unit, 2 * unit)
    return (after.inner.length - start.inner.length) / (2 * unit)


def kept(state: StreamState) -> dict[str, int]:
    """What the memory is made of, in bytes: keys, the stream's earlier states, pictures on the host."""
    told = state.inner
    earlier = sum(part.nbytes for snapshot in told.snapshots for part in snapshot.states)
    pictures = told.pictures.nbytes if told.pictures else 0
    return {"keys": state.memory_bytes - earlier - pictures, "earlier_states": earlier, "pictures": pictures}


def peak_of(subject: Subject, state: StreamState, peak: int | None) -> dict[str, int]:
    """What the peak of watching is made of, in bytes; working: what passes need while they run, and room set aside."""
    parts = {"weights": bytes_of(subject.net), "state": state.state_bytes}
    parts |= {name: size for name, size in kept(state).items() if name != "pictures"}  # which lie on the host
    return parts | ({"working": peak - sum(parts.values())} if peak else {})


def _what(subject: Subject, state: StreamState) -> dict[str, Any]:
    sizes = {"state_bytes": state.state_bytes, "memory_bytes": state.memory_bytes, "memory": kept(state)}
    finite = subject.model.is_finite(state)
    return {"name": subject.model.name, "weights": bytes_of(subject.net), "finite": finite, **sizes}


def _chunk(stream: Stream, state: StreamState, machine: Machine, each: float) -> dict[str, Any]:
    """A chunk of LIVE pictures behind that state; its attention reads all keys before it."""
    subject = stream.subject
    attention = subject.attention * each * LIVE * (state.inner.length + each * LIVE / 2)
    floor = machine.floor_s(subject.picture_flops(each) * LIVE + attention)
    return {"pictures": LIVE, **with_floor(stream.chunk_s(state, LIVE), floor)}


def _word_floor(subject: Subject, state: StreamState, machine: Machine) -> float:
    """Every weight on a word's way, the states and all keys, read once."""
    weights = sum(bytes_of(module) for module in subject.word)
    return machine.floor_s(0.0, weights + 2 * state.state_bytes + kept(state)["keys"])


def _native(subject: Subject, state: StreamState) -> float:
    """Seconds to the first word in the native form: the pictures are encoded anew."""
    model = subject.model
    model.streamed = False
    try:
        return statistics.median(words_s(model, state)[0] for _ in range(3))
    finally:
        model.streamed = True


def _late_over_early(stream: Stream, early: int, late: int, per_chunk: int) -> dict[str, Any]:
    """What a chunk costs after so many pictures, really watched, over what it cost before; in turns, medians."""
    first = stream.watch(stream.subject.model.start(), early, per_chunk)
    seconds, last = timed(partial(stream.watch, first, late, per_chunk))
    spent: dict[int, list[float]] = {early: [], late: []}
    for state in (first, last) * (2 * REPEATS):
        spent[state.frames].append(timed(partial(stream.watch, state, state.frames + LIVE, LIVE))[0])
    ratio = statistics.median(spent[late][2:]) / statistics.median(spent[early][2:])
    return {"pictures": [early, late], "ratio": ratio, "picture_s": seconds / max(1, late - early)}


def profiled(call: Callable[[], Any]) -> dict[str, Any]:
    """Where a call's time goes: milliseconds on the GPU (here: the processor) and the kernels that take most of it."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = torch.cuda.is_available()
    with torch.profiler.profile(
        activities=[*kinds, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    ) as seen:
        seconds, _ = timed(call)
    rows = [
        (event.key[:60], (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3, event.count)
        for event in seen.key_averages()
    ]
    rows = sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])
    top = [{"kernel": key, "ms": ms, "calls": calls} for key, ms, calls in rows[:KERNELS_SHOWN]]
    return {
        "wall_ms": seconds * 1e3,
        "busy_ms": sum(row[1] for row in rows),
        "calls": sum(row[2] for row in rows),
        "top": top,
    }


def over(own: dict[str, Any], hovle: dict[str, Any], paper: dict[str, float]) -> dict[str, Any]:
    """mmMamba against HoVLE after as many tokens: measured, what the floors alone would give, and the paper's."""
    if "word" not in own or "word" not in hovle:
        return {}
    ratios = {
        "word": hovle["word"]["s"] / own["word"]["s"],
        "word_floor": hovle["word"]["floor_s"] / own["word"]["floor_s"],
        "watch": hovle["watch"]["s"] / own["watch"]["s"],
        "memory_saved_floor": 1 - own["peak_floor"] / hovle["peak_floor"],
    }
    if own["peak"] and hovle["peak"]:
        ratios["memory_saved"] = 1 - own["peak_watching"] / hovle["peak_watching"]
        bare = own["peak_watching"] - own["memory"]["earlier_states"]
        ratios["memory_saved_without_earlier_states"] = 1 - bare / hovle["peak_watching"]
        needed = bare / (1 - paper["memory_saved"])  # of HoVLE, for the paper's share
        ratios["hovle_gb_for_the_papers"] = needed / 1e9
        ratios["of_which_beyond_weights_and_keys"] = (needed - hovle["peak_floor"]) / 1e9
    return ratios | {"paper": paper}


def _squash_s() -> float:
    """A 640x360 picture made a tower's square, on the processor."""
    picture = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    return statistics.median(timed(lambda: squashed(picture, 448))[0] for _ in range(REPEATS))


# --- for people ------------------------------------------------------------------------------------------------------


def headlines_table(document: dict[str, Any]) -> str:
    lines = [f"{name} {rate:.3g}" for name, rate in document["machine"].items()]
    lines += [f"{'':<66} {'measured':>12} {'floor':>12} {'ratio':>7}"]
    for name in ("linear", "hybrid", "hovle", "ml_mamba", "gemamba"):
        lines += _rows(name, document.get(name) or {})
    for name, ratios in document["over_hovle"].items():
        said = ", ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in ratios.items() if key != "paper")
        lines.append(f"{name} over HoVLE: {said} (paper: {json.dumps(ratios.get('paper'))})")
    lines.append(f"a 640x360 picture made a square, on the processor: {document['squash_s'] * 1e3:.2f} ms")
    return "\n".join([*lines, ", ".join(f"{key} {value}" for key, value in document["conditions"].items())])


def _rows(name: str, found: dict[str, Any]) -> list[str]:
    if "stopped" in found or not found:
        return [f"{name}: {found.get('stopped', 'not measured')}"]
    lines = []
    for key in ("watch", "unit", "chunk", "word"):
        if key in found:
            beside, of = found[key], f" of {found[key]['pictures']}" if "pictures" in found[key] else ""
            shown = f"{beside['s'] * 1e3:9.2f} ms {beside['floor_s'] * 1e3:9.2f} ms {beside['ratio']:7.2f}"
            lines.append(f"{name + ': ' + key + of:<66} {shown}")
    lines.append(
        f"{name}: first word {found['first_word'] * 1e3:.1f} ms, native {found['native_first_word'] * 1e3:.1f} ms, "
        f"state {found['state_bytes'] / 1e6:.1f} MB, memory {found['memory_bytes'] / 1e9:.2f} GB, "
        f"peak {(found['peak'] or 0) / 1e9:.2f} GB, finite {found['finite']}"
    )
    if parts := found.get("peak_of"):
        made_of = ", ".join(f"{part.replace('_', ' ')} {size / 1e9:.2f}" for part, size in parts.items())
        lines.append(f"{name}: peak of watching, GB: {made_of}")
    if late := found.get("late_over_early"):
        lines.append(
            f"{name}: a chunk after {late['pictures'][1]:,} pictures over {late['pictures'][0]:,}: {late['ratio']:.3f}"
        )
    return lines
