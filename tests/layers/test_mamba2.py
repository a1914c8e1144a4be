"""The mixer against a recurrence written word for word, against transformers' Mamba-2, and its gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pipeline.layers import mamba2
from pipeline.layers.mamba2 import Mamba2Mixer, MixerState, causal_conv, ssd
from tests.conftest import TINY_MIXER, gap

OPTIONS = {
    "plain": {},
    "two groups": {"ngroups": 2},
    "norm before gate": {"norm_before_gate": True},
    "two groups, norm before gate": {"ngroups": 2, "norm_before_gate": True},
    "no norm": {"rmsnorm": False},
    "no D": {"has_D": False},
    "D per channel": {"D_has_hdim": True},
    "conv of 2": {"d_conv": 2},
    "dt limits": {"dt_limit": (0.01, 0.05)},
    "bias": {"bias": True},
    "no conv bias": {"conv_bias": False},
}


def random_mixer(dtype: torch.dtype, **changes) -> Mamba2Mixer:
    """A mixer with no parameter left at a value that hides mistakes (ones, zeros)."""
    mixer = Mamba2Mixer(replace(TINY_MIXER, **changes)).to(dtype)
    for name, p in mixer.named_parameters():
        if name == "A_log":  # decays slow enough that what was lost is missed many tokens later
            torch.nn.init.uniform_(p, -4, -1)
        else:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5 if name.endswith("proj.weight") else 0.7)
    return mixer.requires_grad_(False)


def random_scan(T: int, dtype=torch.float64, heads=4, P=3, G=2, N=5, B=2, decay=1.0):
    x, Bm, Cm = (torch.randn(B, T, *shape, dtype=dtype) for shape in ((heads, P), (G, N), (G, N)))
    dt = torch.rand(B, T, heads, dtype=dtype) * 0.5
    A = -torch.rand(heads, dtype=dtype) * 4 * decay - 0.01
    return x, dt, A, Bm, Cm, torch.randn(B, heads, P, N, dtype=dtype)


def naive_ssd(x, dt, A, B, C, h):
    """Token by token, head by head: h <- exp(dt A) h + dt x B^T; y = h C (arXiv 2405.21060, eq. 1 and 2)."""
    heads, G = x.shape[2], B.shape[2]
    outputs = []
    for t in range(x.shape[1]):
        y = []
        new_h = []
        for i in range(heads):
            g = i // (heads // G)
            hi = torch.exp(dt[:, t, i] * A[i])[:, None, None] * h[:, i]
            hi = hi + dt[:, t, i, None, None] * x[:, t, i, :, None] * B[:, t, g, None, :]
            new_h.append(hi)
            y.append((hi * C[:, t, g, None, :]).sum(-1))
        h = torch.stack(new_h, 1)
        outputs.append(torch.stack(y, 1))
    return torch.stack(outputs, 1), h


def naive_mixer(m: Mamba2Mixer, u: torch.Tensor, state: MixerState) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole mixer again, written another way: a grouped convolution, the slow recurrence, an explicit norm."""
    c = m.cfg
    z, xBC, dt = F.linear(u, m.in_proj.weight, m.in_proj.bias).split([c.d_inner, c.conv_dim, c.nheads], -1)
    rows = torch.cat([state.conv, xBC], 1).transpose(1, 2)
    xBC = F.silu(F.conv1d(rows, m.conv1d.weight, m.conv1d.bias, groups=c.conv_dim)).transpose(1, 2)
    x = xBC[..., : c.d_inner].unflatten(-1, (c.nheads, c.headdim))
    B, C = (part.unflatten(-1, (c.ngroups, c.d_state)) for part in xBC[..., c.d_inner :].chunk(2, -1))
    dt = torch.log1p(torch.exp(dt + m.dt_bias)).clamp(c.dt_limit[0], c.dt_limit[1])
    y, h = naive_ssd(x, dt, -torch.exp(m.A_log), B, C, state.ssm)
    if c.has_D:
        y = y + x * (m.D.view(c.nheads, c.headdim) if c.D_has_hdim else m.D.view(-1, 1))
    y = y.flatten(-2)
    gate = z / (1 + torch.exp(-z))
    if not c.rmsnorm:
        return F.linear(y * gate, m.out_proj.weight, m.out_proj.bias), h
    y = (y if c.norm_before_gate else y * gate).unflatten(-1, (c.ngroups, -1))
    y = (y / torch.sqrt((y * y).mean(-1, keepdim=True) + c.norm_eps)).flatten(-2) * m.norm.weight
    y = y * gate if c.norm_before_gate else y
    return F.linear(y, m.out_proj.weight, m.out_proj.bias), h


