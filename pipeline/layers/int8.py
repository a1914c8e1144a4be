"""Linear layers whose weights are 8-bit integers: half the memory of bf16, and half the bytes to read per word.

A row of a weight (one output) shares one scale: w = scale * code, codes -127 .. 127, the row's largest value at the end
of that range. Only weights are rounded; inputs, sums and everything that is not a Linear layer keep their types.
Norms, the convolution, embeddings, the mixers' A, D and step bias, and the vision tower stay as they are.

A few tokens at once wait for the weights to be read, so on a GPU a kernel reads the codes alone (gpu/int8.py). Many
tokens wait for the multiplications, so the weight is restored first: that costs one more pass over it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gpu.dispatch import kernels_for

AT_ONCE = 1 << 22  # numbers of a weight while it is rounded: in fp32 the output layer alone would take 2.2 GB
STAYS = r"visual\."  # the tower: 6 % of the weights, always many rows at once


class RoundedLinear(nn.Module, ABC):
    """In the place of a Linear layer, from its weights or, where they are on the meta device, empty until `take`.

    weight: codes of 8 bits (out, in). scale: fp32 (out,). bias: the layer's own.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.bias = linear.bias
        self.take(linear.weight.detach())

    def take(self, weight: Tensor) -> None:
        """Round a float weight (out, in) and keep it, on its device."""
        codes, scale = self.rounded(weight)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    @staticmethod
    @abstractmethod
    def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, of a type that is no floating one to torch, and scales of a float weight."""


class Int8Linear(RoundedLinear):
    """With int8 codes."""

    def forward(self, x: Tensor) -> Tensor:
        if kernels := kernels_for(x):
            return kernels.int8_linear(x, self.weight, self.scale, self.bias)
        return F.linear(x, restored(self.weight, self.scale, x.dtype), self.bias)

    @staticmethod
    def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
        return rounded(weight)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and fp32 scales (out,) of a float weight (out, in): off by about half a scale at most."""
    codes = torch.empty_like(weight, dtype=torch.int8)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    many = max(1, AT_ONCE // weight.shape[1])
    for rows, some, scales in zip(weight.split(many), codes.split(many), scale.split(many)):
        wide = rows.float()
        scales.copy_((wide.abs().amax(1) / 127).bfloat16())  # so that restoring in bf16 rounds only the product
        some.copy_((wide / scales[:, None].clamp_min(1e-30)).round_().clamp_(-127, 127))
    return codes, scale


def restored(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) in `dtype`."""
    return codes * scale.to(dtype)[:, None]


def to_int8(net: nn.Module, stays: str = STAYS) -> nn.Module:
    """Puts an `Int8Linear` in the place of every Linear layer outside the tower; on the meta device they stay empty.

    stays: a pattern of other names that stay. So do layers whose weight is shared (an output layer tied to the
    embedding).
    """
    places = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    uses = [id(parameter) for _, parameter in net.named_parameters(remove_duplicate=False)]
    for name, linear in places:
        if not re.match(stays, name) and uses.count(id(linear.weight)) == 1:
            net.set_submodule(name, Int8Linear(linear))
    return net
