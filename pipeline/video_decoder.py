"""The decode process: reads one untrusted video file and writes small upright pictures to standard output.

Run as a script by pipeline.video, never imported by the product: a codec bug may take this process, and nothing else.
Before it looks at the file it drops its limits to almost nothing: no new file descriptors at all (so no playlist, data
reference or socket can be opened, whatever a demuxer tries), no file writes, bounded memory and processor time. It gets
the video as an open descriptor and never learns a path.

Wire format, one message after the other: two little-endian uint32 (length of a JSON header, length of a payload), the
header, the payload (rgb24 rows of a picture). Standard output is a pipe: a full one blocks us, which bounds memory.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import av
import av.subtitles.codeccontext
import av.subtitles.stream  # av would import these two on meeting a subtitle track, when no file may be opened any more
import cv2
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

# Decoders that may run, each long fuzzed upstream. Rare ones stay out: MagicYUV was CVE-2026-8461, JPEG 2000 part of
# CVE-2026-22778. Audio and subtitle decoders are not needed, so probing may not start them either.
CODECS = frozenset(
    "h264 hevc av1 libdav1d vp8 vp9 mpeg1video mpeg2video mpegvideo mpeg4 mjpeg h263 flv theora vp6 vp6a vp6f "
    "wmv1 wmv2 wmv3 vc1 msmpeg4 msmpeg4v1 msmpeg4v2 prores dnxhd dvvideo ffv1 rawvideo qtrle gif apng".split()
)
# Codecs whose keyframes stand alone, as their containers flag them (GIF and APNG flag everything).
SKIMMABLE = frozenset(
    "h264 hevc av1 libdav1d vp8 vp9 mpeg1video mpeg2video mpeg4 mjpeg theora prores dnxhd dvvideo ffv1 rawvideo".split()
)
# Codecs in which pictures that no other picture needs can be left out.
NONREF = frozenset("h264 hevc mpeg1video mpeg2video mpeg4 vc1 wmv3".split())
STILL_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"avic", b"miaf", b"MiHE", b"crx "))
MOV_BOXES = frozenset(
    (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp", b"sidx", b"uuid")
)
MAGIC = (
    (b"\x1aE\xdf\xa3", "matroska"),
    (b"OggS", "ogg"),
    (b"FLV\x01", "flv"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (b"\x00\x00\x01\xba", "mpeg"),
    (b"\x00\x00\x01\xb3", "mpegvideo"),
    (b"\x00\x00\x01\xb0", "m4v"),
    (b"YUV4MPEG2 ", "yuv4mpegpipe"),
    (b"DKIF\x00\x00", "ivf"),
)
PICTURES = (
    b"\xff\xd8\xff",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"\x00\x00\x00\x0cJXL ",
    b"\xff\x0a",
    b"8BPS",
    b"\x00\x00\x01\x00",
)
Matrix = tuple[float, float, float, float]
UPRIGHT: Matrix = (1, 0, 0, 1)
EPSILON = 1e-6  # seconds; container clocks are rational, ours is a double


class Refused(Exception):
    """This file cannot be watched: `kind` (see pipeline.video.SENTENCES) and the few facts its sentence names."""

    def __init__(self, kind: str, **facts: Any) -> None:
        super().__init__(kind)
        self.kind, self.facts = kind, facts


# --- what is it? --------------------------------------------------------------------------------------------------


def sniff(head: bytes) -> str:
    """The one demuxer that may read a file starting with `head` (4 KiB suffice). Raises Refused."""
    for magic, demuxer in MAGIC:
        if head.startswith(magic):
            return demuxer
    if head[4:8] in MOV_BOXES:
        if head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS:
            raise Refused("image_not_video")
        return "mov"
    if head[:4] == b"RIFF":
        return sniff_riff(head)
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return sniff_png(head)
    if head.startswith(PICTURES):
        raise Refused("image_not_video")
    return sniff_stream(head)


def sniff_riff(head: bytes) -> str:
    if head[8:12] in (b"AVI ", b"AVIX"):
        return "avi"
    if head[8:12] == b"WEBP":
        raise Refused("image_not_video")
    raise Refused("not_a_video")


def sniff_png(head: bytes) -> str:
    if b"acTL" in head:
        return "apng"
    raise Refused("image_not_video")


def sniff_stream(head: bytes) -> str:
    """Transport streams (188 or 192 byte packets, perhaps cut in the middle of one) and bare H.264 and HEVC."""
    for step in (188, 192, 204):
        for start in range(min(step, max(0, len(head) - 4 * step))):
            if all(head[start + i * step] == 0x47 for i in range(5 if len(head) > start + 4 * step else 4)):
                return "mpegts"
    nal = re.match(rb"\x00?\x00\x00\x01(.)(.)", head, re.S)
    if nal and nal[1][0] & 0x9F in (7, 9) and nal[1][0] & 0x80 == 0:
        return "h264"
    if nal and nal[1][0] >> 1 in (32, 35) and nal[2][0] == 1:
        return "hevc"
    raise Refused("not_a_video")


def prescan_mov(fd: int, size: int) -> bool:
    """Whether a `moov` index was found walking the top boxes; refuses compressed indexes (1 MB of cmov became 1 GB)."""
    at = 0
    for _ in range(100_000):
        head = os.pread(fd, 16, at)
        if len(head) < 8:
            return False
        length, name = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            length = struct.unpack(">Q", head[8:])[0]
        length = length or size - at
        if name in (b"moov", b"cmov"):
            if re.search(rb"cmov.{4}dcom", os.pread(fd, min(length, 64 << 20), at), re.S):
                raise Refused("not_a_video")
            return True
        if length < 8:
            return False
        at += length
    return False


class Source:
    """The video as FFmpeg may see it: bytes without a name."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd, self.size, self.at = fd, size, 0

    def read(self, n: int) -> bytes:
        data = os.pread(self.fd, n, self.at)
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def tell(self) -> int:
        return self.at


