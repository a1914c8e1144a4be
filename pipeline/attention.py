"""Triton kernels of attention over the memory: some queries, hundreds of thousands of slots in many blocks.

Used through `pipeline.kernels`; `memory.Memory._attend` is the plain torch code beside them that is always right. Sums
are in fp32; the operands of matrix products are in the model's type. H, K: query and key heads, Q queries, P the width
of a head, S visible slots, M = Q * H / K rows of one key head.
"""

from __future__ import annotations

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


def fits_attention(memory: Memory, q_HQP: Tensor) -> bool:
    """Whether `attend` can run on this memory and GPU."""
    P = q_HQP.shape[-1]
    fits = gpu_size(q_HQP.device)[1] or P * q_HQP.itemsize <= 256
    return fits and memory.log.block_slots % TILE == 0 and P in (16, 32, 64, 128) and len(memory) > 0


def attend(memory: Memory, layer: int, q_HQP: Tensor, want_weights: bool = False) -> tuple[Tensor, Tensor | None]:
    """As `memory.Memory.attend`. `want_weights` keeps the scores of a few rows (4 bytes per slot, head and query while
    it runs); of many it computes them again, because the keys are then less to read than the scores.
    """
    parts, sums, scores = scan(memory, layer, q_HQP, want_weights and keeps_scores(memory, q_HQP))
    out, total = merge(parts, sums, q_HQP.new_empty(q_HQP.shape))
    return out, slot_weights(memory, layer, q_HQP, total, scores) if want_weights else None


def keeps_scores(memory: Memory, q_HQP: Tensor) -> bool:
    """Whether the queries are so few that their scores are kept for the weights."""
    return _rows(memory, q_HQP).shape[1] < ROWS_AGAIN


def _rows(memory: Memory, q_HQP: Tensor) -> Tensor:
    """(K, M, P): the queries of one key head side by side."""
    return q_HQP.reshape(memory.log.columns["k"].shape[1], -1, q_HQP.shape[-1]).contiguous()


