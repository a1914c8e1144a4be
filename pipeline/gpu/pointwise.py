"""Triton kernels that work element by element or row by row: norms, rotary positions, blends, an activation.

Each replaces a chain of small operations of torch. At one token (decoding) such a chain costs its launches, some 40
microseconds of a CPU each; over many tokens it costs a pass over memory per link. Inside, everything is fp32 and is
rounded once, where torch rounds a bf16 number after every link. `kernels.py` names the plain torch code beside each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# --- norms -----------------------------------------------------------------------------------------------------------


def gated_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float, norm_before_gate: bool) -> Tensor:
    """As `layers/mamba2.py: GatedRMSNorm`: (B, T, W) each, z contiguous in W only. One pass for eight."""
    z = z.flatten(0, 1) if z.shape[0] == 1 else z.reshape(-1, z.shape[-1])
    y_rows, out = y.reshape(-1, y.shape[-1]), torch.empty_like(y, memory_format=torch.contiguous_format)
    width = y.shape[-1] // groups
    _norm[(len(y_rows), groups)](
        y_rows,
        z,
        weight,
        out,
        out,
        y_rows.stride(0),
        z.stride(0),
        y.shape[-1],
        width,
        eps,
        True,
        norm_before_gate,
        False,
        False,
        triton.next_power_of_2(width),
        num_warps=8,
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype | None = None) -> Tensor:
    """As `layers/norms.py: RMSNorm`: rounded to x's type before it is scaled; by a wider weight it comes out as wide.

    dtype: of the outputs, where the stream is wider than the model's type; then they are rounded once, at the end.
    """
    wide = dtype or torch.promote_types(x.dtype, weight.dtype)
    out = torch.empty_like(x, dtype=wide, memory_format=torch.contiguous_format)
    _rms_norm(x, weight, eps, out, out, round_first=dtype is None)
    return out


def rms_norm_rounded(x: Tensor, weight: Tensor, eps: float, scale: Tensor) -> Tensor:
    """`rms_norm` over a scale (), in e4m3."""
    out = torch.empty_like(x, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    _rms_norm(x, weight, eps, out, scale, round_first=True)
    return out


def _rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, scale: Tensor, round_first: bool) -> None:
    rows, width = x.reshape(-1, x.shape[-1]), x.shape[-1]
    _norm[(len(rows), 1)](
        rows,
        rows,
        weight,
        out,
        scale,
        rows.stride(0),
        0,
        width,
        width,
        eps,
        False,
        False,
        round_first,
        scale is not out,
        triton.next_power_of_2(width),
        num_warps=8,
    )


@triton.jit
def _norm(
    y,
    z,
    weight,
    out,
    scale,
    y_row,
    z_row,
    out_row,
    width,
    eps,
    GATED: tl.constexpr,
    GATE_LAST: tl.constexpr,
    ROUND_FIRST: tl.constexpr,
    ROUNDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside, column = c < width, tl.program_id(1) * width + c
    value = tl.load(y + row * y_row + column, inside, 0.0).to(tl.float32)
    gate = value
    if GATED:
        gate = tl.load(z + row * z_row + column, inside, 0.0).to(tl.float32)
        gate = gate / (1 + tl.exp(-gate))
        if not GATE_LAST:
            value *= gate
    value *= 1 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    if ROUND_FIRST:
        value = value.to(y.dtype.element_ty).to(tl.float32)
    value *= tl.load(weight + column, inside, 0.0).to(tl.float32)
    if GATED and GATE_LAST:
        value *= gate
    if ROUNDS:
        value /= tl.load(scale)
    tl.store(out + row * out_row + column, value.to(out.dtype.element_ty), inside)


def gated_heads(y_BTHP: Tensor, z_BTE: Tensor, weight_P: Tensor, eps: float) -> Tensor:
    """RMS norm of every head, weighed, times silu(z): (B, T, H P). z: any row stride. One pass for four."""
    B, T, H, P = y_BTHP.shape
    y, z = y_BTHP.contiguous(), z_BTE.flatten(0, 1) if B == 1 else z_BTE.reshape(-1, H * P)
    out = y.new_empty(B, T, H * P)
    _gated_heads[(B * T,)](
        y, z, weight_P, out, z.stride(0), H, P, eps, triton.next_power_of_2(H), triton.next_power_of_2(P), num_warps=4
    )
    return out


@triton.jit
def _gated_heads(y, z, weight, out, z_row, heads, width, eps, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """All heads of one token; rounded to the model's type before they are weighed, as `_norm` rounds."""
    row, h, c = tl.program_id(0).to(tl.int64), tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside, at = (h < heads) & (c < width), h * width + c
    value = tl.load(y + row * heads * width + at, inside, 0.0).to(tl.float32)
    gate = tl.load(z + row * z_row + at, inside, 0.0).to(tl.float32)
    value *= 1 / tl.sqrt(tl.sum(value * value, 1) / width + eps)[:, None]
    value = value.to(out.dtype.element_ty).to(tl.float32) * tl.load(weight + c, c < width, 0.0).to(tl.float32)
    value *= gate / (1 + tl.exp(-gate))
    tl.store(out + row * heads * width + at, value.to(out.dtype.element_ty), inside)


