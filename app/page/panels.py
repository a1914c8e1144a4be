"""What the page shows, as pure functions: watch, chat and measurements in; HTML, messages and tables out.

Every piece of text that a visitor, a file or a model wrote passes through `html.escape` or goes to a component that
renders nothing. Pictures are data URIs of JPEGs we made ourselves, so no answer can fetch anything.
"""

from __future__ import annotations

import base64
import html
import re
from typing import Any

import pandas as pd

from app.live.session import LiveSession, Turn
from app.live.watching import Column, Watch
from pipeline import Engine, mmss

SUGGESTIONS = (
    "What is happening now?",
    "Describe the video so far.",
    "What did you see at 0:10?",
    "When does a person appear?",
    "How many scenes were there?",
)
FILM = 12  # pictures in the film strip


def plain(text: str) -> str:
    """A model's words without markup: images and links keep their words, tags go."""
    text = re.sub(r"!?\[([^\]]*)\]\((?:[^()]|\([^()]*\))*\)", r"\1", text)
    return re.sub(r"</?[a-zA-Z!][^>]*>", "", text)


# The state line


def state(watch: Watch | None, player: float = 0.0) -> tuple[str, str, str]:
    """(kind, word, detail) of a stream; kind is one of idle, waiting, watching, catching, paused, ended, error.

    player: second the visitor's player shows; a stream that is behind it is catching up.
    """
    if watch is None:
        return "idle", "Idle", "Press Start, upload a video or switch on the camera."
    if watch.error:
        return "error", "Stopped", watch.error
    if watch.paused:
        return "paused", f"Paused at {mmss(watch.seen_until)}", "Nothing is lost; press Resume to go on."
    if watch.ended:
        return "ended", "Ended", f"All {mmss(watch.duration or watch.seen_until)} seen; ask anything about it."
    if watch.camera and watch.silent:
        return "waiting", "Waiting for the camera", "Allow it in the browser, then press Record."
    if watch.columns[0].shown == 0:
        return "waiting", "Opening", "Waiting for the first picture."
    return _at_work(watch, player)


def _at_work(watch: Watch, player: float) -> tuple[str, str, str]:
    speed = f"×{watch.rate:.1f}" if watch.rate else ""
    if any(column.behind for column in watch.columns):
        return "catching", f"Catching up {speed}", "The second model reads the video from its start."
    if watch.waiting > 3 or (watch.camera is None and player > watch.seen_until + 2):
        return "catching", f"Catching up {speed}", f"At {mmss(watch.seen_until)}; the player is ahead."
    of = f"of {mmss(watch.duration)}" if watch.duration else ("live" if watch.camera else "")
    return "watching", f"Watching {mmss(watch.seen_until)}", of


def state_line(session: LiveSession | None, player: float = 0.0, sentence: str = "") -> str:
    """The state word, its detail and the progress; `sentence` overrides with an error that has no stream."""
    watch = session.watch if session else None
    kind, word, detail = ("error", "Not watching", sentence) if sentence else state(watch, player)
    name = f'<span class="file">{html.escape(short(session.file_name))}</span>' if session and session.file_name else ""
    return (
        f'<div class="state {kind}"><span class="dot"></span><strong>{html.escape(word)}</strong>'
        f'<span class="detail">{html.escape(detail)}</span>{name}</div>{progress_bar(watch)}'
    )


def progress_bar(watch: Watch | None) -> str:
    """Progress against the file's length, or its bytes where the length is unknown; empty for a camera."""
    if watch is None or watch.camera:
        return '<div class="bar"></div>'
    share = watch.seen_until / watch.duration if watch.duration else watch.progress
    share = 1.0 if watch.ended and not watch.error else min(max(share, 0.0), 1.0)
    return (
        f'<div class="bar" role="progressbar" aria-label="Seen so far" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{share * 100:.0f}"><i style="width:{share * 100:.1f}%"></i></div>'
    )


def short(name: str, limit: int = 40) -> str:
    """A file's name fit to show: no control or direction characters, cut in the middle."""
    name = "".join(letter for letter in name if letter.isprintable())
    return name if len(name) <= limit else f"{name[: limit - 12]}…{name[-11:]}"


# The strip


def metrics(session: LiveSession | None) -> str:
    """The counters of every column, as tiles."""
    watch = session.watch if session else None
    tiles = [_tile("Frames seen", f"{watch.columns[0].shown:,}" if watch else "0", "one a second")]
    lost = (watch.dropped, watch.skipped) if watch else (0, 0)
    fate = (
        f"{lost[1]:,} damaged skipped"
        if lost[1]
        else "the newest are kept"
        if watch and watch.camera
        else "none skipped"
    )
    tiles.append(_tile("Dropped", f"{lost[0]:,}", fate))
    tiles.append(_tile("Speed", f"×{watch.rate:.1f}" if watch and watch.rate else "–", "of real time"))
    for index, column in enumerate(watch.columns if watch else ()):
        tiles += _cost_tiles(column, index, many=len(watch.columns) > 1)
    if not watch:
        tiles += [_tile("State", "–", "stays constant"), _tile("Memory", "–", "grows with the video")]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _cost_tiles(column: Column, index: int, many: bool) -> list[str]:
    seen, side = column.state, " rival" if index else " own"
    whose = f" · {brief(column.engine)}" if many else ""
    constant = "stays constant" if not many or index == 0 else "what it carries"
    since = f"watching since {mmss(column.since)}" if column.since else "grows with the video"
    note = seen.dropped_note or since
    tiles = [_tile(f"Memory{whose}", megabytes(seen.memory_bytes), note, side if many else "")]
    if seen.state_bytes:
        tiles.insert(0, _tile(f"State{whose}", megabytes(seen.state_bytes), constant, side if many else ""))
    return tiles


