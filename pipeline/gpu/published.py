"""The published kernels of the mixers, mamba-ssm's and causal-conv1d's, behind the own ones' names and arguments.

`dispatch.py` says when they run; requirements-gpu.txt how they are installed. Both packages are optional: without
causal-conv1d the own convolution takes its place, and without mamba-ssm's compiled part the own scan of Mamba-1.

Their offsets have 32 bits, so no call may reach further than 2^31 elements (Vamba's projection does after 146,000
tokens): longer ones are cut here, with the state carried over. fp32 matrix products are tf32 ones there, three digits.
A NaN in a step size alone is swallowed by their limits; one in a whole row is not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.gpu.scan_inputs import UNLIMITED, ScanInputs

ELEMENTS = 2**31 - 1  # the furthest that an offset of theirs reaches
SSD_BLOCK = 256  # a cut at its multiples changes not a bit; one size for all lengths, since each is tuned anew
CHANNELS = 8  # causal-conv1d wants multiples of it


def _entered() -> None:
    """mamba_ssm by its path, unrun: its `__init__` imports all its models, and fails where only Triton is there."""
    if "mamba_ssm" not in sys.modules:
        spec = find_spec("mamba_ssm")
        if spec is None:
            raise ModuleNotFoundError("it is not installed", name="mamba_ssm")
        sys.modules["mamba_ssm"] = module_from_spec(spec)


def _if_there(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:
        return None


_entered()
_scans = import_module("mamba_ssm.ops.triton.ssd_combined")
_updates = import_module("mamba_ssm.ops.triton.selective_state_update")
_norms = import_module("mamba_ssm.ops.triton.layernorm_gated")
_clips = _if_there("mamba_ssm.ops.selective_scan_interface")
_convolutions = _if_there("causal_conv1d")
NAME = "mamba-ssm's kernels" + (" and causal-conv1d" if _convolutions else ", own convolution")


def mixer(
    projected_BTE: Tensor,
    conv_BKC: Tensor,
    ssm_BHPN: Tensor,
    *,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor | None,
    norm_weight: Tensor | None,
    groups: int,
    dt_limit: tuple[float, float],
    eps: float,
    norm_before_gate: bool,
    defer_norm: bool,
) -> tuple[Tensor, None, Tensor, Tensor]:
    """As `mixer.py: mixer`; the norm is never deferred, so y is whole and there are no sums of squares."""
    (_, heads, P, N) = ssm_BHPN.shape
    z, xBC, dt = projected_BTE.split([heads * P, heads * P + 2 * groups * N, heads], dim=-1)
    xBC, tail = causal_conv(xBC, conv_BKC, conv_weight, conv_bias)
    y, ssm = ssd(ScanInputs.of_rows(xBC, dt, dt_bias, A_log, ssm_BHPN, D, groups, dt_limit))
    y = y.flatten(-2)
    if norm_weight is None:
        return y * F.silu(z), None, tail, ssm
    return gated_norm(y, z, norm_weight, groups, eps, norm_before_gate), None, tail, ssm


def causal_conv(x_BTC: Tensor, tail_BKC: Tensor, weight_C1W: Tensor, bias_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `convolution.py: causal_conv`, by causal-conv1d, which takes channels before time, stored channel-last."""
    channels = x_BTC.shape[-1]
    if _convolutions is None or channels % CHANNELS or weight_C1W.shape[-1] < 2:
        return import_module("pipeline.gpu.convolution").causal_conv(x_BTC, tail_BKC, weight_C1W, bias_C)
    convolve, weight = _convolutions.causal_conv1d_fn, weight_C1W[:, 0]

    def call(inputs: Sequence[Tensor], tail: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = inputs
        if any(stride % CHANNELS for stride in x.stride()[:2]) or x.stride(2) != 1:
            x = x.clone(memory_format=torch.contiguous_format)  # `contiguous` leaves a single row as it lies
        out, newest = convolve(
            x.transpose(1, 2),
            weight,
            bias_C,
            initial_states=tail.contiguous().transpose(1, 2),
            return_final_states=True,
            activation="silu",
        )
        return out.transpose(1, 2), newest.transpose(1, 2)

    out, tail = _carried(call, [x_BTC], tail_BKC, channels)
    return out, tail.contiguous()


def ssd(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """As `mixer.py: ssd`, without the sums: y (B, T, H, P) and the state after the last token, in fp32."""
    *_, ssm, D, _ = inputs
    (_, heads, P, N), groups, T = ssm.shape, inputs.B_BTGN.shape[2], inputs.x_BTHP.shape[1]
    A = -inputs.A_log_H.float().exp()
    skip = D if D is None or D.numel() == heads else D.view(heads, P)
    if T == 1 and inputs.dt_limit == UNLIMITED:
        return _one_token(inputs, A, skip)

    def call(parts: Sequence[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        x, dt, B, C = parts
        return _scans.mamba_chunk_scan_combined(
            x,
            dt,
            A,
            B,
            C,
            SSD_BLOCK,
            D=skip,
            dt_bias=inputs.dt_bias_H,
            initial_states=state,
            dt_softplus=True,
            dt_limit=inputs.dt_limit,
            return_final_states=True,
        )

    # A token's share of what a call makes: outputs, step sizes, states of blocks, C B^T of blocks.
    made = max(heads * P, heads * P * N // SSD_BLOCK + 1, groups * SSD_BLOCK)
    return _carried(call, [inputs.x_BTHP, inputs.dt_BTH, inputs.B_BTGN, inputs.C_BTGN], ssm.contiguous(), made)


def _one_token(inputs: ScanInputs, A_H: Tensor, skip: Tensor | None) -> tuple[Tensor, Tensor]:
    """mamba-ssm's kernel for one token changes the state that it is given, and cannot do without a skip or a bias."""
    (batch, heads, P, N), ssm = inputs.ssm_BHPN.shape, inputs.ssm_BHPN.clone()
    D = A_H.new_zeros(heads) if skip is None else skip
    y = _updates.selective_state_update(
        ssm,
        inputs.x_BTHP[:, 0],
        inputs.dt_BTH[:, 0, :, None].expand(batch, heads, P),
        A_H[:, None, None].expand(heads, P, N),
        inputs.B_BTGN[:, 0],
        inputs.C_BTGN[:, 0],
        D=D if D.dim() == 2 else D[:, None].expand(heads, P),
        dt_bias=inputs.dt_bias_H[:, None].expand(heads, P),
        dt_softplus=True,
    )
    return y[:, None], ssm


def gated_norm(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float, norm_before_gate: bool) -> Tensor:
    """As `pointwise.py: gated_norm`."""

    def call(parts: Sequence[Tensor], nothing: Tensor) -> tuple[Tensor, Tensor]:
        y, z = parts
        size = y.shape[-1] // groups
        return _norms.rmsnorm_fn(y, weight, None, z, eps, size, norm_before_gate), nothing

    return _carried(call, [y, z], y.new_empty(len(y), 0), y.shape[-1])[0]


def scans_clips() -> bool:
    """Whether mamba-ssm's compiled part is there."""
    return _clips is not None


def selective_scan(
    u_BTGC: Tensor, dt_BTGC: Tensor, A_GCN: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, D_GC: Tensor
) -> Tensor:
    """As `layers/mamba1.py: selective_scan`. mamba-ssm takes tokens last, and groups of channels that share B and C."""
    assert _clips is not None  # `scans_clips`
    batch, T, groups, channels = u_BTGC.shape
    most = max(1, ELEMENTS // (T * max(groups * channels, groups * A_GCN.shape[-1])))  # clips of one call
    A, D = A_GCN.flatten(0, 1).float(), D_GC.flatten().float()
    outputs = []
    for start in range(0, batch, most):
        u, dt = (x[start : start + most].flatten(2).transpose(1, 2).contiguous() for x in (u_BTGC, dt_BTGC))
        B, C = (x[start : start + most].permute(0, 2, 3, 1).contiguous().to(u.dtype) for x in (B_BTGN, C_BTGN))
        outputs.append(_clips.selective_scan_fn(u, dt.to(u.dtype), A, B, C, D))
    return torch.cat(outputs).transpose(1, 2).unflatten(2, (groups, channels))


def _carried(
    call: Callable[[Sequence[Tensor], Tensor], tuple[Tensor, Tensor]],
    inputs: Sequence[Tensor],
    state: Tensor,
    made: int,
) -> tuple[Tensor, Tensor]:
    """call(inputs, state) -> (outputs, state), in pieces none of which reaches beyond ELEMENTS.

    inputs: (B, T, ...) each, cut along T, or apart by batch row. made: elements a token of the largest tensor that a
    call makes itself.
    """
    batch, T = inputs[0].shape[:2]
    if max(batch * T * made, *(_reach(x) for x in inputs)) <= ELEMENTS:
        return call(inputs, state)
    if batch > 1:
        rows = [_carried(call, [x[b : b + 1] for x in inputs], state[b : b + 1], made) for b in range(batch)]
        outputs, states = zip(*rows)
        return torch.cat(outputs), torch.cat(states)
    step = max(1, ELEMENTS // max(made, *(x.stride(1) for x in inputs)))
    step -= step % min(step, SSD_BLOCK)
    parts = []
    for start in range(0, T, step):
        out, state = call([x[:, start : start + step] for x in inputs], state)
        parts.append(out)
    return torch.cat(parts, dim=1), state


def _reach(x: Tensor) -> int:
    """How many elements of memory lie between a tensor's first and last, both counted."""
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride()))