@pytest.mark.parametrize("T", [1, 2, 7, 8, 9, 31])
@pytest.mark.parametrize("block", [1, 4, 8, 64])
def test_ssd_is_the_recurrence(T, block):
    args = random_scan(T)
    for got, want in zip(ssd(*args, block), naive_ssd(*args)):
        assert gap(got, want) < 1e-12


def test_ssd_is_the_recurrence_over_several_passes(monkeypatch):
    monkeypatch.setattr(mamba2, "BLOCKS_PER_PASS", 2)
    args = random_scan(29)
    for got, want in zip(ssd(*args, 4), naive_ssd(*args)):
        assert gap(got, want) < 1e-12


def test_a_fast_decay_early_does_not_blur_later_tokens():
    """Differences of one long cumulative sum would cancel here: fp32 knows 7 digits, and the sum reaches -8,000."""
    x, dt, A, B, C, h = random_scan(48, torch.float32)
    dt[:, :4] = 500.0
    got, _ = ssd(x, dt, A, B, C, h, 4)
    want, _ = naive_ssd(*(a.double() for a in (x, dt, A, B, C, h)))
    assert gap(got[:, 8:].double(), want[:, 8:]) < 1e-5


def test_gradients_of_ssd_are_those_of_the_recurrence():
    torch.manual_seed(3)
    leaves = [a.requires_grad_() for a in random_scan(13)]
    y, h = ssd(*leaves, 4)
    probe_y, probe_h = torch.randn_like(y), torch.randn_like(h)
    got = torch.autograd.grad((y * probe_y).sum() + (h * probe_h).sum(), leaves)
    y, h = naive_ssd(*leaves)
    want = torch.autograd.grad((y * probe_y).sum() + (h * probe_h).sum(), leaves)
    for g, w in zip(got, want):
        assert gap(g, w) < 1e-11


def test_gradcheck_of_the_whole_mixer():
    mixer = random_mixer(torch.float64, d_model=4, d_state=2, headdim=4, ssd_block=2).requires_grad_()
    start = mixer.start()
    state = MixerState(torch.randn_like(start.conv).requires_grad_(), torch.randn_like(start.ssm).requires_grad_())

    def run(u, conv, ssm):
        out, new = mixer(u, MixerState(conv, ssm))
        return out, new.conv, new.ssm

    u = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (u, *state), fast_mode=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_mixer_is_the_paper_s_formulas(options):
    mixer = random_mixer(torch.float64, **options)
    start = mixer.start(2)
    state = MixerState(torch.randn_like(start.conv), torch.randn_like(start.ssm))
    u = torch.randn(2, 19, TINY_MIXER.d_model, dtype=torch.float64)
    out, new = mixer(u, state)
    want_out, want_ssm = naive_mixer(mixer, u, state)
    assert gap(out, want_out) < 1e-11
    assert gap(new.ssm, want_ssm) < 1e-11


@pytest.mark.parametrize("option", ["two groups", "norm before gate", "no norm", "no D", "dt limits", "no conv bias"])
def test_every_switch_changes_the_result(option):
    """Otherwise the comparisons above would hold for a mixer that ignores its switches."""
    u = torch.randn(1, 9, TINY_MIXER.d_model, dtype=torch.float64)
    plain, other = random_mixer(torch.float64), random_mixer(torch.float64, **OPTIONS[option])
    shared = {k: v for k, v in plain.state_dict().items() if k in other.state_dict()}
    if option != "two groups":  # whose projection has another shape
        other.load_state_dict(shared, strict=False)
        assert gap(other(u, other.start())[0], plain(u, plain.start())[0]) > 1e-3
        return
    swapped = Mamba2Mixer(replace(other.cfg, ngroups=1, d_state=16)).double()  # same shapes, one group
    swapped.load_state_dict(other.state_dict())
    assert gap(swapped(u, swapped.start())[0], other(u, other.start())[0]) > 1e-3


