"""What things are made of: paints for the ray tracer, each a function of points and normals."""

from __future__ import annotations

import numpy as np

from pipeline.training.drawn.grain import read, slopes, tile
from pipeline.training.drawn.rays import Array, Paint, Surface, dot, mix, step, unit, vector


def plain(colour: Array, gloss: float = 0.05, sharp: float = 30.0, glow: float = 0.0) -> Paint:
    def paint(points: Array, normal: Array) -> Surface:
        return Surface(np.broadcast_to(colour, points.shape), normal, gloss, sharp, glow * colour)

    return paint


def around(normal: Array, turn: Array) -> tuple[Array, Array]:
    """Longitude and latitude, radians, on a ball whose axes are the rows of `turn` (the second one its pole)."""
    x, y, z = (normal @ turn.T).T
    return np.arctan2(x, z), np.arcsin(np.clip(y, -1, 1))


def rough(points: Array, normal: Array, texture: Array, scale: float, depth: Array | float) -> Array:
    """The normal bent by a texture of slopes that is laid on from all three sides."""
    weight = np.abs(normal) ** 4
    weight /= weight.sum(1, keepdims=True)
    bend = np.zeros_like(normal)
    for axis, (u, v) in enumerate(((1, 2), (2, 0), (0, 1))):
        rise = read(texture, points[:, u] * scale, points[:, v] * scale) * weight[:, axis : axis + 1]
        bend[:, u] -= rise[:, 0]
        bend[:, v] -= rise[:, 1]
    bend -= dot(bend, normal)[:, None] * normal
    return unit(normal + np.asarray(depth, np.float32)[..., None] * bend)


def patched(points: Array, texture: Array, scale: float) -> Array:
    """(n,) a texture read on all three sides of a thing, mixed."""
    x, y, z = points.T * scale
    return (read(texture, x, y) + read(texture, y + 0.37, z) + read(texture, z + 0.71, x)) / np.float32(1.7)


# Fruit, wood


def orange_peel(centre: Array, turn: Array, size: float) -> Paint:
    def paint(points: Array, normal: Array) -> Surface:
        local = (points - centre) @ turn.T / size
        high = local[:, 1]
        blotch = patched(local, tile(1.6, 5), 0.11)
        deep, light = vector(0.70, 0.135, 0.003), vector(0.80, 0.20, 0.005)
        colour = mix(deep, light, np.clip(0.5 + 0.3 * blotch, 0, 1)[:, None])
        crown = step(0.985, 0.993, high)[:, None]
        colour = mix(colour, vector(0.10, 0.13, 0.02), crown)
        dimple = np.exp(-(((high - 0.965) / 0.04) ** 2))
        bent = rough(local, normal @ turn.T, slopes(0.6, 6, 40), 0.13, 0.13) @ turn
        bent = unit(bent + 0.25 * dimple[:, None] * (normal - turn[1]))
        return Surface(colour, bent, 0.55 * (1 - crown[:, 0]), 28.0)

    return paint


def wood(points: Array, normal: Array, plank: float = 1.6, gloss: float = 0.35) -> Surface:
    """Boards that run along x, of the table or the floor (y is up)."""
    x, z = points[:, 0], points[:, 2] / plank
    board, across = np.floor(z), z - np.floor(z)
    shift = np.sin(board * 12.9898) * 43.7585
    grain = read(tile(1.1, 7), x * 0.035 + shift, z * 0.5 + shift * 0.3)
    fine = read(tile(0.7, 8), x * 0.02 + shift, z * 0.9)
    rings = np.sin((z * 14 + 3.2 * grain + shift) * 2.1)
    tone = np.clip(0.48 + 0.17 * rings + 0.09 * fine + 0.14 * np.sin(shift * 7), 0, 1)
    colour = mix(vector(0.115, 0.045, 0.017), vector(0.42, 0.215, 0.095), tone[:, None])
    gap = step(0.0, 0.014, np.minimum(across, 1 - across))
    bent = normal.copy()
    bent[:, 2] += (1 - gap) * np.where(across < 0.5, 0.5, -0.5)
    bent[:, 0] += 0.015 * fine
    return Surface(colour * (0.25 + 0.75 * gap)[:, None], unit(bent), gloss, 60.0)


def backdrop(colour: Array, dark: Array, low: float, high: float) -> Paint:
    """A wall far behind, out of focus: a wash from `dark` at `low` to `colour` at `high`."""

    def paint(points: Array, normal: Array) -> Surface:
        up = step(low, high, points[:, 1])
        cloud = read(tile(2.4, 9), points[:, 0] * 0.02, points[:, 1] * 0.02)
        return Surface(mix(dark, colour, up[:, None]) * (1 + 0.08 * cloud[:, None]), normal)

    return paint


