"""One run of one source: a worker thread that shows the same frames to one or two engines and measures what it costs.

Watching never runs inside a web event: a dropped connection, a reloaded page or a closed laptop lid does not stop it.
The newest `StreamState` of a column is a value; whoever holds one (an answer being written) keeps it unchanged.
"""

from __future__ import annotations

import bisect
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import Engine, Frame, FrameQueue, StreamState, UserError, VideoChunk, mmss, open_video, thumbnail

log = logging.getLogger(__name__)

FPS = 1.0  # frames a second shown to the model; what every published system of this family is trained at
THUMBNAILS = 2400  # kept pictures of a stream: every second one of an hour; about 12 MB
SAMPLES = 400  # kept measurements of a column
CAMERA_QUEUE = 8  # camera frames that may wait; the oldest is dropped (and counted) for the newest


@dataclass(frozen=True)
class Sample:
    """What one chunk cost: second of the video, wall ms per frame, and bytes held after it."""

    at: float
    ms: float
    state_bytes: int
    memory_bytes: int


class Column:
    """One engine watching the stream: its newest state and its measurements."""

    def __init__(self, engine: Engine, behind: bool = False, since: float = 0.0) -> None:
        self.engine = engine
        self.state: StreamState = engine.start()
        self.settled = self.state  # after the newest chunk that every column has seen: what questions are asked of
        self.samples: list[Sample] = []
        self.shown = 0  # frames
        self.behind = behind  # joined late and must first see what the others have seen
        self.since = since  # the second of the video from which on it has watched

    def watch(self, frames: list[Frame]) -> None:
        """Shows the frames to the engine. Raises UserError; the state is then the last good one."""
        began = time.perf_counter()
        self.state = self.engine.watch(VideoChunk(tuple(frames)), self.state)
        ms = (time.perf_counter() - began) * 1000 / len(frames)
        self.shown += len(frames)
        self.samples.append(Sample(frames[-1].time, ms, self.state.state_bytes, self.state.memory_bytes))
        if len(self.samples) > SAMPLES:  # every other one: the whole video stays on the plot
            self.samples = self.samples[1::2]


class Thumbnails:
    """Small JPEGs of the stream by time: at most `limit`, always spread over everything seen."""

    def __init__(self, limit: int = THUMBNAILS, width: int = 208) -> None:
        self.times: list[float] = []
        self._jpegs: list[bytes] = []
        self._limit, self._width, self._apart = limit, width, 0.0
        self._lock = threading.Lock()

    def add(self, frame: Frame) -> None:
        if self.times and frame.time - self.times[-1] < self._apart:
            return
        jpeg = thumbnail(frame, self._width)
        with self._lock:
            self.times.append(frame.time)
            self._jpegs.append(jpeg)
            if len(self.times) > self._limit:
                self.times, self._jpegs = self.times[::2], self._jpegs[::2]
                self._apart = 0.9 * (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1)

    def near(self, at: float) -> bytes | None:
        """The picture whose time is nearest to `at`, or None where nothing was seen yet."""
        with self._lock:
            if not self.times:
                return None
            right = bisect.bisect(self.times, at)
            around = range(max(right - 1, 0), min(right + 1, len(self.times)))
            return self._jpegs[min(around, key=lambda index: abs(self.times[index] - at))]

    def spread(self, count: int) -> list[tuple[float, bytes]]:
        """At most `count` pictures, evenly over everything seen, oldest first."""
        with self._lock:
            last = len(self.times) - 1
            picked = sorted({round(i * last / max(count - 1, 1)) for i in range(count)}) if last >= 0 else []
            return [(self.times[index], self._jpegs[index]) for index in picked]


