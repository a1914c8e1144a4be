"""What an hour of video costs: a model and its baseline watch the same growing video and are asked on the way.

    python -m pipeline bench [--model M] [--baseline B] [--minutes 1 15 60] [--frames N] [--json]
    python -m pipeline bench --size published ...        (on a GPU, without weights: pipeline/bench/published.py)

The pictures are made, not decoded: smooth, moving, a new scene every half minute, the same for both models. At every
mark it notes the median time of a chunk, what the stream keeps (state and memory), and how fast an answer comes.
Beside the times stands a floor, what this machine could do at best: the multiplications that call really made at the
rate of a large matrix product measured here, or the bytes those multiplications must read at the rate of a large copy
measured here, whichever takes longer. Element-wise work is not in it, so nothing reaches it. Reading it: ten times the
floor is overhead worth hunting, twice the floor is good.

The readable table comes first; the last line of stdout is one JSON document. Times on a busy machine are worthless:
`conditions.load` says how busy it was.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

import pipeline
from pipeline.engine import Engine
from pipeline.stream import Frame, Question, Sampling, StreamState, UserError, VideoChunk, VideoModel
from pipeline.weights import checkpoint as weights

FPS = 1.0
SCENE_S = 30
PER_CHUNK = 8
RECENT = 32  # chunks before a mark whose median counts
QUESTION = Question("Describe everything you have seen so far.")
TOKENS = 32
RATIOS = ("chunk_ms", "state_bytes", "memory_bytes", "first_token_s", "tokens_per_s")


def run(args: argparse.Namespace) -> int:
    """The command. Measures one model after the other, so that each one's peak of memory is its own."""
    minutes, frames, size, measured = sorted(set(args.minutes)), args.frames or PER_CHUNK, None, {}
    for name in (names := _names(args.model, args.baseline)).values():
        weights.check(name)  # a misspelt one must not be noticed after minutes of measuring the other
    for role, name in names.items():
        reset_peak_memory()
        model = pipeline.load(name)
        size = size or _picture_size(model)
        measured[role] = measure(model, minutes, frames, size)
        del model
        gc.collect()
    machine = add_floors(measured)
    document = {"conditions": conditions(frames, size), "machine": machine, **measured}
    baseline = measured.get("baseline", {"rows": []})
    document["model_over_baseline"] = compared(measured["model"]["rows"], baseline["rows"])
    print(table(document), file=sys.stderr if args.json else sys.stdout)
    print(json.dumps(document))
    return 0


def _names(model: str, baseline: str) -> dict[str, str]:
    """What to measure; no baseline where it is "none"."""
    return {"model": model} | ({} if baseline == "none" else {"baseline": baseline})


def _picture_size(model: VideoModel) -> tuple[int, int]:
    """(width, height), 16:9, as large as the first model can use."""
    width = getattr(model, "long_side", 640)
    return width, round(width * 9 / 16)


def pictures(size: tuple[int, int], seed: int = 0) -> Iterator[Frame]:
    """Endless frames, `FPS` a second: four coarse colour fields mixed by slow waves, new fields every scene."""
    import cv2  # the published size makes no such pictures, and a GPU machine may lack it

    for index in itertools.count():
        scene, at = divmod(index / FPS, SCENE_S)
        fields = np.random.default_rng((seed, int(scene))).uniform(0, 255, (4, 6, 8, 3)).astype(np.float32)
        mix = np.exp(2 * np.sin(at / np.array([3.0, 5.0, 7.0, 11.0]) + np.arange(4)))
        coarse = np.tensordot(mix / mix.sum(), fields, 1)
        rgb = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        yield Frame(np.clip(rgb, 0, 255).astype(np.uint8), index / FPS)


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(model: VideoModel, minutes: list[int], frames_per_chunk: int, size: tuple[int, int]) -> dict[str, Any]:
    """One model from an empty stream to the last mark. A model that must stop early says why in `stopped`."""
    engine, frames, rows, stopped = Engine(model), pictures(size), [], ""
    state = engine.start()
    engine.watch(VideoChunk(tuple(itertools.islice(pictures(size), frames_per_chunk))), state)  # warm-up, thrown away
    try:
        for minute in minutes:
            state, chunk_ms = _watch_until(engine, state, frames, minute, frames_per_chunk)
            rows.append(_row(engine, state, minute, chunk_ms, frames_per_chunk, size))
            print(f"{engine.name}: minute {minute} measured", file=sys.stderr, flush=True)
    except UserError as error:
        stopped = str(error)
    return {
        "name": engine.name,
        "backend": engine.backend,
        "rows": rows,
        "growth": _ratios(rows[-1], rows[0]) if rows else {},
        "stopped": stopped,
        **peak_memory(),
    }


