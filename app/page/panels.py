"""What the page shows, as pure functions: a `View` in; HTML, messages and tables out.

Every piece of text that a visitor, a file or a model wrote passes through `html.escape` or goes to a component that
renders nothing. Pictures are data URIs of JPEGs we made ourselves, so no answer can fetch anything.
"""

from __future__ import annotations

import base64
import html
import math

from app.live.view import ModelView, Phase, Told, View
from pipeline import mmss

NOTHING = View()  # what a page shows that has no stream
ASLEEP = "on the disk, asleep"


# The state line


def said(sentence: str) -> str:
    """What could not be done, or was, in a sentence that stays until the next deed; nothing where it is empty."""
    if not sentence:
        return ""
    close = '<button type="button" data-close aria-label="Close">×</button>'
    return f'<p role="alert">{html.escape(sentence)}{close}</p>'


def in_line(place: int, seconds: float | None) -> Told:
    """Where a visitor stands who waits for a place. How long is said only where it is known."""
    known = ""
    if seconds is not None:
        known = f" One is free in about {max(1, math.ceil(seconds / 60))} min, if nobody comes back to theirs."
    detail = f"All places are taken.{known} Yours begins by itself, so keep this page open."
    return Told("waiting", f"Waiting for a place, {ordinal(place)} in line", detail)


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st."""
    tens = number % 100 in (11, 12, 13)
    return f"{number}{'th' if tens else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def state_line(view: View, player: float = 0.0, sentence: str = "", told: Told | None = None) -> str:
    """The state word, its detail and the progress; `sentence` overrides with an error that has no stream, `told` with
    anything else."""
    kind, word, detail = told or (Told("error", "Not watching", sentence) if sentence else view.told(player))
    name = f'<span class="file">{html.escape(short(view.file_name))}</span>' if view.file_name else ""
    return (
        f'<div class="state {kind}"><span class="dot"></span><strong>{html.escape(word)}</strong>'
        f'<span class="detail">{html.escape(detail)}</span>{name}</div>{progress_bar(view)}'
    )


def progress_bar(view: View) -> str:
    """Progress against the file's length, or its bytes where the length is unknown; empty for a camera."""
    if view.phase is Phase.IDLE or view.live:
        return '<div class="bar"></div>'
    share = view.seen_until / view.duration if view.duration else view.progress
    share = 1.0 if view.phase is Phase.ENDED and not view.error else min(max(share, 0.0), 1.0)
    return (
        f'<div class="bar" role="progressbar" aria-label="Seen so far" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share * 100:.0f}"><i style="width:{share * 100:.1f}%"></i></div>'
    )


def short(name: str, limit: int = 40) -> str:
    """A file's name fit to show: no control or direction characters, cut in the middle."""
    name = "".join(letter for letter in name if letter.isprintable())
    return name if len(name) <= limit else f"{name[: limit - 12]}…{name[-11:]}"


# The strip


def metrics(view: View) -> str:
    """The counters of every model, as tiles."""
    left_out, why = (view.dropped, "to keep up") if view.live else (view.skipped, "damaged ones")
    tiles = [
        _tile("Frames seen", f"{view.frames:,}", "one a second"),
        _tile("Left out", f"{left_out:,}", why),
        _tile("Speed", f"×{view.rate:.1f}" if view.rate else "–", "of real time"),
    ]
    for index, model in enumerate(view.models):
        tiles += _cost_tiles(model, index, many=len(view.models) > 1, asleep=view.asleep is not None)
    if not view.models:
        tiles += [_tile("State", "–", "stays constant"), _tile("Memory", "–", "grows with the video")]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _cost_tiles(model: ModelView, index: int, many: bool, asleep: bool) -> list[str]:
    side = (" rival" if index else " own") if many else ""
    whose = f" · {brief(model.name)}" if many else ""
    constant = "stays constant" if not many or index == 0 else "what it carries"
    since = f"watching since {mmss(model.since)}" if model.since else "grows with the video"
    note = ASLEEP if asleep else model.note or since
    tiles = [_tile(f"Memory{whose}", megabytes(model.memory_bytes), note, side)]
    if model.state_bytes:
        tiles.insert(0, _tile(f"State{whose}", megabytes(model.state_bytes), ASLEEP if asleep else constant, side))
    return tiles


def _tile(label: str, value: str, note: str, side: str = "") -> str:
    label, value, note = (html.escape(text) for text in (label, value, note))
    return f'<div class="tile{side}"><span>{label}</span><b>{value}</b><small>{note}</small></div>'


def brief(name: str) -> str:
    """A model's name without what stands in brackets after it."""
    return name.split(" (")[0]


def megabytes(count: int) -> str:
    """Bytes as the page shows them: 290 kB, 19.6 MB, 1.2 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count / 1e3:.0f} kB"


def chip(at: float, jpeg: bytes | None, weight: float | None = None, span: str = "", seek: bool = True) -> str:
    """A picture with its time, which seeks the player there; seek: not where the player shows another video."""
    picture = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">' if jpeg else ""
    meter = f'<i style="width:{min(max(weight, 0), 1) * 100:.0f}%"></i>' if weight is not None else ""
    inside = f"{picture}<span>{mmss(at)}</span>{meter}"
    if not seek:
        return f'<span class="chip">{inside}</span>'
    title = f' title="{span}"' if span else ""
    named = f'aria-label="Go to {mmss(at)}"{title}'
    return f'<button type="button" class="chip" data-seek="{at:.3f}" {named}>{inside}</button>'
