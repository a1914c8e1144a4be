"""The Triton kernels against the plain torch code they replace, on a GPU.

Without one they can still be checked, slowly, by Triton's interpreter: TRITON_INTERPRET=1 pytest tests/gpu.

fp32 must agree within 1e-4 of the largest value. bf16 numbers have 8 bits, and both paths round after every product, so
they are held against the same weights in fp32: within 2 % of the largest value, and no further than the torch path is.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.gpu.dispatch import attention_kernels, backend, kernels_for, override
from pipeline.layers.mamba2 import Mamba2Mixer, MixerState
from pipeline.layers.norms import RMSNorm
from pipeline.layers.reading import TextDecoder
from pipeline.layers.vamba import Layer
from pipeline.layers.vamba import rotate as rotate_by_torch
from pipeline.memory.attention import plain_attend
from pipeline.memory.memory import Memory
from pipeline.models.vamba_model import VambaModel
from pipeline.stream import Frame, VideoChunk
from pipeline.towers import qwen as vision
from pipeline.towers.qwen import _rotate as turn_by_torch
from tests.conftest import TINY, TINY_MIXER, TINY_VISION, gap
from tests.layers.test_mamba2 import OPTIONS, random_mixer
from tests.places import golden_folders

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = torch.float16 if INTERPRETED else torch.bfloat16  # the interpreter's matrix product cannot read bf16
if not INTERPRETED:
    pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
GOLDEN = golden_folders("vamba-*")
gpu_only = pytest.mark.skipif(INTERPRETED, reason="the interpreter sees no CUDA tensors")


@pytest.fixture
def kernels():
    pytest.importorskip("triton")
    from pipeline.gpu import kernels

    with torch.no_grad():
        yield kernels


def carried(mixer: Mamba2Mixer, batch: int) -> MixerState:
    return MixerState(*(torch.randn_like(t) for t in mixer.start(batch)))


def on_gpu(mixer: Mamba2Mixer, dtype: torch.dtype) -> tuple[Mamba2Mixer, Mamba2Mixer]:
    """The mixer in `dtype` and the same rounded weights in fp32, on the device under test."""
    small = mixer.to(dtype)
    wide = Mamba2Mixer(mixer.cfg).float()
    wide.load_state_dict({k: v.float() for k, v in small.state_dict().items()})
    return small.to(DEVICE), wide.to(DEVICE).requires_grad_(False)


def plain(mixer: Mamba2Mixer, u: torch.Tensor, state: MixerState) -> tuple[torch.Tensor, MixerState]:
    """The torch path, which every mixer takes where gradients are wanted."""
    with torch.enable_grad():
        assert kernels_for(u) is None
        return mixer(u, state)


@gpu_only
def test_the_kernels_are_chosen_and_reported(kernels):
    u = torch.zeros(1, 1, 8, device="cuda")
    assert kernels_for(u) is kernels
    assert kernels_for(u.double()) is None
    assert kernels_for(u.cpu()) is None
    assert "Triton" in backend(u.device)


@gpu_only
def test_the_mixer_goes_through_them(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "mixer", lambda *_, **__: ("came by", None, None, None))
    mixer = random_mixer(torch.float32).cuda()
    monkeypatch.setattr(mixer.out_proj, "forward", lambda y: y)
    assert mixer(torch.randn(1, 3, 32, device="cuda"), mixer.start())[0] == "came by"


@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 300, 777])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_mixer_in_fp32(options, T, kernels):
    if INTERPRETED and T not in (2, 65):
        pytest.skip("on a GPU only: Triton's interpreter takes minutes at this size")
    mixer = random_mixer(torch.float32, **options).to(DEVICE)
    u, state = torch.randn(2, T, TINY_MIXER.d_model, device=DEVICE), carried(mixer, 2)
    out, new = mixer.by_kernels(kernels, u, state)
    want, want_new = plain(mixer, u, state)
    assert gap(out, want) < 1e-4
    assert gap(new.ssm, want_new.ssm) < 1e-4
    assert gap(new.conv, want_new.conv) < 1e-4
    assert new.conv.is_contiguous()
    assert new.conv.untyped_storage().nbytes() == new.conv.nbytes


@pytest.mark.parametrize("options", ["plain", "two groups", "bias"])
def test_mixer_adds_to_a_residual(options, kernels):
    """Plain: where the norm's factor is multiplied. The others: by torch, afterwards."""
    mixer = random_mixer(torch.float32, **OPTIONS[options]).to(DEVICE)
    u, residual = torch.randn(2, 2, 70, TINY_MIXER.d_model, device=DEVICE)
    got, _ = mixer.by_kernels(kernels, u, carried(mixer, 2), residual)
    want, _ = plain(mixer, u, carried(mixer, 2))
    assert gap(got, want) > 0.1  # another state: the comparison below can fail
    state = carried(mixer, 2)
    got, want = mixer.by_kernels(kernels, u, state, residual)[0], plain(mixer, u, state)[0] + residual
    assert gap(got, want) < 1e-4
    with torch.enable_grad():
        assert torch.equal(mixer(u, state, residual)[0], want)


