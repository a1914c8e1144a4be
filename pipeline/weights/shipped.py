"""What lies in `assets/`, as tensors: the shipped language model, and trained parts folded into it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from pipeline.stream import UserError
from pipeline.towers.frame_tower import ASSETS
from pipeline.weights.quant import from_file


def check_files(assets: Path, files: Iterable[str]) -> None:
    """UserError with the first of these files that is missing."""
    for file in files:
        if not (assets / file).is_file():
            raise UserError(
                f"The embedded model's file {file} is missing, so it cannot start; "
                "fetch the repository again with its large files."
            )


def lm_weights(assets: Path = ASSETS) -> dict[str, Tensor]:
    """The shipped language model's weights in fp32."""
    tensors: dict[str, Tensor] = {}
    for shard in sorted(assets.glob("lm-*.safetensors")):
        tensors |= load_file(shard)
    return from_file(tensors)


def folded(lm: dict[str, Tensor], trained: dict[str, Tensor], lora_scale: float) -> dict[str, Tensor]:
    """All weights in fp32, LoRA folded into the language model's (W + scale * B A, arXiv 2106.09685, eq. 3).

    `lm` is emptied: holding the unmerged weights as well would cost another 0.4 GB at the peak of loading.
    """
    state = {f"vamba.{name}": lm.pop(name) for name in list(lm)}
    for name, tensor in trained.items():
        if name.endswith(".lora_a"):
            weight = name.replace(".lora_a", ".weight")
            state[weight] = state[weight] + lora_scale * trained[name.replace(".lora_a", ".lora_b")] @ tensor
        elif not name.endswith(".lora_b"):
            state[name] = tensor
    return state
