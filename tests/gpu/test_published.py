"""mamba-ssm and causal-conv1d as a second backend: how they are called, and how near they are to the own code.

On a CPU strict stand-ins of the same signatures take their place (tests/gpu/stand_ins.py). On a GPU with the packages
own, published and plain torch code run the mixers of Vamba, mmMamba and ML-Mamba, whole and cut. bf16 has 8 bits and
all three round differently; largest differences from the same weights in fp32, in standard deviations, may be:
"""

from __future__ import annotations

import sys
from importlib import import_module

import pytest
import torch

from pipeline.gpu import dispatch
from pipeline.gpu.dispatch import override
from pipeline.gpu.scan_inputs import ScanInputs
from pipeline.layers.bimamba2 import BidirectionalMamba2
from pipeline.layers.mamba1 import BidirectionalMamba1, selective_scan
from pipeline.layers.mamba2 import MixerConfig, MixerState, causal_conv
from pipeline.models.mmmamba import DistilledMixer, StackConfig
from tests.conftest import TINY_MIXER, gap
from tests.gpu.stand_ins import Reached, StandIns, put_in_place
from tests.layers.test_mamba2 import OPTIONS, random_mixer

OUTPUTS, STATES = 0.15, 0.2
IN_FP32 = 0.04  # published only: tf32 products, 0.002 (outputs) and 0.024 (states) measured on an H100


@pytest.fixture
def stand_ins(monkeypatch) -> StandIns:
    made = put_in_place(monkeypatch)
    with torch.no_grad():
        yield made


def carried(mixer, *batch: int) -> MixerState:
    return MixerState(*(torch.randn_like(part) for part in mixer.start(*batch)))


def both(mixer, u, state):
    """By torch, and by the published kernels; the state that was given is nobody's to change."""
    before = [part.clone() for part in state]
    with override("torch"):
        want, want_state = mixer(u, state)
    with override("published"):
        got, got_state = mixer(u, state)
    assert all(torch.equal(part, was) for part, was in zip(state, before))
    return (got, got_state), (want, want_state)


# --- how they are called ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [1, 2, 70])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_mixer_by_the_published_functions(options, T, stand_ins) -> None:
    mixer = random_mixer(torch.float32, **options)
    u = torch.randn(2, T, TINY_MIXER.d_model)
    (got, new), (want, want_new) = both(mixer, u, carried(mixer, 2))
    assert gap(got, want) < 1e-5 and gap(new.ssm, want_new.ssm) < 1e-5 and torch.equal(new.conv, want_new.conv)
    assert new.ssm.dtype == torch.float32 and new.conv.is_contiguous()
    assert new.conv.untyped_storage().nbytes() == new.conv.nbytes, "else the whole chunk stays alive with it"
    names = [name for name, _ in stand_ins.calls]
    one = T == 1 and "dt_limit" not in options
    assert names == ["convolution", "update" if one else "scan"] + ["norm"] * options.get("rmsnorm", True)


def test_a_mixer_adds_to_a_residual(stand_ins) -> None:
    mixer = random_mixer(torch.float32)
    u, residual = torch.randn(2, 1, 9, TINY_MIXER.d_model)
    with override("published"):
        plain, _ = mixer(u, mixer.start())
        added, _ = mixer(u, mixer.start(), residual)
    assert torch.equal(added, residual + plain)


@pytest.mark.parametrize("T", [1, 40])
def test_mmmambas_mixer(T, stand_ins) -> None:
    torch.manual_seed(0)
    stack = StackConfig(width=32, heads=4, kv_heads=2, hidden=24, eps=1e-5, rope_theta=1e4, kinds=("mamba2",))
    mixer = DistilledMixer(stack).requires_grad_(False)
    torch.nn.init.normal_(mixer.dt_bias), torch.nn.init.uniform_(mixer.A_log_bias, -4, -1)
    (got, new), (want, want_new) = both(mixer, torch.randn(1, T, 32), carried(mixer))
    assert gap(got, want) < 1e-5 and gap(new.ssm, want_new.ssm) < 1e-5 and torch.equal(new.conv, want_new.conv)
    assert [name for name, _ in stand_ins.calls] == ["convolution", "update" if T == 1 else "scan"]


