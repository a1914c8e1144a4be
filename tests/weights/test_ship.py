"""Shipping trained weights: what is rounded comes back close, what must not be rounded exactly, and the files fit."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pipeline.models.embedded_net import EmbeddedConfig, EmbeddedNet
from pipeline.towers.frame_tower import ASSETS
from pipeline.training.ship import ALL_ASSETS, BUDGET, bits_of, kind_of, ship, to_small
from pipeline.training.student import CONFIG, with_lora
from pipeline.training.train import trained
from pipeline.weights.quant import load_trained, pack

LM = json.loads((ASSETS / "lm-config.json").read_text())
LAYER = "vamba.model.layers.12."
SOME = {  # one tensor of every way to be written
    LAYER + "vision_mixer.mixer.in_proj.weight": (98, 64),
    LAYER + "cross_attn.q_proj.weight": (64, 96),
    LAYER + "mlp.up_proj.lora_a": (16, 576),
    LAYER + "mlp.up_proj.lora_b": (1536, 16),
    LAYER + "vision_mixer.mixer.conv1d.weight": (1280, 1, 4),
    LAYER + "vision_mixer.mixer.A_log": (18,),
    LAYER + "alpha": (1,),
    "frames.det.weight": (576, 400),
    "frames.norm.weight": (576,),
    "locator.key.0.weight": (64, 1152),
    "locator.nowhere.weight": (1, 1152),
    "locator.log_scale": (),
}


def random_weights(shapes: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=chance).mul(0.05).bfloat16() for n, shape in shapes.items()}


def write_run(folder, weights: dict[str, torch.Tensor], config: dict | None = None):
    """What training leaves behind, in two shards."""
    names = list(weights)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        save_file({n: weights[n] for n in part}, folder / f"trained-{i:05d}.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {"twin": False, "steps": 7}))
    return folder


def full_size(twin: bool) -> dict[str, tuple]:
    """Names and shapes of all that training changes in the real network."""
    own = {"cross_layers": [], "vision_mamba_mixer_config": {}} if twin else {}
    with torch.device("meta"):
        net = EmbeddedNet(EmbeddedConfig.from_dict({**LM, **CONFIG, **own, "twin": twin}))
        with_lora(net.vamba, torch.float32)
    return {name: tuple(tensor.shape) for name, tensor in trained(net).items()}


def test_every_tensor_comes_back_under_its_name(tmp_path):
    weights = random_weights(SOME)
    ship(write_run(tmp_path, weights), tmp_path / "out", "embedded")
    back = load_trained(tmp_path / "out" / "embedded.safetensors")
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in weights.items()}
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in back.values())
    assert (tmp_path / "out" / "embedded.safetensors").stat().st_mode & 0o044, "others must be able to read it"
    for name, tensor in weights.items():
        bits = bits_of(name, tensor)
        off = float((back[name] - tensor).norm() / tensor.float().norm())
        assert off == 0 if bits is None else 0 < off < {6: 0.025, 8: 0.006}[bits], name


def test_what_is_packed_in_how_many_bits():
    bits = {name: bits_of(name, torch.empty(shape)) for name, shape in SOME.items()}
    assert {n for n, b in bits.items() if b == 8} == {"locator.key.0.weight"}
    assert {n for n, b in bits.items() if b is None} == {
        LAYER + "vision_mixer.mixer.conv1d.weight",
        LAYER + "vision_mixer.mixer.A_log",
        LAYER + "alpha",
        "frames.norm.weight",
        "locator.nowhere.weight",
        "locator.log_scale",
    }


def test_a_matrix_of_the_wrong_width_is_packed_lying_on_its_side():
    tall = random_weights({"lora_b": (1536, 16)})["lora_b"].float()
    small = to_small("x.lora_b", tall)
    assert set(small) == {"x.lora_b.t.q6", "x.lora_b.t.scale", "x.lora_b.t.min"}
    assert torch.equal(small["x.lora_b.t.q6"], pack(tall.T.contiguous(), 6).codes)


@pytest.mark.parametrize("name", ["A_log", "dt_bias", "norm.weight"])
def test_sensitive_numbers_keep_all_their_bits(name):
    exact = torch.tensor([1 / 3, 2.73437512, -6.8750012])
    (kept,) = to_small(LAYER + "vision_mixer.mixer." + name, exact).values()
    assert kept.dtype == torch.float32 and torch.equal(kept, exact)


@pytest.mark.parametrize("values, dtype", [([1.0, -0.5], "float16"), ([70_000.0, 1.0], "float32"), ([3e-9], "float32")])
def test_half_precision_only_where_it_holds_the_numbers(values, dtype):
    (kept,) = to_small("frames.grid.bias", torch.tensor(values)).values()
    assert str(kept.dtype) == f"torch.{dtype}"
    assert torch.allclose(kept.float(), torch.tensor(values), rtol=1e-3)


def test_a_failed_run_is_not_shipped():
    with pytest.raises(ValueError, match="not finite"):
        to_small("frames.grid.weight", torch.full((64, 64), torch.nan))


def test_the_config_says_how_strong_lora_is(tmp_path):
    """Runs from before it was written down get the value they were trained with; a written one is kept."""
    weights = random_weights({"frames.norm.weight": (576,)}) | random_weights({"frames.grid.bias": (576,)})
    for given, wanted in ({}, CONFIG["lora_scale"]), ({"lora_scale": 0.5}, 0.5):
        write_run(tmp_path, weights, {"twin": True, **given})
        ship(tmp_path, tmp_path / "out", "twin")
        assert json.loads((tmp_path / "out" / "twin.json").read_text()) == {"twin": True, "lora_scale": wanted}


def test_other_bits_for_measuring(tmp_path):
    weights, errors = random_weights(SOME), []
    write_run(tmp_path, weights)
    for bits in (4, 6, 8):
        rows = {row.kind: row for row in ship(tmp_path, tmp_path / "out", "embedded", bits)}
        assert rows["lora_b"].form == f"{bits} bits" and rows["alpha"].form == "float32"
        errors.append(rows["lora_b"].error)
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_layers_of_one_kind_are_told_together():
    assert kind_of(LAYER + "cross_attn.q_proj.weight") == "cross_attn.q_proj.weight"
    assert kind_of("vamba.model.layers.3.mlp.up_proj.lora_a") == kind_of(
        "vamba.model.layers.29.self_attn.q_proj.lora_a"
    )


@pytest.mark.parametrize("name", BUDGET)
def test_the_real_network_fits_its_budget(tmp_path, name):
    """Random weights of the real shapes: the size of the file does not depend on the numbers."""
    ship(write_run(tmp_path, random_weights(full_size(name == "twin"))), tmp_path / "out", name)
    assert 0.8 * BUDGET[name] < (tmp_path / "out" / f"{name}.safetensors").stat().st_size <= BUDGET[name]


def test_the_assets_fit_together():
    """The shipped ones count as they are, those not there yet by their budget."""
    found = {path.name: path.stat().st_size for path in ASSETS.iterdir()}
    if "lm-00001-of-00002.safetensors" not in found:
        pytest.skip("the large files of assets/ are not here")
    budget = {f"{name}.safetensors": size for name, size in BUDGET.items()}
    assert all(found.get(name, 0) <= size for name, size in budget.items())
    assert sum((budget | found).values()) <= ALL_ASSETS


@pytest.mark.parametrize("name", BUDGET)
def test_the_shipped_weights_are_those_of_the_network(name):
    if not (ASSETS / f"{name}.safetensors").exists():
        pytest.skip(f"assets/{name}.safetensors is not here")
    back = load_trained(ASSETS / f"{name}.safetensors")
    assert {n: tuple(t.shape) for n, t in back.items()} == full_size(name == "twin")
    assert all(bool(torch.isfinite(t).all()) for t in back.values())
