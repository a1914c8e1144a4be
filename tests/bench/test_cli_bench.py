"""`python -m pipeline bench` on the command line."""

import contextlib
import gc
import io
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import pipeline
from pipeline import Frame
from pipeline.__main__ import main
from pipeline.bench import visit
from pipeline.stream import StreamState
from tests.sources.test_video import render
from tests.test_engine import ColourModel


class MatrixModel(ColourModel):
    """A model with known costs: a watch multiplies 2 x 256 x 256 per frame, memory may be bounded at `limit` frames."""

    unit_frames = 1

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.weight = torch.zeros(256, 256)

    def watch(self, chunk, state):
        torch.ones(len(chunk.frames), 256) @ self.weight
        state = super().watch(chunk, state)
        if self.limit and state.frames > self.limit:
            dropped = state.frames - self.limit
            return replace(state, memory_bytes=32 * self.limit, dropped=dropped, dropped_note=f"{dropped} dropped")
        return state

    def ask(self, question, state, sampling):
        for token in super().ask(question, state, sampling):
            torch.ones(1, 256) @ self.weight
            yield token


@pytest.fixture(scope="module")
def benched():
    """One short bench of the matrix model against one that keeps 90 frames, as the command runs it."""
    torch.set_num_threads(1)  # as every test does, but this comes before the first
    patch = pytest.MonkeyPatch()
    patch.setattr(pipeline, "load", lambda name: MatrixModel(90 if name == "small" else None))
    patch.setattr("pipeline.models.load.check", lambda name: None)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            code = main(["bench", "--minutes", "2", "1", "--frames", "8", "--baseline", "small"])
    finally:
        patch.undo()
    *table, last = stdout.getvalue().splitlines()
    return code, "\n".join(table), json.loads(last)


def test_bench_ends_in_one_json_line_after_a_table(benched):
    code, table, document = benched
    assert code == 0
    assert "ms/chunk" in table and "30 dropped" in table and "model / baseline at minute 2" in table
    for role in ("model", "baseline"):
        assert [(row["minute"], row["frames"]) for row in document[role]["rows"]] == [(1, 60), (2, 120)]
        assert document[role]["peak_rss"] > 1 << 20
        stages = document[role]["resident_bytes"]
        assert list(stages) == ["loaded", "minute 1", "minute 2", "peak"]  # that model has no late senses
        assert 1 << 20 < stages["minute 2"] <= stages["peak"] and f"peak {stages['peak'] / 1e6:,.0f} MB" in table
        for row in document[role]["rows"]:
            assert row["chunk_ms"] > 0 and row["first_token_s"] > 0 and row["tokens_per_s"] > 0
    assert document["resident_bytes_together"] > 1 << 20 and "resident with both loaded" in table
    assert document["conditions"]["threads"] == torch.get_num_threads()


def test_bench_ratios_are_those_of_its_rows(benched):
    document = benched[2]
    first, last = document["model"]["rows"]
    assert document["model"]["growth"]["memory_bytes"] == last["memory_bytes"] / first["memory_bytes"] == 2
    assert document["model_over_baseline"][1]["memory_bytes"] == 120 / 90
    assert document["model_over_baseline"][0]["memory_bytes"] == 1


def test_a_baseline_past_its_limit_says_what_it_dropped(benched):
    rows = benched[2]["baseline"]["rows"]
    assert [(row["dropped"], row["dropped_note"]) for row in rows] == [(0, ""), (30, "30 dropped")]


def test_bench_counts_what_a_chunk_costs(benched):
    costs = benched[2]["model"]["rows"][0]["costs"]
    assert costs["chunk"] == {"flops": 2 * 8 * 256 * 256, "bytes": 4 * 256 * 256}
    assert costs["token"] == {"flops": 2 * 256 * 256, "bytes": 4 * 256 * 256}


def test_the_floor_is_below_the_measured_time(benched):
    for role in ("model", "baseline"):
        for row in benched[2][role]["rows"]:
            assert 0 < row["chunk_floor_ms"] < row["chunk_ms"]
            assert 0 < row["first_token_floor_s"] < row["first_token_s"]
            assert row["tokens_per_s_ceiling"] > row["tokens_per_s"]


def test_a_model_that_runs_out_of_memory_is_reported_not_raised():
    from pipeline.bench.embedded import measure_model

    class Full(MatrixModel):
        def watch(self, chunk, state):
            if chunk.frames[-1].time > 80:
                raise MemoryError
            return super().watch(chunk, state)

    found = measure_model(Full(), [1, 2], 8, (32, 18))
    assert [row["minute"] for row in found["rows"]] == [1]
    assert "Memory ran out at 1:2" in found["stopped"]


