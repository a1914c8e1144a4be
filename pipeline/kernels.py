"""Triton kernels for inference on an NVIDIA GPU: the Mamba-2 mixer and attention over the memory.

Every kernel has plain torch code beside it that is always right: `mamba2.Mamba2Mixer.forward`, `memory.Memory._attend`,
`models.vamba.RMSNorm`. They use this file only where CUDA and Triton are. Forward only: training runs the torch code.
What works element by element or row by row is in pipeline/pointwise.py.

Why own kernels: the published ones (mamba-ssm, causal-conv1d) need a compiler at install time or a download at run
time, and none of them joins what belongs together here: the convolution with its carried tail, the scan with carried
states, the gate with the norm, and one query's attention over a memory that lies in many blocks.

Sizes: P and N are the widths of a head and of its state, L the tokens of one SSD block. Sums are in fp32; the operands
of matrix products are in the model's type, as in the torch code.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.pointwise import blend, gated_norm, quick_gelu, rms_norm, rotate

if TYPE_CHECKING:
    from pipeline.mamba2 import Mamba2Mixer, MixerState
    from pipeline.memory import Memory

__all__ = [
    "attend", "blend", "causal_conv", "fits_attention", "fits_mixer", "gated_norm", "mixer", "quick_gelu", "rms_norm",
    "rotate", "ssd",
]  # fmt: skip

LARGEST_P, LARGEST_N = 128, 256  # wider heads or states do not fit one tile
LARGEST_ROW = 16_384  # of a norm: one program holds a whole row
SSD_BLOCK = 256
TILE = 64  # slots of the memory, and tokens of the scan, that one step reads
ROWS_AGAIN = 32  # rows of one key head from which on scores are computed twice: 8 bytes a row against a key's 256
# Lengths are not specialised on (`do_not_specialize`): a kernel compiled anew in mid-stream is a second of silence.


def fits_mixer(mixer: Mamba2Mixer) -> bool:
    """Whether `mixer` (below) can run this mixer's shapes on its GPU."""
    c, weight = mixer.cfg, mixer.in_proj.weight
    fits = c.headdim <= LARGEST_P and c.d_state <= LARGEST_N and c.d_inner // c.ngroups <= LARGEST_ROW
    return fits and (_gpu(weight.device)[1] or c.d_state * weight.itemsize <= 256)


