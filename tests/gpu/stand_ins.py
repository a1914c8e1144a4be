"""Stand-ins for mamba-ssm and causal-conv1d where they or a GPU are not: the same names, arguments and layouts.

Written from their documented signatures, token by token, and as strict as their checks are. Each says how far into
memory its tensors reach, so that a call beyond a limit is noticed; the real ones then read somewhere else.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


class Reached(AssertionError):
    """A call went further than `limit` elements."""


class StandIns:
    """The functions, and the calls that came: (name, tokens)."""

    def __init__(self, limit: int = 2**31 - 1):
        self.limit, self.calls = limit, []

    def called(self, name: str, tokens: int, *tensors: Tensor | None) -> None:
        self.calls.append((name, tokens))
        for tensor in (t for t in tensors if t is not None):
            reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
            if reach > self.limit:
                raise Reached(f"{name} reaches {reach} elements")

    def mamba_chunk_scan_combined(
        self,
        x,
        dt,
        A,
        B,
        C,
        chunk_size,
        D=None,
        z=None,
        dt_bias=None,
        initial_states=None,
        seq_idx=None,
        cu_seqlens=None,
        dt_softplus=False,
        dt_limit=(0.0, float("inf")),
        return_final_states=False,
        return_varlen_states=False,
    ):
        batch, T, heads, P = x.shape
        groups, N = B.shape[2:]
        blocks = -(-T // chunk_size)
        states = x.new_empty(batch, blocks, heads, P, N)
        self.called("scan", T, x, dt, B, C, initial_states, states, torch.empty_like(x))
        assert dt.shape == (batch, T, heads) and A.shape == (heads,) and A.dtype == torch.float32
        assert B.shape == C.shape == (batch, T, groups, N) and initial_states.shape == (batch, heads, P, N)
        assert D is None or D.shape in ((heads,), (heads, P))
        assert z is None and seq_idx is None and dt_bias.shape == (heads,) and dt_softplus and return_final_states
        state, outputs = initial_states.float(), []
        for t in range(T):
            step = F.softplus(dt[:, t].float() + dt_bias.float()).clamp(*dt_limit)
            y, state = _step(state, x[:, t].float(), step, A, B[:, t].float(), C[:, t].float())
            outputs.append(y if D is None else y + x[:, t].float() * D.float().view(heads, -1))
        return torch.stack(outputs, 1).to(x.dtype), state

    def selective_state_update(
        self, state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, state_batch_indices=None
    ):
        """Changes `state`. As published, it fails without a skip or a bias."""
        batch, heads, P, N = state.shape
        self.called("update", 1, x)
        assert x.shape == dt.shape == (batch, heads, P) and A.shape == (heads, P, N)
        assert B.shape == C.shape and B.shape[::2] == (batch, N) and heads % B.shape[1] == 0
        assert D.shape == dt_bias.shape == (heads, P) and dt_softplus and z is None
        assert A.stride()[1:] == (0, 0) and dt.stride(-1) == dt_bias.stride(-1) == 0, "one step and decay for a head"
        step = F.softplus(dt.float() + dt_bias.float())[..., 0]
        y, new = _step(state.float(), x.float(), step, A[:, 0, 0], B.float(), C.float())
        state.copy_(new)
        return (y + x.float() * D.float()).to(x.dtype)

    def rmsnorm_fn(self, x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True):
        self.called("norm", x.shape[1], x, z)
        assert x.shape == z.shape and bias is None and x.shape[-1] % group_size == 0
        wide, gate = x.float(), F.silu(z.float())
        wide = (wide if norm_before_gate else wide * gate).unflatten(-1, (-1, group_size))
        out = (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).flatten(-2) * weight.float()
        return (out * gate if norm_before_gate else out).to(x.dtype)

    def causal_conv1d_fn(
        self,
        x,
        weight,
        bias=None,
        seq_idx=None,
        initial_states=None,
        return_final_states=False,
        final_states_out=None,
        activation=None,
    ):
        batch, channels, T = x.shape
        width = weight.shape[1]
        self.called("convolution", T, x, initial_states, torch.empty(batch, T, channels, device="meta"))
        assert x.stride(1) == 1 and x.stride(2) > 1, "channel-last"
        assert channels % 8 == 0 and x.stride(0) % 8 == 0 and x.stride(2) % 8 == 0
        assert weight.shape == (channels, width) and 2 <= width <= 4 and (bias is None or bias.shape == (channels,))
        assert initial_states.shape == (batch, channels, width - 1) and initial_states.stride(1) == 1
        assert initial_states.dtype == x.dtype and return_final_states and activation == "silu" and seq_idx is None
        rows = torch.cat([initial_states, x], dim=-1)
        out = F.silu(
            F.conv1d(rows.float(), weight[:, None].float(), None if bias is None else bias.float(), groups=channels)
        )
        newest = rows[..., T:].transpose(1, 2).contiguous().transpose(1, 2)
        return out.to(x.dtype).transpose(1, 2).contiguous().transpose(1, 2), newest

    def selective_scan_fn(
        self, u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
    ):
        batch, channels, T = u.shape
        groups, N = B.shape[1:3]
        self.called("clips", T, u, delta, B, C)
        assert delta.shape == u.shape and A.shape == (channels, N) and B.shape == C.shape == (batch, groups, N, T)
        assert u.dtype == delta.dtype == B.dtype == C.dtype and A.dtype == D.dtype == torch.float32
        assert D.shape == (channels,) and all(t.stride(-1) == 1 for t in (u, delta, B, C)) and not delta_softplus
        h, outputs = u.new_zeros(batch, channels, N).float(), []
        B, C = (t.float().repeat_interleave(channels // groups, dim=1) for t in (B, C))
        for t in range(T):
            step = delta[:, :, t, None].float()
            h = (step * A).exp() * h + step * u[:, :, t, None].float() * B[..., t]
            outputs.append((h * C[..., t]).sum(-1) + D * u[:, :, t].float())
        return torch.stack(outputs, -1).to(u.dtype)


def _step(state, x_BHP, dt_BH, A_H, B_BGN, C_BGN):
    """h <- exp(dt A) h + dt x B^T, y = h C (arXiv 2405.21060, eq. 1 and 2)."""
    B, C = (t.repeat_interleave(x_BHP.shape[1] // t.shape[1], dim=1) for t in (B_BGN, C_BGN))
    state = (dt_BH * A_H).exp()[..., None, None] * state + (dt_BH[..., None] * x_BHP)[..., None] * B[:, :, None]
    return (state * C[:, :, None]).sum(-1), state


PLACES = {
    "mamba_ssm.ops.triton.ssd_combined": ("mamba_chunk_scan_combined",),
    "mamba_ssm.ops.triton.selective_state_update": ("selective_state_update",),
    "mamba_ssm.ops.triton.layernorm_gated": ("rmsnorm_fn",),
    "mamba_ssm.ops.selective_scan_interface": ("selective_scan_fn",),
    "causal_conv1d": ("causal_conv1d_fn",),
}


def put_in_place(monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...] = ()) -> StandIns:
    """The packages as Python finds them, but for those left out; `pipeline.gpu.published` is imported anew."""
    made = StandIns()
    for package in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    for place, names in PLACES.items():
        module: ModuleType | None = ModuleType(place)
        for name in names:
            setattr(module, name, getattr(made, name))
        monkeypatch.setitem(sys.modules, place, None if place in without else module)
    monkeypatch.setitem(sys.modules, "pipeline.gpu.published", ModuleType("gone"))  # so that the real one comes back
    monkeypatch.delitem(sys.modules, "pipeline.gpu.published")
    return made