def refuse_nested(url: str, flags: int, options: dict) -> None:
    raise PermissionError("a video may not open anything else")


def open_container(source: Source, demuxer: str, job: dict) -> av.container.InputContainer:
    """The file opened with `demuxer` and nothing else. Raises Refused."""
    options = {
        "format_whitelist": FORMAT_NAMES.get(demuxer, demuxer),
        "codec_whitelist": ",".join(sorted(CODECS)),
        "protocol_whitelist": "none",
        "max_pixels": str(job["pixels"]),
        "max_streams": str(job["streams"]),
        "threads": "1",
    }
    indexed = demuxer != "mov" or prescan_mov(source.fd, source.size)
    try:
        return av.open(
            source,
            format=demuxer,
            options=options,
            metadata_errors="replace",
            buffer_size=1 << 17,
            timeout=(job["seconds"], job["seconds"]),
            io_open=refuse_nested,
        )
    except MemoryError:
        raise Refused("too_large") from None
    except (av.FFmpegError, OSError, ValueError, RuntimeError):
        raise Refused("not_a_video", **({} if indexed else {"why": "index"})) from None


FORMAT_NAMES = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}


def choose_stream(container: av.container.InputContainer, job: dict) -> av.VideoStream:
    """The best moving-picture track whose codec is allowed. Raises Refused."""
    best = container.streams.best("video")
    tracks = sorted(container.streams.video, key=lambda s: s is not best)
    hidden = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    tracks = [s for s in tracks if not s.disposition & hidden]
    if not tracks:
        raise Refused("no_video")
    stream = next((s for s in tracks if codec_name(s) in CODECS), None)
    if stream is None:
        raise Refused("unsupported_codec", codec=codec_name(tracks[0]))
    context = stream.codec_context
    if context.width * context.height > job["pixels"]:
        raise Refused("too_large", width=context.width, height=context.height)
    return stream


