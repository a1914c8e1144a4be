"""The networks that find faces, palms and poses, as this project keeps them: `python -m pipeline.training.pack_bodies`.

Reads the .tflite files inside a wheel of mediapipe 0.10.21 (PyPI, Apache-2.0; `pip download --no-deps
mediapipe==0.10.21`; nothing of the package is installed or run) and writes `bodies.json` (steps, see towers/steps.py)
and `bodies.safetensors` (the files' own float16 numbers). Needs ai-edge-litert, whose schema reads the files and whose
interpreter then runs them beside ours: it prints by how much they differ.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.assets import ASSETS
from pipeline.towers.steps import StepNet


class Source(NamedTuple):
    """A file of the wheel. outputs: names of what is read. span: what 0..255 becomes (the graphs beside the files)."""

    file: str
    outputs: tuple[str, ...]
    span: tuple[float, float]


SOURCES = {
    "face": Source("face_detection/face_detection_short_range.tflite", ("regressors", "classificators"), (-1, 1)),
    "palm": Source("palm_detection/palm_detection_full.tflite", ("Identity", "Identity_1"), (0, 1)),
    # Its mask and heatmaps are left out, and with them half of its work.
    "pose": Source("pose_landmark/pose_landmark_full.tflite", ("Identity", "Identity_1", "Identity_4"), (0, 1)),
}
RELU = {0: "", 1: "relu", 3: "relu6"}  # of the schema's ActivationFunctionType
SAME = 0  # of its Padding
Step = dict[str, Any]


class Graph:
    """A .tflite file as steps and weights."""

    def __init__(self, data: bytes):
        from ai_edge_litert import schema_py_generated as schema

        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
        self.graph = self.model.subgraphs[0]
        self.kinds = {number: kind for kind, number in vars(schema.BuiltinOperator).items() if kind[0] != "_"}
        self.consts: dict[int, np.ndarray] = {}
        self.steps: list[Step] = []
        self.weights: dict[str, Tensor] = {}
        self.place = {int(self.graph.inputs[0]): 0}  # of a tensor: the step that makes it

    def read(self, outputs: tuple[str, ...]) -> list[int]:
        """Fills steps and weights with what the outputs need; their steps."""
        named = {self.graph.tensors[i].name.decode(): int(i) for i in self.graph.outputs}
        wanted, needed = [named[name] for name in outputs], []
        alive = set(wanted)
        for op in reversed(self.graph.operators):
            if alive & {int(i) for i in op.outputs}:
                needed.append(op)
                alive |= {int(i) for i in op.inputs}
        for op in reversed(needed):
            self._step(self._kind(op), op)
        return [self.place[i] for i in wanted]

    def _kind(self, op: Any) -> str:
        code = self.model.operatorCodes[op.opcodeIndex]
        return self.kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def _shape(self, tensor: int) -> list[int]:
        return [int(n) for n in self.graph.tensors[tensor].shape]

    def _const(self, tensor: int) -> np.ndarray:
        if tensor not in self.consts:
            entry = self.graph.tensors[tensor]
            kind = {0: np.float32, 1: np.float16, 2: np.int32}[entry.type]
            raw = np.asarray(self.model.buffers[entry.buffer].data, np.uint8)
            self.consts[tensor] = raw.view(kind).reshape(self._shape(tensor))
        return self.consts[tensor]

    def _step(self, kind: str, op: Any) -> None:
        given, made = [int(i) for i in op.inputs], int(op.outputs[0])
        if kind == "DEQUANTIZE":  # of weights: float16 to float32
            self.consts[made] = self._const(given[0])
            return
        step = getattr(self, f"_{kind.lower()}")(op.builtinOptions, given, made)
        step["of"] = [self.place[i] for i in given if i in self.place]
        self.steps.append({name: value for name, value in step.items() if value not in ("", [])})
        self.place[made] = len(self.steps)

    def _keep(self, name: str, weight: np.ndarray) -> None:
        self.weights[f"layers.{len(self.steps) + 1}.{name}"] = torch.from_numpy(weight.copy()).half().contiguous()

    def _conv_2d(self, options: Any, given: list[int], made: int) -> Step:
        return self._conv(options, given, made, self._const(given[1]).transpose(0, 3, 1, 2), 1)

    def _depthwise_conv_2d(self, options: Any, given: list[int], made: int) -> Step:
        kernel = self._const(given[1]).transpose(3, 0, 1, 2)
        return self._conv(options, given, made, kernel, len(kernel))

    def _conv(self, options: Any, given: list[int], made: int, kernel: np.ndarray, groups: int) -> Step:
        self._keep("weight", kernel)
        self._keep("bias", self._const(given[2]))
        c_out, _, high, wide = kernel.shape
        stride, pad = options.strideH, []
        if options.padding == SAME:
            for n, out, side in zip(self._shape(given[0])[2:0:-1], self._shape(made)[2:0:-1], (wide, high)):
                short = max((out - 1) * stride + side - n, 0)
                pad += [short // 2, short - short // 2]
        size = [self._shape(given[0])[3], c_out, high, wide, groups]
        relu = RELU[options.fusedActivationFunction]
        return {"kind": "conv", "size": size, "stride": stride, "pad": pad if any(pad) else [], "relu": relu}

    def _prelu(self, options: Any, given: list[int], made: int) -> Step:
        self._keep("weight", self._const(given[1]).reshape(-1))
        return {"kind": "prelu", "size": [self._shape(made)[3]]}

    def _relu(self, options: Any, given: list[int], made: int) -> Step:
        return {"kind": "relu"}

    def _add(self, options: Any, given: list[int], made: int) -> Step:
        return {"kind": "add", "relu": RELU[options.fusedActivationFunction]}

    def _pad(self, options: Any, given: list[int], made: int) -> Step:
        _, rows, columns, channels = self._const(given[1]).tolist()
        return {"kind": "pad", "pad": [*columns, *rows, *channels]}

    def _max_pool_2d(self, options: Any, given: list[int], made: int) -> Step:
        assert options.filterHeight == options.filterWidth == options.strideH == options.strideW
        return {"kind": "pool", "stride": options.strideH}

    def _resize_bilinear(self, options: Any, given: list[int], made: int) -> Step:
        assert options.halfPixelCenters
        return {"kind": "resize", "size": self._shape(made)[1:3]}

    def _reshape(self, options: Any, given: list[int], made: int) -> Step:
        return {"kind": "rows", "size": [self._shape(made)[-1]]}

    def _concatenation(self, options: Any, given: list[int], made: int) -> Step:
        assert options.axis == 1
        return {"kind": "concat"}

    def _logistic(self, options: Any, given: list[int], made: int) -> Step:
        return {"kind": "sigmoid"}


def convert(wheel: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The networks' descriptions, and all their weights."""
    described: dict[str, Any] = {}
    weights: dict[str, Tensor] = {}
    with zipfile.ZipFile(wheel) as files:
        for name, source in SOURCES.items():
            graph = Graph(files.read(f"mediapipe/modules/{source.file}"))
            outputs, side = graph.read(source.outputs), graph._shape(int(graph.graph.inputs[0]))[1]
            described[name] = {"side": side, "span": list(source.span), "outputs": outputs, "steps": graph.steps}
            weights |= {f"{name}.{key}": weight for key, weight in graph.weights.items()}
    return described, weights