def _watch_until(
    engine: Engine, state: StreamState, frames: Iterator[Frame], minute: int, per_chunk: int
) -> tuple[StreamState, float | None]:
    """Watches up to `minute`. Returns the median milliseconds of the last full chunks; None if none was full."""
    spent: list[float] = []
    left = round(minute * 60 * FPS) - state.frames
    while left > 0:
        chunk = VideoChunk(tuple(itertools.islice(frames, min(per_chunk, left))))  # made before the clock starts
        seconds, state = timed(lambda chunk=chunk, state=state: engine.watch(chunk, state))
        left -= len(chunk.frames)
        if len(chunk.frames) == per_chunk:
            spent.append(seconds * 1e3)
    return state, statistics.median(spent[-RECENT:]) if spent else None


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds a call takes on the wall, the GPU's work included."""
    _wait_for_gpu()
    began = time.perf_counter()
    result = call()
    _wait_for_gpu()
    return time.perf_counter() - began, result


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _row(
    engine: Engine, state: StreamState, minute: int, chunk_ms: float | None, per_chunk: int, size: tuple[int, int]
) -> dict[str, Any]:
    answers = [list(engine.ask(QUESTION, state, Sampling(max_tokens=TOKENS)))[-1] for _ in range(3)]
    chunk = VideoChunk(tuple(Frame(f.rgb, f.time + minute * 60) for f in itertools.islice(pictures(size), per_chunk)))
    with Cost() as watching:
        engine.watch(chunk, state)  # states are values: this one is thrown away and the stream goes on as before
    first, token = _answer_costs(engine.model, state)
    return {
        "minute": minute,
        "frames": state.frames,
        "chunk_ms": chunk_ms,
        "first_token_s": _median(answer.first_token_s for answer in answers),
        "tokens_per_s": _median(answer.tokens_per_s for answer in answers),
        "state_bytes": state.state_bytes,
        "memory_bytes": state.memory_bytes,
        "dropped": state.dropped,
        "dropped_note": state.dropped_note,
        "costs": {"chunk": watching, "first_token": first, "token": token},
    }


def _answer_costs(model: VideoModel, state: StreamState) -> tuple[Cost, Cost | None]:
    """What the first token costs (with reading the question) and what the second one costs; None if there is none."""
    tokens = iter(model.ask(QUESTION, state, Sampling(max_tokens=2)))
    with Cost() as first:
        next(tokens, None)
    with Cost() as second:
        more = next(tokens, None)
    return first, second if more else None


