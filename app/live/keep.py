"""Keep: one stream being kept for its visitor: what was seen, the film's pictures and what was said; and back again."""

from __future__ import annotations

import io
import logging
import math
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from app.live.legs import Leg
from app.live.shelf import Shelf
from app.live.view import SCREEN, WEBCAM, KeptView, Picture, Turn
from pipeline import (
    Answer,
    Engine,
    Event,
    Evidence,
    Frame,
    Keeper,
    KeptStream,
    Record,
    Rule,
    StreamState,
    frame_records,
)

log = logging.getLogger(__name__)

LIVE = (WEBCAM, SCREEN)  # sources that cannot be watched again
TOO_LARGE = (
    "What this model carries is too large to be kept, and the camera's pictures were not kept from the first on, so "
    "this stream is not kept; watching goes on."
)

GONE = "What was kept of this stream was deleted together with the stream it was forked from; watching goes on."


class Keep:
    """Any thread may tell; the keeper's own writes. begun: whether what was seen before is written.

    Turns are compared with what was written of them, so nobody need tell when one changes.
    """

    def __init__(self, shelf: Shelf, name: str, kept: KeptStream, engine: Engine, note: str = "") -> None:
        """note: what of an earlier run the visitor should know."""
        self.shelf, self.name, self.kept, self.note = shelf, name, kept, note
        self.begun = False
        self.keeper = Keeper(engine, kept, shelf.limit(name))
        self._file = kept.reels[-1].about.get("source") not in LIVE
        self._told = self._shown = 0  # sources that are written, and those that were begun
        self._stands = False
        self._closing: threading.Thread | None = None
        self._said: dict[int, Turn] = {}
        self.pictured = -1.0  # second of the newest picture that was written
        self._refused = ""
        self._noticed: set[Event] = set()
        self._events = 0  # the number of the next one that is written
        self._rules: tuple[Rule, ...] = ()

    @property
    def over(self) -> bool:
        """Whether keeping stopped: nothing more is written."""
        return bool(self._refused or self.keeper.error or self.kept.lost)

    @property
    def gone(self) -> bool:
        """Whether it was deleted, with the stream that it was forked from."""
        return self.kept.lost and not self.shelf.has(self.name)

    @property
    def taken(self) -> bool:
        """Whether somebody else goes on with the stream."""
        return self.kept.lost and self.shelf.has(self.name)

    # What was seen

    def follow(self, legs: Sequence[Leg], fps: float) -> None:
        """The sources until now; those that are new begin with the next chunk."""
        for number, leg in enumerate(legs):
            self.announce(number, leg, fps, leg.begins)
        for number, leg in enumerate(legs[self._shown :], self._shown):
            self._file = leg.source.path is not None
            if number:
                self.keeper.do(partial(self.kept.turn_to, number))
        self._shown = max(self._shown, len(legs))

    def announce(self, number: int, leg: Leg, fps: float, over: float) -> None:
        """A source that is to come, where it is not written yet: nothing that ends the server makes it forgotten. over:
        second to which the one before it is watched."""
        if number < self._told:
            return
        self._told, path = number + 1, leg.source.path
        about: dict[str, Any] = {"source": leg.source.kind, "name": leg.source.name, "fps": fps}
        if number:
            self.keeper.do(partial(self.kept.go_on_with, about, leg.begins, over, path))
        elif path:
            self.keeper.do(partial(self.kept.take_video, path))

    def stand(self, at: float) -> None:
        """It is watched no further than to that second, until `let_go`; a restart does not change that."""
        self._stands = True
        self.keeper.note([Record("end", 0, {"stands": at})])

    def let_go(self) -> None:
        if self._stands:
            self._stands = False
            self.keeper.note(forget=[("end", 0)])

    def watched(self, frames: Sequence[Frame], position: int, state: StreamState, pictures: Sequence[Picture]) -> None:
        """A chunk. position: frames of the source taken. pictures: of the film."""
        shown = frame_records(frames, state.frames - len(frames))
        self._watched(len(frames), position, state, pictures, shown)

    def so_far(self, position: int, state: StreamState, pictures: Sequence[Picture]) -> None:
        """All that was seen until now, as one chunk."""
        self._watched(position, position, state, pictures, [])

    def _watched(
        self, frames: int, position: int, state: StreamState, pictures: Sequence[Picture], shown: list[Record]
    ) -> None:
        if self.over:
            return
        if not self._file and len(shown) < frames and not self.keeper.keeps(state):
            self._refused = TOO_LARGE
            return
        self.begun = True
        new = [picture for picture in pictures if picture.time > self.pictured]
        records = [Record("picture", round(1000 * p.time), {"time": p.time}, p.jpeg) for p in new]
        self.keeper.watched(frames, position, state, [*shown, *records])
        self.pictured = max([self.pictured, *(picture.time for picture in new)])

    def ended(self) -> None:
        """The source is over: nothing is left to go on with by itself."""
        self.keeper.note([Record("end", 0, {})])

    def fork(self, there: Path, secret: str = "") -> None:
        """All that was seen until now, in a folder of its own. Raises UserError."""
        self.keeper.fork(there, secret)

    @property
    def encrypted(self) -> bool:
        return self.kept.cipher is not None

    def goes_on(
        self,
        pictures: Sequence[Picture],
        conversations: Sequence[Iterable[Turn]],
        events: Sequence[Event] = (),
        rules: Sequence[Rule] = (),
    ) -> None:
        """All of this is written already."""
        reels = self.kept.reels
        self._told, self._shown = len(reels), sum(reel.chunk <= self.kept.next_number for reel in reels)
        self._file = reels[self._shown - 1].about.get("source") not in LIVE
        self.begun, self._noticed, self._rules = True, set(events), tuple(rules)
        written = events_of(self.kept)
        self._events = 1 + max(written, default=-1)
        if gone := [("event", number) for number, event in written.items() if event not in self._noticed]:
            self.keeper.note(forget=gone)
        self.pictured = max([-1.0, *(picture.time for picture in pictures)])
        self._said = numbered(conversations)

    # What was said

    def said(self, conversations: Sequence[Iterable[Turn]]) -> None:
        """Every model's turns, in the same order as ever."""
        turns = numbered(conversations)
        new = {number: turn for number, turn in turns.items() if turn.over and turn != self._said.get(number)}
        gone = [("turn", number) for number in self._said if number not in turns]
        if new or gone:
            self.keeper.note([_record(number, turn) for number, turn in new.items()], gone)
        self._said = {n: turn for n, turn in (self._said | new).items() if n in turns}

    # What was noticed

    def noticed(self, events: Sequence[Event], rules: Sequence[Rule]) -> None:
        """The timeline and what is to be told of; what has ended is written once."""
        if not self.begun:
            return
        new = [event for event in events if event.until is not None and event not in self._noticed]
        records = [Record("event", number, dict(asdict(event))) for number, event in enumerate(new, self._events)]
        self._events += len(new)
        if tuple(rules) != self._rules:
            self._rules = tuple(rules)
            records.append(Record("rules", 0, {"rules": [dict(asdict(rule)) for rule in rules]}))
        self._noticed.update(new)
        if records:
            self.keeper.note(records)

    # Its end

    def view(self) -> KeptView:
        if self.gone:
            return KeptView(0, 0.0, GONE)
        told = self._refused or self.keeper.error or self.note
        return KeptView(self.keeper.nbytes, self.shelf.until(self.name), told, self.encrypted)

    def close(self) -> None:
        """Writes what waits, without making anybody wait; it stays on the shelf."""
        if self._closing is None:
            self._closing = threading.Thread(target=self._close, name="keep", daemon=True)
            self._closing.start()

    def _close(self) -> None:
        self.keeper.close()
        self.shelf.release(self.name)

    def join(self, timeout: float) -> None:
        """Waits for what `close` began."""
        if self._closing:
            self._closing.join(timeout)

    def delete(self) -> None:
        """At once: what is still being written goes with it. Raises UserError where it was taken over."""
        if not self.gone:
            self.shelf.delete(self.name, self.kept.lease)
        self.close()


