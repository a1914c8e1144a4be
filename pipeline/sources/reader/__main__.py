"""The decode process: reads one untrusted video file and writes small upright pictures to standard output.

`python -m pipeline.sources.reader '{"fd": ...}'` is started by pipeline.sources.file; the product never imports this
folder: a codec bug takes this process and nothing else. Before looking at the file it drops its limits to almost
nothing: no new file descriptors at all (no playlist, data reference or socket can be opened, whatever a demuxer tries),
no file writes, bounded memory and processor time. It gets the video as an open descriptor and never learns a path.

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

import av
import cv2

from .reader import CannotSkim, Reader
from .sniff import Refused


def send(header: dict, payload: bytes = b"") -> None:
    """One message to the parent; blocks while the pipe is full."""
    text = json.dumps(header).encode()
    for part in (struct.pack("<II", len(text), len(payload)) + text, payload):
        view = memoryview(part)
        while view:
            view = view[os.write(1, view) :]


def confine(job: dict) -> None:
    """Give up, for good, what decoding does not need. Limits the system lacks are passed over."""
    for name, value in (("AS", job["memory"]), ("CPU", job["cpu"]), ("FSIZE", 0), ("CORE", 0), ("NOFILE", 0)):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    os.nice(10)


class Teller:
    """Sends what a Reader finds. A second pass over the same file goes on where the first one stopped."""

    def __init__(self) -> None:
        self.described, self.last, self.spoke = False, -1.0, time.monotonic()
        self.newest: tuple[dict, bytes] | None = None  # kept back, until it is known whether it is the last one

    def report(self, reader: Reader) -> None:
        """A sign of life every half second, however long no picture is wanted."""
        if time.monotonic() - self.spoke > 0.5:
            send({"type": "tick", "skipped": reader.skipped, "progress": reader.progress()})
            self.spoke = time.monotonic()

    def tell(self, job: dict) -> None:
        """Everything from the first picture to the end."""
        reader = Reader(job["fd"], job, self.report)
        for frame, at in reader.sampled():
            if not self.described:
                self.describe(reader, frame)
            if at > self.last:
                self.picture(reader, frame, at)
                self.last = at
        if self.newest and self.last + 1.5 / (job["fps"] or 1.0) < reader.end:
            self.newest[0]["until"] = reader.end
        self.give()
        clock = reader.clock
        told = {"seconds": reader.end, "lone": clock.lone, "joined": clock.joined, "untimed": reader.untimed}
        send({"type": "end", "skipped": reader.skipped, "unread": reader.tracks.unread} | told)

    def describe(self, reader: Reader, frame: av.VideoFrame) -> None:
        width, height = reader.painter.size(frame)
        codec, container = reader.context.codec.canonical_name, reader.container.format.name.split(",")[0]
        about = {"width": width, "height": height, "duration": reader.duration, "codec": codec, "container": container}
        send({"type": "info"} | about)
        self.described = True

    def picture(self, reader: Reader, frame: av.VideoFrame, at: float) -> None:
        try:
            rgb = reader.painter.paint(frame)
        except MemoryError:
            raise Refused("too_large", width=frame.width, height=frame.height) from None
        except (av.FFmpegError, OSError, ValueError, cv2.error):  # seen in fuzzing: decoded, yet not convertible
            reader.skipped += 1
            return
        height, width = rgb.shape[:2]
        header = {"type": "frame", "time": at, "width": width, "height": height}
        self.give()
        self.newest = header | {"skipped": reader.skipped, "progress": reader.progress()}, rgb.tobytes()

    def give(self) -> None:
        """Sends the picture that was kept back."""
        if self.newest:
            newest, self.newest = self.newest, None
            send(*newest)


def watch(job: dict) -> None:
    teller = Teller()
    try:
        teller.tell(job)
    except CannotSkim:
        teller.tell(job | {"skim": False})
    finally:
        teller.give()


def main() -> None:
    job = json.loads(sys.argv[1])
    cv2.setNumThreads(1)
    confine(job)
    gc.freeze()  # collections look at our few objects only, not at the libraries'
    try:
        watch(job)
    except Refused as refused:
        send({"type": "error", "kind": refused.kind, "facts": refused.facts})
    except MemoryError:
        send({"type": "error", "kind": "too_large", "facts": {}})
    except BrokenPipeError:
        pass  # nobody listens any more
    except Exception:
        send({"type": "error", "kind": "crashed", "facts": {"log": traceback.format_exc()[-2000:]}})
    os._exit(0)  # tearing FFmpeg down after a damaged file is risk without gain


if __name__ == "__main__":
    main()
