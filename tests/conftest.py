"""Shared fixtures: one thread, fixed seeds, and a tiny Vamba with random weights behind a tiny stand-in for eyes."""

from __future__ import annotations

import contextlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.layers.mamba2 import MixerConfig
from pipeline.layers.vamba import Vamba, VambaConfig
from pipeline.models.vamba_model import VambaModel
from pipeline.stream import Frame, VideoChunk
from pipeline.towers.seen import Seen

with contextlib.suppress(ImportError):  # the GPU tests need no more than pytest
    from hypothesis import settings

    settings.register_profile("steady", derandomize=True)  # the same examples in every run
    settings.register_profile("fresh", derandomize=False, print_blob=True)  # others every time; says how to repeat one
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))

TINY_VISION = {
    "depth": 1,
    "embed_dim": 64,
    "hidden_size": 96,
    "hidden_act": "quick_gelu",
    "mlp_ratio": 2,
    "num_heads": 4,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
TINY_MIXER = MixerConfig(d_model=32, d_state=8, headdim=8, ssd_block=8)
TINY = VambaConfig(
    d_model=32, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=48, vocab=96, mixer=TINY_MIXER, cross_layers=(0, 1, 2, 3)
)


@pytest.fixture(autouse=True)
def steady():
    """The same numbers in every run, on however busy a machine."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def tiny_vamba() -> Callable[..., Vamba]:
    """tiny_vamba(dtype, **changes to TINY) -> Vamba. Weights large enough that everything lost is seen."""

    def make(dtype: torch.dtype = torch.float32, **changes) -> Vamba:
        torch.manual_seed(0)
        net = Vamba(replace(TINY, **changes)).to(dtype)
        for name, p in net.named_parameters():
            if name.endswith("proj.weight"):
                torch.nn.init.normal_(p, std=2 * p.shape[1] ** -0.5)
        return net.requires_grad_(False).eval()

    return make


class PairEyes:
    """Stand-in for a vision tower: every pair of frames becomes three tokens made of the frames' colours."""

    unit_frames, long_side, per_pair = 2, 64, 3

    def __init__(self, width: int, dtype: torch.dtype):
        self.mix = torch.randn(6, self.per_pair * width, generator=torch.Generator().manual_seed(1)).to(dtype)
        self.width, self.calls = width, []

    def tokens(self, frames) -> Seen:
        assert len(frames) % 2 == 0, "half a pair reached the tower"
        self.calls.append(len(frames))
        colours = np.stack([f.rgb.mean((0, 1)) / 64 for f in frames]).reshape(-1, 6)
        tokens = torch.from_numpy(colours).to(self.mix.dtype) @ self.mix
        times = torch.tensor([f.time for f in frames[::2]]).repeat_interleave(self.per_pair)
        units = torch.arange(len(frames) // 2).repeat_interleave(self.per_pair)
        positions = torch.stack([units, torch.zeros_like(units), torch.arange(self.per_pair).repeat(len(frames) // 2)])
        return Seen(tokens.view(1, -1, self.width), times, positions)


class Letters:
    """A tokenizer whose tokens are characters; id 0 ends an answer."""

    def encode(self, text, add_special_tokens=True, split_special_tokens=False):
        return [1 + ord(c) % 95 for c in text]

    def get_vocab(self):
        return {"<|im_end|>": 0}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(32 + i) for i in ids)


@pytest.fixture
def tiny_model(tiny_vamba) -> Callable[..., VambaModel]:
    """tiny_model(dtype, net changes..., **VambaModel options) -> VambaModel that watches pairs of frames."""

    def make(dtype: torch.dtype = torch.float32, net: dict | None = None, **options) -> VambaModel:
        options.setdefault("block_slots", 16)
        return VambaModel(tiny_vamba(dtype, **(net or {})), PairEyes(TINY.d_model, dtype), Letters(), **options)

    return make


@pytest.fixture
def clip() -> Callable[[int], tuple[Frame, ...]]:
    """clip(n) -> n small random frames, half a second apart."""

    def make(n: int) -> tuple[Frame, ...]:
        rng = np.random.default_rng(7)
        return tuple(Frame(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), 0.5 * i) for i in range(n))

    return make


@pytest.fixture
def cut() -> Callable[[int, int], list[slice]]:
    """cut(n, seed) -> slices that cover range(n) in random pieces, many of them of length 1."""

    def make(n: int, seed: int) -> list[slice]:
        rng = np.random.default_rng(seed)
        ends = np.unique(np.concatenate([rng.integers(1, n, size=max(1, n // 6)), [1, 2, n]]))
        return [slice(int(a), int(b)) for a, b in zip([0, *ends], ends)]

    return make


@pytest.fixture
def watch_all() -> Callable:
    """watch_all(model, frames, slices) -> the state after the frames, cut so."""

    def run(model, frames, slices, state=None):
        state = model.start() if state is None else state
        for part in slices:
            state = model.watch(VideoChunk(frames[part]), state)
        return state

    return run


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference, relative to the largest value of `b`. NaN counts as infinitely far."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    if not b.numel():
        return 0.0
    return float(((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).nan_to_num(torch.inf))
