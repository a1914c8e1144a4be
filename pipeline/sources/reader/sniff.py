"""What a file is, from its first bytes: the one demuxer that may read it, or the reason to refuse it.

The name of a file means nothing: a text file called .mp4 can be a playlist that opens somebody else's video.
"""

from __future__ import annotations

import os
import re
import struct
from typing import Any

STILL_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif", b"avic", b"miaf", b"MiHE", b"crx "}
MOV_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"moof", b"styp", b"sidx", b"uuid"}
MAGIC = {
    b"\x1aE\xdf\xa3": "matroska",
    b"OggS": "ogg",
    b"FLV\x01": "flv",
    b"GIF87a": "gif",
    b"GIF89a": "gif",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "asf",
    b"\x00\x00\x01\xba": "mpeg",
    b"\x00\x00\x01\xb3": "mpegvideo",
    b"\x00\x00\x01\xb0": "m4v",
    b"YUV4MPEG2 ": "yuv4mpegpipe",
    b"DKIF\x00\x00": "ivf",
}
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


class Refused(Exception):
    """This file cannot be watched: `kind` (see sources.file.SENTENCES) and the few facts its sentence names."""

    def __init__(self, kind: str, **facts: Any) -> None:
        super().__init__(kind)
        self.kind, self.facts = kind, facts


def sniff(head: bytes, fd: int) -> str:
    """The demuxer for the file `fd`, which starts with `head` (4 KiB). Raises Refused."""
    for magic, demuxer in MAGIC.items():
        if head.startswith(magic):
            return demuxer
    if head[4:8] in MOV_BOXES:
        if head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS:
            raise Refused("image_not_video")
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"):
        return "avi"
    if head.startswith(b"\x89PNG\r\n\x1a\n") and b"acTL" in head:
        return "apng"
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and head[20] & 2:
        raise Refused("moving_picture")
    if head.startswith(b"\xff\xd8\xff") and many_pictures(fd):
        return "mjpeg"
    if head.startswith((*PICTURES, b"\x89PNG\r\n\x1a\n")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        raise Refused("image_not_video")
    return sniff_stream(head)


def many_pictures(fd: int) -> bool:
    """Whether a JPEG is followed by at least three more, end to end, as cameras send them.

    A telephone's photograph may hold two or three (a preview, a brightness map), and says so.
    """
    data = os.pread(fd, 8 << 20, 0)
    return b"MPF\0" not in data[:65536] and len(re.findall(rb"\xff\xd9[\0\r\n]{0,64}\xff\xd8\xff", data)) >= 3


def sniff_stream(head: bytes) -> str:
    """Streams without a header: transport packets (perhaps cut in the middle of one), bare H.264 and HEVC."""
    for step in (188, 192, 204):
        for start in range(max(0, min(step, len(head) - 3 * step))):
            if len(head[start::step]) >= 4 and set(head[start::step]) == {0x47}:
                return "mpegts"
    unit = re.match(rb"\x00?\x00\x00\x01(.)(.)", head, re.S)
    if unit and unit[1][0] & 0x9F in (7, 9):  # parameter set or delimiter
        return "h264"
    if unit and unit[1][0] >> 1 in (32, 35) and unit[2][0] == 1:
        return "hevc"
    if re.match(rb"\s*--[^\r\n]+\r\n(?:[^\r\n]+\r\n)*?Content-Type: *image/jpeg", head, re.I):
        return "mpjpeg"  # what a camera's address gives when it is saved
    if re.search(rb"\x00\x00\x01\xba[\x21-\x2f\x31-\x3f\x44-\x7f]", head):
        return "mpeg"  # behind a maker's own header
    raise Refused("not_a_video")


def prescan_mov(fd: int, size: int) -> bool:
    """Whether the whole `moov` index was found among the top boxes; refuses packed ones (1 MB of cmov became 1 GB)."""
    at = 0
    for _ in range(100_000):  # an hour of one-second fragments has 7200 boxes
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
            return at + length <= size
        if length < 8:
            return False
        at += length
    return False