# The balloon


BLUE, VIOLET = (0.02, 0.09, 0.42), (0.20, 0.03, 0.30)
RAINBOW = np.array(  # from the mouth up
    [BLUE, (0.80, 0.035, 0.02), (0.85, 0.20, 0.01), (0.90, 0.60, 0.02), (0.05, 0.35, 0.06), BLUE, VIOLET], np.float32
)


def silk(centre: Array, radius: float, gores: int = 20) -> Paint:
    """The envelope: gores that bulge between their seams, in bands of the rainbow."""

    def paint(points: Array, normal: Array) -> Surface:
        local = (points - centre) / radius
        bearing, up = np.arctan2(local[:, 0], local[:, 2]), local[:, 1]
        gore = bearing * gores / (2 * np.pi)
        nth, across = np.floor(gore), gore - np.floor(gore)
        colour = RAINBOW[np.where(up < -1.2, 0, np.clip((up + 1.2) / 2.2 * 6, 0, 5) + 1).astype(int)]
        side = np.stack([np.cos(bearing), np.zeros_like(up), -np.sin(bearing)], 1)
        bulge = (across - 0.5) * 1.1 * np.clip(1 - np.abs(up) ** 6, 0.15, 1)
        folds = read(slopes(1.3, 10), nth * 0.21 + across * 0.1, up * 0.16)[:, 0] * 0.07
        seam = step(0.0, 0.05, np.minimum(across, 1 - across))
        bent = unit(normal + side * (bulge + folds)[:, None])
        return Surface(colour * (0.55 + 0.45 * seam)[:, None], bent, 0.08, 18.0, 0.10 * colour)

    return paint


def wicker(points: Array, normal: Array) -> Surface:
    weave = np.sin(points[:, 1] * 120) * np.sin(np.arctan2(points[:, 0], points[:, 2]) * 60 + points[:, 1] * 40)
    return Surface(mix(vector(0.12, 0.05, 0.02), vector(0.36, 0.19, 0.08), (0.5 + 0.4 * weave)[:, None]), normal, 0.05)


# The ball on the beach


def tennis_felt(turn: Array) -> Paint:
    """Yellow felt with one white seam. turn: how the ball lies."""

    def paint(points: Array, normal: Array) -> Surface:
        local = normal @ turn.T
        seam = np.abs(local[:, 1] - 0.55 * np.sin(2 * np.arctan2(local[:, 0], local[:, 2])))
        colour = mix(vector(0.70, 0.70, 0.60), vector(0.42, 0.55, 0.03), step(0.04, 0.06, seam)[:, None])
        colour = colour * (1 + 0.15 * patched(local, tile(0.3, 11, 60), 0.3))[:, None]
        return Surface(colour, rough(local, local, slopes(0.5, 12, 50), 0.14, 0.04) @ turn, 0.03, 15.0)

    return paint


def beach(points: Array, normal: Array) -> Surface:
    """Sand, dry in front and wet where the sea begins."""
    x, z = points[:, 0], points[:, 2]
    grains = read(tile(0.2, 22, 40), x * 0.21, z * 0.21)
    heaps = read(tile(1.5, 23, 3), x * 0.045, z * 0.06)
    edge = z - 10.5 - 0.8 * read(tile(2.2, 24, 1), x * 0.02, z * 0.0)
    wet = step(-5.5, -1.5, edge)
    colour = mix(
        vector(0.37, 0.27, 0.17), vector(0.50, 0.385, 0.25), np.clip(0.5 + 0.20 * grains + 0.12 * heaps, 0, 1)[:, None]
    )
    colour = mix(colour, vector(0.15, 0.105, 0.07), 0.85 * wet[:, None])
    near = 1 / (1 + np.hypot(x, z + 7) / 14)
    bend = (
        read(slopes(1.7, 25, 3), x * 0.055, z * 0.075) * 0.22
        + read(slopes(0.6, 26, 30), x * 0.16, z * 0.16) * 0.16 * near[:, None]
    )
    bend = bend * (1 - 0.9 * wet)[:, None]
    bent = unit(np.stack([-bend[:, 0], np.ones_like(x), -bend[:, 1]], 1))
    return Surface(colour, bent, 0.02 + 0.5 * wet, 40.0)


# The sea and the lighthouse