@pytest.mark.parametrize("groups", [1, 2])
def test_agrees_with_transformers(groups):
    """An implementation by other people, with the same weights (fp32, from a zero state)."""
    theirs = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    c = replace(TINY_MIXER, ngroups=groups, bias=True)
    config = theirs.Mamba2Config(
        num_heads=c.nheads,
        head_dim=c.headdim,
        hidden_size=c.d_model,
        state_size=c.d_state,
        expand=c.expand,
        n_groups=c.ngroups,
        conv_kernel=c.d_conv,
        use_bias=True,
        use_conv_bias=True,
        chunk_size=16,
        layer_norm_epsilon=c.norm_eps,
        time_step_limit=(0.0, math.inf),
        num_hidden_layers=1,
        vocab_size=8,
    )
    other = theirs.Mamba2Mixer(config, layer_idx=0).eval()
    if groups > 1 and getattr(other.norm, "group_size", c.d_inner) != c.d_inner // groups:
        other.norm.group_size = c.d_inner // groups  # the kernels normalise each group by itself
    ours = random_mixer(torch.float32, ngroups=groups, bias=True)
    other.load_state_dict(ours.state_dict())
    u = torch.randn(2, 37, c.d_model)
    with torch.no_grad():
        want = other(u)
    want = want[0] if isinstance(want, tuple) else want
    assert gap(ours(u, ours.start(2))[0], want) < 2e-5


def test_convolution_goes_on_from_its_tail():
    x, weight, bias = torch.randn(2, 20, 6).double(), torch.randn(6, 1, 4).double(), torch.randn(6).double()
    zero = torch.zeros(2, 3, 6).double()
    whole, whole_tail = causal_conv(x, zero, weight, bias)
    want = F.silu(F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight, bias, groups=6)).transpose(1, 2)
    assert gap(whole, want) < 1e-13
    for cut in (1, 2, 3, 4, 13):
        first, tail = causal_conv(x[:, :cut], zero, weight, bias)
        second, end = causal_conv(x[:, cut:], tail, weight, bias)
        assert gap(torch.cat([first, second], 1), whole) < 1e-13
        assert torch.equal(end, whole_tail)


def test_the_tail_does_not_keep_the_chunk_alive():
    x = torch.randn(1, 500, 6)
    _, tail = causal_conv(x, torch.zeros(1, 3, 6), torch.randn(6, 1, 4), None)
    assert tail.untyped_storage().nbytes() == tail.nbytes


def test_the_state_is_kept_in_fp32_and_small_updates_count():
    """In bf16 a state of 1 would not feel a thousand updates of 0.001; here it must."""
    mixer = random_mixer(torch.bfloat16)
    u = torch.randn(1, 40, TINY_MIXER.d_model).bfloat16()
    _, state = mixer(u, mixer.start())
    assert state.ssm.dtype == torch.float32
    assert state.conv.dtype == torch.bfloat16
    ones = torch.ones(1, 1000, 1, 1)
    _, h = ssd(
        ones.bfloat16(),
        0.001 * ones[..., 0],
        torch.tensor([-1e-9]),
        ones.bfloat16(),
        ones.bfloat16(),
        torch.ones(1, 1, 1, 1),
        1,
    )
    assert abs(float(h) - 2) < 0.01


def test_unbounded_values_stay_finite_in_a_long_decay():
    """exp() only ever sees sums <= 0, so nothing overflows however long the block is."""
    args = random_scan(300, torch.float32, decay=100.0)
    for tensor in ssd(*args, 256):
        assert torch.isfinite(tensor).all()
