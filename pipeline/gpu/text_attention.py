"""A Triton kernel of causal attention among an answer's words, which keeps their keys and values where they belong.

`layers/reading.py: TextCache.attend` is the plain torch code beside it that is always right. What changes from call to
call is read from the GPU's memory, as in attention.py, so that one recorded launch serves every length.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pipeline.gpu.attention_scan import contiguous_rows
from pipeline.gpu.device import TILE, precision


def attend_text(
    talks: Tensor,
    layer: int,
    q_HQP: Tensor,
    k_KQP: Tensor,
    v_KQP: Tensor,
    most: int | None = None,
    part: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Causal attention of new words to earlier ones and each other, keeping their keys.

    talks: int64 on the GPU, (4 or more,) of one conversation that has all words: words that came before, how many of
    the new ones are real (others get zeros, and nothing of them is kept), for how many words there is room, and where
    that begins: (layers, 2, K, room, P). Or (n, 5) of several, each of which has `most` of the words at most, from the
    one that its fifth number says; a word that is nobody's gets any numbers.

    part: of one conversation, one of the parts (K, M, P) and sums (K, M) of `attention_scan.scan`, which then get what
    is found, instead of a tensor of its own, for `merge_queries` to join with the memory's.
    """
    n, several = 1 if talks.dim() == 1 else len(talks), talks.dim() > 1
    (H, words, P), K = q_HQP.shape, len(k_KQP)
    Q, q, k, v = most or words, contiguous_rows(q_HQP), contiguous_rows(k_KQP), contiguous_rows(v_KQP)
    rows = min(128 // q.itemsize, max(16, triton.next_power_of_2(Q * H // K)))
    out, sums = (q.new_empty(words, H, P), talks) if part is None else part
    _attend_text[(triton.cdiv(Q * H // K, rows), K, n)](
        q,
        k,
        v,
        talks,
        out,
        sums,
        talks.stride(0),
        layer,
        P**-0.5,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        Q,
        K,
        H // K,
        P,
        rows,
        TILE,
        several,
        part is not None,
        precision(q),
        num_stages=2,
    )
    return out.transpose(0, 1) if part is None else out


@triton.jit(do_not_specialize=["talk_row", "layer", "Q"])
def _attend_text(
    q,
    k,
    v,
    talks,
    out,
    sums,
    talk_row,
    layer,
    scale,
    q_head,
    q_row,
    k_head,
    k_row,
    v_head,
    v_row,
    Q,
    K: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    SEVERAL: tl.constexpr,
    PART: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some rows of one key head of one conversation: first over the room's words, then over the new ones, which the
    first rows' program puts into the room. Others may not find them there yet, so all read the new ones where they
    are."""
    head, p, number = tl.program_id(1), tl.arange(0, P), tl.program_id(2)
    talk = talks + number * talk_row
    mine = tl.load(talk + 4).to(tl.int32) if SEVERAL else 0  # the first of its words
    q, out, k, v = q + mine * q_row, out + mine * K * R * P, k + mine * k_row, v + mine * v_row
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    query = row // R
    length, count, room = tl.load(talk).to(tl.int32), tl.load(talk + 1).to(tl.int32), tl.load(talk + 2)
    k_room = tl.multiple_of(tl.load(talk + 3).to(tl.pointer_type(q.dtype.element_ty)), 16)
    k_room += (layer * 2 * K + head) * room * P
    v_room = k_room + K * room * P
    real = query < count
    q_place = query * q_row + (head * R + row % R) * q_head
    q_tile = tl.load(q + q_place[:, None] + p[None, :], real[:, None], 0.0)
    top, mass = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, P], tl.float32)
    before = tl.cdiv(length, TILE)
    for i in range(0, before + tl.cdiv(count, TILE)):
        old = i < before
        word = tl.where(old, i, i - before) * TILE + tl.arange(0, TILE)
        here = word < tl.where(old, length, count)
        k_from = tl.where(old, k_room + word * P, k + head * k_head + word * k_row)
        v_from = tl.where(old, v_room + word * P, v + head * v_head + word * v_row)
        k_tile = tl.load(k_from[:, None] + p[None, :], here[:, None], 0.0)
        v_tile = tl.load(v_from[:, None] + p[None, :], here[:, None], 0.0)
        if tl.program_id(0) == 0:
            kept = (here & (i >= before))[:, None]
            there = (length + word)[:, None] * P + p[None, :]
            tl.store(k_room + there, k_tile, kept)
            tl.store(v_room + there, v_tile, kept)
        score = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
        known = here[None, :] & (old | (word[None, :] <= query[:, None]))
        score = tl.where(known, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        weight, fade = tl.exp(score - higher[:, None]), tl.exp(top - higher)
        mass = mass * fade + tl.sum(weight, 1)
        total = total * fade[:, None]
        total += tl.dot(weight.to(q_tile.dtype), v_tile, input_precision=PRECISION)
        top = higher
    total = total / tl.maximum(mass, 1e-30)[:, None]
    place = ((query * K + head) * R + row % R) * P
    if PART:  # as `attention_scan.py` keeps its rows: head by head
        kept = head * Q * R + row % R * Q + query
        tl.store(sums + kept, tl.where(mass > 0, top + tl.log(mass), float("-inf")), query < Q)
        place = kept * P
    total = tl.where(real[:, None], total, 0.0)
    ours = query < (count if SEVERAL else Q)
    tl.store(out + place[:, None] + p[None, :], total.to(out.dtype.element_ty), ours[:, None])