def test_ml_mambas_connector(stand_ins) -> None:
    torch.manual_seed(0)
    mixer = BidirectionalMamba2(TINY_MIXER).requires_grad_(False)
    for name in ("D", "D_b", "dt_bias", "dt_bias_b"):
        torch.nn.init.normal_(getattr(mixer, name))
    u = torch.randn(3, 20, TINY_MIXER.d_model)
    with override("torch"):
        want = mixer(u)
    with override("published"):
        got = mixer(u)
    assert gap(got, want) < 1e-5
    assert [name for name, _ in stand_ins.calls] == ["convolution", "scan", "norm"] * 2


def test_gemambas_clips(stand_ins) -> None:
    torch.manual_seed(0)
    mixer = BidirectionalMamba1(32, d_state=4).requires_grad_(False)
    torch.nn.init.normal_(mixer.D), torch.nn.init.normal_(mixer.D_b)
    u = torch.randn(3, 20, 32)
    with override("torch"):
        want = mixer(u)
    with override("published"):
        got = mixer(u)
    assert gap(got, want) < 1e-5 and [name for name, _ in stand_ins.calls] == ["clips"]


def test_without_the_compiled_part_clips_are_scanned_by_torch(monkeypatch) -> None:
    made = put_in_place(monkeypatch, without=("mamba_ssm.ops.selective_scan_interface",))
    parts = [torch.randn(1, 5, 2, 8), torch.rand(1, 5, 2, 8), -torch.rand(2, 8, 4), *torch.randn(2, 1, 5, 2, 4)]
    with torch.no_grad(), override("published"):
        got = selective_scan(*parts, torch.ones(2, 8))
    assert torch.equal(got, selective_scan(*parts, torch.ones(2, 8))) and not made.calls


@pytest.mark.parametrize("why", ["no package", "channels"])
def test_without_causal_conv1d_the_own_convolution_is_taken(why, monkeypatch) -> None:
    """Without the package, and for channels that it refuses."""
    own = type(sys)("pipeline.gpu.convolution")
    own.causal_conv = causal_conv
    monkeypatch.setitem(sys.modules, "pipeline.gpu.convolution", own)
    made = put_in_place(monkeypatch, without=("causal_conv1d",) if why == "no package" else ())
    mixer = random_mixer(torch.float32, d_state=16 if why == "no package" else 5)
    with torch.no_grad():
        (got, _), (want, _) = both(mixer, torch.randn(1, 9, mixer.cfg.d_model), mixer.start())
    assert gap(got, want) < 1e-5 and [name for name, _ in made.calls] == ["scan", "norm"]
    with override("published"):
        name = import_module("pipeline.gpu.published").NAME
        assert name == "mamba-ssm's kernels" + (", own convolution" if why == "no package" else " and causal-conv1d")


def test_rows_that_lie_askew_are_copied_first(stand_ins) -> None:
    """causal-conv1d takes rows whose stride is a multiple of 8; a projection's need not be one."""
    published = import_module("pipeline.gpu.published")
    rows, tail = torch.randn(2, 9, 21)[..., 3:19], torch.randn(2, 3, 16)
    weight, bias = torch.randn(16, 1, 4), torch.randn(16)
    for got, want in zip(published.causal_conv(rows, tail, weight, bias), causal_conv(rows, tail, weight, bias)):
        assert gap(got, want) < 1e-6


# --- no call beyond 2^31 elements ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
def test_long_calls_are_cut_with_the_state_carried(batch, stand_ins, monkeypatch) -> None:
    mixer = random_mixer(torch.float32)
    u, state = torch.randn(batch, 60, TINY_MIXER.d_model), carried(mixer, batch)
    with override("torch"):
        want, want_new = mixer(u, state)
    row = len(mixer.in_proj.weight)
    monkeypatch.setattr(import_module("pipeline.gpu.published"), "ELEMENTS", 17 * row)
    stand_ins.limit = 17 * row
    with override("published"):
        got, new = mixer(u, state)
    assert gap(got, want) < 1e-5 and gap(new.ssm, want_new.ssm) < 1e-5 and torch.equal(new.conv, want_new.conv)
    for name in ("convolution", "scan", "norm"):
        tokens = [count for called, count in stand_ins.calls if called == name]
        assert sum(tokens) == 60 * batch and len(tokens) > 3 * batch
    stand_ins.limit = 3 * row  # the comparison above can fail
    with pytest.raises(Reached), override("published"):
        mixer(u, state)


