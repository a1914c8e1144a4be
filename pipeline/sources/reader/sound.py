"""The sound of one file, as one channel of samples with their seconds, and the words of its subtitle track."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from .container import PLAYERS, Source, codec_name, open_container
from .sniff import Refused, sniff

RATE = 16_000  # samples a second that are given: what networks of speech hear
BLOCK = RATE  # samples of a block at most
GAP = 0.1  # seconds by which a stamp may be off from where the samples before it end
HOUR = 3600.0  # a longer step of a stamp is not believed
CUE = 2_000  # characters of a subtitle at most
STYLE = re.compile(r"\{\\[^{}]*\}")
FAILURES = 50  # unreadable stretches in a row that end the file
# Decoders that may run, those of what phones, cameras and browsers write, and text alone of subtitles: no pictures.
CODECS = """aac aac_latm mp3 mp3float mp2 mp2float opus libopus vorbis libvorbis flac alac ac3 eac3 amrnb amrwb
    wmav1 wmav2 adpcm_ima_wav adpcm_ms gsm_ms pcm_alaw pcm_mulaw pcm_u8 pcm_s8 pcm_s16le pcm_s16be pcm_s24le pcm_s24be
    pcm_s32le pcm_s32be pcm_f32le pcm_f32be""".split()  # noqa: SIM905
TEXTS = "mov_text subrip srt ass ssa webvtt text".split()  # noqa: SIM905
ENGLISH = ("en", "eng")


@dataclass
class Block:
    """Samples one after the other, float32 in -1..1, from a second on."""

    time: float
    parts: list[np.ndarray] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def end(self) -> float:
        return self.time + self.count / RATE


Cue = tuple[float, float, str]  # seconds from and to, words


class Listener:
    """`heard()` gives blocks and cues in the file's order; the attributes say what there is and how far it is."""

    def __init__(self, fd: int, job: dict, report: Callable[[Listener], None]) -> None:
        self.report, self.size, self.skipped = report, os.fstat(fd).st_size, 0
        self.source, demuxer = Source(fd), sniff(os.pread(fd, 4096, 0), fd)
        self.container = open_container(self.source, demuxer, job, (*CODECS, *TEXTS))
        audio = [s for s in self.container.streams.audio if codec_name(s) in CODECS]
        best = next((s for s in self.container.streams.audio if s is self.container.streams.best("audio")), None)
        self.audio = best if best in audio else next(iter(audio), None)
        self.unread = "" if self.audio or not best else codec_name(best)
        self.words = self._words()
        chosen = [s for s in (self.audio, self.words) if s is not None]
        for stream in self.container.streams:
            if stream not in chosen:
                stream.discard = av.stream.Discard.all
        start = self.container.start_time
        self.zero = 0.0 if demuxer in PLAYERS or not start else start / av.time_base
        self.resampler = AudioResampler(format="flt", layout="mono", rate=RATE)
        self.block: Block | None = None

    def _words(self) -> Any:
        """The subtitle track: an English one before others."""
        texts = [s for s in self.container.streams.subtitles if codec_name(s) in TEXTS]
        return min(texts, key=lambda s: s.language not in ENGLISH, default=None)

    def heard(self) -> Iterator[Block | Cue]:
        for packet in self._packets():
            self.report(self)
            if packet.stream is self.words:
                yield from self._cue(packet)
            elif packet.has_sidedata("encryption_info"):
                raise Refused("drm")
            else:
                for frame in self._decoded(packet):
                    yield from self._added(frame)
        for frame in self._decoded(None) if self.audio else ():
            yield from self._added(frame)
        if self.block and self.block.parts:
            yield self.block

    def progress(self) -> float:
        """0..1, by bytes."""
        return min(1.0, self.source.at / max(1, self.size))

    def _packets(self) -> Iterator[av.Packet]:
        chosen, failures = [s for s in (self.audio, self.words) if s is not None], 0
        while chosen and failures < FAILURES:
            try:
                for packet in self.container.demux(chosen):
                    failures = 0
                    if packet.size:
                        yield packet
                return
            except IndexError:  # PyAV does so at the end of a file in which tracks came up
                return
            except (av.FFmpegError, ValueError):
                failures += 1
                self.skipped += 1

    def _decoded(self, packet: av.Packet | None) -> list[AudioFrame]:
        assert self.audio is not None  # of no other track are packets read
        try:
            return list(self.audio.codec_context.decode(packet))
        except EOFError:
            return []
        except (av.FFmpegError, ValueError):
            self.skipped += 1
            return []

    def _added(self, frame: AudioFrame) -> Iterator[Block]:
        """The block that is full, or that ends because this frame's stamp says so."""
        at = None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base) - self.zero
        samples = self._samples(frame)
        if self.block is None:
            self.block = Block(max(0.0, at or 0.0))
        elif at is not None and GAP < at - self.block.end < HOUR:  # a step back is not believed
            yield self.block
            self.block = Block(at)
        self.block.parts.append(samples)
        if self.block.count >= BLOCK:
            yield self.block
            self.block = Block(self.block.end)

    def _samples(self, frame: AudioFrame) -> np.ndarray:
        try:
            frames = self.resampler.resample(frame)
        except (av.FFmpegError, ValueError):  # another layout or rate from here on
            self.resampler = AudioResampler(format="flt", layout="mono", rate=RATE)
            frames = self.resampler.resample(frame)
        return np.concatenate([np.zeros(0, np.float32), *(one.to_ndarray()[0] for one in frames)])

    def _cue(self, packet: av.Packet) -> Iterator[Cue]:
        """The words of a subtitle, without markup."""
        if packet.pts is None or packet.time_base is None:
            return
        start = max(0.0, float(packet.pts * packet.time_base) - self.zero)
        until = start + max(0.0, float((packet.duration or 0) * packet.time_base))
        try:
            lines = [_plain(rect) for rect in self.words.codec_context.decode2(packet) or ()]
        except (av.FFmpegError, ValueError):
            self.skipped += 1
            return
        if text := " ".join(" ".join(lines).split())[:CUE]:
            yield start, until, text


def _plain(rect: Any) -> str:
    """FFmpeg gives every text as a line of ASS; PyAV takes its dialogue out of that. Its styles stand in braces."""
    said = rect.dialogue if hasattr(rect, "dialogue") else b""
    return STYLE.sub("", said.decode("utf-8", "replace").replace("\\N", " "))
