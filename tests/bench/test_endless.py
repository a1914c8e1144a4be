"""The bench of a stream without an end, on minutes: its seconds are right, its answers those of everything kept."""

import pytest

from pipeline.bench.endless import endless_table, measure_endless
from pipeline.towers.frame_tower import ASSETS


@pytest.mark.skipif(not (ASSETS / "embedded.safetensors").is_file(), reason="assets/embedded.safetensors is missing")
def test_minutes_of_a_stream_without_an_end() -> None:
    found = measure_endless("embedded", 90 / 3600, bank=16)
    (row,) = found["rows"]
    assert row["hour"] == 90 / 3600 and row["most_apart_s"] == 0 and not row["dropped"] and row["rss"] > 1e8
    assert found["questions"] == 1 and found["answers_like_everything_kept"] == 1
    (answer,) = row["answers"]
    assert answer["asked"] == 30 and answer["evidence_apart_s"] == 0 and answer["text"]
    assert "100% of 1 answers" in endless_table(found)
