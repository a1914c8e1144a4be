"""Gemamba (TensorSense's gemamba-v0): VideoMamba turns closed clips of 8 frames into 8 tokens, Gemma reads them.

The prompt's beginning is fixed, clips follow it and the question comes last, so a stream's keys and values are computed
once. The published model saw one clip; a stream of clips is an extension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.gemma.configuration_gemma import GemmaConfig
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer

from pipeline.layers.rotary import rotary_tables
from pipeline.models.eyes import Eyes
from pipeline.models.fields import demand, text_fields
from pipeline.models.native import NativeForm, fitted, middles
from pipeline.models.prompts import GemmaPrompt
from pipeline.models.sequence import SequenceModel, tokenizer_of
from pipeline.models.sequence_golden import Keys, Script, SequenceGolden
from pipeline.models.sequence_net import KeySizes, View
from pipeline.models.system import Checkpoint, Config, Row, System
from pipeline.stream import Frame
from pipeline.towers.pixels import squashed_as_tensor
from pipeline.towers.videomamba import EPS, VideoMamba, VideoMambaConfig, clip_pixels

CLIPS_PER_CALL = 4  # 1,569 tokens each
PICTURES_KEPT = 64  # to choose one clip from
TEXT_ROOM = 2048  # positions kept free for the conversation when the context is filled with video
ABOUT = (
    "Clips of 8 frames become 8 tokens each, which a transformer keeps. It was trained on one clip: a stream of them "
    "is more than it ever saw, and beyond its context the oldest are dropped."
)
CLIP = -200  # stands for a clip in golden ids


class ShiftedRMSNorm(nn.Module):
    """Gemma's norm: in fp32 or better, the weight counted from 1. (transformers' would take fp64 down to fp32.)"""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return (F.rms_norm(x.to(wide), x.shape[-1:], eps=self.eps) * (1 + self.weight.to(wide))).to(x.dtype)


class Encoder(nn.Module):
    """What the published keys call `vision_tower.vision_tower`."""

    def __init__(self, cfg: VideoMambaConfig):
        super().__init__()
        self.vision_encoder = VideoMamba(cfg)


class Tower(nn.Module):
    """What the published keys call `vision_tower`."""

    def __init__(self, cfg: VideoMambaConfig):
        super().__init__()
        self.vision_tower = Encoder(cfg)


class Body(nn.Module):
    """What the published keys call `model`: Gemma, the projector and the encoder."""

    def __init__(self, cfg: GemmaConfig, eyes: VideoMambaConfig):
        super().__init__()
        width = cfg.hidden_size
        self.embed_tokens = nn.Embedding(cfg.vocab_size, width)
        self.layers = nn.ModuleList(_layer(cfg, place) for place in range(cfg.num_hidden_layers))
        self.norm = ShiftedRMSNorm(width, cfg.rms_norm_eps)
        self.mm_projector = nn.Sequential(nn.Linear(eyes.width, width), nn.GELU(), nn.Linear(width, width))
        self.vision_tower = Tower(eyes)


def _layer(cfg: GemmaConfig, place: int) -> GemmaDecoderLayer:
    layer: Any = GemmaDecoderLayer(cfg, place)  # its norms are replaced by others of the same face
    layer.input_layernorm = ShiftedRMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
    layer.post_attention_layernorm = ShiftedRMSNorm(cfg.hidden_size, cfg.rms_norm_eps)
    return layer


class Gemamba(nn.Module):
    """The network, with the published key names; the head is the embedding. Gemma's layers are transformers' own."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = GemmaConfig(**text_fields(config, "head_dim"))
        self.config._attn_implementation = "pipeline_stream"
        self.model = Body(self.config, VideoMambaConfig.from_dict(config.get("vision_encoder") or {}))

    @property
    def keys(self) -> KeySizes:
        return KeySizes(self.config.num_hidden_layers, self.config.num_key_value_heads, self.config.head_dim)

    @property
    def eyes(self) -> VideoMamba:
        return self.model.vision_tower.vision_tower.vision_encoder

    def see(self, pixels_NCFHW: Tensor) -> Tensor:
        """One token per frame (N, frames, D) of whole clips, before the embedding's scale."""
        return self.model.mm_projector(self.eyes.pooled(self.eyes.tokens(pixels_NCFHW)))

    def embed(self, ids_T: Tensor) -> Tensor:
        """(1, T, D), before the embedding's scale."""
        return self.model.embed_tokens(ids_T)[None]

    def forward(
        self, x_1TD: Tensor, states: tuple, place: int | Tensor, view: View, hidden: list[Tensor] | None = None
    ) -> tuple[Tensor, tuple]:
        """The residual stream after T more tokens, the first at `place`; `view` holds the keys before them.

        states: nothing is carried but keys. hidden: if given, collects the stream before and after every layer.
        """
        # Words and frames alike are scaled on entering, by a factor rounded to the model's type (as published).
        x_1TD = x_1TD * x_1TD.new_full((), self.config.hidden_size**0.5)
        positions = place + torch.arange(x_1TD.shape[1], device=x_1TD.device)
        rope: Any = self.config.rope_parameters  # a dict: GemmaConfig has filled it
        base = rope["rope_theta"]
        cos, sin = rotary_tables(positions, base, self.config.head_dim, x_1TD.dtype)
        if hidden is not None:
            hidden.append(x_1TD)
        for layer in self.model.layers:
            x_1TD = layer(x_1TD, attention_mask=None, position_embeddings=(cos[None], sin[None]), view=view)
            if hidden is not None:
                hidden.append(x_1TD)
        return x_1TD, states

    def start(self) -> tuple:
        """Nothing recurrent."""
        return ()

    def normed(self, x: Tensor) -> Tensor:
        return self.model.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(self.normed(x), self.model.embed_tokens.weight)


