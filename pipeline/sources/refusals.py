"""Why a video is not watched, or not to its end: every refusal is one sentence of cause, consequence and cure.

Also the ceilings no file can raise, and the way a path becomes an open descriptor within them.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
from dataclasses import dataclass
from typing import Any

from pipeline.sources.camera import MAX_PIXELS
from pipeline.stream import UserError

log = logging.getLogger(__name__)
WHY_NOT_OPEN = {  # errno: kind of refusal
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.EACCES: "no_permission",
    errno.EPERM: "no_permission",
    errno.ENAMETOOLONG: "name_too_long",
    errno.ELOOP: "circular_link",
    errno.ENXIO: "not_a_file",
}
NO_FILE = {"not_found", "address", "unreadable", *WHY_NOT_OPEN.values()} - {"not_a_file"}  # nothing could be opened

# What each kind of refusal says: cause, consequence, cure. Only numbers and a codec's name ever enter a sentence.
SENTENCES = {
    "not_found": "There is no such video file here, so nothing was watched; choose the file again.",
    "no_permission": "We are not allowed to read this file, so nothing was watched; allow it, or choose a copy of it.",
    "name_too_long": "The name of the file is too long for this machine, so it was not opened; choose a shorter one.",
    "circular_link": "The file is a link that leads back to itself, so nothing was watched; choose the video itself.",
    "address": "This is an address, and we open no addresses, so nothing was watched; download the video first.",
    "folder": "This is a folder, not a video, so nothing was watched; choose a video file in it.",
    "not_a_file": "This is a pipe or a device, not a file, so nothing was watched; save the video to a file first.",
    "unreadable": "The system could not open the file, so nothing was watched; try again, or choose a copy of it.",
    "no_reader": "This machine has no room for another reader, so nothing was watched; try again in a minute.",
    "empty": "The file is empty, so there is nothing to watch; upload it again.",
    "not_a_video": "This is not a video file we can read, so nothing was watched; choose MP4, WebM, MOV, MKV or AVI.",
    "index": "The recording is incomplete: its index is missing, so nothing can be shown; upload or export it again.",
    "image_not_video": "This is a picture, not a video, so there is nothing to watch; choose a video file.",
    "moving_picture": "This is an animated WebP, which cannot be read, so nothing was watched; save it as MP4 or GIF.",
    "no_video": "There is no video track in this file, so there is nothing to watch; choose a file with pictures.",
    "no_frames": "The video has no pictures, so there is nothing to watch; record or export it again.",
    "cannot_decode": "The video is too damaged to show a single picture; upload it again or export it as MP4 (H.264).",
    "unsupported_codec": "The video codec {codec} is not supported, so nothing was read; export it as MP4 (H.264).",
    "drm": "The video is copy-protected, so it cannot be watched here; choose an unprotected copy.",
    "too_large": "The picture is too large ({width}x{height}; limit {limit} megapixels); export the video smaller.",
    "too_heavy": "The video needs more memory than one visitor may use, so it was not read; export it smaller.",
    "too_big": "The file is larger than {limit} GB, so it was not read; cut it or export it smaller.",
    "no_answer": "The source does not answer or broke off, so nothing new is watched; it is asked again by itself.",
    "too_slow": "Reading the video took longer than allowed and stopped; what was read is kept; export it smaller.",
    "crashed": "The video broke its reader, which stopped there; what was read is kept; export it as MP4 (H.264).",
}


class VideoError(UserError):
    """A file that cannot be watched, or not to its end. `kind` is a key of SENTENCES."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


@dataclass(frozen=True)
class Limits:
    """Ceilings no file can raise.

    pixels of one stored picture; streams in a file; bytes of the file; seconds the decoder may work (time spent waiting
    for whoever takes the frames is free); stall, seconds without a sign of life; cpu, processor seconds; memory, bytes
    of address space; threads of the decoder. skim: allow the two savings that VideoFile describes.

    readers: processes that may share a file (None: one for each core). together: bytes of memory for which their number
    is chosen, taking `reader` and twenty pictures for each. ahead: bytes of pictures that may wait to be taken (None:
    32 MB for each reader, 256 MB at most: what watches more slowly than two can decode would only hold them).
    segment: packets that a reader gets at a time, at least. alone: pixels up to which a file is read by one.
    """

    pixels: int = MAX_PIXELS
    streams: int = 256
    bytes: int = 16 << 30
    seconds: float = 3600.0
    stall: float = 60.0
    cpu: int = 7200
    memory: int = 2 << 30
    threads: int = 2
    skim: bool = True
    readers: int | None = None
    together: int = 8 << 30
    reader: int = 80 << 20
    ahead: int | None = None
    segment: int = 240
    alone: float = 1.5e9


def sentence(kind: str, facts: dict[str, Any], limits: Limits) -> VideoError:
    """The error for `kind`; facts from the decoder are cut down to numbers and a plain codec name."""
    if "log" in facts:
        log.warning("decode process: %r", str(facts["log"])[:2000])
    key = "index" if facts.get("why") == "index" else kind if kind in SENTENCES else "crashed"
    if key == "too_large" and not facts.get("width"):
        key = "too_heavy"
    codec = re.sub(r"[^A-Za-z0-9_]", "", str(facts.get("codec", "")))[:20] or "of this file"
    width, height = (int(facts.get(k) or 0) for k in ("width", "height"))
    limit = limits.bytes >> 30 if key == "too_big" else limits.pixels // 1_000_000
    text = SENTENCES[key].format(codec=codec, width=width, height=height, limit=limit)
    return VideoError(kind if kind in SENTENCES else "crashed", text)


def open_regular(path: str | os.PathLike, limits: Limits) -> int:
    """A read-only descriptor of a regular file within limits, never 0 to 2. Raises VideoError."""
    try:
        low = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # NONBLOCK: a FIFO must not hang us
    except (OSError, ValueError) as error:
        raise sentence(why_not_open(path, error), {}, limits) from None
    try:
        # The reading process has streams of its own on 0 to 2: a file there would be lost under them.
        fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        raise sentence("unreadable", {}, limits) from None
    finally:
        os.close(low)
    kind = why_not_read(os.fstat(fd), limits)
    if kind:
        os.close(fd)
        raise sentence(kind, {}, limits)
    return fd


def why_not_open(path: str | os.PathLike, error: OSError | ValueError) -> str:
    """The kind of refusal for a path that the system does not open."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", os.fsdecode(path)):
        return "address"
    return "not_found" if isinstance(error, ValueError) else WHY_NOT_OPEN.get(error.errno or 0, "unreadable")


def why_not_read(found: os.stat_result, limits: Limits) -> str | None:
    """The kind of refusal for what was opened, or None."""
    if stat.S_ISDIR(found.st_mode):
        return "folder"
    if not stat.S_ISREG(found.st_mode):
        return "not_a_file"
    if found.st_size == 0:
        return "empty"
    return "too_big" if found.st_size > limits.bytes else None
