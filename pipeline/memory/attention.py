"""Attention over a log of keys and values: exact, block by block, by kernels where they run, else by plain torch.

No mask and no order: keys are a set, so blocks merge exactly by their log-sum-exp (FlashAttention's bookkeeping, arXiv
2205.14135). Query heads share a key head without expanding it. H, K: query and key heads, Q queries, P the width of a
head, M = Q H / K rows of one key head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from pipeline.gpu.dispatch import attention_kernels
from pipeline.memory.log import Log

# Queries of a long question read at once: logits are fp32; an hour's 538,200 slots times 28 heads is 60 MB for each.
QUERIES_PER_PASS = 32


def is_eight_bit(log: Log) -> bool:
    """Whether keys and values are int8 with a scale for every head and slot."""
    return "k_scale" in log.fields


def key_heads(log: Log) -> int:
    """K, of the log's keys."""
    return log.fields["k"].sized(0)[1]


def keys_values(log: Log, layer: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Visible keys and values (K, slots, P) of one layer, block by block, in `dtype`."""
    if not is_eight_bit(log):
        for k, v in log.views("k", "v"):
            yield k[layer].to(dtype), v[layer].to(dtype)
    else:
        for k, v, k_scale, v_scale in log.views("k", "v", "k_scale", "v_scale"):
            yield k[layer].to(dtype) * k_scale[layer].to(dtype), v[layer].to(dtype) * v_scale[layer].to(dtype)


# --- by kernels where they run ---------------------------------------------------------------------------------------


def _kernels(q_HQP: Tensor, log: Log) -> ModuleType | None:
    """Kernels find blocks by their addresses: one that lies in a file has none."""
    if any(block.away for block in log.blocks):
        return None
    return attention_kernels(q_HQP, len(log), log.block_slots)


def attend(log: Log, layer: int, q_HQP: Tensor, want_weights: bool = False) -> tuple[Tensor, Tensor | None]:
    """Attention of queries (H, Q, P) over all visible slots: output (H, Q, P) and, if wanted, weights (slots,).

    The weights are the mean over heads and queries. Long questions go QUERIES_PER_PASS at a time.
    """
    outputs, weights = [], None
    for q in q_HQP.split(QUERIES_PER_PASS, dim=1):
        if kernels := _kernels(q, log):
            out, looked = kernels.attend(log.slots, layer, q, want_weights)
        else:
            out, looked = plain_attend(log, layer, q, want_weights)
        outputs.append(out)
        if looked is not None:
            looked = looked * (q.shape[1] / q_HQP.shape[1])
            weights = looked if weights is None else weights + looked
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), weights


def attend_each(log: Log, layer: int, q_HQP: Tensor, want_weights: bool) -> tuple[Tensor, Tensor | None]:
    """`attend` for words of several answers, at most QUERIES_PER_PASS: weights (Q, slots), each over its own heads.

    The keys are read once for all of them.
    """
    if kernels := _kernels(q_HQP, log):
        return kernels.attend(log.slots, layer, q_HQP, want_weights, each=want_weights)
    if not len(log):
        return torch.zeros_like(q_HQP), None
    out, total_HQ, scores = plain_scan(log, layer, q_HQP, want_weights)
    return out.to(q_HQP.dtype), None if scores is None else (scores - total_HQ[..., None]).exp().mean(0)


def scan(log: Log, layer: int, q_HQP: Tensor, keep_scores: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weighted values (H, Q, P), their log-sum-exp (H, Q) and, if kept, scores (H, Q, slots), in fp32 or fp64."""
    if (kernels := _kernels(q_HQP, log)) is None:
        return plain_scan(log, layer, q_HQP, keep_scores)
    parts, sums, scores = kernels.scan(log.slots, layer, q_HQP, keep_scores)
    values, total = kernels.merge(parts, sums, parts.new_empty(parts.shape[1:]))  # in fp32, not yet rounded
    H, Q, _ = q_HQP.shape
    return values.view(q_HQP.shape), total.view(H, Q), None if scores is None else scores.view(H, Q, -1)


def merged(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Softmax-weighted values (H, Q, P) over disjoint slots and their log-sum-exps (H, Q) into those over all slots."""
    values, sums = (torch.stack(part) for part in zip(*parts))
    total = sums.logsumexp(0)
    return (values * (sums - total).exp()[..., None]).sum(0), total


def weights_given(log: Log, layer: int, q_HQP: Tensor, total_HQ: Tensor) -> Tensor:
    """(slots,) weights, the mean over all rows, from the keys and a log-sum-exp over these slots and others."""
    if (kernels := _kernels(q_HQP, log)) is None:
        return plain_weights(log, layer, q_HQP, total_HQ)
    return kernels.slot_weights(log.slots, layer, q_HQP, total_HQ.contiguous(), None)


# --- the plain twins, which are always right -------------------------------------------------------------------------


def plain_attend(log: Log, layer: int, q_HQP: Tensor, want_weights: bool) -> tuple[Tensor, Tensor | None]:
    """`attend` by torch, of all queries at once."""
    if not len(log):  # nothing seen yet: nothing to read
        return torch.zeros_like(q_HQP), None
    out, total_HQ, scores = plain_scan(log, layer, q_HQP, want_weights)
    weights = None if scores is None else (scores - total_HQ[..., None]).exp().mean((0, 1))
    return out.to(q_HQP.dtype), weights


def plain_scan(log: Log, layer: int, q_HQP: Tensor, keep_scores: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """`scan` by torch."""
    merged: tuple[Tensor, Tensor] | None = None
    kept = []
    for scores, v in _scores(log, layer, q_HQP):
        sums = scores.logsumexp(-1, keepdim=True)
        part = torch.bmm((scores - sums).exp().to(v.dtype), v).to(scores.dtype)
        merged = (part, sums) if merged is None else _merge(*merged, part, sums)
        if keep_scores:
            kept.append(scores)
    assert merged is not None  # an empty log is nobody's question
    (out, total), (H, Q, _) = merged, q_HQP.shape
    return out.view(H, Q, -1), total.view(H, Q), torch.cat(kept, -1).view(H, Q, -1) if keep_scores else None


def plain_weights(log: Log, layer: int, q_HQP: Tensor, total_HQ: Tensor) -> Tensor:
    """`weights_given` by torch."""
    total = total_HQ.reshape(key_heads(log), -1, 1)
    return torch.cat([(scores - total).exp().mean((0, 1)) for scores, _ in _scores(log, layer, q_HQP)])


def _scores(log: Log, layer: int, q_HQP: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Scores (K, M, slots) of each block, fp32 or fp64, and its values."""
    P = q_HQP.shape[-1]
    q = (q_HQP * P**-0.5).reshape(key_heads(log), -1, P)
    for k, v in keys_values(log, layer, q.dtype):
        yield torch.bmm(q, k.transpose(1, 2)).to(torch.promote_types(q.dtype, torch.float32)), v


def _merge(out: Tensor, total: Tensor, part: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Two softmax-weighted averages over disjoint keys into the one over their union."""
    both = torch.logaddexp(total, sums)
    return out * (total - both).exp() + part * (sums - both).exp(), both
