"""Triton kernels that scan a memory: hundreds of thousands of slots in many blocks, under a running softmax.

`memory/attention.py` holds the plain torch code beside them that is always right. Sums are in fp32; the operands of
matrix products are in the model's type.

What changes from call to call (how many slots there are and where they lie, see layout.py) is read from the GPU's
memory, so that a recorded launch serves all of them: grids and buffers are made for the most there may be, and programs
beyond what is there leave early. H, K: query and key heads, R = H / K, Q queries, P the width of a head, S visible
slots. The M = Q R rows of one key head are kept head by head and worked at query by query, so that some queries are
neighbouring rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.gpu.device import TILE, gpu_size, precision
from pipeline.gpu.layout import BLOCK, HEAD, Slots

LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)  # 2 ** x is one instruction, e ** x two
FIRST, LENGTH, BLOCK_SLOTS = (tl.constexpr(HEAD.index(name)) for name in ("first", "length", "block_slots"))
K_AT, V_AT, K_SCALE_AT, V_SCALE_AT = (tl.constexpr(BLOCK.index(name)) for name in ("k", "v", "k_scale", "v_scale"))
SCORES, SUMS = tl.constexpr(1), tl.constexpr(2)  # what a walk keeps besides; 0: nothing
MERGED = 1 << 14  # numbers of one row's parts that one program merges
HEADER, ADDRESSES = tl.constexpr(len(HEAD)), tl.constexpr(len(BLOCK))  # numbers before the blocks', and of each block


def tile_shape(q_HQP: Tensor, rows: int) -> tuple[int, dict[str, int]]:
    """Rows of one program, and its warps and pipeline stages. Large tiles of many rows fit into large shared memory.

    H100, 322 rows over 538,200 slots: 0.88 ms with 128 rows, 0.91 with 64. One row reads at the speed of memory.
    """
    roomy, most = gpu_size(q_HQP.device)[1], max(16, triton.next_power_of_2(rows))
    if q_HQP.shape[-1] > 128:  # keys and values of one stage take 64 KB
        return min(64, most), {"num_warps": 4, "num_stages": 2}
    if q_HQP.itemsize > 2 or not roomy:
        return min(128 // q_HQP.itemsize, most), {"num_warps": 4, "num_stages": 2}
    if most > 64:
        return 128, {"num_warps": 8, "num_stages": 3}
    return most, {"num_warps": 4, "num_stages": 4 if most == 16 else 3}


def scan(
    slots: Slots, layer: int, q_HQP: Tensor, keep_scores: bool = False, count: Tensor | None = None, beside: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Parts (n, K, M, P) of the softmax-weighted values, their log-sum-exp (n, K, M) and scores (K, M, S), all fp32.

    One kernel walks all blocks, cut into parts that run side by side. A kernel per block would spend more time on being
    launched than on reading an hour of memory; here the blocks' addresses travel as a small table.

    beside: so many parts more, at the end and unwritten: of keys that lie elsewhere, for whoever merges them.
    """
    (H, Q, P), q = q_HQP.shape, contiguous_rows(q_HQP)
    K, R, new = slots.heads, H // slots.heads, q.new_empty
    rows, speed = tile_shape(q, Q * R)
    splits = min(splits_of(q, K, triton.cdiv(Q * R, rows)), MERGED // P - beside)
    n = splits + beside
    parts, sums = new(n, K, Q * R, P, dtype=torch.float32), new(n, K, Q * R, dtype=torch.float32)
    scores = new(K, Q * R, slots.room, dtype=torch.float32) if keep_scores else None
    _attend[(triton.cdiv(Q * R, rows), splits, K)](
        q,
        slots.book,
        slots.book if count is None else count,
        parts,
        sums,
        scores if keep_scores else parts,
        layer,
        Q,
        slots.room,
        P**-0.5,
        *q.stride()[:2],
        K,
        R,
        P,
        rows,
        TILE,
        slots.eight_bit,
        int(keep_scores),
        count is not None,
        precision(q),
        **speed,
    )
    return parts, sums, scores


def splits_of(x: Tensor, heads: int, tiles: int = 1) -> int:
    """Parts of the slots that run side by side; where many tiles of rows keep the GPU busy, as few as will do."""
    programs = gpu_size(x.device)[0]
    return max(1, min(programs // heads, 2 * programs // (heads * tiles)))


def contiguous_rows(x_HQP: Tensor) -> Tensor:
    return x_HQP if x_HQP.stride(-1) == 1 else x_HQP.contiguous()


def merge(parts: Tensor, sums: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Parts and sums of `scan` into one: `out` filled (any shape of K M P numbers), and its log-sum-exp (K, M)."""
    (splits, K, M, P), total = parts.shape, torch.empty_like(sums[0])
    _merge[(M, K)](parts, sums, out, total, parts, splits, M, M * P, P, 1, P, triton.next_power_of_2(splits), False)
    return out, total


def merge_queries(parts: Tensor, sums: Tensor, q_HQP: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same as (H, Q, P) in the queries' type: a view of (Q, H, P), in which order the next projection reads it."""
    (splits, K, M, P), (H, Q, _), total = parts.shape, q_HQP.shape, torch.empty_like(sums[0])
    out = q_HQP.new_empty(Q, H, P)
    _merge[(M, K)](
        parts,
        sums,
        out,
        total,
        parts if count is None else count,
        splits,
        Q,
        P,
        H * P,
        H // K,
        P,
        triton.next_power_of_2(splits),
        count is not None,
    )
    return out.transpose(0, 1), total


@triton.jit(do_not_specialize=["layer", "Q", "room"])
def _attend(
    q,
    book,
    count,
    parts,
    sums,
    scores,
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
    KEPT: tl.constexpr,
    COUNTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some rows (queries of one key head) over one part of the slots: softmax-weighted values and log-sum-exp."""
    split, head = tl.program_id(1), tl.program_id(2)  # row tiles of one part run together and share its slots in L2
    row, p = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, P)
    rows = tl.load(count).to(tl.int32) * R if COUNTED else Q * R
    real, kept = row < rows, row % R * Q + row // R
    q_place = (row // R) * q_row + (head * R + row % R) * q_head
    q_tile = tl.load(q + q_place[:, None] + p[None, :], real[:, None], 0.0)
    first, S = tl.load(book + FIRST).to(tl.int32), tl.load(book + LENGTH).to(tl.int32)
    block_slots = tl.load(book + BLOCK_SLOTS).to(tl.int32)
    last = first + S
    begin, end = part_of(first, last, split, TILE)
    end = tl.where(tl.program_id(0) * ROWS < rows, end, begin)
    top, mass, total = through(
        begin,
        end,
        q,
        q_tile,
        book,
        (layer * K + head).to(tl.int64) * block_slots,
        scores + (head * Q * R + kept).to(tl.int64) * room - first,
        real,
        book,
        first,
        last,
        block_slots,
        scale,
        ROWS,
        P,
        TILE,
        EIGHT_BIT,
        KEPT,
        1,
        PRECISION,
    )
    at = (split * K + head) * Q * R + kept
    total = total / tl.maximum(mass, 1e-30)[:, None]
    tl.store(parts + at[:, None].to(tl.int64) * P + p[None, :], total, real[:, None])
    tl.store(sums + at, tl.where(mass > 0, top * LN2 + tl.log(mass), float("-inf")), real)


@triton.jit
def through(
    begin,
    end,
    q,
    q_tile,
    book,
    before,
    to,
    keeps,
    places,
    first,
    last,
    block_slots,
    scale,
    ROWS: tl.constexpr,
    P: tl.constexpr,
    TILE: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
    KEPT: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some tiles of a memory under a running softmax: its maximum (of powers of 2), mass and weighted values.

    before: slots of other layers and heads, inside any block. KEPT, to, keeps, places, STEP: see `walk`.
    """
    top, mass = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    total, in_block = tl.zeros([ROWS, P], tl.float32), block_slots // TILE
    for block in range(begin // in_block, tl.cdiv(end, in_block)):
        k, v, k_scale, v_scale = block_at(
            q, book + HEADER + block * ADDRESSES, before - block * block_slots, P, EIGHT_BIT
        )
        low, high = tl.maximum(begin, block * in_block), tl.minimum(end, (block + 1) * in_block)
        whole = tl.minimum(high, tl.maximum(low, tl.cdiv(first, TILE)))  # from here to `ragged` all slots are visible
        ragged = tl.maximum(whole, tl.minimum(high, last // TILE))
        top, mass, total = walk(
            low,
            whole,
            q_tile,
            k,
            v,
            k_scale,
            v_scale,
            to,
            keeps,
            places,
            first,
            last,
            scale,
            top,
            mass,
            total,
            P,
            TILE,
            False,
            EIGHT_BIT,
            KEPT,
            STEP,
            PRECISION,
        )
        top, mass, total = walk(
            whole,
            ragged,
            q_tile,
            k,
            v,
            k_scale,
            v_scale,
            to,
            keeps,
            places,
            first,
            last,
            scale,
            top,
            mass,
            total,
            P,
            TILE,
            True,
            EIGHT_BIT,
            KEPT,
            STEP,
            PRECISION,
        )
        top, mass, total = walk(
            ragged,
            high,
            q_tile,
            k,
            v,
            k_scale,
            v_scale,
            to,
            keeps,
            places,
            first,
            last,
            scale,
            top,
            mass,
            total,
            P,
            TILE,
            False,
            EIGHT_BIT,
            KEPT,
            STEP,
            PRECISION,
        )
    return top, mass, total


@triton.jit
def part_of(first, last, split, TILE: tl.constexpr):
    """Which tiles, counted from the first block's first slot, a program walks: one of equal parts."""
    start = first // TILE
    tiles = tl.cdiv(last, TILE) - start
    each = tl.cdiv(tiles, tl.num_programs(1))
    return start + tl.minimum(split * each, tiles), start + tl.minimum((split + 1) * each, tiles)


@triton.jit
def block_at(q, where, shift, P: tl.constexpr, EIGHT_BIT: tl.constexpr):
    """Where keys, values and their scales lie in one block, so that a slot's number (in all blocks) finds them.

    Looked up once a block: where every tile looked for itself, the next tiles' loads could not start early (1.6 ms
    where it now takes 0.9).
    """
    stored = tl.int8 if EIGHT_BIT else q.dtype.element_ty
    k = tl.multiple_of(tl.load(where + K_AT).to(tl.pointer_type(stored)), 16) + shift * P
    v = tl.multiple_of(tl.load(where + V_AT).to(tl.pointer_type(stored)), 16) + shift * P
    k_scale, v_scale = k, v
    if EIGHT_BIT:
        k_scale = tl.load(where + K_SCALE_AT).to(tl.pointer_type(q.dtype.element_ty)) + shift
        v_scale = tl.load(where + V_SCALE_AT).to(tl.pointer_type(q.dtype.element_ty)) + shift
    return k, v, k_scale, v_scale


@triton.jit
def walk(
    begin,
    end,
    q_tile,
    k,
    v,
    k_scale,
    v_scale,
    to,
    keeps,
    places,
    first,
    last,
    scale,
    top,
    mass,
    total,
    P: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
    KEPT: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some tiles of one block into a running softmax (arXiv 2205.14135, algorithm 1). WHOLE: all slots are visible.

    KEPT: what goes behind the addresses `to` of those rows that are in `keeps`: SCORES, of each slot, or SUMS, of each
    tile the log-sum-exp in powers of 2, STEP numbers apart, where `places` says for each tile of the memory.

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
        if KEPT == SCORES:
            tl.store(to[:, None] + slot[None, :], score * scale, keeps[:, None] & seen[None, :])
        higher = tl.maximum(top, tl.max(score, 1) * factor)
        weight, fade = tl.exp2(score * factor - higher[:, None]), tl.exp2(top - higher)
        found = tl.sum(weight, 1)
        mass = mass * fade + found
        if KEPT == SUMS:
            tl.store(to + tl.load(places + i - first // TILE) * STEP, higher + tl.log2(found), keeps)
        if EIGHT_BIT:
            scales = tl.load(v_scale + slot) if WHOLE else tl.load(v_scale + slot, seen, 0.0)
            weight *= scales.to(tl.float32)[None, :]
        total = total * fade[:, None]
        total = tl.dot(weight.to(q_tile.dtype), v_tile.to(q_tile.dtype), total, input_precision=PRECISION)
        top = higher
    return top, mass, total


@triton.jit(do_not_specialize=["splits", "Q", "out_head", "out_query"])
def _merge(
    parts,
    sums,
    out,
    total,
    count,
    splits,
    Q,
    out_head,
    out_query,
    R: tl.constexpr,
    P: tl.constexpr,
    SPLITS: tl.constexpr,
    COUNTED: tl.constexpr,
):
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