def test_the_limit_is_that_of_32_bits_and_cuts_fall_on_blocks(stand_ins) -> None:
    """146,000 tokens of Vamba's projection, told by the shapes alone."""
    published = import_module("pipeline.gpu.published")
    assert published.ELEMENTS == 2**31 - 1
    lengths = []

    def call(inputs, state):
        lengths.append(inputs[0].shape[1])
        assert 1 + sum((size - 1) * stride for size, stride in zip(inputs[0].shape, inputs[0].stride())) < 2**31
        return inputs[0][..., :1], state

    rows = torch.empty(1, 153_088, 14_704, device="meta")[..., 7168:14_592]
    published._carried(call, [rows], torch.empty(1, 3, 7_424, device="meta"), 7_424)
    assert sum(lengths) == 153_088 and len(lengths) == 2 and lengths[0] % 256 == 0 and lengths[0] > 145_000


def test_many_clips_are_scanned_some_at_a_time(stand_ins, monkeypatch) -> None:
    parts = [torch.randn(5, 6, 2, 8), torch.rand(5, 6, 2, 8), -torch.rand(2, 8, 4), *torch.randn(2, 5, 6, 2, 4)]
    want = selective_scan(*parts, torch.ones(2, 8))
    monkeypatch.setattr(import_module("pipeline.gpu.published"), "ELEMENTS", 250)
    stand_ins.limit = 250
    with override("published"):
        assert gap(selective_scan(*parts, torch.ones(2, 8)), want) < 1e-5
    assert [name for name, _ in stand_ins.calls] == ["clips"] * 3


# --- how the package is entered --------------------------------------------------------------------------------------


def test_a_wheel_without_its_compiled_part_is_entered_by_its_path(tmp_path, monkeypatch) -> None:
    """Its `__init__` raises ModuleNotFoundError there; others may still ask whether the package is installed."""
    folder = tmp_path / "mamba_ssm"
    (folder / "ops" / "triton").mkdir(parents=True)
    (folder / "__init__.py").write_text("import selective_scan_cuda")
    (folder / "ops" / "selective_scan_interface.py").write_text("import selective_scan_cuda")
    for place in ("ops/__init__", "ops/triton/__init__", *("ops/triton/" + name for name in TRITON)):
        (folder / f"{place}.py").write_text("")
    put_in_place(monkeypatch, without=("causal_conv1d",))
    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    published = import_module("pipeline.gpu.published")
    assert not published.scans_clips() and published.NAME == "mamba-ssm's kernels, own convolution"
    assert sys.modules["mamba_ssm"].__spec__ is not None and list(sys.modules["mamba_ssm"].__path__) == [str(folder)]
    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        sys.modules.pop(name)


TRITON = ("ssd_combined", "selective_state_update", "layernorm_gated")


# --- on a GPU --------------------------------------------------------------------------------------------------------

VAMBA, ML_MAMBA = MixerConfig(d_model=3584), MixerConfig(d_model=2560)
MMMAMBA = StackConfig(2048, 32, 8, 8192, 1e-5, 1e4, ("mamba2",))
SHAPES = {
    "Vamba": lambda: random_mixer(torch.float32, **vars(VAMBA)),
    "ML-Mamba": lambda: random_mixer(torch.float32, **vars(ML_MAMBA)),
    "mmMamba": lambda: distilled(MMMAMBA),
}


def distilled(cfg: StackConfig) -> DistilledMixer:
    mixer = DistilledMixer(cfg).requires_grad_(False)
    torch.nn.init.normal_(mixer.dt_bias, std=0.7), torch.nn.init.uniform_(mixer.A_log_bias, -4, -1)
    return mixer


