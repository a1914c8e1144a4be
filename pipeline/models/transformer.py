"""The baseline: Qwen2-VL, the transformer Vamba was made from, streamed as well as a transformer can be.

Same frames, same tower, same chat format and same sampling as Vamba's. Its keys and values are carried from chunk to
chunk and never computed twice; every video token attends to everything before it. Where they no longer fit, the oldest
video tokens are dropped, and the state says so.

The language model is transformers' own `Qwen2VLTextModel`; only where its attention finds earlier keys is ours
(layers/streamed.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from pipeline.gpu.device import told_later
from pipeline.keeping import packing
from pipeline.layers.decoding import ChatPrompt, TextStream, generator, sample
from pipeline.layers.streamed import Answering, Prefix, Watching
from pipeline.memory.memory import Memory
from pipeline.models.fields import text_fields
from pipeline.models.system import Checkpoint, Config, Row, System
from pipeline.stream import Frame, Model, Packed, Question, Sampling, StreamState, Token, Tokens, UserError, VideoChunk
from pipeline.towers.qwen import QwenVision, build_tower, published_key
from pipeline.towers.seen import Vision
from pipeline.weights.checkpoint import read_tokenizer

TOKENS_PER_CALL = 4096  # of one pass through the language model; its widest activation is then 155 MB in bf16
TEXT_PER_CALL = 128  # question tokens of one pass: their scores over 32k video tokens take 470 MB in fp32
BLOCK_SLOTS = 8192  # of the keys' storage: 470 MB of the 7B model; an answer's attention visits block by block
TEXT_ROOM = 2048  # positions kept free for the conversation when the context is filled with video
KEPT_AFTER_DROP = 0.75  # of the limit: dropping in strides keeps long passes long


class Qwen2VL(nn.Module):
    """The network, with the published checkpoint's key names: `visual.`, `model.`, `lm_head.`."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        fields = config.get("text_config") or config
        text = Qwen2VLTextConfig(**text_fields(fields, "rope_scaling"))
        self.visual = build_tower(config["vision_config"])
        self.model = Qwen2VLTextModel._from_config(text, attn_implementation="pipeline_stream")
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if config.get("tie_word_embeddings", fields.get("tie_word_embeddings", False)):
            self.lm_head.weight = self.model.embed_tokens.weight
        self.eval()

    def finish(self) -> None:
        """After weights were put into a skeleton built without memory: the table that no checkpoint holds."""
        rotary = type(self.model.rotary_emb)(self.model.config)
        self.model.rotary_emb = rotary.to(self.model.embed_tokens.weight.device)

    def hidden(self, embeds_1TD: Tensor, positions_3T: Tensor, view: Watching | Answering) -> Tensor:
        """Last hidden states (1, T, D) of tokens that come after what `view` holds."""
        masks = {"full_attention": None}  # `view` masks
        out = self.model(
            inputs_embeds=embeds_1TD,
            position_ids=positions_3T[:, None].to(embeds_1TD.device),
            attention_mask=masks,
            use_cache=False,
            view=view,
        )
        return out.last_hidden_state


@dataclass(frozen=True, eq=False)
class Watched:
    """What a stream carries: keys and values of the video so far, and where its positions stand.

    pairs: the next pair's temporal position. reach: the largest row or column position used so far, plus one.
    """

    memory: Memory
    pairs: int = 0
    reach: int = 0


def _until(seen: Watched, second: float) -> Watched:
    """The stream as it was when its newest pair was at `second`."""
    times = seen.memory.times
    if not len(times):
        return seen
    kept = int(np.searchsorted(times, max(second, times[0]), side="right"))  # something to answer from, at least
    later = len(np.unique(times[kept:]))
    return replace(seen, memory=replace(seen.memory, log=seen.memory.log.until(kept)), pairs=seen.pairs - later)