def sea(time: float, deep: Array, shallow: Array) -> Paint:
    def paint(points: Array, normal: Array) -> Surface:
        x, z = points[:, 0], points[:, 2]
        far = np.hypot(x, z + 10)
        calm = 1 / (1 + far / 60)
        waves = slopes(2.0, 13, 3)
        bent = read(waves, x * 0.016 + time * 0.012, z * 0.022 - time * 0.02) * 0.10
        bent += read(waves, x * 0.05 - time * 0.02, z * 0.07 - time * 0.03) * 0.09
        bent += read(slopes(1.2, 14, 4), x * 0.12 + time * 0.05, z * 0.16 - time * 0.04) * 0.06 * calm[:, None]
        bent *= (0.35 + 0.65 * calm)[:, None]
        moved = unit(np.stack([-bent[:, 0], np.ones_like(x), -bent[:, 1]], 1))
        crest = read(tile(1.2, 15, 3), x * 0.03 + time * 0.014, z * 0.06 - time * 0.026)
        foam = step(2.0, 2.6, crest) * calm
        colour = mix(deep, shallow, np.clip(0.4 + 0.25 * crest, 0, 1)[:, None])
        return Surface(mix(colour, vector(0.7, 0.75, 0.78), 0.6 * foam[:, None]), moved, 0.8, 150.0)

    return paint


def rock(points: Array, normal: Array) -> Surface:
    layers = patched(points * vector(1, 2.2, 1), tile(1.5, 16), 0.045)
    fine = patched(points, tile(0.9, 17), 0.10)
    colour = mix(
        vector(0.07, 0.058, 0.048), vector(0.36, 0.31, 0.25), np.clip(0.45 + 0.22 * layers + 0.1 * fine, 0, 1)[:, None]
    )
    bent = rough(points * vector(1, 1.6, 1), normal, slopes(1.45, 18, 2), 0.05, 0.75)
    grass = step(0.72, 0.9, normal[:, 1] + 0.12 * layers) * step(1.6, 2.6, points[:, 1])
    green = mix(vector(0.05, 0.09, 0.015), vector(0.14, 0.19, 0.04), np.clip(0.5 + 0.3 * fine, 0, 1)[:, None])
    wet = step(0.9, 0.2, points[:, 1])
    colour = mix(mix(colour, green, grass[:, None]), colour * 0.35, wet[:, None])
    foam = step(0.55, 0.15, points[:, 1] + 0.12 * fine)
    return Surface(mix(colour, vector(0.75, 0.8, 0.82), 0.8 * foam[:, None]), bent, 0.05 + 0.3 * wet, 25.0)


def tower(foot: Array, height: float, bands: int) -> Paint:
    """Painted masonry, white and red by turns, with a door and windows on the side that is seen."""

    def paint(points: Array, normal: Array) -> Surface:
        up = (points[:, 1] - foot[1]) / height
        stripe = np.floor(up * bands) % 2
        edge = up * bands - np.floor(up * bands)
        colour = np.where(stripe[:, None] > 0, vector(0.62, 0.035, 0.025), vector(0.82, 0.80, 0.76))
        worn = patched(points, tile(1.3, 19), 0.08)
        streak = read(tile(1.2, 20), np.arctan2(normal[:, 0], normal[:, 2]) * 0.8, points[:, 1] * 0.01)
        colour = colour * np.clip(0.95 + 0.05 * worn - 0.05 * np.maximum(streak, 0), 0.5, 1.1)[:, None]
        angle = np.arctan2(normal[:, 0], -normal[:, 2])
        window = np.zeros(len(points), bool)
        for at in (0.16, 0.42, 0.68):
            window |= (np.abs(angle + 0.35) < 0.13) & (np.abs(up - at) < 0.026)
        colour = np.where(window[:, None], vector(0.02, 0.025, 0.035), colour)
        bent = rough(points, normal, slopes(1.0, 21, 6), 0.1, 0.06)
        return Surface(colour * (0.8 + 0.2 * step(0, 0.02, np.minimum(edge, 1 - edge)))[:, None], bent, 0.06, 20.0)

    return paint


def shore(sand: Paint, water: Paint) -> Paint:
    """The beach, and the sea from where it begins, with foam that comes and goes."""

    def paint(points: Array, normal: Array) -> Surface:
        x, z = points[:, 0], points[:, 2]
        edge = z - 11.5 - 0.9 * read(tile(2.2, 24, 1), x * 0.02, np.full_like(x, 0.2))
        at_sea, dry = water(points, normal), sand(points, normal)
        sea = step(-0.1, 0.2, edge)[:, None]
        lace = read(tile(1.0, 27, 8), x * 0.05, z * 0.09)
        foam = (np.exp(-(((edge - 0.3) / 0.35) ** 2)) + 0.7 * np.exp(-(((edge - 2.2) / 0.5) ** 2))) * np.clip(
            0.75 + 0.35 * lace, 0, 1
        )
        colour = mix(mix(dry.colour, at_sea.colour, sea), vector(0.80, 0.83, 0.84), np.clip(foam, 0, 0.95)[:, None])
        gloss = mix(dry.gloss, 0.8, sea[:, 0]) * (1 - np.clip(foam, 0, 0.9))
        return Surface(colour, unit(mix(dry.normal, at_sea.normal, sea)), gloss, 120.0)

    return paint


