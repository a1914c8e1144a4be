"""Attention in one softmax to a memory and to keys that lie beside it: a conversation's words, or new tokens' own.

`layers/streamed.py` holds the plain torch code beside them that is always right. Nothing of the memory is copied or
laid together: what lies beside it is one more part of the memory's scan (attention_scan.py), merged by log-sum-exp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.gpu.attention import keeps_scores, slot_weights
from pipeline.gpu.attention_scan import merge_queries, scan
from pipeline.gpu.layout import Slots
from pipeline.gpu.text_attention import attend_text


def attend_words(
    slots: Slots,
    layer: int,
    talk: Tensor,
    q_HQP: Tensor,
    k_KQP: Tensor,
    v_KQP: Tensor,
    look: bool,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Of an answer's new words to the memory, the conversation before them and, causally, each other: (H, Q, P).

    talk: as of `attend_text`, all words real; their keys are kept there. look: also the newest word's weights over the
    slots (S,), the mean of its heads, which need not sum to 1; weights (1, room): where they go.
    """
    newest = q_HQP[:, -1:]
    keep = look and q_HQP.shape[1] == 1 and keeps_scores(slots, newest)
    parts, sums, scores = scan(slots, layer, q_HQP, keep, beside=1)
    attend_text(talk, layer, q_HQP, k_KQP, v_KQP, part=(parts[-1], sums[-1]))
    out, total = merge_queries(parts, sums, q_HQP, None)
    if not look:
        return out, None
    total_H1 = total.view(q_HQP.shape[:2])[:, -1:].contiguous()
    return out, slot_weights(slots, layer, newest, total_H1, scores, weights=weights)


def attend_run(slots: Slots, layer: int, q_HTP: Tensor, k_KSP: Tensor, v_KSP: Tensor) -> Tensor:
    """Of a run of new tokens to the memory and, causally, to keys of their own: (H, T, P).

    k, v: the last T of S belong to the run; what stands before them all may see.
    """
    parts, sums, _ = scan(slots, layer, q_HTP, beside=1)
    own, total = causal(q_HTP, k_KSP, v_KSP)
    parts[-1].view(q_HTP.shape).copy_(own)
    sums[-1].view(total.shape).copy_(total)
    return merge_queries(parts, sums, q_HTP, None)[0]


def runs(q_HTP: Tensor) -> bool:
    """Whether `attend_run` can serve such queries: torch's causal attention that tells its sums knows 16 bits only."""
    return q_HTP.itemsize == 2 or not q_HTP.is_cuda


def causal(q_HTP: Tensor, k_KSP: Tensor, v_KSP: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (H, T, P) of T queries to S keys, the last query to all of them, and the log-sum-exps (H, T)."""
    if q_HTP.is_cuda:  # FlashAttention-2, whose causal mask is aligned to the last key
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        out, total = flash(q_HTP[None], k_KSP[None], v_KSP[None], 0.0, True)[:2]
        return out[0], total[0]
    (H, T, P), (K, S, _) = q_HTP.shape, k_KSP.shape  # as under Triton's interpreter
    scores = (q_HTP.float() * P**-0.5).reshape(K, -1, P) @ k_KSP.float().transpose(1, 2)
    future = torch.ones(T, S, dtype=torch.bool).triu(1 + S - T)
    scores = scores.view(H, T, S).masked_fill(future, -torch.inf)
    values = scores.softmax(-1).view(K, -1, S) @ v_KSP.float()
    return values.view(H, T, P).to(q_HTP.dtype), scores.logsumexp(-1)
