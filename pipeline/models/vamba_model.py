"""The published Vamba (arXiv 2503.11579) behind the common face; its network is in layers/vamba.py."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pipeline.gpu.device import all_finite, sent, told_later
from pipeline.gpu.dispatch import backend, has_kernels
from pipeline.keeping import packing
from pipeline.layers.decoding import ChatPrompt, TextStream
from pipeline.layers.drawing import Drawing, draw_together
from pipeline.layers.fp8 import rounding_told
from pipeline.layers.mamba2 import MixerState
from pipeline.layers.reading import MOST_READS, Opening, TextDecoder, served, until
from pipeline.layers.vamba import Vamba
from pipeline.memory.disk import HOURS, MEANS_SPARE, Disk
from pipeline.memory.memory import Memory, Policy
from pipeline.memory.tiers import Tier
from pipeline.models.answering import TOGETHER, DecoderModel
from pipeline.models.vamba_endless import MINUTES_BACK, READ_BACK, Far, note_of
from pipeline.models.vamba_graphs import ChunkRecordings, Place, TextRecordings
from pipeline.models.vamba_streams import FEWEST_UNRECORDED, split_units, watch_streams
from pipeline.models.vamba_together import ANSWERS, WORDS, SharedRecordings
from pipeline.stream import Frame, Packed, Pass, Question, Sampling, Steps, StreamState, Token, UserError, VideoChunk
from pipeline.towers.seen import Vision

BLOCK_SLOTS = 4096  # of the memory: 27 s of 640x360
BLOCK_SLOTS_ENDLESS = 1024  # whole blocks go to the file: up to two more than the minutes asked for stay, 14 s, not 55


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
    endless: minutes that stay on the GPU. Older ones go to a file, and an answer reads `retrieve` of their frames (64)
    beside all of the newest (vamba_endless.py). None: all stay.
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
        block_slots: int | None = None,
        retrieve: int | None = None,
        gpu_memory: float | None = None,
        endless: float | None = None,
    ):
        self.net, self.vision, self.tokenizer, self.name = net.eval(), vision, tokenizer, name
        self.unit_frames, self.long_side = vision.unit_frames, vision.long_side
        self.eight_bit, self.policy = eight_bit, policy or Policy()
        self.block_slots = block_slots or (BLOCK_SLOTS if endless is None else BLOCK_SLOTS_ENDLESS)
        self.retrieve, self.tier = retrieve, None if gpu_memory is None else Tier(gpu_memory * 1e9)
        self.about = "A Mamba-2 column watches, and text cross-attends to what it saw. State is constant, memory grows."
        if self.tier:
            self.about += f" {gpu_memory:g} GB of it stay on the GPU; the computer holds the rest."
        self.disk = None if endless is None else Disk(endless, spare=MEANS_SPARE)
        if self.disk:
            self.about += f" The newest {endless:g} minutes stay at hand; older ones lie in a file for {HOURS} hours."
        elif retrieve:
            self.about += f" An answer reads the {retrieve:,} frames that fit its question best."
        self._rounding = rounding_told(net)
        self._prompt = ChatPrompt(tokenizer) if tokenizer is not None else None
        n = len(net.cfg.cross_layers)
        # The deeper half: in the first layers a word knows nothing yet of the words around it, so it looks for itself
        # and not for what the question means. How layers are weighed against each other: `TextDecoder.looked`.
        self.watch_layers = range(n // 2, n)
        self.answers_together = ANSWERS if self.device.type == "cuda" else TOGETHER
        self._recordings, self._live = TextRecordings(net, self.watch_layers), ChunkRecordings(net)
        self._shared = SharedRecordings(self._recordings)
        self._openings: WeakKeyDictionary[Memory, Opening] = WeakKeyDictionary()  # of memories that were asked about

    @property
    def device(self) -> torch.device:
        return self.net.model.embed_tokens.weight.device

    @property
    def backend(self) -> str:
        kind, used = str(self.net.model.embed_tokens.weight.dtype).removeprefix("torch."), backend(self.device)
        kind += self._rounding
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
            disk=self.disk,
            ranked=self.disk is not None,
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
        place = Place(inner.memory, seen.times)
        states = self._live.watch(seen.tokens, inner.states, place.write, positions)
        units = inner.units + len(frames) // self.unit_frames
        return self._counted(state, VambaInner(states, place.memory.applied(), units))

    def _counted(self, state: StreamState[VambaInner], inner: VambaInner) -> StreamState[VambaInner]:
        """The state that carries this now, with its bytes and what was dropped."""
        memory = inner.memory
        return replace(
            state,
            inner=inner,
            state_bytes=sum(s.nbytes for s in inner.states),
            memory_bytes=memory.nbytes,
            host_bytes=memory.host_nbytes,
            disk_bytes=memory.disk_nbytes if self.disk else 0,
            dropped=memory.dropped,
            dropped_note=self._note(memory, inner.units * self.unit_frames),
        )

    def _note(self, memory: Memory, frames: int) -> str:
        notes = [f"{memory.dropped:,} oldest memory slots dropped"] if memory.dropped else []
        if memory.host_slots:
            notes.append(f"{memory.host_slots / len(memory):.0%} of it in the computer's memory: answers take longer")
        if self.disk:
            notes += note_of(memory, self.read_back)
        elif self.retrieve and frames > self.retrieve:
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
        near_from = memory.near_from
        if question.at is not None and len(memory):
            memory = until(memory, question.at)
        decoder, logits = yield from self._reading(question, memory, near_from)
        drawing, stream = Drawing(decoder, sampling), TextStream(self.tokenizer)
        for _ in range(sampling.max_tokens):
            token, looked = drawing.take(logits)
            if token in self._prompt.stops:
                break
            yield Token(token, stream.push(token), looked)
            logits = yield Pass(decoder, [token], draws=drawing)
        if rest := stream.flush():
            yield Token(token, rest)

    def joined(self, passes: Sequence[Pass]) -> Sequence[Pass]:
        """All words, and of the questions so many that no word waits long; where no word waits, what a pass holds."""
        words = [one for one in passes if len(one.ids) == 1]
        chosen: list[Pass] = []
        reads, rows = 0, len(words)
        for one in (one for one in passes if len(one.ids) > 1):
            reads += len(one.ids) * len(one.reader.memory or ())
            rows += len(one.ids)
            if chosen and (rows > WORDS or (words and reads > MOST_READS)):
                break
            chosen.append(one)
        return [*words, *chosen]

    def passed(self, passes: Sequence[Pass]) -> Sequence[Tensor]:
        """Where several words are drawn, all of them in one transfer."""
        found = self._passed(passes)
        words = [(one.draws, logits) for one, logits in zip(passes, found) if one.draws]
        if len(words) > 1:
            with suppress(torch.OutOfMemoryError):  # then each is drawn by itself
                draw_together(*zip(*words))
        return found

    def _passed(self, passes: Sequence[Pass]) -> Sequence[Tensor]:
        recorded = None
        if len(passes) > 1:
            recorded = self._shared.feed(*zip(*((one.reader, one.ids, one.spans) for one in passes)))
        return super().passed(passes) if recorded is None else recorded

    def _read(self, question: Question, memory: Memory) -> tuple[TextDecoder, Tensor]:
        """`_reading` by itself."""
        return served(self._reading(question, memory))

    @property
    def read_back(self) -> int:
        """Frames of an endless stream's file that an answer reads."""
        return self.retrieve or READ_BACK

    def _reading(
        self, question: Question, memory: Memory, near_from: int | None = None
    ) -> Generator[Pass, Tensor, tuple[TextDecoder, Tensor]]:
        """The question read over the memory, or over the moments of it that it asks for, and the logits after it."""
        assert self._prompt is not None  # or `ask` has refused
        opening, ids = self._prompt.before_video, self._prompt.after_video(question)
        count = None if self.retrieve is None else -(-self.retrieve // self.unit_frames)
        if self.disk:
            near_from, count = memory.near_from if near_from is None else near_from, None
            pairs = -(-self.read_back // self.unit_frames)
            memory = yield from self._with_far(memory, near_from, pairs, opening, ids)
        decoder, logits = yield from self._read_over(memory, opening, ids)
        instants = decoder.instants
        if count is not None and instants is not None and count < len(instants):
            looked = decoder.looked
            assert looked is not None  # a question was just read
            memory = memory.select(instants.best(looked, count))
            decoder = TextDecoder(self.net, memory, self.watch_layers, self._recordings)
            logits = yield from decoder.question_in_pieces(opening, ids)
        return decoder, logits

    def _with_far(
        self, memory: Memory, near_from: int, count: int, opening: Sequence[int], ids: Sequence[int]
    ) -> Generator[Pass, Tensor, Memory]:
        """What a question reads of a memory: all from the slot of that number on, and before it what it looks for in
        its coarse memory, which is looked through in the same way."""
        far = Far(memory, near_from, count)
        ranking = far.ranking
        if ranking is not None:
            if ranking.coarse is not None and ranking.disk is not None:
                assert memory.coarse is not None  # the ranking is a part of it
                near_from = memory.coarse.near_from
                ranking = yield from self._with_far(ranking, near_from, MINUTES_BACK, opening, ids)
            finder, _ = yield from self._read_over(ranking, opening, ids)
            far.found(finder)
        return far.brought_back()

    def _read_over(
        self, memory: Memory, opening: Sequence[int], ids: Sequence[int]
    ) -> Generator[Pass, Tensor, tuple[TextDecoder, Tensor]]:
        """A prompt read over one memory; its opening once for all questions about it."""
        known = self._openings.get(memory)
        decoder = TextDecoder(self.net, memory, self.watch_layers, self._recordings, known)
        logits = yield from decoder.question_in_pieces(opening, ids)
        if known is None:
            self._openings[memory] = decoder.opened(len(opening))
        return decoder, logits

    def _flushed(self, state: StreamState[VambaInner]) -> StreamState[VambaInner]:
        """The state with its held frames encoded too: the last one repeated to fill the unit, as for a still image."""
        if not state.held:
            return state
        fill = (state.held[-1],) * (self.unit_frames - len(state.held))
        return self._encode(state.held + fill, state)
