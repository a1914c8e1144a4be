"""What the graphics card is like, and how tensors travel to it without anybody waiting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

TILE = 64  # slots of the memory, and tokens of the scan, that one step reads


@cache
def gpu_size(device: torch.device) -> tuple[int, bool]:
    """How many programs to start at once (two on each multiprocessor), and whether shared memory is large.

    Large is 160 KB and more (A100, H100, B200); desktop and Blackwell-workstation GPUs have 99 KB.
    """
    if device.type != "cuda":  # Triton's interpreter
        return 8, True
    properties = torch.cuda.get_device_properties(device)
    shared = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub forgets it
    return 2 * properties.multi_processor_count, shared >= 160 * 1024


def precision(x: Tensor) -> str:
    """Of fp32 matrix products: one tf32 product has 10 bits and misses 1e-4; three of them make 21."""
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`; nobody waits. A plain copy to a GPU waits for all that it still has to do.

    From page-locked memory the copy is queued like a kernel. torch keeps that memory until the copy has happened.
    """
    if tensor.is_cuda or torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pictures_sent(pictures: Sequence[np.ndarray], device: torch.device | str) -> Tensor:
    """uint8 pictures of one size, one upon the other, on `device`; nobody waits, and they are copied once."""
    shape, waits = (len(pictures), *pictures[0].shape), torch.device(device).type != "cuda"
    stack = torch.empty(shape, dtype=torch.uint8, pin_memory=not waits)
    np.stack(pictures, out=stack.numpy())
    return stack if waits else stack.to(device, non_blocking=True)


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all numbers of these tensors are finite, () bool: a maximum keeps a NaN. In three launches and not five a
    tensor: a live chunk's 27 states took a processor longer to test than to watch."""
    return torch.stack(torch._foreach_norm(list(tensors), math.inf)).isfinite().all()


def told_later(flag: Tensor) -> Callable[[], bool]:
    """What the flag says, for later: the call waits for the work that makes the flag, and for nothing after it."""
    if not flag.is_cuda:
        return lambda: bool(flag)
    host, made = torch.empty((), dtype=torch.bool, pin_memory=True), torch.cuda.Event()
    host.copy_(flag, non_blocking=True)
    made.record()

    def told() -> bool:
        made.synchronize()
        return bool(host)

    return told