def codec_name(stream: av.VideoStream) -> str:
    return stream.codec_context.name if stream.codec_context else "unknown"


def trusted_duration(stream: av.VideoStream, container: av.container.InputContainer, size: int) -> float | None:
    """Seconds the header promises, or None where it is absent or at odds with the index or the file's size."""
    seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
    if seconds is None and container.duration:
        seconds = container.duration / av.time_base
    if not seconds or not 0 < seconds < 1e6 or size / seconds < 2:
        return None
    entries = stream.index_entries
    if container.format.name.startswith("mov") and len(entries) > 1:
        indexed = float((entries[len(entries) - 1].timestamp - entries[0].timestamp) * stream.time_base)
        if abs(seconds - indexed) > 10 + 0.2 * seconds:
            return None
    return seconds


# --- time -----------------------------------------------------------------------------------------------------------


class Clock:
    """Presentation stamps to seconds since the first presented picture, never backwards.

    A missing stamp is the last one plus its duration. A step back of more than a second is a wrap or a spliced
    recording: time goes on from where it was. A smaller one is a bad stamp: the picture comes just after its neighbour.
    """

    def __init__(self, time_base: Fraction, rate: Fraction | None) -> None:
        self.time_base = time_base
        self.step = float(1 / rate) if rate and 0 < rate <= 1000 else 0.04
        self.base: int | None = None
        self.shift = 0.0
        self.last = -1.0

    def peek(self, pts: int) -> float:
        """Seconds of a stamp that is still to come."""
        return float((pts - (self.base or 0)) * self.time_base) + self.shift

    def time(self, pts: int | None, duration: int | None) -> float:
        """Seconds of the next presented picture."""
        now = 0.0 if self.last < 0 else self.last + self.step
        if pts is not None and self.base is None:  # the first stamp of all, perhaps after pictures without any
            self.base, self.shift = pts, now
        elif pts is not None:
            now = self.peek(pts)
            if now <= self.last:
                now = self.repaired(now)
            self.step = min(max(now - self.last, 1e-4), 1.0)
        if duration and duration > 0:
            self.step = float(duration * self.time_base)
        self.last = now
        return now

    def repaired(self, now: float) -> float:
        if self.last - now > 1.0:
            self.shift += self.last + self.step - now
            return self.last + self.step
        return self.last + 1e-4


class Sampler:
    """Which pictures to keep: those on the screen at 0, 1/fps, 2/fps ... seconds, each once, however long it stays.

    A picture is known to be on the screen at a tick when the next one comes later, so one is held back. Gaps are not
    filled with copies. fps None keeps every picture.
    """

    def __init__(self, fps: float | None) -> None:
        self.fps = fps
        self.held: tuple[Any, float] | None = None
        self.tick = 0  # the first tick the held picture may answer

    def offer(self, frame: Any, at: float) -> list[tuple[Any, float]]:
        """The pictures that `frame`, presented `at` seconds, proves wanted: none or one."""
        if self.fps is None:
            return [(frame, at)]
        wanted = [self.held] if self.held and self.wants(self.held[1], at) else []
        self.held = (frame, at)
        self.tick = -int(-(at - EPSILON) * self.fps // 1)
        return wanted

    def wants(self, start: float, end: float) -> bool:
        """Whether a tick lies in [start, end)."""
        if self.fps is None:
            return True
        tick = -int(-(start - EPSILON) * self.fps // 1)
        return tick / self.fps < end - EPSILON

    def finish(self, end: float) -> list[tuple[Any, float]]:
        """The picture that stays on the screen until `end`, if it is wanted."""
        wanted = [self.held] if self.held and (self.held[1] == 0 or self.wants(self.held[1], end)) else []
        self.held = None
        return wanted


# --- pictures -------------------------------------------------------------------------------------------------------


def display_matrix(frame: av.VideoFrame) -> Matrix:
    """(a, b, c, d): a stored point (x, y) is shown at (a x + c y, b x + d y). Identity where the file says nothing."""
    try:
        side = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # PyAV 18 does not know the side data of stereo video, and then shows none; take the turn alone
        turns = round(frame.rotation / 90) % 4
        return ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))[turns]
    finally:
        gc.collect()  # frame.side_data makes a cycle that kept whole pictures alive: 90 of them filled 2 GiB
    if side is None or side.buffer_size < 36:
        return UPRIGHT
    m = struct.unpack("=9i", bytes(side)[:36])
    return (m[0], m[1], m[3], m[4]) if any((m[0], m[1], m[3], m[4])) else UPRIGHT


