"""The published-size bench on a CPU: the same code with tiny shapes. What it counts, keeps apart and survives."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

from pipeline.__main__ import main
from pipeline.bench import baseline as published_baseline
from pipeline.bench import floors, published
from pipeline.bench.baseline import compared, measure_baseline, measure_one_pass
from pipeline.bench.floors import bytes_of
from pipeline.bench.machine import Machine, part_alone
from pipeline.bench.published import measure_published
from pipeline.bench.shapes import PUBLISHED, QUESTION, QUESTION_TOKENS, ReadyTokens, Shapes, built
from pipeline.bench.tables import published_table
from pipeline.layers.fp8 import Fp8Linear
from pipeline.layers.hash_tokenizer import HashTokenizer
from pipeline.layers.int8 import Int8Linear, to_int8
from pipeline.layers.vamba import Vamba, VambaConfig
from pipeline.models.transformer import Qwen2VL, TransformerModel
from pipeline.models.vamba_model import VambaModel
from pipeline.options import ModelOptions
from tests.conftest import TINY, TINY_MIXER
from tests.models.test_transformer import CONFIG

CPU = torch.device("cpu")
GIVEN = {"minutes": [1, 2], "frames": 16, "baseline_frames": 64, "options": ModelOptions(), "tower": True}


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    config = CONFIG | {"vision_config": CONFIG["vision_config"] | {"patch_size": 14}}
    wide = replace(TINY, d_model=64, mixer=replace(TINY_MIXER, d_model=64))
    return Shapes(wide, config, (84, 56))


def measured_with(shapes, other, dtype=torch.float32):
    return measure_published(shapes, CPU, dtype, **GIVEN | other)


@pytest.fixture(scope="module")
def measured(shapes):
    torch.set_num_threads(1)
    return measure_published(shapes, CPU, torch.float32, **GIVEN)


def test_every_part_is_measured(measured, shapes):
    assert json.loads(json.dumps(measured)) == measured
    assert [row["frames"] for row in measured["vamba"]["watched"]] == [60, 64, 120]
    assert [row["frames"] for row in measured["vamba"]["marks"]] == [60, 120]
    assert [row["slots"] for row in measured["vamba"]["marks"]] == [30 * shapes.pair_tokens, 60 * shapes.pair_tokens]
    assert set(measured["vamba"]["marks"][0]["chunks"]) == {"16", "2"}
    assert measured["vamba"]["finite"] and measured["all_in"]["frames"] == measured["tower"]["frames"] == 120
    for part in ("baseline", "one_pass"):
        assert [row["frames"] for row in measured[part]["watched"]] == [64] and not measured[part]["stopped"]


def test_times_stand_beside_floors_that_they_exceed(measured):
    found = []

    def walk(part):
        if isinstance(part, dict):
            found.append(part) if "floor_s" in part else [walk(p) for p in part.values()]
        elif isinstance(part, list):
            [walk(p) for p in part]

    walk(measured)
    assert len(found) == 3 + 2 * (2 + 5) + 3 + 1 + 2
    for beside in found:
        assert 0 < beside["floor_s"] < beside["s"] and beside["ratio"] == beside["s"] / beside["floor_s"]


def test_time_adds_up_and_only_the_memory_grows(measured):
    first, shared, last = measured["vamba"]["watched"]
    assert first["watch"]["s"] < shared["watch"]["s"] < last["watch"]["s"]
    assert last["memory_bytes"] == 2 * first["memory_bytes"] and last["state_bytes"] == first["state_bytes"]


def test_both_are_compared_where_both_have_been(measured):
    (row,) = measured["vamba_over_baseline"]
    mine, theirs = measured["vamba"]["watched"][1], measured["baseline"]["watched"][0]
    assert row["frames"] == 64 and row["watch"] == mine["watch"]["s"] / theirs["watch"]["s"]
    (row,) = measured["vamba_over_one_pass"]
    assert row["watch"] == mine["watch"]["s"] / measured["one_pass"]["watched"][0]["watch"]["s"]


def test_one_pass_and_chunks_keep_the_same(measured, shapes):
    """Keys and values of every layer, two key heads of 8, fp32: what the growth of both is compared by."""
    chunks, whole = (measured[part]["watched"][0] for part in ("baseline", "one_pass"))
    config = shapes.baseline
    per_token = config["num_hidden_layers"] * config["num_key_value_heads"] * 2 * 4
    per_token *= config["hidden_size"] // config["num_attention_heads"]
    assert whole["memory_bytes"] == 32 * shapes.pair_tokens * per_token
    assert chunks["memory_bytes"] >= whole["memory_bytes"]
    assert whole["peak_floor"] == measured["one_pass"]["weights"] + whole["memory_bytes"]


def test_chunks_follow_each_other(shapes, monkeypatch):
    """From one snapshot each would copy a block of the memory. Nothing of them is left in the stream."""
    seen, watch = [], VambaModel.watch

    def noted(self, chunk, state):
        seen.append(state.frames)
        return watch(self, chunk, state)

    machine = Machine(CPU, torch.float32, 1e9, 1e9)
    model = VambaModel(built(machine, lambda: Vamba(shapes.vamba)), ReadyTokens(shapes, machine, 16), None)
    monkeypatch.setattr(VambaModel, "watch", noted)
    assert published._chunk_s(model, model.start(), shapes, 16) > 0
    assert seen == [16 * n for n in range(1 + published.REPEATS)]


def test_memory_is_compared_without_the_weights():
    def row(above):
        return {"watched": [{"frames": 64, "watch": {"s": 1.0}, "above_weights": above}]}

    assert compared(row(6), row(10)) == [{"frames": 64, "watch": 1.0, "above_weights": 0.6}]
    assert compared(row(None), row(None)) == [{"frames": 64, "watch": 1.0}]
    assert compared(row(6), {"stopped": "out of memory"}) == []


def test_the_table_has_a_line_for_every_time(measured):
    text = published_table(measured)
    for words in (
        "120 frames: first token",
        "all in: 120 frames",
        "tower: 120 frames",
        "Qwen2-VL in one pass: 64 frames",
        "time ",
    ):
        assert words in text


def test_eight_bits_keep_less(measured, shapes):
    small = measured_with(shapes, {"minutes": [1], "options": ModelOptions(eight_bit=True), "tower": False})
    assert small["tower"] is None and small["all_in"] is None and "tower" not in published_table(small)
    assert small["vamba"]["watched"][0]["memory_bytes"] < 0.5 * measured["vamba"]["watched"][0]["memory_bytes"]


def test_a_memory_on_two_floors(measured, shapes, monkeypatch):
    """What lies on the host is not counted as kept on the GPU, and its way from there is a floor of its own."""
    monkeypatch.setattr(published, "VambaModel", partial(VambaModel, block_slots=64))
    monkeypatch.setattr(published.Machine, "measured", lambda *_: Machine(CPU, torch.float32, 1e15, 1e15, bus=1e6))
    given = {"minutes": [2], "tower": False, "options": ModelOptions(gpu_memory=1e-4)}
    found = measured_with(shapes, given)
    (part,), (before,) = found["vamba"]["watched"][-1:], measured["vamba"]["watched"][-1:]
    assert 0 < part["host_bytes"] < part["memory_bytes"] == before["memory_bytes"] and before["host_bytes"] == 0
    assert part["peak_floor"] == before["peak_floor"] - part["host_bytes"] and found["vamba"]["gpu_memory"] == 1e-4
    (mark,) = found["vamba"]["marks"]
    assert mark["token"]["floor_s"] == mark["question"]["floor_s"] == part["host_bytes"] / 1e6
    assert found["vamba"]["chunk_last_over_first"] is None and "at the first" not in published_table(found)
    assert "at the first" in published_table(measured)
    assert "of it on the host" in published_table(found) and "on the host" not in published_table(measured)


def test_an_answer_that_reads_a_part_has_a_lower_floor(shapes):
    """Not its question, which reads all."""
    found = measured_with(shapes, {"minutes": [2], "tower": False, "options": ModelOptions(retrieve=8)})
    (mark,) = found["vamba"]["marks"]
    assert mark["token"]["floor_s"] < 0.9 * mark["token_without_evidence"]["floor_s"]
    assert mark["first_token"]["floor_s"] >= mark["token_without_evidence"]["floor_s"]


def test_weights_in_8_bits_are_measured_and_kept_small(shapes, measured):
    machine = Machine(CPU, torch.float32, 1e9, 1e9)
    whole, small = (built(machine, lambda: Vamba(shapes.vamba), rounding) for rounding in (None, "int8"))
    again = to_int8(built(machine, lambda: Vamba(shapes.vamba)))
    assert bytes_of(small) == bytes_of(again) < 0.6 * bytes_of(whole)
    assert type(small.lm_head) is type(again.lm_head) is Int8Linear
    assert type(built(machine, lambda: torch.nn.Linear(2, 2))) is torch.nn.Linear
    found = measured_with(shapes, {"minutes": [1], "options": ModelOptions(int8=True), "tower": False})
    assert found["vamba"]["int8"] and found["vamba"]["weights"] == bytes_of(small) and found["vamba"]["finite"]
    assert found["baseline"]["weights"] == measured["baseline"]["weights"]
    rounding = found["rounding"]
    assert 1e-4 < rounding["rms_in_std"] < 0.05 and rounding["rms_in_std"] < rounding["most_in_std"] < 0.5
    assert rounding["same_answer_for"] <= rounding["words"] * rounding["same_word"] + 1e-6
    assert f"of {published.LED_WORDS} times" in published_table(found) and "rounding" not in measured


def test_nothing_strays_that_was_not_rounded(shapes, monkeypatch):
    monkeypatch.setattr(published, "to_8_bits", lambda net, _: net)
    for rounding in ("int8", "fp8"):
        found = published.measure_rounding(shapes, Machine(CPU, torch.float32, 1e9, 1e9), 4, rounding)
        assert found["rms_in_std"] == 0 and found["same_answer_for"] == found["words"] == published.LED_WORDS


def test_8_bit_floating_point_is_measured_beside_the_types_own_noise(shapes):
    options = ModelOptions(fp8=True, int8=True)
    found = measured_with(shapes, {"minutes": [1], "options": options}, dtype=torch.bfloat16)
    assert (
        found["vamba"]["fp8"] and not found["vamba"]["int8"] and found["vamba"]["finite"] and found["all_in"]["watch"]
    )
    rounding = found["rounding"]
    assert 0 < rounding["own"]["rms_in_std"] < rounding["rms_in_std"] < 0.5
    text = published_table(found)
    assert "fp8: logits" in text and "the model's own type beside fp32: logits" in text
    small = published.published_model(shapes, CPU, torch.float32, options)
    assert Fp8Linear in map(type, small.net.visual.modules()) and "8-bit floating point" in small.backend


def test_running_out_of_memory_is_a_row(shapes, monkeypatch):
    watch = TransformerModel.watch

    def full(self, chunk, state):
        if state.frames >= 128:
            raise torch.OutOfMemoryError
        return watch(self, chunk, state)

    monkeypatch.setattr(TransformerModel, "watch", full)
    machine = Machine(CPU, torch.float32, 1e9, 1e9)
    found = measure_baseline(shapes, machine, published._doublings(300), 16)
    assert [row["frames"] for row in found["watched"]] == [128]
    assert found["stopped"] == "out of memory on the way to 256 frames"
    assert part_alone("part", lambda: (_ for _ in ()).throw(MemoryError)) == {"stopped": "out of memory"}
    monkeypatch.setattr(published_baseline, "timed", lambda call: (_ for _ in ()).throw(torch.OutOfMemoryError))
    monkeypatch.setattr(published_baseline, "_pass", keeping_the_warm_up(published_baseline._pass))
    whole = measure_one_pass(shapes, machine, [64, 128])
    assert whole["watched"] == [] and whole["stopped"] == "out of memory at 64 frames"
    broken = {"machine": {}, "conditions": {}, "vamba": {"stopped": "out of memory"}, "tower": None, "all_in": None}
    both = {"baseline": found, "one_pass": whole}
    both |= {f"vamba_over_{name}": compared({}, part) for name, part in both.items()}
    text = published_table(broken | both)
    assert "Vamba: out of memory" in text and "in one pass: out of memory at 64 frames" in text


def keeping_the_warm_up(one_pass):
    return lambda *arguments: None if arguments[-1] == 2 else one_pass(*arguments)


def test_floors_are_those_of_the_published_shapes():
    """By hand: 27 live mixers and 28 pairs of key and value projections; text weights; 299 tokens a pair."""
    shapes = PUBLISHED
    with torch.device("meta"):
        net, baseline = Vamba(shapes.vamba), Qwen2VL(shapes.baseline)
    assert shapes.pair_tokens == 299
    mixer, keys = 3584 * 14704 + 7168 * 3584, 2 * 3584 * 512
    assert floors.column_flops(net) == 2 * (27 * mixer + 28 * keys)
    layer = 2 * 3584 * 3584 * 2 + 2 * 3584 * 512 + 3 * 3584 * 18944
    assert floors.text_bytes(net) == 4 * (28 * layer + 152064 * 3584)
    transformer = 2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944
    assert floors.baseline_flops(baseline, 1000) == 28 * (2 * 1000 * transformer + 2 * 1000**2 * 3584)
    patches, block = 1196, 4 * 1280 * 1280 + 2 * 1280 * 5120
    tower = 2 * patches * (32 * block + 1176 * 1280) + 32 * 4 * patches**2 * 1280 + 2 * 299 * (5120**2 + 5120 * 3584)
    assert floors.tower_flops(baseline.visual, 299) == tower


def test_the_config_describes_the_shapes():
    assert VambaConfig.from_dict(PUBLISHED.config) == PUBLISHED.vamba


def test_the_question_has_its_tokens():
    from pipeline.layers.decoding import ChatPrompt

    assert len(ChatPrompt(HashTokenizer(1000)).after_video(QUESTION)) == QUESTION_TOKENS


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a GPU, so the refusal without one cannot be seen"
)
def test_without_a_gpu_it_says_so(capsys):
    assert main(["bench", "--size", "published"]) == 2
    out = capsys.readouterr()
    assert out.err.count("\n") == 1 and "NVIDIA" in out.err and not out.out


def test_what_cannot_be_measured_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main(["bench", "--size", "published", "--frames", "7"]) == 2
    assert "even" in capsys.readouterr().err
    assert main(["bench", "--size", "published", "--gpu-memory", "0"]) == 2
    assert "more than 0" in capsys.readouterr().err


def test_the_towers_hour_is_watched_whole(shapes, monkeypatch):
    """Not a chunk's time, multiplied: every picture goes through once, the last chunk is a short one."""
    seen = []
    monkeypatch.setattr(published.QwenVision, "tokens", lambda self, frames: seen.append([f.time for f in frames]))
    monkeypatch.setattr(published, "_median_s", lambda call: 8.0)
    monkeypatch.setattr(published, "timed", lambda call: (3.0, call()))
    found = published.measure_tower(shapes, Machine(CPU, torch.float32, 1e12, 1e10), 62, 4)
    assert found["watch"]["s"] == 3.0 and found["chunks"]["4"]["s"] == 8.0
    assert [time for chunk in seen for time in chunk] == list(range(62)) and len(seen) == 16
