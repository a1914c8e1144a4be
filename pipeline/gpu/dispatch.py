"""The one place that chooses who computes: the own Triton kernels, the published ones, or plain torch, always right.

Callers ask for the kernels that can run a call and fall back to their own plain code when there are none:

    if kernels := kernels_for(x):
        return kernels.rms_norm(x, self.weight, self.eps)
    ...  # plain torch

    own         `pipeline/gpu/kernels.py` lists them, each with its plain twin
    published   mamba-ssm and causal-conv1d run the mixers (`pipeline/gpu/published.py`), all else is as with own
    torch       no kernels at all
    auto        what runs of these, in this order; the scan of Mamba-1 by the published one where that is installed

The choice is the whole process's. Where kernels were to be expected on a GPU but cannot run, that is logged once with
the reason.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from pipeline.gpu.device import TILE, gpu_size

log = logging.getLogger(__name__)

CHOICES = ("auto", "own", "published", "torch")
VARIABLE = "VAMBA_KERNELS"  # says it where nobody calls `choose`
LEAST_CAPABILITY = (8, 0)  # tensor cores that know bf16
FP8_CAPABILITY = (9, 0)  # and e4m3 with a scale for every row (H100)
LARGEST_HEAD, LARGEST_STATE = 128, 256  # of a mixer: wider ones do not fit one tile
LARGEST_ROW = 16_384  # of a norm: one program holds a whole row
LARGEST_CONV = 4  # width of the convolution
HEAD_WIDTHS = (16, 32, 64, 128, 256)  # of attention
_chosen: str | None = None  # by `choose`
_override: str | None = None


class Refused(ValueError):
    """A choice that cannot be. The message is one sentence of cause, consequence and cure."""


def choose(kernels: str | None = None, environment: Mapping[str, str] = os.environ) -> None:
    """Lets these kernels (of CHOICES) compute from now on. None: what was chosen before, or what VAMBA_KERNELS says.

    Raises Refused where there is no such choice, or where it cannot run on this machine; then nothing changes.
    """
    global _chosen
    wanted = kernels or _chosen or environment.get(VARIABLE) or CHOICES[0]
    if wanted not in CHOICES:
        known = f"{', '.join(CHOICES[:-1])} or {CHOICES[-1]}"
        raise Refused(f"There are no kernels called {wanted[:40]!r}, so nothing was done; choose {known}.")
    require(wanted)
    _chosen = wanted


def require(kernels: str) -> None:
    """Refused unless these kernels run on this machine."""
    missing = _own() if kernels == "own" else _published() if kernels == "published" else None
    if isinstance(missing, str):
        cure = "choose auto, or see requirements-gpu.txt" if kernels == "published" else "choose auto or torch"
        raise Refused(f"The {kernels} kernels cannot run here ({missing}), so nothing was done; {cure}.")


def require_fp8(device: torch.device) -> None:
    """Refused unless products in 8-bit floating point run there."""
    if isinstance(missing := _fp8(device), str):
        raise Refused(
            f"8-bit floating point needs an NVIDIA GPU of compute capability 9 or newer (H100), and {missing}, "
            "so nothing was loaded; leave fp8 out, or choose int8."
        )


def chosen() -> str:
    """What runs the mixers on this machine's GPU: "own", "published" or "torch"."""
    if (wanted := _wanted()) != "auto":
        return wanted
    if isinstance(_own(), ModuleType):
        return "own"
    return "published" if isinstance(_published(), ModuleType) else "torch"


def has_kernels(device: torch.device) -> bool:
    """Whether the own kernels run there, for whatever part of a model."""
    return device.type == "cuda" and _wanted() != "torch" and isinstance(_own(), ModuleType)


def backend(device: torch.device) -> str:
    """Which code runs the mixers there, in words for the page, `ask --json` and the bench."""
    used = chosen() if device.type == "cuda" or _override else "torch"
    if used == "published" and isinstance(found := _published(), ModuleType):
        return found.NAME
    return {"own": "Triton kernels", "published": "published kernels", "torch": "plain torch"}[used]


@contextmanager
def override(choice: str) -> Iterator[None]:
    """For tests and the bench: these, on whatever device (Triton's interpreter runs kernels on a CPU)."""
    global _override
    before, _override = _override, choice
    try:
        yield
    finally:
        _override = before


def kernels_for(x: Tensor) -> ModuleType | None:
    """`pipeline.gpu.kernels` where they can run an inference on `x`; None leaves it to the caller's torch code.

    Triton launches on the current device, whatever device the tensors are on.
    """
    if not _inferred(x) or _wanted() == "torch":
        return None
    if _override == "own":
        return import_module("pipeline.gpu.kernels")
    return _here(x, _own()) if x.is_cuda else None


