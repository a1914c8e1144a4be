"""The bench of loading: what it writes, when it refuses, and that loading holds little of a checkpoint at once."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import time

import pytest
import torch

from pipeline.bench import loading
from pipeline.bench.tables import loading_table
from pipeline.layers.int8 import Int8Linear
from pipeline.models import load as weights
from pipeline.stream import UserError
from pipeline.weights.checkpoint import INDEX, weight_files
from tests.weights.test_weights import VAMBA

CPU = torch.device("cpu")
WIDE = VAMBA | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 10,
    "vocab_size": 8192,
    "torch_dtype": "bfloat16",
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": VAMBA["vision_config"] | {"hidden_size": 512},
}


def test_what_is_written_is_a_checkpoint_in_shards(tmp_path):
    loading.written(tmp_path / "new", VAMBA, CPU, shard=20_000)
    index = json.loads((tmp_path / "new" / INDEX).read_text())["weight_map"]
    files = weight_files(tmp_path / "new")
    assert len(files) > 2 and {file.name for file in files} == set(index.values())
    model = weights.load(str(tmp_path / "new"), "cpu", int8=True)
    kinds = [type(module) for module in model.net.modules()]
    assert "weights in 8 bits" in model.backend
    assert kinds.count(Int8Linear) > 10 and all(p.isfinite().all() for p in model.net.parameters())
    assert (model.net.model.norm.weight == 1).all() and model.net.lm_head.weight.float().std() > 0


def test_parts_stay_below_their_size_and_keep_the_order():
    parts = loading._parts({"a": 4, "b": 4, "c": 9, "d": 1, "e": 7}, 8)
    assert [list(part) for part in parts] == [["a", "b"], ["c"], ["d", "e"]]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 1_000))
    with pytest.raises(UserError, match=r"takes 0\.\d GB of disk and 0\.0 GB are free"):
        loading.written(tmp_path / "new", WIDE, CPU)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("rounding", "most"), [(None, 20e6), ("int8", 230e6)])
def test_little_is_held_at_once(tmp_path, rounding, most):
    """144 MB in shards of 40, in their own process. As they are stored they stay mapped. Rounded, half of them stays;
    the rest is what four readers have in their hands, two copies in fp32 of a tensor of 8 MB. Whole files: 300 and 440.
    """
    loading.written(tmp_path, WIDE, CPU, shard=40_000_000)
    code = f"""
import json, pathlib, torch
from pipeline.bench import loading
print(json.dumps(loading.measured(pathlib.Path({str(tmp_path)!r}), torch.device("cpu"), {rounding!r})))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(told.stdout)
    assert found["bytes"] > 100e6 and found["files"] > 3
    grown = found["cold"]["peak_anonymous"] - found["cold"]["before_anonymous"]
    assert grown < most
    assert found["cold"]["s"] > 0 and "GB/s" in loading_table(found)


def test_a_place_that_cannot_be_written_has_its_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="could not be written"):
        loading.measure_loading(tmp_path / "file" / "new", VAMBA, CPU, None)


def test_memory_is_seen_while_it_is_held():
    gc.collect()  # what earlier tests left behind must not go while this looks
    with loading.anonymous_memory() as peak:
        held = bytearray(b"x" * 200_000_000)
        ends, before = time.monotonic() + 10, len(peak)
        while len(peak) < before + 2 and time.monotonic() < ends:
            time.sleep(0.01)
        del held
    assert max(peak) - peak[0] > 150e6


def test_it_is_written_once_and_loaded(tmp_path):
    folder = tmp_path / "new"
    document = loading.measure_loading(folder, VAMBA, CPU, None)
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert document["bytes"] == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    again = loading.measure_loading(folder, VAMBA, CPU, "int8")
    assert json.loads(json.dumps(again))["int8"] and "weights to 8 bits" in loading_table(again)
    assert before == {file: file.stat().st_mtime_ns for file in folder.iterdir()}
