"""ML-Mamba (arXiv 2407.19832): two image towers, a connector that scans patches both ways, a Mamba-2 language model.

Frame by frame, with no text between and none before: the language model has no positions and no attention, so all it
knows of the video is one state of constant size. The published model saw one picture; a stream of them is an extension.

    visual tokens = projector(LayerNorm(scan blocks(gelu(mlp(features)))))       closed inside one frame
    x <- x + Mamba2(RMSNorm x)                                                    per language layer, nothing else
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gpu.dispatch import kernels_for
from pipeline.layers.bimamba2 import BidirectionalMamba2
from pipeline.layers.mamba2 import Mamba2Mixer, MixerConfig, MixerState
from pipeline.layers.norms import RMSNorm
from pipeline.models.eyes import Eyes
from pipeline.models.fields import demand, only
from pipeline.models.native import NativeForm, fitted, newest
from pipeline.models.prompts import ZephyrPrompt
from pipeline.models.sequence import SequenceModel, tokenizer_of
from pipeline.models.sequence_golden import Keys, Script, SequenceGolden
from pipeline.models.sequence_net import KeySizes, View
from pipeline.models.system import Checkpoint, Config, Golden, Row, Sizes, System
from pipeline.stream import UserError
from pipeline.towers.pixels import squashed
from pipeline.towers.siglip_dino import NEVER_READ, Shapes, ViT, ViTConfig, tower_pixels

EPS = 1e-5  # of every norm
HEADS = {"dino": 16, "siglip": 16}  # of the published towers: no tensor's shape tells
TOWERS = tuple(f"{name}_featurizer" for name in HEADS)
PICTURE = 384  # pixels of a published tower's side
PICTURES_PER_CALL = 16  # of the towers
PICTURES_KEPT = 16  # for questions about an earlier second
ABOUT = (
    "Each picture becomes 729 tokens that pass through one recurrent state of constant size. It was trained on one "
    "picture and 2,048 tokens: a stream of them is more than it ever saw."
)
LM, CONNECTOR = "llm_backbone.backbone.", "bidirectional_mamba."


@dataclass(frozen=True)
class MLMambaConfig:
    """Sizes, read from the weights' shapes: the published config.json holds none."""

    features: int  # channels of both towers together
    mixer: MixerConfig
    layers: int
    blocks: int  # of the connector
    vocab: int
    towers: tuple[ViTConfig, ...]  # of TOWERS, in order; empty: features come ready made

    @classmethod
    def from_shapes(cls, shapes: Shapes, config: dict[str, Any]) -> MLMambaConfig:
        """shapes: of every tensor, by key. Groups of B and C cannot be told from shapes: 1 unless the config says."""
        ssm = config.get("llm", {}).get("ssm_cfg", {})
        first = f"{LM}layers.0.mixer."
        vocab, width = shapes[f"{LM}embedding.weight"]
        inner, heads = shapes[first + "norm.weight"][0], shapes[first + "A_log"][0]
        channels, _, d_conv = shapes[first + "conv1d.weight"]
        groups = ssm.get("ngroups", 1)
        mixer = MixerConfig(
            d_model=width,
            d_state=(channels - inner) // (2 * groups),
            d_conv=d_conv,
            expand=inner // width,
            headdim=inner // heads,
            ngroups=groups,
            norm_eps=EPS,
            ssd_block=ssm.get("chunk_size", 256),
        )
        return cls(
            features=shapes["mlp.0.weight"][1],
            mixer=mixer,
            layers=_count(shapes, LM + "layers"),
            blocks=_count(shapes, CONNECTOR + "layers"),
            vocab=vocab,
            towers=towers_of(shapes, config),
        )


def _count(shapes: Shapes, stem: str) -> int:
    return len({m[1] for key in shapes if (m := re.match(re.escape(stem) + r"\.(\d+)\.", key))})


def towers_of(shapes: Shapes, config: dict[str, Any]) -> tuple[ViTConfig, ...]:
    found = []
    for name, heads in HEADS.items():
        stem = f"{name}_featurizer."
        own = {key.partition(stem)[2]: shape for key, shape in shapes.items() if stem in key}
        if own:
            found.append(ViTConfig.from_shapes(own, config.get(name, {}).get("num_heads", heads)))
    return tuple(found)