def mixer_kernels(x: Tensor, conv: Tensor, ssm: Tensor, groups: int) -> ModuleType | None:
    """What can run a Mamba-2 mixer on `x`, with its carried states: `mixer`, `causal_conv`, `ssd` and `gated_norm`.

    That is `pipeline.gpu.kernels` or, of the same names and arguments, `pipeline.gpu.published`.
    """
    published = chosen() == "published"
    if (kernels := _published_for(x) if published else kernels_for(x)) is None:
        return None
    (_, heads, P, N), width = ssm.shape, conv.shape[1] + 1
    fits = P <= LARGEST_HEAD and N <= LARGEST_STATE and heads * P // groups <= LARGEST_ROW and width <= LARGEST_CONV
    if not fits or not (published or gpu_size(x.device)[1] or N * x.itemsize <= 256):
        _tell(f"A mixer with heads of {P}, states of {N}, {groups} groups and a convolution of {width} is too large")
        return None
    return kernels


def clip_kernels(x: Tensor) -> ModuleType | None:
    """What can run the scan of a Mamba-1 mixer over closed clips: `selective_scan`, the published one where it is."""
    wanted = _wanted()
    if wanted == "published" or (wanted == "auto" and isinstance(_published(), ModuleType)):
        kernels = _published_for(x)
        if kernels is not None and kernels.scans_clips():
            return kernels
    return kernels_for(x)


def attention_kernels(q_HQP: Tensor, slots: int, block_slots: int) -> ModuleType | None:
    """The same for attention of these queries over so many slots of a memory, in blocks of `block_slots`."""
    kernels, P = kernels_for(q_HQP), q_HQP.shape[-1]
    if kernels is None or not slots:
        return None
    fits = P * q_HQP.itemsize <= (512 if gpu_size(q_HQP.device)[1] else 256)
    if not fits or block_slots % TILE or P not in HEAD_WIDTHS:
        _tell(f"Attention with heads of {P} over a memory in blocks of {block_slots} slots does not fit")
        return None
    return kernels


def fp8_kernels(x: Tensor, dtype: torch.dtype, weight: tuple[int, ...] = (16, 16)) -> ModuleType | None:
    """The same for products of x with a weight (out, in), both in e4m3, with results in `dtype`; x: rounded or not."""
    if dtype != torch.bfloat16 or any(size % 16 for size in weight) or isinstance(_fp8(x.device), str):
        return None
    return kernels_for(x)


def _wanted() -> str:
    return _override or _chosen or os.environ.get(VARIABLE) or CHOICES[0]


def _inferred(x: Tensor) -> bool:
    """No kernel knows fp64 or gradients."""
    return x.dtype != torch.float64 and not torch.is_grad_enabled()


def _published_for(x: Tensor) -> ModuleType | None:
    if not _inferred(x):
        return None
    if _override == "published":
        return import_module("pipeline.gpu.published")
    return _here(x, _published()) if x.is_cuda else None


def _here(x: Tensor, found: ModuleType | str) -> ModuleType | None:
    """These kernels, if tensors lie where they would be launched; otherwise it is told why not."""
    if isinstance(found, str):
        if torch.cuda.is_available():
            _tell(found[:1].upper() + found[1:])
        return None
    if x.device.index != torch.cuda.current_device():
        _tell(f"Tensors lie on {x.device}, which is not the current GPU")
        return None
    return found


@cache
def _own() -> ModuleType | str:
    """The own kernels, or why they cannot run on this machine. Found out once."""
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        return f"{torch.cuda.get_device_name()} is older than compute capability 8"
    try:
        return import_module("pipeline.gpu.kernels")
    except ImportError as error:  # no Triton (as on Windows)
        return f"Triton cannot be imported: {error}"


@cache
def _fp8(device: torch.device) -> ModuleType | str:
    """The kernels of 8-bit floating point, or why they cannot run there. Found out once."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return "the model would run without one here"
    if torch.cuda.get_device_capability(device) < FP8_CAPABILITY:
        return f"{torch.cuda.get_device_name(device)} is older"
    return _own()


@cache
def _published() -> ModuleType | str:
    """The published kernels, or why they cannot run on this machine. Found out once."""
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    try:
        return import_module("pipeline.gpu.published")
    except ImportError as error:
        return f"mamba-ssm cannot be imported: {error}"


@cache
def _tell(reason: str) -> None:
    """Once a reason: silence would hide that the GPU runs several times slower than it could."""
    log.warning("%s, so plain torch code runs there instead of the GPU kernels, several times slower.", reason)
