"""EfficientNet-Lite: what a picture shows as a whole, in 1,000 ImageNet classes. It only infers.

Source: github.com/tensorflow/tpu (Apache-2.0), after arXiv 1905.11946. Batch norms are folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (blocks, channels) of the seven stages; kernels, strides and expansion are the same for all sizes.
LITE_STAGES = {
    0: ((1, 16), (2, 24), (2, 40), (3, 80), (3, 112), (4, 192), (1, 320)),
    2: ((1, 16), (3, 24), (3, 48), (4, 88), (4, 120), (5, 208), (1, 352)),
}
LITE_KERNELS = (3, 3, 5, 3, 5, 5, 3)
LITE_STRIDES = (1, 2, 2, 2, 1, 2, 1)


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "same": at stride 2 the odd pixel of padding goes right and below."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(c_in, c_out, kernel, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            high, wide = same_padding(self, x.shape[-2:])
            x = F.pad(x, (*wide, *high))
        return super().forward(x)


def same_padding(conv: nn.Conv2d, size: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels of padding (above, below), (left, right) of a picture (height, width) that make TensorFlow's "same"."""
    stride, kernel = conv.stride[0], conv.kernel_size[0]
    high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in size)
    return (high // 2, high - high // 2), (wide // 2, wide - wide // 2)


class LiteBlock(nn.Module):
    """Inverted bottleneck without squeeze-and-excitation: widen, filter each channel, narrow, add."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = c_in * expand
        self.expand = SameConv(c_in, wide) if expand > 1 else None
        self.depthwise = SameConv(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv(wide, c_out)
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        out = self.project(F.relu6(self.depthwise(wide), inplace=True))
        return out.add_(x) if self.adds else out


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite 0 or 2. RGB 0..255, (B, 3, 224, 224) -> head map (B, 1280, 7, 7) and logits (B, 1000)."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.stem = SameConv(3, 32, 3, 2)
        blocks, c_in = [], 32
        for stage, (count, c_out) in enumerate(LITE_STAGES[size]):
            for i in range(count):
                stride = LITE_STRIDES[stage] if i == 0 else 1
                blocks.append(LiteBlock(c_in, c_out, LITE_KERNELS[stage], stride, expand=6 if stage else 1))
                c_in = c_out
        self.blocks = nn.Sequential(*blocks)
        self.head = SameConv(c_in, 1280)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        x = ((rgb - 127.0) / 128.0).to(self.stem.weight.dtype)
        x = F.relu6(self.stem(x.contiguous(memory_format=torch.channels_last)), inplace=True)
        head = F.relu6(self.head(self.blocks(x)), inplace=True)
        return head, self.fc(head.mean((2, 3)))
