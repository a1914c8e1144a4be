"""The published Vamba (arXiv 2503.11579) behind the common face; its network is in layers/vamba.py."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.gpu.device import all_finite, sent, told_later
from pipeline.gpu.dispatch import backend, has_kernels
from pipeline.keeping import packing
from pipeline.layers.decoding import ChatPrompt, TextStream, generator, sample
from pipeline.layers.int8 import Int8Linear
from pipeline.layers.mamba2 import MixerState
from pipeline.layers.reading import TextDecoder, served, shares, until
from pipeline.layers.vamba import Vamba, VambaConfig
from pipeline.memory.memory import Memory, Policy
from pipeline.memory.tiers import Tier
from pipeline.models.answering import TOGETHER, DecoderModel
from pipeline.models.system import Checkpoint, Config, Golden, Row, Sizes, System, outputs_of
from pipeline.models.vamba_graphs import ChunkRecordings, TextRecordings
from pipeline.models.vamba_streams import FEWEST_UNRECORDED, split_units, watch_streams
from pipeline.models.vamba_together import ANSWERS, SharedRecordings
from pipeline.options import ModelOptions
from pipeline.stream import Frame, Packed, Pass, Question, Sampling, Steps, StreamState, Token, UserError, VideoChunk
from pipeline.towers.qwen import QwenVision, as_tower, build_tower, encode_pairs, places_of, published_key
from pipeline.towers.seen import Seen, Vision
from pipeline.weights.checkpoint import read_tokenizer


@dataclass(frozen=True, eq=False)
class VambaInner:
    """What a stream carries: the mixers' states, the memory, and how many units of frames were encoded."""

    states: tuple[MixerState, ...]
    memory: Memory
    units: int = 0


