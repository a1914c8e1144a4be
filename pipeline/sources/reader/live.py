"""Reading a live source, a camera over RTSP or HLS: pictures go out as they come, at a rate, until the connection ends.

The address comes in on standard input, so that no list of processes shows its password, and goes out with nothing that
is said. FFmpeg may use the protocols of PROTOCOLS and no others: a playlist cannot lead it to a file of this machine.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av

from .container import CODECS, check_size, choose_stream, unit
from .pictures import Painter
from .sniff import Refused
from .timing import Clock, Sampler, Timeline

PROTOCOLS = {"rtsp": "rtsp,rtsps,tcp,tls", "hls": "http,https,tcp,tls,crypto"}
FORMATS = {"rtsp": "rtsp", "hls": "hls,mpegts,aac,webvtt,mov,mp4,m4a,3gp,3g2,mj2"}
# Microseconds, bytes and pictures that are looked at before the first one is given: a live picture does not wait.
ANALYSED = {"analyzeduration": "500000", "probesize": "1000000", "fpsprobesize": "0"}
OPTIONS = {
    "rtsp": {"rtsp_transport": "tcp", "allowed_media_types": "video"},
    "hls": {"http_persistent": "0", "live_start_index": "-2", "max_reload": "20"},
}


class LiveReader:
    """A connection and its pictures. skipped: damaged packets so far. over: the source says where it ends."""

    def __init__(self, where: str, job: dict[str, Any]) -> None:
        self.job, self.skipped = job, 0
        self._first = math.nan  # second of the first picture on the source's clock
        self._offset = math.inf  # least that our clock was seen ahead of the source's: pictures come late, never early
        self.container = self._opened(where)
        self.stream = choose_stream(self.container, job["pixels"])
        self.context, self.painter = self.stream.codec_context, Painter(self.stream, job["long_side"])
        self.context.thread_count, self.context.thread_type = job["threads"], "AUTO"
        self.context.options = {"max_pixels": str(job["pixels"])}
        for other in self.container.streams:
            if other is not self.stream:
                other.discard = av.stream.Discard.all
        rate = self.stream.guessed_rate
        self.clock = Clock(Timeline(unit(self.stream), Fraction(rate) if rate else None, sender=True))
        self.over = job["live"] == "hls" and bool(self.container.duration)  # a playlist that says where it ends

    def _opened(self, where: str) -> av.container.InputContainer:
        kind = self.job["live"]
        options = {
            "protocol_whitelist": PROTOCOLS[kind],
            "format_whitelist": FORMATS[kind],
            "codec_whitelist": ",".join(CODECS),
            "max_pixels": str(self.job["pixels"]),
            "max_streams": str(self.job["streams"]),
            "threads": "1",
            **OPTIONS[kind],
        }
        silence = self.job["silence"]
        try:
            container = av.open(
                where, format=kind, options=options, metadata_errors="replace", timeout=(silence, silence)
            )
        except (av.FFmpegError, OSError, ValueError, RuntimeError):  # their words hold the address
            raise Refused("no_answer") from None
        if kind == "rtsp":
            open_nothing_more()
        return container

    def pictures(self) -> Iterator[tuple[av.VideoFrame, float]]:
        """The wanted ones with their seconds since the first; ends where the source or the connection does."""
        sampler = Sampler(self.job["fps"])
        for frame in self._frames():
            check_size(frame, self.job["pixels"])
            for picture, at in self.clock.offer(frame, frame.pts, frame.duration):
                yield from sampler.offer(picture, at)

    def _frames(self) -> Iterator[av.VideoFrame]:
        try:
            for packet in self.container.demux(self.stream):
                try:
                    for frame in self.context.decode(packet):
                        self._came(frame)
                        yield frame
                except (av.FFmpegError, ValueError):
                    self.skipped += 1
        except EOFError:
            return
        except (av.FFmpegError, OSError, ValueError):
            raise Refused("no_answer") from None

    def _came(self, frame: av.VideoFrame) -> None:
        if frame.pts is not None:
            second = float(frame.pts * unit(self.stream))
            self._first = second if math.isnan(self._first) else self._first
            self._offset = min(self._offset, time.monotonic() - second)

    def age(self) -> float:
        """Seconds since the first picture was taken, as far as can be known: what piles up while a connection is opened
        comes all at once."""
        age = time.monotonic() - self._offset - self._first
        return age if 0 <= age < 60 else 0.0


def open_nothing_more() -> None:
    """Everything comes through the connection that stands. Not 0, or the system would refuse to wait for it."""
    free = os.dup(0)  # the lowest number that is not taken
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, free))
