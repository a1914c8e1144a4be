"""Recorded words and pictures of the systems of one sequence: as launch by launch and as torch says, truly recorded.

Without a GPU, Triton's interpreter runs the same passes unrecorded, slowly (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from pipeline.gpu import dispatch
from pipeline.models import sequence_graphs
from pipeline.models.sequence import SequenceModel
from pipeline.stream import Question, Sampling, VideoChunk
from tests.conftest import gap
from tests.models.test_sequence import ATTENDING, HYBRID, LINEAR, film, model, tensors, watched

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not CUDA
pytestmark = [
    pytest.mark.skipif(not (CUDA or INTERPRETED), reason="needs a CUDA GPU or Triton's interpreter"),
    *([] if INTERPRETED else [pytest.mark.cuda]),
]
KINDS = pytest.mark.parametrize("kinds", [LINEAR, HYBRID, ATTENDING] if CUDA else [("mha",), ("mamba2",)])
NEAR = 1e-3  # of fp32 whose products are three of tf32
HALF_NEAR = 0.05  # of bf16, whose own rounding is 0.004 a step


@pytest.fixture(autouse=True)
def small(monkeypatch) -> Iterator[None]:
    """Rooms that are outgrown, and the kernels on whatever device."""
    monkeypatch.setattr(sequence_graphs, "LEAST_SLOTS", 64)
    with torch.no_grad(), dispatch.override("own"):
        yield


def tiny(kinds: tuple[str, ...], dtype: torch.dtype = torch.float32) -> SequenceModel:
    return model(kinds, dtype=dtype, device="cuda" if CUDA else "cpu", width=64)


def said(net: SequenceModel, streams: list) -> tuple[torch.Tensor, list]:
    """Logits of two answers that take turns, and where their words looked."""
    talks = [net.conversation(state.inner, 9) for state in streams]
    logits, looked = [], []
    for ids in ([20, 30], [7], [8], [9]) if CUDA else ([20, 30], [7], [8]):  # the interpreter takes seconds a word
        for talk in talks:
            logits.append(talk.feed(ids))
            looked.append(talk.looked())
    return torch.stack(logits), looked


@KINDS
def test_recorded_words_are_those_of_launches_and_of_torch(kinds) -> None:
    """Also where the second answer's stream is longer than the recording made for the first one's."""
    net = tiny(kinds)
    with dispatch.override("torch"):
        streams = [watched(net, film(count), 8) for count in ((9, 30) if CUDA else (30,))]
    got, looked = said(net, streams)
    assert not net._recordings.tapes.off and net._recordings.recorded is not None
    net._recordings.tapes.off = True
    plain, where = said(net, streams)
    assert gap(got, plain) < 1e-5
    with dispatch.override("torch"):
        assert gap(got, said(net, streams)[0]) < NEAR
    assert (looked[0] is None) == (set(kinds) == set(LINEAR))
    for ours, theirs in zip(looked, where):
        if ours is not None:
            assert (ours[0] == theirs[0]).all() and abs(ours[1] - theirs[1]).max() < 1e-4
    if CUDA:
        assert list(net.ask(Question("?"), streams[0], Sampling(max_tokens=3)))


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, *([torch.bfloat16] if CUDA else [])])
def test_recorded_pictures_are_those_of_launches_and_of_torch(kinds, dtype, monkeypatch) -> None:
    """Picture after picture, over a stream that outgrows its recording."""
    net, near = tiny(kinds, dtype), NEAR if dtype == torch.float32 else HALF_NEAR
    with dispatch.override("torch"):
        before, frames = watched(net, film(18), 1), film(25 if CUDA else 20)

    def seen() -> list[torch.Tensor]:
        state = before
        for frame in frames[18:]:
            state = net.watch(VideoChunk((frame,)), state)
        return tensors(state.inner)

    got = seen()
    attends = "mha" in kinds
    assert not net._runs.tapes.off and bool(net._runs._kept) == (not attends or not CUDA or dtype == torch.bfloat16)
    monkeypatch.setattr(sequence_graphs, "LIVE_TOKENS", 0)
    for said_by in ("own", "torch") if dtype == torch.float32 else ("own",):  # in bf16 such small nets stray by a std
        with dispatch.override(said_by):
            want = seen()
        assert all(gap(ours.nan_to_num(), theirs.nan_to_num()) < near for ours, theirs in zip(got, want)), said_by
