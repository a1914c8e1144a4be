"""Triton kernel of the vision tower's attention: full, inside each pair of frames, heads of 80 as 64 + 16.

Used through `pipeline.kernels`; torch's attention stands beside it in vision.py and is always right, but fills a head
of 80 up to 96 or 128 numbers. Over 16 pairs of 644x364 on an H100: FlashAttention-2 0.51 ms, cuDNN 0.36, this one 0.33
(arXiv 2205.14135, algorithm 1). Turning the queries by their positions in here saved nothing. Through the tensor memory
accelerator it took 0.32, but Triton 3.6 made a program that wrote where it must not as soon as loads stood apart; what
is faster by 2 % of a tower must not depend on the order of two lines. N pairs, H heads, L patches, P a head's width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.attention import LOG2E

ROWS, KEYS = 64, 64  # queries of a program, and keys of a step: larger tiles leave too few registers


def fits_pairs(q_NHLP: Tensor) -> bool:
    """Whether `attend_pairs` is the faster way: 16-bit numbers, a width that is no power of two, and Hopper.

    Other GPUs were not measured.
    """
    wide, rest = _halves(q_NHLP.shape[-1])
    hopper = not q_NHLP.is_cuda or torch.cuda.get_device_capability(q_NHLP.device)[0] == 9
    return hopper and q_NHLP.itemsize == 2 and wide <= 128 and rest >= 16 and rest & (rest - 1) == 0


def _halves(width: int) -> tuple[int, int]:
    wide = 1 << (width.bit_length() - 1)
    return wide, width - wide


def attend_pairs(q_NHLP: Tensor, k_NHLP: Tensor, v_NHLP: Tensor) -> Tensor:
    """softmax(q k / sqrt(P)) v as (N, L, H P). Any strides, contiguous in P."""
    N, H, L, P = q_NHLP.shape
    out = q_NHLP.new_empty(N, L, H * P)
    _attend_pairs[(triton.cdiv(L, ROWS), N * H)](
        q_NHLP, k_NHLP, v_NHLP, out, *q_NHLP.stride()[:3], *k_NHLP.stride()[:3], *v_NHLP.stride()[:3],
        L, H, P**-0.5, *_halves(P), ROWS, KEYS, num_stages=3,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["L"])
def _attend_pairs(
    q, k, v, out, q_pair, q_head, q_row, k_pair, k_head, k_row, v_pair, v_head, v_row, L, H, scale,
    A: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Some queries of one head of one pair. Columns of a head: A on the left, B on the right."""
    pair, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    row, a, b = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, A), A + tl.arange(0, B)
    real = (row < L)[:, None]
    q_place = q + pair * q_pair + head * q_head + row[:, None] * q_row
    q_left, q_right = tl.load(q_place + a[None, :], real, 0.0), tl.load(q_place + b[None, :], real, 0.0)
    k, v = k + pair * k_pair + head * k_head, v + pair * v_pair + head * v_head
    top, mass = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    left, right, whole = tl.zeros([ROWS, A], tl.float32), tl.zeros([ROWS, B], tl.float32), L // KEYS
    top, mass, left, right = _keys(
        0, whole, q_left, q_right, k, v, k_row, v_row, L, scale * LOG2E, top, mass, left, right, A, B, KEYS, True
    )
    top, mass, left, right = _keys(
        whole, tl.cdiv(L, KEYS), q_left, q_right, k, v, k_row, v_row, L, scale * LOG2E, top, mass, left, right,
        A, B, KEYS, False,
    )  # fmt: skip
    place = out + ((pair * L + row) * H + head)[:, None] * (A + B)
    left, right = left / mass[:, None], right / mass[:, None]
    tl.store(place + a[None, :], left.to(out.dtype.element_ty), real)
    tl.store(place + b[None, :], right.to(out.dtype.element_ty), real)


@triton.jit
def _keys(
    begin, end, q_left, q_right, k, v, k_row, v_row, L, factor, top, mass, left, right,
    A: tl.constexpr, B: tl.constexpr, KEYS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Some tiles of keys into a running softmax. WHOLE: none of them reaches behind the last patch."""
    a, b = tl.arange(0, A), A + tl.arange(0, B)
    for i in range(begin, end):
        key = i * KEYS + tl.arange(0, KEYS)
        there = key < L
        k_place, v_place = k + key[None, :] * k_row, v + key[:, None] * v_row
        if WHOLE:
            k_left, k_right = tl.load(k_place + a[:, None]), tl.load(k_place + b[:, None])
            v_left, v_right = tl.load(v_place + a[None, :]), tl.load(v_place + b[None, :])
        else:
            k_left = tl.load(k_place + a[:, None], there[None, :], 0.0)
            k_right = tl.load(k_place + b[:, None], there[None, :], 0.0)
            v_left = tl.load(v_place + a[None, :], there[:, None], 0.0)
            v_right = tl.load(v_place + b[None, :], there[:, None], 0.0)
        score = tl.dot(q_right, k_right, tl.dot(q_left, k_left))
        if not WHOLE:
            score = tl.where(there[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1) * factor)
        weight, fade = tl.exp2(score * factor - higher[:, None]), tl.exp2(top - higher)
        mass = mass * fade + tl.sum(weight, 1)
        weight = weight.to(q_left.dtype)
        left = tl.dot(weight, v_left, left * fade[:, None])
        right = tl.dot(weight, v_right, right * fade[:, None])
        top = higher
    return top, mass, left, right
