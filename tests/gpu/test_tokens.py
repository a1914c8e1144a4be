"""A recorded token of a recurrent system on a GPU: the same words as launch by launch, and truly recorded."""

from __future__ import annotations

import pytest
import torch

from pipeline.stream import Question, Sampling
from tests.conftest import gap
from tests.models.test_sequence import HYBRID, LINEAR, film, model, watched

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.mark.parametrize("kinds", [LINEAR, HYBRID])
def test_recorded_tokens_are_those_of_launches(kinds) -> None:
    tiny = model(kinds, dtype=torch.float32, device="cuda")
    streams = [watched(tiny, film(count), 8) for count in (20, 30)]

    def said() -> torch.Tensor:
        talks = [tiny.conversation(state.inner, 9) for state in streams]
        with torch.no_grad():
            return torch.stack([talk.feed(ids) for ids in ([20, 30], [7], [8], [9], [10]) for talk in talks])

    got = said()
    assert not tiny._recordings.tapes.off and (tiny._recordings._recorded is not None) == (kinds == LINEAR)
    tiny._recordings.tapes.off = True
    assert gap(got, said()) < 1e-4
    assert list(tiny.ask(Question("?"), streams[0], Sampling(max_tokens=3)))
