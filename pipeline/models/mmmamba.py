"""mmMamba (arXiv 2502.13145) and HoVLE (arXiv 2412.16158), its teacher: one decoder, every layer of one of two kinds.

Pictures have no encoder: patches and words pass through the same two stacks of layers (an embedding stack and a
language stack, no norm between them). Per layer, x the residual stream:

    x <- x + mixer(RMSNorm x)            x <- x + W2(silu(W1 n) * W3 n),  n = RMSNorm x

"mha" is grouped-query attention with rotary positions. "mamba2" is an attention layer distilled into a Mamba-2 mixer:
values, keys and queries become x, B and C of the state-space duality (arXiv 2405.21060, section 4), without rotary
positions, skip or scaling, and each head's output is normalised *before* it is gated. All "mha" is HoVLE.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gpu.dispatch import kernels_for, mixer_kernels
from pipeline.gpu.scan_inputs import ScanInputs
from pipeline.layers.mamba2 import MixerState, causal_conv, scan
from pipeline.layers.norms import RMSNorm
from pipeline.layers.rotary import rotary_tables
from pipeline.layers.vamba import rotate
from pipeline.models.eyes import Eyes
from pipeline.models.fields import demand
from pipeline.models.native import NativeForm, evenly, fitted
from pipeline.models.prompts import InternPrompt
from pipeline.models.sequence import SequenceModel, tokenizer_of
from pipeline.models.sequence_golden import Keys, Script, SequenceGolden
from pipeline.models.sequence_net import KeySizes, View
from pipeline.models.system import Checkpoint, Config, Row, System
from pipeline.stream import Frame
from pipeline.towers.intern import VisionEmbeddings, pixel_shuffle, tile_pixels
from pipeline.towers.pixels import squashed

Rope = tuple[Tensor, Tensor]

CONV_WIDTH, SSD_BLOCK = 2, 128
HEAD_NORM_EPS = 1e-5  # of the mixers' norm per head: a constant of the published code, not the config's
STACKS = ("embedding_config", "llm_config")
PICTURES_PER_CALL = 16  # of the eyes: 1,024 patches each before they are shuffled, 200 MB of the largest tensors
TRAINED_PICTURES, PICTURES_KEPT = 30, 64  # 8,192 tokens of 263 a picture; kept to choose from


@dataclass(frozen=True)
class StackConfig:
    """Sizes of one of the two stacks. kinds: "mamba2" or "mha" of every layer."""

    width: int
    heads: int
    kv_heads: int
    hidden: int
    eps: float
    rope_theta: float
    kinds: tuple[str, ...]

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @classmethod
    def from_dict(cls, c: dict[str, Any], eps: float) -> StackConfig:
        """From a section of config.json. eps: what its class falls back to."""
        return cls(
            width=c["hidden_size"],
            heads=c["num_attention_heads"],
            kv_heads=c["num_key_value_heads"],
            hidden=c["intermediate_size"],
            eps=c.get("rms_norm_eps", eps),
            rope_theta=c.get("rope_theta", 1e4),
            kinds=tuple(c.get("layers_block_type") or ["mha"] * c["num_hidden_layers"]),
        )


@dataclass(frozen=True)
class MMMambaConfig:
    """Sizes of the network. special: rows of the embedding for ids beyond the language model's vocabulary."""

    embedding: StackConfig
    language: StackConfig
    vocab: int
    image_token: int
    side: int = 448
    patch: int = 14
    special: int = 0
    normalised: bool = False  # each token is scaled to length 1 between the stacks

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.embedding.kinds + self.language.kinds

    @classmethod
    def from_dict(cls, c: dict[str, Any]) -> MMMambaConfig:
        eyes, words = c["embedding_config"], c["llm_config"]
        return cls(
            embedding=StackConfig.from_dict(eyes, 1e-5),
            language=StackConfig.from_dict(words, 1e-6),
            vocab=eyes.get("llm_vocab_size", words["vocab_size"]),
            image_token=eyes["img_context_token_id"],
            side=c.get("force_image_size") or eyes["image_size"],
            patch=eyes["patch_size"],
            special=len(eyes.get("special_token_maps") or {}),
            normalised=bool(c.get("normalize_encoder_output")),
        )


