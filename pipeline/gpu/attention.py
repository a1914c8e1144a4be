"""Triton kernels of attention: to the memory (hundreds of thousands of slots in many blocks), and among words.

Used through `pipeline.gpu.mixer`; `memory.Memory._attend` and `reading.TextCache.attend` are the plain torch code
beside them that is always right. Sums are in fp32; the operands of matrix products are in the model's type.

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
    from pipeline.memory.memory import Memory

TILE = 64  # slots of the memory, and tokens of the scan, that one step reads
ROWS_AGAIN = 32  # rows of one key head from which on scores are computed twice: 8 bytes a row against a key's 256
WIDTHS = (16, 32, 64, 128)  # of a head
LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)  # 2 ** x is one instruction, e ** x two


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


def _shape(q_HQP: Tensor, rows: int) -> tuple[int, dict[str, int]]:
    """Rows of one program, and its warps and pipeline stages. Large tiles of many rows fit into large shared memory.

    H100, 322 rows over 538,200 slots: 0.88 ms with 128 rows, 0.91 with 64. One row reads at the speed of memory.
    """
    roomy, most = gpu_size(q_HQP.device)[1], max(16, triton.next_power_of_2(rows))
    if q_HQP.itemsize > 2 or not roomy:
        return min(128 // q_HQP.itemsize, most), {"num_warps": 4, "num_stages": 2}
    if most > 64:
        return 128, {"num_warps": 8, "num_stages": 3}
    return most, {"num_warps": 4, "num_stages": 4 if most == 16 else 3}


def scan(
    memory: Memory | Slots, layer: int, q_HQP: Tensor, keep_scores: bool = False, count: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Parts (n, K, M, P) of the softmax-weighted values, their log-sum-exp (n, K, M) and scores (K, M, S), all fp32.

    One kernel walks all blocks, cut into parts that run side by side. A kernel per block would spend more time on being
    launched than on reading an hour of memory; here the blocks' addresses travel as a small table.
    """
    of, (H, Q, P), q = Slots.of(memory), q_HQP.shape, _rows_whole(q_HQP)
    K, R, new = of.heads, H // of.heads, q.new_empty
    splits, (rows, speed) = _splits(q, K), _shape(q, Q * R)
    parts, sums = new(splits, K, Q * R, P, dtype=torch.float32), new(splits, K, Q * R, dtype=torch.float32)
    scores = new(K, Q * R, of.room, dtype=torch.float32) if keep_scores else None
    _attend[(triton.cdiv(Q * R, rows), splits, K)](
        q, of.book, of.book if count is None else count, parts, sums, scores if keep_scores else parts,
        layer, Q, of.room, P**-0.5, *q.stride()[:2], K, R, P, rows, TILE, of.eight_bit, keep_scores, count is not None,
        of.columns, precision(q), **speed,
    )  # fmt: skip
    return parts, sums, scores