def numbered(conversations: Sequence[Iterable[Turn]]) -> dict[int, Turn]:
    """Turns of several models by one number."""
    return {2 * turn.id + model: turn for model, turns in enumerate(conversations) for turn in turns}


def pictures_of(kept: KeptStream) -> list[Picture]:
    """Of the film, in order of time."""
    records = kept.notes("picture").values()
    found = [Picture(float(at), r.body) for r in records if isinstance(at := r.about.get("time"), (int, float))]
    return sorted(found, key=lambda picture: picture.time)


def turns_of(kept: KeptStream) -> tuple[tuple[Turn, ...], tuple[Turn, ...]]:
    """Of both models' conversations; what cannot be read is left out."""
    turns: tuple[list[Turn], list[Turn]] = [], []
    for number, record in kept.notes("turn").items():
        try:
            turns[number % 2].append(_turn(record))
        except (KeyError, TypeError, ValueError) as error:
            log.warning("a kept turn is left out: %r", error)
    return tuple(turns[0]), tuple(turns[1])


def events_of(kept: KeptStream) -> dict[int, Event]:
    """What was noticed, by number; what cannot be read is left out."""
    found = {}
    for number, record in kept.notes("event").items():
        about: Any = record.about
        try:
            found[number] = Event(**about)
        except TypeError as error:
            log.warning("a kept event is left out: %r", error)
    return found


def rules_of(kept: KeptStream) -> list[Rule]:
    """What is to be told; none where it cannot be read."""
    rules = kept.notes("rules").get(0)
    try:
        listed: Any = rules.about["rules"] if rules else []
        return [Rule(**one) for one in listed]
    except (KeyError, TypeError) as error:
        log.warning("rules are left out: %r", error)
        return []


def has_ended(kept: KeptStream) -> bool:
    """Whether it does not go on by itself."""
    return bool(kept.notes("end"))


def stands_at(kept: KeptStream) -> float:
    """The second beyond which it is not watched until its visitor wants it."""
    end = kept.notes("end").get(0)
    at = end.about.get("stands") if end else None
    return float(at) if isinstance(at, (int, float)) else math.inf


def _record(number: int, turn: Turn) -> Record:
    """JPEGs follow each other in the body; in the JSON there are their lengths."""
    about: dict[str, Any] = asdict(turn)
    jpegs = [*turn.pictures, *(picture.jpeg for picture in turn.said)]
    about["pictures"] = [None if jpeg is None else len(jpeg) for jpeg in turn.pictures]
    about["said"] = [[picture.time, len(picture.jpeg)] for picture in turn.said]
    about["time"] = turn.answer.seen_until if turn.answer else 0.0
    return Record("turn", number, about | {"written": time.time()}, b"".join(jpeg for jpeg in jpegs if jpeg))


def _turn(record: Record) -> Turn:
    about: dict[str, Any] = {name: value for name, value in record.about.items() if name not in ("written", "time")}
    jpegs = io.BytesIO(record.body)
    about["pictures"] = tuple(None if size is None else jpegs.read(size) for size in about["pictures"])
    about["said"] = tuple(Picture(at, jpegs.read(size)) for at, size in about["said"])
    if answer := about["answer"]:
        answer["evidence"] = tuple(Evidence(**moment) for moment in answer["evidence"])
        about["answer"] = Answer(**answer)
    return Turn(**about)
