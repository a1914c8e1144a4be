"""Attention of a stream's newest tokens to all before them, whoever computes the queries and keys.

A *view* knows the keys of earlier tokens: `attend(layer, q, k, v)` adds the new ones and attends. `Watching` appends
to the stream's memory; `Answering` keeps the conversation's keys to itself, so the stream is only read. Layers of
transformers reach their view through the registered attention function "pipeline_stream".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from pipeline.memory.attention import QUERIES_PER_PASS, merged, scan, weights_given
from pipeline.memory.memory import Memory

GAZE_LAYERS = 4  # `Answering.gaze` averages the last so many layers


def stream_attention(module, query, key, value, attention_mask, *, view, **_) -> tuple[Tensor, None]:
    """transformers' attention interface (B, H, T, P) -> (B, T, H, P); `view` knows the keys of earlier tokens."""
    return view.attend(module.layer_idx, query[0], key[0], value[0]).transpose(0, 1)[None], None


AttentionInterface.register("pipeline_stream", stream_attention)


@dataclass(frozen=True)
class Prefix:
    """Keys and values (layers, K, T, P) of the fixed text in front of every video."""

    k: Tensor
    v: Tensor


class Watching:
    """Attention of a run of new tokens to the prefix, the stream, and causally to themselves; stores their keys."""

    def __init__(self, prefix: Prefix | None, memory: Memory, times: Tensor):
        self.prefix = prefix
        self.memory, self._write = memory.append(times)

    def attend(self, layer: int, q_HTP: Tensor, k_KTP: Tensor, v_KTP: Tensor) -> Tensor:
        self._write(layer, k_KTP, v_KTP)
        # One layer's keys in one piece: a copy that costs far less than the attention over it.
        parts = list(self.memory.blocks(layer, q_HTP.dtype))
        if self.prefix is not None:
            parts.insert(0, (self.prefix.k[layer], self.prefix.v[layer]))
        k, v = (torch.cat(part, dim=1)[None] for part in zip(*parts))
        mask = causal_lower_right(q_HTP.shape[1], k.shape[2])
        return F.scaled_dot_product_attention(q_HTP[None], k, v, attn_mask=mask, enable_gqa=True)[0]


class Answering:
    """Attention of an answer's text to the prefix, the stream, and the conversation so far.

    The conversation's keys live here and die with the answer: the stream is only read, nothing of it is copied. It has
    no order that matters to text behind it, so it is read as a memory is, by the same kernels, and merged with the text
    by log-sum-exp (memory/attention.py). The newest token's weights over the stream are added up over the last layers
    while `gaze` is not None.
    """

    def __init__(self, prefix: Prefix | None, memory: Memory, room: int):
        field, device = memory.log.fields["k"], memory.log.device
        self._prefix, self._memory = prefix, memory
        self._k, self._v = (torch.empty(field.sized(room), dtype=field.dtype, device=device) for _ in range(2))
        self.length = 0  # tokens of the conversation whose keys are stored in every layer
        self._gaze_from = max(0, len(self._k) - GAZE_LAYERS)
        self.gaze: Tensor | None = None

    def attend(self, layer: int, q_HTP: Tensor, k_KTP: Tensor, v_KTP: Tensor) -> Tensor:
        end = self.length + q_HTP.shape[1]
        self._k[layer, :, self.length : end], self._v[layer, :, self.length : end] = k_KTP, v_KTP
        passes = [self._attended(layer, q, at) for q, at in self._some(q_HTP)]
        out, total = (torch.cat(parts, dim=1) for parts in zip(*passes))
        if layer >= self._gaze_from:
            self._look(layer, q_HTP[:, -1:], total[:, -1:])
        return out.to(v_KTP.dtype)

    def _some(self, q_HTP: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Queries, as many as are read at once, and the place of the first of them in the conversation."""
        for start in range(0, q_HTP.shape[1], QUERIES_PER_PASS):
            yield q_HTP[:, start : start + QUERIES_PER_PASS], self.length + start

    def _attended(self, layer: int, q_HTP: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Values (H, T, P) over all there is before each query, and the log-sum-exp (H, T) of its scores."""
        parts = [self._text(layer, q_HTP, place)]
        if len(self._memory):
            parts.append(scan(self._memory.log, layer, q_HTP, keep_scores=False)[:2])
        return merged(parts)

    def _text(self, layer: int, q_HTP: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """The same over the prefix and, causally, the conversation."""
        heads, tokens, width = q_HTP.shape
        end = place + tokens
        k, v, prefix = self._k[layer, :, :end], self._v[layer, :, :end], self._prefix
        if prefix is not None:
            k, v = torch.cat([prefix.k[layer], k], dim=1), torch.cat([prefix.v[layer], v], dim=1)
        q_KRP = (q_HTP * width**-0.5).reshape(len(k), -1, width)  # the query heads of one key head side by side
        scores = (q_KRP @ k.transpose(1, 2)).view(heads, tokens, -1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        future = torch.ones(tokens, end, dtype=torch.bool, device=scores.device).triu(1 + place)
        scores[..., -end:].masked_fill_(future, -torch.inf)
        total = scores.logsumexp(-1)
        shares = (scores - total[..., None]).exp().to(v.dtype).view(len(k), -1, scores.shape[-1])
        return (shares @ v).to(scores.dtype).view(heads, tokens, width), total

    def _look(self, layer: int, q_H1P: Tensor, total_H1: Tensor) -> None:
        if not len(self._memory):
            return
        seen = weights_given(self._memory.log, layer, q_H1P, total_H1)
        self.gaze = seen if self.gaze is None else self.gaze + seen
