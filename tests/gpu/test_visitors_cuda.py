"""Several visitors on a GPU, by the own kernels: words and chunks in shared passes are those of each alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipeline.layers.reading import TextDecoder
from pipeline.layers.together import Row, read_together
from pipeline.memory.memory import Memory
from pipeline.models.vamba_streams import Stream, watch_streams
from pipeline.towers.seen import Seen
from tests.conftest import gap
from tests.gpu.test_recordings import WIDE, remembered

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"), pytest.mark.cuda]


@pytest.mark.parametrize("eight_bit", [False, True])
def test_a_word_of_each_in_one_pass(eight_bit, tiny_vamba):
    """Three conversations about one memory, two about others; weights of every place are each one's own."""
    net = tiny_vamba(torch.float32, **WIDE).cuda()
    memories = [remembered(n, eight_bit=eight_bit, seed=n) for n in (300, 70, 1000)]
    memories += [replace(memories[2]), replace(memories[2])]
    ours, plain = ([TextDecoder(net, memory, (0, 1)) for memory in memories] for _ in range(2))
    for n, pair in enumerate(zip(ours, plain)):
        for decoder in pair:
            decoder.question([5, 6, 7], list(range(10, 12 + 9 * n)))
    for step in range(12):
        tokens = [(7 * step + 3 * n) % 90 + 1 for n in range(len(ours))]
        rows = [Row([t], d.cache.length, d.cache, d.memory, d.watch_layers) for t, d in zip(tokens, ours)]
        for row, one, other, found in zip(rows, ours, plain, read_together(net, rows)):
            one.looked_at(1, row.looks)
            want = other.feed(row.ids)
            assert gap(found, want) < 1e-3 and int(found.argmax()) == int(want.argmax())
            assert gap(one.gazes, other.gazes) < 1e-3


class Ready:
    """Tokens that are ready, for frames that are only counted."""

    unit_frames, long_side = 1, 64

    def __init__(self) -> None:
        self.tokens_1TD = torch.randn(1, 4096, 64, device="cuda")

    def tokens(self, frames) -> Seen:
        at = torch.tensor([int(frame.time) for frame in frames])
        return Seen(self.tokens_1TD[:, at], at.double())


@pytest.mark.parametrize("lengths", [[7] * 6, [1, 40, 300, 17, 299, 5]])
def test_chunks_of_several_streams_in_one_pass(lengths, tiny_vamba, clip, monkeypatch):
    net, eyes = tiny_vamba(torch.float32, **WIDE).cuda(), Ready()
    monkeypatch.setattr("pipeline.models.vamba_streams.MOST_FILLED", 99.0)
    (picture,) = clip(1)
    memory = Memory.empty(2, 2, 16, torch.float32, "cuda", block_slots=64)
    together = [Stream((), net.start(), memory) for _ in lengths]
    alone = [Stream((), net.start(), memory) for _ in lengths]
    for turn in range(3):
        for n, (a, b) in enumerate(zip(together, alone)):
            a.frames = b.frames = tuple(
                replace(picture, time=float(1000 * turn + 50 * n + i))
                for i in range(lengths[(n + turn) % len(lengths)])
            )
        watch_streams(net, eyes, together)
        for one in alone:
            watch_streams(net, eyes, [one])
        for a, b in zip(together, alone):
            for ours, want in zip(a.states, b.states):
                assert gap(ours.ssm, want.ssm) < 1e-4 and gap(ours.conv, want.conv) < 1e-4
            assert gap(a.memory.log.tensor("k"), b.memory.log.tensor("k")) < 1e-4
            assert gap(a.memory.log.tensor("v"), b.memory.log.tensor("v")) < 1e-4