def upright(rgb: np.ndarray, matrix: Matrix) -> np.ndarray:
    """`rgb` turned and mirrored as `matrix` says, to the nearest quarter turn."""
    a, b, c, d = matrix
    if lies(matrix):
        rgb, a, d = cv2.transpose(rgb), c, b
    code = {(False, False): None, (True, False): 1, (False, True): 0, (True, True): -1}[a < 0, d < 0]
    return rgb if code is None else cv2.flip(rgb, code)


def lies(matrix: Matrix) -> bool:
    """Whether width and height change places."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def square(width: int, height: int, sar: Fraction | None) -> tuple[int, int]:
    """Size with square pixels: the width takes the stretch. Ratios beyond 1:8 are lies."""
    ratio = sar if sar and Fraction(1, 8) <= sar <= 8 else 1
    return max(1, round(width * ratio)), height


class Painter:
    """Decoded pictures to small upright rgb. Keeps one colour converter for the whole file."""

    def __init__(self, stream: av.VideoStream, long_side: int) -> None:
        self.stream, self.long_side = stream, long_side
        self.converter = VideoReformatter()
        self.turned, self.matrix = None, UPRIGHT

    def orientation(self, frame: av.VideoFrame) -> Matrix:
        """The display matrix, read again only where the cheap `rotation` says it changed."""
        if frame.rotation != self.turned:
            self.turned, self.matrix = frame.rotation, display_matrix(frame)
        return self.matrix

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Width and height as shown, before shrinking."""
        width, height = square(frame.width, frame.height, self.stream.sample_aspect_ratio)
        return (height, width) if lies(self.orientation(frame)) else (width, height)

    def convert(self, frame: av.VideoFrame, pixels: str) -> np.ndarray:
        return self.converter.reformat(frame, format=pixels, threads=1).to_ndarray()

    def rgb24(self, frame: av.VideoFrame) -> np.ndarray:
        """All the pixels, from any pixel format; transparent ones over black."""
        if not any(c.is_alpha for c in frame.format.components):
            return self.convert(frame, "rgb24")
        rgba = self.convert(frame, "rgba")
        alpha = cv2.cvtColor(np.ascontiguousarray(rgba[..., 3]), cv2.COLOR_GRAY2RGB)
        return cv2.multiply(np.ascontiguousarray(rgba[..., :3]), alpha, scale=1 / 255)

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """Upright rgb with square pixels, its longer side at most `long_side`, never enlarged."""
        width, height = square(frame.width, frame.height, self.stream.sample_aspect_ratio)
        scale = min(1.0, self.long_side / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = self.rgb24(frame)
        if size != (frame.width, frame.height):
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(upright(rgb, self.orientation(frame)))


# --- reading --------------------------------------------------------------------------------------------------------


class Reader:
    """One pass over one video track: packets in, timed pictures out, damaged packets counted and left behind."""

    def __init__(self, container: av.container.InputContainer, source: Source, job: dict) -> None:
        self.container, self.source, self.job = container, source, job
        self.stream = choose_stream(container, job)
        self.context = self.stream.codec_context
        self.duration = trusted_duration(self.stream, container, source.size)
        self.clock = Clock(self.stream.time_base, self.stream.guessed_rate)
        self.sampler = Sampler(job["fps"])
        self.skipped = self.encrypted = self.silent = 0
        self.position = 0
        self.painter = Painter(self.stream, job["long_side"])
        self.report: Callable[[], None] = lambda: None
        for other in container.streams:
            if other is not self.stream:
                other.discard = av.stream.Discard.all
        self.configure()

    def configure(self) -> None:
        """Decoder settings. Threads decode whole pictures side by side: about half the wall time on two cores."""
        self.context.options = {"max_pixels": str(self.job["pixels"])}
        self.context.thread_count = self.job["threads"]
        self.context.thread_type = "AUTO"
        fps, rate, codec = self.job["fps"], self.stream.guessed_rate, codec_name(self.stream)
        self.skim = bool(self.job["skim"] and fps and codec in SKIMMABLE)
        if self.job["skim"] and fps and rate and rate >= 10 * fps and codec in NONREF:
            self.context.skip_frame = "NONREF"

    def packets(self) -> Iterator[av.Packet]:
        """The track's packets in file order. Unreadable stretches are counted; 50 in a row end the file."""
        failures = 0
        while failures < 50:
            try:
                for packet in self.container.demux(self.stream):
                    if packet.size == 0:
                        continue
                    failures = 0
                    self.position = max(self.position, packet.pos or 0)
                    self.report()
                    if packet.has_sidedata("encryption_info"):
                        self.refuse_encrypted()
                    else:
                        yield packet
                return
            except (av.FFmpegError, ValueError):
                failures += 1
                self.skipped += 1

    def refuse_encrypted(self) -> None:
        self.encrypted += 1
        self.skipped += 1
        if self.clock.last < 0 and self.encrypted > 300:
            raise Refused("drm")

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """Pictures that `packet` completes (None: those still inside); a damaged packet gives none and is counted."""
        try:
            frames = self.context.decode(packet)
        except EOFError:
            return []
        except MemoryError:
            raise Refused("too_large") from None
        except (av.FFmpegError, ValueError):
            self.skipped += 1
            return []
        self.watch_skipping(frames)
        return frames

    def watch_skipping(self, frames: list) -> None:
        """Leaving out unneeded pictures must stay harmless: a long silence means nearly all were 'unneeded'."""
        self.silent = 0 if frames else self.silent + 1
        if self.silent > 24 and str(self.context.skip_frame) == "NONREF":
            self.context.skip_frame = "DEFAULT"

    def drain(self) -> list[av.VideoFrame]:
        """What the decoder still holds; it is as new afterwards."""
        frames = self.decode(None)
        self.context.flush_buffers()
        return frames

    def frames(self) -> Iterator[av.VideoFrame]:
        """Decoded pictures in order. Short groups that may be skimmed give their keyframe alone, or nothing."""
        skimmed = False
        for group, end in self.groups():
            if end is None:
                skimmed = False
                for packet in group:
                    yield from self.decode(packet)
            elif self.clock.base is None or self.sampler.wants(self.clock.peek(group[0].pts), self.clock.peek(end)):
                if not skimmed:
                    yield from self.drain()
                yield from self.keyframe(group)
                skimmed = True
        yield from self.decode(None)

    def keyframe(self, group: list[av.Packet]) -> list[av.VideoFrame]:
        """The first picture of a group; all of them, and no more skimming, where it cannot stand alone."""
        frames = self.decode(group[0]) + self.drain()
        if frames:
            return frames[:1]
        self.skim = False
        rest = [frame for packet in group for frame in self.decode(packet)]
        return rest + self.drain()

    def groups(self) -> Iterator[tuple[list[av.Packet], int | None]]:
        """Packets cut at keyframes. A group no longer than one sampling period comes whole, with the stamp of the next
        keyframe: its keyframe alone answers any tick inside, at most one period early. Others come with None, in pieces.
        """
        group: list[av.Packet] = []
        for packet in self.packets():
            if packet.is_keyframe:
                if group:
                    yield group, packet.pts if self.short(group[0], packet) else None
                group = [packet] if self.skim and packet.pts is not None else []
                if not group:
                    yield [packet], None
            elif not group:
                yield [packet], None
            else:
                group.append(packet)
                if len(group) > 500 or not self.short(group[0], packet):
                    yield group, None
                    group = []
        if group:
            yield group, None

    def short(self, key: av.Packet, later: av.Packet) -> bool:
        """Whether `later` is shown within one sampling period of `key` (leading pictures of open groups included)."""
        if later.pts is None or not self.skim:
            return False
        span = float((later.pts - key.pts) * self.stream.time_base)
        period = 1 / self.job["fps"]
        return -period < span <= period * 1.02 and (span > 0 or not later.is_keyframe)

    def sampled(self) -> Iterator[tuple[av.VideoFrame, float]]:
        """The wanted pictures with their seconds. Raises Refused where a picture is beyond the limit."""
        for frame in self.frames():
            if frame.width * frame.height > self.job["pixels"]:
                raise Refused("too_large", width=frame.width, height=frame.height)
            yield from self.sampler.offer(frame, self.clock.time(frame.pts, frame.duration))
        yield from self.sampler.finish(self.clock.last + self.clock.step)

    def progress(self) -> float:
        """0..1: by time where the header's duration is believable, else by bytes."""
        if self.duration:
            return min(1.0, max(0.0, self.clock.last) / self.duration)
        return min(1.0, (self.position or self.source.at) / max(1, self.source.size))

    def nothing(self) -> Refused:
        """Why not a single picture came out."""
        return Refused("drm" if self.encrypted else "cannot_decode" if self.skipped else "no_frames")


# --- the process ----------------------------------------------------------------------------------------------------


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
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (AttributeError, OSError, ValueError):
            pass
    os.nice(10)


def watch(job: dict) -> None:
    """Read the file on descriptor job['fd'] and send info, pictures and the end."""
    size = os.fstat(job["fd"]).st_size
    source = Source(job["fd"], size)
    container = open_container(source, sniff(os.pread(job["fd"], 4096, 0)), job)
    reader = Reader(container, source, job)
    last = [time.monotonic()]

    def report() -> None:
        if time.monotonic() - last[0] > 0.5:
            send({"type": "tick", "skipped": reader.skipped, "progress": reader.progress()})
            last[0] = time.monotonic()

    reader.report = report
    told = False
    for frame, at in reader.sampled():
        if not told:
            send(describe(reader, frame))
            told = True
        send_picture(reader, frame, at)
    if not told:
        raise reader.nothing()
    send({"type": "end", "skipped": reader.skipped, "seconds": reader.clock.last + reader.clock.step})


def describe(reader: Reader, frame: av.VideoFrame) -> dict:
    width, height = reader.painter.size(frame)
    name = reader.stream.codec_context.codec.canonical_name
    container = reader.container.format.name.split(",")[0]
    return {
        "type": "info", "width": width, "height": height, "duration": reader.duration, "codec": name, "container": container,
    }  # fmt: skip


def send_picture(reader: Reader, frame: av.VideoFrame, at: float) -> None:
    try:
        rgb = reader.painter.picture(frame)
    except MemoryError:
        raise Refused("too_large", width=frame.width, height=frame.height) from None
    except (av.FFmpegError, OSError, ValueError, cv2.error):  # seen in fuzzing: conversion fails after a good decode
        reader.skipped += 1
        return
    height, width = rgb.shape[:2]
    header = {"type": "frame", "time": at, "width": width, "height": height}
    send(header | {"skipped": reader.skipped, "progress": reader.progress()}, rgb.tobytes())


def main() -> None:
    job = json.loads(sys.argv[1])
    cv2.setNumThreads(1)
    gc.freeze()  # collections look at our few objects only, not at the libraries'
    confine(job)
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
