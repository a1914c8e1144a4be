"""The scenes of the example clip: each gives the picture at a second, (height, width, 3) of 0..1."""

from __future__ import annotations

import numpy as np

from pipeline.training.drawn import paints, skies
from pipeline.training.drawn.rays import Array, Ball, Cone, Plane, Scene, Shape, picture, step, unit, vector


def turned(around_x: float, around_y: float, around_z: float = 0.0) -> Array:
    """A rotation (3, 3) about the three axes, radians."""
    (a, b), (c, d), (e, f) = ((np.cos(x), np.sin(x)) for x in (around_x, around_y, around_z))
    x = np.array([[1, 0, 0], [0, a, -b], [0, b, a]])
    y = np.array([[c, 0, d], [0, 1, 0], [-d, 0, c]])
    z = np.array([[e, -f, 0], [f, e, 0], [0, 0, 1]])
    return (x @ y @ z).astype(np.float32)


def upright(pole: tuple[float, float, float]) -> Array:
    """Three axes, rows, of which the second one is the pole."""
    y = unit(vector(*pole))
    x = unit(np.cross(y, vector(0.3, 0.2, 1)))
    return np.stack([x, y, np.cross(x, y)])


def oranges(second: float, width: int, height: int, evening: bool = False) -> Array:
    """Four of them on a table by a window; the camera goes round them."""
    places = [(-3.3, 0.0), (-1.05, 0.6), (1.15, -0.2), (3.3, 0.7)]
    sizes = (1.0, 1.06, 1.0, 0.96)
    poles = [(0.35, 0.75, -0.55), (-0.5, 0.35, -0.8), (-0.1, 0.85, -0.5), (-0.7, -0.4, 0.3)]
    balls = []
    for (x, z), size, pole in zip(places, sizes, poles):
        centre = vector(x, size * 0.97, z)
        peel = paints.orange_peel(centre, upright(pole), size)
        balls.append(Ball(centre, vector(size, size * 0.97, size), peel))
    sun = vector(-0.75, 0.85, -0.45) if not evening else vector(0.95, 0.42, -0.1)
    light = vector(1.75, 1.6, 1.4) if not evening else vector(2.4, 1.35, 0.65)
    wall = paints.backdrop(vector(0.46, 0.52, 0.50), vector(0.16, 0.19, 0.19), -4, 9)
    if evening:
        wall = paints.backdrop(vector(0.34, 0.20, 0.13), vector(0.08, 0.055, 0.05), -4, 9)
    room = vector(0.30, 0.33, 0.36) if not evening else vector(0.17, 0.15, 0.18)

    def window(rays: Array) -> Array:
        pane = step(0.42, 0.20, np.abs(rays[:, 0] - 0.55 * np.sign(sun[0]))) * step(0.15, 0.4, rays[:, 1])
        return room + pane[:, None] * light * 0.5

    scene = Scene(
        [Plane(1, 0.0, paints.wood), Plane(2, 14.0, wall, -1), *balls],
        sun,
        light,
        window,
        room * 1.3,
        vector(0.18, 0.08, 0.03),
        soft=0.22,
        mirrors=True,
    )
    angle, up, zoom = (
        (-0.12 - 0.01 * second, 3.9, 1.78) if evening else (0.06 + 0.012 * second, 3.4 - 0.03 * second, 1.75)
    )
    eye = vector(9.2 * np.sin(angle), up, -9.2 * np.cos(angle))
    return picture(scene, eye, vector(0.0, 0.7, 0), zoom, width, height)


