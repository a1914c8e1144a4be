"""A Triton kernel of the mixer's depthwise causal convolution with SiLU, which continues from a carried tail.

`layers/mamba2.py: causal_conv` is the plain torch code beside it that is always right. Sums are in fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def causal_conv(x_BTC: Tensor, tail_BKC: Tensor, weight_C1W: Tensor, bias_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `layers/mamba2.py: causal_conv`, from any rows contiguous in C (a slice of the in-projection, uncopied)."""
    batch, T, channels = x_BTC.shape
    out, tail_BKC = x_BTC.new_empty(batch, T, channels), tail_BKC.contiguous()
    newest, rows, columns = torch.empty_like(tail_BKC), 32, min(512, triton.next_power_of_2(channels))
    _conv[(triton.cdiv(T, rows), triton.cdiv(channels, columns), batch)](
        x_BTC,
        tail_BKC,
        weight_C1W,
        weight_C1W if bias_C is None else bias_C,
        out,
        newest,
        T,
        channels,
        x_BTC.stride(0),
        x_BTC.stride(1),
        bias_C is not None,
        weight_C1W.shape[-1],
        rows,
        columns,
    )
    return out, newest


@triton.jit
def _tap(weight, c, inside, BACK: tl.constexpr, WIDTH: tl.constexpr):
    """What the row BACK rows ago is multiplied by: 0 beyond the convolution's width."""
    return tl.load(weight + c * WIDTH + (WIDTH - 1 - BACK), inside & (BACK < WIDTH), 0.0).to(tl.float32)


@triton.jit
def _above(x, tail, row, T, x_row, channels, c, inside, BEFORE: tl.constexpr):
    """A row of the chunk, or of the tail above it; zeros above both."""
    value = tl.load(x + row.to(tl.int64) * x_row + c, inside & (row >= 0) & (row < T), 0.0)
    return value + tl.load(tail + (row + BEFORE) * channels + c, inside & (row < 0) & (row >= -BEFORE), 0.0)


@triton.jit
def _silu(place, value, inside):
    tl.store(place, (value / (1 + tl.exp(-value))).to(place.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["T"])
def _conv(
    x,
    tail,
    weight,
    bias,
    out,
    newest,
    T,
    channels,
    x_batch,
    x_row,
    HAS_BIAS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some columns of ROWS rows, each read once: those before it stay in registers (row_3 is three above the next).

    Four are read before the first is written, because no load overtakes a store. The last rows are the next tail.
    """
    batch, start = tl.program_id(2).to(tl.int64), tl.program_id(0) * ROWS
    before: tl.constexpr = WIDTH - 1
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = c < channels
    x += batch * x_batch
    tail += batch * before * channels
    w0, w1 = _tap(weight, c, inside, 0, WIDTH), _tap(weight, c, inside, 1, WIDTH)
    w2, w3 = _tap(weight, c, inside, 2, WIDTH), _tap(weight, c, inside, 3, WIDTH)
    offset = tl.load(bias + c, inside, 0.0).to(tl.float32) if HAS_BIAS else w0 * 0
    row_3 = _above(x, tail, start - 3, T, x_row, channels, c, inside, before).to(tl.float32)
    row_2 = _above(x, tail, start - 2, T, x_row, channels, c, inside, before).to(tl.float32)
    row_1 = _above(x, tail, start - 1, T, x_row, channels, c, inside, before).to(tl.float32)
    for k in tl.static_range(0, ROWS, 4):
        here = x + (start + k).to(tl.int64) * x_row + c
        a = tl.load(here, inside & (start + k < T), 0.0).to(tl.float32)
        b = tl.load(here + x_row, inside & (start + k + 1 < T), 0.0).to(tl.float32)
        d = tl.load(here + 2 * x_row, inside & (start + k + 2 < T), 0.0).to(tl.float32)
        e = tl.load(here + 3 * x_row, inside & (start + k + 3 < T), 0.0).to(tl.float32)
        there = out + (batch * T + start + k) * channels + c
        _silu(there, a * w0 + row_1 * w1 + row_2 * w2 + row_3 * w3 + offset, inside & (start + k < T))
        _silu(there + channels, b * w0 + a * w1 + row_1 * w2 + row_2 * w3 + offset, inside & (start + k + 1 < T))
        _silu(there + 2 * channels, d * w0 + b * w1 + a * w2 + row_1 * w3 + offset, inside & (start + k + 2 < T))
        _silu(there + 3 * channels, e * w0 + d * w1 + b * w2 + a * w3 + offset, inside & (start + k + 3 < T))
        row_3, row_2, row_1 = b, d, e
    for k in tl.static_range(before):
        row = T - before + k
        mine = inside & (row < start + ROWS) & ((row >= start) | ((row < 0) & (start == 0)))
        value = _above(x, tail, row, T, x_row, channels, c, mine, before)
        tl.store(newest + (batch * before + k) * channels + c, value, mine)
