"""Transport streams whose tracks change: another programme, another track number, another codec in the same one.

FFmpeg fixes the set of tracks on opening. So where the track that is read stops, pauses, or can no longer be decoded,
the file is opened again from that byte on, and if another track goes on there it is read on from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

import av

from .container import CODECS, Source, check_size, codec_name, open_container
from .sniff import Refused

MAX_LOOKS = 200  # times a file is opened again
TAIL = 4096  # bytes after the last picture in which no other track is looked for
PAUSE = 1.0  # seconds without a picture after which another track is looked for
BROKEN, SILENT = 5, 32  # packets in a row that fail, or give no picture, after which another codec is looked for
LATE = 6  # packets that a decoder may hold before it gives a picture

Track = tuple[Source, av.container.InputContainer, av.VideoStream]


class OpenTrack(Protocol):
    """The reader, as far as it matters here: the track it is on, the file's bytes, and damaged packets so far."""

    source: Source
    stream: av.VideoStream
    size: int
    skipped: int


class Changed(Exception):
    """The packets no longer belong to the track that is read."""


class Tracks:
    """Finds the track that goes on where the one that is read does not. unread: codec of one that we cannot read."""

    def __init__(self, fd: int, demuxer: str, job: dict) -> None:
        self.fd, self.demuxer, self.job = fd, demuxer, job
        self.unread, self.looks = "", 0
        self.found: Track | None = None
        self.last = self.size = 0  # where the newest packet lies, and how long it is
        self.stamp: int | None = None
        self.recent: deque[int] = deque(maxlen=SILENT + LATE)  # where the newest packets lie
        self.broken: tuple[int, ...] = ()  # where the newest packets lie, if they failed
        self.silent: tuple[int, ...] = ()  # where the newest packets lie, if they gave no picture

    @property
    def changes(self) -> bool:
        return self.demuxer == "mpegts" and self.looks < MAX_LOOKS

    def interrupted(self, reader: OpenTrack, packet: av.Packet) -> bool:
        """Notes where `packet` lies; whether another track took over in the pause before it."""
        if not self.changes or packet.pos is None:
            return False
        at, stamp = reader.source.start + packet.pos, packet.dts if packet.dts is not None else packet.pts
        before = self.stamp
        paused = stamp is not None and before is not None and (stamp - before) * packet.time_base > PAUSE
        if paused and at > self.last + self.size + TAIL and self.look(reader, self.last + 188):
            return True
        self.last, self.size, self.stamp = at, packet.size, stamp
        self.recent.append(at)
        return False

    def decoded(self, reader: OpenTrack, packet: av.Packet, pictures: int, failed: bool) -> None:
        """Notes what came of `packet`. Raises Changed where another codec took over."""
        if not self.changes or packet.pos is None:
            return
        if pictures:
            self.broken = self.silent = ()
            return
        at = reader.source.start + packet.pos
        self.silent = (*self.silent, at)
        self.broken = (*self.broken, at) if failed else ()
        if (len(self.broken) == BROKEN or len(self.silent) == SILENT) and self.another_codec(reader):
            reader.skipped -= len(self.broken)
            raise Changed

    def another_codec(self, reader: OpenTrack) -> bool:
        """Whether one took over at the first silent packet, or some before it: a decoder gives its pictures late."""
        before = [at for at in self.recent if at < self.silent[0]][-LATE:]
        return any(self.look(reader, at + 188) for at in (*before[:1], *self.broken[:1]))

    def following(self, reader: OpenTrack) -> Track | None:
        """The track that goes on where this one ended, or None."""
        found, self.found = self.found, None
        if found is None and self.changes and reader.size - self.last - self.size > TAIL:
            self.look(reader, self.last + 188)
            found, self.found = self.found, None
        self.broken, self.silent, self.stamp = (), (), None
        return found

    def look(self, reader: OpenTrack, start: int) -> bool:
        """Whether from byte `start` on the next keyframe belongs to another track, or another codec."""
        self.looks += 1
        try:
            track = self.opened(start)
        except Refused as refused:
            self.unread = str(refused.facts.get("codec", "")) or self.unread
            return False
        if track is None or (track[2].id, codec_name(track[2])) == (reader.stream.id, codec_name(reader.stream)):
            return False
        self.found, self.last, self.size = track, max(self.last, start), 0
        return True

    def opened(self, start: int) -> Track | None:
        """The track of the first keyframe from byte `start` on. Raises Refused where it cannot be read."""
        peek = open_container(Source(self.fd, start), self.demuxer, self.job)
        number = next(self.keyframes(peek), None)
        if number is None:
            return None
        source = Source(self.fd, start)
        container = open_container(source, self.demuxer, self.job)
        stream = next((s for s in container.streams.video if s.id == number), None)
        if stream is None:
            return None
        if codec_name(stream) not in CODECS:
            raise Refused("unsupported_codec", codec=codec_name(stream))
        check_size(stream.codec_context, self.job["pixels"])
        return source, container, stream

    def keyframes(self, container: av.container.InputContainer) -> Iterator[int]:
        """Numbers of the tracks of keyframes, in file order."""
        try:
            for packet in container.demux(container.streams.video):
                if packet.size and packet.is_keyframe:
                    yield packet.stream.id
        except (IndexError, ValueError, av.FFmpegError):
            return
