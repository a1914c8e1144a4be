"""The frame tower's networks in OpenVINO, where it is installed: quicker on a CPU that computes in fp32.

The same weights, the same fp32 and the same steps as `efficientnet.py`, `nanodet.py` and `steps.py`, written down as a
graph that OpenVINO compiles: layouts chosen, weights packed and activations fused, which torch does anew in every call.
Every picture is a request of its own, so that what is found in it does not depend on the others; as many requests run
side by side as torch has threads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.towers.efficientnet import EfficientNetLite, same_padding
from pipeline.towers.nanodet import LEAK, RGB_MEAN_STD, NanoDet
from pipeline.towers.steps import Step, StepNet

SHAPES = 4  # compiled detectors that are kept: one for each shape of picture
OPS = "openvino.opset15"
LAYERED = ("conv", "prelu")  # steps with weights
Node = Any  # openvino ships no types for its graph's functions


def installed() -> bool:
    return find_spec("openvino") is not None


def library(part: str = "openvino") -> Any:
    """OpenVINO, or a part of it, without the package that counts its users: being imported is enough for that one to
    write an id into the home folder, and OpenVINO has a stand-in for where it is missing."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module(part)


class CompiledTower:
    """Both networks of a `FrameTower`, for fp32 on a CPU. Pictures: uint8 RGB (B, h, w, 3), contiguous."""

    def __init__(self, classifier: EfficientNetLite, detector: NanoDet) -> None:
        self._classifier = Compiled(_classifier_graph(classifier))
        self._detector = lru_cache(SHAPES)(lambda high, wide: Compiled(_detector_graph(detector, high, wide)))

    def classify(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """What `EfficientNetLite` gives: head map (B, 1280, 7, 7) and logits (B, 1000)."""
        head, logits = self._classifier(rgb)
        return head, logits

    def maps(self, rgb: Tensor) -> list[Tensor]:
        """What `NanoDet.maps` gives."""
        return self._detector(*rgb.shape[1:3])(rgb)


class CompiledSteps:
    """A `StepNet` for fp32 on a CPU."""

    def __init__(self, net: StepNet) -> None:
        self._net = Compiled(_steps_graph(net))

    def __call__(self, rgb: Tensor) -> list[Tensor]:
        """What the net gives; rgb: uint8 (B, 3, side, side)."""
        return self._net(rgb.permute(0, 2, 3, 1).contiguous())


class Compiled:
    """A graph as a queue of requests, for one caller at a time: models share their towers.

    One thread a request: side by side they use the cores better than one on all of them.
    """

    def __init__(self, graph: Node) -> None:
        openvino, threads = library(), torch.get_num_threads()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": threads, "INFERENCE_NUM_THREADS": threads}
        self._queue = openvino.AsyncInferQueue(openvino.Core().compile_model(graph, "CPU", settings), threads)
        self._turn = Lock()

    def __call__(self, rgb: Tensor) -> list[Tensor]:
        """Every output (B, ...) of every picture."""
        found: list[list[np.ndarray]] = [[] for _ in range(len(rgb))]

        def keep(request: Node, i: int) -> None:
            found[i] = [output.data.copy() for output in request.output_tensors]

        with self._turn:
            self._queue.set_callback(keep)
            for i, picture in enumerate(rgb.numpy()):
                self._queue.start_async({0: picture[None]}, userdata=i, share_inputs=True)
            self._queue.wait_all()
        return [torch.from_numpy(np.concatenate(parts)) for parts in zip(*found, strict=True)]


# --- the graphs ------------------------------------------------------------------------------------------------------


def _pictures(high: int, wide: int, mean: Sequence[float], std: Sequence[float]) -> tuple[Node, Node]:
    """The input, and the same as scaled floats (1, 3, high, wide)."""
    ops = library(OPS)

    given = ops.parameter([1, high, wide, 3], np.uint8)
    scaled = ops.divide(
        ops.subtract(ops.convert(given, "f32"), np.asarray(mean, np.float32)), np.asarray(std, np.float32)
    )
    return given, ops.transpose(scaled, np.array([0, 3, 1, 2]))


def _conv(x: Node, conv: nn.Conv2d, begin: Sequence[int], end: Sequence[int]) -> Node:
    """begin: pixels of padding above and left; end: below and right."""
    ops = library(OPS)

    weight, stride = conv.weight.detach().float().contiguous().numpy(), list(conv.stride)
    if conv.groups > 1:  # every channel by itself
        out = ops.group_convolution(x, weight[:, None], stride, list(begin), list(end), [1, 1])
    else:
        out = ops.convolution(x, weight, stride, list(begin), list(end), [1, 1])
    assert conv.bias is not None
    return ops.add(out, conv.bias.detach().float().numpy()[None, :, None, None])


def _classifier_graph(net: EfficientNetLite, side: int = 224) -> Node:
    openvino, ops = library(), library(OPS)

    def conv(x: Node, layer: Any, relu6: bool = True) -> Node:
        high, wide = same_padding(layer, x.shape[-2:])
        out = _conv(x, layer, (high[0], wide[0]), (high[1], wide[1]))
        return ops.clamp(out, 0.0, 6.0) if relu6 else out

    given, x = _pictures(side, side, [127.0] * 3, [128.0] * 3)
    x = conv(x, net.stem)
    block: Any
    for block in net.blocks:
        wide = x if block.expand is None else conv(x, block.expand)
        out = conv(conv(wide, block.depthwise), block.project, relu6=False)
        x = ops.add(out, x) if block.adds else out
    head = conv(x, net.head)
    pooled = ops.reduce_mean(head, np.array([2, 3]), keep_dims=False)
    weight, bias = (part.detach().float().numpy() for part in (net.fc.weight, net.fc.bias))
    return openvino.Model([head, ops.add(ops.matmul(pooled, weight, False, True), bias)], [given])


def _detector_graph(net: NanoDet, high: int, wide: int) -> Node:
    openvino, ops = library(), library(OPS)

    def conv(x: Node, layer: Any, leaky: bool = True) -> Node:
        out = _conv(x, layer, layer.padding, layer.padding)
        return ops.prelu(out, np.asarray([LEAK], np.float32)) if leaky else out

    def staged(x: Node, stage: Any) -> Node:
        x = entered = conv(x, stage.enter)
        for block in stage.blocks:
            first = conv(x, block.first)
            x = ops.concat([conv(first, block.second), first], 1)
        return ops.concat([conv(x, stage.leave), entered], 1)

    def like(x: Node, target: Node) -> Node:
        size = np.array(list(target.shape)[-2:])
        return ops.interpolate(x, size, "linear_onnx", "sizes", axes=np.array([2, 3]))  # half-pixel centres

    given, x = _pictures(high, wide, *RGB_MEAN_STD)
    x = ops.max_pool(conv(x, net.stem), [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
    x = staged(x, net.stages[0])
    found = []
    for stage, lateral in zip(net.stages[1:], net.lateral, strict=True):
        x = staged(x, stage)
        found.append(conv(x, lateral, leaky=False))
    fine, middle, coarse = found
    levels = NanoDet.mix(fine, middle, coarse, like)
    outputs = [conv(conv(x, t), p, leaky=False) for t, p, x in zip(net.tower, net.predict, levels, strict=True)]
    return openvino.Model(outputs, [given])


def _steps_graph(net: StepNet) -> Node:
    openvino = library()
    low, high = net.span
    std = 255 / (high - low)
    given, picture = _pictures(net.side, net.side, [-low * std] * 3, [std] * 3)
    found = [picture]
    for i, step in enumerate(net.steps, 1):
        found.append(
            _step(step, [found[source] for source in step.of], net.layers[str(i)] if step.kind in LAYERED else None)
        )
    return openvino.Model([found[i] for i in net.outputs], [given])


def _step(step: Step, given: Sequence[Node], layer: Any) -> Node:
    ops, x = library(OPS), given[0]
    if step.kind == "conv":
        left, right, above, below = step.pad or (0, 0, 0, 0)
        return _active(_conv(x, layer, (above, left), (below, right)), step.relu)
    if step.kind == "prelu":
        return ops.prelu(x, layer.weight.detach().float().numpy()[None, :, None, None])
    if step.kind == "relu":
        return ops.relu(x)
    if step.kind == "add":
        return _active(ops.add(x, given[1]), step.relu)
    if step.kind == "pad":
        left, right, above, below, front, back = step.pad
        begin, end = np.array([0, front, above, left]), np.array([0, back, below, right])
        return ops.pad(x, begin, end, "constant", np.float32(0))
    if step.kind == "pool":
        size = [step.stride, step.stride]
        return ops.max_pool(x, size, [1, 1], [0, 0], [0, 0], size).output(0)
    if step.kind == "resize":
        return ops.interpolate(x, np.array(step.size), "linear_onnx", "sizes", axes=np.array([2, 3]))
    if step.kind == "rows":
        shape = np.array([1, -1, step.size[0]])
        return ops.reshape(ops.transpose(x, np.array([0, 2, 3, 1])), shape, special_zero=False)
    if step.kind == "concat":
        return ops.concat(list(given), 1)
    assert step.kind == "sigmoid", step.kind
    return ops.sigmoid(x)


def _active(x: Node, relu: str) -> Node:
    ops = library(OPS)
    return ops.relu(x) if relu == "relu" else ops.clamp(x, 0.0, 6.0) if relu == "relu6" else x