class Watch:
    """A source being watched by its own thread: a file (`path`) or, with None, a camera whose frames are offered.

    After `close` nothing of it is used again; watching anew means a new Watch, so a late chunk of the old one can
    change nothing that anybody still looks at.
    """

    def __init__(self, engines: list[Engine], path: Path | None = None) -> None:
        self.columns = [Column(engine) for engine in engines]
        self.path = path
        self.thumbnails = Thumbnails()
        self.error = ""  # one sentence; watching waits for `resume` while it stands
        self.ended = False
        self.duration: float | None = None
        self.skipped = 0  # damaged pictures the file's reader left out
        self.progress = 0.0
        self.camera = FrameQueue(CAMERA_QUEUE, self._long_side()) if path is None else None
        self._offered = time.monotonic()
        self._videos: list = []  # open files, so that `close` can end a read that waits
        self._speeds: deque[tuple[float, float]] = deque(maxlen=24)  # (seconds of video, seconds it took)
        self._going, self._closing = threading.Event(), threading.Event()
        self._going.set()
        self._door, self._joining = threading.Lock(), []  # engines that want to join
        self._start(self._watch_camera if self.camera else self._watch_file)

    # What the page reads

    @property
    def paused(self) -> bool:
        return not self._going.is_set()

    @property
    def running(self) -> bool:
        """Whether frames are (or would be) taken right now."""
        return self._thread.is_alive() and not self.paused and not self.ended

    @property
    def seen_until(self) -> float:
        return self.columns[0].state.seen_until

    @property
    def waiting(self) -> int:
        return self.camera.waiting if self.camera else 0

    @property
    def dropped(self) -> int:
        return self.camera.dropped if self.camera else 0

    @property
    def silent(self) -> bool:
        """Whether a camera has sent nothing for a while."""
        return time.monotonic() - self._offered > 4.0

    @property
    def rate(self) -> float | None:
        """Seconds of video per second of work (reading and watching; waiting for a camera is not work)."""
        speeds = list(self._speeds)
        worked = sum(took for _, took in speeds)
        return sum(video for video, _ in speeds) / worked if worked > 0 and len(speeds) > 1 else None

    # What the page commands

    def offer(self, rgb: np.ndarray) -> None:
        """A camera picture (uint8, height x width x 3). Returns at once; ignored while paused."""
        self._offered = time.monotonic()
        if self.camera and not self.paused and not self._closing.is_set():
            self.camera.offer(rgb)

    def pause(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self.error = ""
        self._going.set()

    def add(self, engine: Engine) -> None:
        """A second engine joins, between two chunks. A file is read again for it from the start; a camera cannot be."""
        with self._door:
            self._joining.append(engine)
            if self.ended:  # the worker has gone home
                self.ended = False
                self._start(self._catch_up_all)

    def remove_second(self) -> None:
        with self._door:
            self._joining.clear()
            self.columns = self.columns[:1]

    def close(self) -> None:
        """Ends the worker within one chunk; waits for it, so that the file may be deleted afterwards."""
        self._closing.set()
        self._going.set()
        if self.camera:
            self.camera.close()
        for video in list(self._videos):
            video.close()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=10)

    # The worker

    def _start(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=self._guarded, args=(work,), name="watch", daemon=True)
        self._thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        while True:
            try:
                work()
            except UserError as error:
                self.error = str(error)
            except Exception:
                log.exception("watching failed")
                self.error = (
                    f"Something failed on our side at {mmss(self.seen_until)}, so watching stopped there; "
                    "ask about what was seen so far, or press Reset and start again."
                )
            with self._door:
                if not self._joining or self._closing.is_set():
                    self.ended = True
                    return
            work = self._catch_up_all

    def _watch_file(self) -> None:
        with self._open() as video:
            self.duration = video.info.duration
            frames = iter(video)
            broken = None
            while self._may_go_on() and not broken:
                self._catch_up_all()
                began = time.perf_counter()
                chunk, broken = take(frames, self._chunk_size(self._frames_left()))
                if not chunk:
                    break
                self._show(chunk, began)
                self.skipped, self.progress = video.skipped, video.progress
            if broken:
                raise broken

    def _watch_camera(self) -> None:
        while self._may_go_on():
            self._catch_up_all()
            chunk = self.camera.take(self._chunk_size(max(self.camera.waiting, 1)), timeout=0.5)
            if chunk:
                self._show(chunk, time.perf_counter())

    @contextmanager
    def _open(self) -> Iterator:
        with open_video(self.path, fps=FPS, long_side=self._long_side()) as video:
            self._videos.append(video)
            try:
                yield video
            finally:
                self._videos.remove(video)

    def _long_side(self) -> int:
        return max(column.engine.long_side for column in self.columns)

    def _may_go_on(self) -> bool:
        """Waits while paused; False once closed."""
        self._going.wait()
        return not self._closing.is_set()

    def _frames_left(self) -> int:
        return max(1, round((self.duration - self.seen_until) * FPS)) if self.duration else 64

    def _chunk_size(self, backlog: int) -> int:
        return min(column.engine.chunk_frames(backlog) for column in self.columns)

    def _show(self, chunk: list[Frame], began: float) -> None:
        """One chunk to every column. A column that cannot take it stops everything until `resume`."""
        before = self.seen_until
        for frame in chunk:
            self.thumbnails.add(frame)
        for column in self.columns:
            self._feed(column, chunk)
        for column in self.columns:
            column.settled = column.state
        self._speeds.append((max(chunk[-1].time - before, 0.0), time.perf_counter() - began))

    def _feed(self, column: Column, chunk: list[Frame]) -> None:
        try:
            column.watch(chunk)
        except UserError as error:
            self.pause()
            self.error = str(error)

    def _catch_up_all(self) -> None:
        """Lets engines join, here and nowhere else: in the middle of a chunk one would miss it or see it twice."""
        with self._door:
            seen = self.columns[0].shown > 0
            since = self.seen_until if self.camera else 0.0
            late = [Column(engine, behind=seen and not self.camera, since=since) for engine in self._joining]
            self.columns = [*self.columns, *late]
            self._joining.clear()
        for column in late:
            if column.behind:
                self._catch_up(column)

    def _catch_up(self, late: Column) -> None:
        """Reads the file again for a column that joined late, as far as the first one has seen."""
        until = self.columns[0].shown
        with self._open() as video:
            frames = itertools.islice(video, until)
            broken = None
            while not broken and late in self.columns and self._may_go_on():
                left = max(until - late.shown, 1)
                chunk, broken = take(frames, late.engine.chunk_frames(left))
                if not chunk:
                    break
                self._feed(late, chunk)
                late.settled = late.state
        late.behind = False


def take(frames: Iterator[Frame], count: int) -> tuple[list[Frame], UserError | None]:
    """Up to `count` frames, and the error that cut them short: what was read before a file broke is watched too."""
    taken: list[Frame] = []
    try:
        for frame in itertools.islice(frames, count):
            taken.append(frame)
    except UserError as error:
        return taken, error
    return taken, None
