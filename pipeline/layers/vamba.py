"""Vamba (arXiv 2503.11579): a column of Mamba-2 mixers watches, a text column cross-attends to what each layer saw.

Per layer l, video v and text h (with the switches of the published configuration):

    h <- h + a * SelfAttn(LN h) + (1 - a) * CrossAttn(LN h, v_l)        (alpha balancing; without it both are added)
    h <- h + MLP(LN h)
    v_(l+1) <- v_l + Mamba2(RMSNorm v_l)

Cross-attention reads v_l *before* that layer's mixer, and the last mixer's output is never read. The video column
never sees text: a stream is encoded once, before any question exists. What the text column may look at are the
keys and values of v_l, appended to a `Memory`; they have no order and, unless the configuration says so, no positions.

The same classes run the published 11.3 B model (every layer cross-attends) and the embedded one (`cross_layers` lists a
few). Module names equal the published keys, so checkpoints load by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.gpu.dispatch import kernels_for
from pipeline.layers.fp8 import normed
from pipeline.layers.mamba2 import Mamba2Mixer, MixerConfig, MixerState
from pipeline.layers.norms import RMSNorm
from pipeline.stream import UserError

SelfAttend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (layer, q_BHQP, k_BKQP, v_BKQP) -> (B, H, Q, P)
CrossAttend = Callable[[int, Tensor], Tensor]  # (place in cross_layers, q_BHQP) -> (B, H, Q, P)
WriteMemory = Callable[[int, Tensor, Tensor], None]  # (place in cross_layers, k_KTP, v_KTP)


@dataclass(frozen=True)
class VambaConfig:
    """Shapes and switches of a Vamba. `from_dict` reads a published config.json."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    vocab: int
    mixer: MixerConfig | None  # None: the column has no mixers (ablation, or `enable: false`)
    cross_layers: tuple[int, ...]  # which text layers cross-attend; all of them in the published model
    mixer_norm: str = "rmsnorm"  # or "layernorm"
    mixer_norm_eps: float = 1e-5
    norm_eps: float = 1e-6
    rope_theta: float = 1e6
    mrope_section: tuple[int, ...] = ()
    qkv_bias: bool = True
    tie_embeddings: bool = False
    alpha_balancing: bool = True
    cross_rope: bool = False  # rotate cross-attention's queries and keys (M-RoPE)
    cross_norm: bool = False  # the column goes on with input_layernorm(v), as published

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @classmethod
    def from_dict(cls, c: dict[str, Any]) -> VambaConfig:
        """From a config.json: the published names, or SmolLM2's (Llama) plus `cross_layers` for the embedded one."""
        mixer = c.get("vision_mamba_mixer_config") or {}
        rope = c.get("rope_scaling") or c.get("rope_parameters") or {}
        enabled, d_inner = bool(mixer) and mixer.get("enable", True), mixer.get("expand", 2) * c["hidden_size"]
        if enabled and mixer.get("d_ssm") not in (None, d_inner):
            raise UserError("This checkpoint mixes only some channels (d_ssm), so it cannot be run; use another one.")
        return cls(
            d_model=c["hidden_size"],
            n_layers=c["num_hidden_layers"],
            n_heads=c["num_attention_heads"],
            n_kv_heads=c["num_key_value_heads"],
            d_ff=c["intermediate_size"],
            vocab=c["vocab_size"],
            mixer=MixerConfig.from_dict(c["hidden_size"], mixer) if enabled else None,
            cross_layers=tuple(c.get("cross_layers", range(c["num_hidden_layers"]))),
            mixer_norm=mixer.get("norm_type", "rmsnorm"),
            norm_eps=c.get("rms_norm_eps", 1e-6),
            rope_theta=c.get("rope_theta") or rope.get("rope_theta", 1e6),
            mrope_section=tuple(rope.get("mrope_section") or ()),
            qkv_bias=c.get("attention_bias", c.get("model_type") == "qwen2_vl"),
            tie_embeddings=c.get("tie_word_embeddings", False),
            alpha_balancing=c.get("use_alpha_balancing", True),
            cross_rope=c.get("cross_attn_use_position_embeddings", False),
            cross_norm=c.get("cross_attn_use_layer_norm", False),
        )


