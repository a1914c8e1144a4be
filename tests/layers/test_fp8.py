"""Products in 8-bit floating point: how far they are off, where they are, and that the kernels round as torch does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.gpu import dispatch
from pipeline.layers.fp8 import E4M3, Fp8Linear, Rows, normed, rounding_told, rows_of, through_gelu, to_8_bits, to_fp8
from pipeline.layers.int8 import Int8Linear
from pipeline.layers.norms import RMSNorm
from pipeline.layers.vamba import Vamba
from pipeline.models.load import load
from pipeline.models.vamba_model import VambaModel
from pipeline.stream import Question, Sampling, UserError, VideoChunk
from pipeline.towers.qwen import build_tower
from tests.conftest import TINY, TINY_VISION, gap
from tests.gpu.test_cuda import DEVICE, HALF, INTERPRETED, kernels  # noqa: F401
from tests.weights.test_weights import VAMBA, write


def meant(rows: Rows) -> torch.Tensor:
    return rows.codes.double() * rows.scale.double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_number_is_off_by_a_sixteenth_of_itself_however_large_its_row(dtype) -> None:
    x = (torch.randn(33, 5, 50) * torch.logspace(-6, 6, 33)[:, None, None]).to(dtype)
    off = (meant(rows_of(x)) - x.double()).abs()
    largest = x.double().abs().amax(-1, keepdim=True)
    assert (
        off <= x.double().abs() / 16 * 1.001 + largest * 2.0**-18
    ).all()  # what is tiny beside its row: a fixed step
    assert 0.01 < (off / x.double().abs().clamp_min(1e-30)).mean() < 0.035


def test_an_outlier_costs_its_neighbours_nothing() -> None:
    x = torch.randn(200)
    spiked = torch.cat([x, torch.tensor([1000.0])])
    plain, beside = (meant(rows_of(v))[:200] - x.double() for v in (x, spiked))
    assert beside.square().mean() < 1.1 * plain.square().mean()


def test_a_token_is_rounded_as_it_is_alone() -> None:
    linear = Fp8Linear(nn.Linear(64, 48).double().requires_grad_(False))
    x = torch.randn(2, 9, 64, dtype=torch.float64)
    parts = torch.cat([linear(x[:, a:b]) for a, b in [(0, 1), (1, 6), (6, 9)]], dim=1)
    assert gap(parts, linear(x)) < 1e-12
    assert gap(linear(x * 8), linear(x)) > 1  # or nothing was multiplied


def test_zeros_stay_and_a_number_that_is_none_is_not_hidden() -> None:
    x = torch.zeros(4, 16)
    x[1, 2], x[2, 3] = float("nan"), float("inf")
    linear = Fp8Linear(nn.Linear(16, 8, bias=False).requires_grad_(False))
    out = linear(x)
    assert (out[[0, 3]] == 0).all() and out[1].isnan().all() and not out[2].isfinite().any()


@pytest.mark.parametrize("kind", [RMSNorm, nn.LayerNorm])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_row_of_a_norm_is_larger_than_its_scale_allows(kind, dtype) -> None:
    norm, linear = kind(50, eps=1e-6), Fp8Linear(nn.Linear(50, 8))
    norm.requires_grad_(False).weight.copy_(torch.randn(50) * 3)
    if kind is nn.LayerNorm:
        norm.bias.copy_(torch.randn(50))
    norm, x = norm.to(dtype), torch.randn(60, 50, dtype=dtype)
    x[0] = F.one_hot(norm.weight.abs().argmax(), 50) * 1e6  # as large as a norm's result can be
    rows = normed(norm, x, linear)
    assert isinstance(rows, Rows) and rows.scale.shape == () and rows.codes.double().abs().max() > 400
    off = (meant(rows) - norm(x).double()).abs()
    assert (off <= norm(x).double().abs() / 16 * 1.001 + rows.scale.double() * 2.0**-10 * 1.001).all()
    assert normed(norm, x, nn.Linear(50, 8)).shape == x.shape


@pytest.mark.parametrize("bias", [True, False])
def test_no_output_behind_a_norm_is_larger_than_its_scale_allows(bias) -> None:
    norm, linear = nn.LayerNorm(50), nn.Linear(50, 24, bias).requires_grad_(False)
    norm.requires_grad_(False).weight.copy_(torch.randn(50) * 3)
    norm.bias.copy_(torch.randn(50))
    small, x = Fp8Linear(linear), torch.randn(2, 40, 50)
    weight = small.weight.view(E4M3).float() * small.scale[:, None]
    x[0, 0] = weight[weight.norm(dim=1).argmax()] * norm.weight  # what its longest output likes best
    x[0, 0] -= x[0, 0].mean()
    rows = normed(norm, x, small)
    inner = small(rows)
    assert isinstance(rows, Rows) and inner.abs().max() <= small.beyond(norm) * 448 < 4 * inner.abs().max()
    soft, given = inner * torch.sigmoid(1.702 * inner), through_gelu(small, rows, norm)
    assert given.codes.dtype == E4M3 and given.scale.shape == ()
    assert ((meant(given) - soft.double()).abs() <= soft.double().abs() / 16 * 1.001 + given.scale * 2.0**-10).all()


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_multiplies_codes(bias) -> None:
    linear = nn.Linear(40, 24, bias).requires_grad_(False)
    x, small = torch.randn(2, 5, 40), Fp8Linear(linear)
    weight = small.weight.view(E4M3).double() * small.scale.double()[:, None]
    exact = F.linear(meant(rows_of(x)), weight, linear.bias if linear.bias is None else linear.bias.double())
    assert gap(small(x).double(), exact) < 1e-5 and torch.equal(small(x), small(rows_of(x)))
    off = (small(x) - linear(x)).std() / linear(x).std()
    assert 0.01 < off < 0.06
    assert small.weight.nbytes == 24 * 40 and small.to(torch.bfloat16).weight.dtype == torch.uint8


def test_what_watches_multiplies_and_what_answers_has_integers() -> None:
    tower = build_tower(TINY_VISION)
    net = to_fp8(Vamba(TINY, tower))
    kinds = {name: type(module) for name, module in net.named_modules()}
    for name in ("visual.blocks.0.attn.qkv", "visual.blocks.0.mlp.fc2", "model.layers.0.vision_mixer.mixer.in_proj"):
        assert kinds[name] is Fp8Linear
    for name in ("visual.merger.mlp.0", "model.layers.0.cross_attn.k_proj", "model.layers.0.cross_attn.v_proj"):
        assert kinds[name] is nn.Linear
    for name in ("model.layers.0.self_attn.k_proj", "model.layers.1.cross_attn.q_proj", "lm_head"):
        assert kinds[name] is Int8Linear
    assert rounding_told(net) == ", products in 8-bit floating point, weights in 8 bits"
    assert rounding_told(Vamba(TINY)) == "" and rounding_told(to_8_bits(Vamba(TINY), "int8")) == ", weights in 8 bits"
    alone = to_fp8(build_tower(TINY_VISION))
    assert {n: type(m) for n, m in alone.named_modules()} == {n: type(m) for n, m in tower.named_modules()}


@pytest.mark.parametrize("seed", range(3))
def test_how_a_video_is_cut_never_changes_what_was_seen(seed, tiny_model, clip, cut) -> None:
    """In fp64, where no rounding of a sum can tip a number from one code to the next. Saved and taken up in between."""
    model = tiny_model(torch.float64)
    plain = model.watch(VideoChunk(clip(24)), model.start())
    to_fp8(model.net)
    model = VambaModel(model.net, model.vision, model.tokenizer, block_slots=16)
    whole, pieces = model.watch(VideoChunk(clip(24)), model.start()), model.start()
    for part in cut(24, seed):
        pieces = model.unpack(model.pack(model.watch(VideoChunk(clip(24)[part]), pieces)))
    for name in ("k", "v"):
        one, other = (state.inner.memory.log.tensor(name) for state in (whole, pieces))
        assert gap(other, one) < 1e-9
        assert gap(one, plain.inner.memory.log.tensor(name)) > 1e-3
    for one, other in zip(whole.inner.states, pieces.inner.states):
        assert gap(other.ssm, one.ssm) < 1e-9 and gap(other.conv, one.conv) < 1e-9
    question = Question("what was it?"), Sampling(max_tokens=5)
    said = [[token.text for token in model.ask(question[0], state, question[1])] for state in (whole, pieces)]
    assert said[0] == said[1] and len(said[0]) == 5


def test_a_machine_that_cannot_multiply_so_is_told_what_to_do(tmp_path) -> None:
    write(tmp_path, VAMBA, tokenizer=True)
    with pytest.raises(UserError, match=r"^8-bit floating point needs an NVIDIA GPU .*H100.*leave fp8 out, or choose"):
        load(str(tmp_path), "cpu", fp8=True)
    assert "8 bits" not in load(str(tmp_path), "cpu").backend


def test_an_older_gpu_is_named(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA A100")
    for capability, told in [((8, 0), "NVIDIA A100 is older"), ((9, 0), None), ((12, 0), None)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, c=capability: c)
        monkeypatch.setattr(dispatch, "_own", lambda: dispatch)  # stands for the kernels
        dispatch._fp8.cache_clear()
        if told is None:
            dispatch.require_fp8(torch.device("cuda"))
        else:
            with pytest.raises(dispatch.Refused, match=told):
                dispatch.require_fp8(torch.device("cuda"))
    dispatch._fp8.cache_clear()


# The kernels

on_gpu = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU")


def near(codes, scale, exact) -> bool:
    """Whether this is what torch makes of the same numbers: a code may tip where the last digit of a sum differs.

    Triton's interpreter halves what is rounded up to a power of two, and does not round to even: that is passed over.
    """
    want = (exact.float() / scale).to(E4M3).float()
    known = (torch.frexp(want)[0].abs() != 0.5) if INTERPRETED else want == want
    codes, want = codes.float()[known], want[known]
    return (codes == want).float().mean() > 0.98 and gap(codes, want) < 0.08


@on_gpu
@pytest.mark.cuda
@pytest.mark.parametrize(("rows", "wide"), [(1, 16), (7, 40), (33, 1280), (5, 5120), (3, 7168)])
def test_rows_are_rounded_as_by_torch(rows, wide, kernels):  # noqa: F811
    x = (torch.randn(2, rows, wide, device=DEVICE) * 30).to(HALF)
    x[0, 0] = 0
    codes, scale = kernels.rounded_rows(x)
    want = rows_of(x.float())
    assert codes.shape == x.shape and scale.shape == (2, rows, 1) and gap(scale, want.scale) < 1e-6
    assert near(codes, scale, x) and (INTERPRETED or (codes.float() == want.codes.float()).float().mean() > 0.999)
    x[1, 0, 3] = float("nan")
    assert kernels.rounded_rows(x)[1][1, 0].isnan().all()


@on_gpu
@pytest.mark.cuda
def test_norms_are_rounded_as_by_torch(kernels):  # noqa: F811
    x, more = (torch.randn(2, 9, 72, device=DEVICE).to(HALF) for _ in range(2))
    weight, bias = torch.rand(72, device=DEVICE).to(HALF), torch.randn(72, device=DEVICE).to(HALF)
    scale = torch.tensor(0.02, device=DEVICE)
    assert near(kernels.rms_norm_rounded(x, weight, 1e-5, scale), scale, kernels.rms_norm(x, weight, 1e-5))
    total, codes = kernels.add_layer_norm_rounded(x, more, weight, bias, 1e-5, scale)
    want_total, want = kernels.add_layer_norm(x, more, weight, bias, 1e-5)
    assert torch.equal(total, want_total) and near(codes, scale, want)
    x[1, 2, 3] = float("nan")  # the interpreter knows no such code
    assert INTERPRETED or kernels.rms_norm_rounded(x, weight, 1e-5, scale)[1, 2].float().isnan().all()


@on_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("rows", "wide", "tall"), [(5, 48, 80), (131, 144, 272), (1196, 1280, 5120)])
def test_a_product_is_rounded_behind_gelu_as_by_torch(rows, wide, tall, bias, kernels):  # noqa: F811
    if DEVICE == "cuda" and isinstance(dispatch._fp8(torch.device("cuda")), str):
        pytest.skip("needs an H100 or newer")
    if INTERPRETED and rows > 200:
        pytest.skip("on a GPU only: Triton's interpreter takes long at this size")
    linear = Fp8Linear(nn.Linear(wide, tall, bias, device=DEVICE).requires_grad_(False))
    norm = nn.LayerNorm(wide, device=DEVICE).requires_grad_(False)
    x = normed(norm, torch.randn(1, rows, wide, device=DEVICE), linear)
    assert isinstance(x, Rows) and x.dtype == torch.float32  # for which there are no kernels of their own
    want = through_gelu(linear, x, norm)
    codes = kernels.fp8_gelu(x.codes, x.scale, linear.weight.view(E4M3), linear.scale, linear.bias, want.scale)
    assert codes.shape == (1, rows, tall) and near(codes, want.scale, meant(want))


@pytest.mark.cuda
@pytest.mark.skipif(isinstance(dispatch._fp8(torch.device("cuda")), str), reason="needs an H100 or newer")
@pytest.mark.parametrize("rows", [1, 2, 33, 299, 2392])
@pytest.mark.parametrize(("tall", "wide"), [(14704, 3584), (3840, 1280), (48, 64)])
def test_products_are_those_of_the_codes(rows, tall, wide) -> None:
    """Torch's product on an H100 adds up with 14 bits: far less than a code's 4."""
    linear = Fp8Linear(nn.Linear(wide, tall, tall == 3840, device="cuda", dtype=torch.bfloat16).requires_grad_(False))
    x = torch.randn(1, rows, wide, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        assert dispatch.fp8_kernels(x, x.dtype, linear.weight.shape)
        fast, slow = linear(x), linear(Rows(*rows_of(x)[:2], torch.float32))
        norm = RMSNorm(wide, 1e-5).cuda().bfloat16()
        assert isinstance(normed(norm, x, linear), Rows)
        assert 0 < (linear(normed(norm, x, linear)).float() - linear(norm(x)).float()).std() < 0.06 * fast.float().std()
    assert (fast.float() - slow).std() < 0.01 * slow.std()