def _median(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratios(new: dict[str, Any], old: dict[str, Any]) -> dict[str, float | None]:
    return {key: new[key] / old[key] if new[key] is not None and old[key] else None for key in RATIOS}


def compared(model: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Model over baseline at every mark both reached. Below 1 it needs less (tokens_per_s: above 1 is faster)."""
    return [{"minute": m["minute"], **_ratios(m, b)} for m, b in zip(model, baseline)]


# --- the floor -------------------------------------------------------------------------------------------------------


class Cost(TorchFunctionMode):
    """Counts what the matrix products, convolutions and attentions of the calls inside it must at least do.

    flops: by torch's own formulas from the real shapes. bytes: of their inputs that were there before (weights, keys
    and values, states), each once; what the calls make themselves may stay in cache. Packed weights that are unpacked
    inside and kernels written outside torch (Triton) are not in it. Both are lower bounds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations = _Operations()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        with self._operations:  # not around everything: torch's CausalBias cannot be constructed inside
            return func(*args, **(kwargs or {}))

    @property
    def flops(self) -> int:
        return self._operations.flops

    @property
    def bytes(self) -> int:
        return sum(self._operations.read.values())

    def floor_s(self, machine: dict[str, float]) -> float:
        """Seconds at best on this machine, whose rates are measured on first use and kept in `machine`."""
        device, dtype = self._operations.device, self._operations.dtype
        flops_key = f"{device.type} {dtype}".replace("torch.", "") + " matmul FLOP/s"
        if flops_key not in machine:
            machine[flops_key] = matmul_rate(device, dtype)
        if (bytes_key := f"{device.type} copy bytes/s") not in machine:
            machine[bytes_key] = copy_rate(device)
        return max(self.flops / machine[flops_key], self.bytes / machine[bytes_key])


class _Operations(TorchDispatchMode):
    """Sees every operation of torch with its real tensors. read: bytes by storage; see `Cost`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.dtype, self.device, self._most = torch.float32, torch.device("cpu"), 0
        self._made: set[int] = set()
        self.read: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:  # matmul, linear and the like may arrive whole
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        before = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **kwargs)
        if flops := _flops(func._overloadpacket, args, kwargs, out):
            self._count(flops, (args, kwargs))
        self._made |= {_storage(t) for t in tree_leaves(out) if isinstance(t, torch.Tensor)} - before
        return out

    def _count(self, flops: int, inputs: Any) -> None:
        self.flops += flops
        tensors = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
        for tensor in tensors:
            key = _storage(tensor)
            if key not in self._made:
                size = min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())
                self.read[key] = max(size, self.read.get(key, 0))
        if flops > self._most:  # the rate that counts is that of the largest product
            self._most, self.dtype, self.device = flops, tensors[0].dtype, tensors[0].device


def add_floors(measured: dict[str, Any]) -> dict[str, float]:
    """Turns every row's costs into floors, and returns this machine's rates.

    Last of all, because measuring the rates takes half a gigabyte that would count as a model's peak.
    """
    machine: dict[str, float] = {}
    for row in itertools.chain.from_iterable(found["rows"] for found in measured.values()):
        costs = {name: cost for name, cost in row["costs"].items() if cost is not None}
        floors = {name: cost.floor_s(machine) for name, cost in costs.items()}
        row["chunk_floor_ms"] = floors["chunk"] * 1e3
        row["first_token_floor_s"] = floors["first_token"]
        row["tokens_per_s_ceiling"] = 1 / floors["token"] if floors.get("token") else None
        row["costs"] = {name: {"flops": cost.flops, "bytes": cost.bytes} for name, cost in costs.items()}
    return machine


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _flops(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:  # missing from torch's registry
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, best of five."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(timed(lambda: a @ b)[0] for _ in range(6))


def copy_rate(device: torch.device) -> float:
    """Bytes/s of a large copy, read and written bytes counted, best of five; far larger than any cache."""
    source = torch.ones(256 << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / min(timed(lambda: target.copy_(source))[0] for _ in range(6))


def bus_rate(device: torch.device) -> float:
    """Bytes/s of a large copy from the host's memory, page-locked, to the device, best of five."""
    source = torch.ones(256 << 20, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty_like(source, device=device)
    return source.numel() / min(timed(lambda: target.copy_(source))[0] for _ in range(6))


# --- the machine -----------------------------------------------------------------------------------------------------


def reset_peak_memory() -> None:
    """Start new peaks. On Linux the kernel forgets the old peak; elsewhere `peak_rss` is that of the whole process."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """{"peak_rss": bytes, "peak_gpu": bytes where there is a GPU}."""
    try:
        status = Path("/proc/self/status").read_text()
        rss = int(status.split("VmHWM:")[1].split()[0]) << 10
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gpu = {"peak_gpu": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}
    return {"peak_rss": rss} | gpu


def conditions(frames_per_chunk: int, size: tuple[int, int] | None) -> dict[str, Any]:
    """Everything a reader needs to judge or repeat the figures."""
    return {
        "fps": FPS,
        "frames_per_chunk": frames_per_chunk,
        "picture": size,
        "question": QUESTION.text,
        "max_tokens": TOKENS,
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# --- the table -------------------------------------------------------------------------------------------------------

HEAD = f"{'minute':>6} {'ms/chunk':>9} {'floor':>8} {'1st token s':>12} {'floor':>8} {'tokens/s':>9} {'ceiling':>8}"
HEAD += f" {'state MB':>9} {'memory MB':>10}  dropped"


def table(document: dict[str, Any]) -> str:
    """The document for people."""
    lines = []
    for role in (role for role in ("model", "baseline") if role in document):
        found = document[role]
        lines += [f"{role}: {found['name']} ({found['backend']}), peak RSS {found['peak_rss'] / 1e6:,.0f} MB", HEAD]
        lines += [_line(row) for row in found["rows"]]
        lines += [f"  last / first: {_shown(found['growth'])}"] if len(found["rows"]) > 1 else []
        lines += [f"  stopped: {found['stopped']}"] if found["stopped"] else []
    lines += [f"model / baseline at minute {r['minute']}: {_shown(r)}" for r in document["model_over_baseline"]]
    lines += [", ".join(f"{name} {rate:.3g}" for name, rate in document["machine"].items())]
    return "\n".join([*lines, ", ".join(f"{key} {value}" for key, value in document["conditions"].items())])


def _line(row: dict[str, Any]) -> str:
    figures = [
        (row["chunk_ms"], 9, 1), (row["chunk_floor_ms"], 8, 2), (row["first_token_s"], 12, 3),
        (row["first_token_floor_s"], 8, 3), (row["tokens_per_s"], 9, 1), (row["tokens_per_s_ceiling"], 8, 0),
        (row["state_bytes"] / 1e6, 9, 2), (row["memory_bytes"] / 1e6, 10, 2),
    ]  # fmt: skip
    cells = [
        f"{value:{width},.{digits}f}" if value is not None else "-".rjust(width) for value, width, digits in figures
    ]
    return f"{row['minute']:>6} {' '.join(cells)}  {row['dropped_note'] or '-'}"


def _shown(ratios: dict[str, Any]) -> str:
    return ", ".join(f"{key} {ratios[key]:.2f}x" for key in RATIOS if ratios.get(key) is not None)
