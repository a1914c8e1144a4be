"""How long a checkpoint of the published size takes to load, and how much of the host's memory.

    python -m pipeline bench --size published --loading FOLDER [--int8] [--fp8]

Weights do not matter for that: where FOLDER holds no checkpoint, one of random weights is written there, as the
published one lies on a disk (config.json, an index, shards of 5 GB, bf16). Then `load_net` loads it, once after
the files were pushed out of the page cache and once with the files in it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline.bench.machine import peak_memory, reset_peak_memory, timed
from pipeline.bench.shapes import random_weight
from pipeline.layers.fp8 import Rounding
from pipeline.models.load import load_net, skeleton
from pipeline.models.system import Config
from pipeline.stream import UserError
from pipeline.weights.checkpoint import INDEX, read_config, weight_files

SHARD = 5_000_000_000  # bytes
EVERY_S = 0.005  # how often the memory is read


def measure_loading(folder: Path, config: Config, device: torch.device, rounding: Rounding | None) -> dict[str, Any]:
    """The document; where the folder holds no checkpoint, one of random weights is written there first."""
    if not (folder / "config.json").is_file():
        print(f"writing a random checkpoint into {folder.name}", file=sys.stderr, flush=True)
        try:
            written(folder, config, device)
        except (OSError, SafetensorError) as error:
            raise UserError(
                "The random checkpoint could not be written there, so nothing was measured; name a folder of your own."
            ) from error
    return measured(folder, device, rounding)


def written(folder: Path, config: Config, device: torch.device, shard: int = SHARD) -> None:
    """Writes a checkpoint of random bf16 weights; UserError where the disk has no room for it."""
    shapes = {name: tuple(p.shape) for name, p in skeleton(config).named_parameters()}
    parts = _parts({name: 2 * torch.Size(shape).numel() for name, shape in shapes.items()}, shard)
    _check_room(folder, sum(map(sum, (part.values() for part in parts))))
    folder.mkdir(parents=True, exist_ok=True)
    held: dict[str, str] = {}
    generator = torch.Generator(device).manual_seed(0)
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file({name: random_weight(name, shapes[name], generator).cpu() for name in part}, folder / file)
        held |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": held}))
    (folder / "config.json").write_text(json.dumps(config))  # last: it marks the checkpoint as whole


def _parts(sizes: dict[str, int], most: int) -> list[dict[str, int]]:
    """In order, none above `most` bytes (unless one tensor is)."""
    parts: list[dict[str, int]] = [{}]
    for name, size in sizes.items():
        if parts[-1] and sum(parts[-1].values()) + size > most:
            parts.append({})
        parts[-1][name] = size
    return parts


def _check_room(folder: Path, needed: int) -> None:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise UserError(
            f"A random checkpoint takes {needed / 1e9:.1f} GB of disk and {free / 1e9:.1f} GB are free there, "
            "so nothing was written; name a folder on a larger disk."
        )


def measured(folder: Path, device: torch.device, rounding: Rounding | None) -> dict[str, Any]:
    """Loads the folder's checkpoint twice: {"cold": ..., "warm": ...}, seconds and bytes each."""
    config, files = read_config(folder), weight_files(folder)
    size = sum(file.stat().st_size for file in files)
    skeleton(config)  # neither importing the model's code
    torch.zeros(1, device=device)  # nor the driver's start is a part of loading
    _forget(files)
    return {"bytes": size, "files": len(files), "int8": rounding == "int8", "fp8": rounding == "fp8"} | {
        name: _once(folder, config, device, rounding, size) for name in ("cold", "warm")
    }


def _forget(files: list[Path]) -> None:
    """Push the files out of the page cache, as far as the system listens to that."""
    for file in files:
        with file.open("rb") as opened, contextlib.suppress(OSError, AttributeError):
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _once(folder: Path, config: Config, device: torch.device, rounding: Rounding | None, size: int) -> dict[str, Any]:
    gc.collect()
    reset_peak_memory()
    with anonymous_memory() as peak:
        seconds, net = timed(lambda: load_net(folder, config, device, None, for_use=True, rounding=rounding))
    del net
    peaks = {"peak_anonymous": max(peak), "before_anonymous": peak[0]}
    return {"s": seconds, "bytes_per_s": size / seconds, **peaks, **peak_memory()}


@contextlib.contextmanager
def anonymous_memory() -> Iterator[list[int]]:
    """A growing list of this process's memory in bytes that no file backs (Linux; elsewhere all of it at its peak).

    Mapped files are left out: the system takes their pages back whenever it needs them.
    """
    found, done = [_anonymous()], threading.Event()

    def watch() -> None:
        while not done.wait(EVERY_S):
            found.append(_anonymous())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _anonymous() -> int:
    try:
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) << 10
    except (OSError, IndexError):
        return peak_memory()["peak_rss"]
