"""The decoder-only systems at their published sizes, with random weights and the count of their matrix products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pipeline.bench.floors import products
from pipeline.bench.machine import Machine
from pipeline.bench.shapes import built
from pipeline.layers.hash_tokenizer import HashTokenizer
from pipeline.layers.mamba2 import MixerConfig
from pipeline.models import gemamba, ml_mamba, mmmamba
from pipeline.models.ml_mamba import MLMamba, MLMambaConfig
from pipeline.models.mmmamba import MMMamba, MMMambaConfig, StackConfig
from pipeline.models.sequence import SequenceModel
from pipeline.towers.siglip_dino import ViTConfig

TOKENS = 103_000  # of mmMamba's figure
ATTENDING = {0, 4}  # of every eight layers of the hybrid: layers 0, 4, 8 ... 28


def _stacks(attends: Callable[[int], bool]) -> MMMambaConfig:
    kinds = ["mha" if attends(layer) else "mamba2" for layer in range(32)]
    first, second = (StackConfig(2048, 16, 8, 8192, 1e-5, 1e6, tuple(part)) for part in (kinds[:8], kinds[8:]))
    return MMMambaConfig(first, second, vocab=92_553, image_token=92_546)


@dataclass(frozen=True)
class Sizes:
    """What is built; the defaults are the published sizes."""

    mmmamba: dict[str, MMMambaConfig] = field(
        default_factory=lambda: {
            "linear": _stacks(lambda layer: False),
            "hybrid": _stacks(lambda layer: layer % 8 in ATTENDING),
            "hovle": _stacks(lambda layer: True),
        }
    )
    ml_mamba: MLMambaConfig = field(
        default_factory=lambda: MLMambaConfig(
            features=2176,
            mixer=MixerConfig(d_model=2560),
            layers=64,
            blocks=2,
            vocab=50_288,
            towers=(
                ViTConfig(1024, 24, 16, 4096, 14, table=37, prefix=5, scaled=True),
                ViTConfig(1152, 27, 16, 4304, 14, table=27, prefix=0, scaled=False),
            ),
        )
    )
    gemamba: dict[str, Any] = field(
        default_factory=lambda: {
            "vocab_size": 256_000,
            "hidden_size": 2048,
            "intermediate_size": 16_384,
            "num_hidden_layers": 18,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e4,
        }
    )
    tokens: int = TOKENS


@dataclass(frozen=True)
class Subject:
    """One system as it is measured. picture_flops: the matrix products of a picture, attention apart. side: of its
    pictures, in pixels. word: the modules that an answer's word passes."""

    model: SequenceModel
    net: Any
    side: int
    picture_flops: Callable[[float], float]  # of the tokens that a picture takes
    word: tuple[nn.Module, ...]
    attention: int = 0  # FLOP of one token's attention to one earlier token


class MarkedTokenizer(HashTokenizer):
    """With the marks that chat formats look up."""

    bos_token_id = 1
    MARKS = (
        "<|im_start|>",
        "<|im_end|>",
        "<img>",
        "</img>",
        "<|endoftext|>",
        "<bos>",
        "<start_of_turn>",
        "<end_of_turn>",
    )

    def get_vocab(self) -> dict[str, int]:
        return {mark: number for number, mark in enumerate(self.MARKS, 2)}


def mmmamba_subject(config: MMMambaConfig, machine: Machine, name: str) -> Subject:
    net = built(machine, lambda: MMMamba(config))
    patches, eyes = (config.side // config.patch) ** 2, net.embedding_model

    def flops(tokens: float) -> float:
        pixels = patches * (products(eyes.vision_embeddings) + products(eyes.pixel_shuffle_proj) / 4)
        return 2 * (tokens * products(*net.layers) + pixels)

    cfg = config.language
    attention = 4 * cfg.heads * cfg.head_dim * config.kinds.count("mha")
    model = endless(mmmamba.model_of(net, MarkedTokenizer(config.vocab), f"mmMamba, {name}", streamed=True))
    return Subject(model, net, config.side, flops, (*net.layers, net.language_model.output), attention)


def ml_mamba_subject(config: MLMambaConfig, machine: Machine) -> Subject:
    net = built(machine, lambda: MLMamba(config))
    assert net.towers is not None  # the published size has them
    model = endless(ml_mamba.model_of(net, net.towers, MarkedTokenizer(config.vocab), "ML-Mamba", streamed=True))
    connector, tower = (net.mlp, net.bidirectional_mamba, net.projector), net.towers
    towers = sum(_tower_flops(one, cfg, config) for one, cfg in zip(tower.children(), config.towers))

    def flops(tokens: float) -> float:
        return 2 * tokens * products(*connector, *net.words.layers) + towers

    side = round(config.towers[1].table * config.towers[1].patch)
    return Subject(
        model, net, ml_mamba.PICTURE if side == 378 else side, flops, (*net.words.layers, net.llm_backbone.lm_head)
    )


def _tower_flops(tower: Any, cfg: ViTConfig, config: MLMambaConfig) -> float:
    """Of one picture: every matrix of all blocks but the last, which nothing reads, and full attention."""
    patches = config.towers[1].table ** 2
    tokens = patches + cfg.prefix
    attention = 4 * tokens**2 * cfg.width * (cfg.depth - 1)
    return 2 * (tokens * products(*list(tower.blocks)[:-1]) + patches * products(tower.patch_embed)) + attention


def gemamba_subject(config: dict[str, Any], machine: Machine) -> Subject:
    net = built(machine, lambda: gemamba.Gemamba(config))
    model = endless(gemamba.model_of(net, MarkedTokenizer(net.config.vocab_size), "Gemamba", streamed=True))
    eyes, cfg = net.eyes, net.eyes.cfg
    patches = (cfg.side // cfg.patch) ** 2

    def flops(tokens: float) -> float:
        seen = (patches + 1 / cfg.frames) * products(*eyes.layers) + patches * products(eyes.patch_embed)
        return 2 * (seen + products(net.model.mm_projector) + tokens * products(*net.model.layers))

    return Subject(model, net, cfg.side, flops, (*net.model.layers, net.model.embed_tokens))


def endless(model: SequenceModel) -> SequenceModel:
    """Random weights must not end an answer."""
    model.prompt.stops = frozenset()  # type: ignore[misc]
    return model
