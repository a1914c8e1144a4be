"""A small convolutional network as data: a list of steps, each of earlier ones. It only infers.

The networks that find faces, palms and poses (bodies.py) come as graphs of a dozen kinds of operation; written down as
classes they would be three long files that say the same. `pipeline.training.pack` makes the steps of such a graph and
writes them to `assets/bodies.json`; here they are run by torch, in `compiled.py` by OpenVINO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Step(NamedTuple):
    """One operation. kind: "conv", "prelu", "relu", "add", "pad", "pool", "resize", "rows", "concat" or "sigmoid".

    of: which steps' results it takes, 0 the picture, i the i-th step's. size: of a conv (in, out, high, wide of its
    kernel, groups); of a resize (high, wide); of rows their length; of a prelu its channels. stride: of conv and pool.
    pad: zeros on the (left, right, above, below), of kind "pad" also (front, back) of the channels. relu: what follows
    a conv or an add: "", "relu" or "relu6".
    """

    kind: str
    of: tuple[int, ...]
    size: tuple[int, ...] = ()
    stride: int = 1
    pad: tuple[int, ...] = ()
    relu: str = ""

    @classmethod
    def read(cls, entry: dict[str, Any]) -> Step:
        """From JSON, where what is as by default is left out."""
        given: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in entry.items()}
        return cls(**given)


class StepNet(nn.Module):
    """Pictures (B, 3, side, side) -> the results of the steps in `outputs`.

    side: pixels. span: what 0..255 becomes, (0, 1) or (-1, 1).
    """

    def __init__(self, steps: Sequence[Step], outputs: Sequence[int], side: int, span: tuple[float, float]) -> None:
        super().__init__()
        self.steps, self.outputs, self.side, self.span = tuple(steps), tuple(outputs), side, span
        self.layers = nn.ModuleDict()
        for i, step in enumerate(self.steps, 1):
            if step.kind == "conv":
                c_in, c_out, high, wide, groups = step.size
                self.layers[str(i)] = nn.Conv2d(c_in, c_out, (high, wide), step.stride, groups=groups)
            elif step.kind == "prelu":
                self.layers[str(i)] = nn.PReLU(step.size[0])
        self.requires_grad_(False).eval()

    @classmethod
    def read(cls, entry: dict[str, Any]) -> StepNet:
        return cls([Step.read(each) for each in entry["steps"]], entry["outputs"], entry["side"], tuple(entry["span"]))

    @torch.no_grad()
    def forward(self, rgb: Tensor) -> list[Tensor]:
        """rgb: 0..255."""
        low, high = self.span
        last_use = {source: i for i, step in enumerate(self.steps, 1) for source in step.of}
        found: dict[int, Tensor] = {0: rgb * ((high - low) / 255) + low}
        for i, step in enumerate(self.steps, 1):
            found[i] = self._run(i, step, [found[source] for source in step.of])
            for source in step.of:
                if last_use[source] == i and source not in self.outputs:
                    found.pop(source, None)
        return [found[i] for i in self.outputs]

    def _run(self, i: int, step: Step, given: list[Tensor]) -> Tensor:
        x = given[0]
        if step.kind == "conv":
            return _active(self.layers[str(i)](F.pad(x, step.pad) if any(step.pad) else x), step.relu)
        if step.kind == "prelu":
            return self.layers[str(i)](x)
        if step.kind == "relu":
            return F.relu(x)
        if step.kind == "add":
            return _active(x + given[1], step.relu)
        if step.kind == "pad":
            return F.pad(x, step.pad)
        if step.kind == "pool":
            return F.max_pool2d(x, step.stride)
        if step.kind == "resize":
            return F.interpolate(x, step.size, mode="bilinear")
        if step.kind == "rows":  # every cell's numbers, cell by cell, in rows
            return x.permute(0, 2, 3, 1).reshape(len(x), -1, step.size[0])
        if step.kind == "concat":
            return torch.cat(given, 1)
        assert step.kind == "sigmoid", step.kind
        return x.sigmoid()


def _active(x: Tensor, relu: str) -> Tensor:
    return F.relu(x) if relu == "relu" else F.relu6(x) if relu == "relu6" else x
