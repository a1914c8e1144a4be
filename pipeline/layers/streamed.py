"""Attention of a stream's newest tokens to all before them, whoever computes the queries and keys.

A *view* knows the keys of earlier tokens: `attend(layer, q, k, v)` adds the new ones and attends. `Watching` appends
to the stream's memory; `Answering` keeps the conversation's keys to itself, so the stream is only read. Layers of
transformers reach their view through the registered attention function "pipeline_stream".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from pipeline.gpu.device import sent
from pipeline.gpu.dispatch import attention_kernels
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
        self._prefix, self._before = prefix, memory.log
        self.memory, self._write = memory.append(times)

    def attend(self, layer: int, q_HTP: Tensor, k_KTP: Tensor, v_KTP: Tensor) -> Tensor:
        self._write(layer, k_KTP, v_KTP)
        kernels = attention_kernels(q_HTP, len(self._before), self._before.block_slots)
        if kernels and kernels.runs(q_HTP):
            own = behind(self._prefix, layer, k_KTP, v_KTP)
            return kernels.attend_run(self._before.slots, layer, q_HTP, *own)
        parts = list(self.memory.blocks(layer, q_HTP.dtype))
        if self._prefix is not None:
            parts.insert(0, (self._prefix.k[layer], self._prefix.v[layer]))
        k, v = (torch.cat(part, dim=1)[None] for part in zip(*parts))
        mask = causal_lower_right(q_HTP.shape[1], k.shape[2])
        return F.scaled_dot_product_attention(q_HTP[None], k, v, attn_mask=mask, enable_gqa=True)[0]


def behind(prefix: Prefix | None, layer: int, k_KTP: Tensor, v_KTP: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of new tokens with the prefix's before them: of one softmax, and order matters to no key."""
    if prefix is None:
        return k_KTP, v_KTP
    return torch.cat([prefix.k[layer], k_KTP], dim=1), torch.cat([prefix.v[layer], v_KTP], dim=1)


class Answering:
    """Attention of an answer's text to the prefix, the stream, and the conversation so far.

    The conversation's keys live here, behind the prefix's, and die with the answer: the stream is only read, nothing of
    it is copied. It has no order that matters to text behind it, so it is read as a memory is, by the same kernels, and
    merged with the text by log-sum-exp (memory/attention.py). The newest token's weights over the stream are added up
    over the last layers while `gaze` is not None.

    room: (layers, 2, K, slots, P): keys, then values, of the prefix and of `room` tokens.
    """

    def __init__(self, prefix: Prefix | None, memory: Memory, room: int):
        self.memory, self._before = memory, 0 if prefix is None else prefix.k.shape[2]
        field = memory.log.fields["k"]
        layers, *rest = field.sized(self._before + room)
        self.room = torch.empty(layers, 2, *rest, dtype=field.dtype, device=memory.log.device)
        if prefix is not None:
            self.room[:, 0, :, : self._before], self.room[:, 1, :, : self._before] = prefix.k, prefix.v
        self.length = 0  # tokens of the conversation whose keys are stored in every layer
        self.gaze_from = max(0, layers - GAZE_LAYERS)
        self.gaze: Tensor | None = None
        self._talk, self._told = torch.empty(0), (-1, 0)

    @property
    def place(self) -> int:
        """Slots of the room that are taken."""
        return self._before + self.length

    @property
    def kernels(self) -> ModuleType | None:
        """What can read the stream and the conversation on this device."""
        return attention_kernels(self.room[0, 0], len(self.memory), self.memory.log.block_slots)

    def told(self, words: int) -> list[int]:
        """What the kernels must know of so many new words (gpu/text_attention.py)."""
        return [self.place, words, self.room.shape[3], self.room.data_ptr()]

    def attend(self, layer: int, q_HTP: Tensor, k_KTP: Tensor, v_KTP: Tensor) -> Tensor:
        look = layer >= self.gaze_from
        if kernels := self.kernels:
            slots, talk = self.memory.log.slots, self._talked(q_HTP.shape[1])
            out, seen = kernels.attend_words(slots, layer, talk, q_HTP, k_KTP, v_KTP, look)
        else:
            out, seen = self._attended(layer, q_HTP, k_KTP, v_KTP, look)
        if seen is not None:
            self.gaze = seen if self.gaze is None else self.gaze + seen
        return out

    def _talked(self, words: int) -> Tensor:
        """`told` where the kernels read it, made once for all layers."""
        if self._told != (self.length, words):
            self._told = self.length, words
            self._talk = sent(torch.tensor(self.told(words)), self.room.device)
        return self._talk

    def _attended(
        self, layer: int, q_HTP: Tensor, k_KTP: Tensor, v_KTP: Tensor, look: bool
    ) -> tuple[Tensor, Tensor | None]:
        """By torch. With the weights (slots,) of the last query over the stream, if wanted."""
        end = self.place + q_HTP.shape[1]
        self.room[layer, 0, :, self.place : end], self.room[layer, 1, :, self.place : end] = k_KTP, v_KTP
        passes = [self._some(layer, q, at) for q, at in self._few(q_HTP)]
        out, total = (torch.cat(parts, dim=1) for parts in zip(*passes))
        seen = None
        if look and len(self.memory):
            seen = weights_given(self.memory.log, layer, q_HTP[:, -1:], total[:, -1:])
        return out.to(v_KTP.dtype), seen

    def _few(self, q_HTP: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Queries, as many as are read at once, and the place of the first of them in the room."""
        for start in range(0, q_HTP.shape[1], QUERIES_PER_PASS):
            yield q_HTP[:, start : start + QUERIES_PER_PASS], self.place + start

    def _some(self, layer: int, q_HTP: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Values (H, T, P) over all there is before each query, and the log-sum-exp (H, T) of its scores."""
        parts = [self._text(layer, q_HTP, place)]
        if len(self.memory):
            parts.append(scan(self.memory.log, layer, q_HTP, keep_scores=False)[:2])
        return merged(parts)

    def _text(self, layer: int, q_HTP: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """The same over the prefix and, causally, the conversation."""
        heads, tokens, width = q_HTP.shape
        end = place + tokens
        k, v = self.room[layer, :, :, :end]
        q_KRP = (q_HTP * width**-0.5).reshape(len(k), -1, width)  # the query heads of one key head side by side
        scores = (q_KRP @ k.transpose(1, 2)).view(heads, tokens, -1)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        future = torch.ones(tokens, end, dtype=torch.bool, device=scores.device).triu(1 + place)
        scores = scores.masked_fill(future, -torch.inf)
        total = scores.logsumexp(-1)
        shares = (scores - total[..., None]).exp().to(v.dtype).view(len(k), -1, end)
        return (shares @ v).to(scores.dtype).view(heads, tokens, width), total
