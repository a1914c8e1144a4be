"""`python -m pipeline verify --golden DIR`: recompute a published system's golden tensors and print the differences.

A golden folder holds config.json, model.safetensors and expected.safetensors (inputs and outputs of the published code,
batch 1). What is recomputed, and how its video can be cut, the system's own record says (models/system.py, `golden`).
First the whole video at once is held against the golden tensors; then random cuts against the whole.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.checks.pictures import PicturesGolden
from pipeline.gpu.dispatch import backend
from pipeline.layers.fp8 import Rounding
from pipeline.models.load import choose_kernels, load_net, system_of
from pipeline.models.system import Golden
from pipeline.stream import UserError
from pipeline.weights.checkpoint import DTYPES, read_config

# Largest difference allowed, in standard deviations of the tensor: (from the golden tensors, between two cuttings).
# The golden tensors are fp32 themselves, so fp64 cannot come closer to them than fp32 does.
TOLERANCES = {"float64": (1e-3, 1e-9), "float32": (1e-3, 1e-4), "bfloat16": (0.25, 0.25), "float16": (0.05, 0.05)}
ROUNDED: dict[Rounding, float] = {"int8": 0.25, "fp8": 0.75}  # the first of them with 8-bit weights
# Between two cuttings in 8-bit floating point: where a number lies between two codes, its last digit chooses one.
ROUNDED_CUT = 0.1
OTHER_WORDS = 1 / 12  # of the greedy ones, in 8-bit floating point: of two that are nearly as likely a step chooses


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--golden", required=True, metavar="DIR", help="a folder of golden tensors")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="what to compute in (default: float32)"
    )
    rounding = parser.add_mutually_exclusive_group()
    rounding.add_argument("--int8", action="store_true", help="with the weights of linear layers in 8 bits")
    rounding.add_argument("--fp8", action="store_true", help="with products of what watches in 8-bit floating point")
    parser.add_argument("--chunks", type=int, default=6, metavar="N", help="random cuts to try (default: 6)")
    parser.add_argument("--device", help="where to compute (default: the GPU if there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of the random cuts")


def run(args: argparse.Namespace) -> int:
    """Prints one line a tensor and a last line of JSON. Returns 0, or 1 past a tolerance."""
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    choose_kernels()
    rounding: Rounding | None = "fp8" if args.fp8 else "int8" if args.int8 else None
    golden = read(Path(args.golden), device, DTYPES[args.dtype], rounding)
    exact, between = allowed(args.dtype, rounding)
    rows = list(compare(golden, args.chunks, args.seed, exact, between, OTHER_WORDS if args.fp8 else 0.0))
    print(f"{'tensor':<34} {'largest difference':>18} {'in std':>10} {'allowed':>9}")
    for row in rows:
        mark = "" if row["ok"] else "  <- too far"
        print(f"{row['tensor']:<34} {row['difference']:>18.3e} {row['in_std']:>10.2e} {row['allowed']:>9.0e}{mark}")
    ok = all(row["ok"] for row in rows)
    report = {
        "golden": Path(args.golden).name,
        "dtype": args.dtype,
        "int8": args.int8,
        "fp8": args.fp8,
        "device": device.type,
        "kernels": backend(device),
        "ok": ok,
        "tensors": rows,
    }
    print(json.dumps(report))
    return 0 if ok else 1


def allowed(dtype: str, rounding: Rounding | None) -> tuple[float, float]:
    """The largest differences allowed, as in TOLERANCES."""
    exact, between = TOLERANCES[dtype]
    if rounding == "fp8" and dtype != "float64":
        between = max(between, ROUNDED_CUT)
    return ROUNDED[rounding] if rounding else exact, between


def read(folder: Path, device: torch.device, dtype: torch.dtype, rounding: Rounding | None = None) -> Golden:
    """A golden folder and its network in `dtype`; UserError where it is none, or its system compares none."""
    try:
        expected = load_file(folder / "expected.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(
            "The golden folder holds no readable expected.safetensors, so there is nothing to compare with; "
            "name a folder of golden data."
        ) from error
    config = read_config(folder)
    if PicturesGolden.recognises(config):
        return PicturesGolden(config, expected)
    system = system_of(config)
    if system.golden is None:
        raise UserError(f"Golden tensors of a {system.name} cannot be compared yet; name the folder of another system.")
    if rounding == "fp8" and "fp8" not in system.options:
        raise UserError(f"A {system.name} has no fp8, so nothing was compared; leave it out.")
    net = load_net(folder, config, device, dtype, rounding=rounding)
    try:
        return system.golden(net, expected)
    except KeyError as error:
        raise UserError(
            f"These golden tensors are not a {system.name}'s, for they lack {error}, so they cannot be compared; "
            "name another folder."
        ) from error


def compare(
    golden: Golden, cuts: int, seed: int, exact: float, between: float, others: float = 0.0
) -> Iterator[dict[str, Any]]:
    """One row a tensor: name, largest difference, that in the tensor's standard deviations, and whether it passes.

    Of ids the difference is how many are others; as many of the greedy ones as `others` of all may be.
    """
    whole = golden.whole()
    for name, values in golden.expected.items():
        if name in whole:
            held_in_fp64 = name.startswith("fp64.") and whole[name].dtype == torch.float64
            row = _row(name, whole[name], values, between if held_in_fp64 else exact)
            if name.endswith("greedy_ids"):
                row["allowed"] = float(int(others * values.numel()))
                row["ok"] = whole[name].shape == values.shape and row["difference"] <= row["allowed"]
            yield row
    chance = random.Random(seed)
    for number in range(cuts if golden.kinds else 0):
        kind, finest = golden.kinds[number % len(golden.kinds)], number < len(golden.kinds)
        again = golden.cut(kind, _Sizes(chance, finest))
        for name in again:
            if not name.endswith("greedy_ids"):  # they are the logits' affair
                yield _row(f"cut {number + 1}, by {kind}: {name}", again[name], whole[name], between)


class _Sizes:
    """Draws random cuts; the finest one is all ones."""

    def __init__(self, chance: random.Random, finest: bool):
        self._chance, self._finest = chance, finest

    def __call__(self, total: int, most: int | None = None) -> list[int]:
        sizes, most = [], 1 if self._finest else most or total
        while total:
            sizes.append(self._chance.randint(1, min(most, total)))
            total -= sizes[-1]
        return sizes


def _row(name: str, ours: Tensor, theirs: Tensor, allowed: float) -> dict[str, Any]:
    ours, theirs = ours.cpu(), theirs.cpu()
    if not theirs.is_floating_point():
        same = torch.equal(ours, theirs)
        return {"tensor": name, "difference": float((ours != theirs).sum()), "in_std": 0.0, "allowed": 0.0, "ok": same}
    if ours.shape != theirs.shape:
        return {"tensor": name, "difference": float("inf"), "in_std": float("inf"), "allowed": allowed, "ok": False}
    difference = float((ours.double() - theirs.double()).abs().max())
    relative = difference / max(float(theirs.double().std()), 1e-30)
    # `not >` would let a NaN pass
    return {"tensor": name, "difference": difference, "in_std": relative, "allowed": allowed, "ok": relative <= allowed}
