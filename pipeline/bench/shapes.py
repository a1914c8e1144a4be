"""What the bench at the published size builds and feeds: shapes, random weights, stand-ins for pictures and words."""

from __future__ import annotations

import contextlib
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from pipeline.bench.embedded import bus_rate, copy_rate, matmul_rate, peak_memory, timed
from pipeline.bench.floors import bytes_of
from pipeline.layers.int8 import Int8Linear
from pipeline.layers.mamba2 import MixerConfig
from pipeline.layers.vamba import VambaConfig
from pipeline.stream import Frame, Question, StreamState, VideoChunk, VideoModel
from pipeline.towers.qwen import Patching
from pipeline.towers.seen import Seen

QUESTION_TOKENS = 32
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


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

    def floor_s(self, flops: float, read: float = 0.0, fetched: float = 0.0) -> float:
        """Seconds that so many operations, bytes read there and bytes from the host take at least, side by side."""
        return max(flops / self.flops, read / self.bytes, fetched / self.bus)

    def build(self, make: Callable[[], nn.Module], int8: bool = False) -> nn.Module:
        """A module with random weights, made where and as it will be used: 10.6 B parameters in 0.1 s on an H100.

        int8: every linear layer is rounded as soon as it is made, so that the unrounded network never exists.
        """
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with self.device, _rounding() if int8 else contextlib.nullcontext():
                return make().to(self.device).requires_grad_(False).eval()
        finally:
            torch.set_default_dtype(before)


@contextlib.contextmanager
def _rounding() -> Iterator[None]:
    def rounded(parent: nn.Module, name: str, child: nn.Module) -> nn.Module | None:
        return Int8Linear(child) if type(child) is nn.Linear else None

    hook = register_module_module_registration_hook(rounded)
    try:
        yield
    finally:
        hook.remove()


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


def frames_of(shapes: Shapes, start: int, count: int, pictures: list[np.ndarray] | None = None) -> tuple[Frame, ...]:
    """One frame a second. Without pictures they are empty, for `ReadyTokens`."""
    return tuple(
        Frame(pictures[i % len(pictures)] if pictures else None, float(i)) for i in range(start, start + count)
    )


def watch_to(model: VideoModel, state: StreamState, shapes: Shapes, until: int, per_chunk: int, pictures=None):
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


def beside(seconds: float, floor: float) -> dict[str, float]:
    return {"s": seconds, "floor_s": floor, "ratio": seconds / floor}


def sizes(net: nn.Module, state_bytes: int, memory_bytes: int, most: int = 0, host: int = 0) -> dict[str, Any]:
    """What is kept, and on a GPU the peak beside its floor, weights and what is kept; above_weights: without the model.

    most: the peak of earlier parts, if higher than what the GPU tells now. host: bytes of the memory that lie there.
    """
    peak = max(most, peak_memory().get("peak_gpu", 0)) or None
    return {
        "state_bytes": state_bytes, "memory_bytes": memory_bytes, "host_bytes": host, "peak": peak,
        "peak_floor": bytes_of(net) + state_bytes + memory_bytes - host, "above_weights": peak and peak - bytes_of(net),
    }  # fmt: skip
