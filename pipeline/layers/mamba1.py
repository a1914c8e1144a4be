"""The Mamba-1 mixer that looks both ways along a closed clip (Vim, arXiv 2401.09417; VideoMamba, arXiv 2403.06977).

A selective scan (Mamba, arXiv 2312.00752, eq. 2) has its own decay for every channel and state, so it is no matrix
product as Mamba-2's is. Nothing is carried from call to call: every token depends on the clip's last one.

Letters beyond the key of pipeline/stream.py: C channels, R rank of the step's projection; G here is the direction, 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gpu.dispatch import clip_kernels, kernels_for
from pipeline.layers.mamba2 import causal_conv


def selective_scan(
    u_BTGC: Tensor, dt_BTGC: Tensor, A_GCN: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, D_GC: Tensor
) -> Tensor:
    """h_t = exp(dt_t A) h_(t-1) + dt_t u_t B_t, y_t = h_t C_t + D u_t, from zeros; y (B, T, G, C) in u's dtype.

    In fp32 or better. The tokens lie in about sqrt(T) blocks that are walked side by side: once from zeros for what
    each block adds and decays, then from the states at their beginnings. 3 sqrt(T) steps instead of T.
    """
    if kernels := clip_kernels(u_BTGC):
        return kernels.selective_scan(u_BTGC, dt_BTGC, A_GCN, B_BTGN, C_BTGN, D_GC)
    wide, T = torch.promote_types(u_BTGC.dtype, torch.float32), u_BTGC.shape[1]
    block = math.isqrt(T - 1) + 1
    u, dt, B, C = (
        F.pad(x.to(wide), (0, 0, 0, 0, 0, -T % block)).unflatten(1, (-1, block))  # a step of 0 leaves the state alone
        for x in (u_BTGC, dt_BTGC, B_BTGN, C_BTGN)
    )
    A = A_GCN.to(wide)
    zeros = u.new_zeros(*u.shape[:2], *A.shape)  # B blocks G C N
    _, added = _walk(zeros, u, dt, A, B, None)
    decay = (dt.sum(2)[..., None] * A).exp()
    starts = [zeros[:, 0]]
    for n in range(u.shape[1] - 1):
        starts.append(decay[:, n] * starts[-1] + added[:, n])
    y, _ = _walk(torch.stack(starts, dim=1), u, dt, A, B, C)
    return (y + D_GC.to(wide) * u).flatten(1, 2)[:, :T].to(u_BTGC.dtype)


def _walk(h: Tensor, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """All blocks from the states `h`, token by token: outputs shaped like u (where C is given) and the last states."""
    outputs = []
    for t in range(u.shape[2]):
        h = (dt[:, :, t, ..., None] * A).exp() * h
        h = h + (dt[:, :, t] * u[:, :, t])[..., None] * B[:, :, t, :, None]
        if C is not None:
            outputs.append((h * C[:, :, t, :, None]).sum(-1))
    return torch.stack(outputs, dim=2) if outputs else None, h


class BidirectionalMamba1(nn.Module):
    """Both directions of a closed clip, summed. Parameter names and shapes equal VideoMamba's (`*_b` is backward)."""

    def __init__(self, width: int, expand: int = 2, d_state: int = 16, d_conv: int = 4, dt_rank: int | None = None):
        super().__init__()
        inner, rank = expand * width, dt_rank or math.ceil(width / 16)
        self.rank, self.d_state = rank, d_state
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d, self.conv1d_b = (nn.Conv1d(inner, inner, d_conv, groups=inner) for _ in range(2))
        self.x_proj, self.x_proj_b = (nn.Linear(inner, rank + 2 * d_state, bias=False) for _ in range(2))
        self.dt_proj, self.dt_proj_b = (nn.Linear(rank, inner) for _ in range(2))
        decay = torch.arange(1.0, d_state + 1).log().repeat(inner, 1)
        self.A_log, self.A_b_log = (nn.Parameter(decay.clone()) for _ in range(2))
        self.D, self.D_b = (nn.Parameter(torch.ones(inner)) for _ in range(2))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) of whole clips, as many as there are."""
        u, z = self.in_proj(x_BTD).chunk(2, dim=-1)
        ways = [
            self._direction(u, self.conv1d, self.x_proj, self.dt_proj),
            self._direction(u.flip(1), self.conv1d_b, self.x_proj_b, self.dt_proj_b),
        ]
        u_BTGC, dt_BTGC, B_BTGN, C_BTGN = (torch.stack(pair, dim=2) for pair in zip(*ways))
        A_GCN = -torch.stack([self.A_log, self.A_b_log]).to(torch.promote_types(u.dtype, torch.float32)).exp()
        y = selective_scan(u_BTGC, dt_BTGC, A_GCN, B_BTGN, C_BTGN, torch.stack([self.D, self.D_b]))
        return self.out_proj((y[:, :, 0] + y[:, :, 1].flip(1)) * F.silu(z))

    def _direction(self, u: Tensor, conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear) -> tuple[Tensor, ...]:
        """u, dt, B and C of one direction's scan."""
        tail = u.new_zeros(len(u), conv.weight.shape[-1] - 1, u.shape[-1])
        kernels = kernels_for(u)
        u, _ = (kernels.causal_conv if kernels else causal_conv)(u, tail, conv.weight, conv.bias)
        dt, B, C = x_proj(u).split([self.rank, self.d_state, self.d_state], dim=-1)
        return u, F.softplus(dt_proj(dt)), B, C
