"""Decoded pictures to small upright RGB: colour by FFmpeg's converter (any pixel format), the rest by OpenCV."""

from __future__ import annotations

import gc
import struct
from fractions import Fraction

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import VideoReformatter

Matrix = tuple[int, int, int, int]
QUARTERS: tuple[Matrix, ...] = ((1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))  # counter-clockwise turns


def display_matrix(frame: av.VideoFrame) -> Matrix:
    """(a, b, c, d): a stored point (x, y) is shown at (a x + c y, b x + d y). Identity where the file says nothing."""
    try:
        side = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # PyAV's stub forgets Type keys
        if side is None or side.buffer_size < 36:
            return QUARTERS[0]
        a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side)[:36])
        return (a, b, c, d) if a or b or c or d else QUARTERS[0]
    except ValueError:  # PyAV 18 knows no side data of stereo video, and then shows none: take the turn alone
        return QUARTERS[round(frame.rotation / 90) % 4]
    finally:
        gc.collect()  # frame.side_data makes a cycle that kept whole pictures alive: 90 of them filled 2 GiB


def lies(matrix: Matrix) -> bool:
    """Whether width and height change places."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def upright(rgb: np.ndarray, matrix: Matrix) -> np.ndarray:
    """`rgb` turned and mirrored as `matrix` says, to the nearest quarter turn."""
    a, b, c, d = matrix
    if lies(matrix):
        rgb, a, d = cv2.transpose(rgb), c, b
    if a < 0:
        rgb = cv2.flip(rgb, 1)
    if d < 0:
        rgb = cv2.flip(rgb, 0)
    return rgb


def square(width: int, height: int, sar: Fraction | None) -> tuple[int, int]:
    """Size with square pixels: the width takes the stretch. Ratios beyond 1:8 are lies."""
    ratio = sar if sar and Fraction(1, 8) <= sar <= 8 else 1
    return max(1, round(width * ratio)), height


class Painter:
    """Turns the pictures of one stream into arrays. Keeps one colour converter for the whole file."""

    def __init__(self, stream: av.VideoStream, long_side: int) -> None:
        self.stream, self.long_side = stream, long_side
        self.converter = VideoReformatter()
        self.turned: int | None = None
        self.matrix = QUARTERS[0]

    def orientation(self, frame: av.VideoFrame) -> Matrix:
        """The display matrix, read again only where the cheap `rotation` says it changed."""
        if frame.rotation != self.turned:
            self.turned, self.matrix = frame.rotation, display_matrix(frame)
        return self.matrix

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Width and height as shown, before shrinking."""
        width, height = square(frame.width, frame.height, self.stream.sample_aspect_ratio)
        return (height, width) if lies(self.orientation(frame)) else (width, height)

    def paint(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 (height, width, 3), upright, square pixels, longer side at most `long_side`, never enlarged."""
        width, height = square(frame.width, frame.height, self.stream.sample_aspect_ratio)
        scale = min(1.0, self.long_side / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        rgb = self.rgb24(frame)
        if size != (frame.width, frame.height):
            rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(upright(rgb, self.orientation(frame)))

    def rgb24(self, frame: av.VideoFrame) -> np.ndarray:
        """All the pixels, from any pixel format; transparent ones over black."""
        if not any(c.is_alpha for c in frame.format.components):
            return self.convert(frame, "rgb24")
        rgba = self.convert(frame, "rgba")
        alpha = cv2.cvtColor(np.ascontiguousarray(rgba[..., 3]), cv2.COLOR_GRAY2RGB)
        return cv2.multiply(np.ascontiguousarray(rgba[..., :3]), alpha, scale=1 / 255)

    def convert(self, frame: av.VideoFrame, pixels: str) -> np.ndarray:
        return self.converter.reformat(frame, format=pixels, threads=1).to_ndarray()
