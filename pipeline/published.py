"""The bench at the published size: Vamba's 11.3 B shapes and Qwen2-VL-7B's, random weights, one GPU, one run.

    python -m pipeline bench --size published [--minutes 1 60] [--frames 64] [--baseline-frames 1024] [--eight-bit]

Weights do not matter for speed, so none are loaded. The pictures are noise, already decoded. Everything is measured
through the models' own faces (`watch`, `ask`) from snapshots of one growing stream; beside each time stands its floor,
computed from the shapes and this GPU's rates measured in the same run. What the figures mean: pipeline/BENCH.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import re
import statistics
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline import floors, loading
from pipeline.bench import conditions, copy_rate, matmul_rate, peak_memory, reset_peak_memory, timed
from pipeline.floors import bytes_of
from pipeline.mamba2 import MixerConfig
from pipeline.models.transformer import Qwen2VL, TransformerModel
from pipeline.models.vamba import Seen, Vamba, VambaConfig, VambaModel
from pipeline.published_table import table
from pipeline.reading import Reader
from pipeline.stream import Frame, Question, Sampling, StreamState, UserError, VideoChunk, VideoModel
from pipeline.vision import Patching, QwenVision, build_tower

LIVE_FRAMES = (16, 2)  # chunks of a live stream, beside the one of `--frames` that catches up
QUESTION_TOKENS = 32
ANSWER_TOKENS = 16
REPEATS = 5
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
OPTIONS = {"minutes": (1, 15, 60), "frames": 64, "baseline_frames": 1024, "eight_bit": False, "tower": True}


@dataclass(frozen=True)
class Shapes:
    """What is built. picture: (width, height) in pixels. baseline: a Qwen2-VL config.json, whose tower both use."""

    vamba: VambaConfig
    baseline: dict[str, Any]
    picture: tuple[int, int] = (640, 360)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a pair's tokens."""
        patching = Patching(self.baseline["vision_config"]["patch_size"])
        height, width = patching.size(self.picture[1], self.picture[0])
        return height // patching.unit, width // patching.unit

    @property
    def pair_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def config(self) -> dict[str, Any]:
        """Vamba's config.json, its mixers as published."""
        own = {"vision_mamba_mixer_config": {"enable": True}, "use_alpha_balancing": True, "torch_dtype": "bfloat16"}
        return self.baseline | {"model_type": "qwen2_vl"} | own


