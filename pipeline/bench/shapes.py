"""What the bench at the published size builds and feeds: shapes, random weights, stand-ins for pictures and words."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.bench.floors import bytes_of
from pipeline.bench.machine import Machine, peak_memory, timed
from pipeline.layers.fp8 import Rounding, to_8_bits
from pipeline.layers.int8 import RoundedLinear
from pipeline.layers.mamba2 import MixerConfig
from pipeline.layers.vamba import VambaConfig
from pipeline.stream import Frame, Model, Question, StreamState, VideoChunk
from pipeline.towers.qwen import Patching
from pipeline.towers.seen import Seen

QUESTION_TOKENS = 32
_NO_PICTURE = np.empty((0, 0, 3), np.uint8)

Net = TypeVar("Net", bound=nn.Module)


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
_TEXT: dict[str, Any] = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28}
_TEXT |= {"num_attention_heads": 28, "num_key_value_heads": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6}
_TEXT |= {"max_position_embeddings": 32768, "rope_theta": 1e6}
_TEXT |= {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
PUBLISHED = Shapes(
    VambaConfig(
        d_model=3584,
        n_layers=28,
        n_heads=28,
        n_kv_heads=4,
        d_ff=18944,
        vocab=152064,
        mixer=MixerConfig(d_model=3584),
        cross_layers=tuple(range(28)),
        mrope_section=(16, 24, 24),
    ),
    _TEXT | {"vision_config": _TOWER, "tie_word_embeddings": False},
)


def built(machine: Machine, make: Callable[[], Net], rounding: Rounding | None = None) -> Net:
    """A module with random weights, made where and as it will be used: 10.6 B parameters in 0.1 s on an H100.

    rounding: it is made without memory, and every linear layer is rounded as soon as it gets weights, so that the
    unrounded network never exists.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(machine.dtype)
    try:
        with torch.device("meta") if rounding else machine.device:
            net = make()
    finally:
        torch.set_default_dtype(before)
    if rounding:
        _fill(to_8_bits(net, rounding), machine)
    return net.to(machine.device).requires_grad_(False).eval()


def _fill(net: nn.Module, machine: Machine) -> None:
    """Random weights for what lies on the meta device, one tensor at a time."""
    generator = torch.Generator(machine.device).manual_seed(0)
    for place, module in net.named_modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            if not empty.is_meta or (isinstance(module, RoundedLinear) and name == "scale"):  # `take` makes the scales
                continue
            weight = random_weight(f"{place}.{name}", tuple(empty.shape), generator).to(machine.dtype)
            if isinstance(module, RoundedLinear) and name == "weight":
                module.take(weight.to(machine.device))
            else:
                setattr(module, name, nn.Parameter(weight.to(machine.device)))


def random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """bf16 weights that keep a network's numbers finite: norms of 1, small matrices."""
    if len(shape) == 1:
        scales = re.search(r"(norm\w*|ln_q)\.weight$|\.D$", name)
        return torch.full(shape, float(bool(scales)), dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16, device=generator.device).normal_(0, 0.02, generator=generator)


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


QUESTION = Question("word " * (QUESTION_TOKENS - 6))  # the chat format adds six


def frames_of(shapes: Shapes, start: int, count: int, pictures: list[np.ndarray] | None = None) -> tuple[Frame, ...]:
    """One frame a second. Without pictures they are empty, for `ReadyTokens`."""
    return tuple(
        Frame(pictures[i % len(pictures)] if pictures else _NO_PICTURE, float(i)) for i in range(start, start + count)
    )


def watch_to(model: Model, state: StreamState, shapes: Shapes, until: int, per_chunk: int, pictures=None):
    """The state after `until` frames, and the seconds that took."""

    def watch() -> StreamState:
        new = state
        while new.frames < until:
            count = min(per_chunk, until - new.frames)
            new = model.watch(VideoChunk(frames_of(shapes, new.frames, count, pictures)), new)
        return new

    seconds, state = timed(watch)
    return seconds, state


def pictures_of(shapes: Shapes, count: int) -> list[np.ndarray]:
    width, height = shapes.picture
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def with_floor(seconds: float, floor: float) -> dict[str, float]:
    """A time, its floor, and how many times the floor it is."""
    return {"s": seconds, "floor_s": floor, "ratio": seconds / floor}


def sizes(net: nn.Module, state_bytes: int, memory_bytes: int, most: int = 0, host: int = 0) -> dict[str, Any]:
    """What is kept, and on a GPU the peak beside its floor, weights and what is kept; above_weights: without the model.

    most: the peak of earlier parts, if higher than what the GPU tells now. host: bytes of the memory that lie there.
    """
    peak = max(most, peak_memory().get("peak_gpu", 0)) or None
    return {
        "state_bytes": state_bytes,
        "memory_bytes": memory_bytes,
        "host_bytes": host,
        "peak": peak,
        "peak_floor": bytes_of(net) + state_bytes + memory_bytes - host,
        "above_weights": peak and peak - bytes_of(net),
    }
