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
    SUMS,
    block_at,
    contiguous_rows,
    part_of,
    through,
    tile_shape,
)
from pipeline.gpu.device import TILE, gpu_size, precision
from pipeline.gpu.ragged_tables import LOOK_AT, TILE_AT

TILE_SIZE, LOOK_SIZE = (tl.constexpr(len(names)) for names in (TILE_AT, LOOK_AT))
LOOK_ROWS, LOOK_SUMS = 16, 64  # that a program works through at once


@dataclass(frozen=True)
class Ragged:
    """The tables of one pass. tiles, rows: the tiles of rows, and how many rows each has; long, long_rows: those of
    memories at which more rows look (None: there are none). kept (N,): where each word's sums (K, sums, R) go, 0 where
    its look is not wanted."""

    count: Tensor
    tiles: Tensor
    kept: Tensor
    looks: Tensor
    rows: int
    splits: int
    key_heads: int
    eight_bit: bool
    long: Tensor | None = None
    long_rows: int = 0

    @property
    def kinds(self) -> list[tuple[Tensor, int]]:
        return [(self.tiles, self.rows), *([] if self.long is None else [(self.long, self.long_rows)])]


def attend_ragged(to: Ragged, layer: int, q_HQP: Tensor, place: int | None = None) -> Tensor:
    """Attention of all words (H, N, P), each to its own memory; as (N, H, P) seen from H. place: of the looks."""
    (H, N, P), q, K = q_HQP.shape, contiguous_rows(q_HQP), to.key_heads
    R = H // K
    parts = q.new_empty(to.splits, K, N * R, P, dtype=torch.float32)
    sums = q.new_empty(to.splits, K, N * R, dtype=torch.float32)
    for tiles, rows in to.kinds:
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
            rows,
            TILE,
            to.eight_bit,
            0 if place is None else SUMS.value,
            precision(q),
            **tile_shape(q, rows)[1],
        )
    out, total = q.new_empty(N, H, P), q.new_empty(N, H, dtype=torch.float32)
    width = triton.next_power_of_2(to.splits)
    _merge_tiles[(N * R, K)](parts, sums, out, total, to.count, to.splits, R, P, width)
    if place is not None:
        _look(to, layer, q, total, place)
    return out.transpose(0, 1)


