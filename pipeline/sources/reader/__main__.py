"""The decode process: reads one untrusted video file and writes small upright pictures to standard output.

`python -m pipeline.sources.reader '{"fd": ...}'` is started by pipeline.sources.file; the product never imports this
folder: a codec bug takes this process and nothing else. Before looking at the file it drops its limits to almost
nothing: no new file descriptors at all (no playlist, data reference or socket can be opened, whatever a demuxer tries),
no file writes, bounded memory and processor time. It gets the video as an open descriptor and never learns a path.

A live source (live.py) has no descriptor: it is told an address, and may open connections but no files for writing.

One process, the scout, goes through the whole file; where parts of it can be decoded alone (segments.py), others help
it. What they are to read comes in on standard input.

Wire format, one message after the other: two little-endian uint32 (length of a JSON header, length of a payload), the
header, the payload (rgb24 rows of a picture). Standard output is a pipe: a full one blocks us, which bounds memory.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import struct
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import av
import cv2
import numpy as np

from .container import check_size
from .live import LiveReader
from .reader import CannotSkim, Reader
from .segments import Segment, SegmentReader, Strayed, Ticket
from .sniff import Refused
from .sound import BLOCK, RATE, Block, Listener


def send(header: dict, payload: bytes = b"") -> None:
    """One message to the parent; blocks while the pipe is full."""
    text = json.dumps(header).encode()
    for part in (struct.pack("<II", len(text), len(payload)) + text, payload):
        view = memoryview(part)
        while view:
            view = view[os.write(1, view) :]


def confine(job: dict) -> None:
    """Give up, for good, what decoding does not need. Limits the system lacks are passed over."""
    files = ("NOFILE", job["files"] if "live" in job else 0)
    for name, value in (("AS", job["memory"]), ("CPU", job["cpu"]), ("FSIZE", 0), ("CORE", 0), files):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    os.nice(10)


class Teller:
    """Sends what a Reader finds. A second pass over the same file goes on where the first one stopped."""

    def __init__(self, after: float) -> None:
        self.described, self.last, self.spoke = False, after, time.monotonic()
        self.newest: tuple[dict, bytes] | None = None  # kept back, until it is known whether it is the last one
        self.segment: Segment | None = None  # likewise, and until it is known what is wanted of it

    def report(self, reader: Reader) -> None:
        """A sign of life every half second, however long no picture is wanted."""
        if time.monotonic() - self.spoke > 0.5:
            send({"type": "tick", "skipped": reader.skipped, "progress": reader.progress()})
            self.spoke = time.monotonic()

    def tell(self, job: dict) -> None:
        """Everything from the first picture to the end."""
        reader = Reader(job["fd"], job, self.report)
        for found, at in reader.sampled():
            if not isinstance(found, Ticket):
                self.shown(reader, found, at)
            elif at > self.last:
                self.ticket(reader, found, at)
            self.last = max(self.last, at)
        self.give(reader.end if self.last + 1.5 / (job["fps"] or 1.0) < reader.end else None)
        clock = reader.clock
        told: dict[str, Any] = {
            "seconds": reader.end,
            "lone": clock.lone,
            "joined": clock.joined,
            "untimed": reader.untimed,
        }
        told |= {"skipped": reader.skipped, "unread": reader.tracks.unread, "unsplit": reader.unsplit}
        send({"type": "end"} | told)

    def shown(self, reader: Reader, frame: av.VideoFrame, at: float) -> None:
        if not self.described:
            self.describe(reader, frame)
        if at > self.last:
            self.picture(reader, frame, at)

    def describe(self, reader: Reader, frame: av.VideoFrame) -> None:
        width, height = reader.painter.size(frame)
        codec, container = reader.context.codec.canonical_name, reader.container.format.name.split(",")[0]
        about = {"width": width, "height": height, "duration": reader.duration, "codec": codec, "container": container}
        send({"type": "info"} | about)
        self.described = True

    def picture(self, reader: Reader, frame: av.VideoFrame, at: float) -> None:
        try:
            rgb = painted(reader, frame)
        except UNPAINTABLE:  # seen in fuzzing: decoded, yet not convertible
            reader.skipped += 1
            return
        self.give()
        self.newest = framed(rgb, time=at, skipped=reader.skipped, progress=reader.progress())

    def ticket(self, reader: Reader, ticket: Ticket, at: float) -> None:
        """Once something later is wanted, all that is wanted of a segment is known."""
        if ticket.segment is not self.segment:
            self.give()
            self.segment = ticket.segment
        ticket.segment.wanted.append((ticket.pts, at, reader.progress()))

    def give(self, until: float | None = None) -> None:
        """Sends what was kept back. until: where its last picture ends, if it is the last of all."""
        if self.newest:
            head, rows = self.newest
            send(head if until is None else head | {"until": until}, rows)
        if self.segment:
            send({"type": "segment", "until": until} | asdict(self.segment))
        self.newest = self.segment = None


OPENING_S, HELD = (
    1.0,
    16,
)  # seconds and pictures that a live source's first ones wait, until it is known how old they are
UNPAINTABLE = (av.FFmpegError, OSError, ValueError, cv2.error)


def painted(reader: Reader | LiveReader, frame: av.VideoFrame) -> np.ndarray:
    """Raises one of UNPAINTABLE, or Refused where it is too large."""
    try:
        return reader.painter.paint(frame)
    except MemoryError:
        raise Refused("too_large", width=frame.width, height=frame.height) from None


def framed(rgb: np.ndarray, **facts: Any) -> tuple[dict, bytes]:
    """A picture as a message."""
    height, width = rgb.shape[:2]
    return {"type": "frame", "width": width, "height": height} | facts, rgb.tobytes()


def watch(job: dict) -> None:
    """The scout: all of the file, but for what it gives away."""
    teller = Teller(job["after"])
    try:
        teller.tell(job)
    except CannotSkim:
        teller.tell(job | {"skim": False, "share": False})
    finally:
        teller.give()


def receive(job: dict) -> None:
    """Pictures of a live source, whose address comes in on standard input, until the connection ends."""
    reader = LiveReader(json.loads(sys.stdin.readline())["where"], job)
    opened, held, told = time.monotonic(), deque[tuple[dict, bytes]](), False
    if job["live"] == "hls":  # a segment's pictures come all at once, always
        opened -= OPENING_S
    try:
        for frame, at in reader.pictures():
            with contextlib.suppress(*UNPAINTABLE):
                held.append(framed(painted(reader, frame), time=at, skipped=reader.skipped))
            if not told and (time.monotonic() - opened > OPENING_S or len(held) == HELD):
                told = True
                send({"type": "info", "over": reader.over, "age": reader.age()})
            while told and held:
                send(*held.popleft())
    finally:
        if not told:
            send({"type": "info", "over": reader.over, "age": reader.age()})
        for message in held:
            send(*message)
    send({"type": "end"})


def help_out(job: dict) -> None:
    """Another reader: segments come in on standard input, one JSON line each; their pictures go out."""
    teller = Teller(-1.0)
    reader = Reader(job["fd"], job, teller.report)
    segments = SegmentReader(reader, lambda frame: check_size(frame, job["pixels"]))
    for line in sys.stdin:
        about = json.loads(line)
        try:
            for frame, place in segments.frames(Segment(**about)):
                send(*framed(painted(reader, frame), place=place))
        except (Strayed, Refused, MemoryError, *UNPAINTABLE):
            send({"type": "strayed"})  # what is wrong with the file, whoever reads it in order will say
            return
        send({"type": "done"})


def listen(job: dict) -> None:
    """The sound and the subtitles, one after the other."""
    spoke = [time.monotonic()]

    def report(listener: Listener) -> None:
        if time.monotonic() - spoke[0] > 0.5:
            send({"type": "tick", "skipped": listener.skipped, "progress": listener.progress()})
            spoke[0] = time.monotonic()

    listener = Listener(job["fd"], job, report)
    tracks = {"sound": listener.audio is not None, "subtitles": listener.words is not None}
    send({"type": "info", "unread": listener.unread} | tracks)
    for heard in listener.heard():
        if isinstance(heard, Block):
            samples = np.concatenate(heard.parts).astype("<f4")
            for first in range(0, len(samples), BLOCK):  # one packet may hold many seconds
                head = {"type": "block", "time": heard.time + first / RATE, "progress": listener.progress()}
                send(head, samples[first : first + BLOCK].tobytes())
        else:
            send({"type": "cue"} | dict(zip(("time", "until", "text"), heard)))
    send({"type": "end", "skipped": listener.skipped, "progress": 1.0})


def work_of(job: dict) -> Callable[[dict], None]:
    if "live" in job:
        return receive
    if job.get("sound"):
        return listen
    return help_out if job["helps"] else watch


def main() -> None:
    job = json.loads(sys.argv[1])
    cv2.setNumThreads(1)
    confine(job)
    gc.freeze()  # collections look at our few objects only, not at the libraries'
    try:
        work_of(job)(job)
    except Refused as refused:
        send({"type": "error", "kind": refused.kind, "facts": refused.facts})
    except MemoryError:
        send({"type": "error", "kind": "too_large", "facts": {}})
    except BrokenPipeError:
        pass  # nobody listens any more
    except Exception:
        facts = {} if "live" in job else {"log": traceback.format_exc()[-2000:]}  # an address holds a password
        send({"type": "error", "kind": "crashed", "facts": facts})
    os._exit(0)  # tearing FFmpeg down after a damaged file is risk without gain


if __name__ == "__main__":
    main()