@pytest.mark.parametrize("T", [1, 300, 1300])
def test_mixer_in_bf16(T, kernels):
    T = min(T, 70) if INTERPRETED else T
    shapes = (
        {"d_model": 64, "d_state": 32, "headdim": 16}
        if INTERPRETED
        else {"d_model": 512, "d_state": 128, "headdim": 64}
    )
    small, wide = on_gpu(random_mixer(torch.float32, **shapes), HALF)
    u, state = torch.randn(1, T, small.cfg.d_model, device=DEVICE).to(HALF), carried(small, 1)
    truth, truth_new = plain(wide, u.float(), MixerState(state.conv.float(), state.ssm))
    by_torch, torch_new = plain(small, u, state)
    out, new = small.by_kernels(kernels, u, state)
    assert new.ssm.dtype == torch.float32
    for got, torch_got, want in ((out, by_torch, truth), (new.ssm, torch_new.ssm, truth_new.ssm)):
        assert gap(got.float(), want) < 0.02
        assert (got.float() - want).norm() < 1.5 * (torch_got.float() - want).norm() + 1e-4 * want.norm()


@pytest.mark.parametrize("cuts", [(256, 512), (299, 598), (1, 2, 333), (100,)], ids=str)
def test_cutting_tokens_in_bf16(cuts, kernels):
    """Aligned with the SSD blocks and not. The state is carried in fp32, so cuts cost rounding and nothing more."""
    if INTERPRETED and len(cuts) > 1:
        pytest.skip("on a GPU only: Triton's interpreter takes minutes at this size")
    T = 130 if INTERPRETED else 700
    mixer = random_mixer(torch.float32).to(DEVICE, HALF)
    u, state = torch.randn(1, T, TINY_MIXER.d_model, device=DEVICE).to(HALF), mixer.start()
    whole, whole_state = mixer.by_kernels(kernels, u, state)
    outputs, ends = [], [*cuts, T]
    for a, b in zip([0, *cuts], ends):
        out, state = mixer.by_kernels(kernels, u[:, a:b], state)
        outputs.append(out)
    assert gap(torch.cat(outputs, 1).float(), whole.float()) < 0.02
    assert gap(state.ssm, whole_state.ssm) < 0.02
    assert torch.equal(state.conv, whole_state.conv)
    forgetful, _ = mixer.by_kernels(kernels, u[:, cuts[-1] :], mixer.start())
    assert gap(forgetful.float(), whole[:, cuts[-1] :].float()) > 0.05


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_rms_norm(dtype, kernels):
    norm = RMSNorm(96, 1e-6).to(DEVICE, dtype)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 7, 2 * 96, device=DEVICE).to(dtype)[..., 96:]  # a slice, as after a split
    with torch.enable_grad():
        want = norm(x).detach()
    assert gap(kernels.rms_norm(x, norm.weight, 1e-6).float(), want.float()) < (
        1e-5 if dtype == torch.float32 else 0.01
    )
    narrow = kernels.rms_norm(x.float(), norm.weight, 1e-6, dtype)  # of a stream that is wider
    assert narrow.dtype == dtype and gap(narrow.float(), want.float()) < (1e-5 if dtype == torch.float32 else 0.01)
    wide = norm.float()  # what reads a narrower column's output, as the embedded model's locator does
    with torch.enable_grad():
        want = wide(x).detach()
    got = kernels.rms_norm(x, wide.weight, 1e-6)
    assert got.dtype == want.dtype == torch.float32 and gap(got, want) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("adds", [True, False])
