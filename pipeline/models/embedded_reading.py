"""One question's pass through the embedded model's text column: read it, locate, look, and write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.clock import mmss
from pipeline.layers.mamba2 import MixerState
from pipeline.layers.reading import TextCache
from pipeline.memory.log import Log
from pipeline.memory.memory import Memory
from pipeline.models.embedded_net import TOKENS, EmbeddedConfig, EmbeddedNet
from pipeline.questions.asked import parse, without_notes
from pipeline.questions.composer import Composer
from pipeline.questions.facts import listing, shown_from
from pipeline.questions.gleaned import gleaned_reply
from pipeline.questions.index import read_index
from pipeline.questions.notes import MAYBE, Verdict, asked_about, note, spoken
from pipeline.questions.planner import READ, Earlier, Planner
from pipeline.questions.replies import reply
from pipeline.questions.router import Router
from pipeline.questions.things import Things
from pipeline.senses.sensed import Senses
from pipeline.stream import Question, StreamState

DESCRIBED = ("now", "at", "first", "last", "about", "after", "before", "list")  # plans that tell what a moment shows
TURNS_BACK = 4  # how far "and then?" may lead back
SYSTEM = "You watch a video and answer briefly."
HEAD = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
TURN = "<|im_start|>user\n{question}\n"  # the locator reads the question's tokens up to here
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


@dataclass(frozen=True, eq=False)
class EmbeddedInner:
    """What a stream carries. states: of the mixers (none in the twin). newest: (1280,) pooled features of the newest
    frame, to find cuts with. memory: ten slots a frame. index: a row a frame, see questions/index.py."""

    states: tuple[MixerState, ...]
    newest: Tensor | None
    memory: Memory
    index: Log


@dataclass(frozen=True, eq=False)
class Opening:
    """What every conversation begins with, as the lower layers read it: their output (1, T, D), keys and values."""

    lower: Tensor
    cache: TextCache


class Readable(Protocol):
    """What a reading needs of its model."""

    net: EmbeddedNet
    cfg: EmbeddedConfig
    tokenizer: Any
    senses: Senses
    planner: Planner
    router: Router | None

    @property
    def device(self) -> torch.device: ...

    @property
    def opening(self) -> Opening | None: ...

    def start_reading(self, memory: Memory, frames: Sequence[int]) -> Memory | None: ...

    def start_text(self, memory: Memory) -> tuple[TextCache, int]: ...


class Reading:
    """One question's pass through the text column: read it, locate, look, and write."""

    def __init__(self, model: Readable, question: Question, state: StreamState[EmbeddedInner]):
        self.model, self.net, self.whole, self.question = model, model.net, state.inner.memory, question
        log = state.inner.index
        if question.at is not None:
            frames = max(1, int(np.searchsorted(log.tensor("time").numpy(), question.at, "right")))
            log = log.until(frames)
            self.whole = replace(self.whole, log=self.whole.log.until(frames * TOKENS))
        until = state.seen_until if question.at is None else min(question.at, state.seen_until)
        self.index = read_index(log, model.cfg.cut, until)
        self.memory: Memory | None = None  # what the upper layers look at
        self.cache, self.position = model.start_text(self.whole)
        self.asked = parse(question.text, self.index.end, model.router)
        self.earlier = self._earlier(question, state) if question.history and self.asked.refers else None
        self._read(question)
        self.looked: tuple[np.ndarray, np.ndarray] | None = None

    def tokens(self, text: str) -> list[int]:
        return self.model.tokenizer(text, add_special_tokens=False)["input_ids"]

    def typed(self, text: str) -> list[int]:
        """Tokens of what a visitor wrote, as plain text: "<|im_end|>" in a question cannot end the turn."""
        return self.model.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def turn(self, question: str) -> list[int]:
        before, after = TURN.split("{question}")
        return self.tokens(before) + self.typed(question) + self.tokens(after)

    @torch.no_grad()
    def _read(self, question: Question) -> None:
        """Run the question through the lower layers and plan; where the upper layers look depends on the plan."""
        ids, asked = self.tokens(HEAD), self.turn(self.asked.text)
        for earlier, answer in question.history[-1:]:
            ids += (
                self.turn(without_notes(earlier)) + self.tokens(ANSWER) + self.typed(answer) + self.tokens(END + "\n")
            )
        ids, read, known = ids + asked, [], 0
        if opening := self.model.opening:
            self.cache.begin_with(opening.cache)
            read, known = [opening.lower], opening.lower.shape[1]
        self.positions = torch.arange(self.position, self.position + len(ids), device=self.model.device)
        h, layers = self._embed(ids[known:]), range(self.model.cfg.locate_layer)
        read.append(self.net.vamba.read(h, self.positions[known:], self.cache.attend, None, layers))
        self.lower = torch.cat(read, 1)
        own = self.lower[0, -len(asked) :]
        located = self.net.locator.read(own[-1:], own.mean(0, keepdim=True))
        self.verdict = self.model.planner.plan(self.asked, located, self.index, self.earlier)
        self.lengths = list(self.cache.used)  # what to go back to before each moment of a listing

    def _earlier(self, question: Question, state: StreamState[EmbeddedInner]) -> Earlier:
        """What "it" may be: the last question that named something, and where the last one led. Read anew, because a
        conversation keeps words alone: one pass of the lower layers for each of the last TURNS_BACK turns."""
        *before, (text, _) = question.history[-TURNS_BACK:]
        last = Reading(self.model, Question(text, tuple(before), question.at), state)
        return Earlier(last.earlier.asked if last.earlier else last.asked, last.verdict)

    @torch.no_grad()
    def look(self, frames: Sequence[int], time: float | None) -> None:
        """Let the upper layers read the question looking at these frames only."""
        self.cache.rewind(self.lengths)
        self.memory = self.model.start_reading(self.whole, frames)
        above = range(self.model.cfg.locate_layer, self.model.cfg.vamba.n_layers)
        self.net.vamba.read(self.lower, self.positions, self.cache.attend, self._cross_attend(), above)
        self.position = int(self.positions[-1]) + 1
        self.looked = self._evidence(self.verdict._replace(frames=tuple(frames), time=time))

    def _evidence(self, v: Verdict) -> tuple[np.ndarray, np.ndarray] | None:
        """The moment read, with its peak at the second the note names; None where the answer rests on no moment."""
        if v.plan in ("chat", "count") or not v.found or v.late:
            return None
        times = np.unique(np.append(self.index.times[list(v.frames)], [] if v.time is None else [v.time]))
        weights = np.where(times == v.time, 1.5, 1.0)
        # In a listing a frame weighs the same in every moment: one of a single frame hid the others.
        return times, weights / (READ + 0.5 if v.listed else weights.sum())

    def moments(self) -> list[Verdict]:
        """What is answered one after the other: the verdict, or each moment of a listing."""
        v = self.verdict
        listed = () if self.asked.length else v.listed
        times = v.times or [shown_from(self.index, frames) for frames in listed]
        found = [v._replace(frames=frames, time=time) for frames, time in zip(listed, times)]
        if found and self.model.router:
            said = listing(self.index, list(zip(times, listed)), self.model.senses, self._wanted())
            self.listing = {m.time: sentence for m, sentence in zip(found, said)}
            found = [m for m in found if self.listing[m.time]]
        return found or [v]

    def _wanted(self) -> Things | None:
        """What a list is of ("Which animals did you see?"), where it is not of everything."""
        return self.asked.wanted if any(self.asked.wanted) and not self.asked.when.both else None

    def composed(self, moment: Verdict) -> str:
        """What is said without the reader: how much was seen; and a doubt instead of a description where the towers are
        sure of nothing. The reader has never been shown anything it has no words for, and makes something up (of a
        galaxy: "A young girl is playing in a pool."). Empty where it is to write."""
        if said := reply(self.asked, self.earlier is not None, self.index.end):
            return said
        gleaned = gleaned_reply(self.asked, self.question, self.index.end)
        if gleaned.text and not self.verdict.late:
            self.looked = gleaned.looked
            return gleaned.text
        if self.verdict.listed and self.model.router:
            self.looked = self._evidence(moment)
            return self.listing[moment.time]
        told = dict.fromkeys(DESCRIBED, "describe") | {"yesno": "yesno", "yesno_now": "yesno", "find": "premise"}
        asked = self.asked.of(self.earlier.asked) if self.earlier else self.asked
        kind = asked.kind or ("premise" if asked.each and moment.plan in DESCRIBED else told.get(moment.plan))
        if kind is None and asked.each:  # who names a thing asks for it
            kind = "yesno" if "yes or no" in asked.cues else "premise"
        if kind and self.model.router:
            composer = Composer(kind, asked, moment, self.index, self.model.senses)
            if facts := composer.answer():
                self.looked = self._evidence(composer.verdict)
                return facts
        if moment.plan not in DESCRIBED or not moment.found or moment.late:
            return ""
        words = spoken(self.index.features, moment.frames)
        if any(not phrase.startswith(MAYBE) for phrase in words):
            return ""
        self.looked = self._evidence(moment)
        guesses = ", ".join(phrase.removeprefix(MAYBE) for phrase in words[:3])
        if self.verdict.listed and moment.time is not None:
            return f"{mmss(moment.time)} I am not sure" + f", maybe {guesses}" * bool(guesses) + "."
        return "I am not sure what this is." + f" My best guesses: {guesses}." * bool(guesses)

    def prompt(self, moment: Verdict) -> list[int]:
        """What is put before the model writes, after it looked: the note."""
        self.look(moment.frames, moment.time)
        said = asked_about(spoken(self.index.features, moment.frames), self.asked, bool(self.verdict.listed))
        return self.tokens(note(moment, said, self.index.end) + ANSWER)

    @torch.no_grad()
    def feed(self, ids: Sequence[int]) -> Tensor:
        """Logits (V,) after the given tokens."""
        h = self._embed(ids)
        positions = torch.arange(self.position, self.position + len(ids), device=h.device)
        h = self.net.vamba.read(h, positions, self.cache.attend, self._cross_attend())
        self.position += len(ids)
        return self.net.vamba.logits(h[:, -1])[0]

    def _embed(self, ids: Sequence[int]) -> Tensor:
        return self.net.vamba.model.embed_tokens(torch.tensor([list(ids)], device=self.model.device))

    def _cross_attend(self):
        memory = self.memory
        if memory is None:
            return None
        return lambda place, q_BHQP: memory.attend(place, q_BHQP[0])[0][None]
