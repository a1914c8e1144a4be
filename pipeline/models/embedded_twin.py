"""The embedded model's transformer twin: the same senses, questions and composed answers, another way of watching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.layers.reading import TextCache
from pipeline.memory.attention import merged, scan
from pipeline.memory.memory import Memory, Policy
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.embedded_net import TOKENS, EmbeddedNet
from pipeline.models.embedded_reading import EmbeddedInner
from pipeline.senses.sensed import Senses
from pipeline.stream import StreamState
from pipeline.towers.frame_tower import FrameTower


class Behind(TextCache):
    """A conversation's cache behind a video, whose keys and values are read where they lie: a copy of 13 minutes would
    be 377 MB in fp32, for every question and every one that it refers back to."""

    def __init__(self, n_layers: int, video: Memory) -> None:
        super().__init__(n_layers)
        self.video = video

    def attend(self, layer: int, q_BHQP: Tensor, k_BKQP: Tensor, v_BKQP: Tensor) -> Tensor:
        """Exact: both parts give their log-sum-exp."""
        k, v = self.keep(layer, k_BKQP, v_BKQP)
        seen = scan(self.video.log, layer, q_BHQP[0], keep_scores=False)[:2]
        return merged([seen, causal(q_BHQP[0], k[0], v[0])])[0][None].to(q_BHQP.dtype)


def causal(q_HQP: Tensor, k_KSP: Tensor, v_KSP: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted values (H, Q, P) of the newest Q of S tokens over what comes before them, their log-sum-exp (H, Q)."""
    heads, (Q, P), S = k_KSP.shape[0], q_HQP.shape[1:], k_KSP.shape[1]
    q = (q_HQP * P**-0.5).unflatten(0, (heads, -1))
    scores = (q @ k_KSP[:, None].transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32))
    later = torch.ones(Q, S, dtype=torch.bool, device=q.device).triu(S - Q + 1)
    scores = scores.masked_fill(later, -torch.inf)
    values = scores.softmax(-1).to(v_KSP.dtype) @ v_KSP[:, None]
    return values.flatten(0, 1).to(scores.dtype), scores.logsumexp(-1).flatten(0, 1)


class EmbeddedTwin(EmbeddedModel):
    """The transformer twin: the same tower, tokens, language model, data and steps, but full causal self-attention.

    Video tokens run through the language model itself, which keeps their keys and values in every layer; text
    attends to all of them. Its context is `LIMIT` tokens; past it the oldest frames are dropped, counted and said. So a
    stream without an end is a window of its newest minutes, as many as the context holds: no file brings others back.
    """

    name = "Transformer twin (embedded)"
    about = (
        "The same small language model and tower, but video tokens go through its full self-attention: "
        "its memory grows in every layer and holds 13 minutes."
    )
    LIMIT, BLOCK_SLOTS = 8192, 2048

    def __init__(
        self,
        net: EmbeddedNet,
        tower: FrameTower,
        tokenizer: Any,
        policy: Policy | None = None,
        senses: Senses | None = None,
        endless: float | None = None,
    ):
        """endless: not None where streams never end. How many minutes stay is for the context to say, not for this."""
        super().__init__(net, tower, tokenizer, policy or Policy("budget", self.LIMIT // TOKENS * TOKENS), senses)
        if endless is not None:
            self.about += " On a stream without an end what is older is dropped and counted; no file brings it back."

    @property
    def _memory_layers(self) -> int:
        return self.cfg.vamba.n_layers

    def _see(self, tokens_1TD: Tensor, times: Tensor, state: StreamState[EmbeddedInner]):
        first = len(state.inner.memory) + state.inner.memory.dropped
        memory, write = state.inner.memory.append(times.repeat_interleave(TOKENS))
        positions = torch.arange(first, first + tokens_1TD.shape[1], device=self.device)
        cfg, mask = self.cfg, self._visible(memory, tokens_1TD.shape[1]).to(self.device)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            write(layer, k[0], v[0])
            keys, values = (torch.cat(part, 1)[None] for part in zip(*memory.blocks(layer, q.dtype)))
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)

        h = tokens_1TD.to(self._text_dtype)
        h = self.net.vamba.read(h, positions, attend, None, range(cfg.locate_layer))
        self.net.vamba.read(h, positions, attend, None, range(cfg.locate_layer, cfg.vamba.n_layers))
        last = slice(TOKENS - 1, None, TOKENS)
        return memory, (), self.net.locator.keys(tokens_1TD[0, last], h[0, last])

    def _visible(self, memory: Memory, queries: int) -> Tensor:
        """(Q, S) what the newest tokens may attend to: what came before, no further back than the policy had kept by
        then. Else a long chunk would see what its frames, watched one by one, no longer would."""
        S, place = len(memory), torch.arange(queries)
        frame = S - queries + place // TOKENS * TOKENS  # where the token's frame begins
        oldest = torch.zeros(queries, dtype=torch.long)
        policy = memory.policy
        if policy.kind == "budget":
            oldest = frame - int(policy.amount)
        elif policy.kind == "window":
            times = torch.from_numpy(memory.times)
            oldest = torch.searchsorted(times, times[(frame - 1).clamp(min=0)] - 60 * policy.amount)
        slot = torch.arange(S)
        return (slot <= S - queries + place[:, None]) & (slot >= oldest[:, None])

    def is_finite(self, state: StreamState[EmbeddedInner]) -> bool:
        """No state to spoil, but every later frame attends to these keys: the newest slots tell of the whole chunk."""
        *_, newest = [(), *state.inner.memory.log.views("k", "v")]
        return all(bool(torch.isfinite(part).all()) for part in newest)

    def start_reading(self, memory: Memory, frames: Sequence[int]) -> None:
        return None  # it attends to the whole video in every layer already

    def start_text(self, memory: Memory) -> tuple[TextCache, int]:
        """Text goes on behind the video."""
        return Behind(self.cfg.vamba.n_layers, memory), len(memory) + memory.dropped

    @property
    def opening(self) -> None:  # HEAD stands behind the video
        return None
