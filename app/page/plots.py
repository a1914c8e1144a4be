"""What both models cost over the video, as small drawings: lines of numbers in a View become SVG.

Drawn here, because a plotting library in the page writes warnings, fails where a plot is hidden, and takes a second to
arrive on a phone. Axes start at zero: a cut axis makes small differences look large.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from app.live.view import View
from app.page.panels import brief
from pipeline import mmss

WIDTH, HEIGHT = 340, 190  # of the drawing; the page scales it
LEFT, RIGHT, ABOVE, BELOW = 44, 10, 10, 24  # margins
TICKS = 5  # at most, between nothing and the largest value

Points = tuple[tuple[float, float], ...]  # (second of the video, value)


class Line(NamedTuple):
    """One model's numbers."""

    name: str
    points: Points


def plots(view: View) -> str:
    """Three figures, one line or one row of dots a model; empty where no two models are compared."""
    if not view.comparing:
        return ""
    names = [brief(model.name) for model in view.models]
    cost = [tuple((one.at, one.ms) for one in model.samples) for model in view.models]
    held = [
        tuple((one.at, (one.state_bytes + one.memory_bytes) / 1e6) for one in model.samples) for model in view.models
    ]
    first = [model.first_tokens for model in view.models]
    figures = (
        figure("Time per frame", "ms", map(Line, names, cost)),
        figure("State and memory held", "MB", map(Line, names, held)),
        figure("First word of an answer after", "s", map(Line, names, first), dots=True),
    )
    return f'<div class="plots">{"".join(figures)}</div>'


def figure(title: str, unit: str, lines: Iterable[Line], dots: bool = False) -> str:
    """One drawing with its title, a key, and its newest numbers in words for those who do not see it."""
    lines = tuple(lines)
    points = [point for line in lines for point in line.points]
    width, height = ceiling(at for at, _ in points), ceiling(value for _, value in points)
    drawn = "".join(_drawn(line, side, width, height, dots) for line, side in zip(lines, ("own", "rival")))
    key = "".join(
        f'<span class="{side}">{html.escape(line.name)}</span>' for line, side in zip(lines, ("own", "rival"))
    )
    words = html.escape(f"{title}: " + ("; ".join(map(newest, lines, [unit] * len(lines))) or "nothing yet"))
    return (
        f"<figure><figcaption>{html.escape(title)}, {unit}{key}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">'
        f"{_axes(width, height)}{drawn}</svg></figure>"
    )


def newest(line: Line, unit: str) -> str:
    """ "Vamba 12.5 ms at 0:31", or that there is nothing yet."""
    if not line.points:
        return f"{line.name} nothing yet"
    at, value = line.points[-1]
    return f"{line.name} {number(value)} {unit} at {mmss(at)}"


def number(value: float) -> str:
    """Three digits that count, and never an exponent: 0.125, 12.5, 1,500."""
    return f"{Decimal(f'{value:.3g}'):,f}"


def ceiling(values: Iterable[float]) -> float:
    """The end of an axis: a little above the largest value."""
    return 1.1 * max(values, default=0.0) or 1.0


def ticks(end: float) -> Sequence[float]:
    """Round numbers from 0 below `end`: one, two or five times a power of ten apart."""
    rough = end / TICKS
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough)
    return [step * index for index in range(int(end / step) + 1)]


def seconds(end: float) -> Sequence[float]:
    """Round times from 0 below `end`: whole seconds, minutes or hours apart."""
    steps = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)
    step = next((step for step in steps if end / step <= TICKS), 3600 * math.ceil(end / 3600 / TICKS))
    return [step * index for index in range(int(end / step) + 1)]


def _at(x: float, y: float, width: float, height: float) -> tuple[float, float]:
    """Where a point lies in the drawing."""
    across, up = (WIDTH - LEFT - RIGHT) * x / width, (HEIGHT - ABOVE - BELOW) * y / height
    return round(LEFT + across, 1), round(HEIGHT - BELOW - up, 1)


def _axes(width: float, height: float) -> str:
    parts = []
    for value in ticks(height):
        _, y = _at(0, value, width, height)
        parts.append(f'<path d="M{LEFT} {y}H{WIDTH - RIGHT}"/><text x="{LEFT - 6}" y="{y + 4}">{number(value)}</text>')
    for second in seconds(width):
        x, y = _at(second, 0, width, height)
        parts.append(f'<text class="second" x="{x}" y="{y + 17}">{mmss(second)}</text>')
    return "".join(parts)


def _drawn(line: Line, side: str, width: float, height: float, dots: bool) -> str:
    places = [_at(at, value, width, height) for at, value in line.points]
    if dots or len(places) < 2:
        return "".join(f'<circle class="{side}" cx="{x}" cy="{y}" r="3.5"/>' for x, y in places)
    return f'<polyline class="{side}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>'
