"""A folder that is being recorded into: its videos one after the other, each as soon as it is whole.

A video is whole when a later one is there, or when nothing was written to it for a while. Watching begins with the
newest whole one. Where more wait than can be caught up with, the older ones are left out, and that is told.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.sources.file import VideoFile, open_video
from pipeline.sources.refusals import VideoError
from pipeline.stream import Frame

LOOK_S = 0.5  # the folder is listed so often
SETTLED_S = 3.0  # without a change, after which the newest video is whole
BEHIND = 4  # whole videos that may wait
JOINED_S = 2.0  # seconds from the end of one video to the start of the next that are no gap


class Recorded(NamedTuple):
    """A whole video. ended: when it was written last, as `time.time` counts."""

    path: Path
    ended: float


class Folder:
    """One thread iterates, any may close. missed: is told from which second to which nothing was recorded or read."""

    def __init__(
        self, path: str, fps: float, long_side: int, closed: threading.Event, missed: Callable[[float, float], None]
    ) -> None:
        self.path, self._fps, self._long_side, self._closed, self._missed = Path(path), fps, long_side, closed, missed
        self._video: VideoFile | None = None
        self._newest: Recorded | None = None  # of those taken
        self._began = 0.0  # when the first one began, as `time.time` counts
        self._until: float | None = None  # second of the stream up to which was read

    def close(self) -> None:
        """After `closed` was set."""
        if video := self._video:
            video.close()

    def pictures(self) -> Iterator[Frame]:
        """In seconds since the first picture, until closed."""
        while not self._closed.is_set():
            following = self._following()
            if following is None:
                self._closed.wait(LOOK_S)
                continue
            self._newest = following
            try:
                yield from self._of(following)
            except VideoError:  # what else lies there, or was cut short; the next one's times tell what is missing
                continue

    def _of(self, recorded: Recorded) -> Iterator[Frame]:
        with open_video(recorded.path, fps=self._fps, long_side=self._long_side) as video:
            self._video = video
            start: float | None = None
            for frame in video:
                if start is None:
                    start = self._start(recorded.ended, video.info.duration)
                self._until = start + frame.time
                yield frame.later(start)
            if start is not None:
                self._until = start + video.seconds
        self._video = None

    def _start(self, ended: float, duration: float | None) -> float:
        """The second of the stream at which a video begins; a gap before it is told."""
        began = ended - (duration or 0.0)
        if self._until is None:
            self._began = began
            return 0.0
        start = began - self._began
        if duration is None or start - self._until <= JOINED_S:
            return self._until
        self._missed(self._until, start)
        return start

    def _following(self) -> Recorded | None:
        """The next whole video that was not taken."""
        found = self._whole()
        if self._newest is None:
            return found[-1] if found else None
        later = [one for one in found if (one.ended, one.path.name) > (self._newest.ended, self._newest.path.name)]
        return (later[-1] if len(later) > BEHIND else later[0]) if later else None

    def _whole(self) -> list[Recorded]:
        """All whole videos, oldest first."""
        found = []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.is_file() and not entry.name.startswith("."):
                        found.append(Recorded(Path(entry.path), entry.stat().st_mtime))
        except OSError:  # it may come back
            return []
        found.sort(key=lambda one: (one.ended, one.path.name))
        settled = found and time.time() - found[-1].ended > SETTLED_S
        return found if settled else found[:-1]
