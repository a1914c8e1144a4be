"""A stream's events as files of other programs: WebVTT and SubRip subtitles, JSON, Markdown, and its costs as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from pipeline.clock import mmss
from pipeline.stream import Event

SPOKEN = ("caption", "speech")  # kinds that are subtitles
MARKS = re.compile(r"([\\`*_{}\[\]<>#|~])")  # what Markdown would read as markup
LONGEST = 10.0  # seconds that a subtitle stays on the picture, however long it is true
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that begins so is a formula to spreadsheets
TITLES = {
    "chapter": "Chapters",
    "alert": "Alerts",
    "caption": "Captions",
    "speech": "Speech",
    "text": "Writing",
    "sound": "Sounds",
    "gap": "Gaps",
}


def vtt(events: Iterable[Event], end: float) -> str:
    """WebVTT (W3C): a cue for each caption and what was said. end: second of the stream's end, for what goes on."""
    cues = [f"{_clock(start, '.')} --> {_clock(stop, '.')}\n{_plain(text)}" for start, stop, text in _cues(events, end)]
    return "\n\n".join(["WEBVTT", *cues]) + "\n"


def srt(events: Iterable[Event], end: float) -> str:
    """SubRip: the same cues as `vtt`, numbered from 1. end: second of the stream's end."""
    cues = [
        f"{number}\n{_clock(start, ',')} --> {_clock(stop, ',')}\n{_line(text)}\n"
        for number, (start, stop, text) in enumerate(_cues(events, end), start=1)
    ]
    return "\n".join(cues)


def _cues(events: Iterable[Event], end: float) -> list[tuple[float, float, str]]:
    told = sorted((event for event in events if event.kind in SPOKEN and event.text), key=lambda event: event.time)
    ends = [min(end if event.until is None else event.until, event.time + LONGEST) for event in told]
    return [(event.time, stop, event.text) for event, stop in zip(told, ends) if stop > event.time]


def _clock(seconds: float, point: str) -> str:
    """hh:mm:ss.mmm"""
    ms = round(max(0.0, seconds) * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"


def _line(text: str) -> str:
    """On one line: an empty line would end the cue."""
    return " ".join(text.split())


def _plain(text: str) -> str:
    """As text of a cue: no markup, and no arrow, which would be a time."""
    return _line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_json(events: Sequence[Event], about: Mapping[str, object]) -> str:
    """Every event in order of time, in seconds, after what is to be said about the stream: values of JSON."""
    told = [asdict(event) for event in in_order(events)]
    return json.dumps({**about, "events": told}, indent=2, ensure_ascii=False) + "\n"


def in_order(events: Iterable[Event]) -> list[Event]:
    """In order of time; what lasts longer first."""
    return sorted(events, key=lambda event: (event.time, -(event.until or math.inf), event.kind))


def markdown(events: Sequence[Event], title: str, end: float) -> str:
    """To be read: chapters, alerts, captions and all else that was noticed, with their times."""
    parts = [f"# {markdown_text(title)}", f"{mmss(end)} seen."]
    for kind, heading in TITLES.items():
        lines = [_told(event) for event in in_order(events) if event.kind == kind]
        if lines:
            parts += [f"## {heading}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _told(event: Event) -> str:
    until = "" if event.until is None else f" to {mmss(event.until)}"
    return f"- {mmss(event.time)}{until}: {markdown_text(event.text) or 'I am not sure what this is.'}"


def markdown_text(text: str) -> str:
    """Words on one line that no reader of Markdown takes for markup."""
    return MARKS.sub(r"\\\1", _line(text))


def csv_table(rows: Sequence[Mapping[str, object]], names: Sequence[str] = ()) -> str:
    """CSV (RFC 4180) with a line of names; all rows have the same. names: where there may be no row to tell them."""
    out, names = io.StringIO(), names or list(rows[0] if rows else ())
    if names:
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    """Text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