def test_scaling_rows_by_their_norms(adds, dtype, kernels):
    out, residual = torch.randn(2, 2, 5, 96, device=DEVICE).to(dtype)
    squares = torch.rand(2, 5, 7, device=DEVICE)
    want = out.float() * (squares.sum(-1, keepdim=True) / 50 + 1e-5).rsqrt() + (residual.float() if adds else 0)
    got = kernels.scaled_rows(out, squares, 50, 1e-5, residual if adds else None)
    assert got.dtype == dtype and gap(got.float(), want) < (1e-6 if dtype == torch.float32 else 0.005)
    if adds:
        wide = kernels.scaled_rows(out, squares, 50, 1e-5, residual.float())
        assert wide.dtype == torch.float32 and gap(wide, want) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_adding_with_a_layer_norm(dtype, kernels):
    norm = torch.nn.LayerNorm(80, 1e-6).to(DEVICE, dtype)
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x, more = torch.randn(2, 2, 5, 80, device=DEVICE).to(dtype) + 3
    total, normed = kernels.add_layer_norm(x, more, norm.weight, norm.bias, 1e-6)
    assert torch.equal(total, x + more)
    want = F.layer_norm((x + more).float(), (80,), norm.weight.float(), norm.bias.float(), 1e-6)
    assert normed.dtype == dtype and gap(normed.float(), want) < (1e-5 if dtype == torch.float32 else 0.005)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_the_tower_goes_through_them(dtype, kernels, monkeypatch):
    """With its kernels and without, from the same patches."""
    tower = vision.build_tower({**TINY_VISION, "depth": 2}).to(DEVICE, torch.float32)
    for p in tower.parameters():
        torch.nn.init.normal_(p, 0.1, 0.2)
    patches, grid = torch.randn(2 * 24, 3 * 2 * 14 * 14, device=DEVICE), torch.tensor([[2, 4, 6]])
    with monkeypatch.context() as patched:
        patched.setattr(vision, "kernels_for", lambda _: None)
        want = vision.encode_pairs(tower, patches, grid)
        by_torch = vision.encode_pairs(tower.to(dtype), patches, grid)
    with override("own"):
        got = vision.encode_pairs(tower, patches, grid)
    assert got.dtype == dtype and got.shape == want.shape
    assert (got - want).norm() < 1.5 * (by_torch - want).norm() + 1e-5 * want.norm()


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("heads", [1, 28])
def test_rotary_positions(heads, dtype, kernels):
    """The text column's tables are as wide as a head, in the model's type; from a projection's transposed output."""
    x = torch.randn(2, 5, 3 * heads, 16, device=DEVICE).to(dtype)[:, :, heads : 2 * heads].transpose(1, 2)
    angles = 3 * torch.randn(5, 8, device=DEVICE)
    rope = tuple(torch.cat([t, t], -1).to(dtype) for t in (angles.cos(), angles.sin()))
    got = kernels.rotate(x, *rope)
    want = rotate_by_torch(x.float(), tuple(t.float() for t in rope))
    assert got.dtype == dtype and gap(got.float(), want) < (1e-6 if dtype == torch.float32 else 0.005)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_rotary_positions_of_the_tower(dtype, kernels):
    """Tables of half a head, in fp32; a head of 80, which is no power of two."""
    x = torch.randn(2, 6, 7, 80, device=DEVICE).to(dtype)
    angles = 3 * torch.randn(7, 40, device=DEVICE)
    got, want = kernels.rotate(x, angles.cos(), angles.sin()), turn_by_torch(x, angles.cos(), angles.sin())
    assert gap(got.float(), want.float()) < (1e-6 if dtype == torch.float32 else 0.005)


@pytest.mark.parametrize("alpha", [-1.0, 0.3, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_blending_both_attentions(dtype, alpha, kernels):
    layer = Layer(TINY, crosses=True, mixes=False).to(DEVICE)
    layer.alpha.data.fill_(alpha)
    h, own, cross = (torch.randn(2, 700, 3, device=DEVICE).to(dtype) for _ in range(3))
    with torch.enable_grad():
        want = layer.blend(h.float(), own.float(), cross.float())
    got = kernels.blend(h, own, cross, layer.alpha)
    assert got.dtype == dtype and gap(got.float(), want) < (1e-6 if dtype == torch.float32 else 0.005)
    layer.alpha.data.fill_(torch.nan)
    assert kernels.blend(h, own, cross, layer.alpha).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_quick_gelu(dtype, kernels):
    x = torch.cat([8 * torch.randn(2000), torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])]).to(DEVICE, dtype)
    want = x.float() * torch.sigmoid(1.702 * x.float())
    got = kernels.quick_gelu(x)
    assert got.dtype == dtype and gap(got.float()[:-2], want[:-2]) < (1e-6 if dtype == torch.float32 else 0.002)
    assert torch.equal(got[-2:], x[-2:])


