"""Noise for surfaces: square pictures that tile, made once from seeded spectra, and read at any place."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np

SIZE = 1024  # pixels a side


@cache
def tile(slope: float, seed: int, low: float = 1.0) -> np.ndarray:
    """(SIZE, SIZE) of mean 0, deviation 1. slope: how fast fine waves fall off. low: waves a side of the coarsest."""
    noise = np.fft.rfft2(np.random.default_rng(seed).standard_normal((SIZE, SIZE)))
    waves = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]) * SIZE
    noise *= np.where(waves < low, 0, np.maximum(waves, 1) ** -slope)
    made = np.fft.irfft2(noise, (SIZE, SIZE))
    return ((made - made.mean()) / made.std()).astype(np.float32)


@cache
def slopes(slope: float, seed: int, low: float = 1.0) -> np.ndarray:
    """(SIZE, SIZE, 2) how the tile rises along its rows' and columns' axes, of deviation 1."""
    height = tile(slope, seed, low)
    rise = np.stack([np.roll(height, -1, 1) - np.roll(height, 1, 1), np.roll(height, -1, 0) - np.roll(height, 1, 0)], 2)
    return np.ascontiguousarray(rise / rise.std())


def read(picture: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Values (n,) or (n, channels) at places in tiles: 0..1 is once across, and on it goes."""
    n, columns = len(u), 1024
    rows = max(-(-n // columns), 1)
    where = np.zeros((2, rows * columns), np.float32)
    where[0, :n], where[1, :n] = (u - np.floor(u)) * SIZE, (v - np.floor(v)) * SIZE
    x, y = where.reshape(2, rows, columns)
    found = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return found.reshape(rows * columns, *picture.shape[2:])[:n]