def scaled_rows(out_BTD: Tensor, squares_BTH: Tensor, width: int, eps: float, residual_BTD: Tensor | None) -> Tensor:
    """residual + out / sqrt(sum of squares / width + eps): an RMS norm's factor of each row, where the sums are known.

    squares (B, T, H): each row's sum, in H parts; fp32. The residual may be wider; its type is that of what comes.
    """
    given, rows = out_BTD if residual_BTD is None else residual_BTD.contiguous(), out_BTD.shape[:-1].numel()
    out = torch.empty_like(given)
    columns, parts = out_BTD.shape[-1], squares_BTH.shape[-1]
    _scaled_rows[(rows,)](
        out_BTD.contiguous(),
        squares_BTH,
        given,
        out,
        columns,
        parts,
        width,
        eps,
        residual_BTD is not None,
        triton.next_power_of_2(columns),
        triton.next_power_of_2(parts),
        num_warps=8,
    )
    return out


@triton.jit
def _scaled_rows(
    x, squares, residual, out, columns, parts, width, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr
):
    row, c, part = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK), tl.arange(0, PARTS)
    total = tl.sum(tl.load(squares + row * parts + part, part < parts, 0.0), 0)
    value = tl.load(x + row * columns + c, c < columns, 0.0).to(tl.float32) / tl.sqrt(total / width + eps)
    if ADDS:
        value += tl.load(residual + row * columns + c, c < columns, 0.0).to(tl.float32)
    tl.store(out + row * columns + c, value.to(out.dtype.element_ty), c < columns)


