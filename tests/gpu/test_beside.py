"""Attention in one softmax to a memory and to keys beside it, against torch's own over all of them laid together."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pipeline.layers.streamed import Prefix, behind
from pipeline.memory.memory import Memory
from tests.conftest import gap

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPE, NEAR = (torch.float32, 1e-4) if INTERPRETED else (torch.bfloat16, 0.02)
if not INTERPRETED:
    pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
HEADS, KEYS = 4, 2


@pytest.fixture
def kernels():
    pytest.importorskip("triton")
    from pipeline.gpu import kernels

    with torch.no_grad():
        yield kernels


def memory(slots: int, dropped: int, width: int) -> Memory:
    made = Memory.empty(2, KEYS, width, DTYPE, DEVICE, block_slots=64)
    made, write = made.append(torch.arange(slots + dropped).double())
    write(slice(None), *torch.randn(2, 2, KEYS, slots + dropped, width, device=DEVICE, dtype=DTYPE))
    return replace(made, log=made.log.drop_oldest(dropped))


@pytest.mark.parametrize(
    ("slots", "dropped", "tokens", "width"),
    [(70, 5, 3, 64), *([] if INTERPRETED else [(70, 5, 3, 256), (9000, 70, 4184, 128)])],
)
@pytest.mark.parametrize("with_prefix", [False, True])
def test_a_run_attends_to_the_stream_and_causally_to_itself(
    slots, dropped, tokens, width, with_prefix, kernels
) -> None:
    torch.manual_seed(0)
    seen = memory(slots, dropped, width)
    q, *own = (torch.randn(n, tokens, width, device=DEVICE, dtype=DTYPE) for n in (HEADS, KEYS, KEYS))
    prefix = Prefix(*torch.randn(2, 2, KEYS, 7, width, device=DEVICE, dtype=DTYPE)) if with_prefix else None
    own = behind(prefix, 1, *own)
    got = kernels.attend_run(seen.log.slots, 1, q, *own)
    k, v = (
        torch.cat([*parts, mine], dim=1).float().repeat_interleave(HEADS // KEYS, 0)
        for parts, mine in zip(zip(*seen.blocks(1, DTYPE)), own)
    )
    mask = torch.ones(tokens, k.shape[1], dtype=torch.bool, device=DEVICE).tril(k.shape[1] - tokens)
    want = F.scaled_dot_product_attention(q.float(), k, v, attn_mask=mask)
    assert got.dtype == DTYPE and gap(got.float(), want) < NEAR
