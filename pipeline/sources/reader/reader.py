"""One pass over one video: packets in, timed pictures out, damaged packets counted and left behind."""

from __future__ import annotations

import heapq
import os
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import av

from .container import (
    UNTIMED,
    Source,
    check_size,
    choose_stream,
    codec_name,
    open_container,
    player_end,
    timeline,
    unit,
)
from .pictures import Painter
from .savings import Group, Plan, Saver, grouped, with_neighbours
from .segments import SHARED, Sharing, Ticket
from .sniff import Refused, prescan_mov, sniff
from .timing import Clock, Sampler
from .tracks import Changed, Tracks

# Codecs whose keyframes stand alone (GIF and APNG flag every picture).
CUTTABLE = """h264 hevc av1 libdav1d vp8 vp9 mpeg1video mpeg2video mpeg4 mjpeg theora prores dnxhd dvvideo ffv1
    rawvideo""".split()  # noqa: SIM905
# Codecs in which pictures that no other picture needs can be left out.
NONREF = ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4")
REORDERED = ("h264", "hevc", "mpeg4")  # may store pictures in another order than they are shown
AHEAD = 8  # pictures held to sort the stamps of a container that counts them as they are stored

Shown = tuple[Any, int | None, int | None]  # a picture (Ticket: another's; None: left out), its stamp, its duration


class CannotSkim(Exception):
    """The file's flags or stamps lied: this pass must be done again, decoding everything."""