def add_layer_norm(x: Tensor, more: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x + more, and the layer norm of that sum (as it is after rounding). Four passes over memory instead of five."""
    normed = torch.empty_like(x, memory_format=torch.contiguous_format)
    return _layer_norm(x, more, weight, bias, eps, normed, normed), normed


def add_layer_norm_rounded(
    x: Tensor, more: Tensor, weight: Tensor, bias: Tensor, eps: float, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, the norm over a scale (), in e4m3."""
    normed = torch.empty_like(x, dtype=torch.float8_e4m3fn, memory_format=torch.contiguous_format)
    return _layer_norm(x, more, weight, bias, eps, normed, scale), normed


def _layer_norm(
    x: Tensor, more: Tensor, weight: Tensor, bias: Tensor, eps: float, normed: Tensor, scale: Tensor
) -> Tensor:
    x, more, width = x.contiguous(), more.contiguous(), x.shape[-1]
    total, rounds = torch.empty_like(x), scale is not normed
    _add_layer_norm[(x.numel() // width,)](
        x, more, weight, bias, total, normed, scale, width, eps, rounds, triton.next_power_of_2(width), num_warps=2
    )
    return total


@triton.jit
def _add_layer_norm(x, more, weight, bias, total, normed, scale, width, eps, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.arange(0, BLOCK)
    at, inside = tl.program_id(0).to(tl.int64) * width + c, c < width
    value = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(more + at, inside, 0.0).to(tl.float32)
    rounded = value.to(total.dtype.element_ty)
    tl.store(total + at, rounded, inside)
    value = rounded.to(tl.float32)
    value = tl.where(inside, value - tl.sum(value, 0) / width, 0.0)
    value *= 1 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    value = value * tl.load(weight + c, inside, 0.0).to(tl.float32) + tl.load(bias + c, inside, 0.0).to(tl.float32)
    if ROUNDS:
        value /= tl.load(scale)
    tl.store(normed + at, value.to(normed.dtype.element_ty), inside)


# --- in 8-bit floating point -----------------------------------------------------------------------------------------


def rounded_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `layers/fp8.py: rows_of`: codes in e4m3 like x, and the scale of each row, (..., 1) fp32."""
    x, width = x.contiguous(), x.shape[-1]
    out, scales = torch.empty_like(x, dtype=torch.float8_e4m3fn), x.new_empty(*x.shape[:-1], 1, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    _rounded_rows[(x.numel() // width,)](x, out, scales, width, block, num_warps=4 if block < 8192 else 8)
    return out, scales


@triton.jit
def _rounded_rows(x, out, scales, width, BLOCK: tl.constexpr):
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    value = tl.load(x + row * width + c, c < width, 0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), 0), 1e-30) / 448
    scale += tl.sum(value, 0) * 0.0  # a maximum swallows a NaN, and nobody would know
    tl.store(scales + row, scale)
    tl.store(out + row * width + c, (value / scale).to(out.dtype.element_ty), c < width)


# --- rotary positions ------------------------------------------------------------------------------------------------


def rotate(x_BHTP: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, halves paired. x: any strides, contiguous in P; cos, sin: (T, P / 2 or wider), same strides.

    Only the tables' first P / 2 columns are read: the second halves of the text column's are copies. Returns a view
    (B, H, T, P) of (B, T, H, P), the order in which projections leave and attention may read it. One launch for five.
    """
    B, H, T, P = x_BHTP.shape
    out = x_BHTP.new_empty(B, T, H, P)
    _rotate[(T, B)](
        x_BHTP,
        cos,
        sin,
        out,
        T,
        H,
        *x_BHTP.stride()[:3],
        cos.stride(0),
        P,
        P // 2,
        triton.next_power_of_2(H),
        triton.next_power_of_2(P // 2),
    )
    return out.transpose(1, 2)


@triton.jit(do_not_specialize=["T"])
def _rotate(
    x,
    cos,
    sin,
    out,
    T,
    heads,
    x_batch,
    x_head,
    x_row,
    table_row,
    P: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """All heads of one token."""
    t, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    h, c = tl.arange(0, HEADS), tl.arange(0, COLUMNS)
    inside = (h < heads)[:, None] & (c < HALF)[None, :]
    cosine = tl.load(cos + t * table_row + c, c < HALF, 0.0).to(tl.float32)[None, :]
    sine = tl.load(sin + t * table_row + c, c < HALF, 0.0).to(tl.float32)[None, :]
    here = x + batch * x_batch + t * x_row + h[:, None] * x_head + c[None, :]
    a = tl.load(here, inside, 0.0).to(tl.float32)
    b = tl.load(here + HALF, inside, 0.0).to(tl.float32)
    there = out + ((batch * T + t) * heads + h[:, None]) * P + c[None, :]
    tl.store(there, (a * cosine - b * sine).to(out.dtype.element_ty), inside)
    tl.store(there + HALF, (b * cosine + a * sine).to(out.dtype.element_ty), inside)


# --- element by element ----------------------------------------------------------------------------------------------

COLUMNS = 1024  # of one program


def blend(h: Tensor, own: Tensor, cross: Tensor, alpha: Tensor) -> Tensor:
    """h + a own + (1 - a) cross, a = alpha (one number) within [0, 1]. One launch for six."""
    h, own, cross = h.contiguous(), own.contiguous(), cross.contiguous()
    out = torch.empty_like(h)
    _blend[(triton.cdiv(h.numel(), COLUMNS),)](h, own, cross, alpha, out, h.numel(), COLUMNS)
    return out


@triton.jit
def _blend(h, own, cross, alpha, out, size, COLUMNS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = at < size
    a = tl.load(alpha).to(tl.float32)
    a = tl.where(a == a, tl.minimum(tl.maximum(a, 0.0), 1.0), a)  # min and max would swallow a NaN
    total = tl.load(h + at, inside, 0.0).to(tl.float32) + a * tl.load(own + at, inside, 0.0).to(tl.float32)
    total += (1 - a) * tl.load(cross + at, inside, 0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), inside)


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), as the Qwen2-VL tower has it, in one pass over memory instead of three."""
    x = x.contiguous()
    out = torch.empty_like(x)
    _quick_gelu[(triton.cdiv(x.numel(), COLUMNS),)](x, out, x.numel(), COLUMNS)
    return out


@triton.jit
def _quick_gelu(x, out, size, COLUMNS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    value = tl.load(x + at, at < size, 0.0).to(tl.float32)
    value = value / (1 + tl.exp(-1.702 * value))
    tl.store(out + at, value.to(out.dtype.element_ty), at < size)


def swiglu(gate: Tensor, x: Tensor) -> Tensor:
    """silu(gate) x, in one pass over memory instead of two."""
    gate, x = gate.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    _swiglu[(triton.cdiv(x.numel(), COLUMNS),)](gate, x, out, x.numel(), COLUMNS)
    return out


@triton.jit
def _swiglu(gate, x, out, size, COLUMNS: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    g = tl.load(gate + at, at < size, 0.0).to(tl.float32)
    value = tl.load(x + at, at < size, 0.0).to(tl.float32) * g / (1 + tl.exp(-g))
    tl.store(out + at, value.to(out.dtype.element_ty), at < size)
