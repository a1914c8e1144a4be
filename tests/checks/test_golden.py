"""Parity with the published Vamba on golden tensors, and cutting that changes nothing, through `verify`."""

from __future__ import annotations

import json
import shutil
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.checks import verify
from pipeline.layers.mamba2 import MixerState
from pipeline.layers.vamba import Vamba
from pipeline.stream import UserError
from tests import places
from tests.weights.test_weights import VAMBA, random_net

FOLDERS = ["vamba-released", "vamba-positions"]


def golden(name: str) -> Path:
    folder = places.golden(name)
    if folder is None:
        pytest.skip(f"the golden folder {name} is not here")
    return folder


def run(capsys, folder: Path, *options: str) -> tuple[int, dict]:
    parser = ArgumentParser()
    verify.add_arguments(parser)
    code = verify.run(parser.parse_args(["--golden", str(folder), "--device", "cpu", *options]))
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FOLDERS)
def test_equal_to_the_published_system_however_the_video_is_cut(capsys, name, dtype) -> None:
    code, report = run(capsys, golden(name), "--dtype", dtype, "--chunks", "6")
    tensors = {row["tensor"]: row for row in report["tensors"]}
    assert code == 0 and report["ok"], [row for row in report["tensors"] if not row["ok"]]
    layers = json.loads((golden(name) / "config.json").read_text())["num_hidden_layers"]
    named = {
        "visual_embeds",
        "logits",
        "greedy_ids",
        "greedy_logits",
        *(f"video_hidden.{n + 1}" for n in range(layers)),
    }
    assert named <= set(tensors)
    for kind in ("frames", "pairs", "tokens"):
        cut = [row for name, row in tensors.items() if f"by {kind}" in name]
        assert len(cut) >= 8 and max(row["in_std"] for row in cut) < (1e-9 if dtype == "float64" else 1e-4)


@pytest.mark.parametrize("name", FOLDERS)
def test_weights_in_8_bits_stay_near_and_give_the_same_answer(capsys, name) -> None:
    code, report = run(capsys, golden(name), "--int8", "--chunks", "3")
    tensors = {row["tensor"]: row for row in report["tensors"]}
    assert code == 0 and report["int8"], [row for row in report["tensors"] if not row["ok"]]
    assert tensors["greedy_ids"]["difference"] == 0 and tensors["visual_embeds"]["in_std"] < 1e-4
    assert 0.01 < tensors["logits"]["in_std"] < 0.25  # else nothing was rounded, or too much


@pytest.mark.parametrize("name", FOLDERS)
def test_products_in_8_bit_floating_point_stay_near_and_give_nearly_the_same_answer(capsys, name) -> None:
    code, report = run(capsys, golden(name), "--fp8", "--dtype", "float64", "--chunks", "3")
    tensors = {row["tensor"]: row for row in report["tensors"]}
    assert code == 0 and report["fp8"], [row for row in report["tensors"] if not row["ok"]]
    assert tensors["greedy_ids"]["difference"] <= tensors["greedy_ids"]["allowed"] == 1  # of 12 words
    assert 0.01 < tensors["visual_embeds"]["in_std"] < 0.25 and 0.1 < tensors["logits"]["in_std"] < 0.75
    cuts = [row["in_std"] for tensor, row in tensors.items() if tensor.startswith("cut ")]
    assert len(cuts) >= 9 and max(cuts) < 1e-9


def test_only_a_system_that_has_fp8_is_compared_with_it(capsys) -> None:
    with pytest.raises(UserError, match="has no fp8"):
        run(capsys, golden("mmmamba-linear"), "--fp8")


def copied(name: str, to: Path, change) -> Path:
    """A golden folder whose weights or config `change` has touched."""
    for file in golden(name).iterdir():
        shutil.copyfile(file, to / file.name)
    weights, config = load_file(to / "model.safetensors"), json.loads((to / "config.json").read_text())
    change(weights, config)
    save_file(weights, to / "model.safetensors")
    (to / "config.json").write_text(json.dumps(config))
    return to


def _alpha(weights: dict, config: dict) -> None:
    weights["model.layers.1.alpha"] += 0.05


def _norm_order(weights: dict, config: dict) -> None:
    config["vision_mamba_mixer_config"]["norm_before_gate"] = True


def _positions(weights: dict, config: dict) -> None:
    config["cross_attn_use_position_embeddings"] = not config["cross_attn_use_position_embeddings"]


def _layer_norm(weights: dict, config: dict) -> None:
    config["cross_attn_use_layer_norm"] = not config["cross_attn_use_layer_norm"]


def _last_mixer(weights: dict, config: dict) -> None:
    weights["model.layers.2.vision_mixer.mixer.D"] += 1


