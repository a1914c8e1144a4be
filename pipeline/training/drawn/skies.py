"""Skies: colours of directions, with a sun, clouds and hills that fade into haze."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.training.drawn.grain import read, tile
from pipeline.training.drawn.rays import Array, dot, mix, step, unit, vector

Sky = Callable[[Array], Array]


def sky(sun: Array, zenith: Array, horizon: Array, warm: Array, clouds: float, drift: float = 0.0) -> Sky:
    """zenith, horizon: colours there. warm: of the sun's surroundings. clouds: 0..1. drift: how far they have gone."""
    sun = unit(sun)

    def colour(rays: Array) -> Array:
        up = np.maximum(rays[:, 1], 0)
        near = np.clip(dot(rays, sun), 0, 1)
        light = mix(horizon, zenith, (1 - np.exp(-up * 4.2))[:, None])
        glow = (0.35 * near**6 * np.exp(-up * 3) + 0.55 * near**40)[:, None] * warm
        disc = 6.0 * step(0.9994, 0.9998, dot(rays, sun))[:, None] * warm
        u, v = rays[:, 0] / (up + 0.14), rays[:, 2] / (up + 0.14)
        body = read(tile(1.75, 31, 2), u * 0.06 + drift, v * 0.10) + 0.35 * read(
            tile(1.3, 32, 4), u * 0.19 + drift * 1.6, v * 0.3
        )
        cover = step(0.9 - 1.5 * clouds, 2.1 - 1.2 * clouds, body) * step(0.01, 0.12, up) * min(1.0, 1.6 * clouds)
        lit = mix(
            horizon * 0.75 + zenith * 0.25,
            warm * 0.55 + vector(0.35, 0.35, 0.36) * horizon.mean() * 2.2,
            (0.35 + 0.65 * near**2)[:, None],
        )
        thick = np.clip(0.25 * (body - 1), 0, 0.5)[:, None]
        return mix(light + glow, lit * (1 - thick) + glow * 0.5, 0.85 * cover[:, None]) + disc * (1 - cover[:, None])

    return colour


def with_hills(
    behind: Sky, ridges: list[tuple[float, float, float, int]], sun: Array, green: Array, haze: Array
) -> Sky:
    """A sky before which hills stand in rows. ridges: height, steepness, nearness 0..1, seed; the farthest first."""
    sun = unit(sun)

    def colour(rays: Array) -> Array:
        light = behind(rays)
        low = np.flatnonzero(rays[:, 1] < 0.2)
        light[low] = land(rays[low], light[low])
        return light

    def land(rays: Array, light: Array) -> Array:
        bearing = np.arctan2(rays[:, 0], rays[:, 2])
        up = rays[:, 1] / np.hypot(rays[:, 0], rays[:, 2])
        for height, steep, near, seed in ridges:
            u = bearing * (0.10 + 0.10 * (1 - near))
            outline = read(tile(1.9, 40 + seed, 2), u, np.full_like(u, 0.1 * seed))
            trees = read(tile(0.8, 50 + seed, 30), bearing * 0.9, np.full_like(u, 0.3))
            top = height + steep * 0.05 * outline + 0.0012 * near * trees
            below = top - up
            # On the slope: folds and woods, lit from the sun's side, and mist that lies in the valley.
            deep = np.maximum(below, 0)
            fold = read(tile(1.8, 60 + seed, 3), u * 3 + deep * 0.5, np.sqrt(deep + 0.01) * 1.3 * (0.6 + near))
            side = read(
                tile(1.8, 60 + seed, 3),
                u * 3 + deep * 0.5 + 0.004 * np.sign(sun[0]),
                np.sqrt(deep + 0.01) * 1.3 * (0.6 + near),
            )
            woods = read(tile(0.9, 70 + seed, 12), bearing * 1.6, np.sqrt(deep + 0.003) * 9)
            lit = np.clip(0.50 + 2.2 * (fold - side) + 0.10 * woods + 0.12 * fold, 0.08, 1.3)
            slope = green * lit[:, None] * (0.75 + 0.25 * woods[:, None] * near)
            mist = np.clip(
                (1 - near) * 0.9 + (0.55 * np.exp(-(((below - 0.10) / 0.05) ** 2)) + 0.15) * (1 - near * 0.8), 0, 0.97
            )
            light = mix(light, mix(slope, haze, mist[:, None]), step(-0.0006, 0.0008, below)[:, None])
        return light

    return colour
