"""Triton kernels for inference on an NVIDIA GPU: the Mamba-2 mixer, and by name all others.

Every kernel has plain torch code beside it that is always right: `mamba2.Mamba2Mixer.forward`, `memory.Memory._attend`,
`models.vamba.RMSNorm`. They use this file only where CUDA and Triton are. Forward only: training runs the torch code.
Attention over the memory is in pipeline/gpu/attention.py, what works element by element or row by row in
pipeline/gpu/pointwise.py; callers find all of them here.

Why own kernels: the published ones (mamba-ssm, causal-conv1d) need a compiler at install time or a download at run
time, and none of them joins what belongs together here: the convolution with its carried tail, the scan with carried
states, the gate with the norm, and one query's attention over a memory that lies in many blocks.

Sizes: P and N are the widths of a head and of its state, L the tokens of one SSD block. Sums are in fp32; the operands
of matrix products are in the model's type, as in the torch code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.gpu.attention import TILE, attend, fits_attention, gpu_size, precision
from pipeline.gpu.int8 import int8_linear
from pipeline.gpu.pointwise import add_layer_norm, blend, gated_norm, quick_gelu, rms_norm, rotate, scaled_rows

if TYPE_CHECKING:
    from pipeline.layers.mamba2 import Mamba2Mixer, MixerState

__all__ = [
    "add_layer_norm", "attend", "blend", "causal_conv", "fits_attention", "fits_mixer", "gated_norm",
    "int8_linear", "mixer", "quick_gelu", "rms_norm", "rotate", "scaled_rows", "ssd",
]  # fmt: skip

LARGEST_P, LARGEST_N = 128, 256  # wider heads or states do not fit one tile
LARGEST_ROW = 16_384  # of a norm: one program holds a whole row
LARGEST_WIDTH = 4  # of the convolution
SSD_BLOCK = 256
# Lengths are not specialised on (`do_not_specialize`): a kernel compiled anew in mid-stream is a second of silence.


def fits_mixer(mixer: Mamba2Mixer) -> bool:
    """Whether `mixer` (below) can run this mixer's shapes on its GPU."""
    c, weight = mixer.cfg, mixer.conv1d.weight  # the projections may be in 8 bits
    fits = c.headdim <= LARGEST_P and c.d_state <= LARGEST_N and c.d_inner // c.ngroups <= LARGEST_ROW
    roomy = gpu_size(weight.device)[1] or c.d_state * weight.itemsize <= 256
    return fits and roomy and c.d_conv <= LARGEST_WIDTH


def mixer(
    m: Mamba2Mixer, u_BTD: Tensor, state: MixerState, residual_BTD: Tensor | None = None
) -> tuple[Tensor, MixerState]:
    """`Mamba2Mixer.forward` by kernels: the same outputs and state within the rounding of the model's type.

    With one group and the gate before the norm (as published) the norm costs no pass of its own: the scan's last
    kernel gates and weighs its rows and sums their squares. The factor that is left, one per row, passes through the
    out-projection unchanged and is multiplied where the residual is added.
    """
    cfg = m.cfg
    z, xBC, dt = m.in_proj(u_BTD).split([cfg.d_inner, cfg.conv_dim, cfg.nheads], dim=-1)
    xBC, tail = causal_conv(xBC, state.conv, m.conv1d.weight, m.conv1d.bias)
    x, B, C = xBC.split([cfg.d_inner, cfg.ngroups * cfg.d_state, cfg.ngroups * cfg.d_state], dim=-1)
    late = m.norm is not None and cfg.ngroups == 1 and not cfg.norm_before_gate and not cfg.bias
    y, ssm, squares = ssd(
        x.unflatten(-1, (cfg.nheads, cfg.headdim)), dt, m.dt_bias, m.A_log,
        B.unflatten(-1, (cfg.ngroups, cfg.d_state)), C.unflatten(-1, (cfg.ngroups, cfg.d_state)),
        state.ssm, m.D, cfg.dt_limit, (z, m.norm.weight) if late else None,
    )  # fmt: skip
    y, state = y.flatten(-2), type(state)(tail, ssm)
    if late:
        return scaled_rows(m.out_proj(y), squares, cfg.d_inner, cfg.norm_eps, residual_BTD), state
    if m.norm is None:
        y = y * torch.nn.functional.silu(z)
    else:
        y = gated_norm(y, z, m.norm.weight, cfg.ngroups, cfg.norm_eps, cfg.norm_before_gate)
    out = m.out_proj(y)
    return out if residual_BTD is None else residual_BTD + out, state


