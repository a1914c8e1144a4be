"""Products in 8-bit floating point (e4m3; arXiv 2209.05433) of the networks that watch, for GPUs that multiply it.

Both factors are rounded to 4 bits of precision. A scale puts the largest value at the end of e4m3's range, 448, below
which lie 18 powers of two: what is large costs the rest nothing, and finer scales bring little nearer (normal weights
stray by 2.65 % with one scale, as with one for each row, and by 2.57 % with one for 128 of a row). So a weight has one,
and so has what comes out of a norm: it is never larger than its width's root times its own largest weight; by the same
reason what a layer behind a norm gives to the next. Other inputs have one for each row (one token), found when it
comes. A token's codes then depend on that token alone, and how a video is cut still changes nothing. Sums are fp32;
norms, convolution, scan, state and attention are as they were.

Rounded so: the blocks of the vision tower and the projections of the column's mixers, nearly all that watching
multiplies. What all else is read from stays exact: the tower's merger, and the keys and values of the memory. The text
column waits for its weights' bytes, not for products: its weights become 8-bit integers (int8.py), as many bytes, which
stray by 0.9 %.

The code here runs anywhere and is the reference; the kernels are in gpu/fp8.py and gpu/pointwise.py.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gpu.dispatch import fp8_kernels, kernels_for
from pipeline.layers.int8 import Int8Linear, RoundedLinear, to_int8
from pipeline.layers.norms import RMSNorm

E4M3, LARGEST = torch.float8_e4m3fn, 448.0
LEAST = 1e-30  # of a row's largest value: a row of zeros stays one
WATCHES = r"(visual\.)?blocks\.|.*\.vision_mixer\."
EXACT = r"(visual\.)?merger\.|.*\.cross_attn\.[kv]_proj"
Rounding = Literal["int8", "fp8"]  # of a network's weights


class Rows(NamedTuple):
    """Rounded inputs of a product. codes: e4m3 (..., in). scale: () or (..., 1). dtype: of what they stand for."""

    codes: Tensor
    scale: Tensor
    dtype: torch.dtype


class Fp8Linear(RoundedLinear):
    """With codes in e4m3, kept as uint8: torch would take them for numbers that `to(dtype)` converts.

    scale: fp32 (out,), one number, which kernels want for each output.
    """

    _after: Tensor | None = None
    _beyond: Tensor | None = None

    def forward(self, x: Tensor | Rows) -> Tensor:
        """x: (..., in), or already rounded."""
        rows = x if isinstance(x, Rows) else rows_of(x)
        weight, wide = self.weight.view(E4M3), _wide(rows.dtype)
        if kernels := fp8_kernels(rows.codes, rows.dtype, weight.shape):
            return kernels.fp8_linear(rows.codes, rows.scale, weight, self.scale, self.bias, rows.dtype)
        out = F.linear(rows.codes.to(wide), weight.to(wide)) * rows.scale * self.scale.to(wide)
        return (out if self.bias is None else out + self.bias.to(wide)).to(rows.dtype)

    def after(self, norm: RMSNorm | nn.LayerNorm) -> Tensor:
        """The scale () fp32 of what this norm gives: no row of it can be larger. Found once."""
        if self._after is None:
            largest = norm.weight.detach().float().abs().max() * len(norm.weight) ** 0.5
            if isinstance(norm, nn.LayerNorm) and norm.bias is not None:
                largest = largest + norm.bias.detach().float().abs().max()
            self._after = largest.clamp_min(LEAST) / LARGEST
        return self._after

    def beyond(self, norm: nn.LayerNorm) -> Tensor:
        """The scale () fp32 of what this layer makes of what that norm gives: no output can be larger. Found once.

        By Cauchy and Schwarz: the norm is sqrt(in) long at most before its weights, and a code is off by 1/16.
        """
        if self._beyond is None:
            weight = self.weight.view(E4M3).float() * self.scale[:, None]
            long = len(norm.weight) ** 0.5 * (weight * norm.weight.float()).norm(dim=1)
            middle = torch.zeros_like(long) if self.bias is None else self.bias.float()
            if norm.bias is not None:
                long = long + weight.abs() @ norm.bias.float().abs() / 16
                middle = middle + weight @ norm.bias.float()
            self._beyond = (long * (17 / 16) + middle.abs()).max().clamp_min(LEAST) / LARGEST
        return self._beyond

    @staticmethod
    def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
        scale = weight.abs().max().float().clamp_min(LEAST) / LARGEST
        return (weight.float() / scale).to(E4M3).view(torch.uint8), scale.repeat(len(weight))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def rows_of(x: Tensor) -> Rows:
    """Each row with a scale of its own."""
    if kernels := fp8_kernels(x, x.dtype):
        codes, scale = kernels.rounded_rows(x)
        return Rows(codes, scale, x.dtype)
    wide = x.to(_wide(x.dtype))
    scale = wide.abs().amax(-1, keepdim=True).clamp_min(LEAST) / LARGEST
    return Rows((wide / scale).to(E4M3), scale, x.dtype)


def normed(norm: RMSNorm | nn.LayerNorm, x: Tensor, linear: nn.Module) -> Tensor | Rows:
    """norm(x) as `linear` takes it; where kernels can, rounded in the same pass."""
    if not isinstance(linear, Fp8Linear):
        return norm(x)
    scale, kernels = linear.after(norm), fp8_kernels(x, x.dtype)
    if kernels and isinstance(norm, RMSNorm):
        return Rows(kernels.rms_norm_rounded(x, norm.weight, norm.eps, scale), scale, x.dtype)
    return Rows((norm(x).to(_wide(x.dtype)) / scale).to(E4M3), scale, x.dtype)


def added_and_normed(x: Tensor, more: Tensor, norm: nn.LayerNorm, linear: nn.Module) -> tuple[Tensor, Tensor | Rows]:
    """x + more, and its norm as `linear` takes it. In one launch on a GPU."""
    if isinstance(linear, Fp8Linear) and (kernels := fp8_kernels(x, x.dtype)):
        scale = linear.after(norm)
        total, codes = kernels.add_layer_norm_rounded(x, more, norm.weight, norm.bias, norm.eps, scale)
        return total, Rows(codes, scale, x.dtype)
    if not isinstance(linear, Fp8Linear) and (kernels := kernels_for(x)):
        return kernels.add_layer_norm(x, more, norm.weight, norm.bias, norm.eps)
    total = x + more
    return total, normed(norm, total, linear)


def through_gelu(first: nn.Module, x: Rows, norm: nn.LayerNorm) -> Rows:
    """first(x) sigmoid(1.702 first(x)), rounded with one scale. norm: what x came out of. In one launch on a GPU."""
    assert isinstance(first, Fp8Linear)  # or nothing would have been rounded for it
    scale, weight = first.beyond(norm), first.weight.view(E4M3)
    if kernels := fp8_kernels(x.codes, x.dtype, weight.shape):
        return Rows(kernels.fp8_gelu(x.codes, x.scale, weight, first.scale, first.bias, scale), scale, x.dtype)
    inner = first(x._replace(dtype=_wide(x.dtype)))
    return Rows((inner * torch.sigmoid(1.702 * inner) / scale).to(E4M3), scale, x.dtype)


def to_fp8(net: nn.Module) -> nn.Module:
    """Rounds a network, or a tower alone, as the top of this file says; on the meta device layers stay empty."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.Linear) and re.match(WATCHES, name):
            net.set_submodule(name, Fp8Linear(module))
    return to_int8(net, EXACT)


def to_8_bits(net: nn.Module, rounding: Rounding | None) -> nn.Module:
    """The network in place, rounded so; None: as it is."""
    return {"int8": to_int8, "fp8": to_fp8}[rounding](net) if rounding else net


def rounding_told(net: nn.Module) -> str:
    """How a network is rounded, in words behind its type."""
    kinds = {type(module) for module in net.modules()}
    told = ", weights in 8 bits" if Int8Linear in kinds else ""
    return ", products in 8-bit floating point" + told if Fp8Linear in kinds else told