class DistilledMixer(nn.Module):
    """The "mamba2" mixer. Projection rows: values, keys (K heads), queries, gate (H heads), one step size per head."""

    def __init__(self, cfg: StackConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = cfg.heads, cfg.kv_heads, cfg.head_dim
        kv, full = cfg.kv_heads * cfg.head_dim, cfg.heads * cfg.head_dim
        self.rows, channels = [2 * kv + full, full, cfg.heads], 2 * kv + full
        self.wvkqgdt = nn.Linear(cfg.width, sum(self.rows), bias=False)
        self.conv1d = nn.Conv1d(channels, channels, CONV_WIDTH, groups=channels)
        self.dt_bias, self.A_log_bias = nn.Parameter(torch.zeros(cfg.heads)), nn.Parameter(torch.zeros(cfg.heads))
        self.g_norm_swish_gate = RMSNorm(cfg.head_dim, HEAD_NORM_EPS)
        self.o_proj = nn.Linear(full, cfg.width, bias=False)

    def start(self) -> MixerState:
        """Zeros: the last row before the convolution, and a state (1, H, P, P) in fp32 or better."""
        w = self.conv1d.weight
        wide = torch.promote_types(w.dtype, torch.float32)
        return MixerState(
            torch.zeros(1, CONV_WIDTH - 1, len(w), dtype=w.dtype, device=w.device),
            torch.zeros(1, self.heads, self.head_dim, self.head_dim, dtype=wide, device=w.device),
        )

    def forward(self, n_1TD: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        vkq, gate, dt = self.wvkqgdt(n_1TD).split(self.rows, dim=-1)
        kernels = mixer_kernels(n_1TD, state.conv, state.ssm, self.heads)
        convolve = kernels.causal_conv if kernels else causal_conv
        vkq, tail = convolve(vkq, state.conv, self.conv1d.weight, self.conv1d.bias)
        v, k, q = vkq.unflatten(-1, (-1, self.head_dim)).split([self.kv_heads, self.kv_heads, self.heads], dim=2)
        v, k = (part.repeat_interleave(self.heads // self.kv_heads, dim=2) for part in (v, k))
        y, ssm = scan(kernels, ScanInputs(v, dt, self.dt_bias, self.A_log_bias, k, q, state.ssm), SSD_BLOCK)
        if own := kernels_for(n_1TD):
            y = own.gated_heads(y, gate, self.g_norm_swish_gate.weight, HEAD_NORM_EPS)
        else:
            y = (self.g_norm_swish_gate(y) * F.silu(gate.unflatten(-1, (self.heads, -1)))).flatten(2)
        return self.o_proj(y), MixerState(tail, ssm)


class GroupedAttention(nn.Module):
    """The "mha" mixer. Projection rows by key head: its queries, its key, its value."""

    def __init__(self, cfg: StackConfig):
        super().__init__()
        self.kv_heads, self.head_dim = cfg.kv_heads, cfg.head_dim
        self.wqkv = nn.Linear(cfg.width, (cfg.heads + 2 * cfg.kv_heads) * cfg.head_dim, bias=False)
        self.wo = nn.Linear(cfg.heads * cfg.head_dim, cfg.width, bias=False)

    def forward(self, n_1TD: Tensor, rope: Rope, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        rows = self.wqkv(n_1TD).unflatten(-1, (self.kv_heads, -1, self.head_dim)).movedim(1, 3)  # 1 K R+2 T P
        q = rotate(rows[:, :, :-2].flatten(1, 2), rope)
        k = rotate(rows[:, :, -2], rope)
        return self.wo(attend(q[0], k[0], rows[0, :, -1]).transpose(0, 1).flatten(1))[None]


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, cfg: StackConfig):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(cfg.width, cfg.hidden, bias=False) for _ in range(2))
        self.w2 = nn.Linear(cfg.hidden, cfg.width, bias=False)

    def forward(self, n: Tensor) -> Tensor:
        if kernels := kernels_for(n):
            return self.w2(kernels.swiglu(self.w1(n), self.w3(n)))
        return self.w2(F.silu(self.w1(n)) * self.w3(n))


class Layer(nn.Module):
    """One layer of either stack."""

    def __init__(self, cfg: StackConfig, kind: str):
        super().__init__()
        self.attention: GroupedAttention | DistilledMixer
        self.attention = GroupedAttention(cfg) if kind == "mha" else DistilledMixer(cfg)
        self.feed_forward = FeedForward(cfg)
        self.attention_norm, self.ffn_norm = RMSNorm(cfg.width, cfg.eps), RMSNorm(cfg.width, cfg.eps)


class EmbeddingModel(nn.Module):
    """What turns tiles and words into vectors, and the first stack. Words beyond the vocabulary have a table apart."""

    special_text_embeddings: nn.Embedding

    def __init__(self, cfg: MMMambaConfig):
        super().__init__()
        width = cfg.embedding.width
        self.vision_embeddings = VisionEmbeddings(width, cfg.side, cfg.patch)
        self.llm_text_embeddings = nn.Embedding(cfg.vocab, width)
        if cfg.special:
            self.special_text_embeddings = nn.Embedding(cfg.special, width)
        self.pixel_shuffle_proj = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, width))
        self.encoder = nn.ModuleList(Layer(cfg.embedding, kind) for kind in cfg.embedding.kinds)


class Stack(nn.Module):
    """The second stack and its norm."""

    def __init__(self, cfg: StackConfig):
        super().__init__()
        self.layers = nn.ModuleList(Layer(cfg, kind) for kind in cfg.kinds)
        self.norm = RMSNorm(cfg.width, cfg.eps)


class LanguageModel(nn.Module):
    """The second stack and the head."""

    def __init__(self, cfg: StackConfig, vocab: int):
        super().__init__()
        self.model = Stack(cfg)
        self.output = nn.Linear(cfg.width, vocab, bias=False)


class MMMamba(nn.Module):
    """The network, with the published key names. A sequence is one row: batch 1."""

    def __init__(self, cfg: MMMambaConfig):
        super().__init__()
        self.cfg = cfg
        self.embedding_model, self.language_model = EmbeddingModel(cfg), LanguageModel(cfg.language, cfg.vocab)

    @property
    def keys(self) -> KeySizes:
        cfg = self.cfg.language
        return KeySizes(self.cfg.kinds.count("mha"), cfg.kv_heads, cfg.head_dim)

    @property
    def layers(self) -> list[Layer]:
        return [layer for _, layers in self._stacks() for layer in layers]

    def start(self) -> tuple[MixerState, ...]:
        """The state before the first token: one MixerState per mamba2 layer, in order."""
        mixers = (layer.attention for layer in self.layers)
        return tuple(mixer.start() for mixer in mixers if isinstance(mixer, DistilledMixer))

    def see(self, pixels_NCHW: Tensor) -> Tensor:
        """Image tokens (N, L / 4, D) of normalised tiles."""
        patches = self.embedding_model.vision_embeddings(pixels_NCHW)
        return self.embedding_model.pixel_shuffle_proj(pixel_shuffle(patches))

    def embed(self, ids_T: Tensor) -> Tensor:
        """Inputs (1, T, D) of words."""
        words, extra = self.embedding_model.llm_text_embeddings.weight, ids_T - self.cfg.vocab
        out = F.embedding(ids_T.clamp(max=self.cfg.vocab - 1), words)
        if self.cfg.special:
            special = F.embedding(extra.clamp(min=0), self.embedding_model.special_text_embeddings.weight)
            out = torch.where((extra >= 0)[:, None], special, out)
        return out[None]

    def forward(
        self,
        x_1TD: Tensor,
        states: tuple[MixerState, ...],
        place: int | Tensor,
        view: View,
        hidden: list[Tensor] | None = None,
    ) -> tuple[Tensor, tuple[MixerState, ...]]:
        """The residual stream after T more tokens, the first of which is at `place`, and the states after them.

        view: holds the keys before them. hidden: if given, collects the stream before and after every layer.
        """
        if hidden is not None:
            hidden.append(x_1TD)
        before, after, attended = iter(states), [], 0
        positions = place + torch.arange(x_1TD.shape[1], device=x_1TD.device)
        for cfg, layers in self._stacks():
            rope = rotary_tables(positions, cfg.rope_theta, cfg.head_dim, x_1TD.dtype)
            for layer in layers:
                n = layer.attention_norm(x_1TD)
                if isinstance(layer.attention, GroupedAttention):
                    assert view is not None  # there are keys
                    mixed, attended = layer.attention(n, rope, partial(view.attend, attended)), attended + 1
                else:
                    mixed, state = layer.attention(n, next(before))
                    after.append(state)
                x_1TD = x_1TD + mixed
                x_1TD = x_1TD + layer.feed_forward(layer.ffn_norm(x_1TD))
                if hidden is not None:
                    hidden.append(x_1TD)
            if self.cfg.normalised and cfg is self.cfg.embedding:
                x_1TD = x_1TD / x_1TD.norm(dim=-1, keepdim=True)
        return x_1TD, tuple(after)

    def _stacks(self) -> tuple[tuple[StackConfig, Sequence[Layer]], ...]:
        return (
            (self.cfg.embedding, cast(Sequence[Layer], self.embedding_model.encoder)),
            (self.cfg.language, cast(Sequence[Layer], self.language_model.model.layers)),
        )

    def normed(self, x: Tensor) -> Tensor:
        return self.language_model.model.norm(x)

    def logits(self, x: Tensor) -> Tensor:
        return self.language_model.output(self.normed(x))


class MMMambaGolden(SequenceGolden):
    """A golden folder of mmMamba or HoVLE: one prompt with its frames."""

    before_question = "state_video."

    def __init__(self, net: MMMamba, expected: Mapping[str, Tensor]):
        weight = net.language_model.output.weight
        pixels = expected["pixel_values"].to(weight)
        patches = net.embedding_model.vision_embeddings(pixels)
        tokens = net.see(pixels)
        tower = {"patch_embeds": patches, "shuffled": pixel_shuffle(patches), "image_embeds": tokens}
        ids, spans = expected["input_ids"][0].tolist(), expected["frame_spans"].tolist()
        script = Script(
            name="",
            opening=ids[: spans[0][0]],
            befores=[ids[start:first] for start, first, _, _ in spans],
            afters=[ids[last:end] for _, _, last, end in spans],
            behind=ids[spans[-1][3] :],
        )
        super().__init__(net, expected, [script], tower, tokens)

    def carried(self, states: tuple[MixerState, ...], keys: Keys) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        states_left, keys_left = iter(states), iter(keys)
        for n, kind in enumerate(self.net.cfg.kinds):
            if kind == "mha":
                out |= {f"{n}.{name}": part.transpose(0, 1)[None] for name, part in zip("kv", next(keys_left))}
            else:
                state = next(states_left)
                out |= {f"{n}.conv": state.conv.transpose(1, 2), f"{n}.ssm": state.ssm}
        return out


def _eyes(net: MMMamba) -> Eyes:
    """One tile per frame."""
    like, side = net.language_model.output.weight, net.cfg.side

    def pixels(frames: Sequence[Frame]) -> tuple[Tensor]:
        return (tile_pixels(frames, side, like),)

    return Eyes(pixels, net.see, like.device, long_side=2 * side, per_call=PICTURES_PER_CALL)


def _recognises(config: Config) -> bool:
    return all(isinstance(config.get(section), dict) for section in STACKS)


def _build(config: Config) -> MMMamba:
    """UserError for what would change the mathematics and is not known here."""
    eyes, words = (config[section] for section in STACKS)
    demand(config, "config.json", ps_version="v2", template="internlm2-chat", tie_word_embeddings=False)
    demand(eyes, STACKS[0], pixel_shuffle_loc="pre", use_pixel_shuffle_proj=True, downsample_ratio=0.5, use_ls=False)
    for fields, where in ((eyes, STACKS[0]), (words, STACKS[1])):
        demand(fields, where, hidden_act="silu", attention_bias=False, mlp_bias=False, bias=False)
        demand(fields, where, tie_word_embeddings=False)
        for kind in fields.get("layers_block_type") or ():
            demand({"layers_block_type": kind}, where, layers_block_type=("mamba2", "mha"))
    return MMMamba(MMMambaConfig.from_dict(config))


def _our_key(key: str) -> str | None:
    """Nothing reads the class token, nor the language model's own embeddings: words enter by the other ones."""
    return None if re.search(r"class_embedding$|^language_model\.model\.tok_embeddings\.", key) else key


def _about(net: MMMamba) -> str:
    kinds = net.cfg.kinds
    attending = kinds.count("mha")
    if attending == len(kinds):
        kept = "Every layer attends to all frames, so what it keeps grows with the video"
    elif attending:
        kept = f"{attending} of {len(kinds)} layers attend to all frames and grow with the video; the rest keep a state"
    else:
        kept = "Frames and words pass through one recurrent state of constant size"
    return f"{kept}. It was trained on some 30 frames: a longer stream is more than it ever saw."


def _wrap(net: MMMamba, of: Checkpoint) -> SequenceModel:
    return model_of(net, tokenizer_of(of.folder), of.name, of.options.mode == "streamed")


def model_of(net: MMMamba, tokenizer: Any, name: str, streamed: bool = False) -> SequenceModel:
    """The network with its eyes, its prompt and its native form."""
    native = NativeForm(
        PICTURES_KEPT, evenly(TRAINED_PICTURES), fitted(squashed, net.cfg.side), f"some {TRAINED_PICTURES}"
    )
    return SequenceModel(
        net,
        _eyes(net),
        InternPrompt(tokenizer),
        tokenizer,
        name=name,
        about=_about(net),
        native=native,
        streamed=streamed,
    )


def _partner(config: Config) -> str:
    """Teacher and pupil."""
    kinds = MMMambaConfig.from_dict(config).kinds
    return "OpenGVLab/HoVLE" if "mamba2" in kinds else "hustvl/mmMamba-linear"


MMMAMBA = System(
    name="mmMamba or HoVLE",
    recognises=_recognises,
    build=_build,
    our_key=_our_key,
    wrap=_wrap,
    partner=_partner,
    golden=MMMambaGolden,
    rows=(  # minute and hour: snapshots for questions about earlier seconds, pictures, and keys where layers attend
        Row("`hustvl/mmMamba-linear`: 2.7 B, 32 layers", "GPU, bf16", "5.5 GB", "34 MB", "0.2 GB", "1.0 GB"),
        Row("`hustvl/mmMamba_hybrid`: 8 of 32 layers attend", "GPU, bf16", "5.4 GB", "25 MB", "0.7 GB", "32 GB"),
        Row("HoVLE, its transformer teacher: 2.6 B", "GPU, bf16", "5.2 GB", "none", "2.1 GB", "124 GB"),
    ),
)
