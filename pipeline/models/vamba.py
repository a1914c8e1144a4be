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

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.decoding import ChatPrompt, TextStream, generator, sample
from pipeline.int8 import Int8Linear
from pipeline.mamba2 import Mamba2Mixer, MixerConfig, MixerState, backend, gpu_kernels, sent
from pipeline.memory import Memory, Policy
from pipeline.reading import Reader, shares, until
from pipeline.recordings import LiveRecordings, Recordings
from pipeline.stream import Question, Sampling, StreamState, Token, UserError, VideoChunk
from pipeline.tiers import Tier

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


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32 or better, scaled in the input's type (as Qwen2 and Llama do)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        if fast := gpu_kernels(x):
            return fast.rms_norm(x, self.weight, self.eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.rms_norm(wide, wide.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


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

    def __init__(self, cfg: VambaConfig):
        super().__init__()
        kinds = {"rmsnorm": RMSNorm, "layernorm": nn.LayerNorm}
        self.norm = kinds[cfg.mixer_norm](cfg.d_model, eps=cfg.mixer_norm_eps)
        self.mixer = Mamba2Mixer(cfg.mixer)

    def forward(self, v_BTD: Tensor, state: MixerState) -> tuple[Tensor, MixerState]:
        return self.mixer(self.norm(v_BTD), state, v_BTD)


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

    def __init__(self, cfg: VambaConfig, crosses: bool, mixes: bool):
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.post_attention_layernorm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.self_attn, self.mlp = Attention(cfg), MLP(cfg)
        self.cross_attn = Attention(cfg) if crosses else None
        self.vision_mixer = VisionMixer(cfg) if mixes else None
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
        if fast := gpu_kernels(h):
            return fast.blend(h, own, cross, self.alpha)
        a = self.alpha.clamp(0, 1).to(h.dtype)
        return h + a * own + (1 - a) * cross


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
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(cfg.vocab, cfg.d_model)
        self.model.layers = nn.ModuleList(
            Layer(cfg, i in crosses, i in mixing and cfg.mixer is not None) for i in range(cfg.n_layers)
        )
        self.model.norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.lm_head = nn.Linear(cfg.d_model, cfg.vocab, bias=False)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def layers(self) -> Sequence[Layer]:
        return self.model.layers

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
        hidden: list[Tensor] | None = None,
        seen: list[Tensor] | None = None,
    ) -> tuple[MixerState, ...]:
        """Run the video column over T new tokens from `states`; return the states after them.

        write(j, k_BKTP, v_BKTP) receives the keys and values of each cross-attention layer, in order.
        positions_3T: (temporal, row, column) of every token, needed with `cross_rope` only.
        hidden: if given, collects v after every layer, the dead last mixer's output included (for verification).
        seen: if given, collects v as each cross-attention reads it.
        """
        new_states = []
        rope = self.rope(positions_3T, v_BTD.dtype) if self.cfg.cross_rope else None
        for j, i in enumerate(self.cfg.cross_layers):
            layer, last = self.layers[i], j == len(self.cfg.cross_layers) - 1
            if self.cfg.cross_norm:
                v_BTD = layer.input_layernorm(v_BTD)
            if seen is not None:
                seen.append(v_BTD)
            k, v = layer.cross_attn.keys_values(v_BTD)
            write(j, rotate(k, rope) if rope else k, v)
            if layer.vision_mixer is not None and not (last and hidden is None):
                state = layer.vision_mixer.mixer.start(len(v_BTD)) if last else states[j]
                v_BTD, state = layer.vision_mixer(v_BTD, state)
                new_states += [] if last else [state]
            if hidden is not None:
                hidden.append(v_BTD)
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
            if i in places and cross_attend is not None:
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
    if cos.dim() == 2 and (fast := gpu_kernels(x_BHTP)):
        return fast.rotate(x_BHTP, cos, sin)
    first, second = x_BHTP.chunk(2, dim=-1)
    return x_BHTP * cos + torch.cat([-second, first], dim=-1) * sin


class Seen(NamedTuple):
    """What a vision tower makes of some frames. tokens (1, T, D); times (T,) seconds; positions (3, T) or None."""

    tokens: Tensor
    times: Tensor
    positions: Tensor | None = None


class VambaModel:
    """The published Vamba behind the common face (`stream.VideoModel`).

    vision: `unit_frames`, `long_side` and `tokens(frames) -> Seen` for whole units of frames (see vision.py).
    tokenizer: a transformers tokenizer, or None (then asking is refused with a sentence).
    retrieve: an answer reads only so many frames, those the question's last words look at most; None reads all.
    It costs one more pass of the question over the whole memory; each token of the answer then costs the same
    however long the video is.
    gpu_memory: GB of a video's memory that stay on the GPU; older slots move to the computer's. None: all stay.
    """

    def __init__(
        self, net: Vamba, vision: Any, tokenizer: Any, *, name: str = "Vamba", eight_bit: bool = False,
        policy: Policy | None = None, block_slots: int = 4096, retrieve: int | None = None,
        gpu_memory: float | None = None,
    ):  # fmt: skip
        self.net, self.vision, self.tokenizer, self.name = net.eval(), vision, tokenizer, name
        self.unit_frames, self.long_side = vision.unit_frames, vision.long_side
        self.eight_bit, self.policy, self.block_slots = eight_bit, policy or Policy(), block_slots
        self.retrieve, self.tier = retrieve, None if gpu_memory is None else Tier(gpu_memory * 1e9)
        self.about = "A Mamba-2 column watches, and text cross-attends to what it saw. State is constant, memory grows."
        if self.tier:
            self.about += f" {gpu_memory:g} GB of it stay on the GPU; the computer holds the rest."
        if retrieve:
            self.about += f" An answer reads the {retrieve:,} frames that fit its question best."
        self._prompt = ChatPrompt(tokenizer) if tokenizer is not None else None
        n = len(net.cfg.cross_layers)
        # The deeper half: in the first layers a word knows nothing yet of the words around it, so it looks for itself
        # and not for what the question means. How layers are weighed against each other: `Reader.looked`.
        self.watch_layers = range(n // 2, n)
        self._recordings, self._live = Recordings(net, self.watch_layers), LiveRecordings(net)

    @property
    def device(self) -> torch.device:
        return self.net.model.embed_tokens.weight.device

    @property
    def backend(self) -> str:
        kind, used = str(self.net.model.embed_tokens.weight.dtype).removeprefix("torch."), backend()
        kind += ", weights in 8 bits" if isinstance(self.net.lm_head, Int8Linear) else ""
        if "Triton" in used and self.device.type == "cuda" and not self._recordings.tapes.off:
            used += ", recorded"
        return f"{self.device.type}, {kind}; {used}"

    def chunk_frames(self, backlog: int) -> int:
        """Live: one unit. Catching up: the more the better until the kernels are full (4,800 tokens on an H100)."""
        most = 64 if self.device.type == "cuda" else 8
        return max(self.unit_frames, min(backlog, most) // self.unit_frames * self.unit_frames)

    def start(self) -> StreamState:
        cfg, weight = self.net.cfg, self.net.model.embed_tokens.weight
        memory = Memory.empty(
            len(cfg.cross_layers), cfg.n_kv_heads, cfg.head_dim, weight.dtype, weight.device,
            eight_bit=self.eight_bit, policy=self.policy, block_slots=self.block_slots, tier=self.tier,
        )  # fmt: skip
        self._recordings.prepare(memory)
        states = self.net.start()
        return StreamState(backbone=states, memory=memory, state_bytes=sum(s.nbytes for s in states))

    def watch(self, chunk: VideoChunk, state: StreamState) -> StreamState:
        frames = state.held + chunk.frames
        whole = len(frames) // self.unit_frames * self.unit_frames
        if whole:
            state = self._encode(frames[:whole], state)
        count = state.frames + len(chunk.frames)
        return replace(state, held=frames[whole:], frames=count, seen_until=chunk.frames[-1].time)

    @torch.no_grad()
    def _encode(self, frames: tuple, state: StreamState) -> StreamState:
        """Nothing in here waits for the GPU, so one chunk's work is queued while the last one's is done."""
        seen, units = self.vision.tokens(frames), state.extra.get("units", 0)
        positions = seen.positions
        if positions is not None and self.net.cfg.cross_rope:  # the time axis goes on from the stream's pair count
            positions = positions + sent(torch.tensor([[units], [0], [0]]), positions.device)
        memory, write = state.memory.append(sent(seen.times, seen.tokens.device))
        states = self._live.watch(seen.tokens, state.backbone, write, positions)
        memory, units = memory.applied(), units + len(frames) // self.unit_frames
        return replace(
            state, backbone=states, memory=memory, memory_bytes=memory.nbytes, dropped=memory.dropped,
            dropped_note=self._note(memory, units * self.unit_frames), extra=state.extra | {"units": units},
        )  # fmt: skip

    def _note(self, memory: Memory, frames: int) -> str:
        notes = [f"{memory.dropped:,} oldest memory slots dropped"] if memory.dropped else []
        if memory.host_slots:
            notes.append(f"{memory.host_slots / len(memory):.0%} of it in the computer's memory: answers take longer")
        if self.retrieve and frames > self.retrieve:
            notes.append(f"an answer reads {self.retrieve:,} of {frames:,} frames")
        return "; ".join(notes)

    def is_finite(self, state: StreamState) -> bool:
        finite = [torch.isfinite(s.ssm).all() for s in state.backbone]
        return not finite or bool(torch.stack(finite).all())  # one wait for the GPU, not one a layer

    def ask(self, question: Question, state: StreamState, sampling: Sampling) -> Iterator[Token]:
        if self._prompt is None:
            raise UserError("This checkpoint has no tokenizer, so questions cannot be put; add its tokenizer files.")
        memory = self._flushed(state).memory
        if question.at is not None and len(memory):
            memory = until(memory, question.at)
        reader, logits = self._read(question, memory)
        times, stream, chance = reader.moments.times, TextStream(self.tokenizer), generator(sampling)
        looked = reader.looked
        for _ in range(sampling.max_tokens):
            token = sample(logits, sampling, chance)
            if token in self._prompt.stops:
                break
            yield Token(token, stream.push(token), shares(times, looked))
            logits = reader.feed([token])
            # The answer so far, not the token alone: scaled to 1 by itself, a comma's gaze would count as a noun's.
            looked = None if looked is None else looked + reader.looked
        if rest := stream.flush():
            yield Token(token, rest)

    def _read(self, question: Question, memory: Memory) -> tuple[Reader, Tensor]:
        """The question read over the memory, or over the moments of it that it asks for, and the logits after it."""
        opening, ids = self._prompt.before_video, self._prompt.after_video(question)
        reader = Reader(self.net, memory, self.watch_layers, self._recordings)
        logits = reader.question(opening, ids)
        count = len(reader.moments) if self.retrieve is None else -(-self.retrieve // self.unit_frames)
        if count < len(reader.moments):
            memory = memory.select(reader.moments.best(reader.looked, count))
            reader = Reader(self.net, memory, self.watch_layers, self._recordings)
            logits = reader.question(opening, ids)
        return reader, logits

    def _flushed(self, state: StreamState) -> StreamState:
        """The state with its held frames encoded too: the last one repeated to fill the unit, as for a still image."""
        if not state.held:
            return state
        fill = (state.held[-1],) * (self.unit_frames - len(state.held))
        return self._encode(state.held + fill, state)