# The clock


def hand(x: Array, y: Array, angle: float, length: float, tail: float, thick: float) -> Array:
    """(n,) signed distance to a hand that tapers."""
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    along, across = x * sine + y * cosine, x * cosine - y * sine
    share = np.clip((along + tail) / (length + tail), 0, 1)
    beyond = along - np.clip(along, -tail, length)
    return np.hypot(np.maximum(np.abs(across) - thick * (1 - 0.55 * share), 0), beyond) - 0.004


def wall_with_clock(hours: float, sun: Array) -> Paint:
    """A plastered wall, a dial of radius 1 in a round black case; hands, case and wall cast shadows on each other."""
    minute, hour = hours % 1 * 2 * np.pi, hours / 12 * 2 * np.pi

    def hands(x: Array, y: Array) -> Array:
        return np.minimum(hand(x, y, hour, 0.52, 0.16, 0.048), hand(x, y, minute, 0.80, 0.20, 0.034))

    def paint(points: Array, normal: Array) -> Surface:
        x, y = points[:, 0], points[:, 1]
        away, bearing = np.hypot(x, y), np.arctan2(x, y)
        plaster = read(tile(1.2, 28, 6), x * 0.12, y * 0.12)
        colour = mix(vector(0.30, 0.40, 0.42), vector(0.36, 0.46, 0.47), np.clip(0.5 + 0.25 * plaster, 0, 1)[:, None])
        bend = read(slopes(1.1, 29, 8), x * 0.16, y * 0.16) * 0.10
        bent = np.stack([-bend[:, 0], -bend[:, 1], -np.ones_like(x)], 1)
        cast = sun[:2] / -sun[2]  # how far a thing one before the wall throws its shadow
        shade = step(-0.10, 0.14, np.hypot(x + 0.24 * cast[0], y + 0.24 * cast[1]) - 1.16)
        shade = np.minimum(shade, 0.35 + 0.65 * step(1.10, 1.5, away))
        colour = colour * (0.30 + 0.70 * shade)[:, None]
        # The dial: twelve strokes, sixty dots.
        twelfth = (bearing / (2 * np.pi) * 12 + 0.5) % 1 - 0.5
        sixtieth = (bearing / (2 * np.pi) * 60 + 0.5) % 1 - 0.5
        stroke = np.maximum(np.abs(twelfth) * away * 2 * np.pi / 12 - 0.024, np.abs(away - 0.80) - 0.095)
        tick = np.maximum(np.abs(sixtieth) * away * 2 * np.pi / 60 - 0.007, np.abs(away - 0.87) - 0.022)
        ink = 1 - step(-0.004, 0.004, np.minimum(stroke, tick))
        dial = mix(vector(0.82, 0.80, 0.74), vector(0.03, 0.03, 0.035), ink[:, None])
        rim = step(-0.02, 0.20, np.hypot(x + 0.10 * cast[0], y + 0.10 * cast[1]) * -1 + 1.02)
        soft = step(-0.01, 0.045, hands(x + 0.05 * cast[0], y + 0.05 * cast[1]))
        dial = dial * (0.45 + 0.55 * rim)[:, None] * (0.55 + 0.45 * soft)[:, None]
        arm = 1 - step(-0.003, 0.004, np.minimum(hands(x, y), away - 0.055))
        dial = mix(dial, vector(0.02, 0.02, 0.022), arm[:, None])
        on = 1 - step(0.985, 0.992, away)
        colour = mix(colour, dial, on[:, None])
        bent = mix(bent, vector(0, 0, -1), on[:, None])
        # The case: half a ring.
        case = step(0.985, 0.992, away) * (1 - step(1.152, 1.160, away))
        slope = (away - 1.07) / 0.095
        out = np.stack(
            [
                x / np.maximum(away, 1e-6) * slope,
                y / np.maximum(away, 1e-6) * slope,
                -np.sqrt(np.clip(1 - slope**2, 0.02, 1)),
            ],
            1,
        )
        colour = mix(colour, vector(0.025, 0.025, 0.028), case[:, None])
        bent = unit(mix(bent, out, case[:, None]))
        return Surface(colour, bent, 0.02 + 0.9 * case + 0.10 * on, 50.0)

    return paint