def _look(to: Ragged, layer: int, q_HQP: Tensor, total_NH: Tensor, place: int) -> None:
    """Where words looked, into the looks' `place`."""
    (H, _, P), K, programs = q_HQP.shape, to.key_heads, gpu_size(q_HQP.device)[0]
    for tiles, rows in to.kinds:  # few tiles have many programs, so that none has many mixed tiles, one after the other
        _sum_mixed[(len(tiles), max(to.splits, 4 * programs // len(tiles)), K)](
            q_HQP,
            tiles,
            to.kept,
            layer,
            P**-0.5,
            *q_HQP.stride()[:2],
            K,
            H // K,
            P,
            rows,
            TILE,
            to.eight_bit,
            precision(q_HQP),
        )
    _look_at[(2 * programs, len(to.looks))](to.looks, total_NH, place, K, H // K, TILE, LOOK_ROWS, LOOK_SUMS)


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
    KEPT: tl.constexpr,
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
    begin, end = part_of(first, first + S, split, TILE)
    to, keeps, places = sums + row, real, book
    if KEPT:
        to, keeps = sums_of(kept, at, row, real, head, R)
        places = tl.load(at + 3).to(tl.pointer_type(tl.int64))
    top, mass, total = through(
        begin,
        end,
        q,
        q_tile,
        book,
        (layer * K + head).to(tl.int64) * block_slots,
        to,
        keeps,
        places,
        first,
        first + S,
        block_slots,
        scale,
        ROWS,
        P,
        TILE,
        EIGHT_BIT,
        KEPT,
        R,
        PRECISION,
    )
    place = (split * K + head) * rows + row
    total = total / tl.maximum(mass, 1e-30)[:, None]
    tl.store(parts + place[:, None].to(tl.int64) * P + p[None, :], total, real[:, None])
    tl.store(sums + place, tl.where(mass > 0, top * LN2 + tl.log(mass), float("-inf")), real)


@triton.jit
def sums_of(kept, at, row, real, head, R: tl.constexpr):
    """Where each row's sums for this key head begin, and of which rows they are wanted."""
    address = tl.load(kept + row // R, real, 0)
    return address.to(tl.pointer_type(tl.float32)) + head * tl.load(at + 4) * R + row % R, address != 0


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
def _sum_mixed(
    q,
    tiles,
    kept,
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
    """The sums of those tiles of slots that several pictures share, a sum for each picture, from the keys again: these
    are few of the tiles, and the walk through all of them stays without branches."""
    at, head = tiles + tl.program_id(0) * TILE_SIZE, tl.program_id(2)
    book = tl.load(at).to(tl.pointer_type(tl.int64))
    row, p = tl.load(at + 1).to(tl.int32) + tl.arange(0, ROWS), tl.arange(0, P)
    real = row < tl.load(at + 2).to(tl.int32)
    to, keeps = sums_of(kept, at, row, real, head, R)
    q_tile = tl.load(q + ((row // R) * q_row + (head * R + row % R) * q_head)[:, None] + p[None, :], real[:, None], 0.0)
    places, ends, mixed = (
        tl.load(at + 3).to(tl.pointer_type(tl.int64)),
        tl.load(at + 5).to(tl.pointer_type(tl.int64)),
        tl.load(at + 6).to(tl.pointer_type(tl.int64)),
    )
    mixes = tl.where(tl.sum(keeps.to(tl.int32)) > 0, tl.load(at + 7).to(tl.int32), 0)
    first, S = tl.load(book + FIRST).to(tl.int32), tl.load(book + LENGTH).to(tl.int32)
    block_slots = tl.load(book + BLOCK_SLOTS).to(tl.int32)
    before = (layer * K + head).to(tl.int64) * block_slots
    for n in range(tl.program_id(1), mixes, tl.num_programs(1)):
        tile = tl.load(mixed + n).to(tl.int32)
        place = tl.load(places + tile).to(tl.int32)
        start = (first // TILE + tile) * TILE  # its first slot, among all blocks'
        block = start // block_slots
        k, _, k_scale, _ = block_at(q, book + HEADER + block * ADDRESSES, before - block * block_slots, P, EIGHT_BIT)
        slot = start + tl.arange(0, TILE)
        k_tile = tl.load(k + slot[None, :] * P + p[:, None])
        score = tl.dot(q_tile, k_tile.to(q_tile.dtype), input_precision=PRECISION) * (scale * LOG2E)
        if EIGHT_BIT:
            score *= tl.load(k_scale + slot).to(tl.float32)[None, :]
        begin, stop = tl.maximum(start - first, 0), tl.minimum(start + TILE - first, S)
        while begin < stop:
            end = tl.load(ends + place - tile).to(tl.int32)
            inside = (slot >= first + begin) & (slot < first + tl.minimum(end, stop))
            some = tl.where(inside[None, :], score, float("-inf"))
            top = tl.max(some, 1)
            tl.store(to + place * R, top + tl.log2(tl.sum(tl.exp2(some - top[:, None]), 1)), keeps)
            begin, place = end, place + 1


@triton.jit(do_not_specialize=["place"])
def _look_at(
    looks,
    total,
    place,
    K: tl.constexpr,
    R: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What each picture of a memory got of a look, the mean over its words and heads of weights: one program works
    through a picture, so the order of its sum never changes."""
    at = looks + tl.program_id(1) * LOOK_SIZE
    kept = tl.load(at).to(tl.pointer_type(tl.float32))
    words, word, sums, first = tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)
    ends, pictures = tl.load(at + 5).to(tl.pointer_type(tl.int64)), tl.load(at + 6).to(tl.int32)
    out = tl.load(at + 7).to(tl.pointer_type(tl.float32)) + place.to(tl.int64) * pictures
    for i in range(tl.program_id(0), pictures, tl.num_programs(0)):
        start, end = first + tl.load(ends + i - 1, i > 0, 0), first + tl.load(ends + i)  # slots from the first tile on
        begin, stop = (start // TILE + i) * R, ((end - 1) // TILE + 1 + i) * R
        found = tl.zeros([ROWS, WIDTH], tl.float32)
        for some in range(0, words.to(tl.int32) * K, ROWS):
            row = some + tl.arange(0, ROWS)  # a word's key head
            for x in range(begin.to(tl.int32), stop.to(tl.int32), WIDTH):
                number = x + tl.arange(0, WIDTH)
                there = (row < words * K)[:, None] & (number < stop)[None, :]
                value = tl.load(kept + (row * sums * R)[:, None] + number[None, :], there, float("-inf"))
                mass = tl.load(total + ((word * K + row) * R)[:, None] + (number % R)[None, :], there, 0.0)
                found += tl.exp2(value - mass * LOG2E)
        tl.store(out + i, tl.sum(tl.sum(found, 1), 0) / (words * K * R).to(tl.float32))
