"""Triton kernels of products with 8-bit weights, for a few rows: an answer's word waits for the weights to be read.

`layers/int8.py: Int8Linear.forward` is the plain torch code beside them that is always right.
Sums are in fp32 and are scaled last, so that they are nearer to the 8-bit weights than those restored in bf16.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from pipeline.gpu.device import precision

MOST_ROWS = 64  # with more, restoring the weight and torch's own product is faster


def int8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) times scale (out,) * codes (out, in) transposed, plus bias: (..., out) in x's type."""
    (N, K), rows = codes.shape, x.reshape(-1, x.shape[-1])
    M = len(rows)
    if not 0 < M <= MOST_ROWS:
        return F.linear(x, restored(codes, scale, x.dtype), bias)
    rows, out = rows if rows.stride(1) == 1 else rows.contiguous(), x.new_empty(*x.shape[:-1], N)
    arguments = rows, codes, scale, scale if bias is None else bias, out, M, N, K, rows.stride(0), bias is not None
    if M == 1:
        columns, step, stages = 4, 1024, 3
        _one_row[(triton.cdiv(N, columns),)](*arguments, columns, step, K % step == 0, stages)
    else:
        columns, step, stages = 32, 128, 3  # 99 KB of shared memory are enough
        _few_rows[(triton.cdiv(N, columns),)](
            *arguments, max(16, triton.next_power_of_2(M)), columns, step, K % step == 0, stages, precision(rows)
        )
    return out


def restored(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """As `layers/int8.py: restored`, which by torch takes four times as long: its mixed product is not vectorised."""
    out, (N, K) = torch.empty_like(codes, dtype=dtype), codes.shape
    _restore[(N, triton.cdiv(K, 4096))](codes, scale, out, K, 4096)
    return out


@triton.jit
def _restore(codes, scale, out, K, COLUMNS: tl.constexpr):
    row, k = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    code = tl.load(codes + row * K + k, k < K, 0).to(tl.float32)
    tl.store(out + row * K + k, (code * tl.load(scale + row)).to(out.dtype.element_ty), k < K)


@triton.jit(do_not_specialize=["M"])
def _one_row(
    x,
    codes,
    scale,
    bias,
    out,
    M,
    N,
    K,
    x_row,
    HAS_BIAS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Some outputs of one row. Products add up element by element; only at the end are they summed across threads."""
    n, k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, STEP)
    total, place = tl.zeros([COLUMNS, STEP], tl.float32), codes + n[:, None].to(tl.int64) * K + k[None, :]
    for start in tl.range(0, K, STEP, num_stages=STAGES):
        there = (n < N)[:, None] if EVEN else (n < N)[:, None] & (start + k < K)[None, :]
        code = tl.load(place + start, there, 0).to(tl.float32)
        total += (
            code
            * tl.load(x + start + k, None if EVEN else start + k < K, None if EVEN else 0.0).to(tl.float32)[None, :]
        )
    result = tl.sum(total, 1) * tl.load(scale + n, n < N, 0.0)
    if HAS_BIAS:
        result += tl.load(bias + n, n < N, 0.0).to(tl.float32)
    tl.store(out + n, result.to(out.dtype.element_ty), n < N)


@triton.jit(do_not_specialize=["M"])
def _few_rows(
    x,
    codes,
    scale,
    bias,
    out,
    M,
    N,
    K,
    x_row,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    EVEN: tl.constexpr,
    STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some outputs of all rows, by matrix products."""
    n, k, m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, STEP), tl.arange(0, ROWS)
    total, place = tl.zeros([ROWS, COLUMNS], tl.float32), codes + n[None, :].to(tl.int64) * K + k[:, None]
    for start in tl.range(0, K, STEP, num_stages=STAGES):
        inside = (n < N)[None, :] if EVEN else (n < N)[None, :] & (start + k < K)[:, None]
        real = (m < M)[:, None] if EVEN else (m < M)[:, None] & (start + k < K)[None, :]
        rows = tl.load(x + m[:, None] * x_row + start + k[None, :], real, 0.0)
        total += tl.dot(rows, tl.load(place + start, inside, 0).to(rows.dtype), input_precision=PRECISION)
    total *= tl.load(scale + n, n < N, 0.0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + n, n < N, 0.0).to(tl.float32)[None, :]
    tl.store(out + m[:, None] * N + n[None, :], total.to(out.dtype.element_ty), (m < M)[:, None] & (n < N)[None, :])
