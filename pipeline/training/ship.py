"""Make the shipped file of trained weights: `python -m pipeline.training.ship --trained DIR --name embedded|twin`.

Training writes bf16; matrices are rounded further, to groups of 6 or 8 bits (quant.py), the rest is kept. The product
reads the result with `quant.load_trained`. What rounding costs is printed for every kind of tensor, as the length of
the error over the length of the tensor; what it costs in loss is for the trainer to measure (`--bits`).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.towers.frame_tower import ASSETS
from pipeline.training.student import CONFIG
from pipeline.weights.quant import GROUP, load_trained, pack, to_file

# Bits of a matrix by a piece of its name, the first that fits. A group's scale and minimum cost one more bit a number.
# LoRA in 8 bits would put the file over its budget; what 6 bits cost is in `report`.
BITS = {"vision_mixer": 6, "cross_attn": 6, "frames.": 6, "lora_": 6, "locator": 8}
LEAST = 3_000  # numbers; a smaller matrix is not worth the three names it costs
FULL = re.compile(r"A_log|dt_bias|alpha|norm|log_scale")  # few numbers that everything is multiplied by: float32
BUDGET = {"embedded": 19_000_000, "twin": 8_000_000}  # bytes
ALL_ASSETS = 260_000_000  # bytes


class Row(NamedTuple):
    """One kind of tensor (the same place in every layer) in the report."""

    kind: str
    tensors: int
    numbers: int
    form: str
    bytes: int
    error: float  # the largest of its tensors


def bits_of(name: str, tensor: Tensor, override: int | None = None) -> int | None:
    """How many bits a number of this tensor gets, or None where it is not packed."""
    if tensor.ndim != 2 or tensor.numel() <= LEAST or (tensor.shape[0] % GROUP and tensor.shape[1] % GROUP):
        return None
    return next((override or bits for part, bits in BITS.items() if part in name), None)


def to_small(name: str, tensor: Tensor, override: int | None = None) -> dict[str, Tensor]:
    """What goes into the file for one tensor: packed, float16 or float32."""
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} is not finite: this training run failed")
    if bits := bits_of(name, tensor, override):
        if tensor.shape[1] % GROUP:
            name, tensor = f"{name}.t", tensor.T.contiguous()
        return to_file(name, pack(tensor, bits), bits)
    return {name: tensor.float().contiguous() if FULL.search(name) or not fits_half(tensor) else tensor.half()}


def fits_half(tensor: Tensor) -> bool:
    """Does float16 keep the tensor to within a thousandth of its largest number, and overflow nowhere?"""
    wide = tensor.float()
    return bool((wide.half().float() - wide).abs().max() <= 1e-3 * wide.abs().max())  # an overflow is inf: False


def read_shards(folder: Path) -> dict[str, Tensor]:
    """All tensors of trained-*.safetensors."""
    shards = sorted(folder.glob("trained-*.safetensors"))
    if not shards:
        raise SystemExit(f"{folder} holds no trained-*.safetensors; give the folder that training wrote.")
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def ship(folder: Path, out: Path, name: str, override: int | None = None) -> list[Row]:
    """Write out/<name>.safetensors and out/<name>.json; what they cost, by kind of tensor."""
    trained = read_shards(folder)
    small = {key: value for n, t in trained.items() for key, value in to_small(n, t, override).items()}
    config = {"lora_scale": CONFIG["lora_scale"]} | json.loads((folder / "config.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    save_file(small, out / f"{name}.safetensors")
    (out / f"{name}.safetensors").chmod(0o644)  # the library writes it for its owner alone
    (out / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")
    return list(report(trained, small, load_trained(out / f"{name}.safetensors"), override))


def report(trained: dict, small: dict, back: dict, override: int | None) -> Iterator[Row]:
    """A row per kind of tensor: `trained` and `back` before and after, `small` as in the file."""
    kinds: dict[str, list[str]] = {}
    for name in trained:
        kinds.setdefault(kind_of(name), []).append(name)
    for kind, names in kinds.items():
        parts = [small[key] for n in names for key in file_names(n, trained[n], override)]
        error = max(float((back[n] - trained[n]).norm() / trained[n].float().norm().clamp(min=1e-30)) for n in names)
        bits = bits_of(names[0], trained[names[0]], override)
        form = f"{bits} bits" if bits else str(parts[0].dtype).removeprefix("torch.")
        numbers = sum(trained[n].numel() for n in names)
        yield Row(kind, len(names), numbers, form, sum(p.nbytes for p in parts), error)


def file_names(name: str, tensor: Tensor, override: int | None) -> list[str]:
    """The names under which `to_small` files a tensor."""
    if not (bits := bits_of(name, tensor, override)):
        return [name]
    name += ".t" * bool(tensor.shape[1] % GROUP)
    return [f"{name}.{part}" for part in (f"q{bits}", "scale", "min")]


def kind_of(name: str) -> str:
    """The name without its layer, LoRA as one kind a half."""
    found = re.search(r"lora_[ab]$", name)
    return found[0] if found else re.sub(r"^vamba\.model\.layers\.\d+\.", "", name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trained", type=Path, required=True, help="folder that training wrote")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--name", choices=BUDGET, default="embedded")
    parser.add_argument("--bits", type=int, choices=(4, 6, 8), help="for every matrix, to measure what that costs")
    args = parser.parse_args()
    rows = ship(args.trained, args.out, args.name, args.bits)
    for row in sorted(rows, key=lambda row: -row.bytes):
        print(f"{row.kind:<36}{row.tensors:>5}{row.numbers:>12,}  {row.form:<9}{row.bytes:>12,}{row.error:>10.2%}")
    size = (args.out / f"{args.name}.safetensors").stat().st_size
    print(f"{size:,} bytes of {BUDGET[args.name]:,}")
    if size > BUDGET[args.name] and not args.bits:
        raise SystemExit(f"{args.name}.safetensors is over its budget; pack in fewer bits.")


if __name__ == "__main__":
    main()