def differences(wheel: Path, name: str, net: StepNet, pictures: int = 4) -> list[float]:
    """The largest difference of every output from the interpreter's, in its standard deviations, on noise."""
    from ai_edge_litert.interpreter import Interpreter

    source = SOURCES[name]
    with zipfile.ZipFile(wheel) as files:
        reference = Interpreter(model_content=files.read(f"mediapipe/modules/{source.file}"))
    reference.allocate_tensors()
    entry, places = reference.get_input_details()[0]["index"], reference.get_output_details()
    indices = [next(each["index"] for each in places if each["name"] == output) for output in source.outputs]
    rgb = torch.rand(pictures, 3, net.side, net.side, generator=torch.Generator().manual_seed(0)) * 255
    wanted: list[list[np.ndarray]] = []
    for picture in rgb:
        low, high = source.span
        reference.set_tensor(entry, (picture.permute(1, 2, 0)[None] * ((high - low) / 255) + low).numpy())
        reference.invoke()
        wanted.append([reference.get_tensor(i).reshape(-1) for i in indices])
    found = [output.flatten(1).numpy() for output in net(rgb)]
    sets = [np.stack(rows) for rows in zip(*wanted, strict=True)]
    return [float(np.abs(a - b).max() / max(b.std(), 1e-6)) for a, b in zip(found, sets, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True, help="mediapipe-0.10.21-*.whl")
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    described, weights = convert(args.wheel)
    target = args.out / "bodies.safetensors"
    others = {k: w for k, w in load_file(target).items() if k.split(".")[0] not in SOURCES} if target.is_file() else {}
    save_file({k: w.clone() for k, w in others.items()} | weights, target)
    (args.out / "bodies.json").write_text(json.dumps(described, separators=(",", ":")) + "\n", encoding="utf-8")
    for name, entry in described.items():
        net = StepNet.read(entry)
        own = {k.removeprefix(f"{name}."): w for k, w in weights.items() if k.startswith(f"{name}.")}
        net.load_state_dict({k: w.float() for k, w in own.items()})
        strays = ", ".join(f"{each:.1e}" for each in differences(args.wheel, name, net))
        print(f"{name}: {sum(w.numel() for w in own.values()) / 1e6:.2f} M numbers, off by {strays} deviations")


if __name__ == "__main__":
    main()
