"""The bench of a stream without an end, on minutes: its seconds are right, its answers those of everything kept."""

import json
from typing import Any

import pytest
import torch

from pipeline.bench import endless_published
from pipeline.bench.endless import endless_table, growth, measure_endless
from pipeline.bench.endless_published import endless_published_table, measure_endless_published
from pipeline.bench.published import published_model
from pipeline.models.vamba_model import VambaModel
from pipeline.options import ModelOptions
from pipeline.towers.frame_tower import ASSETS
from tests.bench.test_bench import shapes  # noqa: F401


@pytest.mark.skipif(not (ASSETS / "embedded.safetensors").is_file(), reason="assets/embedded.safetensors is missing")
def test_minutes_of_a_stream_without_an_end() -> None:
    found = measure_endless("embedded", 90 / 3600, bank=16)
    (row,) = found["rows"]
    assert row["hour"] == 90 / 3600 and row["most_apart_s"] == 0 and not row["dropped"] and row["rss"] > 1e8
    assert found["questions"] == 1 and found["answers_like_everything_kept"] == 1
    (answer,) = row["answers"]
    assert answer["asked"] == 30 and answer["evidence_apart_s"] == 0 and answer["text"]
    assert "100% of 1 answers" in endless_table(found)


def test_the_published_size_is_measured_hour_by_hour_and_beside_everything_kept(shapes, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(endless_published, "EVERY", 64)
    monkeypatch.setattr(endless_published, "BESIDE", 128)
    monkeypatch.setattr("pipeline.memory.disk.MEANS_MINUTES", 0.5)

    def small_blocks(*given: Any) -> VambaModel:
        model = published_model(*given)
        model.block_slots = 32
        return model

    monkeypatch.setattr(endless_published, "published_model", small_blocks)
    options = ModelOptions(endless=0.2, eight_bit=True, retrieve=8)
    found = measure_endless_published(shapes, torch.device("cpu"), torch.float32, options, 200 / 3600)
    assert json.loads(json.dumps(found)) == found
    assert [round(row["hour"] * 3600) for row in found["rows"]] == [64, 128, 192, 200]
    assert all(row["most_apart_s"] == 0 and row["rss"] > 1e8 and not row["dropped_frames"] for row in found["rows"])
    assert all(row["disk"] <= row["file"] for row in found["rows"]) and found["rows"][-1]["disk"]
    assert found["rows"][-1]["means"] == [100, 3]
    beside = found["beside_everything_kept"]
    assert 0 < beside["share_of_old_read_back"] < 1 and 0 < beside["looked_at_share_of_best"] <= 1 + 1e-9
    assert beside["greedy_words"]["difference"] > 0 and "as the best choice" in endless_published_table(found)


def test_growth_is_the_largest_distance_from_the_first() -> None:
    assert growth([100, 99, 103]) == pytest.approx(0.03) and growth([100]) == 0
