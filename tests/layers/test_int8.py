"""Weights in 8 bits: how far they are off, which layers they are in, and what it takes to load them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.layers.int8 import Int8Linear, restored, rounded, to_int8
from tests.conftest import gap
from tests.gpu.test_cuda import DEVICE, HALF, INTERPRETED, kernels  # noqa: F401


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_errs_by_half_a_step(dtype):
    weight = (torch.randn(33, 50) * torch.logspace(-4, 2, 33)[:, None]).to(dtype)
    codes, scale = rounded(weight)
    off = (restored(codes, scale, torch.float64) - weight.double()).abs()
    assert (off <= 0.76 * scale[:, None]).all()  # the last quarter: a scale is itself rounded, at the largest value
    assert (off.mean(1) < 0.3 * scale).all() and (codes.abs().amax(1) >= 126).all()


def test_a_row_of_zeros_stays_and_a_nan_is_not_hidden():
    weight = torch.zeros(3, 8)
    weight[1, 2] = float("nan")
    back = restored(*rounded(weight), torch.float32)
    assert (back[[0, 2]] == 0).all() and back[1].isnan().all()


def test_large_weights_are_rounded_in_parts_as_in_one(monkeypatch):
    weight = torch.randn(20, 8)
    whole = rounded(weight)
    monkeypatch.setattr("pipeline.layers.int8.AT_ONCE", 60)
    assert all(torch.equal(a, b) for a, b in zip(whole, rounded(weight)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_computes_with_the_rounded_weight(bias):
    linear = nn.Linear(40, 24, bias).requires_grad_(False)
    x, small = torch.randn(2, 5, 40), Int8Linear(linear)
    small.take(linear.weight)
    assert torch.allclose(small(x), F.linear(x, restored(small.weight, small.scale, x.dtype), linear.bias))
    off = (small(x) - linear(x)).std() / linear(x).std()
    assert 1e-4 < off < 0.02
    assert small.weight.nbytes == 24 * 40 and small.to(torch.bfloat16).weight.dtype == torch.int8


def test_the_tower_norms_and_what_is_shared_stay():
    net = nn.ModuleDict(
        {"visual": nn.Sequential(nn.Linear(8, 8)), "a": nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))}
    )
    net["embed"], net["head"] = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
    net["head"].weight = net["embed"].weight
    to_int8(net)
    kinds = {name: type(module) for name, module in net.named_modules()}
    assert kinds["a.0"] is Int8Linear
    assert kinds["visual.0"] is nn.Linear and kinds["head"] is nn.Linear and kinds["a.1"] is nn.LayerNorm


on_gpu = pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU")


@on_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("rows", [1, 2, 7, 32, 33, 64, 128, 300])
@pytest.mark.parametrize(("wide", "tall"), [(512, 40), (1000, 33), (24, 5)])
def test_the_kernels_are_nearer_to_the_codes_than_restored_weights(rows, wide, tall, kernels):  # noqa: F811
    if INTERPRETED and (rows, wide) not in [(1, 1000), (7, 24), (33, 512), (300, 24)]:
        pytest.skip("on a GPU only: Triton's interpreter takes minutes at this size")
    codes, scale = (t.to(DEVICE) for t in rounded(torch.randn(tall, wide)))
    x, bias = torch.randn(1, rows, wide, device=DEVICE), torch.randn(tall, device=DEVICE)
    exact = F.linear(x.double(), restored(codes, scale, torch.float64), bias.double())
    assert gap(kernels.int8_linear(x, codes, scale, bias).double(), exact) < 1e-4
    assert gap(kernels.int8_linear(x, codes, scale, None).double(), exact - bias) < 1e-4
    small, exact = x.to(HALF), F.linear(x.to(HALF).double(), restored(codes, scale, torch.float64))
    theirs = F.linear(small, restored(codes, scale, HALF)).double()
    ours = kernels.int8_linear(small.expand(2, -1, -1)[:1], codes, scale, None).double()
    assert (ours - exact).abs().mean() <= (theirs - exact).abs().mean() * 1.01 + 1e-9


@on_gpu
@pytest.mark.cuda
@pytest.mark.parametrize("wide", [32, 5000])
def test_weights_are_restored_as_by_torch(wide, kernels):  # noqa: F811
    from pipeline.gpu.int8 import restored as restored_here

    codes, scale = (t.to(DEVICE) for t in rounded(torch.randn(7, wide)))
    for dtype in (HALF, torch.float32):
        assert torch.equal(restored_here(codes, scale, dtype), restored(codes, scale, dtype))


@on_gpu
@pytest.mark.cuda
def test_rows_may_lie_apart(kernels):  # noqa: F811
    codes, scale = (t.to(DEVICE) for t in rounded(torch.randn(20, 32)))
    x = torch.randn(4, 96, device=DEVICE)[:, 32:64]
    assert gap(kernels.int8_linear(x, codes, scale, None), F.linear(x, restored(codes, scale, x.dtype))) < 1e-4