@pytest.mark.parametrize("dropped", [0, 5, 64, 200])
@pytest.mark.parametrize("queries", [1, 11, 50])
@pytest.mark.parametrize("eight_bit", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_attention_over_the_memory(dropped, queries, eight_bit, dtype, kernels):
    """Blocks of 64 slots, the last one half full, the first one half forgotten; 6 query heads over 2 key heads.

    From 32 rows of one key head on, that is 11 queries, the weights come from a second look at the keys.
    """
    if INTERPRETED and (dropped in (0, 64) or queries > 11):
        pytest.skip("on a GPU only: Triton's interpreter takes minutes at this size")
    memory = Memory.empty(2, 2, 32, dtype, DEVICE, block_slots=64, eight_bit=eight_bit)
    for _ in range(4):  # freed memory is full of NaN: what nobody wrote must not be read
        torch.full((2, 2, 64, 32), torch.nan, dtype=dtype, device=DEVICE)
    memory, write = memory.append(torch.arange(421.0))
    k, v = torch.randn(2, 2, 2, 421, 32, device=DEVICE).to(dtype)
    for layer in range(2):
        write(layer, k[layer], v[layer])
    memory = Memory(memory.log.drop_oldest(dropped))
    q = 2 * torch.randn(6, queries, 32, device=DEVICE).to(dtype)
    for layer in range(2):
        with override("own"):
            assert attention_kernels(q, len(memory), memory.log.block_slots)
        out, weights = kernels.attend(memory.log.slots, layer, q, want_weights=True)
        want, want_weights = plain_attend(memory.log, layer, q.float(), True)
        assert gap(out.float(), want) < (1e-4 if dtype == torch.float32 else 0.02)
        assert gap(weights, want_weights) < (1e-4 if dtype == torch.float32 else 0.02)
        assert abs(float(weights.sum()) - 1) < 1e-3
        assert torch.equal(kernels.attend(memory.log.slots, layer, q)[0], out)


@gpu_only
@pytest.mark.parametrize("cuts", [(64, 128), (33, 77)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vamba_on_the_gpu(cuts, dtype, tiny_vamba, kernels):
    """Both columns: kernels against torch on the CPU, and cut against whole. Forks and snapshots as on the CPU.

    These weights are large on purpose, and bf16's roundings grow on them from layer to layer: torch's own bf16 path
    misses the fp32 logits by 3 to 29 % (12 seeds on a CPU), so a fixed limit means nothing. What the kernels owe is to
    be as near to fp32 as torch is, on average over some inputs.
    """
    wide = replace(TINY_MIXER, d_model=128, d_state=16, headdim=32)
    shapes = {"d_model": 128, "n_heads": 4, "n_kv_heads": 2, "d_ff": 256, "mixer": wide}
    net, reference = tiny_vamba(dtype, **shapes).cuda(), tiny_vamba(torch.float32, **shapes)
    plain_net = tiny_vamba(dtype, **shapes)  # the same seed, so the same weights, on the CPU
    reference.load_state_dict({k: p.float() for k, p in net.state_dict().items()})

    def seen(model, tokens, slices):
        memory = Memory.empty(len(TINY.cross_layers), 2, 32, tokens.dtype, tokens.device, block_slots=64)
        states = model.start()
        for part in slices:
            memory, write = memory.append(torch.arange(150.0)[part])
            states = model.watch(tokens[:, part], states, lambda j, k, v, write=write: write(j, k[0], v[0]))
        return TextDecoder(model, memory).feed(range(1, 9)).float().cpu()

    ends = [*cuts, 150]
    errors, by_torch, apart = [], [], []
    for v in torch.randn(6, 1, 150, 128).to(dtype):
        whole = seen(net, v.cuda(), [slice(0, 150)])
        truth = seen(reference, v.float(), [slice(0, 150)])
        pieces = seen(net, v.cuda(), [slice(a, b) for a, b in zip([0, *cuts], ends)])
        errors.append(float((whole - truth).norm() / truth.norm()))
        apart.append(float((pieces - whole).norm() / truth.norm()))
        by_torch.append(float((seen(plain_net, v, [slice(0, 150)]) - truth).norm() / truth.norm()))
    limit = 1e-4 if dtype == torch.float32 else 1.5 * sum(by_torch) / 6
    assert sum(errors) / 6 < limit
    assert sum(apart) / 6 < limit


@gpu_only
@pytest.mark.parametrize("eight_bit", [False, True])
def test_watching_never_waits_for_the_gpu(eight_bit, tiny_vamba, kernels):
    """Else the GPU idles while Python prepares the next chunk: 7 of 90 ms once. Blocks end inside chunks here."""
    wide = replace(TINY_MIXER, d_model=128, d_state=16, headdim=32)
    shapes = {"d_model": 128, "n_heads": 4, "n_kv_heads": 2, "d_ff": 256, "mixer": wide}
    tower = vision.build_tower({**TINY_VISION, "hidden_size": 128}).cuda()
    net = tiny_vamba(torch.float32, cross_rope=True, mrope_section=(4, 6, 6), **shapes).cuda()
    model = VambaModel(net, vision.QwenVision(tower), None, eight_bit=eight_bit, block_slots=64)
    frames = [Frame(np.full((56, 84, 3), i, np.uint8), float(i)) for i in range(40)]
    chunks = [VideoChunk(tuple(frames[i : i + 20])) for i in (0, 20)]
    first = model.watch(chunks[0], model.start())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchron"):
            torch.zeros(1, device="cuda").item()
        second = model.watch(chunks[1], first)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert second.inner.memory.times.tolist() == [float(i // 6 * 2) for i in range(120)]


@gpu_only
@pytest.mark.skipif(not GOLDEN, reason="the golden folders are not here")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda p: p.name)
def test_golden_on_the_gpu(folder, dtype, monkeypatch, capsys):
    from pipeline.checks import verify
    from pipeline.models.vamba_golden import VambaGolden

    monkeypatch.setattr(VambaGolden, "block_slots", 64)  # whole tiles, so that the attention kernel takes part
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser)
    arguments = parser.parse_args(["--golden", str(folder), "--dtype", dtype, "--device", "cuda", "--chunks", "3"])
    assert verify.run(arguments) == 0, capsys.readouterr().out


@pytest.mark.parametrize("where", ["x", "dt"])
def test_one_nan_is_seen_through_the_kernels(where, kernels, monkeypatch):
    """The engine throws such a state away, if it is told: minimum and maximum of a GPU swallow a NaN.

    Those of Triton's interpreter do not, which once hid such a mistake; so here they are made to.
    """
    if INTERPRETED:
        from triton.runtime.interpreter import InterpreterBuilder

        for name, swallowing in (("create_minnumf", np.fmin), ("create_maxnumf", np.fmax)):
            monkeypatch.setattr(InterpreterBuilder, name, lambda self, a, b, f=swallowing: self.binary_op(a, b, f))
    mixer = random_mixer(torch.float32, dt_limit=(0.01, 1.0)).to(DEVICE)
    u, row = torch.randn(1, 80, 32, device=DEVICE), {"x": TINY_MIXER.d_inner, "dt": -1}[where]
    mixer.in_proj.bias = torch.nn.Parameter(torch.zeros(len(mixer.in_proj.weight), device=DEVICE), requires_grad=False)
    assert torch.isfinite(mixer.by_kernels(kernels, u, mixer.start())[1].ssm).all()
    mixer.in_proj.bias[row] = torch.nan
    assert not torch.isfinite(mixer.by_kernels(kernels, u, mixer.start())[1].ssm).all()


def test_tiny_steps_keep_their_digits(kernels):
    """softplus(-9) is 1.2e-4: log(1 + e) in fp32 would know four digits of it."""
    mixer = random_mixer(torch.float32).to(DEVICE)
    mixer.dt_bias.fill_(-9.0)
    u = torch.randn(1, 65, 32, device=DEVICE)
    assert gap(mixer.by_kernels(kernels, u, mixer.start())[1].ssm, plain(mixer, u, mixer.start())[1].ssm) < 2e-5


def test_silu_of_the_convolution_at_extremes(kernels):
    """exp(-x) overflows for x < -88; the quotient must then be 0 and not NaN."""
    x = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 1e4], device=DEVICE).view(1, 6, 1).repeat(1, 1, 16)
    weight = torch.ones(16, 1, 1, device=DEVICE)
    out, _ = kernels.causal_conv(x, x[:, :0], weight, None)
    assert gap(out, F.silu(x)) < 1e-6
