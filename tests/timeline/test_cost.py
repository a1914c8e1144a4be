"""The bench tells what the timeline costs beside watching, for a model that keeps an index and for no other."""

from __future__ import annotations

from pipeline.bench import embedded
from pipeline.bench.tables import embedded_table
from pipeline.engine import Engine
from pipeline.stream import StreamState, Token, VideoChunk
from tests.timeline.made import Colours, scenes
from tests.timeline.test_alerts import Given


class Indexed(Colours):
    """Answers, and has seen nothing that a rule tells of."""

    def spotter(self, rule):
        return Given([0.0] * 10_000)

    def ask(self, question, state, sampling):
        yield from (Token(n, " a") for n in range(2))


class Unindexed(Indexed):
    def shows(self, state: StreamState, start: float, end: float) -> None:
        return None


def test_five_rules_and_captions_are_timed():
    engine, chunk = Engine(Indexed()), VideoChunk(scenes([("red", 8)]))
    assert len(embedded.RULES) == 5
    assert embedded._notice_ms(engine, engine.start(), chunk) > 0
    assert embedded._notice_ms(Engine(Unindexed()), engine.start(), chunk) is None


def test_the_table_says_its_share_of_watching():
    found = embedded.measure_model(Indexed(), [1], 8, (64, 36))
    (row,) = found["rows"]
    assert row["notice_over_chunk"] == row["notice_ms"] / row["chunk_ms"] > 0
    floors = {"chunk_floor_ms": 1.0, "first_token_floor_s": 1.0, "tokens_per_s_ceiling": 1.0}
    document = {
        "model": {**found, "load_s": 1.0, "resident_bytes": {"loaded": 2_000_000}, "rows": [{**row, **floors}]},
        "model_over_baseline": [],
        "machine": {},
    }
    table = embedded_table({**document, "conditions": {}})
    assert "shots, captions and five rules take" in table and "resident: loaded 2 MB" in table