def _splits(x: Tensor, heads: int) -> int:
    return max(1, gpu_size(x.device)[0] // heads)


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
        by_head, (rows, speed), digits = weights.new_empty(n, K, of.room), _shape(q, Q * H // K), precision(q)
        _weights_again[(n, _splits(q, K), K)](
            q, of.book, total, by_head, of.book if spans is None else spans, layer, Q, of.room, P**-0.5,
            *q.stride()[:2], K, H // K, P, rows, TILE, of.eight_bit, spans is not None, of.columns, digits, **speed,
        )  # fmt: skip
        torch.sum(by_head, 1, out=weights)  # heads apart until here, so that no order of threads can change the sum
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
    last, in_block = first + S, block_slots // TILE
    begin, end = _part(first, last, split, TILE)
    end = tl.where(tl.program_id(0) * ROWS < rows, end, begin)
    top, mass = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, P], tl.float32)
    before = (layer * K + head).to(tl.int64) * block_slots  # slots of other layers and heads, inside any block
    to = scores + (head * Q * R + kept).to(tl.int64) * room - first
    for block in range(begin // in_block, tl.cdiv(end, in_block)):
        k, v, k_scale, v_scale = _columns(q, book + 3 + block * FIELDS, before - block * block_slots, P, EIGHT_BIT)
        low, high = tl.maximum(begin, block * in_block), tl.minimum(end, (block + 1) * in_block)
        whole = tl.minimum(high, tl.maximum(low, tl.cdiv(first, TILE)))  # from here to `ragged` all slots are visible
        ragged = tl.maximum(whole, tl.minimum(high, last // TILE))
        top, mass, total = _walk(
            low, whole, q_tile, k, v, k_scale, v_scale, to, real, first, last, scale, top, mass, total,
            P, TILE, False, EIGHT_BIT, SCORES, PRECISION,
        )  # fmt: skip
        top, mass, total = _walk(
            whole, ragged, q_tile, k, v, k_scale, v_scale, to, real, first, last, scale, top, mass, total,
            P, TILE, True, EIGHT_BIT, SCORES, PRECISION,
        )  # fmt: skip
        top, mass, total = _walk(
            ragged, high, q_tile, k, v, k_scale, v_scale, to, real, first, last, scale, top, mass, total,
            P, TILE, False, EIGHT_BIT, SCORES, PRECISION,
        )  # fmt: skip
    at = (split * K + head) * Q * R + kept
    total = total / tl.maximum(mass, 1e-30)[:, None]
    tl.store(parts + at[:, None].to(tl.int64) * P + p[None, :], total, real[:, None])
    tl.store(sums + at, tl.where(mass > 0, top * LN2 + tl.log(mass), float("-inf")), real)


@triton.jit
def _part(first, last, split, TILE: tl.constexpr):
    """Which tiles, counted from the first block's first slot, a program walks: one of equal parts."""
    start = first // TILE
    tiles = tl.cdiv(last, TILE) - start
    each = tl.cdiv(tiles, tl.num_programs(1))
    return start + tl.minimum(split * each, tiles), start + tl.minimum((split + 1) * each, tiles)


@triton.jit
def _columns(q, where, shift, P: tl.constexpr, EIGHT_BIT: tl.constexpr):
    """Where keys, values and their scales lie in one block, so that a slot's number (in all blocks) finds them.

    Looked up once a block: where every tile looked for itself, the next tiles' loads could not start early (1.6 ms
    where it now takes 0.9).
    """
    stored = tl.int8 if EIGHT_BIT else q.dtype.element_ty
    k = tl.multiple_of(tl.load(where).to(tl.pointer_type(stored)), 16) + shift * P
    v = tl.multiple_of(tl.load(where + 1).to(tl.pointer_type(stored)), 16) + shift * P
    k_scale, v_scale = k, v
    if EIGHT_BIT:
        k_scale = tl.load(where + 3).to(tl.pointer_type(q.dtype.element_ty)) + shift
        v_scale = tl.load(where + 4).to(tl.pointer_type(q.dtype.element_ty)) + shift
    return k, v, k_scale, v_scale


@triton.jit
def _walk(
    begin, end, q_tile, k, v, k_scale, v_scale, to, real, first, last, scale, top, mass, total,
    P: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr, EIGHT_BIT: tl.constexpr, SCORES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Some tiles of one block into a running softmax (arXiv 2205.14135, algorithm 1). WHOLE: all slots are visible.

    Keys that are not visible are read all the same; their values are not, since 0 times what nobody wrote may be NaN.
    """
    p, factor = tl.arange(0, P), scale * LOG2E
    for i in range(begin, end):
        slot = i * TILE + tl.arange(0, TILE)
        seen = (slot >= first) & (slot < last)
        k_tile = tl.load(k + slot[None, :] * P + p[:, None])
        v_place = v + slot[:, None] * P + p[None, :]
        v_tile = tl.load(v_place) if WHOLE else tl.load(v_place, seen[:, None], 0)
        score = tl.dot(q_tile, k_tile.to(q_tile.dtype), input_precision=PRECISION)
        if EIGHT_BIT:
            score *= tl.load(k_scale + slot).to(tl.float32)[None, :]
        if not WHOLE:
            score = tl.where(seen[None, :], score, float("-inf"))
        if SCORES:
            tl.store(to[:, None] + slot[None, :], score * scale, real[:, None] & seen[None, :])
        higher = tl.maximum(top, tl.max(score, 1) * factor)
        weight, fade = tl.exp2(score * factor - higher[:, None]), tl.exp2(top - higher)
        mass = mass * fade + tl.sum(weight, 1)
        if EIGHT_BIT:
            scales = tl.load(v_scale + slot) if WHOLE else tl.load(v_scale + slot, seen, 0.0)
            weight *= scales.to(tl.float32)[None, :]
        total = total * fade[:, None]
        total = tl.dot(weight.to(q_tile.dtype), v_tile.to(q_tile.dtype), total, input_precision=PRECISION)
        top = higher
    return top, mass, total


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
    """The same of one key head (of one span) over one part of the slots, from the keys: nobody kept the scores."""
    span, split, head = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    some = tl.load(spans + 2 * span).to(tl.int32) * R if SPANNED else 0
    rows = tl.load(spans + 2 * span + 1).to(tl.int32) * R if SPANNED else Q * R
    first, S, block_slots = tl.load(book).to(tl.int32), tl.load(book + 1).to(tl.int32), tl.load(book + 2).to(tl.int32)
    last, in_block, p = first + S, block_slots // TILE, tl.arange(0, P)
    begin, end = _part(first, last, split, TILE)
    before = (layer * K + head).to(tl.int64) * block_slots
    out, share = weights + (span * K + head).to(tl.int64) * room - first, 1.0 / (K * tl.maximum(rows - some, 1))
    for start in range(some, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        q_place = (row // R) * q_row + (head * R + row % R) * q_head
        q_tile = tl.load(q + q_place[:, None] + p[None, :], (row < rows)[:, None], 0.0)
        mass = tl.load(sums + head * Q * R + row % R * Q + row // R, row < rows, float("inf")) * LOG2E
        for block in range(begin // in_block, tl.cdiv(end, in_block)):
            k, _, k_scale, _ = _columns(q, book + 3 + block * FIELDS, before - block * block_slots, P, EIGHT_BIT)
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


# --- among words -----------------------------------------------------------------------------------------------------


def attend_text(talk: Tensor, layer: int, q_HQP: Tensor, k_KQP: Tensor, v_KQP: Tensor) -> Tensor:
    """As `reading.TextCache.attend`: causal attention of new words to earlier ones and each other, keeping their keys.

    talk: (4,) int64 on the GPU: words that came before, how many of the new ones are real (others get zeros, and
    nothing of them is kept), for how many words there is room, and where that begins: (layers, 2, K, room, P).
    """
    (H, Q, P), K = q_HQP.shape, len(k_KQP)
    q, k, v = _rows_whole(q_HQP), _rows_whole(k_KQP), _rows_whole(v_KQP)
    out, rows = q.new_empty(Q, H, P), min(128 // q.itemsize, max(16, triton.next_power_of_2(Q * H // K)))
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
