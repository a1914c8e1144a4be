"""Recall by age as a picture: `python -m pipeline.training.plot RESULT.json [MORE.json ...] OUT.svg`.

From evaluate's JSON lines; where two hold the same measure, the one of more questions is drawn.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SHOWN = {  # measure: (words, colour)
    "evidence_inside": ("evidence inside the right shot", "#0d9488"),
    "at_of_shots": ('"at mm:ss", right of 8', "#2563eb"),
    "yesno_balanced": ("yes or no, balanced", "#7c3aed"),
    "when": ('"when", within 5 s', "#c2410c"),
    "after_of_shots": ('"after", right of 8', "#a16207"),
    "before_of_shots": ('"before", right of 8', "#64748b"),
}
LEFT, TOP, WIDTH, HEIGHT = 48, 16, 380, 240


def merged(lines: list[dict[str, dict]]) -> dict[str, dict]:
    """minute -> measure -> cell, of several evaluations."""
    out: dict[str, dict] = {}
    for minute, cells in (item for line in lines for item in line.items()):
        for name, cell in cells.items():
            held = out.setdefault(minute, {}).get(name)
            out[minute][name] = cell if held is None or cell["n"] > held["n"] else held
    return out


def svg(recall: dict[str, dict]) -> str:
    """A line a measure over minutes 1, 5, 15 and 60; whiskers are one standard error."""
    minutes = sorted(recall, key=int)
    x = {m: LEFT + 20 + i * (WIDTH - 40) / max(1, len(minutes) - 1) for i, m in enumerate(minutes)}

    def y(share: float) -> float:
        return TOP + HEIGHT * (1 - share)

    parts = [f'<text x="{LEFT - 8}" y="{y(s) + 4}" text-anchor="end">{s:g}</text>' for s in (0, 0.25, 0.5, 0.75, 1)]
    parts += [
        f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y(s)}" y2="{y(s)}" stroke="#cbd5e1"/>'
        for s in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [f'<text x="{x[m]}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{m} min</text>' for m in minutes]
    for row, (name, (words, colour)) in enumerate(SHOWN.items()):
        points = [(x[m], recall[m][name]) for m in minutes if name in recall[m]]
        line = " ".join(f"{px:.1f},{y(cell['share']):.1f}" for px, cell in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for px, cell in points:
            low, high = y(cell["share"] - cell.get("error", 0)), y(cell["share"] + cell.get("error", 0))
            parts.append(f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{px:.1f}" cy="{y(cell["share"]):.1f}" r="3" fill="{colour}"/>')
        at = TOP + 14 + 20 * row
        parts.append(f'<rect x="{LEFT + WIDTH + 16}" y="{at - 9}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + WIDTH + 36}" y="{at}">{words.replace(chr(34), "&quot;")}</text>')
    size = f'width="{LEFT + WIDTH + 240}" height="{TOP + HEIGHT + 32}"'
    style = 'font-family="sans-serif" font-size="12" fill="#475569"'
    body = '<rect width="100%" height="100%" fill="#fff"/>' + "".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{body}</svg>\n'


if __name__ == "__main__":
    lines = [json.loads(Path(file).read_text().strip().splitlines()[-1])["recall"] for file in sys.argv[1:-1]]
    Path(sys.argv[-1]).write_text(svg(merged(lines)))
