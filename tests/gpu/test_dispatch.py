"""Who computes: kernels where they can run, plain torch elsewhere, and never a silent fallback on a GPU."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from pipeline.gpu import dispatch

KERNELS = ModuleType("pipeline.gpu.kernels")
FOUND_OUT = (dispatch._own, dispatch._published, dispatch._tell)
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    """Nothing found out, told or chosen by earlier tests or outside, and none of this stays."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_chosen", None)
    yield from _afresh()


def _afresh():
    for found in FOUND_OUT:
        found.cache_clear()
    yield
    for found in FOUND_OUT:
        found.cache_clear()


@pytest.fixture
def a_gpu(monkeypatch):
    """A machine with a GPU, as far as choosing goes: its tensors are made up, its kernels a bare module."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(dispatch, "gpu_size", lambda device: (264, True))
    monkeypatch.setitem(sys.modules, "pipeline.gpu.kernels", KERNELS)
    monkeypatch.setitem(sys.modules, "pipeline.gpu.published", None)
    return monkeypatch


@pytest.fixture
def with_packages(a_gpu):
    """The same, with mamba-ssm and causal-conv1d, of which only the names are real."""
    published = ModuleType("pipeline.gpu.published")
    published.NAME, published.scans_clips = "theirs", lambda: True
    a_gpu.setitem(sys.modules, "pipeline.gpu.published", published)
    return published


def tensor(shape=(1, 3, 32), dtype=torch.float32, gpu=True, index=0):
    device = SimpleNamespace(type="cuda", index=index)
    return SimpleNamespace(
        shape=shape, dtype=dtype, itemsize=dtype.itemsize, is_cuda=gpu, device=device, __str__=lambda: ""
    )


@torch.no_grad()
def test_kernels_run_on_the_current_gpu_only(a_gpu, caplog):
    assert dispatch.kernels_for(tensor()) is KERNELS and dispatch.backend(GPU) == "Triton kernels"
    assert dispatch.kernels_for(tensor(gpu=False)) is None
    assert dispatch.kernels_for(tensor(dtype=torch.float64)) is None
    with torch.enable_grad():
        assert dispatch.kernels_for(tensor()) is None
    assert not caplog.records, "none of these was to be expected"
    for _ in range(3):
        assert dispatch.kernels_for(tensor(index=1)) is None
    assert len(caplog.records) == 1 and "current GPU" in caplog.text


@torch.no_grad()
def test_without_a_gpu_nothing_is_said(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dispatch.kernels_for(tensor()) is None and dispatch.backend(GPU) == "plain torch" and not caplog.records


@torch.no_grad()
@pytest.mark.parametrize(
    ("what", "said"),
    [("no triton", "Triton cannot be imported"), ("an old card", "older than compute capability 8")],
)
def test_a_gpu_without_kernels_is_told_once(what, said, a_gpu, caplog):
    if what == "no triton":
        a_gpu.setitem(sys.modules, "pipeline.gpu.kernels", None)
    else:
        a_gpu.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert dispatch.kernels_for(tensor()) is None
    assert len(caplog.records) == 1 and said in caplog.text and dispatch.backend(GPU) == "plain torch"


@torch.no_grad()
def test_the_environment_forbids_them(a_gpu, caplog):
    a_gpu.setenv("VAMBA_KERNELS", "torch")
    assert dispatch.kernels_for(tensor()) is None and dispatch.backend(GPU) == "plain torch" and not caplog.records


@torch.no_grad()
def test_auto_is_own_then_published_then_torch(with_packages, a_gpu):
    fits = tensor(), torch.empty(1, 3, 8, device="meta"), torch.empty(1, 8, 64, 128, device="meta"), 1
    assert dispatch.chosen() == "own" and dispatch.mixer_kernels(*fits) is KERNELS
    assert dispatch.clip_kernels(tensor()) is with_packages, "the published one where it is"
    a_gpu.setattr(with_packages, "scans_clips", lambda: False)
    assert dispatch.clip_kernels(tensor()) is KERNELS
    assert dispatch.backend(GPU) == "Triton kernels" and dispatch.backend(CPU) == "plain torch"
    for found in FOUND_OUT:
        found.cache_clear()
    a_gpu.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert dispatch.chosen() == "published" and dispatch.mixer_kernels(*fits) is with_packages
    assert dispatch.kernels_for(tensor()) is None and dispatch.backend(GPU) == "theirs"
    for found in FOUND_OUT:
        found.cache_clear()
    a_gpu.setitem(sys.modules, "pipeline.gpu.published", None)
    assert dispatch.chosen() == "torch" and dispatch.mixer_kernels(*fits) is None


@torch.no_grad()
def test_what_is_chosen_computes(with_packages, a_gpu):
    fits = tensor(), torch.empty(1, 3, 8, device="meta"), torch.empty(1, 8, 64, 128, device="meta"), 1
    ran = {"own": (KERNELS,) * 3, "published": (KERNELS, with_packages, with_packages), "torch": (None,) * 3}
    for choice, kernels in ran.items():
        for chosen_by in ("call", "variable"):
            a_gpu.setattr(dispatch, "_chosen", None)
            a_gpu.setenv("VAMBA_KERNELS", choice if chosen_by == "variable" else "own")
            dispatch.choose(choice if chosen_by == "call" else None)
            assert dispatch.chosen() == choice
            assert (
                dispatch.kernels_for(tensor()),
                dispatch.mixer_kernels(*fits),
                dispatch.clip_kernels(tensor()),
            ) == kernels
            assert dispatch.has_kernels(GPU) == (choice != "torch") and not dispatch.has_kernels(CPU)
    dispatch.choose("published")
    dispatch.choose()  # a second model, of which nothing is said
    assert dispatch.chosen() == "published"


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ("own", r"own kernels cannot run here \(Triton cannot be imported.*\), so nothing was done; choose"),
        (
            "published",
            r"published kernels cannot run here \(mamba-ssm cannot .*\), so nothing was done; choose auto, or see",
        ),
        ("fast", "no kernels called 'fast', so nothing was done; choose auto, own, published or torch"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(choice, why, a_gpu):
    a_gpu.setitem(sys.modules, "pipeline.gpu.kernels", None)
    dispatch.choose("torch")
    with pytest.raises(dispatch.Refused, match=why):
        dispatch.choose(choice)
    assert dispatch.chosen() == "torch"
    a_gpu.setattr(dispatch, "_chosen", None)
    a_gpu.setenv("VAMBA_KERNELS", choice)
    with pytest.raises(dispatch.Refused, match=why):
        dispatch.choose()


def test_without_a_gpu_only_torch_can_be_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for choice in ("own", "published"):
        with pytest.raises(dispatch.Refused, match="there is no CUDA GPU"):
            dispatch.choose(choice)
    dispatch.choose("torch"), dispatch.choose("auto")
    assert dispatch.chosen() == "torch"


@torch.no_grad()
@pytest.mark.parametrize(
    ("heads", "conv", "groups", "fits"),
    [
        ((8, 64, 128), 4, 1, True),
        ((8, 256, 128), 4, 1, False),
        ((8, 64, 512), 4, 1, False),
        ((8, 64, 128), 5, 1, False),
        ((512, 64, 128), 4, 1, False),
        ((512, 64, 128), 4, 2, True),
    ],
)
def test_mixers_too_large_for_a_tile_run_by_torch(heads, conv, groups, fits, a_gpu, caplog):
    states = torch.empty(1, conv - 1, 8, device="meta"), torch.empty(1, *heads, device="meta")
    for _ in range(2):
        assert (dispatch.mixer_kernels(tensor(), *states, groups) is KERNELS) == fits
    assert len(caplog.records) == (0 if fits else 1)


@torch.no_grad()
@pytest.mark.parametrize(
    ("width", "slots", "block_slots", "fits", "told"),
    [(64, 10, 64, True, 0), (64, 10, 48, False, 1), (48, 10, 64, False, 1), (64, 0, 64, False, 0)],
)
def test_memories_that_no_tile_fits_are_read_by_torch(width, slots, block_slots, fits, told, a_gpu, caplog):
    """An empty one needs no kernel: nothing is said of it."""
    for _ in range(2):
        chosen = dispatch.attention_kernels(tensor((4, 1, width)), slots, block_slots)
        assert (chosen is KERNELS) == fits
    assert len(caplog.records) == told


@torch.no_grad()
def test_a_test_may_choose_and_its_choice_ends(a_gpu):
    with dispatch.override("own"):
        assert dispatch.kernels_for(torch.zeros(1)) is KERNELS and dispatch.backend(CPU) == "Triton kernels"
        with dispatch.override("torch"):
            assert dispatch.kernels_for(tensor()) is None and dispatch.backend(GPU) == "plain torch"
        assert dispatch.kernels_for(torch.zeros(1)) is KERNELS
    assert dispatch.kernels_for(torch.zeros(1)) is None
    with pytest.raises(ZeroDivisionError), dispatch.override("own"):
        raise ZeroDivisionError
    assert dispatch.kernels_for(torch.zeros(1)) is None
