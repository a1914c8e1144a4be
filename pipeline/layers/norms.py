"""Norms that several systems share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gpu.dispatch import kernels_for


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32 or better, scaled in the input's type (as Qwen2 and Llama do)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        if kernels := kernels_for(x):
            return kernels.rms_norm(x, self.weight, self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, wide.shape[-1:], eps=self.eps).to(x.dtype) * self.weight
