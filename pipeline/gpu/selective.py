"""A Triton kernel of Mamba-1's selective scan (Mamba, arXiv 2312.00752, eq. 2): forward, from a state and to a state.

`layers/mamba1.py: selective_scan` is the plain torch code beside it that is always right. Every channel and state has
its own decay, so nothing here is a matrix product: a program walks the tokens of some channels in order, as the
recurrence is written, with the states in registers and in fp32. What the next tokens need is read before the last ones
are worked at, so that nobody waits for memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 32  # of one program


def selective_scan(
    u_BTGC: Tensor, dt_BTGC: Tensor, A_GCN: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, D_GC: Tensor
) -> Tensor:
    """As `layers/mamba1.py: selective_scan`: of closed clips, from zeros."""
    return selective_scan_from(None, u_BTGC, dt_BTGC, A_GCN, B_BTGN, C_BTGN, D_GC)[0]


def selective_scan_from(
    state_BGCN: Tensor | None,
    u_BTGC: Tensor,
    dt_BTGC: Tensor,
    A_GCN: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    D_GC: Tensor,
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t A) h_(t-1) + dt_t u_t B_t, y_t = h_t C_t + D u_t: y (B, T, G, C) in u's dtype and the last h.

    state: h before the first token, fp32; None: zeros. The last one (B, G, C, N) is in fp32.
    """
    (batch, T, groups, channels), N = u_BTGC.shape, A_GCN.shape[-1]
    u, dt, A, B, C, D = (x.contiguous() for x in (u_BTGC, dt_BTGC, A_GCN, B_BTGN, C_BTGN, D_GC))
    y, last = torch.empty_like(u), u.new_empty(batch, groups, channels, N, dtype=torch.float32)
    first = last if state_BGCN is None else state_BGCN.float().contiguous()
    _walk[(triton.cdiv(channels, CHANNELS), groups, batch)](
        u,
        dt,
        A,
        B,
        C,
        D,
        first,
        y,
        last,
        T,
        channels,
        N,
        state_BGCN is not None,
        CHANNELS,
        triton.next_power_of_2(N),
        num_warps=1,
    )
    return y, last


@triton.jit(do_not_specialize=["T"])
def _walk(
    u,
    dt,
    A,
    B,
    C,
    D,
    first,
    y,
    last,
    T,
    channels,
    N,
    FROM_STATE: tl.constexpr,
    CHANNELS: tl.constexpr,
    STATES: tl.constexpr,
):
    """Some channels of one direction of one clip, two tokens at a time."""
    clip, group, groups = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    c, n = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATES)
    in_c, in_n = c < channels, n < N
    inside, own = in_c[:, None] & in_n[None, :], (group * channels + c)[:, None] * N + n[None, :]
    decay = tl.load(A + own, inside, 0.0).to(tl.float32)
    skip = tl.load(D + group * channels + c, in_c, 0.0).to(tl.float32)
    state = clip * groups * channels * N + own
    h = tl.zeros([CHANNELS, STATES], tl.float32)
    if FROM_STATE:
        h = tl.load(first + state, inside, 0.0)
    wide, narrow = groups * channels, groups * N  # from token to token
    start = clip * T
    u_at, b_at = start * wide + group * channels + c, start * narrow + group * N + n
    u_0, dt_0, b_0, c_0 = _read(u, dt, B, C, u_at, b_at, in_c & (T > 0), in_n & (T > 0))
    u_1, dt_1, b_1, c_1 = _read(u, dt, B, C, u_at + wide, b_at + narrow, in_c & (T > 1), in_n & (T > 1))
    for t in range(0, T, 2):
        u_2, dt_2, b_2, c_2 = _read(
            u, dt, B, C, u_at + 2 * wide, b_at + 2 * narrow, in_c & (t + 2 < T), in_n & (t + 2 < T)
        )
        u_3, dt_3, b_3, c_3 = _read(
            u, dt, B, C, u_at + 3 * wide, b_at + 3 * narrow, in_c & (t + 3 < T), in_n & (t + 3 < T)
        )
        h = tl.exp(dt_0[:, None] * decay) * h + (dt_0 * u_0)[:, None] * b_0[None, :]
        y_0 = tl.sum(h * c_0[None, :], 1) + skip * u_0
        h = tl.exp(dt_1[:, None] * decay) * h + (dt_1 * u_1)[:, None] * b_1[None, :]  # behind the end: a step of 0
        y_1 = tl.sum(h * c_1[None, :], 1) + skip * u_1
        tl.store(y + u_at, y_0.to(y.dtype.element_ty), in_c)
        tl.store(y + u_at + wide, y_1.to(y.dtype.element_ty), in_c & (t + 1 < T))
        u_0, dt_0, b_0, c_0, u_1, dt_1, b_1, c_1 = u_2, dt_2, b_2, c_2, u_3, dt_3, b_3, c_3
        u_at += 2 * wide
        b_at += 2 * narrow
    tl.store(last + state, h, inside)


@triton.jit
def _read(u, dt, B, C, u_at, b_at, in_c, in_n):
    """One token's inputs, zeros where there is none: those leave the state alone."""
    return (
        tl.load(u + u_at, in_c, 0.0).to(tl.float32),
        tl.load(dt + u_at, in_c, 0.0).to(tl.float32),
        tl.load(B + b_at, in_n, 0.0).to(tl.float32),
        tl.load(C + b_at, in_n, 0.0).to(tl.float32),
    )
