"""One mixer of the published size by the own kernels and by the published ones: same weights, same rows, one run."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from pipeline.bench.machine import Machine, timed
from pipeline.bench.shapes import built, with_floor
from pipeline.gpu.dispatch import Refused, override, require
from pipeline.layers.mamba2 import Mamba2Mixer, MixerConfig, MixerState

TOKENS = (299, 2_392, 9_568, 19_136)  # 2, 16, 64 and 128 frames of 640x360
TURNS = 20


@torch.no_grad()
def measure_mixers(cfg: MixerConfig, machine: Machine, lengths: tuple[int, ...] = TOKENS) -> dict[str, Any]:
    """A row for each length: seconds by both beside the two matrix products' floor, their ratio, and how far apart
    their outputs and states are, at most, in standard deviations. {"stopped": why} where one of them cannot run."""
    try:
        for kernels in ("own", "published"):
            require(kernels)
    except Refused as error:
        return {"stopped": str(error)}
    mixer = built(machine, lambda: Mamba2Mixer(cfg))
    return {"rows": [_row(mixer, machine, length) for length in lengths]}


def _row(mixer: Mamba2Mixer, machine: Machine, length: int) -> dict[str, Any]:
    """In turns, because a GPU lowers its clock under load."""
    u = torch.randn(1, length, mixer.cfg.d_model, device=machine.device).to(machine.dtype)
    state = MixerState(*(torch.randn_like(part) for part in mixer.start()))
    spent: dict[str, list[float]] = {"own": [], "published": []}
    found: dict[str, tuple[torch.Tensor, MixerState]] = {}
    for turn in range(1 + TURNS):  # the first compiles and tunes
        for kernels in spent:
            with override(kernels):
                seconds, found[kernels] = timed(lambda: mixer(u, state))
            if turn:
                spent[kernels].append(seconds)
    weights = mixer.in_proj.weight.numel() + mixer.out_proj.weight.numel()
    floor = machine.floor_s(2.0 * weights * length, weights * machine.dtype.itemsize)
    own, published = (statistics.median(times) for times in spent.values())
    (own_out, own_state), (out, new) = found["own"], found["published"]
    return {
        "tokens": length,
        "own": with_floor(own, floor),
        "published": with_floor(published, floor),
        "published_over_own": published / own,
        "outputs_apart_in_std": _apart(out, own_out),
        "states_apart_in_std": _apart(new.ssm, own_state.ssm),
    }


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).abs().max() / other.float().std())
