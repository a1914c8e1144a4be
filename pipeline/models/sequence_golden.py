"""Golden folders of the systems that are one causal sequence, recomputed by the code that watches and answers.

A folder holds one or more prompts ("native.", "video.", ...). Each is computed in one pass, then in random pieces of
its tokens, then through `SequenceModel.watch` from frames that stand for the folder's pictures; at last it is tried
whether asking leaves a stream as it was.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.layers.mamba2 import MixerState
from pipeline.layers.streamed import Watching
from pipeline.memory.memory import Memory
from pipeline.models.sequence import SequenceModel
from pipeline.models.system import Golden, Sizes
from pipeline.stream import Frame, Question, VideoChunk

BLOCK_SLOTS = 48  # of the keys' storage: so small that tiny golden videos span several blocks
Keys = list[tuple[Tensor, Tensor]]  # k and v (K, T, P) of every attention layer


@dataclass(frozen=True)
class Script:
    """One prompt of a folder, taken apart: it is the `sequence.Prompt` of a stream that ends with its question.

    name: in front of its tensors' names. befores, afters: text around every unit. behind: the question.
    """

    name: str
    opening: list[int]
    befores: list[list[int]]
    afters: list[list[int]]
    behind: list[int]
    stops: frozenset[int] = frozenset()

    def before(self, unit: int) -> list[int]:
        return self.befores[unit - 1]

    def after(self, unit: int) -> list[int]:
        return self.afters[unit - 1]

    def question(self, question: Question, units: int) -> list[int]:
        return self.behind


class _Eyes:
    """Eyes that know a frame by its time: golden data hold what a tower makes of pictures, not pictures."""

    long_side = 1

    def __init__(self, tokens_NLD: Tensor, unit_frames: int):
        self.unit_frames, self._tokens_NLD = unit_frames, tokens_NLD

    def tokens(self, frames: Sequence[Frame]) -> Tensor:
        return self._tokens_NLD[[int(frame.time) // self.unit_frames for frame in frames[:: self.unit_frames]]]


class _Fed:
    """A sequence fed piece by piece from its first token, state carried: the face without its bookkeeping."""

    def __init__(self, net: Any):
        layers, heads, width = net.keys
        first = next(net.parameters())
        self.net, self.states, self.length = net, net.start(), 0
        self.memory = None
        if layers:
            self.memory = Memory.empty(layers, heads, width, first.dtype, first.device, block_slots=BLOCK_SLOTS)

    def feed(self, x_1TD: Tensor, hidden: list[Tensor] | None = None) -> Tensor:
        view = None if self.memory is None else Watching(None, self.memory, torch.zeros(x_1TD.shape[1]))
        out, self.states = self.net(x_1TD, self.states, self.length, view, hidden)
        self.length += x_1TD.shape[1]
        self.memory = None if view is None else view.memory
        return out

    @property
    def keys(self) -> Keys:
        return _keys(self.memory, None)


def _keys(memory: Memory | None, prefix: Any) -> Keys:
    """Every attention layer's, those of the opening in front."""
    if memory is None:
        return []
    pairs = list(zip(memory.log.tensor("k"), memory.log.tensor("v")))
    if prefix is None:
        return pairs
    before = zip(prefix.k, prefix.v)
    return [
        (torch.cat([k, own_k], dim=1), torch.cat([v, own_v], dim=1)) for (k, v), (own_k, own_v) in zip(before, pairs)
    ]