class Reader:
    """`sampled()` gives the wanted pictures with their seconds, once; the attributes say how far it is.

    skipped: damaged packets so far. duration: seconds of the player, or None where they are not to be believed.
    clock.last: seconds of the newest picture. end: second at which the last one ends. tracks: what was left out.
    """

    def __init__(self, fd: int, job: dict, report: Callable[[Reader], None]) -> None:
        self.fd, self.job, self.report = fd, job, report
        self.size = os.fstat(fd).st_size
        self.demuxer = sniff(os.pread(fd, 4096, 0), fd)
        self.indexed = self.demuxer != "mov" or prescan_mov(fd, self.size)
        source = Source(fd)
        try:
            container = open_container(source, self.demuxer, job)
        except Refused as refused:
            raise self.explained(refused) from None
        stream = choose_stream(container, job["pixels"])
        line = timeline(stream, container, self.demuxer, self.size)
        self.duration = player_end(container, self.demuxer, line.ends)
        self.clock, self.sampler = Clock(line), Sampler(job["fps"])
        self.skipped = self.encrypted = self.position = 0
        self.tracks = Tracks(fd, self.demuxer, job)
        self.left_out: list[tuple[int, int]] = []  # (stamp, duration) of pictures that were not decoded, a heap
        self.due: list[int] = []  # stamps of wanted pictures that are in the decoder, a heap
        self.empty = self.expects_key = self.hurt = self.gave = False
        self.worked = 0.0  # pixels of all packets so far
        self.enter(source, container, stream)

    def enter(self, source: Source, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        """Reads this track from now on. Threads decode whole pictures side by side: half the wall time on two cores."""
        self.source, self.container, self.stream = source, container, stream
        self.context, codec = stream.codec_context, codec_name(stream)
        self.painter = Painter(stream, self.job["long_side"])
        for other in container.streams:
            if other is not stream:
                other.discard = av.stream.Discard.all
        self.counted = self.demuxer == "avi" and codec in REORDERED and self.context.has_b_frames
        self.context.options = {"max_pixels": str(self.job["pixels"])}
        self.context.thread_count = self.job["threads"]
        self.context.thread_type = "AUTO"
        self.spares, cuts = codec in NONREF, codec in CUTTABLE
        saves = self.job["skim"] and self.job["fps"] and (self.spares or cuts) and not self.counted
        self.saver = Saver(float(1 / unit(stream)), self.on_a_tick, cuts) if saves else None
        shares = self.job["share"] and self.demuxer in SHARED and cuts and not self.counted
        self.sharing = Sharing(stream, self.job["segment"], self.alone()) if shares else None

    def alone(self) -> float:
        """Pixels to decode before sharing is worth other processes: none where the header promises many."""
        assert self.stream.codec_context is not None
        rate, size = self.stream.guessed_rate or 25, self.context.width * self.context.height
        return 0.0 if float(rate) * size * (self.duration or 0.0) > self.job["alone"] else self.job["alone"]

    def on_a_tick(self, start: int, end: int) -> bool:
        """Whether a picture shown between these stamps is on the screen at a tick."""
        return self.sampler.wants(self.clock.peek(start), self.clock.peek(end))

    # Packets

    def packets(self) -> Iterator[av.Packet]:
        """The track's packets in file order. Unreadable stretches are counted; 50 in a row end the file."""
        failures = 0
        while failures < 50:
            try:
                for packet in self.container.demux(self.stream):
                    failures = 0
                    self.position = max(self.position, self.source.start + (packet.pos or 0))
                    self.report(self)
                    if packet.has_sidedata("encryption_info"):
                        self.pass_encrypted()
                    elif packet.size:
                        self.worked += self.context.width * self.context.height
                        if self.tracks.interrupted(self, packet):
                            return
                        yield packet
                return
            except IndexError:  # PyAV does so at the end of a file in which tracks came up
                return
            except (av.FFmpegError, ValueError):
                failures += 1
                self.skipped += 1

    def pass_encrypted(self) -> None:
        """Copy-protected packets count as damaged; a film may start in the clear, but one that does not ends here."""
        self.encrypted += 1
        self.skipped += 1
        if not self.clock.started and self.encrypted > 300:
            raise Refused("drm")

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        """Pictures that `packet` completes (None: those still inside); a damaged packet gives none and is counted."""
        frames, failed = [], False
        try:
            frames = self.context.decode(packet)
        except EOFError:
            return []
        except MemoryError:
            raise Refused("too_large") from None
        except (av.FFmpegError, ValueError):
            self.skipped += 1
            self.hurt = failed = True
        if packet is not None:
            self.tracks.decoded(self, packet, len(frames), failed)
        return frames

    # Pictures

    def shown(self) -> Iterator[Shown]:
        """Every picture in the order of showing, decoded or left out, through all the tracks that follow each other."""
        while True:
            try:
                yield from self.track()
            except Changed:
                yield from self.settled()
            following = self.tracks.following(self)
            if following is None:
                return
            self.enter(*following)

    def track(self) -> Iterator[Shown]:
        """The pictures of one track."""
        if self.saver or self.sharing:
            for before, group, after in with_neighbours(grouped(self.packets())):
                if self.sharing and self.sharing.gives(group, after) and self.clock.started:
                    yield from self.given(self.sharing, group)
                    continue
                plan = self.saver.plan(before, group, after) if self.saver and self.clock.started else None
                yield from self.whole(group) if plan is None else self.saved(group, plan)
        else:
            for packet in self.packets():
                yield from self.completed(self.decode(packet))
        yield from self.completed(self.decode(None))
        yield from self.settled()

    def whole(self, group: Group) -> Iterator[Shown]:
        self.context.skip_frame = "DEFAULT"
        self.expects_key, self.empty = self.empty, False
        for packet in group.packets:
            yield from self.completed(self.decode(packet))

    def saved(self, group: Group, plan: Plan) -> Iterator[Shown]:
        """A group without what `plan` leaves out."""
        fed, rest = group.packets[: plan.feed], group.packets[plan.feed :]
        if self.empty:  # what is shown before the keyframe needs pictures that were left out, and is not wanted
            rest = [p for p in fed if p.pts < fed[0].pts] + rest
            fed = [p for p in fed if p.pts >= fed[0].pts]
        if fed:
            self.expects_key, self.empty = self.empty, False
        for packet in fed:
            wanted = packet.pts in plan.wanted
            self.context.skip_frame = "NONREF" if self.spares and not wanted else "DEFAULT"
            if wanted:
                heapq.heappush(self.due, packet.pts)
            elif self.spares:
                heapq.heappush(self.left_out, (packet.pts, packet.duration or 0))
            yield from self.completed(self.decode(packet))
        for packet in rest:
            heapq.heappush(self.left_out, (packet.pts, packet.duration or 0))
        if plan.feed < len(group.packets):
            yield from self.emptied()

    def emptied(self) -> Iterator[Shown]:
        """What is still in the decoder, which then starts anew."""
        if not self.empty:
            yield from self.completed(self.decode(None))
            self.context.flush_buffers()
        yield from self.settled()
        self.empty = True

    def given(self, sharing: Sharing, group: Group) -> Iterator[Shown]:
        """Tickets for the pictures of a group that another reader decodes."""
        yield from self.emptied()
        self.gave = True
        durations = {packet.pts: packet.duration for packet in group.packets}
        for ticket in sharing.tickets(group):
            yield ticket, ticket.pts, durations[ticket.pts] or 0

    def completed(self, frames: list[av.VideoFrame]) -> Iterator[Shown]:
        """Decoded pictures, with those that were left out in their places."""
        for frame in frames:
            if self.expects_key and not frame.key_frame:
                raise CannotSkim
            self.expects_key = False
            if frame.pts is not None:
                yield from self.until(frame.pts)
            yield frame, frame.pts, frame.duration

    def until(self, pts: int) -> Iterator[Shown]:
        """What was left out before `pts`. Raises CannotSkim where a wanted picture did not come."""
        while self.due and self.due[0] <= pts:
            if heapq.heappop(self.due) < pts and not self.hurt:
                raise CannotSkim
        while self.left_out and self.left_out[0][0] <= pts:
            stamp, duration = heapq.heappop(self.left_out)
            if stamp < pts:
                yield None, stamp, duration

    def settled(self) -> Iterator[Shown]:
        """All that was left out: the decoder is empty."""
        if self.due and not self.hurt:
            raise CannotSkim
        self.due, self.hurt = [], False
        while self.left_out:
            yield None, *heapq.heappop(self.left_out)

    def in_order(self) -> Iterator[Shown]:
        """AVI counts pictures as they are stored; shown in another order, each takes the smallest count waiting."""
        if not self.counted:
            yield from self.shown()
            return
        waiting: deque[tuple[Any, int | None]] = deque()
        counts: list[int] = []
        for picture, pts, duration in self.shown():
            waiting.append((picture, duration))
            if pts is not None:
                heapq.heappush(counts, pts)
            if len(waiting) > AHEAD:
                picture, duration = waiting.popleft()
                yield picture, heapq.heappop(counts) if counts else None, duration
        for picture, duration in waiting:
            yield picture, heapq.heappop(counts) if counts else None, duration

    def sampled(self) -> Iterator[tuple[av.VideoFrame | Ticket, float]]:
        """The wanted pictures, or tickets for them, with their seconds.

        Raises Refused where one is too large or none comes at all.
        """
        for frame, pts, duration in self.in_order():
            if isinstance(frame, av.VideoFrame):
                check_size(frame, self.job["pixels"])
            yield from self.chosen(self.clock.offer(frame, pts, duration))
        yield from self.chosen(self.clock.finish())
        if not self.clock.started:
            raise self.explained(Refused("drm" if self.encrypted else "cannot_decode" if self.skipped else "no_frames"))
        yield from decoded(self.sampler.finish(self.end))

    def chosen(self, settled: list[tuple[Any, float]]) -> Iterator[tuple[av.VideoFrame | Ticket, float]]:
        for picture, at in settled:
            yield from decoded(self.sampler.offer(picture, at))

    # How far it is

    @property
    def end(self) -> float:
        """Second at which the last picture ends; one on which sound goes on stays until the player ends."""
        end = self.clock.end
        if self.duration and self.duration > end + 1 and self.clock.timeline.player and self.clock.shift == 0:
            return self.duration
        return end

    @property
    def unsplit(self) -> bool:
        """Whether others were to help with a long file, and could not."""
        return self.job["share"] and self.worked > self.job["alone"] and not self.gave

    @property
    def untimed(self) -> bool:
        """Whether the file holds no times: they are counted at a guessed rate."""
        return self.demuxer in UNTIMED

    def explained(self, refused: Refused) -> Refused:
        """The same refusal, naming a missing index as the reason."""
        if not self.indexed and refused.kind in ("not_a_video", "no_frames"):
            refused.facts["why"] = "index"
        return refused

    def progress(self) -> float:
        """0..1: by time where the header's duration is believable, else by bytes."""
        if self.duration and not self.clock.joined:
            return min(1.0, max(0.0, self.clock.last) / self.duration)
        return min(1.0, (self.position or self.source.start + self.source.at) / max(1, self.size))


def decoded(chosen: list[tuple[Any, float]]) -> list[tuple[av.VideoFrame | Ticket, float]]:
    """The same pictures; raises CannotSkim where one that is wanted was left out."""
    if any(picture is None for picture, _ in chosen):
        raise CannotSkim
    return chosen
