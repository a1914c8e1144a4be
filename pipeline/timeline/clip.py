"""A few seconds of a video around a moment, as an MP4 of its own: pictures decoded where all are, encoded here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.clock import mmss
from pipeline.sources.file import open_video
from pipeline.stream import Frame, UserError

AROUND = 5.0  # seconds before and after the moment
MOST_AROUND = 60.0
FPS = 10  # pictures a second of a clip
LONG_SIDE = 640
MS = Fraction(1, 1000)  # seconds: the unit of its times
CODEC = {"crf": "26", "preset": "veryfast"}


def clip(video: str, at: float, out: str | Path, around: float = AROUND) -> int:
    """Writes the clip and returns how many pictures it has; without sound. The file is read from its start.

    UserError where the video does not reach the moment, and for a stretch that is too long.
    """
    if not (math.isfinite(around) and 0 < around <= MOST_AROUND):
        raise UserError(
            f"A clip of {around:g} seconds on each side cannot be made, so none was; choose up to {MOST_AROUND:g}."
        )
    with open_video(video, fps=FPS, long_side=LONG_SIDE) as opened:
        wanted = itertools.dropwhile(lambda frame: frame.time < at - around, opened)
        frames = list(itertools.takewhile(lambda frame: frame.time <= at + around, wanted))
    if not frames or frames[-1].time < at - 1:
        raise UserError(f"The video does not reach {mmss(at)}, so there is no clip of it; choose an earlier moment.")
    write_clip(frames, out)
    return len(frames)


def write_clip(frames: Sequence[Frame], out: str | Path) -> None:
    """H.264 in MP4 with each picture at its own second, the first one's being 0; it begins to play while it loads."""
    height, width = (max(2, side & -2) for side in frames[0].rgb.shape[:2])  # H.264's colours want even sides
    with av.open(str(out), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=CODEC)
        stream.pix_fmt, stream.height, stream.width = "yuv420p", height, width
        stream.codec_context.time_base = MS
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.rgb), format="rgb24")
            picture = picture.reformat(width, height, "yuv420p")
            picture.pts, picture.time_base = round((frame.time - frames[0].time) / MS), MS
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