def balloon_shapes(centre: Array, radius: float) -> list[Shape]:
    """Envelope, basket and ropes of a balloon whose widest part is at `centre`."""
    half = np.radians(36)
    silk = paints.silk(centre, radius)
    low = float(radius * np.sin(half))
    wide, mouth = float(radius * np.cos(half)), 0.16 * radius
    tall = (wide - mouth) / float(np.tan(half))
    foot = centre - vector(0, low + tall, 0)
    basket = foot - vector(0, 0.52 * radius, 0)
    shapes: list[Shape] = [Ball(centre, vector(radius, radius, radius), silk), Cone(foot, tall, mouth, wide, silk)]
    shapes.append(Cone(basket, 0.24 * radius, 0.13 * radius, 0.15 * radius, paints.wicker))
    rope = paints.plain(vector(0.02, 0.016, 0.012))
    shapes.append(Cone(basket + vector(0, 0.235 * radius, 0), 0.03 * radius, 0.16 * radius, 0.16 * radius, rope))
    for x, z in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        at = basket + vector(0.095 * x * radius, 0.26 * radius, 0.095 * z * radius)
        shapes.append(Cone(at, 0.28 * radius, 0.007 * radius, 0.007 * radius, rope))
    return shapes


def balloon(second: float, width: int, height: int) -> Array:
    """Morning: it rises before hills in the mist."""
    sun = vector(-0.85, 0.33, 0.12)
    warm = vector(1.5, 0.85, 0.42)
    morning = skies.sky(sun, vector(0.05, 0.17, 0.52), vector(0.40, 0.42, 0.50), warm, 0.45, 0.004 * second)
    ridges = [(0.055, 0.9, 0.12, 1), (0.02, 0.8, 0.34, 2), (-0.03, 0.75, 0.58, 3), (-0.11, 0.9, 0.85, 4)]
    land = skies.with_hills(morning, ridges, sun, vector(0.085, 0.125, 0.030), vector(0.36, 0.40, 0.48))
    centre = vector(0.55 - 0.09 * second, 1.35 + 0.08 * second, 7.0)
    scene = Scene(
        balloon_shapes(centre, 1.45),
        sun,
        vector(2.9, 2.1, 1.35),
        land,
        vector(0.30, 0.36, 0.50),
        vector(0.16, 0.16, 0.12),
        image=morning,
    )
    eye = vector(0, 0.3, 0)
    return picture(scene, eye, vector(0.22 - 0.036 * second, 0.84 + 0.05 * second, 7.0), 1.5, width, height)


def shore(second: float, evening: bool) -> tuple[Array, Array, Array, skies.Sky, Plane]:
    """sun, its light, ambient, the sky, and the sea."""
    if evening:
        sun, warm = vector(-0.5, 0.10, 0.9), vector(2.2, 0.85, 0.25)
        above = skies.sky(sun, vector(0.08, 0.12, 0.34), vector(0.95, 0.42, 0.20), warm, 0.55, 0.003 * second)
        sea = paints.sea(second, vector(0.006, 0.014, 0.03), vector(0.02, 0.04, 0.06))
        return sun, vector(3.4, 1.5, 0.55), vector(0.22, 0.20, 0.30), above, Plane(1, 0.0, sea, shaded=False)
    sun, warm = vector(-0.8, 0.75, -0.45), vector(1.3, 1.15, 0.9)
    above = skies.sky(sun, vector(0.06, 0.20, 0.58), vector(0.60, 0.72, 0.86), warm, 0.5, 0.003 * second)
    sea = paints.sea(second, vector(0.005, 0.045, 0.075), vector(0.02, 0.13, 0.15))
    return sun, vector(2.6, 2.4, 2.1), vector(0.34, 0.42, 0.56), above, Plane(1, 0.0, sea, shaded=False)