_TOWER = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "hidden_act": "quick_gelu", "mlp_ratio": 4}
_TOWER |= {"num_heads": 16, "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
_TEXT = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
_TEXT |= {"num_attention_heads": 28, "num_key_value_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6}
_TEXT |= {"max_position_embeddings": 32768, "rope_theta": 1e6}
_TEXT |= {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
PUBLISHED = Shapes(
    VambaConfig(
        d_model=3584, n_layers=28, n_heads=28, n_kv_heads=4, d_ff=18944, vocab=152064,
        mixer=MixerConfig(d_model=3584), cross_layers=tuple(range(28)), mrope_section=(16, 24, 24),
    ),
    _TEXT | {"vision_config": _TOWER, "tie_word_embeddings": False},
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Where it runs, and the rates of a large matrix product (FLOP/s) and a large copy (bytes/s) there."""

    device: torch.device
    dtype: torch.dtype
    flops: float
    bytes: float

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        return cls(device, dtype, matmul_rate(device, dtype), copy_rate(device))

    def floor_s(self, flops: float, read: float = 0.0) -> float:
        return max(flops / self.flops, read / self.bytes)

    def build(self, make: Callable[[], nn.Module]) -> nn.Module:
        """A module with random weights, made where and as it will be used: 10.6 B parameters in 0.1 s on an H100."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with self.device:
                return make().to(self.device).requires_grad_(False).eval()
        finally:
            torch.set_default_dtype(before)


def run(args: argparse.Namespace) -> int:
    """The command. UserError without a GPU, or where the options cannot be measured."""
    if not torch.cuda.is_available():
        raise UserError("The published size needs an NVIDIA GPU, and none was found here; leave --size out.")
    if any(n is not None and (n < 2 or n % 2) for n in (args.frames, args.baseline_frames)):
        raise UserError("The tower takes pictures in pairs, so this cannot be measured; choose even numbers of frames.")
    device = torch.device("cuda", torch.cuda.current_device())
    if args.loading:
        return loading.run(Path(args.loading), PUBLISHED.config, device, args.int8, args.json)
    given = {name: getattr(args, name, None) for name in OPTIONS}
    options = OPTIONS | {name: value for name, value in given.items() if value is not None}
    document = measure(PUBLISHED, device, torch.bfloat16, **options)
    print(table(document), file=sys.stderr if args.json else sys.stdout)
    print(json.dumps(document))
    return 0


@torch.no_grad()
def measure(
    shapes: Shapes, device: torch.device, dtype: torch.dtype, *, minutes: Sequence[int], frames: int,
    baseline_frames: int, eight_bit: bool, tower: bool,
) -> dict[str, Any]:  # fmt: skip
    """Everything, one thing after the other, as one JSON-able document. Times in seconds, sizes in bytes."""
    machine, marks = Machine.measured(device, dtype), sorted({minute * 60 for minute in minutes})
    shared = [count for count in _doublings(baseline_frames) if count <= marks[-1]]
    with_tower = {
        "tower": lambda: measure_tower(shapes, machine, marks[-1], frames),
        "all_in": lambda: measure_all_in(shapes, machine, marks[-1], frames, eight_bit),
    }
    parts = {
        "vamba": lambda: measure_vamba(shapes, machine, marks, shared, frames, eight_bit),
        **(with_tower if tower else {}),
        "baseline": lambda: measure_baseline(shapes, machine, _doublings(baseline_frames), frames),
    }
    question = {"question": f"{QUESTION_TOKENS} tokens", "max_tokens": ANSWER_TOKENS, "dtype": str(dtype)}
    document = {
        "conditions": conditions(frames, list(shapes.picture)) | question,
        "machine": {"matmul FLOP/s": machine.flops, "copy bytes/s": machine.bytes},
        "tower": None,
        "all_in": None,
    }
    document |= {name: _alone(name, part) for name, part in parts.items()}
    document["vamba_over_baseline"] = compared(document["vamba"], document["baseline"])
    return document


def _alone(name: str, part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """With its own peak of memory, and nothing of it left behind. Out of memory is a result: {"stopped": ...}.

    Said on stderr at once: whatever happens to the later parts, this one was measured.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    reset_peak_memory()
    try:
        found = part()
    except OUT_OF_MEMORY:
        found = {"stopped": "out of memory"}
    print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def _doublings(most: int) -> list[int]:
    """128, 256, 512 ... `most`."""
    return sorted({most, *(n for n in (128 << i for i in range(16)) if n < most)})


# --- what stands in for weights, words and pictures ------------------------------------------------------------------


class ReadyTokens:
    """A vision tower's place, with tokens that are ready: the column and the memory are measured without it."""

    unit_frames = 2

    def __init__(self, shapes: Shapes, machine: Machine, most_frames: int):
        self.long_side, self._grid, self._size = max(shapes.picture), shapes.grid, shapes.pair_tokens
        self._tokens = torch.randn(
            1, most_frames // 2 * self._size, shapes.vamba.d_model, device=machine.device, dtype=machine.dtype
        )

    def tokens(self, frames: Sequence[Frame]) -> Seen:
        pairs = len(frames) // 2
        times = torch.tensor([frame.time for frame in frames[::2]], dtype=torch.float64).repeat_interleave(self._size)
        axes = torch.meshgrid(torch.arange(pairs), *map(torch.arange, self._grid), indexing="ij")
        return Seen(self._tokens[:, : pairs * self._size], times, torch.stack([axis.flatten() for axis in axes]))


class Words:
    """A tokenizer without a vocabulary: a word is a token, whose id is its checksum. Answers have no end."""

    def __init__(self, vocab: int):
        self._vocab = vocab

    def encode(self, text: str, **_: Any) -> list[int]:
        return [zlib.crc32(word.encode()) % self._vocab for word in re.findall(r"<\|\w+\|>|\w+|\n", text)]

    def get_vocab(self) -> dict[str, int]:
        return {}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " word" * len(ids)


QUESTION = Question("word " * (QUESTION_TOKENS - 6))  # the chat format adds six


def _frames(shapes: Shapes, start: int, count: int, pictures: list[np.ndarray] | None = None) -> tuple[Frame, ...]:
    """One frame a second. Without pictures they are empty, for `ReadyTokens`."""
    return tuple(
        Frame(pictures[i % len(pictures)] if pictures else None, float(i)) for i in range(start, start + count)
    )


def _watch_to(model: VideoModel, state: StreamState, shapes: Shapes, until: int, per_chunk: int, pictures=None):
    """The state after `until` frames, and the seconds that took."""

    def watch() -> StreamState:
        new = state
        while new.frames < until:
            count = min(per_chunk, until - new.frames)
            new = model.watch(VideoChunk(_frames(shapes, new.frames, count, pictures)), new)
        return new

    seconds, state = timed(watch)
    return seconds, state


def _median_s(call: Callable[[], Any]) -> float:
    call()  # compiles, allocates
    return statistics.median(timed(call)[0] for _ in range(REPEATS))


# --- Vamba -----------------------------------------------------------------------------------------------------------


def measure_vamba(
    shapes: Shapes, machine: Machine, marks: list[int], shared: list[int], per_chunk: int, eight_bit: bool
) -> dict[str, Any]:
    """The column and its memory, frame by frame to the last mark; chunks and questions from snapshots at the marks."""
    net = machine.build(lambda: Vamba(shapes.vamba))
    eyes = ReadyTokens(shapes, machine, max(per_chunk, *LIVE_FRAMES))
    model = VambaModel(net, eyes, Words(shapes.vamba.vocab), name="Vamba, published shapes", eight_bit=eight_bit)
    for count in {per_chunk, *LIVE_FRAMES}:  # compile, and warm up
        model.watch(VideoChunk(_frames(shapes, 0, count)), model.start())
    reset_peak_memory()
    state, spent, watched, rows = model.start(), 0.0, [], []
    for stop in sorted({*marks, *shared}):
        seconds, state = _watch_to(model, state, shapes, stop, per_chunk)
        spent += seconds
        floor = machine.floor_s(floors.column_flops(net) * stop // 2 * shapes.pair_tokens)
        watched.append({"frames": stop, "watch": _beside(spent, floor), **_sizes(net, state)})
        if stop in marks:
            rows.append(_mark(model, state, shapes, machine, per_chunk))
    growth = rows[-1]["chunks"][str(per_chunk)]["s"] / rows[0]["chunks"][str(per_chunk)]["s"]
    finite = model.is_finite(state)
    return {
        "name": model.name, "backend": model.backend, "eight_bit": eight_bit, "weights": bytes_of(net),
        "watched": watched, "marks": rows, "chunk_last_over_first": growth, "finite": finite, **peak_memory(),
    }  # fmt: skip


def _mark(model: VambaModel, state: StreamState, shapes: Shapes, machine: Machine, per_chunk: int) -> dict[str, Any]:
    """Chunks and answers from one snapshot. Every repeat starts from the same state, so none costs the stream."""
    chunks = {}
    for count in sorted({per_chunk, *LIVE_FRAMES}, reverse=True):
        chunk = VideoChunk(_frames(shapes, state.frames, count))
        flops, read = floors.column_flops(model.net) * count // 2 * shapes.pair_tokens, floors.column_bytes(model.net)
        floor = machine.floor_s(flops, read + state.state_bytes)
        chunks[str(count)] = _beside(_median_s(lambda chunk=chunk: model.watch(chunk, state)), floor)
    ids = range(1, 1 + QUESTION_TOKENS)
    readers = iter([Reader(model.net, state.memory, model.watch_layers) for _ in range(REPEATS + 1)])
    question = _median_s(lambda: int(next(readers).feed(ids).argmax()))
    first, later = _answer(model, state)
    bare_question, bare_token = _bare_tokens(model, state)
    read = floors.text_bytes(model.net) + state.memory_bytes
    many, one = (machine.floor_s(floors.answer_flops(model.net, n, state), read) for n in (QUESTION_TOKENS, 1))
    return {
        "frames": state.frames, "slots": len(state.memory), "chunks": chunks,
        "question": _beside(question, many), "question_without_evidence": _beside(bare_question, many),
        "first_token": _beside(first, many),
        "token": _beside(later, one), "token_without_evidence": _beside(bare_token, one),
    }  # fmt: skip


def _answer(model: VideoModel, state: StreamState) -> tuple[float, float]:
    """Seconds to the first token and median seconds of a later one, by `ask`: opening, question, evidence and words."""

    def answer() -> list[float]:
        tokens = iter(model.ask(QUESTION, state, Sampling(max_tokens=ANSWER_TOKENS)))
        return [timed(lambda: next(tokens))[0] for _ in range(ANSWER_TOKENS)]

    answer()
    spent = answer()
    return spent[0], statistics.median(spent[1:])


def _bare_tokens(model: VambaModel, state: StreamState) -> tuple[float, float]:
    """The same of the network alone: nobody asks where it looked, and the next id is all that leaves the GPU."""
    reader = Reader(model.net, state.memory)
    first, token = timed(lambda: int(reader.feed(range(1, 1 + QUESTION_TOKENS)).argmax()))
    spent = []
    for _ in range(ANSWER_TOKENS):
        seconds, token = timed(lambda token=token: int(reader.feed([token]).argmax()))
        spent.append(seconds)
    return first, statistics.median(spent)


def measure_all_in(shapes: Shapes, machine: Machine, frames: int, per_chunk: int, eight_bit: bool) -> dict[str, Any]:
    """Pictures in, memory out: the tower, the column and the memory over the whole video, each picture uploaded."""
    net = machine.build(lambda: Vamba(shapes.vamba, build_tower(shapes.baseline["vision_config"])))
    patching = Patching(shapes.baseline["vision_config"]["patch_size"])
    model = VambaModel(net, QwenVision(net.visual, patching), None, eight_bit=eight_bit)
    pictures = _pictures(shapes, per_chunk)
    model.watch(VideoChunk(_frames(shapes, 0, per_chunk, pictures)), model.start())
    seconds, state = _watch_to(model, model.start(), shapes, frames, per_chunk, pictures)
    flops = floors.column_flops(net) * shapes.pair_tokens + floors.tower_flops(net.visual, shapes.pair_tokens)
    floor = machine.floor_s(flops * (frames // 2))
    return {"frames": frames, "watch": _beside(seconds, floor), **_sizes(net, state), **peak_memory()}


def measure_tower(shapes: Shapes, machine: Machine, frames: int, per_chunk: int) -> dict[str, Any]:
    """The tower alone, pixels included; the time of `frames` frames is that of one chunk, multiplied."""
    tower = machine.build(lambda: build_tower(shapes.baseline["vision_config"]))
    eyes, found = QwenVision(tower, Patching(shapes.baseline["vision_config"]["patch_size"])), {}
    for count in sorted({per_chunk, *LIVE_FRAMES}, reverse=True):
        chunk = _frames(shapes, 0, count, _pictures(shapes, count))
        floor = machine.floor_s(floors.tower_flops(tower, shapes.pair_tokens) * count // 2, bytes_of(tower))
        found[str(count)] = _beside(_median_s(lambda chunk=chunk: eyes.tokens(chunk)), floor)
    best, chunks = found[str(per_chunk)], frames / per_chunk
    return {"chunks": found, "frames": frames, "watch": _beside(best["s"] * chunks, best["floor_s"] * chunks)}


def _pictures(shapes: Shapes, count: int) -> list[np.ndarray]:
    width, height = shapes.picture
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


# --- the baseline ----------------------------------------------------------------------------------------------------


def measure_baseline(shapes: Shapes, machine: Machine, stops: list[int], per_chunk: int) -> dict[str, Any]:
    """Qwen2-VL watches the same ready tokens with no limit to its keys, as far as they fit."""
    net = machine.build(lambda: Qwen2VL(shapes.baseline))
    net.visual = None  # its tower is measured by itself
    net.finish()
    eyes = ReadyTokens(shapes, machine, per_chunk)
    limit = stops[-1] * shapes.pair_tokens
    model = TransformerModel(net, eyes, None, "Qwen2-VL-7B, published shapes", limit)
    model.watch(VideoChunk(_frames(shapes, 0, per_chunk)), model.start())
    reset_peak_memory()
    found = {"name": model.name, "backend": model.backend, "weights": bytes_of(net), "watched": [], "stopped": ""}
    state, spent = model.start(), 0.0
    for stop in stops:
        try:
            seconds, state = _watch_to(model, state, shapes, stop, per_chunk)
        except OUT_OF_MEMORY:
            found["stopped"] = f"out of memory on the way to {stop:,} frames"
            break
        spent += seconds
        floor = machine.floor_s(floors.baseline_flops(net, stop // 2 * shapes.pair_tokens))
        found["watched"].append({"frames": stop, "watch": _beside(spent, floor), **_sizes(net, state)})
    return found | peak_memory()


def compared(vamba: dict[str, Any], baseline: dict[str, Any]) -> list[dict[str, float]]:
    """Vamba over baseline wherever both have watched as many frames: time, and memory above the weights' (GPU only)."""
    by_frames, ratios = {row["frames"]: row for row in vamba.get("watched", ())}, []
    for row in baseline.get("watched", ()):
        if mine := by_frames.get(row["frames"]):
            found = {"frames": row["frames"], "watch": mine["watch"]["s"] / row["watch"]["s"]}
            if row["above_weights"] and mine["above_weights"]:
                found["above_weights"] = mine["above_weights"] / row["above_weights"]
            ratios.append(found)
    return ratios


def _beside(seconds: float, floor: float) -> dict[str, float]:
    return {"s": seconds, "floor_s": floor, "ratio": seconds / floor}


def _sizes(net: nn.Module, state: StreamState) -> dict[str, Any]:
    """peak_gpu: the most so far; above_weights: without the model itself. None without a GPU."""
    peak = peak_memory().get("peak_gpu")
    above = peak - bytes_of(net) if peak else None
    return {
        "state_bytes": state.state_bytes, "memory_bytes": state.memory_bytes, "peak": peak, "above_weights": above
    }  # fmt: skip