class SequenceGolden(Golden):
    """A folder of one of these systems.

    tower: what the network makes of the folder's pictures, by name. tokens_NLD: visual tokens of every unit. Subclasses
    say how their folders call what is carried: at the end, and before the question (None: they hold none of it).
    """

    kinds = ("frames", "tokens", "fork")
    at_end = "state."
    before_question: str | None = None
    unit_frames = 1

    def __init__(
        self, net: Any, expected: Mapping[str, Tensor], scripts: list[Script], tower: dict[str, Tensor], tokens: Tensor
    ):
        self.net, self.expected, self.scripts = net, expected, scripts
        self.tower, self.tokens_NLD = tower, tokens

    @abstractmethod
    def carried(self, states: tuple[MixerState, ...], keys: Keys) -> dict[str, Tensor]:
        """All that a sequence carries, by the folder's names without their beginning."""

    @torch.no_grad()
    def whole(self) -> dict[str, Tensor]:
        out = self.tower | {"fork.changed": torch.tensor(0)}
        for script in self.scripts:
            out |= self._passed(script, None)
        return out

    @torch.no_grad()
    def cut(self, kind: str, sizes: Sizes) -> dict[str, Tensor]:
        if kind == "fork":
            return {"fork.changed": torch.tensor(self._changed_by_asking(self.scripts[-1]))}
        out: dict[str, Tensor] = {}
        for script in self.scripts:
            out |= self._passed(script, sizes) if kind == "tokens" else self._watched(script, sizes)
        return out

    def _passed(self, script: Script, sizes: Sizes | None) -> dict[str, Tensor]:
        """Everything of one prompt, its tokens in pieces of these sizes (None: in one pass); then the greedy steps."""
        x_1TD, video = self._inputs(script)
        fed, parts, pieces = _Fed(self.net), [], [x_1TD]
        if sizes is not None:
            pieces = x_1TD.split(sizes(x_1TD.shape[1]), dim=1)
        for piece in pieces:
            hidden: list[Tensor] = []
            last = fed.feed(piece, hidden)
            parts.append([*hidden, self.net.normed(last), self.net.logits(last)])
        *hidden, normed, logits = (torch.cat(part, dim=1) for part in zip(*parts))
        out = {f"hidden.{n}": part for n, part in enumerate(hidden)}
        out |= {"inputs_embeds": x_1TD, "hidden_norm": normed, "logits": logits, "fp64.logits": logits}
        out |= self._named_state(fed.states, fed.keys, self.at_end)
        if self.before_question and sizes is None:
            short = _Fed(self.net)
            short.feed(x_1TD[:, :video])
            out |= self._named_state(short.states, short.keys, self.before_question)
        steps = [self.net.logits(fed.feed(self._embedded([token]))[0, -1]) for token in self._steps(script)]
        return _named(script.name, out | _chosen([logits[0, -1], *steps]))

    def _watched(self, script: Script, sizes: Sizes) -> dict[str, Tensor]:
        """The state after the video and the greedy answer, frames in chunks of these sizes through the model's face."""
        model, told = self._stream(script, sizes)
        out = self._named_state(told.states, _keys(told.memory, model.prefix), self.before_question)
        parts = [script.behind, *([token] for token in self._steps(script))]
        conversation = model.conversation(told, sum(map(len, parts)))
        return _named(script.name, out | _chosen([conversation.feed(part) for part in parts]))

    def _changed_by_asking(self, script: Script) -> int:
        """How many tensors of a state, or answers, other questions change: all must stay as they were to the bit."""
        model, told = self._stream(script, lambda total, most=None: [total])

        def carried() -> dict[str, Tensor]:
            return self.carried(told.states, _keys(told.memory, model.prefix))

        before = {name: tensor.clone() for name, tensor in carried().items()}
        questions = [script.behind, script.behind[::-1], script.behind]
        answers = [model.conversation(told, len(ids)).feed(ids) for ids in questions]
        changed = sum(not torch.equal(before[name], tensor) for name, tensor in carried().items())
        return changed + (not torch.equal(answers[0], answers[2]))

    def _stream(self, script: Script, sizes: Sizes) -> tuple[SequenceModel, Any]:
        """The model's face before golden eyes, and what its stream carries after all of the prompt's frames."""
        eyes = _Eyes(self.tokens_NLD, self.unit_frames)
        model = SequenceModel(self.net, eyes, script, None, name="golden", about="")
        total = len(script.befores) * self.unit_frames
        state, frames = model.start(), [Frame(np.zeros((1, 1, 3), np.uint8), float(n)) for n in range(total)]
        for size in sizes(total):
            state, frames = model.watch(VideoChunk(tuple(frames[:size])), state), frames[size:]
        return model, state.inner

    def _inputs(self, script: Script) -> tuple[Tensor, int]:
        """A prompt's inputs (1, T, D), and how many of them come before the question."""
        parts = [self._embedded(script.opening)]
        for before, tokens_LD, after in zip(script.befores, self.tokens_NLD, script.afters):
            parts += [self._embedded(before), tokens_LD[None], self._embedded(after)]
        video = sum(part.shape[1] for part in parts)
        return torch.cat([*parts, self._embedded(script.behind)], dim=1), video

    def _embedded(self, ids: list[int]) -> Tensor:
        return self.net.embed(torch.tensor(ids, dtype=torch.long, device=self.tokens_NLD.device))

    def _steps(self, script: Script) -> list[int]:
        """The golden answer but its last token: each step goes on with it, so that one slip does not spoil the rest."""
        return self.expected[f"{script.name}greedy_ids"][0, :-1].tolist()

    def _named_state(self, states: tuple[MixerState, ...], keys: Keys, stem: str | None) -> dict[str, Tensor]:
        return {} if stem is None else {stem + name: tensor for name, tensor in self.carried(states, keys).items()}


def _chosen(logits: list[Tensor]) -> dict[str, Tensor]:
    logits_QV = torch.stack(logits)
    return {"greedy_ids": logits_QV.argmax(-1)[None], "greedy_logits": logits_QV[None]}


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the prompt's name in front, and the type's in front of that."""
    return {f"fp64.{prefix}{n[5:]}" if n.startswith("fp64.") else prefix + n: t for n, t in tensors.items()}
