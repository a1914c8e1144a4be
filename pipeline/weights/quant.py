"""Small integers for large matrices: the packed form of the shipped language model, and back.

A matrix (rows, columns) is cut along its columns into groups of 32. Each group keeps a float16 `scale` and `min`, each
number a code of 4 to 8 bits: value = scale * code + min, computed in float32. With 4 bits this is exactly GGUF's Q4_1
(github.com/ggml-org/ggml, docs/gguf.md), so packing such a file loses nothing.

In a file, matrix `x` becomes `x.q4` (or `x.q6`, `x.q8`: codes, uint8), `x.scale` and `x.min` (rows, columns / 32);
what is not packed keeps its own name. A matrix whose rows alone are a multiple of 32 is packed lying on its side and
called `x.t`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

GROUP = 32


class Packed(NamedTuple):
    """codes: uint8 (rows, columns * bits / 8); scale, min: float16 (rows, columns / 32)."""

    codes: Tensor
    scale: Tensor
    min: Tensor


def pack(w: Tensor, bits: int) -> Packed:
    """Round a float matrix whose columns are a multiple of 32 to codes of 4, 6 or 8 bits. ValueError otherwise."""
    if w.ndim != 2 or w.shape[1] % GROUP:
        raise ValueError(f"pack needs a matrix with a multiple of {GROUP} columns, not {tuple(w.shape)}")
    groups = w.float().unflatten(1, (-1, GROUP))
    low = groups.amin(-1).half()
    scale = ((groups.amax(-1) - low.float()) / (2**bits - 1)).half()
    codes = (groups - low.float()[..., None]) / scale.float().clamp(min=1e-12)[..., None]
    return Packed(squeeze(codes.round().clamp(0, 2**bits - 1).to(torch.uint8).flatten(1), bits), scale, low)


def unpack(packed: Packed, bits: int) -> Tensor:
    """The float32 matrix (rows, columns): scale * code + min."""
    codes = stretch(packed.codes, bits).unflatten(1, (-1, GROUP)).float()
    return codes.mul_(packed.scale.float()[..., None]).add_(packed.min.float()[..., None]).flatten(1)


def squeeze(codes: Tensor, bits: int) -> Tensor:
    """One code a byte -> packed bytes: the halves (4 bits) or quarters (6 bits) of a row are laid over each other."""
    if bits == 8:
        return codes
    if bits == 4:
        low, high = codes.chunk(2, 1)
        return low | (high << 4)
    if bits == 6:  # three bytes for four codes: the fourth is spread over the top two bits of the others
        a, b, c, d = codes.chunk(4, 1)
        return torch.cat((a | (d & 3) << 6, b | (d >> 2 & 3) << 6, c | (d >> 4) << 6), 1)
    raise ValueError(f"codes have 4, 6 or 8 bits, not {bits}")


def stretch(packed: Tensor, bits: int) -> Tensor:
    """Undo `squeeze`: packed bytes -> one code a byte."""
    if bits == 8:
        return packed
    if bits == 4:
        return torch.cat((packed & 15, packed >> 4), 1)
    if bits == 6:
        a, b, c = packed.chunk(3, 1)
        return torch.cat((a & 63, b & 63, c & 63, a >> 6 | (b >> 6) << 2 | (c >> 6) << 4), 1)
    raise ValueError(f"codes have 4, 6 or 8 bits, not {bits}")


def to_file(name: str, packed: Packed, bits: int) -> dict[str, Tensor]:
    """The three tensors of a packed matrix under their names in a file."""
    return {f"{name}.q{bits}": packed.codes, f"{name}.scale": packed.scale, f"{name}.min": packed.min}


def from_file(tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """All tensors of a file under their plain names, packed ones restored, as `dtype`.

    All are copies: one that lay in the file would keep all of it in memory (178 MB of the language model for 61 norms).
    """
    out = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition(".")
        if kind in ("q4", "q6", "q8"):
            packed = Packed(tensor, tensors[f"{name}.scale"], tensors[f"{name}.min"])
            out[name] = unpack(packed, int(kind[1:])).to(dtype)
        elif f"{name}.q4" not in tensors and f"{name}.q6" not in tensors and f"{name}.q8" not in tensors:
            out[key] = tensor.to(dtype, copy=True)
    return out


def load_trained(path: Path) -> dict[str, Tensor]:
    """The trained parts of an embedded model, as `training.ship` wrote them: float32 under `EmbeddedNet`'s names.

    LoRA stays apart: for each `<layer>.lora_a` (rank, columns) and `<layer>.lora_b` (rows, rank), the language model's
    `<layer>.weight` lacks `lora_scale * lora_b @ lora_a` (`lora_scale` is in the .json beside the file).
    FileNotFoundError without the file, SafetensorError for a damaged one.
    """
    out = {}
    for name, tensor in from_file(load_file(path)).items():
        plain = name.removesuffix(".t")
        out[plain] = tensor if plain == name else tensor.T.contiguous()
    return out