def _tile(label: str, value: str, note: str, side: str = "") -> str:
    label, value, note = (html.escape(text) for text in (label, value, note))
    return f'<div class="tile{side}"><span>{label}</span><b>{value}</b><small>{note}</small></div>'


def brief(engine: Engine) -> str:
    """A model's name without what stands in brackets after it."""
    return engine.name.split(" (")[0]


def megabytes(count: int) -> str:
    """Bytes as the page shows them: 290 kB, 19.6 MB, 1.2 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.{1 if count < 100 * size else 0}f} {unit}"
    return f"{count / 1e3:.0f} kB"


def film(watch: Watch | None) -> str:
    """Pictures evenly over what was seen; a click seeks the player."""
    if watch is None or not watch.thumbnails.times:
        return ""
    return f'<div class="film">{"".join(_chip(at, jpeg) for at, jpeg in watch.thumbnails.spread(FILM))}</div>'


def _chip(at: float, jpeg: bytes | None, weight: float | None = None, span: str = "") -> str:
    picture = f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">' if jpeg else ""
    meter = f'<i style="width:{min(max(weight, 0), 1) * 100:.0f}%"></i>' if weight is not None else ""
    return (
        f'<button type="button" class="chip" data-seek="{at:.3f}" aria-label="Go to {mmss(at)}" title="{span}">'
        f"{picture}<span>{mmss(at)}</span>{meter}</button>"
    )


# The chat


def messages(chat: list[Turn], card: Any) -> list[dict]:
    """Chatbot messages of a conversation. card: makes the page's HTML component of an answer's foot.

    The Chatbot renders HTML even where it renders no Markdown, remote images included, so words are escaped here.
    """
    shown: list[dict] = []
    for turn in chat:
        shown.append({"role": "user", "content": html.escape(turn.question, quote=False)})
        shown.append({"role": "assistant", "content": _reply(turn, card)})
    return shown


def _reply(turn: Turn, card: Any) -> list:
    if turn.error:
        return [card(f'<p class="sorry" role="alert">{html.escape(turn.error)}</p>')]
    if turn.answer is None:
        return [card('<p class="thinking" aria-label="Reading what was seen"><i></i><i></i><i></i></p>')]
    text = html.escape(plain(turn.answer.text), quote=False) or "…"
    return [text, card(foot(turn))] if turn.answer.done else [text]


def foot(turn: Turn) -> str:
    """Under a whole answer: what it had seen, how fast it came, and the moments it rests on."""
    answer = turn.answer
    pinned = f"about {mmss(turn.at)} · " if turn.at is not None else ""
    facts = [f"{pinned}seen until {mmss(answer.seen_until)}"]
    if answer.first_token_s is not None:
        first = answer.first_token_s
        facts.append(f"first word after {first:.1f} s" if first >= 1 else f"first word after {first * 1000:.0f} ms")
    if answer.tokens_per_s:
        facts.append(f"{answer.tokens_per_s:.0f} tokens/s")
    if answer.stopped:
        facts.append("stopped")
    pictures = turn.pictures or (None,) * len(answer.evidence)
    chips = "".join(
        _chip(one.time, jpeg, one.weight, f"{mmss(one.start)} to {mmss(one.end)}, {one.weight:.0%} of the weight")
        for one, jpeg in zip(answer.evidence, pictures)
    )
    chips = f'<div class="moments">{chips}</div>' if chips else ""
    return f'{chips}<p class="facts">{html.escape(" · ".join(facts))}</p>'


# The plots


def plots(session: LiveSession) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Tables over the second of the video: ms per frame, MB held, seconds to the first token; one line an engine."""
    cost, held, first = [], [], []
    for index, column in enumerate(session.watch.columns if session.watch else ()):
        name = brief(column.engine)
        for sample in column.samples:
            cost.append((round(sample.at, 1), sample.ms, name))
            held.append((round(sample.at, 1), (sample.state_bytes + sample.memory_bytes) / 1e6, name))
        first += [(round(at, 1), seconds, name) for at, seconds in session.first_tokens[index]]
    names = [brief(engine) for engine in (session.engine, session.rival) if engine]
    return _table(cost, "ms", names), _table(held, "MB", names), _table(first, "s", names)


def _table(rows: list[tuple[float, float, str]], unit: str, names: list[str]) -> pd.DataFrame:
    """Typed even when empty (an untyped column is plotted as categories), and with every name from the start (the
    plot takes its colours from the first table it gets)."""
    rows = [*rows, *((None, None, name) for name in names)]
    return pd.DataFrame(rows, columns=["second", unit, "model"]).astype({"second": float, unit: float, "model": str})


def top(table: pd.DataFrame, column: int) -> float:
    """Where a plot's axis ends: a little above the largest value."""
    largest = table.iloc[:, column].max()
    return 1.1 * float(largest) if largest > 0 else 1.0
