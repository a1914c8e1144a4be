"""The nouns: what flows through the pipeline. Frozen values, no networks, no torch at import time.

Tensor names carry their dimensions as a suffix where it helps. The key, once:

    B batch        T tokens of one call     D model width       S memory slots
    H heads        P width of one head      N SSM state width   G groups of B and C (Mamba-2)
    K key/value heads                       Q queries           V vocabulary

`A, B, C, D, dt` at the start of a name keep their meaning from the Mamba-2 paper (arXiv 2405.21060);
as a suffix they are dimensions: `B_BTGN` is the matrix B, shaped batch x tokens x groups x state.

Three words, never mixed: *state* is what a backbone carries from chunk to chunk, *memory* is what the
decoder may look at, *cache* is the text decoder's own keys and values inside one conversation.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, Self, TypeAlias, TypeVar

if TYPE_CHECKING:  # numpy and torch cost time at import; the annotations do not need them
    import numpy as np
    from torch import Tensor

B = TypeVar("B")  # what one system's stream carries
EVENT_KINDS = ("shot", "caption", "chapter", "alert", "speech", "text", "sound", "gap")
LARGEST_CHUNK = 16  # frames a chunk while catching up, where a model offers no better number


class UserError(Exception):
    """Something a visitor can mend. The message is one sentence that names cause, consequence and cure."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture and the second it was shown. It stands until the next one.

    rgb: uint8 (height, width, 3), upright, square pixels. time: seconds on the source's own clock, starting at 0.
    until: the second at which the source ends, where this is its last picture and stands longer than others do.
    jpeg: of a camera, what it sent.
    """

    rgb: np.ndarray
    time: float
    until: float | None = None
    jpeg: bytes = b""

    def later(self, seconds: float) -> Frame:
        """The same picture so much later."""
        until = None if self.until is None else self.until + seconds
        return replace(self, time=self.time + seconds, until=until)


@dataclass(frozen=True, eq=False)
class VideoChunk:
    """Consecutive frames, at least one, in order of time. How a video is cut into chunks never changes results."""

    frames: tuple[Frame, ...]

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("a VideoChunk needs at least one frame")

    @property
    def seen_until(self) -> float:
        """Seconds of the video that are seen with this chunk."""
        return self.frames[-1].time if self.frames[-1].until is None else self.frames[-1].until


@dataclass(frozen=True)
class Evidence:
    """A moment an answer rests on: its peak `time`, its `start` and `end` in seconds, its share of the weight."""

    time: float
    weight: float
    start: float
    end: float


@dataclass(frozen=True)
class Event:
    """Something worth a mark on a stream's timeline, noticed after it was seen.

    time, until: seconds; until None: it still goes on. kind: one of EVENT_KINDS. text: for people, may be empty.
    weight: 0 to 1, how much: of a shot how unlike the one before, of a caption, an alert and what a late sense gleaned
    how surely it was noticed, of a chapter its share of the stream.
    """

    time: float
    kind: str
    text: str = ""
    weight: float = 1.0
    until: float | None = None


@dataclass(frozen=True)
class Rule:
    """What a visitor wants to be told of. says: how it was understood, and the text of its alerts. cool_down: seconds
    of the video after an alert in which there is no other one. number: its own, in its stream."""

    text: str
    says: str
    cool_down: float
    number: int


@dataclass(frozen=True)
class Reach:
    """How far a late sense has come with a stream. doing: what it does, for people ("Listening"). until: the second up
    to which it has gone; done: it has gone through all there is. lacks: why it finds nothing, in a sentence."""

    sense: str
    doing: str
    until: float = 0.0
    done: bool = False
    lacks: str = ""


@dataclass(frozen=True)
class Question:
    """What a visitor asks. `history` holds earlier (question, answer) pairs of the same conversation, oldest first.

    at: second of the video the question is pinned to (the player's time), or None for "as of now". events, reaches:
    what was noticed beside the state, and how far the senses that notice late have come.
    """

    text: str
    history: tuple[tuple[str, str], ...] = ()
    at: float | None = None
    events: tuple[Event, ...] = ()
    reaches: tuple[Reach, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; otherwise nucleus sampling with `top_p` from `seed`."""

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Token:
    """One step of an answer, as a Model yields it.

    text: the characters this token adds (may be empty while a multi-byte character is incomplete).
    looked: where in the video this token looked, as (times, weights), two float arrays of equal length with weights
    summing to 1, or None where the model cannot say.
    """

    id: int
    text: str
    looked: tuple[np.ndarray, np.ndarray] | None = None


class Basis(NamedTuple):
    """What an answer is made from. mode: "native" is what the weights were trained for, "streamed" what was carried
    through a longer stream than that. words: more about it for the visitor; "" where there is only one way."""

    mode: Literal["native", "streamed"]
    words: str = ""


NATIVE = Basis("native")


@dataclass(frozen=True)
class Answer:
    """An answer so far. Grows as it is yielded; the last one has `done` set and is whole."""

    text: str
    asked_at: float  # second of the video at which the question was put
    seen_until: float  # newest second the answering state had seen
    evidence: tuple[Evidence, ...] = ()
    tokens: int = 0
    first_token_s: float | None = None  # wall seconds from asking to the first token
    tokens_per_s: float | None = None
    done: bool = False
    stopped: bool = False
    known_until: float | None = None  # newest second it could know of: before `asked_at` where an older state answered
    basis: Basis = NATIVE


@dataclass(frozen=True, eq=False)
class StreamState(Generic[B]):
    """Everything seen so far. Holding one *is* a snapshot: later watching or asking never changes it.

    inner: what one system carries from chunk to chunk and what its decoder may look at; a frozen value of its own.
    held: frames that wait for a partner (Qwen2-VL's tower encodes pairs); they count as seen: a question flushes them.
    host_bytes: of `memory_bytes`, those that lie in the computer's memory instead of the GPU's. disk_bytes: in a file.
    dropped: memory slots or tokens that a limit has evicted or merged so far, and `dropped_note` says it in words.
    """

    inner: B
    held: tuple[Frame, ...] = ()
    frames: int = 0
    seen_until: float = 0.0
    state_bytes: int = 0  # constant for a recurrent backbone
    memory_bytes: int = 0  # grows with the video unless a policy bounds it
    host_bytes: int = 0
    disk_bytes: int = 0
    dropped: int = 0
    dropped_note: str = ""


JSON: TypeAlias = "dict[str, JSON] | list[JSON] | str | int | float | bool | None"


class Growing(Protocol):
    """Something that grows at its end, in numbered slots: of a long stream only what is new need be copied."""

    def __len__(self) -> int:
        """Slots that can still be seen."""

    @property
    def end(self) -> int:
        """The number of the next slot."""

    def since(self, slot: int) -> dict[str, Tensor]:
        """Copies on the CPU of what can still be seen from that slot on, by name; slots in the first dimension."""

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        """The same of all of it, a name after the other, each piece by piece: one at a time need be held."""

    def split(self) -> tuple[Self, Self]:
        """What lies in a file already, and takes no memory but its times; and what came after it."""

    def until(self, slots: int) -> Self:
        """As it was after its first `slots` slots that can still be seen."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A state fit to be written and sent: tensors on the CPU by name, the rest as JSON, and by name what only grows.

    What grows is a snapshot that is copied when it is wanted (pipeline/keeping/packing.py, `whole` and `newer`).
    begun: by name, the first of what grows, which is still there and shared; the tensors hold what came after it
    (pipeline/keeping/asleep.py). Of a stream that goes on in another process there is none.
    """

    tensors: dict[str, Tensor]
    document: dict[str, JSON]
    growing: dict[str, Growing] = field(default_factory=dict)
    begun: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Pass:
    """A pass through the network that an answer needs to go on. One of a single token may share it with other answers.

    reader: who reads the ids, a system's own. spans: parts of the ids whose gaze is wanted; None: of all, as one.
    draws: who draws the word after it, a system's own.
    """

    reader: Any
    ids: Sequence[int]
    spans: Sequence[range] | None = None
    draws: Any = None

    @property
    def shared(self) -> bool:
        return len(self.ids) == 1


class Spotter(Protocol):
    """A rule's text, read once. says: how it was understood. gone: it is about what is there no longer. adds_up: its
    scores are chances at even odds, so that what pictures say may be added up as logarithms of odds."""

    says: str
    gone: bool
    adds_up: bool

    def seen(self, state: StreamState, since: float) -> Sequence[tuple[float, float]]:
        """Of every picture after that second: its second, and how surely the thing is in it, 0 to 1."""


class Gleaned(NamedTuple):
    """What a late sense found since it last said so. until: second of the file up to which it has gone. lacks: why
    there is nothing to find, in a sentence; then no more comes."""

    until: float
    events: tuple[Event, ...] = ()
    lacks: str = ""


class LateSense(Protocol):
    """What is read or heard in a file once it was watched: it goes into the list of events, never into a state.

    name: for `--senses`. doing: what it does, for people. kinds: of its events. cost_s: processor seconds an hour of
    video, on one core.
    """

    name: str
    doing: str
    kinds: tuple[str, ...]
    cost_s: float

    def glean(self, path: str, stop: threading.Event) -> Iterator[Gleaned]:
        """Goes through a file within bounded memory; ends soon after `stop` is set. Raises UserError."""


Tokens: TypeAlias = Generator[Token, None, None]  # of one answer; closing it ends the answer
Steps: TypeAlias = Generator[Token | Pass, Any, None]  # the same; what a pass gives is sent back in


class Model(ABC, Generic[B]):
    """The face every system shows. Pure: no call changes an earlier state, and none changes the model.

    A system gives `start`, `watch` and `ask`; everything else has a default.
    """

    name: str = "Model"  # shown to the visitor
    about: str = ""  # a sentence or two for the visitor: what it is, and what it cannot do
    unit_frames: int = 1  # frames the tower encodes together: 2 for Qwen2-VL's pairs
    long_side: int = 640  # pixels of a frame's longer side the tower can use; sources shrink to it
    answers_together: int = 1  # how many answers may share a pass
    reads_together: bool = False  # whether passes of several tokens, too, may be shared
    tokenizer: Any = None  # of its words
    caption_question: str = "What is shown? Answer with one short sentence."  # where `shows` is None; "": no captions
    late_senses: Sequence[LateSense] = ()  # that go through its files, where they are wanted
    trained_frames: int | None = None  # of a video, in training and the authors' tests; None: as many as it can see

    @property
    def frames_together(self) -> int:
        """How many frames of several streams `watch_together` takes at most; 0: every stream is watched by itself."""
        return 0

    @property
    def backend(self) -> str:
        """Where and in what it computes, in words for the visitor."""
        return "cpu"

    @abstractmethod
    def start(self) -> StreamState[B]:
        """A stream that has seen nothing."""

    @abstractmethod
    def watch(self, chunk: VideoChunk, state: StreamState[B]) -> StreamState[B]:
        """The state after also seeing `chunk`. Any cutting of a video into chunks gives the same state."""

    def watch_together(self, chunks: Sequence[VideoChunk], states: Sequence[StreamState[B]]) -> list[StreamState[B]]:
        """The states of several streams, each after also seeing its own chunk: what `watch` would give each."""
        return [self.watch(chunk, state) for chunk, state in zip(chunks, states)]

    @abstractmethod
    def ask(self, question: Question, state: StreamState[B], sampling: Sampling) -> Tokens:
        """Tokens of the answer, as far as `state` has seen (held frames included). The caller may stop at any token."""

    def steps(self, question: Question, state: StreamState[B], sampling: Sampling) -> Steps:
        """`ask`, with the passes it needs handed out, so that several answers can share them."""
        return self.ask(question, state, sampling)

    def joined(self, passes: Sequence[Pass]) -> Sequence[Pass]:
        """Of the passes that answers wait for, in the order in which they came, those that go in this turn: all words,
        and of the longer ones so much that no word waits long; one at least."""
        long = [one for one in passes if len(one.ids) > 1][:1]
        return [one for one in passes if len(one.ids) == 1 or one in long]

    def passed(self, passes: Sequence[Pass]) -> Sequence[Any]:
        """What passes of `steps` give: one, or at most `answers_together` that may be shared.

        A failure leaves all their readers as they were.
        """
        raise NotImplementedError(f"{self.name} hands out no passes")

    def chunk_frames(self, backlog: int) -> int:
        """How many frames to watch in one go when `backlog` frames wait: whole units, one at least."""
        return max(1, min(backlog, LARGEST_CHUNK) // self.unit_frames) * self.unit_frames

    def shows(self, state: StreamState[B], start: float, end: float) -> str | None:
        """What the pictures from second `start` to before second `end` surely show, in a few words; "" where that is
        nothing. None: it keeps no index of what it saw, and must be asked."""
        return None

    def asks_late_senses(self, question: Question) -> tuple[str, ...]:
        """Names of the late senses that an answer to a question would rest on."""
        return ()

    def spotter(self, rule: str) -> Spotter | None:
        """Who looks for what a rule tells of. None: it keeps no index, and must be asked. UserError for a rule that it
        cannot judge."""
        return None

    def known_until(self, question: Question, state: StreamState[B]) -> float:
        """The newest second that an answer can know of: where it is pinned to one, no later than that."""
        return state.seen_until if question.at is None else min(question.at, state.seen_until)

    def first_logits(self, question: Question, state: StreamState[B]) -> Tensor:
        """Logits (V,) that the first token of an answer is drawn from. UserError where answers are not drawn so."""
        raise UserError(f"{self.name} does not say how likely its answers are, so they were not compared.")

    def basis(self, question: Question, state: StreamState[B]) -> Basis:
        """Whether an answer keeps to what the weights were trained for."""
        if self.trained_frames is None or state.frames <= self.trained_frames:
            return NATIVE
        return Basis("streamed", f"carried through {state.frames:,} pictures, tested on {self.trained_frames:,}")

    def is_finite(self, state: StreamState[B]) -> bool:
        """Whether what the state carries on are numbers: one NaN in a recurrent state stays for ever."""
        return True

    def finite_later(self, state: StreamState[B]) -> bool | Callable[[], bool]:
        """The same, or where it takes a wait for a GPU, what will wait for no more than this state and then say it."""
        return self.is_finite(state)

    def pack(self, state: StreamState[B]) -> Packed:
        """All of the state. Watching on after `unpack` is, bit for bit, watching on (same device, same cuts)."""
        raise UserError(f"A stream of {self.name} cannot be kept, so nothing was; watch the video again instead.")

    def unpack(self, packed: Packed) -> StreamState[B]:
        """The state that was packed, sharing nothing with `packed`. UserError for another model's or a damaged one."""
        raise UserError(f"A stream of {self.name} cannot be kept, so none can go on; watch the video again instead.")
