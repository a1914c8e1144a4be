"""Attention to a memory by Triton kernels, and the weights it gave to the memory's slots.

`memory/attention.py` holds the plain torch code beside them that is always right; letters as in attention_scan.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.gpu.attention_scan import (
    ADDRESSES,
    BLOCK_SLOTS,
    FIRST,
    HEADER,
    LENGTH,
    LOG2E,
    block_at,
    contiguous_rows,
    merge_queries,
    part_of,
    scan,
    splits_of,
    tile_shape,
)
from pipeline.gpu.device import TILE, precision
from pipeline.gpu.layout import Slots

ROWS_AGAIN = 32  # rows of one key head from which on scores are computed twice: 8 bytes a row against a key's 256


def attend(
    slots: Slots,
    layer: int,
    q_HQP: Tensor,
    want_weights: bool = False,
    count: Tensor | None = None,
    spans: Tensor | None = None,
    weights: Tensor | None = None,
    each: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attention of queries (H, Q, P) to one layer's slots: (H, Q, P) and, if wanted, weights (S,) or one row a span.

    each: the queries are words of several answers: weights (Q, S), whose scores are kept, so that keys are read once.

    `want_weights` keeps the scores of a few rows (4 bytes per slot, head and query while it runs); of many it computes
    them again, because the keys are then less to read than the scores.

    Recorded only: count (1,) int64, how many of the queries are real (others get zeros). spans (n, 2) int64: queries
    from .. to, for each of which there is a row of weights. weights (n, room): where they go; what lies behind the real
    slots stays as it was.
    """
    keep = want_weights and (each or (spans is None and keeps_scores(slots, q_HQP)))
    parts, sums, scores = scan(slots, layer, q_HQP, keep, count)
    out, total = merge_queries(parts, sums, q_HQP, count)
    return out, slot_weights(slots, layer, q_HQP, total, scores, spans, weights, each) if want_weights else None


def keeps_scores(slots: Slots, q_HQP: Tensor) -> bool:
    """Whether the queries are so few that their scores are kept for the weights."""
    return q_HQP[..., 0].numel() // slots.heads < ROWS_AGAIN


def slot_weights(
    slots: Slots,
    layer: int,
    q_HQP: Tensor,
    total: Tensor,
    scores: Tensor | None,
    spans: Tensor | None = None,
    weights: Tensor | None = None,
    each: bool = False,
) -> Tensor:
    """(S,) fp32: the mean over all rows of exp(score - total), from the scores if they were kept; or one per span, or
    one for each query, from its kept scores."""
    (H, Q, P), q = q_HQP.shape, contiguous_rows(q_HQP)
    K, n = slots.heads, Q if each else 1 if spans is None else len(spans)
    weights = q.new_empty(n, slots.room, dtype=torch.float32) if weights is None else weights
    if scores is not None:
        _weights[(triton.cdiv(slots.room, 256), n)](scores, total, weights, slots.book, Q * H // n, slots.room, 256)
    else:
        by_head, (rows, speed), digits = weights.new_empty(n, K, slots.room), tile_shape(q, Q * H // K), precision(q)
        _weights_again[(n, splits_of(q, K), K)](
            q,
            slots.book,
            total,
            by_head,
            slots.book if spans is None else spans,
            layer,
            Q,
            slots.room,
            P**-0.5,
            *q.stride()[:2],
            K,
            H // K,
            P,
            rows,
            TILE,
            slots.eight_bit,
            spans is not None,
            digits,
            **speed,
        )
        torch.sum(by_head, 1, out=weights)  # heads apart until here, so that no order of threads can change the sum
    return weights if each or spans is not None else weights[0]


@triton.jit(do_not_specialize=["rows", "room"])
def _weights(scores, sums, weights, book, rows, room, SLOTS: tl.constexpr):
    """The mean of exp(score - sum) over every n-th row from this one on: a query's heads, or all rows where n is 1."""
    slot, S = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS), tl.load(book + LENGTH)
    one, n = tl.program_id(1).to(tl.int64), tl.num_programs(1).to(tl.int64)
    total, place = tl.zeros([SLOTS], tl.float32), scores + one * room + slot
    for row in range(rows):
        total += tl.exp(tl.load(place, slot < S, float("-inf")) - tl.load(sums + one + row * n))
        place += room * n
    tl.store(weights + one * room + slot, total / rows, slot < S)


@triton.jit(do_not_specialize=["layer", "Q", "room"])
def _weights_again(
    q,
    book,
    sums,
    weights,
    spans,
    layer,
    Q,
    room,
    scale,
    q_head,
    q_row,
    K: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
    SPANNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same of one key head (of one span) over one part of the slots, from the keys: nobody kept the scores."""
    span, split, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    some = tl.load(spans + 2 * span).to(tl.int32) * R if SPANNED else 0
    rows = tl.load(spans + 2 * span + 1).to(tl.int32) * R if SPANNED else Q * R
    first, S = tl.load(book + FIRST).to(tl.int32), tl.load(book + LENGTH).to(tl.int32)
    block_slots = tl.load(book + BLOCK_SLOTS).to(tl.int32)
    last, in_block, p = first + S, block_slots // TILE, tl.arange(0, P)
    begin, end = part_of(first, last, split, TILE)
    before = (layer * K + head).to(tl.int64) * block_slots
    out, share = weights + (span * K + head).to(tl.int64) * room - first, 1.0 / (K * tl.maximum(rows - some, 1))
    for start in range(some, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        q_place = (row // R) * q_row + (head * R + row % R) * q_head
        q_tile = tl.load(q + q_place[:, None] + p[None, :], (row < rows)[:, None], 0.0)
        mass = tl.load(sums + head * Q * R + row % R * Q + row // R, row < rows, float("inf")) * LOG2E
        for block in range(begin // in_block, tl.cdiv(end, in_block)):
            k, _, k_scale, _ = block_at(
                q, book + HEADER + block * ADDRESSES, before - block * block_slots, P, EIGHT_BIT
            )
            for i in range(tl.maximum(begin, block * in_block), tl.minimum(end, (block + 1) * in_block)):
                slot = i * TILE + tl.arange(0, TILE)
                seen = (slot >= first) & (slot < last)
                k_tile = tl.load(k + slot[None, :] * P + p[:, None])
                score = tl.dot(q_tile, k_tile.to(q_tile.dtype), input_precision=PRECISION)
                if EIGHT_BIT:
                    score *= tl.load(k_scale + slot).to(tl.float32)[None, :]
                found = tl.sum(tl.exp2(score * (scale * LOG2E) - mass[:, None]), 0) * share
                if start > some:
                    found += tl.load(out + slot, seen, 0.0)
                tl.store(out + slot, found, seen)
        tl.debug_barrier()  # the next rows add to what other threads have stored
