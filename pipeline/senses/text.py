"""Text on screen: one picture of every shot, and of every few seconds of a long one, read by RapidOCR (Apache-2.0).

PP-OCRv4's small networks find and read lines of Latin and Chinese writing. A line counts from FLOOR on and with two
letters or digits at least: less is a texture more often than writing. A picture that looks like the last one is not
read again, and what follows unchanged is one event.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np

from pipeline.sources.file import open_video
from pipeline.sources.refusals import Limits
from pipeline.sources.shots import Shots
from pipeline.stream import Event, Frame, Gleaned

FLOOR = 0.8  # score from which a line counts
LEAST = 2  # letters and digits of a line
PIECE_S = 3.0  # seconds of a shot that one picture stands for, at most: what is to be read stands about so long
LONG_SIDE = 960  # pixels: smaller writing than a watched picture shows
CELLS, STILL = 24, 3.0  # cells a side whose means, of 255, differ by less in pictures that show the same writing
APART = 1.0  # line heights between two lines from which they are not of one text
QUIETLY = Limits(readers=1, ahead=16 << 20)  # nobody waits for these pictures
CANNOT = "I cannot read text here: rapidocr-onnxruntime is not installed, which needs Python below 3.13."


class Line(NamedTuple):
    """A line of writing: left, top, right, bottom in pixels."""

    left: float
    top: float
    right: float
    bottom: float
    text: str
    score: float


class Text:
    """See the room's docstring for what a late sense is."""

    name, doing, cost_s = "text", "Reading text", 350.0
    kinds: tuple[str, ...] = ("text",)

    def glean(self, path: str, stop: threading.Event) -> Iterator[Gleaned]:
        """An event for what is written; its time is the second of the picture that was read."""
        if importlib.util.find_spec("rapidocr_onnxruntime") is None:
            yield Gleaned(0.0, lacks=CANNOT)
            return
        going: Event | None = None  # may go on with the next piece
        seen = np.zeros(0)
        with open_video(path, fps=1.0, long_side=LONG_SIDE, limits=QUIETLY) as video:
            for piece, end in pieces(video, stop):
                middle = piece[len(piece) // 2]
                before, seen = seen, cells(middle.rgb)
                still = len(before) and np.abs(seen - before).max() < STILL
                text, score = ("", 0.0) if still else told(lines(middle.rgb))
                if still or (going and text and same(text, going.text)):
                    going = replace(going, until=end) if going else None
                    yield Gleaned(end)
                else:
                    yield Gleaned(end, (going,) if going else ())
                    began = piece[0] if text and same(told(lines(piece[0].rgb))[0], text) else middle
                    going = Event(began.time, "text", text, score, end) if text else None
            yield Gleaned(video.seconds, (going,) if going else ())


def pieces(video: Iterator[Frame], stop: threading.Event) -> Iterator[tuple[list[Frame], float]]:
    """The pictures of a shot, PIECE_S of them at most, and the second at which the next ones begin."""
    shots, piece = Shots(), list[Frame]()
    for frame in video:
        if stop.is_set():
            return
        cut = shots.add(frame) is not None
        if piece and (cut or frame.time - piece[0].time >= PIECE_S):
            yield piece, frame.time
            piece = []
        piece.append(frame)
    if piece:
        yield piece, piece[-1].until or piece[-1].time + 1.0


def cells(rgb: np.ndarray) -> np.ndarray:
    """Mean brightness of CELLS x CELLS parts of a picture, 0..255."""
    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(float).ravel()


def lines(rgb: np.ndarray) -> list[Line]:
    """Lines of writing in a picture, uint8 (height, width, 3), from top to bottom."""
    found, _ = _reader()(np.ascontiguousarray(rgb[..., ::-1]))  # it takes blue first, as OpenCV does
    read = []
    for corners, text, score in found or ():
        xs, ys = zip(*corners)
        if float(score) >= FLOOR and sum(c.isalnum() for c in text) >= LEAST:
            read.append(Line(min(xs), min(ys), max(xs), max(ys), " ".join(text.split()), float(score)))
    return sorted(read, key=lambda line: (line.top + line.bottom, line.left))


def told(read: Sequence[Line]) -> tuple[str, float]:
    """What is written, lines of one text after each other, others after a bar; and the least sure line's score."""
    text, before = "", None
    for line in read:
        gap = " " if before is not None and follows(line, before) else " | "
        text, before = text + (gap if text else "") + line.text, line
    return text, min((line.score for line in read), default=0.0)


def follows(line: Line, before: Line) -> bool:
    """Whether a line is the next one of a text: close below, or beside, and not somewhere else on the screen."""
    height = max(before.bottom - before.top, line.bottom - line.top)
    beside = abs(line.top - before.top) < height / 2 and line.left - before.right < 2 * height
    below = line.top - before.bottom < APART * height and min(line.right, before.right) > max(line.left, before.left)
    return beside or below


def same(text: str, other: str) -> bool:
    """Whether two readings are of the same writing: a letter in ten may be read otherwise."""
    plain, old = (" ".join(one.lower().split()) for one in (text, other))
    return SequenceMatcher(None, plain, old, autojunk=False).ratio() >= 0.9


@cache
def _reader() -> Any:
    """RapidOCR on one core, shared by all streams: the gleaner lets one at a time go through a file."""
    from rapidocr_onnxruntime import RapidOCR

    size = {"det_limit_side_len": LONG_SIDE, "det_limit_type": "max"}  # a picture is not made larger for it
    return RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1, use_cls=False, **size)
