"""A kept stream comes back: from what lies on the shelf to what a session goes on with."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from app.live import uploads
from app.live.keep import LIVE, Keep, events_of, has_ended, pictures_of, rules_of, stands_at, turns_of
from app.live.legs import Leg, Start
from app.live.shelf import Shelf
from app.live.uploads import Source
from app.live.view import UPLOAD, Turn
from app.live.watching import FPS
from pipeline import Engine, KeptStream, Reel, Resumed, Stretch, UserError, mmss

Words = tuple[tuple[Turn, ...], tuple[Turn, ...]]  # of both models


class Back(NamedTuple):
    """start: where watching goes on. keep: who writes it, where it is kept. stream: the number it has in its session.
    forked: of what it is a fork, in a sentence."""

    words: Words
    start: Start
    keep: Keep | None = None
    stream: int = 1
    forked: str = ""

    def then(self, source: Source, fps: float) -> Back:
        """And another source follows, which is written at once. Raises UserError where it could not be."""
        start = self.start.then(source, fps)
        if self.keep:
            self.keep.announce(len(start.before) + len(start.legs) - 1, start.legs[-1], fps, self.start.legs[-1].until)
            self.keep.let_go()
            if not self.keep.keeper.wait():
                self.keep.delete()
                raise UserError(f"{source.name or source.kind} could not be kept, so nothing was begun; try again.")
        seen, begins = mmss(self.start.legs[-1].until), mmss(start.legs[-1].begins)
        forked = (
            f"What was seen until {seen} goes on here: {source.name or source.kind} begins at {begins} of this stream. "
            "The stream before it is under My streams."
        )
        return self._replace(start=start, forked=forked)


def about(source: Source, engine: Engine) -> dict[str, Any]:
    """What must be known of a stream to go on with it. began: when, as `time.time` counts."""
    named: dict[str, Any] = {"source": source.kind, "name": source.name, "backend": engine.backend}
    return named | {"fps": FPS, "began": time.time()}


def goes_on_alone(shelf: Shelf, name: str) -> bool:
    """Whether a file was being watched when the server ended, and needs no key. Raises UserError where it cannot be
    read."""
    if shelf.encrypted(name):
        return False
    kept = shelf.open(name)
    try:
        return kept.reels[-1].about.get("source") not in LIVE and not has_ended(kept)
    finally:
        kept.close()
        shelf.release(name)


def of(shelf: Shelf, name: str, engine: Engine, at: float = math.inf, secret: str = "", by_force: bool = False) -> Back:
    """All that is kept under a name, or what was until a second of it, where it then stands. secret: the visitor's key.
    by_force: taken over from an owner that still lives. Raises UserError where it cannot go on."""
    kept = shelf.open(name, secret, by_force)
    try:
        fork = at < math.inf
        if not fork:
            kept.check_video()
        words = until(at, turns_of(kept))
        stream = max((turn.stream for turns in words for turn in turns), default=1)
        stands = at if fork else stands_at(kept)
        resumed, start = _from(kept, engine, stands)
        if resumed is None:
            kept.watch_again(shelf.about | {"backend": engine.backend}, engine.model)
        else:
            kept.go_on_from(resumed, engine.model, resumed.state.seen_until if fork else math.inf)
        keep = Keep(shelf, name, kept, engine, "" if fork else start.note)
        keep.goes_on(start.pictures, () if fork else words, start.events, start.rules)
        if start.legs[-1].until < math.inf:
            keep.stand(start.legs[-1].until)
        return Back(words, start, keep, stream=stream)
    except BaseException:
        kept.close()
        shelf.release(name)
        raise


def _from(kept: KeptStream, engine: Engine, at: float) -> tuple[Resumed | None, Start]:
    """The newest state, None where another model runs by now, and where watching goes on up to a second: then with what
    was recorded, from the start. Raises UserError where that is not all there."""
    try:
        resumed = kept.found.newest(engine.model, at)
    except UserError as error:
        try:
            return None, _start(kept, Resumed(engine.start()), at)
        except UserError:
            raise error from None
    return resumed, _start(kept, resumed, at)


def _start(kept: KeptStream, resumed: Resumed, at: float) -> Start:
    """From a state that was found, up to a second, or on for ever."""
    seen = resumed.state.seen_until if resumed.state.frames else -1.0
    pictures = [picture for picture in pictures_of(kept) if picture.time <= seen]
    stretches = kept.stretches(resumed, at)
    legs = tuple(_leg(kept, stretch) for stretch in stretches)
    before = tuple(Leg(_source(kept, reel), reel.begins) for reel in kept.reels[: stretches[0].reel.number])
    since, note = 0.0, resumed.note
    if legs[-1].source.path is None:
        newest = max([seen, *(chunk.until for leg in legs for chunk in leg.shown)])
        since = _camera_now(kept, newest)
        away = f"Nothing was seen from {mmss(newest)} to {mmss(since)}: the server was away."
        note = f"{note} {away}".strip()
    events = [event for event in events_of(kept).values() if event.time <= seen]
    return Start(resumed.state, legs, before, pictures, since, note, events, rules_of(kept))


def _leg(kept: KeptStream, stretch: Stretch) -> Leg:
    source = _source(kept, stretch.reel)
    shown = kept.shown(stretch) if source.path is None else ()
    return Leg(source, stretch.reel.begins, stretch.position, stretch.until, shown)


def until(at: float, words: Sequence[Sequence[Turn]]) -> Words:
    """What was said by those who had seen no more than that."""
    first, second = (
        tuple(turn for turn in turns if turn.over and (turn.answer is None or turn.answer.seen_until <= at))
        for turns in words
    )
    return first, second


def _camera_now(kept: KeptStream, seen_until: float) -> float:
    """The second of the stream that it is now: the gap counts, so that times stay those of a clock on the wall."""
    began = kept.about.get("began")
    passed = time.time() - began if isinstance(began, float) else 0.0
    return max(seen_until, passed)


def _source(kept: KeptStream, reel: Reel) -> Source:
    name, kind = str(reel.about.get("name", "")), str(reel.about.get("source", UPLOAD))
    if kind in LIVE:
        return Source(kind)
    own = uploads.own_copy(partial(kept.give_video, reel))
    return uploads.put_back(own, name) if kind == UPLOAD else Source(kind, name, own)
