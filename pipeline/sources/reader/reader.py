"""One pass over one video track: packets in, timed pictures out, damaged packets counted and left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import av
import av.subtitles.codeccontext
import av.subtitles.stream  # av would import these two on meeting a subtitle track, when no file may be opened any more

from .pictures import Painter
from .sniff import Refused, prescan_mov, sniff
from .timing import Clock, Sampler

# Decoders that may run, each long fuzzed upstream. Rare ones stay out: MagicYUV was CVE-2026-8461, JPEG 2000 part of
# CVE-2026-22778. Audio and subtitle decoders are not needed, so probing may not start them either.
CODECS = """h264 hevc av1 libdav1d vp8 vp9 mpeg1video mpeg2video mpegvideo mpeg4 mjpeg h263 flv theora vp6 vp6a vp6f
    wmv1 wmv2 wmv3 vc1 msmpeg4 msmpeg4v1 msmpeg4v2 prores dnxhd dvvideo ffv1 rawvideo qtrle gif apng""".split()  # noqa: SIM905
# Codecs whose keyframes stand alone (GIF and APNG flag every picture).
SKIMMABLE = """h264 hevc av1 libdav1d vp8 vp9 mpeg1video mpeg2video mpeg4 mjpeg theora prores dnxhd dvvideo ffv1
    rawvideo""".split()  # noqa: SIM905
# Codecs in which pictures that no other picture needs can be left out.
NONREF = ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "wmv3")
FORMAT_NAMES = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}


class CannotSkim(Exception):
    """The file's flags lied: this pass must be done again, decoding everything."""


class Source:
    """The video as FFmpeg may see it: bytes without a name."""

    def __init__(self, fd: int) -> None:
        self.fd, self.size, self.at = fd, os.fstat(fd).st_size, 0

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
    """The file, opened with `demuxer` and nothing else. Raises Refused."""
    options = {
        "format_whitelist": FORMAT_NAMES.get(demuxer, demuxer),
        "codec_whitelist": ",".join(CODECS),
        "protocol_whitelist": "none",
        "max_pixels": str(job["pixels"]),
        "max_streams": str(job["streams"]),
        "threads": "1",
    }
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


def codec_name(stream: av.VideoStream) -> str:
    return stream.codec_context.name if stream.codec_context else "unknown"


def check_size(picture: av.VideoFrame | av.VideoCodecContext, pixels: int) -> None:
    if picture.width * picture.height > pixels:
        raise Refused("too_large", width=picture.width, height=picture.height)


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


