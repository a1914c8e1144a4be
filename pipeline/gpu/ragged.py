"""Triton kernels of one attention launch for many answers: each has its own number of words, and its own memory.

Which rows look at which memory stands in tables of int64 on the GPU, with addresses of what each has of its own. So one
recorded launch serves any mixture and any length. `attention.py` is the same for the words of one answer; letters as in
attention_scan.py, and N words in all, of which the first `count` are real. A row of a key head is one of a word's query
heads: the r-th of word n has the number n R + r.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    LN2,
    LOG2E,
    block_at,
    contiguous_rows,
    part_of,
    tile_shape,
    walk,
)
from pipeline.gpu.device import TILE, gpu_size, precision
from pipeline.gpu.ragged_tables import LOOK_AT, SPAN_AT, TILE_AT

TILE_SIZE, SPAN_SIZE, LOOK_SIZE = (tl.constexpr(len(names)) for names in (TILE_AT, SPAN_AT, LOOK_AT))
WORD_SLOTS, LOOK_SLOTS = 256, 128


@dataclass(frozen=True)
class Ragged:
    """The tables of one pass. kept (N,): where each word's scores (H, slots) go. tiles, rows: the tiles of words of
    which each is an answer's only one, and how many rows a tile has; long, long_rows: those of the others, which are
    seen in `spans` (None: there are none)."""

    count: Tensor
    tiles: Tensor
    kept: Tensor
    looks: Tensor
    rows: int
    splits: int
    key_heads: int
    eight_bit: bool
    long: Tensor | None = None
    spans: Tensor | None = None
    long_rows: int = 0


def attend_ragged(to: Ragged, layer: int, q_HQP: Tensor, place: int | None = None) -> Tensor:
    """Attention of all words (H, N, P), each to its own memory; as (N, H, P) seen from H. place: of the looks."""
    (H, N, P), q, K = q_HQP.shape, contiguous_rows(q_HQP), to.key_heads
    R, rows = H // K, [(to.tiles, to.rows, place is not None)]
    rows += [] if to.long is None else [(to.long, to.long_rows, False)]
    parts = q.new_empty(to.splits, K, N * R, P, dtype=torch.float32)
    sums = q.new_empty(to.splits, K, N * R, dtype=torch.float32)
    for tiles, tile, kept in rows:
        _attend_tiles[(len(tiles), to.splits, K)](
            q,
            tiles,
            to.kept,
            parts,
            sums,
            layer,
            N * R,
            P**-0.5,
            *q.stride()[:2],
            K,
            R,
            P,
            tile,
            TILE,
            to.eight_bit,
            kept,
            precision(q),
            **tile_shape(q, tile)[1],
        )
    out, total = q.new_empty(N, H, P), q.new_empty(N, H, dtype=torch.float32)
    width = triton.next_power_of_2(to.splits)
    _merge_tiles[(N * R, K)](parts, sums, out, total, to.count, to.splits, R, P, width)
    if place is not None:
        _look(to, layer, q, total, place)
    return out.transpose(0, 1)


def _look(to: Ragged, layer: int, q_HQP: Tensor, total_NH: Tensor, place: int) -> None:
    """Where words and spans look, into the looks' `place`."""
    (H, _, P), K = q_HQP.shape, to.key_heads
    if to.spans is not None:
        _weigh_spans[(len(to.spans), to.splits, K)](
            q_HQP,
            to.spans,
            total_NH,
            layer,
            P**-0.5,
            *q_HQP.stride()[:2],
            K,
            H // K,
            P,
            to.long_rows,
            TILE,
            to.eight_bit,
            precision(q_HQP),
            **tile_shape(q_HQP, to.long_rows)[1],
        )
    programs = (2 * gpu_size(q_HQP.device)[0], len(to.looks))
    _weigh_words[programs](to.looks, total_NH, H, WORD_SLOTS)
    _look_at[programs](to.looks, place, triton.next_power_of_2(K), LOOK_SLOTS)