class VambaModel(DecoderModel[VambaInner]):
    """The published Vamba behind the common face (`stream.Model`).

    vision: what turns whole units of frames into tokens.
    tokenizer: a transformers tokenizer, or None (then asking is refused with a sentence).
    retrieve: an answer reads only so many frames, those the question's last words look at most; None reads all.
    It costs one more pass of the question over the whole memory; each token of the answer then costs the same
    however long the video is.
    gpu_memory: GB of a video's memory that stay on the GPU; older slots move to the computer's. None: all stay.
    """

    trained_frames = 1024  # of a video in the authors' longest evaluation, LVBench

    def __init__(
        self,
        net: Vamba,
        vision: Vision,
        tokenizer: Any,
        *,
        name: str = "Vamba",
        eight_bit: bool = False,
        policy: Policy | None = None,
        block_slots: int = 4096,
        retrieve: int | None = None,
        gpu_memory: float | None = None,
    ):
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
        # and not for what the question means. How layers are weighed against each other: `TextDecoder.looked`.
        self.watch_layers = range(n // 2, n)
        self.answers_together = ANSWERS if self.device.type == "cuda" else TOGETHER
        self._recordings, self._live = TextRecordings(net, self.watch_layers), ChunkRecordings(net)
        self._shared = SharedRecordings(self._recordings)

    @property
    def device(self) -> torch.device:
        return self.net.model.embed_tokens.weight.device

    @property
    def backend(self) -> str:
        kind, used = str(self.net.model.embed_tokens.weight.dtype).removeprefix("torch."), backend(self.device)
        kind += ", weights in 8 bits" if isinstance(self.net.lm_head, Int8Linear) else ""
        if has_kernels(self.device) and not self._recordings.tapes.off:
            used += ", recorded"
        return f"{self.device.type}, {kind}; {used}"

    def chunk_frames(self, backlog: int) -> int:
        """Live: one unit. Catching up: the more the better until the kernels are full (4,800 tokens on an H100)."""
        most = 64 if self.device.type == "cuda" else 8
        return max(self.unit_frames, min(backlog, most) // self.unit_frames * self.unit_frames)

    def start(self) -> StreamState[VambaInner]:
        cfg, weight = self.net.cfg, self.net.model.embed_tokens.weight
        memory = Memory.empty(
            len(cfg.cross_layers),
            cfg.n_kv_heads,
            cfg.head_dim,
            weight.dtype,
            weight.device,
            eight_bit=self.eight_bit,
            policy=self.policy,
            block_slots=self.block_slots,
            tier=self.tier,
        )
        self._shared.prepare(memory)
        inner = VambaInner(self.net.start(), memory)
        return self._counted(StreamState(inner), inner)

    def watch(self, chunk: VideoChunk, state: StreamState[VambaInner]) -> StreamState[VambaInner]:
        frames = state.held + chunk.frames
        whole = len(frames) // self.unit_frames * self.unit_frames
        if whole:
            state = self._encode(frames[:whole], state)
        count = state.frames + len(chunk.frames)
        return replace(state, held=frames[whole:], frames=count, seen_until=chunk.seen_until)

    @property
    def frames_together(self) -> int:
        """Of several streams in one turn. Positions that go on from each stream's own count are one stream's."""
        return 0 if self.net.cfg.cross_rope else self.chunk_frames(64)

    def watch_together(
        self, chunks: Sequence[VideoChunk], states: Sequence[StreamState[VambaInner]]
    ) -> list[StreamState[VambaInner]]:
        if self.device.type == "cuda" and len(chunks) < FEWEST_UNRECORDED:
            return super().watch_together(chunks, states)
        found, streams = split_units(chunks, states, self.unit_frames)
        watch_streams(self.net, self.vision, list(streams.values()))
        for n, one in streams.items():
            units = states[n].inner.units + len(one.frames) // self.unit_frames
            found[n] = self._counted(found[n], VambaInner(one.states, one.memory, units))
        return found

    @torch.no_grad()
    def _encode(self, frames: tuple[Frame, ...], state: StreamState[VambaInner]) -> StreamState[VambaInner]:
        """Nothing in here waits for the GPU, so one chunk's work is queued while the last one's is done."""
        seen, inner = self.vision.tokens(frames), state.inner
        positions = seen.positions
        if positions is not None and self.net.cfg.cross_rope:  # the time axis goes on from the stream's pair count
            positions = positions + sent(torch.tensor([[inner.units], [0], [0]]), positions.device)
        memory, write = inner.memory.append(sent(seen.times, seen.tokens.device))
        states = self._live.watch(seen.tokens, inner.states, write, positions)
        return self._counted(state, VambaInner(states, memory.applied(), inner.units + len(frames) // self.unit_frames))

    def _counted(self, state: StreamState[VambaInner], inner: VambaInner) -> StreamState[VambaInner]:
        """The state that carries this now, with its bytes and what was dropped."""
        memory = inner.memory
        return replace(
            state,
            inner=inner,
            state_bytes=sum(s.nbytes for s in inner.states),
            memory_bytes=memory.nbytes,
            host_bytes=memory.host_nbytes,
            dropped=memory.dropped,
            dropped_note=self._note(memory, inner.units * self.unit_frames),
        )

    def _note(self, memory: Memory, frames: int) -> str:
        notes = [f"{memory.dropped:,} oldest memory slots dropped"] if memory.dropped else []
        if memory.host_slots:
            notes.append(f"{memory.host_slots / len(memory):.0%} of it in the computer's memory: answers take longer")
        if self.retrieve and frames > self.retrieve:
            notes.append(f"an answer reads {self.retrieve:,} of {frames:,} frames")
        return "; ".join(notes)

    def is_finite(self, state: StreamState[VambaInner]) -> bool:
        return self.finite_later(state)()

    def finite_later(self, state: StreamState[VambaInner]) -> Callable[[], bool]:
        states = [s.ssm for s in state.inner.states]
        return told_later(all_finite(states)) if states else lambda: True  # one wait, not one a layer

    def pack(self, state: StreamState[VambaInner]) -> Packed:
        inner = state.inner
        parts = {"states": packing.pack_mixers(inner.states), "memory": packing.pack_memory(inner.memory)}
        return packing.pack_stream(state, self._maker, packing.join(parts, units=inner.units))

    def unpack(self, packed: Packed) -> StreamState[VambaInner]:
        return packing.unpack_stream(packed, self._maker, self._unpacked)

    def _unpacked(self, kept: Packed) -> StreamState[VambaInner]:
        start = self.start().inner
        states = packing.unpack_mixers(packing.part(kept, "states"), start.states)
        memory = packing.unpack_memory(packing.part(kept, "memory"), start.memory)
        inner = VambaInner(states, memory, packing.count(kept, "units"))
        return self._counted(StreamState(inner), inner)

    @cached_property
    def _maker(self) -> str:
        return packing.fingerprint("vamba", self.net)

    def steps(self, question: Question, state: StreamState[VambaInner], sampling: Sampling) -> Steps:
        if self._prompt is None:
            raise UserError("This checkpoint has no tokenizer, so questions cannot be put; add its tokenizer files.")
        memory = self._flushed(state).inner.memory
        if question.at is not None and len(memory):
            memory = until(memory, question.at)
        decoder, logits = yield from self._reading(question, memory)
        assert decoder.instants is not None  # `watch_layers` names some
        times, stream, chance = decoder.instants.times, TextStream(self.tokenizer), generator(sampling)
        looked = decoder.looked
        for _ in range(sampling.max_tokens):
            token = sample(logits, sampling, chance)
            if token in self._prompt.stops:
                break
            yield Token(token, stream.push(token), shares(times, looked))
            logits = yield Pass(decoder, [token])
            # The answer so far, not the token alone: scaled to 1 by itself, a comma's gaze would count as a noun's.
            newest = None if looked is None else decoder.looked
            looked = None if looked is None or newest is None else looked + newest
        if rest := stream.flush():
            yield Token(token, rest)

    def passed(self, passes: Sequence[Pass]) -> Sequence[Tensor]:
        recorded = None
        if len(passes) > 1:
            recorded = self._shared.feed([one.reader for one in passes], [one.ids[0] for one in passes])
        return super().passed(passes) if recorded is None else recorded

    def _read(self, question: Question, memory: Memory) -> tuple[TextDecoder, Tensor]:
        """`_reading` by itself."""
        return served(self._reading(question, memory))

    def _reading(self, question: Question, memory: Memory) -> Generator[Pass, Tensor, tuple[TextDecoder, Tensor]]:
        """The question read over the memory, or over the moments of it that it asks for, and the logits after it."""
        assert self._prompt is not None  # or `ask` has refused
        opening, ids = self._prompt.before_video, self._prompt.after_video(question)
        decoder = TextDecoder(self.net, memory, self.watch_layers, self._recordings)
        logits = yield from decoder.question_in_pieces(opening, ids)
        instants, count = decoder.instants, None if self.retrieve is None else -(-self.retrieve // self.unit_frames)
        if count is not None and instants is not None and count < len(instants):
            looked = decoder.looked
            assert looked is not None  # a question was just read
            memory = memory.select(instants.best(looked, count))
            decoder = TextDecoder(self.net, memory, self.watch_layers, self._recordings)
            logits = yield from decoder.question_in_pieces(opening, ids)
        return decoder, logits

    def _flushed(self, state: StreamState[VambaInner]) -> StreamState[VambaInner]:
        """The state with its held frames encoded too: the last one repeated to fill the unit, as for a still image."""
        if not state.held:
            return state
        fill = (state.held[-1],) * (self.unit_frames - len(state.held))
        return self._encode(state.held + fill, state)


# --- what a checkpoint of it is --------------------------------------------------------------------------------------


def _recognises(config: Config) -> bool:
    return "vision_mamba_mixer_config" in config


def _build(config: Config) -> Vamba:
    return Vamba(VambaConfig.from_dict(config), build_tower(config["vision_config"]))


def _unused(config: Config) -> tuple[str, ...]:
    """The last mixer: 157 MB of the published checkpoint."""
    return (f"model.layers.{config['num_hidden_layers'] - 1}.vision_mixer",)


def _wrap(net: Vamba, of: Checkpoint) -> VambaModel:
    eyes = QwenVision.of_checkpoint(as_tower(net.visual), of.folder)
    saving = of.options.model_dump(include={"eight_bit", "retrieve", "gpu_memory"})
    return VambaModel(net, eyes, read_tokenizer(of.folder), name=of.name, **saving)


# --- against the published code --------------------------------------------------------------------------------------


class VambaGolden(Golden):
    """Golden tensors of Vamba through the same code that watches video: tower, column, memory, decoder.

    patches: (t*h*w, C*2*14*14). grid: (pairs, rows, columns) of every video. block_slots: of the memory, so small that
    tiny videos span several blocks.
    """

    block_slots = 48

    def __init__(self, net: Vamba, expected: Mapping[str, Tensor]):
        weight = net.model.embed_tokens.weight
        self.net, self.expected = net, expected
        self.grid = tuple(tuple(row) for row in expected["video_grid_thw"].tolist())
        self.patches = expected["pixel_values_videos"].to(weight.device, weight.dtype)
        self.prompt: list[int] = expected["input_ids"][0].tolist()
        one = len(self.grid) == 1  # frames of several videos would have no common clock
        self.kinds = ("frames" if one else "pairs", "pairs", "tokens")

    def whole(self) -> dict[str, Tensor]:
        return self.recompute(self.by_pairs(self.grid))

    def cut(self, kind: str, sizes: Sizes) -> dict[str, Tensor]:
        if kind == "frames":  # odd numbers too
            return self.by_frames(sizes(2 * self.grid[0][0], 5))
        if kind == "tokens":
            embeds = torch.cat(list(self.by_pairs(self.grid)), dim=1)
            return self.recompute(embeds.split(sizes(embeds.shape[1]), dim=1))
        return self.recompute(self.by_pairs([(n, h, w) for t, h, w in self.grid for n in sizes(t)]))

    def by_pairs(self, parts: Sequence[tuple[int, int, int]]) -> Iterator[Tensor]:
        """Visual tokens (1, T, D) of each part (pairs, rows, columns) of the video, each through the tower alone."""
        start = 0
        for t, h, w in parts:
            patches = self.patches[start : start + t * h * w]
            start += t * h * w
            yield encode_pairs(as_tower(self.net.visual), patches, torch.tensor([(t, h, w)]))[None]

    @torch.no_grad()
    def recompute(self, pieces: Iterable[Tensor]) -> dict[str, Tensor]:
        """All golden tensors, the column fed with these pieces (1, T, D) of visual tokens, state carried between."""
        stream, embeds, layers = _Column(self), [], []
        for piece in pieces:
            embeds.append(piece)
            layers.append(stream.watch(piece))
        out = {"visual_embeds": torch.cat(embeds, dim=1)}
        out |= {f"video_hidden.{n}": torch.cat(parts, dim=1) for n, parts in enumerate(zip(*layers), start=1)}
        return out | self._read(stream.memory)

    def by_frames(self, sizes: Sequence[int]) -> dict[str, Tensor]:
        """What the decoder reads and says, the video in chunks of `sizes` frames through the model's own `watch`."""
        model = VambaModel(self.net, GoldenVision(self), None, block_slots=self.block_slots)
        state, frames = model.start(), [Frame(np.zeros((1, 1, 3), np.uint8), float(n)) for n in range(sum(sizes))]
        for size in sizes:
            state, frames = model.watch(VideoChunk(tuple(frames[:size])), state), frames[size:]
        return self._read(state.inner.memory)

    @torch.no_grad()
    def _read(self, memory: Memory) -> dict[str, Tensor]:
        keys, values = memory.log.tensor("k"), memory.log.tensor("v")
        return {"memory.k": keys, "memory.v": values, "logits": self._logits(memory)} | self._greedy(memory)

    def _logits(self, memory: Memory) -> Tensor:
        """(1, n, V) of all prompt tokens."""
        net, decoder = self.net, TextDecoder(self.net, memory)
        ids = torch.tensor([self.prompt], device=net.model.embed_tokens.weight.device)
        places = torch.arange(ids.shape[1], device=ids.device)
        return net.logits(net.read(net.model.embed_tokens(ids), places, decoder.cache.attend, decoder.cross_attend))

    def _greedy(self, memory: Memory) -> dict[str, Tensor]:
        """The likeliest token at each of the golden steps, and its logits, one at a time with the conversation's cache.

        Each step goes on with the golden token: it is ours as long as they agree, and one slip does not spoil what
        follows.
        """
        if "greedy_ids" not in self.expected:
            return {}
        decoder, ids, logits = TextDecoder(self.net, memory), self.prompt, []
        for token in self.expected["greedy_ids"][0].tolist():
            logits.append(decoder.feed(ids))
            ids = [token]
        logits_QV = torch.stack(logits)
        return {"greedy_ids": logits_QV.argmax(-1)[None], "greedy_logits": logits_QV[None]}


class GoldenVision:
    """A tower's face that knows a frame by its time: golden data holds patches, not pictures."""

    unit_frames, long_side = 2, 1

    def __init__(self, golden: VambaGolden):
        self.golden = golden

    def tokens(self, frames: Sequence[Frame]) -> Seen:
        _, h, w = self.golden.grid[0]
        pairs = [int(frame.time) // 2 for frame in frames[::2]]
        patches = self.golden.patches.view(-1, h * w, self.golden.patches.shape[-1])[pairs].flatten(0, 1)
        grid = (len(pairs), h, w)
        tower = as_tower(self.golden.net.visual)
        tokens_TD = encode_pairs(tower, patches, torch.tensor([grid]))
        places_3T = places_of([grid], tower.spatial_merge_size).to(patches.device)
        return Seen(tokens_TD[None], 2.0 * (places_3T[0] + pairs[0]).double(), places_3T)


class _Column:
    """The video column with its state and memory, fed piece by piece."""

    def __init__(self, golden: VambaGolden):
        self.net, cfg, weight = golden.net, golden.net.cfg, golden.net.model.embed_tokens.weight
        layers = len(cfg.cross_layers)
        self.memory = Memory.empty(
            layers, cfg.n_kv_heads, cfg.head_dim, weight.dtype, weight.device, block_slots=golden.block_slots
        )
        self.places_3T = places_of(golden.grid, as_tower(self.net.visual).spatial_merge_size).to(weight.device)
        self.states, self.dead = self.net.start(), self.net.layers[-1].vision_mixer
        self.dead_state = self.dead.mixer.start(1) if self.dead else None

    def watch(self, v_1TD: Tensor) -> list[Tensor]:
        """v after each layer, of these tokens.

        The network never runs its last, dead mixer, since nothing reads it; golden data do, so it is run here.
        """
        read: list[Tensor] = []
        start = len(self.memory)
        end = start + v_1TD.shape[1]
        self.memory, write = self.memory.append(torch.arange(start, end))
        places = self.places_3T[:, start:end]
        with outputs_of([layer.vision_mixer for layer in self.net.layers]) as mixed:
            self.states = self.net.watch(v_1TD, self.states, lambda j, k, v: write(j, k[0], v[0]), places, seen=read)
        hidden = [mixed.get(layer, v) for layer, v in zip(self.net.cfg.cross_layers, read)]
        if self.dead:
            hidden[-1], self.dead_state = self.dead(read[-1], self.dead_state)
        elif self.states:  # a checkpoint may lack it; then its output cannot be compared
            hidden.pop()
        return hidden


VAMBA = System(
    name="Vamba",
    recognises=_recognises,
    build=_build,
    our_key=published_key,
    unused=_unused,
    wrap=_wrap,
    partner=lambda config: "Qwen/Qwen2-VL-7B-Instruct",
    options=ModelOptions,
    golden=VambaGolden,
    rows=(
        Row(
            "`TIGER-Lab/Vamba-Qwen2-VL-7B`: 11.3 B, 28 layers",
            runs_on="GPU, bf16",
            weights="22.5 GB",
            state="100 MB",
            minute="515 MB",
            hour="30.9 GB (15.7 GB in 8 bits)",
        ),
        Row(
            "the same, `--gpu-memory 15.4`",
            runs_on="GPU and host memory",
            weights="22.5 GB",
            state="100 MB",
            minute="515 MB",
            hour="15.4 GB on the GPU, 15.5 GB on the host",
        ),
    ),
)
