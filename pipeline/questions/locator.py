"""The trained head that says where in a video a question points, and what it asks for. No rules in here.

A `Locator` turns the hidden states of a question into a plan and a query, which is compared with one key a frame.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.layers.norms import RMSNorm

# What a question asks the model to do. "find" looks for what is described, "about" does so too but prefers the present;
# "count" counts scenes, "count_of" those that show something; "chat" needs no video.
PLANS = (
    "now",
    "at",
    "find",
    "about",
    "yesno",
    "yesno_now",
    "after",
    "before",
    "first",
    "last",
    "count",
    "count_of",
    "list",
    "chat",
)


class Located(NamedTuple):
    """What the locator makes of Q questions: unit queries (Q, W), plan logits (Q, plans), nowhere logits (Q,)."""

    query: Tensor
    plan: Tensor
    nowhere: Tensor


class Locator(nn.Module):
    """Where a question points. Cosine between a question's query and a frame's key, times a learned sharpness."""

    def __init__(self, d_model: int, width: int = 256):
        super().__init__()
        self.text_norm, self.query = RMSNorm(d_model, 1e-5), nn.Linear(2 * d_model, width)
        self.plan, self.nowhere = nn.Linear(2 * d_model, len(PLANS)), nn.Linear(2 * d_model, 1)
        self.frame_norm = RMSNorm(d_model, 1e-5)
        self.key = nn.Sequential(nn.Linear(2 * d_model, d_model), nn.GELU(), nn.Linear(d_model, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def read(self, last_QD: Tensor, mean_QD: Tensor) -> Located:
        """From the hidden states of the question at `locate_layer`: its last token and the mean of its tokens."""
        h = torch.cat([self.text_norm(last_QD), self.text_norm(mean_QD)], dim=-1)
        return Located(F.normalize(self.query(h), dim=-1), self.plan(h), self.nowhere(h)[..., 0])

    def keys(self, raw_FD: Tensor, mixed_FD: Tensor) -> Tensor:
        """(F, W) of unit length, from each frame's last token before the mixers and after `locate_depth` of them."""
        both = torch.cat([self.frame_norm(raw_FD), self.frame_norm(mixed_FD)], dim=-1)
        return F.normalize(self.key(both), dim=-1)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return self.log_scale.exp().clamp(max=100) * (query @ keys.transpose(-1, -2))
