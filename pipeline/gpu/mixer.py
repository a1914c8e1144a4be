"""Triton kernels of the Mamba-2 mixer: what lies between its two projections, the scan above all.

`layers/mamba2.py` holds the plain torch code beside them that is always right. Sizes: P and N are the widths of a head
and of its state, L the tokens of one SSD block, G the groups that share B and C. Sums are in fp32; the operands of
matrix products are in the model's type, as in the torch code.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.gpu.convolution import causal_conv
from pipeline.gpu.device import TILE, gpu_size, precision
from pipeline.gpu.pointwise import gated_norm
from pipeline.gpu.scan_inputs import ScanInputs

SSD_BLOCK = 256
# Lengths are not specialised on (`do_not_specialize`): a kernel compiled anew in mid-stream is a second of silence.


def mixer(
    projected_BTE: Tensor,
    conv_BKC: Tensor,
    ssm_BHPN: Tensor,
    *,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor | None,
    norm_weight: Tensor | None,
    groups: int,
    dt_limit: tuple[float, float],
    eps: float,
    norm_before_gate: bool,
    defer_norm: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """What `Mamba2Mixer.forward` does between its two projections, within the rounding of the model's type.

    Returns y (B, T, H * P), sums of squares (B, T, H) or None, and the new conv and ssm states. projected: z, xBC and
    dt side by side. defer_norm: the out-projection has no bias, so the norm may be finished after it.

    With one group and the gate before the norm (as published) that norm costs no pass of its own: the scan's last
    kernel gates and weighs its rows and sums their squares. The factor that is left, one per row, passes through the
    out-projection unchanged and is multiplied where the residual is added (`scaled_rows`). Where the sums are None, y
    is whole.
    """
    (_, heads, P, N) = ssm_BHPN.shape
    inner = heads * P
    z, xBC, dt = projected_BTE.split([inner, inner + 2 * groups * N, heads], dim=-1)
    xBC, tail = causal_conv(xBC, conv_BKC, conv_weight, conv_bias)
    late = defer_norm and groups == 1 and not norm_before_gate
    gate = (z, norm_weight) if late and norm_weight is not None else None
    y, ssm, squares = ssd(ScanInputs.of_rows(xBC, dt, dt_bias, A_log, ssm_BHPN, D, groups, dt_limit), gate)
    y = y.flatten(-2)
    if gate is not None:
        return y, squares, tail, ssm
    if norm_weight is None:
        return y * torch.nn.functional.silu(z), None, tail, ssm
    return gated_norm(y, z, norm_weight, groups, eps, norm_before_gate), None, tail, ssm


def ssd(inputs: ScanInputs, gate: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As `layers/mamba2.py: scan`: y (B, T, H, P), the state after the last token, and sums of squares.

    gate: z (B, T, H * P) and a norm's weight (H * P,), or None. With it outputs are y silu(z) weight, and the third
    tensor, (B, T, H) in fp32, holds the sums of squares of y silu(z) over each head; it is empty without.

    Four kernels (arXiv 2405.21060, section 6): step sizes and their sums; the state at the beginning of each block of
    L tokens, walked in order; C B^T of each block, which the heads of a group share; the outputs.
    """
    x_BTHP, dt_BTH, dt_bias_H, A_log_H, B_BTGN, C_BTGN, ssm_BHPN, D, dt_limit = inputs
    (batch, T, heads, P), (groups, N) = x_BTHP.shape, B_BTGN.shape[2:]
    L = min(SSD_BLOCK, max(TILE, triton.next_power_of_2(T)))
    blocks = triton.cdiv(T, L)
    new = x_BTHP.new_empty
    dt, sums = (new(batch, heads, blocks * L, dtype=torch.float32) for _ in range(2))
    starts, CB = new(batch, blocks, heads, P, N), new(batch, blocks, groups, L, L)
    y, ssm, ssm_BHPN = new(batch, T, heads, P), torch.empty_like(ssm_BHPN), ssm_BHPN.contiguous()
    p, n, digits = max(16, triton.next_power_of_2(P)), max(16, triton.next_power_of_2(N)), precision(x_BTHP)
    x_strides, b_strides, c_strides = x_BTHP.stride()[:2], B_BTGN.stride()[:2], C_BTGN.stride()[:2]

    _steps[(blocks, triton.cdiv(heads, 8), batch)](
        dt_BTH, dt_bias_H, A_log_H, dt, sums, T, heads, *dt_BTH.stride()[:2], *dt_limit, L, 8
    )
    # H100, 9,568 tokens: 0.117 ms, with steps and parts of 64 0.162. No room for it in fp32 and on small GPUs.
    large = x_BTHP.itemsize == 2 and p <= 64 and gpu_size(x_BTHP.device)[1]
    part, step = (min(n, 128), min(L, 128)) if large else (min(n, 64), TILE)
    _states[(n // part, heads, batch)](
        x_BTHP,
        B_BTGN,
        dt,
        sums,
        ssm_BHPN,
        starts,
        ssm,
        T,
        heads,
        *x_strides,
        *b_strides,
        blocks,
        heads // groups,
        P,
        N,
        L,
        step,
        p,
        part,
        digits,
        num_stages=3,
    )
    _products[((L // TILE) ** 2, blocks, batch * groups)](
        B_BTGN, C_BTGN, CB, T, groups, blocks, *b_strides, *c_strides, N, L, TILE, n, digits
    )
    z, weight = gate or (x_BTHP, dt_bias_H)  # of any tensor, where there is no gate: never read
    squares = new(batch, T, heads if gate else 0, dtype=torch.float32)
    # All in the grid's first axis: the second ends at 65,535, which 112 heads pass at 149,760 tokens in one call.
    _outputs[(L // TILE * blocks * heads, batch)](
        x_BTHP,
        C_BTGN,
        CB,
        dt,
        sums,
        starts,
        dt_bias_H if D is None else D,
        z,
        weight,
        y,
        squares,
        T,
        heads,
        *x_strides,
        *c_strides,
        *z.stride()[:2],
        blocks,
        heads // groups,
        D is not None,
        D is not None and D.numel() > heads,
        gate is not None,
        P,
        N,
        L,
        TILE,
        TILE,
        p,
        n,
        digits,
        num_stages=1,  # H100, 9,568 tokens: 0.30 ms, against 0.42 with three stages and 0.65 with four
    )
    return y, ssm, squares


@triton.jit(do_not_specialize=["T"])
def _steps(raw, bias, A_log, dt, sums, T, heads, raw_batch, raw_row, low, high, L: tl.constexpr, HEADS: tl.constexpr):
    """dt = softplus(raw + bias) within its limits, 0 behind the end, and the running sums of dt A inside each block."""
    batch, block = tl.program_id(2).to(tl.int64), tl.program_id(0)
    h = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    row = block * L + tl.arange(0, L)
    inside = (row < T)[:, None] & (h < heads)[None, :]
    v = tl.load(raw + batch * raw_batch + row[:, None].to(tl.int64) * raw_row + h[None, :], inside, 0.0).to(tl.float32)
    v += tl.load(bias + h, h < heads, 0.0).to(tl.float32)[None, :]
    asked = v
    e = tl.exp(tl.minimum(v, 20.0))
    small = e * (1 - e * (0.5 - e * (1 / 3 - e * (0.25 - e * 0.2))))  # log(1 + e), where 1 + e would round e away
    v = tl.where(v > 20.0, v, tl.where(e < 0.05, small, tl.log(1 + e)))
    limited = tl.minimum(tl.maximum(v, low), high)
    # Every min and max on a GPU swallows a NaN, the one inside exp too, and nobody would know: so ask the first value.
    v = tl.where(inside, tl.where(asked == asked, limited, asked), 0.0)
    A = -tl.exp(tl.load(A_log + h, h < heads, 0.0).to(tl.float32))
    place = (batch * heads + h[None, :]) * (tl.num_programs(0) * L) + row[:, None]
    tl.store(dt + place, v, (h < heads)[None, :])
    tl.store(sums + place, tl.cumsum(v * A[None, :], 0), (h < heads)[None, :])


@triton.jit(do_not_specialize=["T", "blocks"])
def _states(
    x,
    B,
    dt,
    sums,
    first,
    starts,
    last,
    T,
    heads,
    x_batch,
    x_row,
    b_batch,
    b_row,
    blocks,
    per_group,
    P: tl.constexpr,
    N: tl.constexpr,
    L: tl.constexpr,
    TILE: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One head's state (or some rows and columns of it) walks through the chunk, step by step, in fp32 registers."""
    batch, head, halves = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.cdiv(P, BP)
    p = tl.program_id(0) % halves * BP + tl.arange(0, BP)
    n = tl.program_id(0) // halves * BN + tl.arange(0, BN)
    in_p, in_n = p < P, n < N
    at = p[:, None] * N + n[None, :]
    inside = in_p[:, None] & in_n[None, :]
    h = tl.load(first + (batch * heads + head) * P * N + at, inside, 0.0).to(tl.float32)
    x += batch * x_batch + head * P
    B += batch * b_batch + (head // per_group) * N
    dt += (batch * heads + head) * blocks * L
    sums += (batch * heads + head) * blocks * L
    for start in range(0, T, TILE):
        if start % L == 0:
            place = starts + ((batch * blocks + start // L) * heads + head) * P * N + at
            tl.store(place, h.to(starts.dtype.element_ty), inside)
        t = start + tl.arange(0, TILE)
        before = tl.load(sums + start - 1, start % L > 0, 0.0)
        end = tl.load(sums + start + TILE - 1)
        weight = tl.load(dt + t) * tl.exp(end - tl.load(sums + t))
        x_tile = tl.load(x + t[None, :].to(tl.int64) * x_row + p[:, None], (t < T)[None, :] & in_p[:, None], 0.0)
        b_tile = tl.load(B + t[:, None].to(tl.int64) * b_row + n[None, :], (t < T)[:, None] & in_n[None, :], 0.0)
        weighted = (x_tile.to(tl.float32) * weight[None, :]).to(b_tile.dtype)
        h = h * tl.exp(end - before) + tl.dot(weighted, b_tile, input_precision=PRECISION)
    tl.store(last + (batch * heads + head) * P * N + at, h, inside)


@triton.jit(do_not_specialize=["T", "blocks"])
def _products(
    B,
    C,
    CB,
    T,
    groups,
    blocks,
    b_batch,
    b_row,
    c_batch,
    c_row,
    N: tl.constexpr,
    L: tl.constexpr,
    TILE: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """C_m . B_k of one tile of a block; tiles above the diagonal are never read, so never written."""
    batch, group = (tl.program_id(2) // groups).to(tl.int64), tl.program_id(2) % groups
    block, i, j = tl.program_id(1), tl.program_id(0) // (L // TILE), tl.program_id(0) % (L // TILE)
    if j <= i:
        m, k, n = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE), tl.arange(0, BN)
        row_m, row_k = block * L + m, block * L + k
        c_place = C + batch * c_batch + row_m[:, None].to(tl.int64) * c_row + group * N + n[None, :]
        b_place = B + batch * b_batch + row_k[None, :].to(tl.int64) * b_row + group * N + n[:, None]
        c_tile = tl.load(c_place, (row_m < T)[:, None] & (n < N)[None, :], 0.0)
        b_tile = tl.load(b_place, (row_k < T)[None, :] & (n < N)[:, None], 0.0)
        place = CB + ((batch * blocks + block) * groups + group) * L * L + m[:, None] * L + k[None, :]
        tl.store(place, tl.dot(c_tile, b_tile, input_precision=PRECISION).to(CB.dtype.element_ty))


@triton.jit(do_not_specialize=["T", "blocks"])
def _outputs(
    x,
    C,
    CB,
    dt,
    sums,
    starts,
    D,
    z,
    weight,
    y,
    squares,
    T,
    heads,
    x_batch,
    x_row,
    c_batch,
    c_row,
    z_batch,
    z_row,
    blocks,
    per_group,
    HAS_D: tl.constexpr,
    D_PER_CHANNEL: tl.constexpr,
    GATED: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BP: tl.constexpr,
    BN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What ROWS tokens get: from the state at their block's beginning, from the block so far, and D x; then the gate.

    Tokens of the block before these rows are weighted by their decay to where the rows begin, and the sum by the rows'
    decay from there: C B^T goes into the product as it is. Both factors are at most 1, so neither can overflow.
    """
    batch, i, place = tl.program_id(1).to(tl.int64), tl.program_id(0) % (L // ROWS), tl.program_id(0) // (L // ROWS)
    block, head = place // heads, place % heads
    group = head // per_group
    m = i * ROWS + tl.arange(0, ROWS)
    row, p, n = block * L + m, tl.arange(0, BP), tl.arange(0, BN)
    here, in_p, in_n = row < T, p < P, n < N
    x += batch * x_batch + head * P
    dt += (batch * heads + head) * blocks * L + block * L
    sums += (batch * heads + head) * blocks * L + block * L
    CB += ((batch * blocks + block) * (heads // per_group) + group) * L * L
    if GATED:  # read long before it is needed, so that nobody waits for it
        z_place = z + batch * z_batch + row[:, None].to(tl.int64) * z_row + head * P + p[None, :]
        gate = tl.load(z_place, here[:, None] & in_p[None, :], 0.0)
    sum_m, sum_i = tl.load(sums + m), tl.load(sums + i * ROWS - 1, i > 0, 0.0)
    c_place = C + batch * c_batch + row[:, None].to(tl.int64) * c_row + group * N + n[None, :]
    c_tile = tl.load(c_place, here[:, None] & in_n[None, :], 0.0)
    s_place = starts + ((batch * blocks + block) * heads + head) * P * N + p[None, :] * N + n[:, None]
    s_tile = tl.load(s_place, in_n[:, None] & in_p[None, :], 0.0)
    total = tl.dot(c_tile, s_tile, input_precision=PRECISION) * tl.exp(sum_i)
    for start in range(0, i * ROWS, KEYS):
        k = start + tl.arange(0, KEYS)
        past = k < i * ROWS  # all of them, unless KEYS are more than ROWS: C B^T of later ones was never written
        x_place = x + (block * L + k)[:, None].to(tl.int64) * x_row + p[None, :]
        x_tile = tl.load(x_place, (past & (block * L + k < T))[:, None] & in_p[None, :], 0.0)
        fade = tl.where(past, tl.load(dt + k) * tl.exp(sum_i - tl.load(sums + k)), 0.0)
        cb_tile = tl.load(CB + m[:, None] * L + k[None, :], past[None, :], 0.0)
        faded = (x_tile.to(tl.float32) * fade[:, None]).to(x_tile.dtype)
        total += tl.dot(cb_tile, faded, input_precision=PRECISION)
    total *= tl.exp(sum_m - sum_i)[:, None]
    x_place = x + row[:, None].to(tl.int64) * x_row + p[None, :]
    x_tile = tl.load(x_place, here[:, None] & in_p[None, :], 0.0)
    decay = tl.where(m[:, None] >= m[None, :], sum_m[:, None] - tl.load(sums + m)[None, :], float("-inf"))
    weights = tl.load(CB + m[:, None] * L + m[None, :]).to(tl.float32) * tl.exp(decay) * tl.load(dt + m)[None, :]
    if HAS_D and not D_PER_CHANNEL:  # D x, as part of what the token gets from itself
        weights += tl.where(m[:, None] == m[None, :], tl.load(D + head).to(tl.float32), 0.0)
    total += tl.dot(weights.to(x_tile.dtype), x_tile, input_precision=PRECISION)
    if D_PER_CHANNEL:
        total += x_tile.to(tl.float32) * tl.load(D + head * P + p, in_p, 0.0).to(tl.float32)[None, :]
    if GATED:
        gate = gate.to(tl.float32)
        total *= gate / (1 + tl.exp(-gate))
        tl.store(squares + (batch * T + row) * heads + head, tl.sum(total * total, 1), here)
        total *= tl.load(weight + head * P + p, in_p, 0.0).to(tl.float32)[None, :]
    place = y + ((batch * T + row[:, None]) * heads + head) * P + p[None, :]
    tl.store(place, total.to(y.dtype.element_ty), here[:, None] & in_p[None, :])
