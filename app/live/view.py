"""View: all that a page or a program may know of a stream, taken at one moment. Frozen values that can be pickled.

Panels, handlers and endpoints read nothing else of a stream, so a stream may as well live in another process.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from pipeline import Aged, Answer, Event, Reach, Rule, mmss

# The kinds of source, as the visitor reads them
UPLOAD, WEBCAM, SCREEN, EXAMPLE = "Upload", "Webcam", "Screen", "Example"
OWN = (UPLOAD, WEBCAM, SCREEN, EXAMPLE)  # what a visitor can start alone; other sources have an operator's names
CLEAR, RESET = "Clear", "Reset"  # what can be taken back for a while
FAR_BEHIND = 3  # camera pictures waiting, beyond which a stream is catching up
AHEAD_S = 2.0  # seconds a player may be ahead of what was seen before the stream is called behind


NOTHING_WATCHED = "Nothing is watched, so there is nothing to {}; start a video or the camera first."

TIME = re.compile(r"(?<![\d:.])(?:(\d{1,3}):)?(\d{1,2}):([0-5]\d)(?![\d:])", re.ASCII)  # as `mmss` writes it


class Phase(StrEnum):
    """Where a stream stands. Only `Watch` moves it."""

    IDLE = "idle"  # there is no source
    WATCHING = "watching"  # pictures are, or would be, taken right now
    PAUSED = "paused"  # by the visitor
    STOPPED = "stopped"  # a model could not take a chunk; `error` says why, and resuming offers it again
    ENDED = "ended"  # the source is over; with an `error` it broke
    CLOSED = "closed"  # given up: nobody looks at it any more


class Picture(NamedTuple):
    """A small JPEG of the stream and its second."""

    time: float
    jpeg: bytes


class Sample(NamedTuple):
    """What one chunk cost a model: second of the video, wall ms per frame, and bytes held after it."""

    at: float
    ms: float
    state_bytes: int
    memory_bytes: int


class KeptView(NamedTuple):
    """A stream that is kept: bytes on the disk, until when if nothing more is written (as `time.time` counts), and what
    should be known of it in a sentence, such as why keeping stopped."""

    nbytes: int
    until: float
    told: str = ""
    encrypted: bool = False  # by the visitor's key


class Recalled(NamedTuple):
    """A probe of what is remembered: by model, in the order of `View.names`, what it recalled by age. at: second of the
    stream as of which it was asked; done, of: questions; error: why there is none, in a sentence."""

    found: tuple[tuple[Aged, ...], ...] = ()
    at: float = 0.0
    done: int = 0
    of: int = 0
    error: str = ""

    @property
    def over(self) -> bool:
        return bool(self.error) or self.done >= self.of


class Told(NamedTuple):
    """The state line in words. kind: one of idle, waiting, watching, catching, paused, asleep, waking, ended, error."""

    kind: str
    word: str
    detail: str


@dataclass(frozen=True)
class Turn:
    """A question, and one model's answer as far as it is written. `error` is a sentence where there is no answer.

    id: of the question, the same for every model it was put to. at: the second of the video it is about, or None.
    repeats: how often it was asked before. pictures: JPEGs of the answer's moments, kept with it so that they outlive
    the stream's own thumbnails; said: those of the other times its words say. stream: which of the session's streams
    it is about. place: 2 for the next one that waits, 3 for the one after it; 0 for what does not wait. again: it is
    being asked once more, and this turn stays until that answer begins. wrong: the visitor says the answer is.
    retry_of: the id of the question when it was asked first, None where that was now.
    """

    id: int
    question: str
    at: float | None = None
    repeats: int = 0
    answer: Answer | None = None
    error: str = ""
    pictures: tuple[bytes | None, ...] = ()
    said: tuple[Picture, ...] = ()
    stream: int = 0
    place: int = 0
    again: bool = False
    wrong: bool = False
    retry_of: int | None = None

    @property
    def first(self) -> int:
        """The question's first id: the same however often it was asked again, and by whichever model."""
        return self.id if self.retry_of is None else self.retry_of

    @property
    def over(self) -> bool:
        """Whether no more of it will come."""
        return bool(self.error) or (self.answer is not None and self.answer.done)


@dataclass(frozen=True)
class ModelView:
    """One model's run over the stream. note: what it left out or dropped, in words. since: the second of the video
    from which on it has watched. first_tokens: (second of the video, wall seconds to an answer's first token)."""

    name: str
    backend: str
    frames: int = 0
    seen_until: float = 0.0
    state_bytes: int = 0
    memory_bytes: int = 0
    note: str = ""
    samples: tuple[Sample, ...] = ()
    first_tokens: tuple[tuple[float, float], ...] = ()
    behind: bool = False
    since: float = 0.0


