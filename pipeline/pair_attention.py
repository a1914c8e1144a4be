"""Triton kernel of the vision tower's attention: full, inside each pair of frames, heads of 80 as 64 + 16.

Used through `pipeline.kernels`; torch's attention stands beside it in vision.py and is always right, but fills a head
of 80 up to 96 or 128 numbers. Over 16 pairs of 644x364 on an H100: FlashAttention-2 0.51 ms, cuDNN 0.36, this one 0.32
(arXiv 2205.14135, algorithm 1). Keys and values travel by the tensor memory accelerator: loaded by the threads it took
0.34, and turning the queries by their positions in here saved nothing. N pairs, H heads, L patches, P a head's width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pipeline.attention import LOG2E

ROWS, KEYS = 64, 64  # queries of a program, and keys of a step: larger tiles leave too few registers


def fits_pairs(q_NHLP: Tensor) -> bool:
    """Whether `attend_pairs` is the faster way: 16-bit numbers, a width that is no power of two, Hopper's memory."""
    wide, rest = _halves(q_NHLP.shape[-1])
    hopper = not q_NHLP.is_cuda or torch.cuda.get_device_capability(q_NHLP.device)[0] == 9
    return hopper and q_NHLP.itemsize == 2 and wide <= 128 and rest >= 16 and rest & (rest - 1) == 0


def _halves(width: int) -> tuple[int, int]:
    wide = 1 << (width.bit_length() - 1)
    return wide, width - wide


def attend_pairs(q_NHLP: Tensor, k_NHLP: Tensor, v_NHLP: Tensor) -> Tensor:
    """softmax(q k / sqrt(P)) v as (N, L, H P). Any strides in whole 16 bytes, contiguous in P."""
    N, H, L, P = q_NHLP.shape
    out, parts = q_NHLP.new_empty(N, L, H * P), _halves(P)
    seen = [_tiles(x, rows, width) for x, rows in ((q_NHLP, ROWS), (k_NHLP, KEYS), (v_NHLP, KEYS)) for width in parts]
    _attend_pairs[(triton.cdiv(L, ROWS), N * H)](*seen, out, L, H, P**-0.5, *parts, ROWS, KEYS, num_stages=3)
    return out


def _tiles(x_NHLP: Tensor, rows: int, width: int) -> TensorDescriptor:
    x = x_NHLP.transpose(1, 2)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, rows, 1, width])


@triton.jit(do_not_specialize=["L"])
def _attend_pairs(
    q_a, q_b, k_a, k_b, v_a, v_b, out, L, H, scale,
    A: tl.constexpr, B: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Some queries of one head of one pair."""
    start, pair, head = tl.program_id(0) * ROWS, tl.program_id(1) // H, tl.program_id(1) % H
    q_left = q_a.load([pair, start, head, 0]).reshape(ROWS, A)
    q_right = q_b.load([pair, start, head, A]).reshape(ROWS, B)
    top, mass = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    left, right = tl.zeros([ROWS, A], tl.float32), tl.zeros([ROWS, B], tl.float32)
    for i in range(0, L // KEYS):
        top, mass, left, right = _keys(
            i * KEYS, pair, head, q_left, q_right, k_a, k_b, v_a, v_b, L, scale * LOG2E, top, mass, left, right,
            A, B, KEYS, True,
        )  # fmt: skip
    if L % KEYS != 0:
        top, mass, left, right = _keys(
            L // KEYS * KEYS, pair, head, q_left, q_right, k_a, k_b, v_a, v_b, L, scale * LOG2E, top, mass, left,
            right, A, B, KEYS, False,
        )  # fmt: skip
    row = start + tl.arange(0, ROWS)
    place = out + ((pair.to(tl.int64) * L + row) * H + head)[:, None] * (A + B)
    left, right = left / mass[:, None], right / mass[:, None]
    tl.store(place + tl.arange(0, A)[None, :], left.to(out.dtype.element_ty), (row < L)[:, None])
    tl.store(place + A + tl.arange(0, B)[None, :], right.to(out.dtype.element_ty), (row < L)[:, None])


@triton.jit
def _keys(
    start, pair, head, q_left, q_right, k_a, k_b, v_a, v_b, L, factor, top, mass, left, right,
    A: tl.constexpr, B: tl.constexpr, KEYS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Some keys into a running softmax. What lies behind the last patch is read as zeros."""
    score = tl.dot(q_left, tl.trans(k_a.load([pair, start, head, 0]).reshape(KEYS, A)))
    score = tl.dot(q_right, tl.trans(k_b.load([pair, start, head, A]).reshape(KEYS, B)), score)
    if not WHOLE:
        score = tl.where((start + tl.arange(0, KEYS) < L)[None, :], score, float("-inf"))
    higher = tl.maximum(top, tl.max(score, 1) * factor)
    weight, fade = tl.exp2(score * factor - higher[:, None]), tl.exp2(top - higher)
    mass = mass * fade + tl.sum(weight, 1)
    weight = weight.to(q_left.dtype)
    left = tl.dot(weight, v_a.load([pair, start, head, 0]).reshape(KEYS, A), left * fade[:, None])
    right = tl.dot(weight, v_b.load([pair, start, head, A]).reshape(KEYS, B), right * fade[:, None])
    return higher, mass, left, right
