"""Triton kernels of attention: to the memory (hundreds of thousands of slots in many blocks), and among words.

Used through `pipeline.kernels`; `memory.Memory._attend` and `reading.TextCache.attend` are the plain torch code beside
them that is always right. Sums are in fp32; the operands of matrix products are in the model's type.

What changes from call to call (how many slots there are and where they lie, how many words came before) is read from
the GPU's memory, so that a recorded launch serves all of them: grids and buffers are made for the most there may be,
and programs beyond what is there leave early. H, K: query and key heads, R = H / K, Q queries, P the width of a head,
S visible slots. The M = Q R rows of one key head are kept head by head and worked at query by query, so that some
queries are neighbouring rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.memory import Memory

TILE = 64  # slots of the memory, and tokens of the scan, that one step reads
ROWS_AGAIN = 32  # rows of one key head from which on scores are computed twice: 8 bytes a row against a key's 256
WIDTHS = (16, 32, 64, 128)  # of a head


@cache
def gpu_size(device: torch.device) -> tuple[int, bool]:
    """How many programs to start at once (two on each multiprocessor), and whether shared memory is large.

    Large is 160 KB and more (A100, H100, B200); desktop and Blackwell-workstation GPUs have 99 KB.
    """
    if device.type != "cuda":  # Triton's interpreter
        return 8, True
    properties = torch.cuda.get_device_properties(device)
    return 2 * properties.multi_processor_count, properties.shared_memory_per_block_optin >= 160 * 1024


def precision(x: Tensor) -> str:
    """Of fp32 matrix products: one tf32 product has 10 bits and misses 1e-4; three of them make 21."""
    return "tf32x3" if x.dtype == torch.float32 else "tf32"


# --- over the memory -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slots:
    """What kernels know of a memory. book: see `memory.Log.book`. room: slots that buffers and grids are made for."""

    book: Tensor
    room: int
    heads: int  # K
    columns: int
    eight_bit: bool

    @classmethod
    def of(cls, memory: Memory | Slots) -> Slots:
        if isinstance(memory, Slots):
            return memory
        columns = memory.log.columns
        return cls(memory.log.book, len(memory), columns["k"].shape[1], len(columns), memory.eight_bit)


def fits_attention(memory: Memory, q_HQP: Tensor) -> bool:
    """Whether `attend` can run on this memory and GPU."""
    P = q_HQP.shape[-1]
    fits = gpu_size(q_HQP.device)[1] or P * q_HQP.itemsize <= 256
    return fits and memory.log.block_slots % TILE == 0 and P in WIDTHS and len(memory) > 0


def attend(
    memory: Memory | Slots, layer: int, q_HQP: Tensor, want_weights: bool = False,
    count: Tensor | None = None, spans: Tensor | None = None, weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """As `memory.Memory.attend`. `want_weights` keeps the scores of a few rows (4 bytes per slot, head and query while
    it runs); of many it computes them again, because the keys are then less to read than the scores.

    Recorded only: count (1,) int64, how many of the queries are real (others get zeros). spans (n, 2) int64: queries
    from .. to, for each of which there is a row of weights. weights (n, room): where they go; what lies behind the real
    slots stays as it was.
    """
    keep = want_weights and spans is None and keeps_scores(memory, q_HQP)
    parts, sums, scores = scan(memory, layer, q_HQP, keep, count)
    out, total = _merge_queries(parts, sums, q_HQP, count)
    return out, slot_weights(memory, layer, q_HQP, total, scores, spans, weights) if want_weights else None


def keeps_scores(memory: Memory | Slots, q_HQP: Tensor) -> bool:
    """Whether the queries are so few that their scores are kept for the weights."""
    return q_HQP[..., 0].numel() // Slots.of(memory).heads < ROWS_AGAIN


def _tile(q_HQP: Tensor, rows: int) -> int:
    return min(128 // q_HQP.itemsize, max(16, triton.next_power_of_2(rows)))


def scan(
    memory: Memory | Slots, layer: int, q_HQP: Tensor, keep_scores: bool = False, count: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Parts (n, K, M, P) of the softmax-weighted values, their log-sum-exp (n, K, M) and scores (K, M, S), all fp32.

    One kernel walks all blocks, cut into parts that run side by side. A kernel per block would spend more time on being
    launched than on reading an hour of memory; here the blocks' addresses travel as a small table.
    """
    of, (H, Q, P), q = Slots.of(memory), q_HQP.shape, _rows_whole(q_HQP)
    K, R, new = of.heads, H // of.heads, q.new_empty
    programs, roomy = gpu_size(q.device)
    splits, rows = max(1, programs // K), _tile(q, Q * R)
    stages = (5 if rows == 16 else 4) if roomy and q.itemsize == 2 else 2
    parts, sums = new(splits, K, Q * R, P, dtype=torch.float32), new(splits, K, Q * R, dtype=torch.float32)
    scores = new(K, Q * R, of.room, dtype=torch.float32) if keep_scores else None
    _attend[(triton.cdiv(Q * R, rows), splits, K)](
        q, of.book, of.book if count is None else count, parts, sums, scores if keep_scores else parts,
        layer, Q, of.room, P**-0.5, *q.stride()[:2], K, R, P, rows, TILE, of.eight_bit, keep_scores, count is not None,
        of.columns, precision(q), num_stages=stages,
    )  # fmt: skip
    return parts, sums, scores


def _rows_whole(x_HQP: Tensor) -> Tensor:
    return x_HQP if x_HQP.stride(-1) == 1 else x_HQP.contiguous()


def merge(parts: Tensor, sums: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Parts and sums of `scan` into one: `out` filled (any shape of K M P numbers), and its log-sum-exp (K, M)."""
    (splits, K, M, P), total = parts.shape, torch.empty_like(sums[0])
    _merge[(M, K)](
        parts, sums, out, total, parts, splits, M, M * P, P, 1, P, triton.next_power_of_2(splits), False
    )  # fmt: skip
    return out, total


def _merge_queries(parts: Tensor, sums: Tensor, q_HQP: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same as (H, Q, P) in the queries' type: a view of (Q, H, P), in which order the next projection reads it."""
    (splits, K, M, P), (H, Q, _), total = parts.shape, q_HQP.shape, torch.empty_like(sums[0])
    out = q_HQP.new_empty(Q, H, P)
    _merge[(M, K)](
        parts, sums, out, total, parts if count is None else count, splits, Q, P, H * P, H // K, P,
        triton.next_power_of_2(splits), count is not None,
    )  # fmt: skip
    return out.transpose(0, 1), total


def slot_weights(
    memory: Memory | Slots, layer: int, q_HQP: Tensor, total: Tensor, scores: Tensor | None,
    spans: Tensor | None = None, weights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(S,) fp32: the mean over all rows of exp(score - total), from the scores if they were kept; or one per span."""
    of, (H, Q, P), q = Slots.of(memory), q_HQP.shape, _rows_whole(q_HQP)
    K, n = of.heads, 1 if spans is None else len(spans)
    weights = q.new_empty(n, of.room, dtype=torch.float32) if weights is None else weights
    if scores is not None:
        _weights[(triton.cdiv(of.room, 256),)](scores, total, weights, of.book, Q * H, of.room, 256)
    else:
        _weights_again[(n, triton.cdiv(of.room, TILE) + 1)](
            q, of.book, total, weights, of.book if spans is None else spans, layer, Q, of.room, P**-0.5,
            *q.stride()[:2], K, H // K, P, _tile(q, Q * H // K), TILE, of.eight_bit, spans is not None, of.columns,
            precision(q), num_stages=2,
        )  # fmt: skip
    return weights[0] if spans is None else weights


@triton.jit(do_not_specialize=["layer", "Q", "room"])
def _attend(
    q, book, count, parts, sums, scores, layer, Q, room, scale, q_head, q_row,
    K: tl.constexpr, R: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, EIGHT_BIT: tl.constexpr,
    SCORES: tl.constexpr, COUNTED: tl.constexpr, FIELDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some rows (queries of one key head) over one part of the slots: softmax-weighted values and log-sum-exp."""
    split, head = tl.program_id(1), tl.program_id(2)  # row tiles of one part run together and share its slots in L2
    row, p = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, P)
    rows = tl.load(count).to(tl.int32) * R if COUNTED else Q * R
    real, kept = row < rows, row % R * Q + row // R
    q_place = (row // R) * q_row + (head * R + row % R) * q_head
    q_tile = tl.load(q + q_place[:, None] + p[None, :], real[:, None], 0.0)
    first, S, block_slots = tl.load(book).to(tl.int32), tl.load(book + 1).to(tl.int32), tl.load(book + 2).to(tl.int32)
    tiles = tl.cdiv(first + S, TILE) - first // TILE
    each = tl.cdiv(tiles, tl.num_programs(1))
    end = tl.where(tl.program_id(0) * ROWS < rows, tl.minimum((split + 1) * each, tiles), 0)
    stored = tl.int8 if EIGHT_BIT else q.dtype.element_ty
    top, mass = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, P], tl.float32)
    slots_before = (layer * K + head).to(tl.int64) * block_slots  # of this layer and head, inside any block
    for i in range(split * each, end):
        slot = (first // TILE + i) * TILE + tl.arange(0, TILE)
        seen = (slot >= first) & (slot < first + S)
        block = (first // TILE + i) * TILE // block_slots
        at = slots_before + slot - block * block_slots
        where = book + 3 + block * FIELDS
        k_block = tl.multiple_of(tl.load(where).to(tl.pointer_type(stored)), 16)
        v_block = tl.multiple_of(tl.load(where + 1).to(tl.pointer_type(stored)), 16)
        k_tile = tl.load(k_block + at[None, :] * P + p[:, None], seen[None, :], 0)
        v_tile = tl.load(v_block + at[:, None] * P + p[None, :], seen[:, None], 0)
        score = tl.dot(q_tile, k_tile.to(q_tile.dtype), input_precision=PRECISION) * scale
        if EIGHT_BIT:
            k_scale = tl.load(where + 3).to(tl.pointer_type(q.dtype.element_ty))
            score *= tl.load(k_scale + at, seen, 0.0).to(tl.float32)[None, :]
        score = tl.where(seen[None, :], score, float("-inf"))
        if SCORES:
            place = scores + (head * Q * R + kept[:, None]).to(tl.int64) * room + slot[None, :] - first
            tl.store(place, score, real[:, None] & seen[None, :])
        higher = tl.maximum(top, tl.max(score, 1))
        weight, fade = tl.exp(score - higher[:, None]), tl.exp(top - higher)
        mass = mass * fade + tl.sum(weight, 1)
        if EIGHT_BIT:
            v_scale = tl.load(where + 4).to(tl.pointer_type(q.dtype.element_ty))
            weight *= tl.load(v_scale + at, seen, 0.0).to(tl.float32)[None, :]
        total = total * fade[:, None]
        total += tl.dot(weight.to(q_tile.dtype), v_tile.to(q_tile.dtype), input_precision=PRECISION)
        top = higher
    at = (split * K + head) * Q * R + kept
    total = total / tl.maximum(mass, 1e-30)[:, None]
    tl.store(parts + at[:, None].to(tl.int64) * P + p[None, :], total, real[:, None])
    tl.store(sums + at, tl.where(mass > 0, top + tl.log(mass), float("-inf")), real)


@triton.jit(do_not_specialize=["splits", "Q", "out_head", "out_query"])
def _merge(
    parts, sums, out, total, count, splits, Q, out_head, out_query,
    R: tl.constexpr, P: tl.constexpr, SPLITS: tl.constexpr, COUNTED: tl.constexpr,
):  # fmt: skip
    """One row's parts into one. Six launches of torch's would cost more than they do."""
    row, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    s, p = tl.arange(0, SPLITS), tl.arange(0, P)
    real = row % Q < (tl.load(count).to(tl.int32) if COUNTED else Q)
    there = (s < splits) & real
    place = (s * heads + head) * Q * R + row
    part_sums = tl.load(sums + place, there, float("-inf"))
    top = tl.max(part_sums, 0)
    weights = tl.exp(part_sums - tl.where(real, top, 0.0))
    mass = tl.where(real, tl.sum(weights, 0), 1.0)
    values = tl.load(parts + place[:, None].to(tl.int64) * P + p[None, :], there[:, None], 0.0)
    values = tl.sum(values * weights[:, None], 0) / mass
    at = (head * R + row // Q) * out_head + row % Q * out_query
    tl.store(out + at + p, values.to(out.dtype.element_ty))
    tl.store(total + head * Q * R + row, top + tl.log(mass))


@triton.jit(do_not_specialize=["rows", "room"])
def _weights(scores, sums, weights, book, rows, room, COLUMNS: tl.constexpr):
    """The mean over all rows of exp(score - sum)."""
    column, S = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.load(book + 1)
    total, place = tl.zeros([COLUMNS], tl.float32), scores + column
    for row in range(rows):
        total += tl.exp(tl.load(place, column < S, float("-inf")) - tl.load(sums + row))
        place += room
    tl.store(weights + column, total / rows, column < S)


@triton.jit(do_not_specialize=["layer", "Q", "room"])
def _weights_again(
    q, book, sums, weights, spans, layer, Q, room, scale, q_head, q_row,
    K: tl.constexpr, R: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, EIGHT_BIT: tl.constexpr,
    SPANNED: tl.constexpr, FIELDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same from the keys, whose scores nobody kept: one tile of slots, every row of every head (of one span)."""
    first, S, block_slots = tl.load(book).to(tl.int32), tl.load(book + 1).to(tl.int32), tl.load(book + 2).to(tl.int32)
    span, tile, p = tl.program_id(0), first // TILE + tl.program_id(1), tl.arange(0, P)
    begin = tl.load(spans + 2 * span).to(tl.int32) * R if SPANNED else 0
    end = tl.load(spans + 2 * span + 1).to(tl.int32) * R if SPANNED else Q * R
    end = tl.where(tile * TILE < first + S, end, begin)  # nothing to do behind the end
    slot = tile * TILE + tl.arange(0, TILE)
    seen = (slot >= first) & (slot < first + S)
    block = tl.where(tile * TILE < first + S, tile * TILE // block_slots, 0)
    where = book + 3 + block * FIELDS
    stored = tl.int8 if EIGHT_BIT else q.dtype.element_ty
    k_block = tl.multiple_of(tl.load(where).to(tl.pointer_type(stored)), 16)
    total = tl.zeros([TILE], tl.float32)
    for head in range(K):
        at = (layer * K + head).to(tl.int64) * block_slots + slot - block * block_slots
        k_tile = tl.load(k_block + at[None, :] * P + p[:, None], seen[None, :], 0)
        factor = tl.zeros([TILE], tl.float32) + scale
        if EIGHT_BIT:
            k_scale = tl.load(where + 3).to(tl.pointer_type(q.dtype.element_ty))
            factor *= tl.load(k_scale + at, seen, 0.0).to(tl.float32)
        for start in range(begin, end, ROWS):
            row = start + tl.arange(0, ROWS)
            q_place = (row // R) * q_row + (head * R + row % R) * q_head
            q_tile = tl.load(q + q_place[:, None] + p[None, :], (row < end)[:, None], 0.0)
            score = tl.dot(q_tile, k_tile.to(q_tile.dtype), input_precision=PRECISION) * factor[None, :]
            score -= tl.load(sums + head * Q * R + row % R * Q + row // R, row < end, float("inf"))[:, None]
            total += tl.sum(tl.exp(score), 0)
    place = weights + span.to(tl.int64) * room + slot - first
    tl.store(place, total / tl.maximum(K * (end - begin), 1), seen)


# --- among words -----------------------------------------------------------------------------------------------------


def attend_text(talk: Tensor, layer: int, q_HQP: Tensor, k_KQP: Tensor, v_KQP: Tensor) -> Tensor:
    """As `reading.TextCache.attend`: causal attention of new words to earlier ones and each other, keeping their keys.

    talk: (4,) int64 on the GPU: words that came before, how many of the new ones are real (others get zeros, and
    nothing of them is kept), for how many words there is room, and where that begins: (layers, 2, K, room, P).
    """
    (H, Q, P), K = q_HQP.shape, len(k_KQP)
    q, k, v = _rows_whole(q_HQP), _rows_whole(k_KQP), _rows_whole(v_KQP)
    out, rows = q.new_empty(Q, H, P), _tile(q, Q * H // K)
    _attend_text[(triton.cdiv(Q * H // K, rows), K)](
        q, k, v, talk, out, layer, P**-0.5, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], Q, K, H // K, P, rows,
        TILE, precision(q), num_stages=2,
    )  # fmt: skip
    return out.transpose(0, 1)


@triton.jit(do_not_specialize=["layer", "Q"])
def _attend_text(
    q, k, v, talk, out, layer, scale, q_head, q_row, k_head, k_row, v_head, v_row, Q,
    K: tl.constexpr, R: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some rows of one key head: first over the room's words, then over the new ones, which the first rows' program
    puts into the room. Others may not find them there yet, so everybody reads the new ones where they are."""
    head, p = tl.program_id(1), tl.arange(0, P)
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
    total = tl.where(real[:, None], total, 0.0)
    tl.store(out + place[:, None] + p[None, :], total.to(out.dtype.element_ty), (query < Q)[:, None])
