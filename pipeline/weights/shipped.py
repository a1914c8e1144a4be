"""The embedded models as they ship: packed files in `assets/` become a network, a tower and a tokenizer."""

from __future__ import annotations

import contextlib
import ctypes
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.layers.vamba import Vamba
from pipeline.models.embedded import EmbeddedConfig, EmbeddedModel, EmbeddedNet, EmbeddedTwin
from pipeline.stream import UserError
from pipeline.towers.efficientnet import ASSETS, FrameTower
from pipeline.weights.quant import from_file, load_trained


def load_embedded(
    twin: bool = False, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, assets: Path = ASSETS
) -> EmbeddedModel:
    """The shipped small Vamba or its twin. dtype is the text column's: by default bf16 where the machine computes in
    it, else fp32; the video side always runs in fp32, so that hours of small updates are kept. UserError if a file is
    missing.
    """
    from transformers import AutoTokenizer

    name, device = "twin" if twin else "embedded", torch.device(device)
    for file in (f"{name}.json", f"{name}.safetensors", "towers.safetensors", "lm-00001-of-00002.safetensors"):
        if not (assets / file).is_file():
            raise UserError(
                f"The embedded model's file {file} is missing, so it cannot start; "
                "fetch the repository again with its large files."
            )
    config = json.loads((assets / f"{name}.json").read_text())
    trained = load_trained(assets / f"{name}.safetensors")
    tower, weights = FrameTower.load(assets / "towers.safetensors", device, _quick_dtype(device)), lm_weights(assets)
    net = merged(EmbeddedConfig.from_dict(config), weights, trained, config["lora_scale"]).to(device)
    _text_dtype(net.vamba, dtype or _quick_dtype(device))
    tokenizer = AutoTokenizer.from_pretrained(assets)
    del trained, weights
    _give_back()
    return (EmbeddedTwin if twin else EmbeddedModel)(net, tower, tokenizer)


def _give_back() -> None:
    """Return freed memory to the system: after unpacking, glibc would keep 0.8 GB of it for itself."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def lm_weights(assets: Path = ASSETS) -> dict[str, Tensor]:
    """The shipped language model's weights in fp32."""
    tensors: dict[str, Tensor] = {}
    for shard in sorted(assets.glob("lm-*.safetensors")):
        tensors |= load_file(shard)
    return from_file(tensors)


def merged(cfg: EmbeddedConfig, lm: dict[str, Tensor], trained: dict[str, Tensor], lora_scale: float) -> EmbeddedNet:
    """The network in fp32, LoRA folded into the language model's weights (W + scale * B A, arXiv 2106.09685, eq. 3).

    `lm` is emptied: holding the unmerged weights as well would cost another 0.4 GB at the peak of loading.
    """
    state = {f"vamba.{name}": lm.pop(name) for name in list(lm)}
    for name, tensor in trained.items():
        if name.endswith(".lora_a"):
            weight = name.replace(".lora_a", ".weight")
            state[weight] = state[weight] + lora_scale * trained[name.replace(".lora_a", ".lora_b")] @ tensor
        elif not name.endswith(".lora_b"):
            state[name] = tensor
    with torch.device("meta"):
        net = EmbeddedNet(cfg)
    state["vamba.lm_head.weight"] = state["vamba.model.embed_tokens.weight"]
    net.load_state_dict(state, assign=True)
    net.vamba.lm_head.weight = net.vamba.model.embed_tokens.weight
    return net.requires_grad_(False).eval()


def _text_dtype(vamba: Vamba, dtype: torch.dtype) -> None:
    """The text column in `dtype`; the video column (mixers, its norms, K/V projections) stays in fp32."""
    vamba.model.embed_tokens.to(dtype)
    vamba.model.norm.to(dtype)
    vamba.lm_head.weight = vamba.model.embed_tokens.weight
    for layer in vamba.layers:
        parts = [layer.input_layernorm, layer.post_attention_layernorm, layer.self_attn, layer.mlp]
        if layer.cross_attn is not None:
            parts += [layer.cross_attn.q_proj, layer.cross_attn.o_proj]
        for part in parts:
            part.to(dtype)


def _quick_dtype(device: torch.device) -> torch.dtype:
    """bf16 on GPUs and on CPUs that compute in it, where it halves time and memory; elsewhere it is slow."""
    if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32
