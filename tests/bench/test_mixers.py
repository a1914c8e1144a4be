"""The bench's row of own and published kernels: what it measures, and that it says why it cannot."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pytest
import torch

from pipeline.bench import mixers
from pipeline.bench.machine import Machine
from pipeline.bench.mixers import measure_mixers
from pipeline.bench.tables import mixers_table
from pipeline.gpu.dispatch import override
from tests.conftest import TINY_MIXER
from tests.gpu.stand_ins import put_in_place

HERE = Machine(torch.device("cpu"), torch.float32, 1e9, 1e9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU may have both")
def test_without_them_it_says_so() -> None:
    found = measure_mixers(TINY_MIXER, HERE)
    assert "own kernels cannot run here (there is no CUDA GPU)" in found["stopped"]
    table = mixers_table({"machine": {}, "conditions": {}, "mixers": found})
    assert "there is no CUDA GPU" in table


def test_both_walk_the_same_rows_from_the_same_state(monkeypatch) -> None:
    """Plain torch stands for the own kernels, which a CPU lacks."""
    made = put_in_place(monkeypatch)
    chosen = []

    @contextmanager
    def standing_in(kernels):
        chosen.append(kernels)
        with override("torch" if kernels == "own" else kernels):
            yield

    monkeypatch.setattr(mixers, "require", lambda kernels: None)
    monkeypatch.setattr(mixers, "override", standing_in)
    monkeypatch.setattr(mixers, "TURNS", 2)
    found = measure_mixers(TINY_MIXER, HERE, (1, 30))
    assert json.loads(json.dumps(found)) == found and chosen == ["own", "published"] * 6
    assert [row["tokens"] for row in found["rows"]] == [1, 30]
    for row in found["rows"]:
        assert row["outputs_apart_in_std"] < 1e-5 and row["states_apart_in_std"] < 1e-5
        assert row["published_over_own"] == pytest.approx(row["published"]["s"] / row["own"]["s"])
        assert row["own"]["floor_s"] == row["published"]["floor_s"] > 0
    one, many = ["convolution", "update", "norm"], ["convolution", "scan", "norm"]
    assert [name for name, _ in made.calls] == one * 3 + many * 3
    table = mixers_table({"machine": {}, "conditions": {}, "mixers": found})
    assert "one mixer, 30 tokens, published kernels" in table and "published / own" in table
