"""The one place that chooses between the own Triton kernels and plain torch code, which is always right.

Callers ask for the kernels that can run a call and fall back to their own plain code when there are none:

    if kernels := kernels_for(x):
        return kernels.rms_norm(x, self.weight, self.eps)
    ...  # plain torch

`pipeline/gpu/kernels.py` lists all kernels, each with its plain twin. Where a GPU is there and its kernels were to be
expected but cannot run, that is logged once with the reason. VAMBA_LIVE_KERNELS=off forbids the kernels.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from pipeline.gpu.device import TILE, gpu_size

log = logging.getLogger(__name__)

Choice = Literal["own", "torch"]
LEAST_CAPABILITY = (8, 0)  # tensor cores that know bf16
LARGEST_HEAD, LARGEST_STATE = 128, 256  # of a mixer: wider ones do not fit one tile
LARGEST_ROW = 16_384  # of a norm: one program holds a whole row
LARGEST_CONV = 4  # width of the convolution
HEAD_WIDTHS = (16, 32, 64, 128)  # of attention
_override: Choice | None = None


@contextmanager
def override(choice: Choice) -> Iterator[None]:
    """For tests: everything by kernels, on whatever device (Triton's interpreter runs them on a CPU), or nothing."""
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
    if x.dtype == torch.float64 or torch.is_grad_enabled() or _override == "torch":
        return None
    if _override == "own":
        return import_module("pipeline.gpu.kernels")
    if not x.is_cuda or (kernels := _installed()) is None:
        return None
    if x.device.index != torch.cuda.current_device():
        _tell(f"Tensors lie on {x.device}, which is not the current GPU")
        return None
    return kernels


def mixer_kernels(x: Tensor, conv: Tensor, ssm: Tensor, groups: int) -> ModuleType | None:
    """The same for a Mamba-2 mixer on `x`, with its carried states (see `kernels.mixer`)."""
    if (kernels := kernels_for(x)) is None:
        return None
    (_, heads, P, N), width = ssm.shape, conv.shape[1] + 1
    fits = P <= LARGEST_HEAD and N <= LARGEST_STATE and heads * P // groups <= LARGEST_ROW and width <= LARGEST_CONV
    if not fits or not (gpu_size(x.device)[1] or N * x.itemsize <= 256):
        _tell(f"A mixer with heads of {P}, states of {N}, {groups} groups and a convolution of {width} is too large")
        return None
    return kernels


def attention_kernels(q_HQP: Tensor, slots: int, block_slots: int) -> ModuleType | None:
    """The same for attention of these queries over so many slots of a memory, in blocks of `block_slots`."""
    kernels, P = kernels_for(q_HQP), q_HQP.shape[-1]
    if kernels is None or not slots:
        return None
    fits = gpu_size(q_HQP.device)[1] or P * q_HQP.itemsize <= 256
    if not fits or block_slots % TILE or P not in HEAD_WIDTHS:
        _tell(f"Attention with heads of {P} over a memory in blocks of {block_slots} slots does not fit")
        return None
    return kernels


def backend() -> str:
    """Which code runs the mixers on this machine, in words for the page and the bench."""
    chosen = _override or ("own" if _installed() else "torch")
    return "Triton kernels" if chosen == "own" else "plain torch"


@cache
def _installed() -> ModuleType | None:
    """The kernels, if this machine can run them. Found out once."""
    if os.environ.get("VAMBA_LIVE_KERNELS", "on") == "off" or not torch.cuda.is_available():
        return None
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        _tell(f"{torch.cuda.get_device_name()} is older than compute capability 8")
        return None
    try:
        return import_module("pipeline.gpu.kernels")
    except ImportError as error:  # no Triton (as on Windows)
        _tell(f"Triton cannot be imported ({error})")
        return None


@cache
def _tell(reason: str) -> None:
    """Once a reason: silence would hide that the GPU runs several times slower than it could."""
    log.warning("%s, so plain torch code runs there instead of the GPU kernels, several times slower.", reason)