def lighthouse(second: float, width: int, height: int) -> Array:
    sun, light, ambient, above, sea = shore(second, False)
    foot = vector(2.6, 2.75, 22)
    tall = 9.2
    white, red, dark = vector(0.8, 0.78, 0.74), vector(0.55, 0.03, 0.025), vector(0.03, 0.03, 0.035)
    top = foot + vector(0, tall, 0)
    rocks = [
        (2.6, 0.0, 22, 6.2, 3.1, 4.6),
        (7.6, -0.2, 23, 5.6, 2.0, 4.0),
        (-2.4, -0.2, 20.5, 3.2, 1.5, 2.6),
        (-5.6, -0.3, 23, 2.2, 1.0, 2.0),
        (13.5, -0.5, 27, 6.5, 3.6, 5.0),
        (0.6, 0.2, 18.6, 2.0, 1.1, 1.6),
    ]
    shapes = [
        sea,
        *[Ball(vector(x, y, z), vector(a, b, c), paints.rock) for x, y, z, a, b, c in rocks],
        Cone(foot, tall, 1.55, 1.02, paints.tower(foot, tall, 5)),
        Cone(top, 0.16, 1.45, 1.45, paints.plain(dark)),
        Cone(top + vector(0, 0.16, 0), 0.42, 1.42, 1.42, paints.plain(red * 0.7)),
        Cone(top + vector(0, 0.58, 0), 0.08, 1.46, 1.46, paints.plain(white)),
        Cone(top + vector(0, 0.66, 0), 1.05, 0.78, 0.78, paints.plain(vector(0.35, 0.40, 0.40), 0.9, 90.0, 0.35)),
        Cone(top + vector(0, 1.71, 0), 0.12, 1.0, 1.0, paints.plain(red)),
        Cone(top + vector(0, 1.83, 0), 0.75, 0.9, 0.12, paints.plain(red)),
        Ball(top + vector(0, 2.65, 0), vector(0.16, 0.16, 0.16), paints.plain(red)),
        *[
            Cone(top + vector(0.80 * np.sin(a), 0.66, 0.80 * np.cos(a)), 1.05, 0.045, 0.045, paints.plain(dark))
            for a in np.arange(8) * np.pi / 4 + 0.2
        ],
    ]
    scene = Scene(shapes, sun, light, above, ambient, vector(0.10, 0.12, 0.13), haze=160.0, mirrors=True)
    eye = vector(-3.4 + 0.22 * second, 2.6, 0)
    return picture(scene, eye, vector(0.9 + 0.05 * second, 6.0, 22), 1.45, width, height)


def balloon_at_sea(second: float, width: int, height: int) -> Array:
    sun, light, ambient, above, sea = shore(second, True)
    centre = vector(-1.6 + 0.16 * second, 4.4 + 0.03 * second, 15.0)
    scene = Scene(
        [sea, *balloon_shapes(centre, 2.3)], sun, light, above, ambient * 1.7, vector(0.12, 0.08, 0.07), mirrors=True
    )
    return picture(scene, vector(0, 1.5, 0), vector(-0.2, 3.4, 15.0), 1.45, width, height)


def ball(second: float, width: int, height: int) -> Array:
    """A tennis ball rolls along the beach and comes to rest."""
    sun, light, ambient, above, sea = shore(second, False)
    x = -2.7 + 3.1 * (1 - np.exp(-second * 0.45))
    roll = turned(0, 0, -(x + 2.7)) @ turned(0.5, 0.4, 0.2)
    centre = vector(x, 0.97, 0)
    felt = Ball(centre, vector(1, 1, 1), paints.tennis_felt(roll.T.copy()))
    sand = Plane(1, 0.0, paints.shore(paints.beach, sea.paint))
    scene = Scene([sand, felt], sun, light, above, ambient, vector(0.20, 0.15, 0.10), soft=0.03)
    return picture(scene, vector(0.2, 3.2, -7.2), vector(-0.1, 1.2, 0), 0.8, width, height)


def clock(second: float, width: int, height: int) -> Array:
    """On a wall; ten o'clock becomes two while the light moves on."""
    share = min(max((second - 0.5) / 6.0, 0), 1)
    hours = 10.0 + 4.15 * share * share * (3 - 2 * share)
    sun = vector(-0.62 + 0.10 * second, 0.75, -0.85)
    wall = Plane(2, 0.0, paints.wall_with_clock(hours, unit(sun)), -1)
    room = vector(0.36, 0.36, 0.38)

    def window(rays: Array) -> Array:
        pane = (np.abs(rays[:, 0] + 0.35) < 0.30) & (np.abs(rays[:, 1] - 0.30) < 0.28)
        return room + pane[:, None] * vector(2.2, 2.1, 1.9)

    scene = Scene([wall], sun, vector(1.9, 1.75, 1.5), window, room * 1.2, room)
    eye = vector(0.9 - 0.12 * second, 0.25, -4.6 + 0.07 * second)
    return picture(scene, eye, vector(0.0, 0.0, 0), 1.55, width, height)