class TransformerModel(Model[Watched]):
    """Qwen2-VL as a Model. `limit` is the most video tokens kept; the default is the trained context.

    tokenizer: None for a checkpoint without one; such a model can watch but not be asked.
    """

    unit_frames = 2

    def __init__(self, net: Qwen2VL, vision: Vision, tokenizer: Any, name: str, limit: int | None = None):
        self.net, self.vision, self.tokenizer, self.name = net, vision, tokenizer, name
        self.long_side = vision.long_side
        config = net.model.config
        self.limit = limit or max(1, config.max_position_embeddings - TEXT_ROOM)
        self.about = (
            f"A transformer that attends to every video token it keeps (at most {self.limit:,}); "
            "its keys and values grow with the video and the oldest are dropped beyond that."
        )
        self._prompt = ChatPrompt(tokenizer) if tokenizer is not None else None
        self._text_start = len(self._prompt.before_video) if self._prompt else 0
        self._prefix = self._read_prefix(self._prompt.before_video) if self._prompt else None

    @property
    def device(self) -> torch.device:
        return self.net.lm_head.weight.device

    @property
    def backend(self) -> str:
        return f"{self.device.type}, {self.net.lm_head.weight.dtype}".replace("torch.", "") + "; torch attention"

    def chunk_frames(self, backlog: int) -> int:
        """Live: one pair. Catching up: as many as Vamba takes, for the same turns."""
        most = 64 if self.device.type == "cuda" else 8
        return max(2, min(backlog, most) // 2 * 2)

    def is_finite(self, state: StreamState[Watched]) -> bool:
        """Whether the last layer's keys and values, to which every layer's trouble comes, are numbers.

        All of them: the newest token alone would not tell of an overflow at another one late in the layers, which is
        in that one's keys only, and yet in every answer. 63 MB to read at the 7B model's full context.
        """
        return self.finite_later(state)()

    def finite_later(self, state: StreamState[Watched]) -> Callable[[], bool]:
        blocks = state.inner.memory.log.views("k", "v")
        parts = [torch.isfinite(part[-1]).all() for found in blocks for part in found]
        return told_later(torch.stack(parts).all()) if parts else lambda: True

    def start(self) -> StreamState[Watched]:
        return self._state(StreamState(seen := Watched(self._empty())), seen, 0)

    @torch.no_grad()
    def watch(self, chunk: VideoChunk, state: StreamState[Watched]) -> StreamState[Watched]:
        frames = state.held + chunk.frames
        whole = len(frames) // 2 * 2
        if whole:
            state = self._see(frames[:whole], state)
        count = state.frames + len(chunk.frames)
        return replace(state, held=frames[whole:], frames=count, seen_until=chunk.seen_until)

    def pack(self, state: StreamState[Watched]) -> Packed:
        seen = state.inner
        memory = {"memory": packing.pack_memory(seen.memory)}
        inner = packing.join(memory, pairs=seen.pairs, reach=seen.reach, dropped=state.dropped)
        return packing.pack_stream(state, self._maker, inner)

    def unpack(self, packed: Packed) -> StreamState[Watched]:
        return packing.unpack_stream(packed, self._maker, self._unpacked)

    def _unpacked(self, kept: Packed) -> StreamState[Watched]:
        pairs, reach, dropped = (packing.count(kept, name) for name in ("pairs", "reach", "dropped"))
        seen = Watched(packing.unpack_memory(packing.part(kept, "memory"), self._empty()), pairs, reach)
        if dropped and not len(seen.memory):
            raise ValueError("everything was dropped")
        return self._state(StreamState(seen), seen, dropped)

    @cached_property
    def _maker(self) -> str:
        return packing.fingerprint("qwen2-vl", self.net)

    def ask(self, question: Question, state: StreamState[Watched], sampling: Sampling) -> Tokens:
        """Tokens of the answer. A frame without a partner is shown twice, as Qwen2-VL shows a still picture.

        A question pinned to a second sees what the stream still holds of the video up to that second: attention is
        causal, so this is the stream as it was then.
        """
        prompt, seen = self._put(question, state)
        return self._answer(prompt.after_video(question), prompt.stops, seen, sampling)

    def first_logits(self, question: Question, state: StreamState[Watched]) -> Tensor:
        prompt, seen = self._put(question, state)
        ids = prompt.after_video(question)
        return self._read(ids, self._text_place(seen), Answering(self._prefix, seen.memory, len(ids)))

    def _put(self, question: Question, state: StreamState[Watched]) -> tuple[ChatPrompt, Watched]:
        """The chat format, and what the question is put to."""
        if self._prompt is None:
            raise UserError("This checkpoint has no tokenizer, so it cannot be asked; add its tokenizer files.")
        if state.held:
            state = self._flushed(state)
        return self._prompt, state.inner if question.at is None else _until(state.inner, question.at)

    @torch.no_grad()
    def _flushed(self, state: StreamState[Watched]) -> StreamState[Watched]:
        return self._see(state.held * 2, state)

    def _see(self, frames: tuple[Frame, ...], state: StreamState[Watched]) -> StreamState[Watched]:
        """The state after whole pairs. A pass ends where tokens must go, so cutting never changes what is kept."""
        tokens_1TD, times_T, places_3T = self.vision.tokens(frames)
        assert places_3T is not None  # Qwen2-VL's tower gives every token one
        sizes = places_3T[0].bincount().tolist()  # tokens of each pair
        places_3T[0] += state.inner.pairs
        seen, dropped, start = state.inner, state.dropped, 0
        while sizes:
            if len(seen.memory) and len(seen.memory) + sizes[0] > self.limit:
                seen, gone = self._drop(seen, sizes[0])
                dropped += gone
            count = self._pairs_of_one_pass(sizes, len(seen.memory))
            end = start + sum(sizes[:count])
            seen = self._pass(seen, tokens_1TD[:, start:end], times_T[start:end], places_3T[:, start:end])
            sizes, start = sizes[count:], end
        return self._state(state, seen, dropped)

    def _pairs_of_one_pass(self, sizes: list[int], kept: int) -> int:
        """At least one pair, and as many as fit into the limit and into one pass."""
        room = min(TOKENS_PER_CALL, self.limit - kept)
        return max(1, int(np.searchsorted(np.cumsum(sizes), room, side="right")))

    def _pass(self, seen: Watched, tokens_1TD: Tensor, times_T: Tensor, places_3T: Tensor) -> Watched:
        view = Watching(self._prefix, seen.memory, times_T)
        # Positions count from the end of the text before the video (M-RoPE, arXiv 2409.12191, section 2.1).
        self.net.hidden(tokens_1TD, places_3T + self._text_start, view)
        return Watched(view.memory, int(places_3T[0, -1]) + 1, max(seen.reach, int(places_3T[1:].max()) + 1))

    def _drop(self, seen: Watched, size: int) -> tuple[Watched, int]:
        """Without the oldest pairs, so that KEPT_AFTER_DROP of the limit, or room for a pair of `size`, is left."""
        times = seen.memory.times
        target = max(0, min(int(KEPT_AFTER_DROP * self.limit), self.limit - size))
        cut = len(times) - target
        while 0 < cut < len(times) and times[cut] == times[cut - 1]:  # to the next pair's first token
            cut += 1
        return replace(seen, memory=replace(seen.memory, log=seen.memory.log.drop_oldest(cut))), cut

    def _state(self, state: StreamState[Watched], seen: Watched, dropped: int) -> StreamState[Watched]:
        note = ""
        if dropped:
            first = int(seen.memory.times[0])
            note = f"Only {self.limit:,} video tokens fit, so what came before second {first:,} is no longer seen."
        size = seen.memory.nbytes + self._prefix_bytes()
        return replace(state, inner=seen, memory_bytes=size, dropped=dropped, dropped_note=note)

    def _answer(self, ids: list[int], stops: Collection[int], seen: Watched, sampling: Sampling) -> Tokens:
        """No torch context is held over a `yield`: other models run on this thread in between."""
        view = Answering(self._prefix, seen.memory, len(ids) + sampling.max_tokens)
        position = self._text_place(seen)
        times, text, chance = seen.memory.times, TextStream(self.tokenizer), generator(sampling)
        for left in reversed(range(sampling.max_tokens)):
            logits_V = self._read(ids, position, view)
            looked, position = self._looked(view, times), position + len(ids)
            ids = [sample(logits_V, sampling, chance)]
            if ids[0] in stops:
                if rest := text.flush():
                    yield Token(ids[0], rest, looked)
                return
            yield Token(ids[0], text.push(ids[0]) + ("" if left else text.flush()), looked)

    def _text_place(self, seen: Watched) -> int:
        """Text goes on behind the video's largest position."""
        return self._text_start + max(seen.pairs, seen.reach)

    @torch.no_grad()
    def _read(self, ids: list[int], position: int, view: Answering) -> Tensor:
        """Logits (V,) after the last of `ids`, whose keys `view` now holds. `position`: of the first id."""
        for start in range(0, len(ids), TEXT_PER_CALL):
            part = torch.tensor(ids[start : start + TEXT_PER_CALL], device=self.device)
            places_3T = (torch.arange(len(part)) + position + start).expand(3, -1)
            view.gaze = None
            hidden_1TD = self.net.hidden(self.net.model.embed_tokens(part)[None], places_3T, view)
            view.length += len(part)
        return self.net.lm_head(hidden_1TD[0, -1])

    def _looked(self, view: Answering, times: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Where the newest token looked: the last layers' weights over the video alone, scaled to sum to 1."""
        assert view.gaze is not None  # a pass went before
        weights = view.gaze.double().cpu().numpy()
        total = weights.sum()
        return (times, weights / total) if total > 0 else None

    @torch.no_grad()
    def _read_prefix(self, opening: list[int]) -> Prefix:
        ids = torch.tensor(opening, device=self.device)
        view = Watching(None, self._empty(block_slots=len(ids)), torch.zeros(len(ids)))
        self.net.hidden(self.net.model.embed_tokens(ids)[None], torch.arange(len(ids)).expand(3, -1), view)
        return Prefix(*next(view.memory.log.views("k", "v")))

    def _empty(self, block_slots: int = BLOCK_SLOTS) -> Memory:
        config, weight = self.net.model.config, self.net.lm_head.weight
        width = config.hidden_size // config.num_attention_heads
        layers, heads = config.num_hidden_layers, config.num_key_value_heads
        return Memory.empty(layers, heads, width, weight.dtype, weight.device, block_slots=block_slots)

    def _prefix_bytes(self) -> int:
        return self._prefix.k.nbytes + self._prefix.v.nbytes if self._prefix else 0


# --- what a checkpoint of it is --------------------------------------------------------------------------------------


def _recognises(config: Config) -> bool:
    """The first of SYSTEMS has it, and Vamba, which calls itself the same, comes before."""
    return config.get("model_type") == "qwen2_vl"


def _wrap(net: Qwen2VL, of: Checkpoint) -> TransformerModel:
    vision = QwenVision.of_checkpoint(net.visual, of.folder)
    return TransformerModel(net, vision, read_tokenizer(of.folder), of.name)


QWEN2_VL = System(
    name="Qwen2-VL",
    recognises=_recognises,
    build=Qwen2VL,
    our_key=published_key,
    finish=Qwen2VL.finish,
    wrap=_wrap,
    partner=lambda config: "TIGER-Lab/Vamba-Qwen2-VL-7B",
    rows=(
        Row(
            "`Qwen/Qwen2-VL-7B-Instruct`: the transformer it was made from",
            runs_on="GPU, bf16",
            weights="16.6 GB",
            state="none",
            minute="515 MB",
            hour="oldest frames drop after 3.4 minutes (30,720 tokens)",
        ),
    ),
)