def test_the_real_models_tiny_side_by_side(tiny_model, monkeypatch, capsys):
    """The state of Vamba stays as it is while its memory grows; the transformer drops and says so."""
    from tests.models.test_transformer import build

    pair = {"embedded": tiny_model, "embedded-twin": lambda: build(limit=100)}
    monkeypatch.setattr(pipeline, "load", lambda name: pair[name]())
    assert main(["bench", "--minutes", "1", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["growth"]["state_bytes"] == 1
    assert found["model"]["growth"]["memory_bytes"] == pytest.approx(2, rel=0.1)
    assert found["model"]["rows"][1]["dropped"] == 0 < found["baseline"]["rows"][1]["dropped"]
    assert found["baseline"]["rows"][1]["dropped_note"]
    costs = [row["costs"] for role in ("model", "baseline") for row in found[role]["rows"]]
    assert all(cost["flops"] > 0 and cost["bytes"] > 0 for row in costs for cost in row.values())
    one, two = (row["costs"]["token"]["bytes"] for row in found["model"]["rows"])
    assert two > one, "an answer reads the whole memory"


@pytest.mark.parametrize("names", [["--baseline", "embeded-twin"], ["--model", "embeded"]])
def test_misspelt_names_are_told_before_anything_is_loaded(names, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "load", lambda name: pytest.fail(f"{name} was loaded first"))
    assert main(["bench", "--minutes", "1", *names]) == 2
    assert f"no model called '{names[1]}'" in capsys.readouterr().err


def test_costs_are_those_of_the_shapes():
    """FLOPs by hand; bytes of what was there before, once, and not of what the calls make."""
    from pipeline.bench.cost import Cost

    weight, keys = torch.randn(128, 64), torch.randn(1, 2, 100, 8)
    with torch.no_grad(), Cost() as linear:
        for _ in range(2):
            torch.nn.functional.linear(torch.ones(10, 64), weight)
    assert (linear.flops, linear.bytes) == (2 * 2 * 10 * 64 * 128, 4 * 64 * 128)
    with torch.inference_mode(), Cost() as attention:
        torch.nn.functional.scaled_dot_product_attention(torch.ones(1, 2, 16, 8), keys, keys)
    assert (attention.flops, attention.bytes) == (2 * 2 * 2 * 16 * 100 * 8, 4 * 2 * 100 * 8)
    with torch.no_grad(), Cost() as convolution:
        torch.nn.functional.conv2d(torch.ones(1, 3, 10, 10), torch.ones(8, 3, 3, 3))
    assert convolution.flops == 2 * 8 * 27 * 64
    rates = {"cpu float32 matmul FLOP/s": 1e6, "cpu copy bytes/s": 1e3}
    assert linear.floor_s(rates) == max(linear.flops / 1e6, linear.bytes / 1e3)


def test_bench_pictures_are_smooth_move_and_repeat():
    from pipeline.bench.embedded import pictures

    def first(n: int) -> list[Frame]:
        source = pictures((64, 36))
        return [next(source) for _ in range(n)]

    frames, again = first(40), first(40)
    assert all(np.array_equal(a.rgb, b.rgb) and a.time == b.time for a, b in zip(frames, again))
    assert [f.time for f in frames] == list(range(40)) and frames[0].rgb.shape == (36, 64, 3)
    for one, two in pairwise(frames):
        assert np.abs(one.rgb.astype(int) - two.rgb).mean() > 0.2, "the picture stands still"
    assert all(np.abs(np.diff(f.rgb.astype(int), axis=1)).mean() < 12 < f.rgb.std() for f in frames)


@pytest.fixture
def benched_files(monkeypatch, tmp_path, capsys):
    """The command on files of 120 pictures: its document and its table."""
    path = render(tmp_path / "film.mp4", [i / 10 for i in range(120)], gop=10)
    monkeypatch.setattr(pipeline, "load", lambda name: MatrixModel())
    monkeypatch.setattr("pipeline.sources.readers._chosen", None)

    def bench(count: int = 1) -> tuple[dict, str]:
        assert main(["bench", "--file", *[str(path)] * count, "--readers", "2"]) == 0
        *table, last = capsys.readouterr().out.splitlines()
        return json.loads(last), "\n".join(table)

    return bench


def test_a_file_is_measured_from_its_bytes_to_an_answer(benched_files):
    found, table = benched_files()
    assert found["file"]["pictures"] == 120 and found["file"]["watched"] == 12 and found["conditions"]["readers"] == 2
    assert all(found[name] > 0 for name in ("bare_decoding_s", "decoding_s", "watching_s", "first_word_s"))
    answerable = found["answerable"]
    assert answerable["s"] == pytest.approx(answerable["ratio"] * max(found["bare_decoding_s"], found["watching_s"]))
    assert "from file to answerable" in table and found["bare_decoded"] == 120 and "scaled" not in table


def test_several_files_are_measured_in_one_sitting(benched_files):
    found, table = benched_files(2)
    assert [one["file"]["watched"] for one in found["files"]] == [12, 12] and table.count(
        "from file to answerable"
    ) == 4


def test_a_file_is_watched_with_no_other_state_in_memory(benched_files, monkeypatch):
    """Two hours of the published size do not fit in a GPU, and a collection that would find them may be far."""
    from_file = visit._from_file

    def alone(engine, path):
        assert not any(type(thing) is StreamState and thing.frames for thing in gc.get_objects())
        return from_file(engine, path)

    monkeypatch.setattr(visit, "_from_file", alone)
    gc.collect()
    gc.disable()
    try:
        assert len(benched_files(2)[0]["files"]) == 2
    finally:
        gc.enable()


def test_bare_decoding_of_a_long_file_is_scaled_and_says_so(benched_files, monkeypatch):
    monkeypatch.setattr("pipeline.bench.visit.BARE_S", 0.0)
    monkeypatch.setattr("pipeline.bench.visit.bare_decoding", lambda path, most: (0.5, 30) if most == 0.0 else None)
    found, table = benched_files()
    assert found["bare_decoding_s"] == 2.0 and found["bare_decoded"] == 30
    assert "scaled from the first 30 pictures" in table


def test_bare_decoding_stops_where_it_takes_too_long(tmp_path):
    path = render(tmp_path / "film.mp4", [i / 10 for i in range(30)], gop=10)
    assert visit.bare_decoding(path, 1e-9)[1] == 1 and visit.bare_decoding(path, 100)[1] == 30


@pytest.mark.parametrize("count", ["0", "1000", "-1"])
def test_a_number_of_readers_that_cannot_be(count, tmp_path, capsys):
    assert main(["probe", str(tmp_path), "--readers", count]) == 2
    assert "choose 1 to" in capsys.readouterr().err