class Attention(nn.Module):
    """The four projections of grouped-query attention; who is attended to is the caller's business."""

    def __init__(self, cfg: VambaConfig):
        super().__init__()
        self.head_dim, width = cfg.head_dim, cfg.n_kv_heads * cfg.head_dim
        self.q_proj = nn.Linear(cfg.d_model, cfg.d_model, cfg.qkv_bias)
        self.k_proj = nn.Linear(cfg.d_model, width, cfg.qkv_bias)
        self.v_proj = nn.Linear(cfg.d_model, width, cfg.qkv_bias)
        self.o_proj = nn.Linear(cfg.d_model, cfg.d_model, bias=False)

    def queries(self, x_BTD: Tensor) -> Tensor:
        return self._heads(self.q_proj(x_BTD))

    def keys_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.k_proj(x_BTD)), self._heads(self.v_proj(x_BTD))

    def output(self, out_BHTP: Tensor) -> Tensor:
        return self.o_proj(out_BHTP.transpose(1, 2).flatten(-2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class VisionMixer(nn.Module):
    """Pre-norm residual Mamba-2 mixer of the video column."""

    def __init__(self, cfg: VambaConfig, mixer: MixerConfig):
        super().__init__()
        kinds = {"rmsnorm": RMSNorm, "layernorm": nn.LayerNorm}
        self.norm = kinds[cfg.mixer_norm](cfg.d_model, eps=cfg.mixer_norm_eps)
        self.mixer = Mamba2Mixer(mixer)

    def forward(self, v_BTD: Tensor, state: MixerState, lengths_B: Tensor | None = None) -> tuple[Tensor, MixerState]:
        return self.mixer(normed(self.norm, v_BTD, self.mixer.in_proj), state, v_BTD, lengths_B)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, cfg: VambaConfig):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.up_proj = nn.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.down_proj = nn.Linear(cfg.d_ff, cfg.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One layer of both columns."""

    alpha: nn.Parameter | None

    def __init__(self, cfg: VambaConfig, crosses: bool, mixes: bool):
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.post_attention_layernorm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.self_attn, self.mlp = Attention(cfg), MLP(cfg)
        self.cross_attn = Attention(cfg) if crosses else None
        self.vision_mixer = VisionMixer(cfg, cfg.mixer) if mixes and cfg.mixer is not None else None
        if crosses and cfg.alpha_balancing:
            self.alpha = nn.Parameter(torch.full((1,), 0.5))
        else:
            self.register_parameter("alpha", None)

    def blend(self, h: Tensor, own: Tensor, cross: Tensor | None) -> Tensor:
        """h plus both attentions, balanced by alpha in [0, 1] where the model has one."""
        if cross is None:
            return h + own
        if self.alpha is None:
            return h + own + cross
        if kernels := kernels_for(h):
            return kernels.blend(h, own, cross, self.alpha)
        a = self.alpha.clamp(0, 1).to(h.dtype)
        return h + a * own + (1 - a) * cross


class Body(nn.Module):
    """What the published keys call `model`."""

    def __init__(self, cfg: VambaConfig, crosses: set[int], mixing: set[int]):
        super().__init__()
        self.embed_tokens = nn.Embedding(cfg.vocab, cfg.d_model)
        self.layers = nn.ModuleList(Layer(cfg, i in crosses, i in mixing) for i in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.d_model, cfg.norm_eps)


class Vamba(nn.Module):
    """Both columns. `visual` is the vision tower (or None: then tokens come ready made)."""

    def __init__(self, cfg: VambaConfig, visual: nn.Module | None = None):
        super().__init__()
        self.cfg = cfg
        crosses = set(cfg.cross_layers)
        # The published checkpoint holds a mixer in every layer, the last one dead; the embedded one leaves it out.
        every_layer = len(crosses) == cfg.n_layers
        mixing = crosses if every_layer else set(cfg.cross_layers[:-1])
        self.visual = visual
        self.model = Body(cfg, crosses, mixing)
        self.lm_head = nn.Linear(cfg.d_model, cfg.vocab, bias=False)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def layers(self) -> Sequence[Layer]:
        return cast(Sequence[Layer], self.model.layers)

    def start(self, batch: int = 1) -> tuple[MixerState, ...]:
        """The column's state before the first frame: one MixerState per live mixer."""
        live = [self.layers[i].vision_mixer for i in self.cfg.cross_layers[:-1]]
        return tuple(m.mixer.start(batch) for m in live if m is not None)

    def watch(
        self,
        v_BTD: Tensor,
        states: tuple[MixerState, ...],
        write: Callable[[int, Tensor, Tensor], None],
        positions_3T: Tensor | None = None,
        seen: list[Tensor] | None = None,
        lengths_B: Tensor | None = None,
    ) -> tuple[MixerState, ...]:
        """Run the video column over T new tokens from `states`; return the states after them.

        write(j, k_BKTP, v_BKTP) receives the keys and values of each cross-attention layer, in order.
        positions_3T: (temporal, row, column) of every token, needed with `cross_rope` only.
        seen: if given, collects v as each cross-attention reads it.
        lengths_B: how many tokens of each row are real (see `Mamba2Mixer.forward`); None: all.
        """
        new_states = []
        rope = None
        if self.cfg.cross_rope:
            assert positions_3T is not None
            rope = self.rope(positions_3T, v_BTD.dtype)
        for j, i in enumerate(self.cfg.cross_layers):
            layer, last = self.layers[i], j == len(self.cfg.cross_layers) - 1
            if self.cfg.cross_norm:
                v_BTD = layer.input_layernorm(v_BTD)
            if seen is not None:
                seen.append(v_BTD)
            assert layer.cross_attn is not None  # of every layer of cross_layers
            k, v = layer.cross_attn.keys_values(v_BTD)
            write(j, rotate(k, rope) if rope else k, v)
            if layer.vision_mixer is not None and not last:  # the last mixer's output is never read
                v_BTD, state = layer.vision_mixer(v_BTD, states[j], lengths_B)
                new_states.append(state)
        return tuple(new_states)

    def read(
        self,
        h_BTD: Tensor,
        positions: Tensor | tuple[Tensor, Tensor],
        self_attend: SelfAttend,
        cross_attend: CrossAttend | None,
        layers: range | None = None,
    ) -> Tensor:
        """Run the text column (or some of its layers) over T tokens; returns hidden states before the final norm.

        positions: (T,), or the tables of `rope` where rows differ.
        """
        rope = positions if isinstance(positions, tuple) else self.rope(positions, h_BTD.dtype)
        places = {i: j for j, i in enumerate(self.cfg.cross_layers)}
        for i in layers or range(self.cfg.n_layers):
            layer = self.layers[i]
            x = layer.input_layernorm(h_BTD)
            k, v = layer.self_attn.keys_values(x)
            own = layer.self_attn.output(self_attend(i, rotate(layer.self_attn.queries(x), rope), rotate(k, rope), v))
            cross = None
            if layer.cross_attn is not None and cross_attend is not None:
                q = layer.cross_attn.queries(x)
                cross = layer.cross_attn.output(cross_attend(places[i], rotate(q, rope) if self.cfg.cross_rope else q))
            h_BTD = layer.blend(h_BTD, own, cross)
            h_BTD = h_BTD + layer.mlp(layer.post_attention_layernorm(h_BTD))
        return h_BTD

    def logits(self, h_BTD: Tensor) -> Tensor:
        return self.lm_head(self.model.norm(h_BTD))

    def rope(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin (T, P) of 1-D positions (T,) or of M-RoPE positions (3, T); computed in fp32 as published."""
        half = self.cfg.head_dim // 2
        inv_freq = self.cfg.rope_theta ** (-torch.arange(half, device=positions.device, dtype=torch.float32) / half)
        if positions.dim() == 1:
            angles = positions.float()[:, None] * inv_freq
        else:  # each frequency belongs to one axis: the first section to time, then rows, then columns
            axes = [axis_T.expand(n, -1) for axis_T, n in zip(positions.float(), self.cfg.mrope_section)]
            angles = torch.cat(axes).T * inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x_BHTP: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (RoFormer, eq. 34), halves paired as in NeoX."""
    cos, sin = rope
    if cos.dim() == 2 and (kernels := kernels_for(x_BHTP)):
        return kernels.rotate(x_BHTP, cos, sin)
    first, second = x_BHTP.chunk(2, dim=-1)
    return x_BHTP * cos + torch.cat([-second, first], dim=-1) * sin