@pytest.fixture
def packages() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    found = dispatch._published()
    if isinstance(found, str):
        pytest.skip(found)
    if isinstance(dispatch._own(), str):
        pytest.skip(dispatch._own())
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def in_std(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.float() - want.float()).abs().max() / want.float().std())


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("cuts", [(), (256, 1024), (1, 299, 300, 1500)], ids=["whole", "at blocks", "anywhere"])
@pytest.mark.parametrize("name", SHAPES)
def test_own_published_and_torch_agree(name, cuts, dtype, packages) -> None:
    mixer, T = SHAPES[name]().cuda(), 2392
    mixer = mixer.to(dtype)
    u = torch.randn(1, T, mixer.o_proj.out_features if name == "mmMamba" else mixer.cfg.d_model, device="cuda")
    u, state = u.to(dtype), carried(mixer)
    wide = SHAPES[name]().cuda()
    wide.load_state_dict({key: part.float() for key, part in mixer.state_dict().items()})
    with override("torch"):
        want, want_new = wide(u.float(), MixerState(state.conv.float(), state.ssm))
    for kernels in ("own", "published", "torch"):
        outputs, after = [], state
        with override(kernels):
            for start, end in zip((0, *cuts), (*cuts, T)):
                out, after = mixer(u[:, start:end], after)
                outputs.append(out)
        limits = (OUTPUTS, STATES) if dtype == torch.bfloat16 else (IN_FP32, IN_FP32)
        apart = in_std(torch.cat(outputs, 1), want), in_std(after.ssm, want_new.ssm)
        print(f"{name} {kernels} {dtype} cuts {len(cuts)}: outputs {apart[0]:.4f} std, states {apart[1]:.4f}")
        assert apart[0] < limits[0] and apart[1] < limits[1], kernels
        assert after.ssm.dtype == torch.float32 and gap(after.conv.float(), want_new.conv) < 0.02


@pytest.mark.cuda
def test_a_cut_of_the_published_scan_at_a_block_changes_nothing(packages) -> None:
    published = import_module("pipeline.gpu.published")
    x, B, C = (torch.randn(1, 1300, *of, device="cuda").bfloat16() for of in ((112, 64), (1, 128), (1, 128)))
    dt, ssm = torch.randn(1, 1300, 112, device="cuda").bfloat16(), torch.randn(1, 112, 64, 128, device="cuda")
    bias, A_log = torch.randn(2, 112, device="cuda")
    whole, last = published.ssd(ScanInputs(x, dt, bias, A_log, B, C, ssm))
    parts = []
    for part in (slice(0, 512), slice(512, 768), slice(768, 1300)):
        y, ssm = published.ssd(ScanInputs(x[:, part], dt[:, part], bias, A_log, B[:, part], C[:, part], ssm))
        parts.append(y)
    assert torch.equal(torch.cat(parts, 1), whole) and torch.equal(ssm, last)


@pytest.mark.cuda
@pytest.mark.parametrize("kernels", ["own", "published"])
def test_one_call_beyond_32_bits(kernels, packages) -> None:
    """153,088 tokens of Vamba's projection: the published code, uncut, ends in an illegal memory access there."""
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of free GPU memory")
    mixer = random_mixer(torch.float32, **vars(VAMBA)).cuda().bfloat16()
    u = torch.randn(1, 153_088, 3584, device="cuda", dtype=torch.bfloat16)
    with override(kernels):
        whole, new = mixer(u, mixer.start())
        state, tail = mixer.start(), None
        for start in range(0, u.shape[1], 9_568):
            tail, state = mixer(u[:, start : start + 9_568], state)
    assert in_std(whole[:, -9_568:], tail) < OUTPUTS and in_std(new.ssm, state.ssm) < STATES


@pytest.mark.cuda
def test_gemambas_clips_on_a_gpu(packages) -> None:
    """By mamba-ssm's compiled scan, at VideoMamba's middle size, against the own one."""
    if not import_module("pipeline.gpu.published").scans_clips():
        pytest.skip("mamba-ssm was built without its compiled part")
    mixer = BidirectionalMamba1(576).requires_grad_(False).cuda()
    u = torch.randn(4, 1569, 576, device="cuda")
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for kernels in ("torch", "published"):
            with override(kernels):
                found[dtype, kernels] = mixer.to(dtype)(u.to(dtype))
    want = found[torch.float32, "torch"]
    assert in_std(found[torch.float32, "published"], want) < 1e-3
    assert in_std(found[torch.bfloat16, "published"], want) < OUTPUTS
