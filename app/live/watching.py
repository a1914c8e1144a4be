"""Watch: one run of one source. A worker thread shows the same frames to one or two models, phase by phase.

Watching never runs inside a web event: a dropped connection, a reloaded page or a closed laptop lid does not stop it.
Commands only move the phase or name the second model, and wake the worker; none of them waits for it.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from app.live.film import Film
from app.live.keep import Keep
from app.live.legs import Leg, Point, Points, Start, leg_at, played
from app.live.noticing import Noticing
from app.live.recent import Recent, cut
from app.live.sleeping import Sleep
from app.live.thumbnails import Thumbnails
from app.live.uploads import Source
from app.live.view import Phase, View
from app.live.viewing import Viewing, conclude, settle
from app.live.work import Videos, attempted, catch_up, later, take
from pipeline import Dormitory, Engine, Frame, FrameQueue, StreamState, UserError

FPS = 1.0  # frames a second shown to the model; what every published system of this family is trained at
FILM = 12  # pictures of a film strip
CAMERA_QUEUE = 8  # camera frames that may wait; the oldest is dropped (and counted) for the newest
SILENT_S = 4.0  # without a camera picture, and the camera is called silent
UNKNOWN_LENGTH = 64  # frames expected of a file that does not say how long it is
AGAIN_S = 2.0  # after a sleeping stream could not be woken for another model, it is tried again

AT_WORK = {Phase.WATCHING}
HELD = {Phase.PAUSED, Phase.STOPPED}
OPEN = {Phase.WATCHING, *HELD}


class Watch:
    """A source being watched, in one of the phases of `Phase`; `_move` alone changes it. After `close` nothing of it is
    used again; watching anew means a new Watch, so a late chunk of the old one can change nothing that anybody still
    looks at."""

    def __init__(
        self,
        source: Source,
        engine: Engine,
        rival: Engine | None = None,
        start: Start | None = None,
        keep: Keep | None = None,
        admit: Callable[[], bool] = lambda: True,
    ) -> None:
        """admit: see `Sleep`."""
        start = start or Start(engine.start(), (Leg(source),))
        self.source, self._keep = source, keep
        self.legs = (*start.before, *start.legs)  # of all the stream
        self._leg, self._taken = len(start.before), start.legs[0].position  # the one at work, and frames taken of it
        self._until = start.legs[-1].until  # where the last leg stands until the visitor goes on
        self.begins = start.legs[-1].begins
        self.thumbnails = Thumbnails()
        self.film = Film(FILM)
        self.recent = Recent()  # a camera alone fills it
        first = Viewing(engine, state=start.state, watched=self._write_chunk)
        fresh = not (start.state.frames or start.before or start.legs[1:])
        self.viewings: tuple[Viewing, ...] = (first, Viewing(rival)) if rival and fresh else (first,)
        self.points = Points(Point(start.state, start.legs[0].position, self._leg))
        self.noticing = Noticing(engine, live=source.path is None)
        queue = partial(FrameQueue, CAMERA_QUEUE, self._long_side(), since=start.since)
        self.camera = None if source.path else queue(gave_way=partial(engine.tally.add, dropped=1))
        self._changed = threading.Condition()  # guards what follows, and wakes the worker
        self._rests, self.rests_since = False, time.monotonic()  # whether the worker waits, and needs no state
        self.sleep = Sleep(self._changed, admit)
        self._phase, self._error = Phase.WATCHING, ""
        self._rival = rival  # wanted beside the first; the worker lets it join
        self._duration: float | None = None
        self._progress = 0.0
        self._skipped = 0  # damaged pictures the file's reader left out
        lost = self.noticing.go_on(start.events, start.rules, start.state)
        self._found = self._notes = (*filter(None, (start.note, *lost)),)  # what was mended or left out, in sentences
        self._shown = start.state.frames  # frames given to the models
        self._offered_at = time.monotonic()
        self._videos = Videos()
        self._watched_s = self._worked_s = 0.0  # seconds of video, and of work on them (waiting for a camera is none)
        if start.state.frames:
            self.thumbnails.put_back(start.pictures)
            self.film.put_back(start.pictures)
        self._worker = threading.Thread(target=self._work, name="watch", daemon=True)
        self._worker.start()

    # What may be known

    def view(self, about: View) -> View:
        """`about`, what the session knows, with what this run knows."""
        with self._changed:
            return replace(
                about,
                phase=self._phase,
                error=self._error,
                source=self.source.kind,
                file_name=self.source.name,
                live=self.camera is not None,
                duration=self._duration,
                progress=self._progress,
                rate=self._watched_s / self._worked_s if self._watched_s else None,
                waiting=self.camera.waiting if self.camera else 0,
                dropped=self.camera.dropped if self.camera else 0,
                skipped=self._skipped,
                notes=self._notes,
                silent=time.monotonic() - self._offered_at > SILENT_S,
                models=tuple(viewing.view() for viewing in self.viewings),
                film=self.film.pictures,
                events=self.noticing.events,
                rules=self.noticing.rules,
                reaches=self.noticing.reaches,
                alerted=self.thumbnails.of_alerts(self.noticing.events),
                begins=self.begins,
                asleep=self.sleep.seconds,
                waking=self.sleep.waking,
            )

    def viewing(self, model: int) -> Viewing | None:
        viewings = self.viewings
        return viewings[model] if model < len(viewings) else None

    @property
    def here(self) -> Point:
        """The newest state of the page's own model."""
        return Point(*self.viewings[0].newest, self._leg)

    def opening(self, model: int) -> bool:
        """Whether a model has seen nothing yet, but is about to."""
        with self._changed:
            viewing = self.viewing(model)
            if viewing and (viewing.settled.frames or viewing.settled.held):
                return False
            late = self._missing_rival() if viewing is None else viewing.behind
            held_file = self._phase is Phase.PAUSED and self.camera is None
            return self._phase is Phase.WATCHING or held_file or (late and self._phase is not Phase.CLOSED)

    @property
    def came_to_nothing(self) -> bool:
        """Whether the source is over and no picture of it was seen: it was no video."""
        return self._phase is Phase.ENDED and not self._shown

    # Commands

    def offer(self, rgb: np.ndarray, jpeg: bytes = b"") -> None:
        """A camera picture (uint8, height x width x 3), and what it was read from. Returns at once; ignored while
        paused."""
        self._offered_at = time.monotonic()
        if self.camera and self._phase in AT_WORK:
            self.camera.offer(rgb, jpeg=jpeg)

    def pause(self) -> None:
        """Nothing where there is nothing to pause, such as after the end."""
        self._move(Phase.PAUSED, AT_WORK)

    def resume(self) -> None:
        if self._move(Phase.WATCHING, HELD) and self._keep:
            self._keep.let_go()

    def compare(self, rival: Engine | None) -> None:
        """With a second model from now on, or without. It joins between two chunks; a file is read again for it from
        the start, a camera cannot be. However often this is said, there are never more than two."""
        with self._changed:
            self._rival = rival
            if rival is None:
                self.viewings = self.viewings[:1]
            self._changed.notify_all()

    def keep(self, keep: Keep | None) -> None:
        """Writes what was seen, and from now on every chunk; or nothing any more."""
        with self._changed:
            self._keep = keep
            self._changed.notify_all()

    def close(self) -> None:
        """Ends the worker within one chunk, and waits for nothing."""
        self._move(Phase.CLOSED, set(Phase))
        self.noticing.close()
        if self.camera:
            self.camera.close()
        self._videos.close()
        self.sleep.close()

    @property
    def rests(self) -> bool:
        """Whether its states are wanted by no work of its own."""
        return self._rests and not self.noticing.busy

    def fall_asleep(self, dormitory: Dormitory, idle: Callable[[], bool], dropped: Callable[[], None]) -> bool:
        """See `Sleep.fall`; a stream that is being watched does not."""
        parts = self.viewings, self.points, self.noticing
        return self.sleep.fall(dormitory, parts, lambda: self.rests and idle(), dropped)

    def clip(self, at: float, out: str | Path) -> None:
        """Writes the seconds around a moment as an MP4. Raises UserError."""
        leg = leg_at(self.legs, at)
        cut(leg.source.path, self.recent, at - leg.begins if leg.source.path else at, out)

    def join(self, timeout: float) -> None:
        """Waits until the worker of a closed Watch has ended, for at most so many seconds."""
        end = time.monotonic() + timeout
        self._worker.join(timeout)
        self.sleep.join(max(0.0, end - time.monotonic()))
        self.noticing.join(max(0.0, end - time.monotonic()))

    def _move(self, to: Phase, only_from: set[Phase], error: str = "") -> bool:
        """The one place where the phase changes; whether it did."""
        with self._changed:
            if self._phase not in only_from:
                return False
            self._phase, self._error = to, error
            self._changed.notify_all()
            return True

    # The worker

    def _work(self) -> None:
        """From the first picture to `close`; after the source's end it waits for a second model to catch up."""
        work: Callable[[], None] = self._watch_legs
        error = ""
        while True:
            error = attempted(work, lambda: self.viewings[0].state.seen_until) or error
            if self._move(Phase.ENDED, OPEN, error) and error:
                self._write_end()
            self._rest(lambda: self._phase is Phase.CLOSED or self._missing_rival() or self._unkept())
            if not self._awake():
                time.sleep(AGAIN_S)
            elif self._unkept():
                work = self._write_so_far
            elif self._move(Phase.WATCHING, {Phase.ENDED}):
                work = self._let_rival_join
            else:
                return

    def _watch_legs(self) -> None:
        """What is left of every source, one after the other."""
        while self._phase is not Phase.CLOSED:
            leg, last = self.legs[self._leg], self._leg == len(self.legs) - 1
            for viewing in self.viewings:
                viewing.begin(self._taken)
            self._watch_shown(leg)
            there = leg.source.path is None or (
                self.viewings[0].frames and self.viewings[0].state.seen_until >= leg.until
            )
            if there and last:
                self._stand()
            if leg.source.path and (last or not there):
                self._watch_file(leg, last)
            elif last:
                self._watch_camera()
            if last:
                return
            with self._changed:
                self._leg, self._taken = self._leg + 1, 0

    def _watch_shown(self, leg: Leg) -> None:
        """What a camera showed, once more."""
        for chunk in leg.shown:
            began = time.perf_counter()
            if self._ready():
                self._show(list(chunk.frames(self._long_side())), began)

    def _watch_file(self, leg: Leg, last: bool) -> None:
        with self._open(leg) as video:
            pending: list[Frame] = []
            frames, broken = itertools.islice(later(video, leg.begins), self._taken, None), None
            self._duration = leg.begins + video.info.duration if video.info.duration else None
            while self._ready():
                began = time.perf_counter()
                if not pending and not broken:
                    pending, broken = take(frames, self._chunk_size(self._frames_left()))
                until = self._until if last else leg.until
                chunk = [frame for frame in pending if frame.time <= until]
                if chunk:
                    self._show(chunk, began)
                if not pending or (len(chunk) < len(pending) and not last):
                    break
                if pending := pending[len(chunk) :]:
                    self._stand()
                with self._changed:
                    self._skipped, self._progress = video.skipped, video.progress
            if last:
                self._end_file(video, leg, broken)

    def _end_file(self, video: Any, leg: Leg, broken: UserError | None) -> None:
        with self._changed:
            self._duration = leg.begins + video.seconds if video.seconds else self._duration
            self._notes = (*self._found, *video.findings.notes())
        self._conclude()
        if broken and self._ready():
            raise broken
        self._write_end()

    def _stand(self) -> None:
        """At the second to which the visitor went back; until they go on."""
        if self._until < math.inf and self._move(Phase.PAUSED, AT_WORK):
            self._until = math.inf
            settle(self.viewings)

    def _watch_camera(self) -> None:
        assert self.camera is not None
        while self._ready():
            chunk = self.camera.take(self._chunk_size(max(self.camera.waiting, 1)), timeout=0.5)
            if chunk:
                self._show(chunk, time.perf_counter())
            elif self.camera.closed:
                return self._conclude()

    def _ready(self) -> bool:
        """Waits while held; then every model has seen all that was shown, and who wants to join has. False once closed.

        Models join here and nowhere else: in the middle of a chunk one would miss it or see it twice.
        """
        while self._going():
            for viewing in self.viewings:
                viewing.watch_again()
            settle(self.viewings)
            self._let_rival_join()
            self._write_so_far()
            if self._phase in AT_WORK:
                return True
        return False

    def _going(self) -> bool:
        """Waits while held, and until it is awake; False once closed."""
        self._rest(lambda: self._phase not in HELD)
        while not self._awake():
            self._rest(lambda: self._phase not in HELD)
        return self._phase is not Phase.CLOSED

    def _rest(self, over: Callable[[], bool]) -> None:
        """Waits for that; meanwhile the stream may be put to sleep."""
        with self._changed:
            self._rests, self.rests_since = True, time.monotonic()
            self._changed.wait_for(over)
            self._rests = False

    def _awake(self) -> bool:
        """Whether its states are at hand (or it is closed). Where they cannot be brought back it stands until the
        visitor goes on."""
        try:
            self.sleep.rouse(lambda: self._phase in HELD or self._phase is Phase.CLOSED)
        except UserError as error:
            self._move(Phase.STOPPED, AT_WORK, str(error))
            return self._phase is Phase.CLOSED
        return True

    def _show(self, chunk: list[Frame], began: float) -> None:
        """One chunk to every model."""
        before = self.viewings[0].state.seen_until
        for frame in chunk:
            self.film.add(frame, self.thumbnails.add(frame))
        for viewing in self.viewings:
            self._feed(viewing, chunk)
        settle(self.viewings)
        if self.camera:
            self.recent.add(chunk, lambda: [event.time for event in self.noticing.events if event.kind == "alert"])
        self.noticing.watched(chunk, self.viewings[0].settled)
        with self._changed:
            self._shown += len(chunk)
            self._taken += len(chunk)
            self._watched_s += max(chunk[-1].time - before, 0.0)
            self._worked_s += time.perf_counter() - began

    def _feed(self, viewing: Viewing, chunk: list[Frame]) -> None:
        """A model that cannot take the chunk stops everything until `resume`."""
        try:
            viewing.watch(chunk)
        except UserError as error:
            self._move(Phase.STOPPED, OPEN, str(error))

    def _conclude(self) -> None:
        """After the last chunk: a model that cannot take it leaves it out, and that is said."""
        failed = conclude(self.viewings)
        self.noticing.finish(self.viewings[0].settled, played(self.legs))
        if failed:
            raise failed

    # Keeping

    def _unkept(self) -> bool:
        return self._keep is not None and not self._keep.begun and not self._keep.over

    def _write_so_far(self) -> None:
        """Somebody wants the stream kept: what was seen until now is written as one chunk."""
        keep, first = self._keep, self.viewings[0]
        if keep and self._unkept() and first.frames:
            keep.follow(self.legs[: self._leg + 1], FPS)
            keep.so_far(first.position, first.state, self.thumbnails.after(-1.0))
            if self._phase is Phase.ENDED and not self._error:
                keep.ended()

    def _write_chunk(self, frames: Sequence[Frame], position: int, state: StreamState) -> None:
        """The page's own model has watched a chunk."""
        self.points.add(Point(state, position, self._leg))
        if (keep := self._keep) and (keep.begun or state.frames == len(frames)):
            keep.follow(self.legs[: self._leg + 1], FPS)
            keep.watched(frames, position, state, self.thumbnails.after(keep.pictured))

    def _write_end(self) -> None:
        if (keep := self._keep) and self._phase is not Phase.CLOSED:  # else it goes on when the server does
            keep.ended()

    # A second model

    def _missing_rival(self) -> bool:
        return self._rival is not None and len(self.viewings) == 1

    def _let_rival_join(self) -> None:
        rival = self._rival
        if rival is None or not self._missing_rival():
            return
        leg = self.legs[self._leg]
        since = leg.begins if leg.source.path else self.viewings[0].state.seen_until
        late = Viewing(rival, behind=self._taken > 0 and leg.source.path is not None, since=since)
        with self._changed:
            if self._rival is not rival:  # given up meanwhile
                return
            self.viewings = (*self.viewings, late)
        if late.behind:
            with self._open(leg) as video:
                frames = itertools.islice(later(video, leg.begins), self._taken)
                left, wanted = lambda: self._taken - late.frames, lambda: self._going() and late in self.viewings
                catch_up(late, frames, left, wanted, self._feed)

    # The source

    def _open(self, leg: Leg) -> AbstractContextManager[Any]:
        assert leg.source.path is not None
        return self._videos.open(leg.source.path, FPS, self._long_side())

    def _long_side(self) -> int:
        return max(viewing.engine.long_side for viewing in self.viewings)

    def _frames_left(self) -> int:
        left = (self._duration or 0.0) - self.viewings[0].state.seen_until
        return max(1, round(left * FPS)) if self._duration else UNKNOWN_LENGTH

    def _chunk_size(self, backlog: int) -> int:
        return min(viewing.engine.chunk_frames(backlog) for viewing in self.viewings)