class GemambaGolden(SequenceGolden):
    """A golden folder of Gemamba: the same question behind one clip ("native.") and behind several ("clips.")."""

    at_end = "kv."

    def __init__(self, net: Gemamba, expected: Mapping[str, Tensor]):
        pixels = expected["pixel_values"].to(net.eyes.cls_token)
        hidden: list[Tensor] = []
        normed = net.eyes.tokens(pixels, hidden)
        pooled = net.eyes.pooled(normed)
        tokens = net.model.mm_projector(pooled)
        tower = {f"encoder.hidden.{n}": x for n, x in enumerate(hidden)}
        tower |= {"encoder.norm": normed, "encoder.pooled": pooled, "projected": tokens}
        self.unit_frames = net.eyes.cfg.frames
        scripts = [_script(name, expected[f"{name}input_ids"][0].tolist()) for name in ("native.", "clips.")]
        super().__init__(net, expected, scripts, tower, tokens)

    def carried(self, states: tuple, keys: Keys) -> dict[str, Tensor]:
        return {f"{n}.{name}": part[None] for n, pair in enumerate(keys) for name, part in zip("kv", pair)}


def _script(name: str, ids: list[int]) -> Script:
    first, clips = ids.index(CLIP), ids.count(CLIP)
    return Script(name, ids[:first], [[]] * clips, [[]] * clips, ids[first + clips :])


def _eyes(net: Gemamba) -> Eyes:
    """Closed clips."""
    cfg, like = net.eyes.cfg, net.eyes.cls_token

    def pixels(frames: Sequence[Frame]) -> tuple[Tensor]:
        return (clip_pixels(frames, cfg, like),)

    size = cfg.frames
    return Eyes(pixels, net.see, like.device, long_side=2 * cfg.side, unit_frames=size, per_call=CLIPS_PER_CALL * size)


def _recognises(config: Config) -> bool:
    return config.get("model_type") == "llava_gemma"


def _build(config: Config) -> Gemamba:
    demand(
        config,
        "config.json",
        mm_vision_tower="videomamba",
        mm_projector_type="mlp2x_gelu",
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        tie_word_embeddings=True,
        attention_bias=False,
        hidden_act=("gelu_pytorch_tanh", "gelu"),
    )
    eyes = config.get("vision_encoder") or {}
    demand(
        eyes,
        "vision_encoder",
        bimamba=True,
        rms_norm=True,
        kernel_size=1,
        pool_type="cls+avg",
        keep_temporal=True,
        norm_epsilon=EPS,
    )
    return Gemamba(config)


def _our_key(key: str) -> str | None:
    """The encoder's own file names it shorter; the head is the embedding; nothing reads the clip decoder."""
    if key.startswith("vision_encoder."):
        key = f"model.vision_tower.vision_tower.{key}"
    return None if key == "lm_head.weight" or ".clip_decoder." in key else key


def _wrap(net: Gemamba, of: Checkpoint) -> SequenceModel:
    return model_of(net, tokenizer_of(of.folder), of.name, of.options.mode == "streamed")


def model_of(net: Gemamba, tokenizer: Any, name: str, streamed: bool = False) -> SequenceModel:
    """The network with its eyes, its prompt and its native form."""
    limit = max(1, net.config.max_position_embeddings - TEXT_ROOM)
    size, side = net.eyes.cfg.frames, net.eyes.cfg.side
    return SequenceModel(
        net,
        _eyes(net),
        GemmaPrompt(tokenizer),
        tokenizer,
        name=name,
        about=ABOUT,
        limit=limit,
        native=NativeForm(PICTURES_KEPT, middles(size), fitted(squashed_as_tensor, side), f"one clip of {size}"),
        streamed=streamed,
    )


GEMAMBA = System(
    name="Gemamba",
    recognises=_recognises,
    build=_build,
    our_key=_our_key,
    beside=("vision_encoder.safetensors", "videomamba_m16_25M_f8_res224.safetensors"),
    wrap=_wrap,
    golden=GemambaGolden,
    rows=(
        Row("`TensorSenseAI/gemamba-v0`, encoder converted: 2.5 B", "GPU, bf16", "5.2 GB", "none", "10 MB", "75 MB"),
    ),
)
