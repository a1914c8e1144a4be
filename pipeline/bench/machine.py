"""What the bench measures with: seconds on the wall, peaks of memory, this machine's rates and what it is.

The bottom of the bench: nothing here knows a model.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds a call takes on the wall, the GPU's work included."""
    wait_for_gpu()
    began = time.perf_counter()
    result = call()
    wait_for_gpu()
    return time.perf_counter() - began, result


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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


# --- what it can do, and what it is ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Where it runs, and the rates there of a large matrix product (FLOP/s) and of large copies (bytes/s).

    bus: of a copy from the host's page-locked memory.
    """

    device: torch.device
    dtype: torch.dtype
    flops: float
    bytes: float
    bus: float = math.inf

    @classmethod
    def measured(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        return cls(device, dtype, matmul_rate(device, dtype), copy_rate(device), bus_rate(device))

    def in_fp8(self) -> Machine:
        """The same with the rate of products in 8-bit floating point, where there are any."""
        return replace(self, flops=fp8_rate(self.device)) if self.device.type == "cuda" else self

    def floor_s(self, flops: float, read: float = 0.0, fetched: float = 0.0) -> float:
        """Seconds that so many operations, bytes read there and bytes from the host take at least, side by side."""
        return max(flops / self.flops, read / self.bytes, fetched / self.bus)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product, best of five."""
    n = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    return 2 * n**3 / min(timed(lambda: a @ b)[0] for _ in range(6))


def fp8_rate(device: torch.device) -> float:
    """FLOP/s of such a product of e4m3 numbers with a scale for every row, best of five."""
    n = 8192
    a, b = (torch.randn(n, n, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones(n, 1, device=device)
    call = partial(torch._scaled_mm, a, b.t(), scale, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True)
    return 2 * n**3 / min(timed(call)[0] for _ in range(6))


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


def machine_conditions() -> dict[str, Any]:
    """What a reader must know of the machine to judge or repeat the figures."""
    return {
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


def part_alone(name: str, part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
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