def _tile(q_KMP: Tensor) -> int:
    return min(128 // q_KMP.itemsize, max(16, triton.next_power_of_2(q_KMP.shape[1])))


def scan(memory: Memory, layer: int, q_HQP: Tensor, keep_scores: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """Parts (n, K, M, P) of the softmax-weighted values, their log-sum-exp (n, K, M) and scores (K, M, S), all fp32.

    One kernel walks all blocks, cut into parts that run side by side. A kernel per block would spend more time on being
    launched than on reading an hour of memory; here the blocks' addresses travel as a small table.
    """
    log, S, q = memory.log, len(memory), _rows(memory, q_HQP)
    K, M, P = q.shape
    tiles = triton.cdiv(log.first + S, TILE) - log.first // TILE
    programs, roomy = gpu_size(q.device)
    splits, rows = min(max(1, programs // K), tiles), _tile(q)
    stages = (5 if rows == 16 else 4) if roomy and q.itemsize == 2 else 2
    new = q.new_empty
    parts, sums = new(splits, K, M, P, dtype=torch.float32), new(splits, K, M, dtype=torch.float32)
    scores = new(K, M, S, dtype=torch.float32) if keep_scores else None
    _attend[(triton.cdiv(M, rows), splits, K)](
        q, log.addresses, parts, sums, scores if keep_scores else parts, M, S, log.first, log.block_slots, layer,
        triton.cdiv(tiles, splits), tiles, P**-0.5, K, P, rows, TILE, memory.eight_bit, keep_scores, len(log.columns),
        precision(q), num_stages=stages,
    )  # fmt: skip
    return parts, sums, scores


def merge(parts: Tensor, sums: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Parts and sums of `scan` into one: `out` filled (any shape of K M P numbers), and its log-sum-exp (K, M)."""
    splits, K, M, P = parts.shape
    total = sums.new_empty(K, M)
    _merge[(K * M,)](parts, sums, out, total, splits, K * M, P, triton.next_power_of_2(splits))
    return out, total


def slot_weights(memory: Memory, layer: int, q_HQP: Tensor, total: Tensor, scores: Tensor | None) -> Tensor:
    """(S,) fp32: the mean over all rows of exp(score - total), from the scores if they were kept."""
    log, S, q = memory.log, len(memory), _rows(memory, q_HQP)
    K, M, P = q.shape
    weights = q.new_empty(S, dtype=torch.float32)
    if scores is not None:
        _weights[(triton.cdiv(S, 256),)](scores, total, weights, K * M, S, 256)
    else:
        tiles = triton.cdiv(log.first + S, TILE) - log.first // TILE
        _weights_again[(tiles,)](
            q, log.addresses, total, weights, M, S, log.first, log.block_slots, layer, P**-0.5, K, P, _tile(q), TILE,
            memory.eight_bit, len(log.columns), precision(q), num_stages=2,
        )  # fmt: skip
    return weights


@triton.jit(do_not_specialize=["M", "S", "first", "layer", "per_split", "tiles"])
def _attend(
    q, addresses, parts, sums, scores, M, S, first, block_slots, layer, per_split, tiles, scale,
    K: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, EIGHT_BIT: tl.constexpr,
    SCORES: tl.constexpr, FIELDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Some rows (queries of one key head) over one part of the slots: softmax-weighted values and log-sum-exp."""
    split, head = tl.program_id(1), tl.program_id(2)  # row tiles of one part run together and share its slots in L2
    row, p = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, P)
    real = row < M
    q_tile = tl.load(q + (head * M + row[:, None]) * P + p[None, :], real[:, None], 0.0)
    stored = tl.int8 if EIGHT_BIT else q.dtype.element_ty
    top, mass = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    total = tl.zeros([ROWS, P], tl.float32)
    slots_before = (layer * K + head).to(tl.int64) * block_slots  # of this layer and head, inside any block
    for i in range(split * per_split, tl.minimum((split + 1) * per_split, tiles)):
        slot = (first // TILE + i) * TILE + tl.arange(0, TILE)
        seen = (slot >= first) & (slot < first + S)
        block = (first // TILE + i) * TILE // block_slots
        at = slots_before + slot - block * block_slots
        k_block = tl.multiple_of(tl.load(addresses + block * FIELDS).to(tl.pointer_type(stored)), 16)
        v_block = tl.multiple_of(tl.load(addresses + block * FIELDS + 1).to(tl.pointer_type(stored)), 16)
        k_tile = tl.load(k_block + at[None, :] * P + p[:, None], seen[None, :], 0)
        v_tile = tl.load(v_block + at[:, None] * P + p[None, :], seen[:, None], 0)
        score = tl.dot(q_tile, k_tile.to(q_tile.dtype), input_precision=PRECISION) * scale
        if EIGHT_BIT:
            k_scale = tl.load(addresses + block * FIELDS + 3).to(tl.pointer_type(q.dtype.element_ty))
            score *= tl.load(k_scale + at, seen, 0.0).to(tl.float32)[None, :]
        score = tl.where(seen[None, :], score, float("-inf"))
        if SCORES:
            place = scores + (head * M + row[:, None]).to(tl.int64) * S + slot[None, :] - first
            tl.store(place, score, real[:, None] & seen[None, :])
        higher = tl.maximum(top, tl.max(score, 1))
        weight, fade = tl.exp(score - higher[:, None]), tl.exp(top - higher)
        mass = mass * fade + tl.sum(weight, 1)
        if EIGHT_BIT:
            v_scale = tl.load(addresses + block * FIELDS + 4).to(tl.pointer_type(q.dtype.element_ty))
            weight *= tl.load(v_scale + at, seen, 0.0).to(tl.float32)[None, :]
        total = total * fade[:, None]
        total += tl.dot(weight.to(q_tile.dtype), v_tile.to(q_tile.dtype), input_precision=PRECISION)
        top = higher
    at = (split * K + head) * M + row
    total = total / tl.maximum(mass, 1e-30)[:, None]
    tl.store(parts + at[:, None].to(tl.int64) * P + p[None, :], total, real[:, None])
    tl.store(sums + at, tl.where(mass > 0, top + tl.log(mass), float("-inf")), real)


@triton.jit(do_not_specialize=["splits", "rows"])
def _merge(parts, sums, out, total, splits, rows, P: tl.constexpr, SPLITS: tl.constexpr):
    """One row's parts into one. Six launches of torch's would cost more than they do."""
    row, s, p = tl.program_id(0), tl.arange(0, SPLITS), tl.arange(0, P)
    part_sums = tl.load(sums + s * rows + row, s < splits, float("-inf"))
    top = tl.max(part_sums, 0)
    weights = tl.exp(part_sums - top)
    mass = tl.sum(weights, 0)
    place = parts + (s[:, None] * rows + row).to(tl.int64) * P + p[None, :]
    values = tl.load(place, (s < splits)[:, None], 0.0)
    tl.store(out + row * P + p, (tl.sum(values * weights[:, None], 0) / mass).to(out.dtype.element_ty))
    tl.store(total + row, top + tl.log(mass))


@triton.jit(do_not_specialize=["rows", "S"])
def _weights(scores, sums, weights, rows, S, COLUMNS: tl.constexpr):
    """The mean over all rows of exp(score - sum)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total, place = tl.zeros([COLUMNS], tl.float32), scores + column
    for row in range(rows):
        total += tl.exp(tl.load(place, column < S, float("-inf")) - tl.load(sums + row))
        place += S
    tl.store(weights + column, total / rows, column < S)


@triton.jit(do_not_specialize=["M", "S", "first", "layer"])
def _weights_again(
    q, addresses, sums, weights, M, S, first, block_slots, layer, scale,
    K: tl.constexpr, P: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, EIGHT_BIT: tl.constexpr,
    FIELDS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same from the keys, whose scores nobody kept: one tile of slots, every row of every head."""
    tile, p = first // TILE + tl.program_id(0), tl.arange(0, P)
    slot = tile * TILE + tl.arange(0, TILE)
    seen, block = (slot >= first) & (slot < first + S), tile * TILE // block_slots
    stored = tl.int8 if EIGHT_BIT else q.dtype.element_ty
    k_block = tl.multiple_of(tl.load(addresses + block * FIELDS).to(tl.pointer_type(stored)), 16)
    total = tl.zeros([TILE], tl.float32)
    for head in range(K):
        at = (layer * K + head).to(tl.int64) * block_slots + slot - block * block_slots
        k_tile = tl.load(k_block + at[None, :] * P + p[:, None], seen[None, :], 0)
        factor = tl.zeros([TILE], tl.float32) + scale
        if EIGHT_BIT:
            k_scale = tl.load(addresses + block * FIELDS + 3).to(tl.pointer_type(q.dtype.element_ty))
            factor *= tl.load(k_scale + at, seen, 0.0).to(tl.float32)
        for start in range(0, M, ROWS):
            row = start + tl.arange(0, ROWS)
            q_tile = tl.load(q + (head * M + row[:, None]) * P + p[None, :], (row < M)[:, None], 0.0)
            score = tl.dot(q_tile, k_tile.to(q_tile.dtype), input_precision=PRECISION) * factor[None, :]
            score -= tl.load(sums + head * M + row, row < M, float("inf"))[:, None]
            total += tl.sum(tl.exp(score), 0)
    tl.store(weights + slot - first, total / (K * M), seen)
