"""mmMamba, HoVLE, ML-Mamba and Gemamba compute what the published code computes, however their sequence is cut."""

from __future__ import annotations

import json
import random
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.checks import verify
from pipeline.models.gemamba import Gemamba, GemambaGolden
from pipeline.models.ml_mamba import MLMamba, MLMambaConfig, MLMambaGolden, Towers, TowersGolden, towers_of
from pipeline.models.mmmamba import DistilledMixer, MMMamba, MMMambaConfig, MMMambaGolden
from pipeline.models.system import Golden
from pipeline.towers.pixels import squashed, squashed_as_tensor

SMALL = Path(__file__).parents[1] / "data" / "golden"  # fewer tensors, the same weights
WHOLE = Path(__file__).parents[3] / "shared" / "golden"
NAMES = ["mmmamba-linear", "mmmamba-hybrid", "hovle", "ml-mamba", "ml-mamba-towers", "gemamba"]
FOLDERS = [*(SMALL / name for name in NAMES if (SMALL / name).is_dir()), *(WHOLE / name for name in NAMES)]
INPUTS = ("pixel_values", "input_ids", "frame_spans", "video_end", "patch_features")


def where(folder: Path) -> str:
    return f"{folder.parent.parent.name}-{folder.name}"


def network(config: dict, weights: dict[str, torch.Tensor]) -> tuple[torch.nn.Module, type[Golden]]:
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    if "embedding_config" in config:
        return MMMamba(MMMambaConfig.from_dict(config)), MMMambaGolden
    if "dino" in config:
        return Towers(towers_of(shapes, config)), TowersGolden
    if "llm" in config:
        return MLMamba(MLMambaConfig.from_shapes(shapes, config)), MLMambaGolden
    return Gemamba(config), GemambaGolden


def golden(folder: Path, dtype: torch.dtype) -> Golden:
    if not folder.is_dir():
        pytest.skip(f"the golden folder {folder.name} is not here")
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    net, kind = network(config, weights)
    assert not net.load_state_dict(weights, strict=False).missing_keys
    return kind(net.to(dtype).requires_grad_(False).eval(), load_file(folder / "expected.safetensors"))


def sizes(seed: int):
    chance = random.Random(seed)

    def draw(total: int, most: int | None = None) -> list[int]:
        found = []
        while total:
            found.append(chance.randint(1, min(most or total, total)))
            total -= found[-1]
        return found

    return draw


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference in standard deviations; infinite where shapes, integers or NaN differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.is_floating_point():
        return 0.0 if torch.equal(ours, theirs) else float("inf")
    return float(((ours.double() - theirs.double()).abs().max() / theirs.double().std()).nan_to_num(torch.inf))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("folder", FOLDERS, ids=where)
def test_the_published_tensors_and_any_cut(folder, dtype) -> None:
    tensors = golden(folder, dtype)
    whole, exact = tensors.whole(), dtype == torch.float64
    wanted = [name for name in tensors.expected if not name.split("native.")[-1].split("clips.")[-1].startswith(INPUTS)]
    assert len(wanted) >= 8
    for name in wanted:
        assert far(whole[name], tensors.expected[name]) <= (1e-9 if exact and "fp64." in name else 1e-3), name
    for kind in tensors.kinds:
        for seed in range(2):
            for name, cut in tensors.cut(kind, sizes(seed)).items():
                assert far(cut, whole[name]) <= (1e-9 if exact else 1e-4), (kind, name)


@pytest.mark.parametrize("folder", [*FOLDERS, SMALL / "preprocess", WHOLE / "preprocess"], ids=where)
def test_verify_takes_every_folder(capsys, folder) -> None:
    if not folder.is_dir():
        pytest.skip(f"the golden folder {folder.name} is not here")
    parser = ArgumentParser()
    verify.add_arguments(parser)
    code = verify.run(parser.parse_args(["--golden", str(folder), "--device", "cpu", "--chunks", "3"]))
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0 and report["ok"], [row for row in report["tensors"] if not row["ok"]]
    assert len(report["tensors"]) >= 3


@pytest.mark.parametrize("part", ["conv", "ssm"])
def test_losing_a_carried_state_is_found(monkeypatch, part) -> None:
    tensors, honest = golden(SMALL / "mmmamba-hybrid", torch.float64), DistilledMixer.forward
    whole = tensors.whole()

    def forgetful(self, n, state):
        return honest(self, n, state._replace(**{part: torch.zeros_like(getattr(state, part))}))

    monkeypatch.setattr(DistilledMixer, "forward", forgetful)
    for kind in ("tokens", "frames"):
        cut = tensors.cut(kind, lambda total, most=None: [1] * total)
        assert far(cut["greedy_logits"], whole["greedy_logits"]) > 0.01


def test_a_wrong_rotary_base_is_found() -> None:
    folder = SMALL / "mmmamba-hybrid"
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    config["llm_config"]["rope_theta"] = 1e4
    net, kind = network(config, weights)
    net.load_state_dict(weights, strict=False)
    tensors = kind(net.double().requires_grad_(False), load_file(folder / "expected.safetensors"))
    assert far(tensors.whole()["fp64.logits"], tensors.expected["fp64.logits"]) > 0.1


@pytest.mark.parametrize("folder", [SMALL / "preprocess", WHOLE / "preprocess"], ids=["small", "whole"])
def test_pictures_are_squashed_as_each_reference_does_it(folder) -> None:
    if not folder.is_dir():
        pytest.skip("the golden folder preprocess is not here")
    config, pictures = json.loads((folder / "config.json").read_text()), load_file(folder / "expected.safetensors")
    how = {"mmmamba": squashed, "mlmamba": squashed, "gemamba": squashed_as_tensor}
    for name in {key.split(".")[0] for key in pictures}:
        for system, squash in how.items():
            ours = squash(pictures[f"{name}.rgb"].numpy(), config[system]["size"])
            assert torch.equal(torch.from_numpy(ours.copy()), pictures[f"{name}.{system}"])