class Towers(nn.Module):
    """Both image towers. Key names: `dino_featurizer.`, `siglip_featurizer.`, then timm's."""

    def __init__(self, configs: tuple[ViTConfig, ...]):
        super().__init__()
        self.dino_featurizer, self.siglip_featurizer = (ViT(cfg) for cfg in configs)

    def forward(self, dino_NCHW: Tensor, siglip_NCHW: Tensor) -> Tensor:
        """Patch features (N, L, D of both) of the same pictures, each normalised as its tower wants it."""
        return torch.cat([self.dino_featurizer(dino_NCHW), self.siglip_featurizer(siglip_NCHW)], dim=-1)


class SwiGLU(nn.Module):
    """The connector's feed-forward part, with biases and without widening."""

    def __init__(self, width: int):
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if kernels := kernels_for(x):
            return self.w3(kernels.swiglu(self.w1(x), self.w2(x)))
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class ScanBlock(nn.Module):
    """One block of the connector: the mixer has no norm in front of it."""

    def __init__(self, cfg: MixerConfig):
        super().__init__()
        self.mixer, self.mlp = BidirectionalMamba2(cfg), SwiGLU(cfg.d_model)
        self.norm = nn.LayerNorm(cfg.d_model, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(x)
        return x + self.mlp(self.norm(x))


class LanguageLayer(nn.Module):
    """Pre-norm residual Mamba-2 mixer; the residual stream is in fp32 or better whatever the weights are in."""

    def __init__(self, cfg: MixerConfig):
        super().__init__()
        self.norm, self.mixer = RMSNorm(cfg.d_model, EPS), Mamba2Mixer(cfg)

    def forward(self, x: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        norm, narrow = self.norm, self.norm.weight.dtype
        kernels = kernels_for(x)
        n = kernels.rms_norm(x, norm.weight, norm.eps, narrow) if kernels else norm(x).to(narrow)
        return self.mixer(n, state, x)


class Connector(nn.Module):
    """What the published keys call `bidirectional_mamba`."""

    def __init__(self, cfg: MLMambaConfig):
        super().__init__()
        self.layers = nn.ModuleList(ScanBlock(cfg.mixer) for _ in range(cfg.blocks))
        self.norm_f = nn.LayerNorm(cfg.mixer.d_model, eps=EPS)


class Projector(nn.Module):
    """From the connector into the language model."""

    def __init__(self, width: int):
        super().__init__()
        self.projector = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, width)
        )


class Words(nn.Module):
    """What the published keys call `llm_backbone.backbone`: Mamba-2 without its head."""

    def __init__(self, cfg: MLMambaConfig):
        super().__init__()
        width = cfg.mixer.d_model
        self.embedding = nn.Embedding(cfg.vocab, width)
        self.layers = nn.ModuleList(LanguageLayer(cfg.mixer) for _ in range(cfg.layers))
        self.norm_f = RMSNorm(width, EPS)


class LanguageModel(nn.Module):
    """What the published keys call `llm_backbone`; the head is the embedding."""

    def __init__(self, cfg: MLMambaConfig):
        super().__init__()
        self.backbone = Words(cfg)
        self.lm_head = nn.Linear(cfg.mixer.d_model, cfg.vocab, bias=False)
        self.lm_head.weight = self.backbone.embedding.weight