# --- convolution -----------------------------------------------------------------------------------------------------


def causal_conv(x_BTC: Tensor, tail_BKC: Tensor, weight_C1W: Tensor, bias_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `mamba2.causal_conv`, from any rows that are contiguous in C (a slice of the in-projection, uncopied)."""
    batch, T, channels = x_BTC.shape
    out, tail_BKC = x_BTC.new_empty(batch, T, channels), tail_BKC.contiguous()
    newest, rows, columns = torch.empty_like(tail_BKC), 32, min(512, triton.next_power_of_2(channels))
    _conv[(triton.cdiv(T, rows), triton.cdiv(channels, columns), batch)](
        x_BTC, tail_BKC, weight_C1W, weight_C1W if bias_C is None else bias_C, out, newest,
        T, channels, x_BTC.stride(0), x_BTC.stride(1), bias_C is not None, weight_C1W.shape[-1], rows, columns,
    )  # fmt: skip
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
    x, tail, weight, bias, out, newest, T, channels, x_batch, x_row,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
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


# --- the scan --------------------------------------------------------------------------------------------------------


def ssd(
    x_BTHP, dt_BTH, dt_bias_H, A_log_H, B_BTGN, C_BTGN, ssm_BHPN, D, dt_limit, gate=None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `mamba2.ssd`, with softplus, limits and the skip D inside. x, B, C may be slices, contiguous in their widths.

    gate: z (B, T, H * P) and a norm's weight (H * P,), or None. With it outputs are y silu(z) weight, and the third
    tensor, (B, T, H) in fp32, holds the sums of squares of y silu(z) over each head; it is empty without.

    Four kernels (arXiv 2405.21060, section 6): step sizes and their sums; the state at the beginning of each block of
    L tokens, walked in order; C B^T of each block, which the heads of a group share; the outputs.
    """
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
        x_BTHP, B_BTGN, dt, sums, ssm_BHPN, starts, ssm, T, heads, *x_strides, *b_strides, blocks, heads // groups,
        P, N, L, step, p, part, digits, num_stages=3,
    )  # fmt: skip
    _products[((L // TILE) ** 2, blocks, batch * groups)](
        B_BTGN, C_BTGN, CB, T, groups, blocks, *b_strides, *c_strides, N, L, TILE, n, digits
    )
    z, weight = gate or (x_BTHP, dt_bias_H)  # of any tensor, where there is no gate: never read
    squares = new(batch, T, heads if gate else 0, dtype=torch.float32)
    _outputs[(L // TILE, blocks * heads, batch)](
        x_BTHP, C_BTGN, CB, dt, sums, starts, dt_bias_H if D is None else D, z, weight, y, squares, T, heads,
        *x_strides, *c_strides, *z.stride()[:2], blocks, heads // groups,
        D is not None, D is not None and D.numel() > heads, gate is not None, P, N, L, TILE, TILE, p, n, digits,
        num_stages=1,  # H100, 9,568 tokens: 0.30 ms, against 0.42 with three stages and 0.65 with four
    )  # fmt: skip
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
    x, B, dt, sums, first, starts, last, T, heads, x_batch, x_row, b_batch, b_row, blocks, per_group,
    P: tl.constexpr, N: tl.constexpr, L: tl.constexpr, TILE: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
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
    B, C, CB, T, groups, blocks, b_batch, b_row, c_batch, c_row,
    N: tl.constexpr, L: tl.constexpr, TILE: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
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
    x, C, CB, dt, sums, starts, D, z, weight, y, squares, T, heads, x_batch, x_row, c_batch, c_row, z_batch, z_row,
    blocks, per_group, HAS_D: tl.constexpr, D_PER_CHANNEL: tl.constexpr, GATED: tl.constexpr, P: tl.constexpr,
    N: tl.constexpr, L: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What ROWS tokens get: from the state at their block's beginning, from the block so far, and D x; then the gate.

    Tokens of the block before these rows are weighted by their decay to where the rows begin, and the sum by the rows'
    decay from there: C B^T goes into the product as it is. Both factors are at most 1, so neither can overflow.
    """
    batch, block, head = tl.program_id(2).to(tl.int64), tl.program_id(1) // heads, tl.program_id(1) % heads
    i, group = tl.program_id(0), head // per_group
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
