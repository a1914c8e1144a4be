"""The embedded model: a small Vamba that ships with the code, and how it answers: locate, then look.

A frozen convolutional tower describes each frame (convnets.py); `FrameTokens` turns that into ten tokens that carry the
frame's second; the mixers of `vamba.Vamba` carry their state over them. Beside the keys and values of
cross-attention, the memory keeps one *locate key* a frame and the words the tower found.

An answer takes one pass of the text column, in three steps. The lower layers read the question; at `locate_layer` the
`Locator` says which moments it is about, or that there is none; the upper layers then see only the frames
of that moment, and a *note* in plain words (its time, what the tower named) follows the question, so that times, counts
and names are copied, not imagined. The moment is also the answer's evidence: they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipeline.clock import mmss
from pipeline.gpu.dispatch import backend
from pipeline.keeping import packing
from pipeline.layers.decoding import TextStream, generator, sample
from pipeline.layers.reading import TextCache
from pipeline.memory.disk import HOURS, Disk, disk_nbytes
from pipeline.memory.memory import Memory, Policy
from pipeline.models.answering import SteppedModel, passed_by_readings
from pipeline.models.embedded_net import FEATURES, TOKENS, EmbeddedNet, novelty_of
from pipeline.models.embedded_reading import END, HEAD, TURN, EmbeddedInner, Opening, Reading
from pipeline.questions.asked import parse
from pipeline.questions.gleaned import needed
from pipeline.questions.index import SENSED, index_log
from pipeline.questions.planner import Planner
from pipeline.questions.router import Router
from pipeline.senses.sensed import Senses
from pipeline.stream import Packed, Pass, Question, Sampling, Spotter, Steps, StreamState, Token, VideoChunk
from pipeline.timeline.indexed import IndexSpotter, Ratios, shown
from pipeline.timeline.rules import read_rule
from pipeline.towers.frame_tower import FrameTower
from pipeline.towers.named import NamingEyes


class EmbeddedModel(SteppedModel[EmbeddedInner]):
    """The small Vamba behind `stream.Model`. See the module's docstring for how it answers."""

    unit_frames, long_side = 1, 416
    BLOCK_SLOTS = 4096  # of the memory: up to a block more is allocated than is there
    name = "Vamba small (embedded)"
    about = (
        "A small model, taught by a few thousand stills and often unsure: it names everyday things and finds moments, "
        "but misses small objects and fine actions. Ask in English."
    )

    def __init__(
        self,
        net: EmbeddedNet,
        tower: FrameTower,
        tokenizer: Any,
        policy: Policy | None = None,
        senses: Senses | None = None,
        endless: float | None = None,
    ):
        """endless: minutes that stay in memory; older ones go to a file and fall out after a day. None: all stay."""
        self.disk = None if endless is None else Disk(endless, TOKENS)
        if endless is not None:
            self.about += f" The newest {endless:g} minutes stay in memory; older ones lie in a file for {HOURS} hours."
        self.net, self.tower, self.tokenizer = net.eval(), tower, tokenizer
        self.senses = senses or Senses()
        self.eyes: NamingEyes | None = None  # better ones, which name things and places
        self.ratios: Ratios | None = None  # what pictures say for a rule's thing, learnt from indexes like this one's
        self.router: Router | None = None  # without it the trained head tells what is asked
        self.alike: object = None  # held for the twin, who has the same (shipped.py)
        self.cfg, self.policy = net.cfg, _whole_frames(policy or Policy())
        self.planner = Planner(net.locator, net.cfg.calibration)
        self.end_id = tokenizer.convert_tokens_to_ids(END)

    @property
    def device(self) -> torch.device:
        return self.net.frames.place.device

    @property
    def backend(self) -> str:
        return f"{self.device.type}, text {str(self._text_dtype).removeprefix('torch.')}; {backend(self.device)}"

    def chunk_frames(self, backlog: int) -> int:
        """One live; eight when catching up: twice as quick a frame on CPU, and more gains nothing."""
        return max(1, min(backlog, 64 if self.device.type == "cuda" else 8))

    def start(self) -> StreamState[EmbeddedInner]:
        shape = self._memory_layers, self.cfg.vamba.n_kv_heads, self.cfg.vamba.head_dim
        rooms: Any = {"policy": self.policy, "disk": self.disk, "block_slots": self.BLOCK_SLOTS}
        memory = Memory.empty(*shape, self._text_dtype, self.device, **rooms)
        states = () if self.cfg.twin else self.net.vamba.start()
        inner = EmbeddedInner(states, None, memory, index_log(self.net.locator.query.out_features, self.senses.widths))
        return self._counted(StreamState(inner), inner)

    @property
    def _text_dtype(self) -> torch.dtype:
        return self.net.vamba.model.embed_tokens.weight.dtype

    @property
    def _memory_layers(self) -> int:
        return len(self.cfg.vamba.cross_layers)

    @torch.no_grad()
    def watch(self, chunk: VideoChunk, state: StreamState[EmbeddedInner]) -> StreamState[EmbeddedInner]:
        features = self.tower([frame.rgb for frame in chunk.frames])
        times = torch.tensor([frame.time for frame in chunk.frames], dtype=torch.float64)
        tokens = self.net.frames(features, times.to(self.device)).flatten(0, 1)[None]
        memory, states, keys = self._see(tokens, times, state)
        novelty, newest = novelty_of(features.pooled, state.inner.newest)
        features = features.cpu()  # senses and the index live there
        sensed = self.senses.see([frame.rgb for frame in chunk.frames], features)
        if self.eyes:  # what they name goes into the index; the state is made of the tower's own features
            features, places = self.eyes.seen([frame.rgb for frame in chunk.frames], features)
            sensed |= self.senses.placed(places)
        index = state.inner.index.append(
            time=times,
            key=keys.cpu(),
            novelty=novelty.cpu(),
            classes=features.classes,
            class_probs=features.class_probs,
            det_ids=features.det_ids,
            det_scores=features.det_scores,
            det_boxes=features.det_boxes,
            **{SENSED + name: numbers for name, numbers in sensed.items()},
        )
        before, memory = memory.dropped, memory.applied()
        index = index.drop_oldest((memory.dropped - before) // TOKENS)
        if self.disk:
            self.disk.send(index)
        state = self._counted(state, EmbeddedInner(states, newest, memory, index))
        return replace(state, frames=state.frames + len(chunk.frames), seen_until=chunk.seen_until)

    def _counted(self, state: StreamState[EmbeddedInner], inner: EmbeddedInner) -> StreamState[EmbeddedInner]:
        """The state that carries this now, with its bytes and what was dropped."""
        dropped = inner.memory.dropped // TOKENS
        return replace(
            state,
            inner=inner,
            state_bytes=sum(s.nbytes for s in inner.states) + FEATURES * 4,
            memory_bytes=inner.memory.nbytes + inner.index.nbytes,
            disk_bytes=inner.memory.disk_nbytes + disk_nbytes(inner.index) if self.disk else 0,
            dropped=dropped,
            dropped_note=self._dropped_note(dropped),
        )

    def pack(self, state: StreamState[EmbeddedInner]) -> Packed:
        inner = state.inner
        newest = {} if inner.newest is None else {"newest": packing.pack_tensor(inner.newest)}
        parts = {
            "states": packing.pack_mixers(inner.states),
            "memory": packing.pack_memory(inner.memory),
            "index": packing.pack_log(inner.index),
            "features": Packed(newest, {}),
        }
        return packing.pack_stream(state, self._maker, packing.join(parts))

    def unpack(self, packed: Packed) -> StreamState[EmbeddedInner]:
        return packing.unpack_stream(packed, self._maker, self._unpacked)

    def _unpacked(self, kept: Packed) -> StreamState[EmbeddedInner]:
        start = self.start().inner
        states = packing.unpack_mixers(packing.part(kept, "states"), start.states)
        memory = packing.unpack_memory(packing.part(kept, "memory"), start.memory)
        index = packing.unpack_log(packing.part(kept, "index"), start.index)
        if self.disk:  # it may have had no room for all of the memory
            index = index.drop_oldest(memory.dropped // TOKENS - index.gone)
            self.disk.send(index)
        if len(memory) != TOKENS * len(index):
            raise ValueError("memory and index are not of the same frames")
        like, newest = torch.empty(FEATURES, device=self.device), None
        if len(index):
            newest = packing.unpack_tensor(packing.part(kept, "features"), "newest", like)
        inner = EmbeddedInner(states, newest, memory, index)
        return self._counted(StreamState(inner), inner)

    @cached_property
    def _maker(self) -> str:
        kind = "embedded-twin" if self.cfg.twin else "embedded"
        eyes = [self.eyes.net] if self.eyes else []
        return packing.fingerprint(kind, self.net, self.tower, *self.senses.nets, *eyes)

    def _dropped_note(self, frames: int) -> str:
        full = f"Older than {HOURS} hours, or the disk is full" if self.disk else "The memory is full"
        return f"{full}: the oldest {frames:,} frames are no longer in it." if frames else ""

    def _see(self, tokens_1TD: Tensor, times: Tensor, state: StreamState[EmbeddedInner]):
        """Run the video column: the memory with the new keys and values, the new states, and the locate keys."""
        memory, write = state.inner.memory.append(times.repeat_interleave(TOKENS))
        seen: list[Tensor] = []
        states = self.net.vamba.watch(tokens_1TD, state.inner.states, lambda j, k, v: write(j, k[0], v[0]), seen=seen)
        last = slice(TOKENS - 1, None, TOKENS)
        return memory, states, self.net.locator.keys(seen[0][0, last], seen[self.cfg.locate_depth][0, last])

    def shows(self, state: StreamState[EmbeddedInner], start: float, end: float) -> str:
        return shown(state.inner.index, self.senses, start, end)

    def asks_late_senses(self, question: Question) -> tuple[str, ...]:
        return needed(parse(question.text, 0.0, self.router))

    def spotter(self, rule: str) -> Spotter:
        return IndexSpotter(read_rule(rule), lambda state: state.inner.index, None if self.eyes else self.ratios)

    def is_finite(self, state: StreamState[EmbeddedInner]) -> bool:
        return all(bool(torch.isfinite(s.ssm).all()) for s in state.inner.states)

    def passed(self, passes: Sequence[Pass]) -> Sequence[Tensor]:
        return passed_by_readings(self.net.vamba, passes)

    def steps(self, question: Question, state: StreamState[EmbeddedInner], sampling: Sampling) -> Steps:
        reading = Reading(self, question, state)
        chance, stream, left = generator(sampling), TextStream(self.tokenizer), sampling.max_tokens
        for i, moment in enumerate(reading.moments()):
            gap = " " * bool(i)
            if composed := reading.composed(moment):
                yield Token(self.end_id, gap + composed, reading.looked)  # not written, so it has no speed
                continue
            logits, looked = (yield Pass(reading, reading.prompt(moment))), reading.looked
            if reading.verdict.listed and moment.time is not None:
                yield Token(self.end_id, gap + (begun := mmss(moment.time)), looked)
                logits, gap, looked = (
                    (yield Pass(reading, reading.tokens(begun))),
                    "",
                    None,
                )  # every moment weighs the same
            while left > 0:
                token, left = sample(logits, sampling, chance), left - 1
                if token == self.end_id:
                    break
                yield Token(token, gap + stream.push(token), looked)
                logits, gap = (yield Pass(reading, [token])), ""
        if rest := stream.flush():
            yield Token(self.end_id, rest, reading.looked)

    def start_reading(self, memory: Memory, frames: Sequence[int]) -> Memory | None:
        """What the upper layers cross-attend to: the tokens of the located frames, and no others."""
        slots = torch.tensor(frames)[:, None] * TOKENS + torch.arange(TOKENS)
        return memory.select(slots.flatten())

    def start_text(self, memory: Memory) -> tuple[TextCache, int]:
        """A question's cache, and the position of its first token: text and video share no positions."""
        return TextCache(self.cfg.vamba.n_layers), 0

    @cached_property
    def opening(self) -> Opening | None:
        """HEAD and a turn's beginning, read once for all questions. None where their places depend on the video."""
        parts = (HEAD, TURN.split("{question}")[0])
        ids = [token for part in parts for token in self.tokenizer(part, add_special_tokens=False)["input_ids"]]
        cache, positions = TextCache(self.cfg.vamba.n_layers), torch.arange(len(ids), device=self.device)
        with torch.no_grad():
            h = self.net.vamba.model.embed_tokens(torch.tensor([ids], device=self.device))
            lower = self.net.vamba.read(h, positions, cache.attend, None, range(self.cfg.locate_layer))
        return Opening(lower, cache)


def _whole_frames(policy: Policy) -> Policy:
    """A budget holds whole frames: the index beside the memory has one row for each."""
    return replace(policy, amount=max(1, policy.amount // TOKENS) * TOKENS) if policy.kind == "budget" else policy