class MLMamba(nn.Module):
    """The network; keys are `<part of the published pickle>.<key in it>`."""

    def __init__(self, cfg: MLMambaConfig):
        super().__init__()
        self.cfg, width = cfg, cfg.mixer.d_model
        self.towers = Towers(cfg.towers) if cfg.towers else None
        self.mlp = nn.Sequential(nn.Linear(cfg.features, width), nn.GELU())
        self.bidirectional_mamba, self.projector = Connector(cfg), Projector(width)
        self.llm_backbone = LanguageModel(cfg)

    keys = KeySizes(0, 0, 0)  # nothing attends

    @property
    def words(self) -> Words:
        return self.llm_backbone.backbone

    def connect(self, features_NLD: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        """Visual tokens (N, L, D) of each frame's patch features. hidden: if given, collects what lies between."""
        x = self.mlp(features_NLD)
        for part in [nn.Identity(), *self.bidirectional_mamba.layers, self.bidirectional_mamba.norm_f]:
            x = part(x)
            if hidden is not None:
                hidden.append(x)
        return self.projector.projector(x)

    def embed(self, ids_T: Tensor) -> Tensor:
        """(1, T, D)"""
        return self.words.embedding(ids_T)[None]

    def start(self) -> tuple[MixerState, ...]:
        """The state before the first token: one MixerState per layer."""
        return tuple(layer.mixer.start() for layer in cast(Sequence[LanguageLayer], self.words.layers))

    def forward(
        self,
        x_1TD: Tensor,
        states: tuple[MixerState, ...],
        place: int | Tensor,
        view: View,
        hidden: list[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[MixerState, ...]]:
        """The residual stream after T more tokens and the states after them; `place` and `view` mean nothing to it.

        hidden: if given, collects the stream before and after every layer.
        """
        x_1TD, after = x_1TD.to(torch.promote_types(x_1TD.dtype, torch.float32)), []
        if hidden is not None:
            hidden.append(x_1TD)
        for layer, state in zip(self.words.layers, states):
            x_1TD, state = layer(x_1TD, state)
            after.append(state)
            if hidden is not None:
                hidden.append(x_1TD)
        return x_1TD, tuple(after)

    def normed(self, x: Tensor) -> Tensor:
        """The stream after the last norm, in the weights' type."""
        return self.words.norm_f(x).to(self.words.norm_f.weight.dtype)

    def logits(self, x: Tensor) -> Tensor:
        """Over all rows of the embedding, its padding included, as published."""
        return self.llm_backbone.lm_head(self.normed(x))


class MLMambaGolden(SequenceGolden):
    """A golden folder of ML-Mamba: the same text behind one frame ("native.") and behind all ("video.")."""

    before_question = "state_before_text."

    def __init__(self, net: MLMamba, expected: Mapping[str, Tensor]):
        features = expected["patch_features"].to(next(net.mlp.parameters()))
        hidden: list[Tensor] = []
        tokens = net.connect(features, hidden)
        mlp, *blocks, norm = hidden
        tower = {"connector.mlp": mlp, "connector.norm": norm, "connector.out": tokens}
        tower |= {f"connector.block.{n}": block for n, block in enumerate(blocks)}
        text = expected["input_ids"][0].tolist()
        scripts = [
            Script(name, [], [[]] * frames, [[]] * frames, text)
            for name, frames in (("native.", 1), ("video.", len(features)))
        ]
        needed = net.cfg.mixer.d_conv - 1  # the reference keeps one row more than continuing takes
        trimmed = {n: t[..., -needed:] if n.endswith(".conv") else t for n, t in expected.items()}
        super().__init__(net, trimmed, scripts, tower, tokens)

    def carried(self, states: tuple[MixerState, ...], keys: Keys) -> dict[str, Tensor]:
        out = {f"{n}.conv": state.conv.transpose(1, 2) for n, state in enumerate(states)}
        return out | {f"{n}.ssm": state.ssm for n, state in enumerate(states)}


class TowersGolden(Golden):
    """A golden folder of the two image towers alone; pictures are cut into any groups."""

    kinds = ("pictures",)

    def __init__(self, net: Towers, expected: Mapping[str, Tensor]):
        self.net, self.expected = net, expected
        weight = net.dino_featurizer.pos_embed
        self.pixels = [expected[f"pixel_values.{name}"].to(weight) for name in HEADS]

    @torch.no_grad()
    def whole(self) -> dict[str, Tensor]:
        return self._seen(*self.pixels)

    @torch.no_grad()
    def cut(self, kind: str, sizes: Sizes) -> dict[str, Tensor]:
        lengths = sizes(len(self.pixels[0]))
        parts = [self._seen(*group) for group in zip(*(pixels.split(lengths) for pixels in self.pixels))]
        whole = [name for name in parts[0] if name != "dino.pos_embed_resampled"]
        return {name: torch.cat([part[name] for part in parts]) for name in whole}

    def _seen(self, *pixels: Tensor) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        features = []
        for name, tower, own in zip(HEADS, (self.net.dino_featurizer, self.net.siglip_featurizer), pixels):
            hidden: list[Tensor] = []
            features.append(tower(own, hidden))
            out |= {f"{name}.hidden.{n}": x for n, x in enumerate(hidden)} | {f"{name}.features": features[-1]}
        grid = [side // self.net.dino_featurizer.cfg.patch for side in pixels[0].shape[2:]]
        out["dino.pos_embed_resampled"] = self.net.dino_featurizer.positions(*grid)
        both = torch.cat(features, dim=-1)
        return out | {"patch_features": both, "fp64.patch_features": both}


def _side(towers: Towers) -> int:
    side = round(towers.siglip_featurizer.cfg.table * towers.siglip_featurizer.cfg.patch)
    return PICTURE if side == PICTURE // 14 * 14 else side  # the last 6 of 384 pixels are never read


def _eyes(net: MLMamba, towers: Towers) -> Eyes:
    """Both towers and the connector, frame by frame."""
    like, side = next(net.mlp.parameters()), _side(towers)

    def see(dino_NCHW: Tensor, siglip_NCHW: Tensor) -> Tensor:
        return net.connect(towers(dino_NCHW, siglip_NCHW))

    return Eyes(
        lambda frames: tower_pixels(frames, side, like), see, like.device, long_side=768, per_call=PICTURES_PER_CALL
    )


def _recognises(config: Config) -> bool:
    return isinstance(config.get("model"), dict) and "arch_specifier" in config["model"]


def _measured(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Config:
    if f"{LM}embedding.weight" not in shapes:
        raise UserError(
            "The folder holds no safetensors of the language model, so it was not loaded; "
            "its published weights are a pickle: make the folder with `python -m pipeline convert`."
        )
    return config | {"sizes": MLMambaConfig.from_shapes(dict(shapes), config)}


def _build(config: Config) -> MLMamba:
    demand(
        config["model"],
        "model",
        arch_specifier="no-align+fused-gelu-mlp",
        llm_backbone_id="mamba2-2.7b",
        vision_backbone_id="dinosiglip-vit-so-384px",
        image_resize_strategy="resize-naive",
    )
    words = config.get("llm") or {}
    demand(words, "llm", d_intermediate=0, rms_norm=True, tie_embeddings=True)
    ssm = words.get("ssm_cfg") or {}
    only(ssm, "llm.ssm_cfg", ("layer", "d_state", "d_conv", "expand", "headdim", "ngroups", "chunk_size"))
    demand(ssm, "llm.ssm_cfg", layer="Mamba2")
    if words.get("attn_layer_idx"):
        raise UserError("The model's config has attention layers, so it was not loaded; use the published ML-Mamba.")
    return MLMamba(config["sizes"])


def _our_key(key: str) -> str | None:
    if key.startswith(TOWERS):
        tower, _, rest = key.partition(".")
        return None if re.match(NEVER_READ, rest) else f"towers.{tower}.{rest}"
    return key


def _unused(config: Config) -> tuple[str, ...]:
    """The towers' last blocks."""
    depths = [(name, tower.depth) for name, tower in zip(TOWERS, config["sizes"].towers)]
    return tuple(f"towers.{name}.blocks.{depth - 1}" for name, depth in depths)


def _wrap(net: MLMamba, of: Checkpoint) -> SequenceModel:
    if net.towers is None:
        raise UserError(
            "The folder lacks the two image towers, so the model cannot watch and was not loaded; "
            "make it with `python -m pipeline convert huangwenjun1994/ML-Mamba FOLDER`."
        )
    return model_of(net, net.towers, tokenizer_of(of.folder), of.name, of.options.mode == "streamed")


def model_of(net: MLMamba, towers: Towers, tokenizer: Any, name: str, streamed: bool = False) -> SequenceModel:
    """The network with its eyes, its prompt and its native form."""
    return SequenceModel(
        net,
        _eyes(net, towers),
        ZephyrPrompt(tokenizer),
        tokenizer,
        name=name,
        about=ABOUT,
        native=NativeForm(PICTURES_KEPT, newest, fitted(squashed, _side(towers)), "one"),
        streamed=streamed,
    )


ML_MAMBA = System(
    name="ML-Mamba",
    recognises=_recognises,
    build=_build,
    our_key=_our_key,
    measured=_measured,
    beside=tuple(f"{name}.safetensors" for name in TOWERS),
    unused=_unused,
    wrap=_wrap,
    golden=MLMambaGolden,
    rows=(
        Row(
            "`huangwenjun1994/ML-Mamba`, converted: 2.7 B and two towers",
            "GPU, bf16",
            "7.2 GB",
            "170 MB",
            "0.7 GB",
            "4.8 GB",
        ),
    ),
)


def _no_model(net: Towers, of: Checkpoint) -> SequenceModel:
    raise UserError("The folder holds two image towers and no language model, so nothing was loaded; use a whole one.")


ML_MAMBA_TOWERS = System(  # what golden folders hold of them
    name="ML-Mamba's towers",
    recognises=lambda config: set(HEADS) <= set(config),
    build=lambda config: Towers(config["towers"]),
    our_key=lambda key: None if re.match(NEVER_READ, key.partition(".")[2]) else key,
    measured=lambda config, shapes: config | {"towers": towers_of(dict(shapes), config)},
    wrap=_no_model,
    golden=TowersGolden,
)
