"""A small ray tracer in numpy: spheres, cones and planes, one sun, soft shadows, a sky that is mirrored, haze.

Colours are linear light, float32 (n, 3); x is right, y up, z away from the camera. N: rays, n: those that hit a thing.
Soft shadows and occlusion of spheres are in closed form (Quilez, iquilezles.org/articles/spherefunctions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np

BANDS = 8  # parts of a picture that are computed one after the other, so that they stay in the cache
FINE = 1.5  # rays a pixel, each way
FAR = np.float32(1e9)

Array = np.ndarray


class Surface(NamedTuple):
    """What a paint says of n points: colour (n, 3), normals (n, 3), gloss 0..1 (a number or (n,)), light of its own."""

    colour: Array
    normal: Array
    gloss: Array | float = 0.0
    sharp: float = 60.0  # exponent of the highlight
    glow: Array | float = 0.0


Paint = Callable[[Array, Array], Surface]  # of points and normals, (n, 3) each


class Shape:
    """What rays can hit. shaded: whether shadows fall on it. bound: middle and radius of a ball around it, if any."""

    paint: Paint
    shaded: bool = True
    bound: tuple[Array, float] | None = None

    def reached(self, eye: Array, rays: Array) -> Array:
        """(N,) how far along each ray it is hit; FAR where it is not. eye: (3,) or (N, 3)."""
        raise NotImplementedError

    def normal(self, points: Array) -> Array:
        raise NotImplementedError


def vector(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def unit(vectors: Array) -> Array:
    return vectors / np.sqrt((vectors * vectors).sum(-1, keepdims=True) + np.float32(1e-12))


def dot(a: Array, b: Array) -> Array:
    return np.einsum("...i,...i->...", *np.broadcast_arrays(a, b))


def mix(a: Any, b: Any, share: Any) -> Any:
    """`a` where the share is 0, `b` where it is 1; arrays or numbers."""
    return a + (b - a) * share


def step(low: float, high: float, x: Array) -> Array:
    """Smooth from 0 at `low` to 1 at `high`."""
    share = np.clip((x - low) / (high - low), 0, 1)
    return share * share * (3 - 2 * share)


@dataclass
class Plane(Shape):
    """All points p with p[axis] == at. side: where it is looked at from, 1 or -1."""

    axis: int
    at: float
    paint: Paint
    side: float = 1.0
    shaded: bool = True

    def reached(self, eye: Array, rays: Array) -> Array:
        along = rays[:, self.axis]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (self.at - eye[..., self.axis]) / along
        return np.where((t > 1e-3) & (along * self.side < 0), t, FAR).astype(np.float32)

    def normal(self, points: Array) -> Array:
        found = np.zeros_like(points)
        found[:, self.axis] = self.side
        return found


@dataclass
class Ball(Shape):
    """A sphere, or an ellipsoid: `radii` of its three axes."""

    centre: Array
    radii: Array
    paint: Paint

    def reached(self, eye: Array, rays: Array) -> Array:
        o, d = (eye - self.centre) / self.radii, rays / self.radii
        a, b, c = dot(d, d), dot(o, d), dot(o, o) - 1
        root = b * b - a * c
        t = (-b - np.sqrt(np.maximum(root, 0))) / a
        return np.where((root > 0) & (t > 1e-3), t, FAR)

    def normal(self, points: Array) -> Array:
        return unit((points - self.centre) / self.radii**2)


@dataclass
class Cone(Shape):
    """Upright, from `foot` (its centre) up by `height`, `low` wide at the foot and `high` at the top; a lid on top."""

    foot: Array
    height: float
    low: float
    high: float
    paint: Paint

    def __post_init__(self) -> None:
        half = self.height / 2
        self.bound = self.foot + vector(0, half, 0), float(np.hypot(half, max(self.low, self.high)))

    def reached(self, eye: Array, rays: Array) -> Array:
        o = eye - self.foot
        slope = np.float32((self.high - self.low) / self.height)
        wide, wider = self.low + slope * o[..., 1], slope * rays[:, 1]
        a = rays[:, 0] ** 2 + rays[:, 2] ** 2 - wider * wider
        b = o[..., 0] * rays[:, 0] + o[..., 2] * rays[:, 2] - wide * wider
        c = o[..., 0] ** 2 + o[..., 2] ** 2 - wide * wide
        root = b * b - a * c
        t = (-b - np.sqrt(np.maximum(root, 0))) / np.where(np.abs(a) < 1e-9, 1e-9, a)
        up = o[..., 1] + t * rays[:, 1]
        side = np.where((root > 0) & (t > 1e-3) & (up >= 0) & (up <= self.height), t, FAR)
        return np.minimum(side, np.minimum(self._lid(o, rays, self.height, self.high), self._lid(o, rays, 0, self.low)))

    def _lid(self, o: Array, rays: Array, up: float, radius: float) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (up - o[..., 1]) / rays[:, 1]
            x, z = o[..., 0] + t * rays[:, 0], o[..., 2] + t * rays[:, 2]
            return np.where((t > 1e-3) & (x * x + z * z < radius * radius), t, FAR)

    def normal(self, points: Array) -> Array:
        o = points - self.foot
        found = unit(np.stack([o[:, 0], np.zeros(len(o), np.float32), o[:, 2]], 1))
        found[:, 1] = -(self.high - self.low) / self.height
        top, foot = o[:, 1] > self.height - 1e-3, o[:, 1] < 1e-3
        found[top], found[foot] = (0, 1, 0), (0, -1, 0)
        return unit(found)


def bounded(shape: Shape, eye: Array, rays: Array) -> Array:
    """As `reached`, and of a shape with a bound only the rays that come near it are looked at."""
    if shape.bound is None:
        return shape.reached(eye, rays)
    centre, radius = shape.bound
    way = centre - eye
    along = rays @ way if eye.ndim == 1 else np.einsum("ij,ij->i", rays, way)
    beside = (way @ way if eye.ndim == 1 else np.einsum("ij,ij->i", way, way)) - along * along
    near = np.flatnonzero((beside < radius * radius) & (along > -radius))
    t = np.full(len(rays), FAR, np.float32)
    t[near] = shape.reached(eye if eye.ndim == 1 else eye[near], rays[near])
    return t


@dataclass
class Scene:
    """shapes, and what lights them. sun: towards it; light: its colour; soft: how wide it is, a share of a right angle.

    sky: colour of a direction. ambient, bounce: light from above and from below. haze: distance at which half of what
    is seen is haze; 0: none.
    """

    shapes: Sequence[Shape]
    sun: Array
    light: Array
    sky: Callable[[Array], Array]
    ambient: Array
    bounce: Array
    soft: float = 0.02
    haze: float = 0.0
    mirrors: bool = False  # whether things are seen in each other
    image: Callable[[Array], Array] | None = None  # the sky as it is mirrored, where that may be simpler
    balls: Sequence[Ball] = field(init=False)

    def __post_init__(self) -> None:
        self.sun = unit(self.sun)
        self.balls = [shape for shape in self.shapes if isinstance(shape, Ball)]

    def reached(self, eye: Array, rays: Array) -> tuple[Array, Array]:
        """(N,) which shape each ray hits first, and how far along; FAR where none."""
        which, nearest = np.zeros(len(rays), np.int16), np.full(len(rays), FAR, np.float32)
        for i, shape in enumerate(self.shapes):
            t = bounded(shape, eye, rays)
            closer = t < nearest
            which[closer], nearest[closer] = i, t[closer]
        return which, nearest

    def seen(self, eye: Array, rays: Array, depth: int = 1) -> Array:
        """(N, 3) light that comes along each ray."""
        which, nearest = self.reached(eye, rays)
        bare = np.flatnonzero((nearest >= FAR) | (self.haze > 0))
        out = np.empty_like(rays)
        out[bare] = (self.sky if depth else self.image or self.sky)(rays[bare])
        for i, shape in enumerate(self.shapes):
            hit = np.flatnonzero((which == i) & (nearest < FAR))
            if len(hit):
                start = eye if eye.ndim == 1 else eye[hit]
                points = start + rays[hit] * nearest[hit, None]
                lit = self.lit(i, shape, points, rays[hit], depth)
                if self.haze:
                    clear = np.exp2(-nearest[hit] / self.haze)[:, None]
                    lit = mix(out[hit], lit, clear)
                out[hit] = lit
        return out

    def lit(self, i: int, shape: Shape, points: Array, rays: Array, depth: int) -> Array:
        """What n points of a shape send back along the rays."""
        plain = shape.normal(points)
        colour, normal, gloss, sharp, glow = shape.paint(points, plain)
        sun = self.sunlit(i, points, plain) * np.maximum(dot(normal, self.sun), 0)
        open_ = self.open(i, points, plain)
        up = 0.5 + 0.5 * normal[:, 1:2]
        light = sun[:, None] * self.light + open_[:, None] * mix(self.bounce, self.ambient, up)
        half = unit(self.sun - rays)
        shine = sun * np.maximum(dot(normal, half), 0) ** sharp * sharp / 8
        back = rays - 2 * dot(rays, normal)[:, None] * normal
        fresnel = 0.04 + 0.96 * np.clip(1 + dot(rays, normal), 0, 1) ** 5
        if self.mirrors and depth and np.ndim(gloss) == 0 and gloss >= 0.5:
            image = self.seen(points + normal * 1e-2, unit(back), depth - 1)
        else:
            image = (self.image or self.sky)(back) * open_[:, None]
        gloss = np.asarray(gloss, np.float32)[..., None]
        return colour * light + gloss * (shine[:, None] * self.light * 0.04 + fresnel[:, None] * image) + glow

    def sunlit(self, i: int, points: Array, normal: Array) -> Array:
        """(n,) 0..1, how much of the sun each point sees."""
        free = np.ones(len(points), np.float32)
        if not self.shapes[i].shaded:
            return free
        from_ = points + normal * 1e-2
        for j, shape in enumerate(self.shapes):
            if isinstance(shape, Plane) or (j == i and isinstance(shape, Ball)):
                continue
            if isinstance(shape, Ball):
                free *= soft_shadow(shape, from_, self.sun, self.soft)
            else:
                rays = np.broadcast_to(self.sun, points.shape)
                free *= bounded(shape, from_, rays) >= FAR
        return free

    def open(self, i: int, points: Array, normal: Array) -> Array:
        """(n,) 0..1, how much of the sky each point sees past the balls."""
        free = np.ones(len(points), np.float32)
        if not self.shapes[i].shaded:
            return free
        for ball in self.balls:
            if ball is not self.shapes[i]:
                way = ball.centre - points
                far = np.sqrt(dot(way, way))
                free *= 1 - np.clip(dot(normal, way) / far, 0, 1) * np.clip(ball.radii.min() / far, 0, 1) ** 2
        return free


def soft_shadow(ball: Ball, points: Array, sun: Array, soft: float) -> Array:
    """(n,) 0..1, how much of the sun is left beside a ball."""
    o, d = (points - ball.centre) / ball.radii, sun / ball.radii
    size = np.sqrt(dot(d, d))
    d = d / size
    b, c = dot(o, d), dot(o, o) - 1
    root = b * b - c
    beside = np.sqrt(np.maximum(1 - root, 0)) - 1  # how far outside the ray passes
    t = -b - np.sqrt(np.maximum(root, 0))
    return np.where((t < 0) | (b > 0), 1, step(-soft, soft, beside / np.maximum(t, 1e-3)))


def camera(eye: Array, target: Array, zoom: float, width: int, height: int) -> Array:
    """(height, width, 3) unit rays through the middles of pixels. zoom: 1 is 90 degrees wide."""
    ahead = unit(target - eye)
    right = unit(np.cross(vector(0, 1, 0), ahead))
    up = np.cross(ahead, right)
    x = (np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1
    y = (1 - (np.arange(height, dtype=np.float32) + 0.5) / height * 2) * height / width
    return unit(x[None, :, None] * right + y[:, None, None] * up + zoom * ahead).astype(np.float32)


def picture(scene: Scene, eye: Array, target: Array, zoom: float, width: int, height: int) -> Array:
    """(height, width, 3) of 0..1 for a screen; the scene is seen from `eye` with `target` in the middle."""
    rays = camera(eye, target, zoom, round(width * FINE), round(height * FINE))
    bands = np.array_split(rays, BANDS)
    light = np.concatenate([scene.seen(eye, band.reshape(-1, 3)).reshape(band.shape) for band in bands])
    # Averaged as the eye would see it, so that one bright ray does not make a whole pixel white.
    return cv2.resize(film(light), (width, height), interpolation=cv2.INTER_AREA)


def film(light: Array) -> Array:
    """0..1 for a screen: the curve of film (Narkowicz' fit of ACES), then a gamma of 2."""
    curve = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    return np.sqrt(np.clip(curve, 0, 1))
