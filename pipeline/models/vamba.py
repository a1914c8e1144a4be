"""The published Vamba (arXiv 2503.11579) behind the common face; its network is in layers/vamba.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipeline.gpu.device import sent
from pipeline.gpu.dispatch import backend
from pipeline.layers.decoding import ChatPrompt, TextStream, generator, sample
from pipeline.layers.int8 import Int8Linear
from pipeline.layers.reading import Reader, shares, until
from pipeline.layers.vamba import Vamba
from pipeline.memory.memory import Memory, Policy
from pipeline.memory.tiers import Tier
from pipeline.models.vamba_graphs import LiveRecordings, Recordings
from pipeline.stream import Question, Sampling, StreamState, Token, UserError, VideoChunk


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