@dataclass(frozen=True)
class View:
    """A stream at one moment; the default is a stream that has no source.

    upload: where the player finds the visitor's file. models: those that watch, the page's own first. names: of all
    models that could, in the same order. conversations: the turns of each of them. film: the pictures that differ
    most. events: what happened when (pipeline/timeline), first what is over, then what goes on. rules: what the visitor
    wants to be told of; the text of an alert is what its rule `says`. reaches: how far the
    senses have come that go through the file once it was watched. alerted: the pictures at the seconds of the
    newest alerts. Times in seconds of the video; progress: share of
    the file read, 0 to 1; rate: seconds of video per second of work, over all that was watched; waiting and dropped:
    camera pictures; skipped: damaged pictures of a file; notes: what of it was mended or left out, in sentences;
    silent: whether a camera has sent nothing for a while. stream: the number of this stream among the session's own;
    forgotten: turns that are not kept any more; undo: what could be taken back now ("Clear", "Reset" or "").
    keeping: whether the visitor wants the stream kept; kept: what is. begins: second of the stream at the first picture
    of the source that is shown, where others came before; forked: of what the stream is a fork, in a sentence. shared:
    whether it is an operator's, watched for everybody; trouble: why nothing comes from there, in a sentence; newest:
    its newest picture, as it came. recalled:
    the newest probe of what is remembered of this stream. asleep: where the stream lies on the disk, the seconds that
    bringing it back takes, about; waking: whether that is being done.
    """

    phase: Phase = Phase.IDLE
    error: str = ""
    source: str = ""
    file_name: str = ""
    upload: str | None = None
    live: bool = False
    duration: float | None = None
    progress: float = 0.0
    rate: float | None = None
    waiting: int = 0
    dropped: int = 0
    skipped: int = 0
    notes: tuple[str, ...] = ()
    silent: bool = False
    comparing: bool = False
    answering: bool = False
    models: tuple[ModelView, ...] = ()
    names: tuple[str, ...] = ()
    conversations: tuple[tuple[Turn, ...], ...] = ((), ())
    film: tuple[Picture, ...] = ()
    events: tuple[Event, ...] = ()
    rules: tuple[Rule, ...] = ()
    reaches: tuple[Reach, ...] = ()
    alerted: tuple[Picture, ...] = ()
    stream: int = 0
    forgotten: int = 0
    undo: str = ""
    encrypting: bool = False  # what is kept, by the visitor's key
    keeping: bool = False
    kept: KeptView | None = None
    begins: float = 0.0
    forked: str = ""
    shared: bool = False
    trouble: str = ""
    newest: Picture | None = None
    recalled: Recalled | None = None
    asleep: float | None = None
    waking: bool = False

    @property
    def frames(self) -> int:
        """Frames the page's own model has seen."""
        return self.models[0].frames if self.models else 0

    @property
    def seen_until(self) -> float:
        """The newest second the page's own model has seen."""
        return self.models[0].seen_until if self.models else 0.0

    def turn(self, question: int) -> Turn | None:
        """The turn of a question in the first model's conversation."""
        return next((turn for turn in self.conversations[0] if turn.id == question), None)

    def told(self, player: float = 0.0) -> Told:
        """The state line. player: second the visitor's player shows; a stream that is behind it is catching up."""
        if self.phase is Phase.IDLE:
            return Told("idle", "Idle", "Press Start, upload a video or switch on the camera.")
        if self.error:
            return Told("error", "Stopped", self.error)
        if self.asleep is not None:
            about = f"about {max(1, math.ceil(self.asleep))} s"
            if self.waking:
                return Told("waking", "Waking", f"What was seen comes back from the disk ({about}).")
            return Told("asleep", "Asleep", f"Nothing is lost; it wakes with your next question ({about}).")
        if self.phase is Phase.PAUSED:
            return Told("paused", f"Paused at {mmss(self.seen_until)}", "Nothing is lost; press Resume to go on.")
        if self.phase is Phase.ENDED:
            all_seen = f"All {mmss(self.duration or self.seen_until)} seen; ask anything about it."
            return Told("ended", "Ended", " ".join([all_seen, *self._at_work_still(), *self.notes]))
        if self.live and self.silent:
            what = "source" if self.shared else "screen" if self.source == SCREEN else "camera"
            why = self.trouble or "No picture has come for a while; what was seen is kept."
            return Told("waiting", f"Waiting for the {what}", why)
        if self.frames == 0:
            return Told("waiting", "Opening", "Waiting for the first picture.")
        return self._told_at_work(player)

    def _at_work_still(self) -> list[str]:
        """How far the sense has come that goes through the file now."""
        going = next((reach for reach in self.reaches if not reach.done), None)
        return [f"{going.doing}: {mmss(going.until)} of {mmss(self.duration or self.seen_until)}."] if going else []

    def _told_at_work(self, player: float) -> Told:
        word = f"Catching up ×{self.rate:.1f}" if self.rate else "Catching up "
        if any(model.behind for model in self.models):
            return Told("catching", word, "The second model reads the video from its start.")
        if self.waiting > FAR_BEHIND or (not self.live and player > self.seen_until + AHEAD_S):
            return Told("catching", word, f"At {mmss(self.seen_until)}; the player is ahead.")
        length = self.duration or 0.0  # the header's, which knows of no track that follows the first
        of = f"of {mmss(length)}" if self.seen_until <= length else ("live" if self.live else "")
        return Told("watching", f"Watching {mmss(self.seen_until)}", of)


def seconds(time: re.Match[str]) -> float:
    """The second of the video that a match of `TIME` says."""
    hours, minutes, rest = (int(part or 0) for part in time.groups())
    return 3600.0 * hours + 60 * minutes + rest


def times_said(answer: Answer) -> tuple[float, ...]:
    """The seconds that the words of an answer say and the stream had seen by then, in order, each once."""
    said = {seconds(match) for match in TIME.finditer(answer.text)}
    return tuple(sorted(at for at in said if at <= answer.seen_until))
