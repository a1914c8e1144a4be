"""The Mamba-2 mixer: any number of tokens, from any state.

State-space duality (SSD), "Transformers are SSMs", arXiv 2405.21060. What published code lacks, and this file is for:
`mixer(tokens, state) -> (outputs, state)` for any number of tokens from any carried state, so that cutting a stream
into chunks never changes its results. Two things are carried, both small and constant: the last `d_conv - 1` rows
that entered the convolution (before its activation), and the SSM state of every head, in fp32 or better.

The same pure-torch code trains (autograd) and infers on CPU and CUDA; on CUDA inference goes through the kernels that
`gpu/dispatch.py` chooses: the own ones of `gpu/mixer.py` or the published ones of `gpu/published.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gpu.dispatch import mixer_kernels
from pipeline.gpu.scan_inputs import ScanInputs
from pipeline.layers.fp8 import Rows

BLOCKS_PER_PASS = 64  # SSD blocks handled at once; bounds the (blocks x blocks) decay matrix of eq. 20


class MixerState(NamedTuple):
    """What one layer carries. Constant size, whatever the length of the video.

    conv: (B, d_conv - 1, conv_dim) the newest rows before the convolution, in the model's dtype.
    ssm: (B, H, P, N) in fp32, or fp64 when the model runs in fp64. bf16 would lose an hour's small updates.
    """

    conv: Tensor
    ssm: Tensor

    @property
    def nbytes(self) -> int:
        return self.conv.nbytes + self.ssm.nbytes


@dataclass(frozen=True)
class MixerConfig:
    """Sizes and switches of one mixer, named as in the paper and in the published configurations."""

    d_model: int
    d_state: int = 128  # N
    d_conv: int = 4
    expand: int = 2
    headdim: int = 64  # P
    ngroups: int = 1  # G: heads that share B and C
    rmsnorm: bool = True  # False: the gate alone
    norm_before_gate: bool = False
    norm_eps: float = 1e-5
    has_D: bool = True
    D_has_hdim: bool = False
    bias: bool = False
    conv_bias: bool = True
    dt_limit: tuple[float, float] = (0.0, math.inf)
    ssd_block: int = 256  # tokens per SSD block ("chunk_size" upstream); changes speed, never results

    @property
    def d_inner(self) -> int:
        return self.expand * self.d_model

    @property
    def nheads(self) -> int:
        return self.d_inner // self.headdim

    @property
    def conv_dim(self) -> int:
        return self.d_inner + 2 * self.ngroups * self.d_state

    @classmethod
    def from_dict(cls, d_model: int, fields: dict[str, Any]) -> MixerConfig:
        """From a published `vision_mamba_mixer_config`. Unknown fields are ignored; `dt_limit` may be a list."""
        known = {k: fields[k] for k in cls.__dataclass_fields__ if k in fields}
        known |= {"d_model": d_model, "ssd_block": fields.get("chunk_size", 256)}
        known["dt_limit"] = tuple(fields.get("dt_limit") or (0.0, math.inf))
        return cls(**known)


class Mamba2Mixer(nn.Module):
    """One Mamba-2 mixer. Parameter names and shapes equal mamba-ssm's, so checkpoints load by name."""

    def __init__(self, cfg: MixerConfig):
        super().__init__()
        self.cfg = cfg
        self.in_proj = nn.Linear(cfg.d_model, 2 * cfg.d_inner + 2 * cfg.ngroups * cfg.d_state + cfg.nheads, cfg.bias)
        self.conv1d = nn.Conv1d(cfg.conv_dim, cfg.conv_dim, cfg.d_conv, groups=cfg.conv_dim, bias=cfg.conv_bias)
        self.dt_bias = nn.Parameter(_initial_dt_bias(cfg.nheads))
        self.A_log = nn.Parameter(torch.empty(cfg.nheads).uniform_(1, 16).log())
        if cfg.has_D:
            self.D = nn.Parameter(torch.ones(cfg.d_inner if cfg.D_has_hdim else cfg.nheads))
        else:
            self.register_parameter("D", None)
        self.norm = GatedRMSNorm(cfg) if cfg.rmsnorm else None
        self.out_proj = nn.Linear(cfg.d_inner, cfg.d_model, cfg.bias)

    def start(self, batch: int = 1) -> MixerState:
        """The state before the first token: zeros."""
        cfg, w = self.cfg, self.conv1d.weight  # the projections may be in 8 bits
        ssm_dtype = torch.promote_types(w.dtype, torch.float32)
        return MixerState(
            torch.zeros(batch, cfg.d_conv - 1, cfg.conv_dim, dtype=w.dtype, device=w.device),
            torch.zeros(batch, cfg.nheads, cfg.headdim, cfg.d_state, dtype=ssm_dtype, device=w.device),
        )

    def forward(
        self,
        u_BTD: Tensor | Rows,
        state: MixerState,
        residual_BTD: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, MixerState]:
        """Outputs (B, T, D), added to the residual if given, and the state after the last token.

        T >= 1; `state` is not changed. lengths_B: how many tokens of each row are real, at least one; the state is that
        after them, and outputs behind them mean nothing. Needs a `dt_limit` that begins at 0.
        """
        cfg = self.cfg
        if kernels := mixer_kernels(state.conv, state.conv, state.ssm, cfg.ngroups):
            return self.by_kernels(kernels, u_BTD, state, residual_BTD, lengths_B)
        z, rows, dt = self.in_proj(u_BTD).split([cfg.d_inner, cfg.conv_dim, cfg.nheads], dim=-1)
        xBC, tail = causal_conv(rows, state.conv, self.conv1d.weight, self.conv1d.bias)
        if lengths_B is not None:
            dt, tail = dt.masked_fill(behind(lengths_B, dt), -math.inf), tails(rows, state.conv, lengths_B)
        inputs = ScanInputs.of_rows(xBC, dt, self.dt_bias, self.A_log, state.ssm, self.D, cfg.ngroups, cfg.dt_limit)
        y, ssm = scan(None, inputs, cfg.ssd_block)
        y = y.flatten(-2)
        y = self.norm(y, z) if self.norm is not None else y * F.silu(z)
        out = self.out_proj(y)
        return out if residual_BTD is None else residual_BTD + out, MixerState(tail, ssm)

    def by_kernels(
        self,
        kernels: ModuleType,
        u_BTD: Tensor | Rows,
        state: MixerState,
        residual_BTD: Tensor | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[Tensor, MixerState]:
        """`forward` by what `mixer_kernels` gave: the same within the rounding of the model's type."""
        cfg, projected = self.cfg, self.in_proj(u_BTD)
        if lengths_B is not None:
            dt = projected[..., -cfg.nheads :]
            dt.masked_fill_(behind(lengths_B, dt), -math.inf)
        y, squares, conv, ssm = kernels.mixer(
            projected,
            *state,
            conv_weight=self.conv1d.weight,
            conv_bias=self.conv1d.bias,
            dt_bias=self.dt_bias,
            A_log=self.A_log,
            D=self.D,
            norm_weight=None if self.norm is None else self.norm.weight,
            groups=cfg.ngroups,
            dt_limit=cfg.dt_limit,
            eps=cfg.norm_eps,
            norm_before_gate=cfg.norm_before_gate,
            defer_norm=not cfg.bias,
        )
        out = self.out_proj(y)
        if squares is not None:
            out = kernels.scaled_rows(out, squares, cfg.d_inner, cfg.norm_eps, residual_BTD)
        elif residual_BTD is not None:
            out = residual_BTD + out
        if lengths_B is not None:
            conv = tails(projected[..., cfg.d_inner : cfg.d_inner + cfg.conv_dim], state.conv, lengths_B)
        return out, MixerState(conv, ssm)


def behind(lengths_B: Tensor, like_BTH: Tensor) -> Tensor:
    """(B, T, 1), true behind each row's end. A step size of softplus(-inf) = 0 leaves a state as it is."""
    return (torch.arange(like_BTH.shape[1], device=lengths_B.device) >= lengths_B[:, None])[..., None]


def tails(rows_BTC: Tensor, before_BKC: Tensor, lengths_B: Tensor) -> Tensor:
    """(B, K, C) the newest rows that entered the convolution, counted from each row's own end."""
    at = lengths_B[:, None] + torch.arange(before_BKC.shape[1], device=lengths_B.device)
    return torch.cat([before_BKC, rows_BTC], dim=1).gather(1, at[..., None].expand(-1, -1, rows_BTC.shape[2]))


class GatedRMSNorm(nn.Module):
    """RMSNorm over each group of channels, gated by silu(z) before or after (arXiv 2405.21060, section 7)."""

    def __init__(self, cfg: MixerConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(cfg.d_inner))
        self.groups, self.eps, self.norm_before_gate = cfg.ngroups, cfg.norm_eps, cfg.norm_before_gate

    def forward(self, y: Tensor, z: Tensor, kernels: ModuleType | None = None) -> Tensor:
        """kernels: what `mixer_kernels` gave."""
        if kernels is not None:
            return kernels.gated_norm(y, z, self.weight, self.groups, self.eps, self.norm_before_gate)
        wide = torch.promote_types(y.dtype, torch.float32)
        y_wide, gate = y.to(wide), F.silu(z.to(wide))
        if not self.norm_before_gate:
            y_wide = y_wide * gate
        grouped = y_wide.unflatten(-1, (self.groups, -1))
        y_wide = F.rms_norm(grouped, grouped.shape[-1:], eps=self.eps).flatten(-2) * self.weight.to(wide)
        if self.norm_before_gate:
            y_wide = y_wide * gate
        return y_wide.to(y.dtype)


def causal_conv(x_BTC: Tensor, tail_BKC: Tensor, weight_C1W: Tensor, bias_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution with SiLU, continuing from `tail`; returns outputs (B, T, C) and the new tail.

    Written as `d_conv` shifted products: as fast as a grouped convolution on CUDA, three times faster on CPU.
    """
    width, T = weight_C1W.shape[-1], x_BTC.shape[1]
    rows = torch.cat([tail_BKC, x_BTC], dim=1)
    out = rows[:, :T] * weight_C1W[:, 0, 0]
    for k in range(1, width):
        out = torch.addcmul(out, rows[:, k : k + T], weight_C1W[:, 0, k])
    out = F.silu(out if bias_C is None else out + bias_C)
    return out, rows[:, T:].clone()  # the newest width - 1 rows; a view would keep the whole chunk alive


def scan(kernels: ModuleType | None, inputs: ScanInputs, block: int = 256) -> tuple[Tensor, Tensor]:
    """y (B, T, H, P) in x's dtype and the state after the last token.

    kernels: what `mixer_kernels` gave. Otherwise by `ssd`, after softplus and limits, and with the skip.
    """
    if kernels is not None:
        return kernels.ssd(inputs)[:2]
    x, wide = inputs.x_BTHP, inputs.ssm_BHPN.dtype
    dt = F.softplus(inputs.dt_BTH.to(wide) + inputs.dt_bias_H.to(wide)).clamp(*inputs.dt_limit)
    A = -inputs.A_log_H.to(wide).exp()
    y, ssm = ssd(x, dt, A, inputs.B_BTGN, inputs.C_BTGN, inputs.ssm_BHPN, block)
    if inputs.D is not None:
        y = y + x * inputs.D.to(y.dtype).view(x.shape[2], -1)
    return y, ssm


def ssd(
    x_BTHP: Tensor, dt_BTH: Tensor, A_H: Tensor, B_BTGN: Tensor, C_BTGN: Tensor, ssm_BHPN: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """The SSD recurrence h_t = exp(dt_t A) h_(t-1) + dt_t x_t B_t^T, y_t = h_t C_t, from a carried state.

    Returns y (B, T, H, P) in x's dtype and the state after the last token in the dtype of `ssm_BHPN`.
    Blockwise (arXiv 2405.21060, section 6): quadratic inside blocks of `block` tokens, linear between them.
    """
    T, outputs, step = x_BTHP.shape[1], [], block * BLOCKS_PER_PASS
    for t in range(0, T, step):
        part = slice(t, min(t + step, T))
        y, ssm_BHPN = _ssd_pass(
            x_BTHP[:, part], dt_BTH[:, part], A_H, B_BTGN[:, part], C_BTGN[:, part], ssm_BHPN, block
        )
        outputs.append(y)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1), ssm_BHPN


def _ssd_pass(x, dt, A, B, C, ssm, block):
    """At most BLOCKS_PER_PASS blocks. Letters: c blocks, q and s positions inside one, g groups, r heads per group."""
    T, heads, G = x.shape[1], x.shape[2], B.shape[2]
    block = -(-T // -(-T // block))  # even blocks, so that little is padded
    pad = -T % block  # padded steps have dt = 0: decay 1, no input, so they leave the state alone
    x, dt, B, C = (F.pad(a, [0, 0] * (a.dim() - 2) + [0, pad]) if pad else a for a in (x, dt, B, C))
    x = x.unflatten(1, (-1, block)).unflatten(3, (G, heads // G))  # b c q g r p
    dt = dt.unflatten(1, (-1, block)).unflatten(3, (G, heads // G))  # b c q g r
    B, C = B.unflatten(1, (-1, block)), C.unflatten(1, (-1, block))  # b c q g n
    log_decay = (dt * A.view(G, -1)).movedim(2, -1).cumsum(-1)  # b c g r q, sums up to and with q
    xdt = x * dt.to(x.dtype)[..., None]

    # 1. inside each block: the masked attention-like product (eq. 16)
    inside = log_decay[..., :, None] - log_decay[..., None, :]  # b c g r q s
    mask = torch.ones(block, block, dtype=torch.bool, device=x.device).triu(1)
    weights = torch.einsum("bcqgn,bcsgn->bcgqs", C, B)[:, :, :, None] * inside.masked_fill(mask, -torch.inf).exp().to(
        x.dtype
    )
    y = torch.einsum("bcgrqs,bcsgrp->bcqgrp", weights, xdt)

    # 2. what each block adds to the state at its end
    to_end = (log_decay[..., -1:] - log_decay).exp().to(x.dtype)  # b c g r q
    added = torch.einsum("bcsgn,bcgrs,bcsgrp->bcgrpn", B, to_end, xdt).to(ssm.dtype)

    # 3. states at the beginning of every block, and after the last (eq. 20)
    states = torch.cat([ssm.unflatten(1, (G, -1))[:, None], added], dim=1)  # b c+1 g r p n
    between = _segment_sums(log_decay[..., -1].movedim(1, -1)).exp()  # b g r c+1 c+1
    states = torch.einsum("bgrzc,bcgrpn->bzgrpn", between, states)
    ssm = states[:, -1].flatten(1, 2).clone()  # a view would keep the states of all blocks alive with it

    # 4. what the state at a block's beginning gives to its tokens
    from_start = log_decay.exp().to(x.dtype)  # b c g r q
    y = y + torch.einsum("bcqgn,bcgrpn,bcgrq->bcqgrp", C, states[:, :-1].to(x.dtype), from_start)
    return y.flatten(3, 4).flatten(1, 2)[:, :T], ssm


def _segment_sums(log_decay: Tensor) -> Tensor:
    """(..., c) block decays -> (..., c+1, c+1): entry [z, i] sums blocks i..z-1, -inf above the diagonal.

    By masked cumulative sums, not by differences of one long sum: those cancel when an early block decays fast.
    """
    c = log_decay.shape[-1] + 1
    padded = F.pad(log_decay, (1, 0))[..., :, None].expand(*log_decay.shape[:-1], c, c)
    below = torch.ones(c, c, dtype=torch.bool, device=log_decay.device).tril(-1)
    sums = padded.masked_fill(~below, 0).cumsum(-2)
    return sums.masked_fill(torch.ones_like(below).triu(1), -torch.inf)


def _initial_dt_bias(nheads: int, low: float = 1e-3, high: float = 1e-1) -> Tensor:
    """Inverse softplus of step sizes drawn log-uniformly from [low, high] (Mamba's initialisation)."""
    dt = torch.exp(torch.rand(nheads) * (math.log(high) - math.log(low)) + math.log(low))
    return dt + torch.log(-torch.expm1(-dt))