class Reader:
    """`sampled()` gives the wanted pictures with their seconds, once; the attributes say how far it is.

    skipped: damaged packets so far. duration: believable seconds or None. clock.last: seconds of the newest picture.
    """

    def __init__(self, fd: int, job: dict, report: Callable[[Reader], None]) -> None:
        self.source, self.job, self.report = Source(fd), job, report
        demuxer = sniff(os.pread(fd, 4096, 0))
        self.indexed = demuxer != "mov" or prescan_mov(fd, self.source.size)
        try:
            self.container = open_container(self.source, demuxer, job)
        except Refused as refused:
            raise self.explained(refused) from None
        self.stream = choose_stream(self.container, job["pixels"])
        self.context = self.stream.codec_context
        self.duration = trusted_duration(self.stream, self.container, self.source.size)
        self.clock = Clock(self.stream.time_base, self.stream.guessed_rate)
        self.sampler = Sampler(job["fps"])
        self.painter = Painter(self.stream, job["long_side"])
        self.skipped = self.encrypted = self.silent = self.position = 0
        for other in self.container.streams:
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
        self.lean = bool(self.job["skim"] and fps and rate and rate >= 10 * fps and codec in NONREF)
        if self.lean:
            self.context.skip_frame = "NONREF"

    def packets(self) -> Iterator[av.Packet]:
        """The track's packets in file order. Unreadable stretches are counted; 50 in a row end the file."""
        failures = 0
        while failures < 50:
            try:
                for packet in self.container.demux(self.stream):
                    failures = 0
                    self.position = max(self.position, packet.pos or 0)
                    self.report(self)
                    if packet.has_sidedata("encryption_info"):
                        self.pass_encrypted()
                    elif packet.size:
                        yield packet
                return
            except (av.FFmpegError, ValueError):
                failures += 1
                self.skipped += 1

    def pass_encrypted(self) -> None:
        """Copy-protected packets count as damaged; a film may start in the clear, but one that does not ends here."""
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
        self.silent = 0 if frames else self.silent + 1
        if self.lean and self.silent > 24:  # nearly every picture is one that "no other needs"
            raise CannotSkim
        return frames

    def drain(self) -> list[av.VideoFrame]:
        """What the decoder still holds; it is as new afterwards."""
        frames = self.decode(None)
        self.context.flush_buffers()
        return frames

    def frames(self) -> Iterator[av.VideoFrame]:
        """Decoded pictures in order. Short groups that may be skimmed give their keyframe alone, or nothing."""
        fresh = False
        for group, end in self.groups():
            if end is None:
                fresh = False
                for packet in group:
                    yield from self.decode(packet)
            elif self.clock.base is None or self.sampler.wants(self.clock.peek(group[0].pts), self.clock.peek(end)):
                if not fresh:
                    yield from self.drain()
                yield self.keyframe(group[0])
                fresh = True
        yield from self.decode(None)

    def keyframe(self, packet: av.Packet) -> av.VideoFrame:
        """The picture of `packet` alone. Raises CannotSkim where it does not stand alone after all."""
        frames = self.decode(packet) + self.drain()
        if not frames or not frames[0].key_frame:
            raise CannotSkim
        return frames[0]

    def groups(self) -> Iterator[tuple[list[av.Packet], int | None]]:
        """Packets cut at keyframes. A group no longer than one sampling period comes as its keyframe and the stamp of
        the next one: the keyframe answers any tick inside, at most one period early. Others come whole, with None.
        """
        group: list[av.Packet] = []
        for packet in self.packets():
            if group and packet.is_keyframe:
                yield (group[:1], packet.pts) if self.short(group[0], packet) else (group, None)
                group = []
            if not group and (not self.skim or not packet.is_keyframe or packet.pts is None):
                yield [packet], None
                continue
            group.append(packet)
            if len(group) > 500 or not self.within(group[0], packet):
                yield group, None
                group = []
        if group:
            yield group, None

    def short(self, key: av.Packet, following: av.Packet) -> bool:
        return self.within(key, following) and following.pts > key.pts

    def within(self, key: av.Packet, later: av.Packet) -> bool:
        """Whether `later` is shown within one sampling period of `key`, on either side (open groups lead in)."""
        return later.pts is not None and abs(later.pts - key.pts) * self.stream.time_base * self.job["fps"] <= 1.02

    def sampled(self) -> Iterator[tuple[av.VideoFrame, float]]:
        """The wanted pictures with their seconds. Raises Refused where one is too large or none comes at all."""
        for frame in self.frames():
            check_size(frame, self.job["pixels"])
            yield from self.sampler.offer(frame, self.clock.time(frame.pts, frame.duration))
        if self.clock.last < 0:
            raise self.explained(Refused("drm" if self.encrypted else "cannot_decode" if self.skipped else "no_frames"))
        yield from self.sampler.finish(self.clock.end)

    def explained(self, refused: Refused) -> Refused:
        """The same refusal, naming a missing index as the reason."""
        if not self.indexed and refused.kind in ("not_a_video", "no_frames"):
            refused.facts["why"] = "index"
        return refused

    def progress(self) -> float:
        """0..1: by time where the header's duration is believable, else by bytes."""
        if self.duration:
            return min(1.0, max(0.0, self.clock.last) / self.duration)
        return min(1.0, (self.position or self.source.at) / max(1, self.source.size))
