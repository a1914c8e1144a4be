"""Triton kernels of products with 8-bit weights, for a few rows: an answer's word waits for the weights to be read.

Used through `pipeline.kernels`; `int8.Int8Linear.forward` is the plain torch code beside them that is always right.
Sums are in fp32 and are scaled last, so that they are nearer to the 8-bit weights than those restored in bf16.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pipeline.attention import precision

MOST_ROWS = 64  # with more, restoring the weight and torch's own product is faster


def fits_int8(x: Tensor, codes: Tensor) -> bool:
    """Whether `int8_linear` is the way for these rows. codes: as for it."""
    return 0 < x.numel() // x.shape[-1] <= MOST_ROWS and codes.is_contiguous()


def int8_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) times scale (out,) * codes (out, in) transposed, plus bias: (..., out) in x's type."""
    (N, K), rows = codes.shape, x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    M, out = len(rows), x.new_empty(*x.shape[:-1], N)
    arguments = rows, codes, scale, scale if bias is None else bias, out, M, N, K, rows.stride(0), bias is not None
    if M == 1:
        columns, step, warps, stages = 16, 512, 4, 4
        _one_row[(triton.cdiv(N, columns),)](*arguments, columns, step, K % step == 0, stages, num_warps=warps)
    else:
        columns, step, warps, stages = 16, 256, 4, 4
        tall = max(16, triton.next_power_of_2(M))
        _few_rows[(triton.cdiv(N, columns),)](
            *arguments, tall, columns, step, K % step == 0, stages, precision(rows), num_warps=warps,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["M"])
def _one_row(
    x, codes, scale, bias, out, M, N, K, x_row,
    HAS_BIAS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
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
    x, codes, scale, bias, out, M, N, K, x_row,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, EVEN: tl.constexpr,
    STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
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