@triton.jit(do_not_specialize=["layer", "rows"])
def _attend_tiles(
    q,
    tiles,
    kept,
    parts,
    sums,
    layer,
    rows,
    scale,
    q_head,
    q_row,
    K: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
    SCORES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some rows of one key head over one part of their memory: softmax-weighted values and log-sum-exp."""
    at, split, head = tiles + tl.program_id(0) * TILE_SIZE, tl.program_id(1), tl.program_id(2)
    book = tl.load(at).to(tl.pointer_type(tl.int64))
    row, p = tl.load(at + 1).to(tl.int32) + tl.arange(0, ROWS), tl.arange(0, P)
    real = row < tl.load(at + 2).to(tl.int32)
    q_tile = tl.load(q + ((row // R) * q_row + (head * R + row % R) * q_head)[:, None] + p[None, :], real[:, None], 0.0)
    first, S = tl.load(book + FIRST).to(tl.int32), tl.load(book + LENGTH).to(tl.int32)
    block_slots = tl.load(book + BLOCK_SLOTS).to(tl.int32)
    last, in_block = first + S, block_slots // TILE
    begin, end = part_of(first, last, split, TILE)
    top, mass = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, P], tl.float32)
    before = (layer * K + head).to(tl.int64) * block_slots  # slots of other layers and heads, inside any block
    to, keeps = sums + row, real
    if SCORES:
        address = tl.load(kept + row // R, real, 0)
        keeps = real & (address != 0)
        to = address.to(tl.pointer_type(tl.float32)) + (head * R + row % R).to(tl.int64) * S - first
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
            SCORES,
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
            SCORES,
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
            SCORES,
            PRECISION,
        )
    place = (split * K + head) * rows + row
    total = total / tl.maximum(mass, 1e-30)[:, None]
    tl.store(parts + place[:, None].to(tl.int64) * P + p[None, :], total, real[:, None])
    tl.store(sums + place, tl.where(mass > 0, top * LN2 + tl.log(mass), float("-inf")), real)


@triton.jit(do_not_specialize=["splits"])
def _merge_tiles(parts, sums, out, total, count, splits, R: tl.constexpr, P: tl.constexpr, SPLITS: tl.constexpr):
    """One row's parts into one; zeros for a row that is not real."""
    row, head, rows, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(0), tl.num_programs(1)
    s, p = tl.arange(0, SPLITS), tl.arange(0, P)
    real = row // R < tl.load(count)
    there = (s < splits) & real
    place = (s * heads + head) * rows + row
    part_sums = tl.load(sums + place, there, float("-inf"))
    top = tl.max(part_sums, 0)
    weights = tl.exp(part_sums - tl.where(real, top, 0.0))
    mass = tl.where(real, tl.sum(weights, 0), 1.0)
    values = tl.load(parts + place[:, None].to(tl.int64) * P + p[None, :], there[:, None], 0.0)
    values = tl.sum(values * weights[:, None], 0) / mass
    at = (row // R) * heads * R + head * R + row % R
    tl.store(out + at * P + p, values.to(out.dtype.element_ty))
    tl.store(total + at, top + tl.log(mass))


@triton.jit(do_not_specialize=["layer"])
def _weigh_spans(
    q,
    spans,
    total,
    layer,
    scale,
    q_head,
    q_row,
    K: tl.constexpr,
    R: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A span's mean weights for one key head and one part of its memory, (K, slots), from the keys again."""
    at, split, head = spans + tl.program_id(0) * SPAN_SIZE, tl.program_id(1), tl.program_id(2)
    book = tl.load(at).to(tl.pointer_type(tl.int64))
    some, rows = tl.load(at + 1).to(tl.int32), tl.load(at + 2).to(tl.int32)
    first, S = tl.load(book + FIRST).to(tl.int32), tl.load(book + LENGTH).to(tl.int32)
    block_slots = tl.load(book + BLOCK_SLOTS).to(tl.int32)
    last, in_block, p = first + S, block_slots // TILE, tl.arange(0, P)
    begin, end = part_of(first, last, split, TILE)
    before = (layer * K + head).to(tl.int64) * block_slots
    out = tl.load(at + 3).to(tl.pointer_type(tl.float32)) + head.to(tl.int64) * S - first
    share = 1.0 / tl.maximum(rows - some, 1)
    for start in range(some, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        q_place = (row // R) * q_row + (head * R + row % R) * q_head
        q_tile = tl.load(q + q_place[:, None] + p[None, :], (row < rows)[:, None], 0.0)
        mass = tl.load(total + (row // R) * K * R + head * R + row % R, row < rows, float("inf")) * LOG2E
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


@triton.jit
def _weigh_words(looks, total, H: tl.constexpr, SLOTS: tl.constexpr):
    """A word's mean weights from its scores, over those of its first head: whoever reads a slot's scores writes it."""
    at = looks + tl.program_id(1) * LOOK_SIZE
    scores = tl.load(at).to(tl.pointer_type(tl.float32))
    word, S = tl.load(at + 2), tl.load(at + 3).to(tl.int32)
    for begin in range(tl.program_id(0) * SLOTS, tl.where(word >= 0, S, 0), tl.num_programs(0) * SLOTS):
        slot, found = begin + tl.arange(0, SLOTS), tl.zeros([SLOTS], tl.float32)
        place = scores + slot
        for h in range(H):
            found += tl.exp(tl.load(place, slot < S, float("-inf")) - tl.load(total + word * H + h))
            place += S
        tl.store(scores + slot, found / H, slot < S)


@triton.jit(do_not_specialize=["place"])
def _look_at(looks, place, HEADS: tl.constexpr, SLOTS: tl.constexpr):
    """What each picture of a memory got of a look, the mean over its rows of weights: one program works through a
    picture, so the order of its sum never changes."""
    at = looks + tl.program_id(1) * LOOK_SIZE
    weights = tl.load(at).to(tl.pointer_type(tl.float32))
    word, S = tl.load(at + 2), tl.load(at + 3)
    heads = tl.where(word >= 0, 1, tl.load(at + 1))
    ends, pictures = tl.load(at + 4).to(tl.pointer_type(tl.int64)), tl.load(at + 5).to(tl.int32)
    out = tl.load(at + 6).to(tl.pointer_type(tl.float32)) + place.to(tl.int64) * pictures
    head = tl.arange(0, HEADS)
    for i in range(tl.program_id(0), pictures, tl.num_programs(0)):
        start, end = tl.load(ends + i - 1, i > 0, 0).to(tl.int32), tl.load(ends + i).to(tl.int32)
        found = tl.zeros([HEADS, SLOTS], tl.float32)
        for begin in range(start, end, SLOTS):
            slot = begin + tl.arange(0, SLOTS)
            there = (head < heads)[:, None] & (slot < end)[None, :]
            found += tl.load(weights + head[:, None] * S + slot[None, :], there, 0.0)
        tl.store(out + i, tl.sum(tl.sum(found, 1), 0) / heads)
