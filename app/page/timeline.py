"""What happened when, under the player: a track true to time with scenes and marks, their pictures, and what was seen
as a list. A `View` in, HTML out; every word that a model wrote is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

from app.live.view import View
from app.page.panels import chip
from pipeline import Event, mmss

SHOTS = 300  # on the track; of more, those that differ most from what came before
LINES = 500  # of the list, the newest
MARKS = {
    "chapter": "Chapter",
    "alert": "Alert",
    "speech": "Speech",
    "text": "Writing",
    "answer": "An answer rests on this",
}
SUBTITLES = ("caption", "speech")
LABELS = MARKS | {"sound": "Heard"}
CAPTION = '<p class="caption" aria-hidden="true"></p>'  # of the moment; the slider's own words say it to screen readers
CLIP = '<button type="button" data-clip="now">Clip</button>'
ZOOM = (
    '<span class="zoom"><small></small><button type="button" data-zoom="0.5" aria-label="Zoom out">−</button>'
    '<button type="button" data-zoom="2" aria-label="Zoom in">+</button></span>'
)


def timeline(view: View) -> str:
    """Empty where nothing was seen yet."""
    if not view.film:
        return ""
    chips = "".join(chip(at, jpeg) for at, jpeg in view.film)
    under = f'<div class="under">{CAPTION}{ZOOM}{CLIP}</div>'
    return f'<h2 class="unseen">Scenes</h2>{track(view)}{under}<div class="film">{chips}</div>{listed(view)}'


def length_of(view: View) -> float:
    """Seconds that the track is long: the whole file, or what a camera has shown so far."""
    return max(view.seen_until, 1.0, 0.0 if view.live else view.duration or 0.0)


def track(view: View) -> str:
    """Scenes, marks, the part that was seen, and the playhead, which page and keyboard move (timeline.js)."""
    length = length_of(view)
    shots = sorted((event for event in view.events if event.kind == "shot"), key=lambda event: -event.weight)[:SHOTS]
    scenes = "".join(_span("shot", shot, view, length) for shot in sorted(shots, key=lambda shot: shot.time))
    scenes += "".join(_span("gap", event, view, length) for event in view.events if event.kind == "gap")
    marks = "".join(_mark(kind, at, text, length) for kind, at, text in marked(view))
    seen = f'<i class="seen" style="width:{_share(view.seen_until, length)}"></i>'
    slider = (
        f'role="slider" tabindex="0" aria-label="Where in the video" aria-valuemin="0" aria-valuemax="{length:.0f}" '
        'aria-valuenow="0" aria-valuetext="0:00"'
    )
    what = 'role="img" aria-label="Scenes so far"' if view.live else slider
    inside = f'{seen}{scenes}{marks}<b class="playhead"></b>'
    about = f'data-length="{length:.3f}" data-begins="{view.begins:.3f}" {_subtitled(view)}{what}'
    return f'<div class="window"><div class="track" {about}>{inside}</div></div>'


def _subtitled(view: View) -> str:
    """Whose player shows the captions as subtitles (subtitles.js), and how far they are; nothing for a camera."""
    if view.live:
        return ""
    count = sum(event.kind in SUBTITLES for event in view.events)
    return f'data-source="{html.escape(view.source)}" data-captions="{view.stream} {view.phase} {count}" '


def marked(view: View) -> Iterable[tuple[str, float, str]]:
    """(kind, second, words) of what has a mark: alerts, speech and writing, and the moments whole answers rest on."""
    for event in view.events:
        if event.kind in MARKS:
            yield event.kind, event.time, event.text
    for turn in view.conversations[0]:
        if turn.stream == view.stream and turn.answer and turn.answer.done:
            yield from (("answer", moment.time, turn.question) for moment in turn.answer.evidence)


def listed(view: View) -> str:
    """All that has words, with its seconds: what was seen, to read."""
    events = [event for event in view.events if event.text and event.kind != "shot"]
    events = sorted(events, key=lambda event: (event.time, event.kind != "chapter"))[-LINES:]
    lines = "".join(_line(event, view) for event in events)
    title = f"What was seen ({len(events):,})" if events else "What was seen"
    nothing = "<li>Nothing was surely seen so far.</li>"
    # By keyboard too, where no time in it is a button.
    scrolls = 'tabindex="0" aria-label="What was seen"' if view.live else ""
    return f'<details class="events"><summary>{title}</summary><ol {scrolls}>{lines or nothing}</ol></details>'


def _line(event: Event, view: View) -> str:
    until = "" if event.until is None else f' data-until="{event.until:.3f}"'
    moment = f'<button type="button" class="time" data-seek="{event.time:.3f}">{mmss(event.time)}</button>'
    said = html.escape(event.text)
    kind = f"<strong>{LABELS[event.kind]}: </strong>" if event.kind in LABELS else ""
    return f'<li data-from="{event.time:.3f}"{until}>{mmss(event.time) if view.live else moment} {kind}{said}</li>'


def _span(kind: str, event: Event, view: View, length: float) -> str:
    end = view.seen_until if event.until is None else event.until
    place = f"left:{_share(event.time, length)};width:{_share(end - event.time, length)}"
    return f'<i class="{kind}" style="{place}"></i>'


def _mark(kind: str, at: float, text: str, length: float) -> str:
    title = html.escape(f"{mmss(at)} {MARKS[kind]}: {text}")
    return f'<i class="mark {kind}" style="left:{_share(at, length)}" title="{title}"></i>'


def _share(seconds: float, length: float) -> str:
    return f"{min(max(seconds / length, 0.0), 1.0) * 100:.2f}%"
