"""Opening: the file as FFmpeg may see it, its one demuxer, the track to watch, and what the container says of time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction

import av
import av.subtitles.codeccontext
import av.subtitles.stream  # av would import these two on meeting a subtitle track, when no file may be opened any more

from .sniff import Refused
from .timing import Timeline

# Decoders that may run, each long fuzzed upstream. Rare ones stay out: MagicYUV was CVE-2026-8461, JPEG 2000 part of
# CVE-2026-22778. Audio and subtitle decoders are not needed, so probing may not start them either.
CODECS = """h264 hevc av1 libdav1d vp8 vp9 mpeg1video mpeg2video mpegvideo mpeg4 mjpeg h263 flv theora vp6 vp6a vp6f
    wmv1 wmv2 wmv3 vc1 msmpeg4 msmpeg4v1 msmpeg4v2 prores dnxhd dvvideo ffv1 rawvideo qtrle gif apng""".split()  # noqa: SIM905
FORMAT_NAMES = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}
PLAYERS = ("mov", "matroska")  # demuxers of what browsers play: their seconds are the player's
SENDERS = ("mpegts", "mpeg", "flv")  # stamps are a sender's clock
UNTIMED = ("h264", "hevc", "mjpeg", "mpjpeg", "m4v", "mpegvideo")  # pictures in a row: the rate is a guess


class Source:
    """The video as FFmpeg may see it: bytes without a name, from `start` on."""

    def __init__(self, fd: int, start: int = 0) -> None:
        self.fd, self.start, self.size, self.at = fd, start, os.fstat(fd).st_size - start, 0

    def read(self, n: int) -> bytes:
        data = os.pread(self.fd, n, self.start + self.at)
        self.at += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def tell(self) -> int:
        return self.at


def refuse_nested(url: str, flags: int, options: dict) -> None:
    raise PermissionError("a video may not open anything else")


def open_container(
    source: Source, demuxer: str, job: dict, codecs: Sequence[str] = CODECS
) -> av.container.InputContainer:
    """The file, opened with `demuxer` and nothing else. codecs: that may run. Raises Refused."""
    options = {
        "format_whitelist": FORMAT_NAMES.get(demuxer, demuxer),
        "codec_whitelist": ",".join(codecs),
        "protocol_whitelist": "none",
        "max_pixels": str(job["pixels"]),
        "max_streams": str(job["streams"]),
        "threads": "1",
    }
    try:
        return av.open(
            source,
            mode="r",
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
        raise Refused("not_a_video") from None


def choose_stream(container: av.container.InputContainer, pixels: int) -> av.VideoStream:
    """The best track of moving pictures whose codec is allowed. Raises Refused."""
    best = container.streams.best("video")
    cover = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    tracks = [s for s in container.streams.video if not s.disposition & cover]
    if not tracks:
        raise Refused("no_video")
    tracks.sort(key=lambda s: s is not best)
    stream = next((s for s in tracks if codec_name(s) in CODECS), None)
    if stream is None:
        raise Refused("unsupported_codec", codec=codec_name(tracks[0]))
    check_size(stream.codec_context, pixels)
    return stream


def codec_name(stream: av.VideoStream | av.AudioStream | av.subtitles.stream.SubtitleStream) -> str:
    return stream.codec_context.name if stream.codec_context else "unknown"


def check_size(picture: av.VideoFrame | av.VideoCodecContext, pixels: int) -> None:
    if picture.width * picture.height > pixels:
        raise Refused("too_large", width=picture.width, height=picture.height)


def unit(stream: av.VideoStream) -> Fraction:
    """Seconds of one step of the track's stamps."""
    assert stream.time_base is not None  # FFmpeg gives every track one
    return stream.time_base


def timeline(stream: av.VideoStream, container: av.container.InputContainer, demuxer: str, size: int) -> Timeline:
    """What the container says of this track's seconds."""
    zero = second_zero(stream, container, demuxer)
    rate = stream.guessed_rate
    ends = track_end(stream, container, demuxer, size, zero)
    return Timeline(unit(stream), rate, zero, ends, demuxer in PLAYERS, demuxer in SENDERS)


def second_zero(stream: av.VideoStream, container: av.container.InputContainer, demuxer: str) -> int | None:
    """The stamp that is second 0: a browser's player counts from stamp 0, elsewhere it is where the container starts.

    None where that is unknown, or far from the track's own start: the first picture is then at 0.
    """
    if demuxer in PLAYERS:
        return 0
    if demuxer == "avi" or stream.start_time is None or container.start_time is None:  # AVI counts pictures as stored
        return None
    zero = round(container.start_time / av.time_base / unit(stream))
    return zero if 0 <= (stream.start_time - zero) * unit(stream) <= 60 else None


def track_end(
    stream: av.VideoStream, container: av.container.InputContainer, demuxer: str, size: int, zero: int | None
) -> float | None:
    """Second at which the header lets the track end, or None where it is silent, or at odds with the index or the
    file's size."""
    start = float(((stream.start_time or 0) - (zero or 0)) * unit(stream)) if zero is not None else 0.0
    seconds = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else None
    if seconds is None and container.duration:
        seconds = container.duration / av.time_base
    if not seconds or not 0 < seconds < 1e6 or size / seconds < (1000 if demuxer in SENDERS else 2):
        return None
    entries = stream.index_entries
    if demuxer == "mov" and len(entries) > 1:
        indexed = float((entries[len(entries) - 1].timestamp - entries[0].timestamp) * unit(stream))
        if abs(seconds - indexed) > 10 + 0.2 * seconds:
            return None
    return seconds if demuxer == "matroska" else start + seconds  # Matroska's durations are ends


def player_end(container: av.container.InputContainer, demuxer: str, ends: float | None) -> float | None:
    """Second at which a browser's player ends: sound may go on after the last picture. None where it is unknown."""
    if ends is None or demuxer not in PLAYERS or not container.duration:
        return ends
    start = max(container.start_time or 0, 0) if demuxer == "mov" else 0
    return max(ends, (start + container.duration) / av.time_base)