@pytest.mark.parametrize(
    ("name", "change", "seen_in"),
    [
        ("vamba-released", _alpha, "logits"),
        ("vamba-released", _norm_order, "video_hidden.1"),
        ("vamba-released", _positions, "logits"),
        ("vamba-positions", _positions, "logits"),
        ("vamba-positions", _layer_norm, "video_hidden.1"),
        ("vamba-released", _last_mixer, "video_hidden.3"),
    ],
)
def test_a_wrong_switch_or_weight_is_found(capsys, tmp_path, name, change, seen_in) -> None:
    code, report = run(capsys, copied(name, tmp_path, change), "--chunks", "0")
    assert code == 1 and not report["ok"]
    assert seen_in in [row["tensor"] for row in report["tensors"] if not row["ok"]]


@pytest.mark.parametrize("part", ["conv", "ssm"])
def test_losing_a_carried_state_is_found(capsys, monkeypatch, part) -> None:
    honest = Vamba.watch

    def forgetful(self, v, states, *rest, **options):
        lost = tuple(MixerState(**(s._asdict() | {part: torch.zeros_like(getattr(s, part))})) for s in states)
        return honest(self, v, lost, *rest, **options)

    monkeypatch.setattr(Vamba, "watch", forgetful)
    code, report = run(capsys, golden("vamba-released"), "--chunks", "3")
    wrong = [row["tensor"] for row in report["tensors"] if not row["ok"]]
    assert code == 1 and all(
        any(f"by {kind}: memory.k" in name for name in wrong) for kind in ("frames", "pairs", "tokens")
    )


def test_the_dead_last_mixer_is_not_needed(capsys, tmp_path) -> None:
    def drop(weights: dict, config: dict) -> None:
        for name in [name for name in weights if name.startswith("model.layers.2.vision_mixer")]:
            del weights[name]

    code, report = run(capsys, copied("vamba-released", tmp_path, drop), "--chunks", "3")
    assert code == 0 and "video_hidden.3" not in [row["tensor"] for row in report["tensors"]]


def test_numbers_that_are_not_numbers_fail(capsys, tmp_path) -> None:
    def spoil(weights: dict, config: dict) -> None:
        weights["model.norm.weight"][0] = torch.nan

    code, report = run(capsys, copied("vamba-released", tmp_path, spoil), "--chunks", "0")
    assert code == 1 and not {row["tensor"]: row["ok"] for row in report["tensors"]}["logits"]


MIXER = VAMBA["vision_mamba_mixer_config"]
OTHERS = {
    "two groups, odd pairs": (VAMBA | {"vision_mamba_mixer_config": MIXER | {"ngroups": 2}}, [(5, 4, 6)]),
    "wide kernel, D per channel": (
        VAMBA | {"vision_mamba_mixer_config": MIXER | {"d_conv": 3, "D_has_hdim": True, "bias": True}},
        [(3, 6, 4)],
    ),
    "norm before gate": (
        VAMBA | {"vision_mamba_mixer_config": MIXER | {"norm_before_gate": True, "ngroups": 4}},
        [(1, 8, 8)],
    ),
    "no gated norm, dt limits": (
        VAMBA | {"vision_mamba_mixer_config": MIXER | {"rmsnorm": False, "dt_limit": [0.01, 0.2]}},
        [(4, 4, 4)],
    ),
    "layer norm in the column": (
        VAMBA | {"vision_mamba_mixer_config": MIXER | {"norm_type": "layernorm", "conv_bias": False}},
        [(4, 4, 4)],
    ),
    "positions and norm, two videos": (
        VAMBA | {"cross_attn_use_position_embeddings": True, "cross_attn_use_layer_norm": True},
        [(3, 4, 6), (2, 6, 4)],
    ),
    "no mixers": (VAMBA | {"vision_mamba_mixer_config": MIXER | {"enable": False}}, [(3, 4, 4)]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_unseen_shapes_and_switches_are_cut_without_a_trace(capsys, tmp_path, case) -> None:
    """A folder of the golden form with a random network and no expectations but its inputs."""
    config, grid = OTHERS[case]
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = random_net(config)
    save_file({name: t.clone() for name, t in net.state_dict().items()}, tmp_path / "model.safetensors")
    patches = torch.randn(sum(t * h * w for t, h, w in grid), 1176)
    inputs = {"input_ids": torch.randint(0, 256, (1, 9)), "greedy_ids": torch.randint(0, 256, (1, 3))}
    inputs |= {"pixel_values_videos": patches, "video_grid_thw": torch.tensor(grid)}
    save_file(inputs, tmp_path / "expected.safetensors")
    _, report = run(capsys, tmp_path, "--dtype", "float64", "--chunks", "6")
    cuts = [row for row in report["tensors"] if row["tensor"].startswith("cut")]
    assert len(cuts) >= 30 and all(row["ok"] for row in cuts), [row for row in cuts if not row["ok"]]


def test_other_folders_are_refused_in_a_sentence(tmp_path) -> None:
    with pytest.raises(UserError, match="no readable expected"):
        verify.read(tmp_path, torch.device("cpu"), torch.float32)
    save_file({"logits": torch.zeros(1)}, tmp_path / "expected.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="'bert' cannot be run"):
        verify.read(tmp_path, torch.device("cpu"), torch.float32)
