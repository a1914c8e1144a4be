"""The systems that come with the code: the embedded Vamba and its transformer twin, from packed files in `assets/`."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pipeline.heap import give_back
from pipeline.layers.vamba import Vamba
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.embedded_net import EmbeddedConfig, EmbeddedNet
from pipeline.models.embedded_twin import EmbeddedTwin
from pipeline.models.system import Row, System
from pipeline.options import ModelOptions
from pipeline.questions.router import Router
from pipeline.senses.chosen import OF_PICTURES
from pipeline.senses.sensed import Senses
from pipeline.timeline.ratios import Ratios
from pipeline.towers.frame_tower import ASSETS, FrameTower
from pipeline.weights.quant import load_trained
from pipeline.weights.shipped import check_files, folded, lm_weights


@dataclass(eq=False)
class Alike:
    """What the model and its twin have alike, held once while one of them lives. words: the language model's table of
    words (V, D), which no training touched."""

    tower: FrameTower
    senses: Senses
    router: Router | None
    words: Tensor | None = None


_alike: WeakValueDictionary[object, Alike] = WeakValueDictionary()
_loading = Lock()


def load_embedded(
    twin: bool = False,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    senses: Collection[str] = OF_PICTURES,
    options: ModelOptions | None = None,
    assets: Path = ASSETS,
) -> EmbeddedModel:
    """The shipped small Vamba or its twin. dtype is the text column's: by default bf16 where the machine computes in
    it, else fp32; the video side always runs in fp32, so that hours of small updates are kept. UserError if a file is
    missing. senses: names of those that are wanted.
    """
    from transformers import AutoTokenizer

    name, device = "twin" if twin else "embedded", torch.device(device)
    files = (f"{name}.json", f"{name}.safetensors", "towers.safetensors", "lm-00001-of-00002.safetensors")
    check_files(assets, files)
    config = json.loads((assets / f"{name}.json").read_text())
    trained = load_trained(assets / f"{name}.safetensors")
    with _loading:
        alike = _parts(assets, device, frozenset(senses))
    net = merged(EmbeddedConfig.from_dict(config), lm_weights(assets), trained, config["lora_scale"]).to(device)
    _text_dtype(net.vamba, dtype or _quick_dtype(device))
    with _loading:
        _share_words(net.vamba, alike)
    tokenizer = AutoTokenizer.from_pretrained(assets)
    del trained
    give_back()
    kind = EmbeddedTwin if twin else EmbeddedModel
    model = kind(net, alike.tower, tokenizer, None, alike.senses, None if options is None else options.endless)
    if not twin and alike.senses.places is not None:
        model.ratios = Ratios.load(assets)
    model.router, model.alike = alike.router, alike
    return model


def _parts(assets: Path, device: torch.device, senses: frozenset[str]) -> Alike:
    """Those that a living model has, else new ones."""
    key = assets, device, senses
    if (there := _alike.get(key)) is None:
        there = _alike[key] = Alike(
            FrameTower.load(assets / "towers.safetensors", device, _quick_dtype(device)),
            Senses.load(assets, device, senses),
            Router.load(assets) if (assets / "router.safetensors").is_file() else None,
        )
    return there


def _share_words(vamba: Vamba, alike: Alike) -> None:
    """Where the table of words is the same one, it is held once."""
    own = vamba.model.embed_tokens.weight.detach()
    if alike.words is None:
        alike.words = own
    elif alike.words.dtype == own.dtype and torch.equal(alike.words, own):
        vamba.model.embed_tokens.weight = torch.nn.Parameter(alike.words, requires_grad=False)
        vamba.lm_head.weight = vamba.model.embed_tokens.weight


def merged(cfg: EmbeddedConfig, lm: dict[str, Tensor], trained: dict[str, Tensor], lora_scale: float) -> EmbeddedNet:
    """The network in fp32, from `weights.shipped.folded`; `lm` is emptied."""
    state = folded(lm, trained, lora_scale)
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


EMBEDDED = System(
    name="embedded",
    shipped=partial(load_embedded, False),
    partner=lambda config: "embedded-twin",
    options=("endless",),
    rows=(
        Row(
            "`embedded`: Vamba, 135 M language model, 5 layers cross-attend",
            runs_on="2 CPU cores",
            weights="in `assets/`",
            state="1.2 MB",
            minute="2.4 MB",
            hour="141 MB",
        ),
        Row(
            "`--endless 10`",
            runs_on="and disk",
            weights="same",
            state="1.2 MB",
            minute="2.4 MB",
            hour="49 MB after 8 h",
        ),
    ),
)
TWIN = System(
    name="embedded-twin",
    shipped=partial(load_embedded, True),
    partner=lambda config: "embedded",
    options=("endless",),
    rows=(
        Row(
            "`embedded-twin`: the same without mixers, full self-attention",
            runs_on="2 CPU cores",
            weights="in `assets/`",
            state="0.01 MB",
            minute="13.9 MB",
            hour="oldest frames drop after 13 minutes",
        ),
    ),
)