def mixer(m: Mamba2Mixer, u_BTD: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
    """`Mamba2Mixer.forward` by kernels: the same outputs and state within the rounding of the model's type."""
    cfg = m.cfg
    z, xBC, dt = m.in_proj(u_BTD).split([cfg.d_inner, cfg.conv_dim, cfg.nheads], dim=-1)
    xBC, tail = causal_conv(xBC, state.conv, m.conv1d.weight, m.conv1d.bias)
    x, B, C = xBC.split([cfg.d_inner, cfg.ngroups * cfg.d_state, cfg.ngroups * cfg.d_state], dim=-1)
    y, ssm = ssd(
        x.unflatten(-1, (cfg.nheads, cfg.headdim)), dt, m.dt_bias, m.A_log,
        B.unflatten(-1, (cfg.ngroups, cfg.d_state)), C.unflatten(-1, (cfg.ngroups, cfg.d_state)),
        state.ssm, m.D, cfg.dt_limit,
    )  # fmt: skip
    y = y.flatten(-2)
    if m.norm is None:
        y = y * torch.nn.functional.silu(z)
    else:
        y = gated_norm(y, z, m.norm.weight, cfg.ngroups, cfg.norm_eps, cfg.norm_before_gate)
    return m.out_proj(y), type(state)(tail, ssm)


@cache
def _gpu(device: torch.device) -> tuple[int, bool]:
    """How many programs to start at once (two on each multiprocessor), and whether shared memory is large.

    Large is 160 KB and more (A100, H100, B200); desktop and Blackwell-workstation GPUs have 99 KB.
    """
    if device.type != "cuda":  # Triton's interpreter
        return 8, True
    properties = torch.cuda.get_device_properties(device)
    return 2 * properties.multi_processor_count, properties.shared_memory_per_block_optin >= 160 * 1024


def _precision(x: Tensor) -> str:
    """Of fp32 matrix products: one tf32 product has 10 bits and misses 1e-4; three of them make 21."""
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


# --- convolution -----------------------------------------------------------------------------------------------------


def causal_conv(x_BTC: Tensor, tail_BKC: Tensor, weight_C1W: Tensor, bias_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `mamba2.causal_conv`, from any rows that are contiguous in C (a slice of the in-projection, uncopied)."""
    batch, T, channels = x_BTC.shape
    width, keep = weight_C1W.shape[-1], tail_BKC.shape[1]
    out, tail_BKC = x_BTC.new_empty(batch, T, channels), tail_BKC.contiguous()
    _conv[(triton.cdiv(T, 16), triton.cdiv(channels, 256), batch)](
        x_BTC, tail_BKC, weight_C1W, weight_C1W if bias_C is None else bias_C, out,
        T, channels, x_BTC.stride(0), x_BTC.stride(1), bias_C is not None, width, 16, 256,
    )  # fmt: skip
    newest = x_BTC[:, -keep:] if keep <= T else torch.cat([tail_BKC, x_BTC], 1)[:, -keep:]
    return out, newest.clone(memory_format=torch.contiguous_format) if keep else tail_BKC


@triton.jit(do_not_specialize=["T"])
def _conv(
    x, tail, weight, bias, out, T, channels, x_batch, x_row,
    HAS_BIAS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows above the chunk come from the tail; each tile reads its WIDTH shifted selves from the cache."""
    batch = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = c < channels
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for k in tl.static_range(WIDTH):
        row = t + k - (WIDTH - 1)
        here = x + batch * x_batch + row[:, None].to(tl.int64) * x_row + c[None, :]
        there = tail + (batch * (WIDTH - 1) + row[:, None] + WIDTH - 1) * channels + c[None, :]
        value = tl.load(here, (row >= 0)[:, None] & (row < T)[:, None] & inside[None, :], 0.0).to(tl.float32)
        value += tl.load(there, (row < 0)[:, None] & inside[None, :], 0.0).to(tl.float32)
        total += value * tl.load(weight + c * WIDTH + k, inside, 0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + c, inside, 0.0).to(tl.float32)[None, :]
    total = total / (1 + tl.exp(-total))
    place = out + (batch * T + t[:, None]) * channels + c[None, :]
    tl.store(place, total.to(out.dtype.element_ty), (t < T)[:, None] & inside[None, :])


# --- the scan --------------------------------------------------------------------------------------------------------


def ssd(x_BTHP, dt_BTH, dt_bias_H, A_log_H, B_BTGN, C_BTGN, ssm_BHPN, D, dt_limit) -> tuple[Tensor, Tensor]:
    """As `mamba2.ssd`, with softplus, limits and the skip D inside. x, B, C may be slices, contiguous in their widths.

    Four kernels (arXiv 2405.21060, section 6): step sizes and their sums; the state at the beginning of each block of
    L tokens, walked in order; C B^T of each block, which the heads of a group share; the outputs.
    """
    (batch, T, heads, P), (groups, N) = x_BTHP.shape, B_BTGN.shape[2:]
    L = min(SSD_BLOCK, max(TILE, triton.next_power_of_2(T)))
    blocks = triton.cdiv(T, L)
    new = x_BTHP.new_empty
    dt, sums = (new(batch, heads, blocks * L, dtype=torch.float32) for _ in range(2))
    starts, CB = new(batch, blocks, heads, P, N), new(batch, blocks, groups, L, L, dtype=torch.float32)
    y, ssm, ssm_BHPN = new(batch, T, heads, P), torch.empty_like(ssm_BHPN), ssm_BHPN.contiguous()
    precision = _precision(x_BTHP)
    p, n = max(16, triton.next_power_of_2(P)), max(16, triton.next_power_of_2(N))
    x_strides, b_strides, c_strides = x_BTHP.stride()[:2], B_BTGN.stride()[:2], C_BTGN.stride()[:2]

    _steps[(blocks, triton.cdiv(heads, 8), batch)](
        dt_BTH, dt_bias_H, A_log_H, dt, sums, T, heads, *dt_BTH.stride()[:2], *dt_limit, L, 8
    )
    part = min(n, 64)
    _states[(n // part, heads, batch)](
        x_BTHP, B_BTGN, dt, sums, ssm_BHPN, starts, ssm, T, heads, *x_strides, *b_strides, blocks, heads // groups,
        P, N, L, TILE, p, part, precision, num_stages=3,
    )  # fmt: skip
    _products[((L // TILE) ** 2, blocks, batch * groups)](
        B_BTGN, C_BTGN, CB, T, groups, blocks, *b_strides, *c_strides, N, L, TILE, n, precision
    )
    _outputs[(L // TILE, blocks * heads, batch)](
        x_BTHP, C_BTGN, CB, dt, sums, starts, dt_bias_H if D is None else D, y, T, heads, *x_strides, *c_strides,
        blocks, heads // groups, D is not None, D is not None and D.numel() > heads, P, N, L, TILE, p, n, precision,
        num_stages=1,  # H100, 9,568 tokens: 0.30 ms, against 0.42 with three stages and 0.65 with four
    )  # fmt: skip
    return y, ssm


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
    """One head's state (or some columns of it) walks through the chunk, tile by tile, in fp32 registers."""
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1)
    p, n = tl.arange(0, BP), tl.program_id(0) * BN + tl.arange(0, BN)
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
        tl.store(place, tl.dot(c_tile, b_tile, input_precision=PRECISION))


@triton.jit(do_not_specialize=["T", "blocks"])
def _outputs(
    x, C, CB, dt, sums, starts, D, y, T, heads, x_batch, x_row, c_batch, c_row, blocks, per_group,
    HAS_D: tl.constexpr, D_PER_CHANNEL: tl.constexpr, P: tl.constexpr, N: tl.constexpr, L: tl.constexpr,
    TILE: tl.constexpr, BP: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What a tile's tokens get: from the state at their block's beginning, from the block so far, and D x."""
    batch, block, head = tl.program_id(2).to(tl.int64), tl.program_id(1) // heads, tl.program_id(1) % heads
    i, group = tl.program_id(0), head // per_group
    m = i * TILE + tl.arange(0, TILE)
    row, p, n = block * L + m, tl.arange(0, BP), tl.arange(0, BN)
    here, in_p, in_n = row < T, p < P, n < N
    x += batch * x_batch + head * P
    dt += (batch * heads + head) * blocks * L + block * L
    sums += (batch * heads + head) * blocks * L + block * L
    CB += ((batch * blocks + block) * (heads // per_group) + group) * L * L
    sum_m = tl.load(sums + m)
    c_place = C + batch * c_batch + row[:, None].to(tl.int64) * c_row + group * N + n[None, :]
    c_tile = tl.load(c_place, here[:, None] & in_n[None, :], 0.0)
    s_place = starts + ((batch * blocks + block) * heads + head) * P * N + p[None, :] * N + n[:, None]
    s_tile = tl.load(s_place, in_n[:, None] & in_p[None, :], 0.0)
    total = tl.dot(c_tile, s_tile, input_precision=PRECISION) * tl.exp(sum_m)[:, None]
    for j in range(0, i + 1):
        k = j * TILE + tl.arange(0, TILE)
        decay = tl.where(m[:, None] >= k[None, :], sum_m[:, None] - tl.load(sums + k)[None, :], float("-inf"))
        weights = tl.load(CB + m[:, None] * L + k[None, :]) * tl.exp(decay) * tl.load(dt + k)[None, :]
        token = block * L + k
        x_place = x + token[:, None].to(tl.int64) * x_row + p[None, :]
        x_tile = tl.load(x_place, (token < T)[:, None] & in_p[None, :], 0.0)
        total += tl.dot(weights.to(x_tile.dtype), x_tile, input_precision=PRECISION)
    if HAS_D:
        skip = tl.load(D + head * P + p, in_p, 0.0) if D_PER_CHANNEL else tl.load(D + head + p * 0)
        x_own = tl.load(x + row[:, None].to(tl.int64) * x_row + p[None, :], here[:, None] & in_p[None, :], 0.0)
        total += x_own.to(tl.float32) * skip.to(tl.float32)[None, :]
    place = y + ((batch * T + row[:, None]) * heads + head) * P + p[None, :]
    tl.store(place, total.to(y.dtype.element_ty), here[:, None] & in_p[None, :])


# --- attention over the memory ---------------------------------------------------------------------------------------


def fits_attention(memory: Memory, q_HQP: Tensor) -> bool:
    """Whether `attend` can run on this memory and GPU."""
    P = q_HQP.shape[-1]
    fits = _gpu(q_HQP.device)[1] or P * q_HQP.itemsize <= 256
    return fits and memory.log.block_slots % TILE == 0 and P in (16, 32, 64, 128) and len(memory) > 0


def attend(memory: Memory, layer: int, q_HQP: Tensor, want_weights: bool = False) -> tuple[Tensor, Tensor | None]:
    """As `memory.Memory.attend`: one kernel walks all blocks, cut into parts that run side by side.

    The parts merge by their log-sum-exp. A kernel per block would spend more time on being launched than on reading an
    hour of memory; here the blocks' addresses travel as a small table. `want_weights` keeps the scores of a few rows
    (4 bytes per slot, head and query while it runs); of many it computes them again, because the keys are then less to
    read than the scores.
    """
    (H, Q, P), log, S = q_HQP.shape, memory.log, len(memory)
    K = log.columns["k"].shape[1]
    M = H // K * Q
    q = q_HQP.reshape(K, M, P).contiguous()
    tiles = triton.cdiv(log.first + S, TILE) - log.first // TILE
    programs, roomy = _gpu(q.device)
    splits, rows = min(max(1, programs // K), tiles), min(128 // q.itemsize, max(16, triton.next_power_of_2(M)))
    stages = (5 if rows == 16 else 4) if roomy and q.itemsize == 2 else 2
    new = q.new_empty
    parts, sums = new(splits, K, M, P, dtype=torch.float32), new(splits, K, M, dtype=torch.float32)
    keep_scores = want_weights and M < ROWS_AGAIN
    scores = new(K, M, S, dtype=torch.float32) if keep_scores else parts
    _attend[(triton.cdiv(M, rows), splits, K)](
        q, log.addresses, parts, sums, scores, M, S, log.first, log.block_slots, layer, triton.cdiv(tiles, splits),
        tiles, P**-0.5, K, P, rows, TILE, memory.eight_bit, keep_scores, len(log.columns), _precision(q),
        num_stages=stages,
    )  # fmt: skip
    out, total = new(H, Q, P), new(K * M, dtype=torch.float32)
    _merge[(K * M,)](parts, sums, out, total, splits, K * M, P, triton.next_power_of_2(splits))
    if not want_weights:
        return out, None
    weights = new(S, dtype=torch.float32)
    if keep_scores:
        _weights[(triton.cdiv(S, 256),)](scores, total, weights, K * M, S, 256)
    else:
        _weights_again[(tiles,)](
            q, log.addresses, total, weights, M, S, log.first, log.block_slots, layer, P**-0.5, K, P, rows, TILE,
            memory.eight_bit, len(log.columns), _precision(q), num_stages=2,
        )  # fmt: skip
    return out, weights


@triton.jit(do_not_specialize=["M", "S", "first", "layer", "per_split", "tiles"])
def _attend(
    q, addresses, parts, sums, scores, M, S, first, block_slots, layer, per_split, tiles, scale,
    K: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, EIGHT_BIT: tl.constexpr,
    SCORES: tl.constexpr, FIELDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some rows (queries of one key head) over one part of the slots: softmax-weighted values and log-sum-exp."""
    split, head = tl.program_id(1), tl.program_id(2)  # row tiles of one part run together and share its slots in L2
    row, p = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, P)
    real = row < M
    q_tile = tl.load(q + (head * M + row[:, None]) * P + p[None, :], real[:, None], 0.0)
    stored = tl.int8 if EIGHT_BIT else q.dtype.element_ty
    top, mass = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, P], tl.float32)
    slots_before = (layer * K + head).to(tl.int64) * block_slots  # of this layer and head, inside any block
    for i in range(split * per_split, tl.minimum((split + 1) * per_split, tiles)):
        slot = (first // TILE + i) * TILE + tl.arange(0, TILE)
        seen = (slot >= first) & (slot < first + S)
        block = (first // TILE + i) * TILE // block_slots
        at = slots_before + slot - block * block_slots
        k_block = tl.multiple_of(tl.load(addresses + block * FIELDS).to(tl.pointer_type(stored)), 16)
        v_block = tl.multiple_of(tl.load(addresses + block * FIELDS + 1).to(tl.pointer_type(stored)), 16)
        k_tile = tl.load(k_block + at[None, :] * P + p[:, None], seen[None, :], 0)
        v_tile = tl.load(v_block + at[:, None] * P + p[None, :], seen[:, None], 0)
        score = tl.dot(q_tile, k_tile.to(q_tile.dtype), input_precision=PRECISION) * scale
        if EIGHT_BIT:
            k_scale = tl.load(addresses + block * FIELDS + 3).to(tl.pointer_type(q.dtype.element_ty))
            score *= tl.load(k_scale + at, seen, 0.0).to(tl.float32)[None, :]
        score = tl.where(seen[None, :], score, float("-inf"))
        if SCORES:
            place = scores + (head * M + row[:, None]).to(tl.int64) * S + slot[None, :] - first
            tl.store(place, score, real[:, None] & seen[None, :])
        higher = tl.maximum(top, tl.max(score, 1))
        weight, fade = tl.exp(score - higher[:, None]), tl.exp(top - higher)
        mass = mass * fade + tl.sum(weight, 1)
        if EIGHT_BIT:
            v_scale = tl.load(addresses + block * FIELDS + 4).to(tl.pointer_type(q.dtype.element_ty))
            weight *= tl.load(v_scale + at, seen, 0.0).to(tl.float32)[None, :]
        total = total * fade[:, None]
        total += tl.dot(weight.to(q_tile.dtype), v_tile.to(q_tile.dtype), input_precision=PRECISION)
        top = higher
    at = (split * K + head) * M + row
    total = total / tl.maximum(mass, 1e-30)[:, None]
    tl.store(parts + at[:, None].to(tl.int64) * P + p[None, :], total, real[:, None])
    tl.store(sums + at, tl.where(mass > 0, top + tl.log(mass), float("-inf")), real)


@triton.jit(do_not_specialize=["splits", "rows"])
def _merge(parts, sums, out, total, splits, rows, P: tl.constexpr, SPLITS: tl.constexpr):
    """One row's parts into one. Six launches of torch's would cost more than they do."""
    row, s, p = tl.program_id(0), tl.arange(0, SPLITS), tl.arange(0, P)
    part_sums = tl.load(sums + s * rows + row, s < splits, float("-inf"))
    top = tl.max(part_sums, 0)
    weights = tl.exp(part_sums - top)
    mass = tl.sum(weights, 0)
    place = parts + (s[:, None] * rows + row).to(tl.int64) * P + p[None, :]
    values = tl.load(place, (s < splits)[:, None], 0.0)
    tl.store(out + row * P + p, (tl.sum(values * weights[:, None], 0) / mass).to(out.dtype.element_ty))
    tl.store(total + row, top + tl.log(mass))


@triton.jit(do_not_specialize=["rows", "S"])
def _weights(scores, sums, weights, rows, S, COLUMNS: tl.constexpr):
    """The mean over all rows of exp(score - sum)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total, place = tl.zeros([COLUMNS], tl.float32), scores + column
    for row in range(rows):
        total += tl.exp(tl.load(place, column < S, float("-inf")) - tl.load(sums + row))
        place += S
    tl.store(weights + column, total / rows, column < S)


@triton.jit(do_not_specialize=["M", "S", "first", "layer"])
def _weights_again(
    q, addresses, sums, weights, M, S, first, block_slots, layer, scale,
    K: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, EIGHT_BIT: tl.constexpr,
    FIELDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same from the keys, whose scores nobody kept: one tile of slots, every row of every head."""
    tile, p = first // TILE + tl.program_id(0), tl.arange(0, P)
    slot = tile * TILE + tl.arange(0, TILE)
    seen, block = (slot >= first) & (slot < first + S), tile * TILE // block_slots
    stored = tl.int8 if EIGHT_BIT else q.dtype.element_ty
    k_block = tl.multiple_of(tl.load(addresses + block * FIELDS).to(tl.pointer_type(stored)), 16)
    total = tl.zeros([TILE], tl.float32)
    for head in range(K):
        at = (layer * K + head).to(tl.int64) * block_slots + slot - block * block_slots
        k_tile = tl.load(k_block + at[None, :] * P + p[:, None], seen[None, :], 0)
        factor = tl.zeros([TILE], tl.float32) + scale
        if EIGHT_BIT:
            k_scale = tl.load(addresses + block * FIELDS + 3).to(tl.pointer_type(q.dtype.element_ty))
            factor *= tl.load(k_scale + at, seen, 0.0).to(tl.float32)
        for start in range(0, M, ROWS):
            row = start + tl.arange(0, ROWS)
            q_tile = tl.load(q + (head * M + row[:, None]) * P + p[None, :], (row < M)[:, None], 0.0)
            score = tl.dot(q_tile, k_tile.to(q_tile.dtype), input_precision=PRECISION) * factor[None, :]
            score -= tl.load(sums + head * M + row, row < M, float("inf"))[:, None]
            total += tl.sum(tl.exp(score), 0)
    tl.store(weights + slot - first, total / (K * M), seen)
