"""What happens when a visitor does something: one small method an event, from component values to component updates.

Every argument is treated as hostile (Gradio's routes can be called with anything). A visitor's session is found by its
key alone. Nothing here blocks for longer than a token: watching has its own thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import numpy as np

from app.live.session import LiveSession, Sessions, clean
from app.page import panels
from pipeline import UserError

UPLOAD, WEBCAM, EXAMPLE = "Upload", "Webcam", "Example"
START, PAUSE, RESUME, AGAIN = "Start", "Pause", "Resume", "Watch again"


class Events:
    """The handlers of one page; `sessions` is the only thing behind them."""

    def __init__(self, sessions: Sessions, example: Path) -> None:
        self.sessions, self.example = sessions, example

    # The source

    def choose(self, source: str) -> tuple:
        """Shows the chosen source. What is being watched goes on until something else is started."""
        return tuple(gr.update(visible=source == name) for name in (UPLOAD, WEBCAM, EXAMPLE))

    def uploaded(self, path: str | None, key: str | None, request: gr.Request) -> tuple:
        """(key, state line) after a file has arrived: it is watched at once."""
        return self._started(key, request, lambda session: session.open_file(path, UPLOAD, Path(path).name))

    def camera(self, rgb: np.ndarray | None, key: str | None, request: gr.Request) -> tuple:
        """(key, state line) after a camera picture. The picture is queued or dropped; this returns at once."""
        if rgb is None:
            return gr.skip(), gr.skip()
        try:
            key, session = self.sessions.ensure(key, request.session_hash)
            session.offer(rgb)
        except UserError as error:
            return key, panels.state_line(None, sentence=str(error))
        return key, gr.skip()

    def press(self, label: str, source: str, path: str | None, key: str | None, request: gr.Request) -> tuple:
        """(key, state line) after the main button, which does what its label says."""
        session = self.sessions.get(key)
        if label == PAUSE and session:
            session.pause()
        elif label == RESUME and session:
            session.resume()
        elif label == AGAIN and session:
            return self._started(key, request, LiveSession.again)
        elif source == EXAMPLE:
            return self._started(key, request, lambda one: one.open_file(self.example, EXAMPLE))
        elif source == WEBCAM:
            return self._started(key, request, LiveSession.open_camera)
        elif path:
            return self.uploaded(path, key, request)
        else:
            return key, panels.state_line(session, sentence="There is no file yet, so choose one above.")
        return key, panels.state_line(session)

    def reset(self, key: str | None) -> tuple:
        """(state line, both chats, upload) with everything forgotten."""
        session = self.sessions.get(key)
        if session:
            session.reset()
        return panels.state_line(session), [], [], None

    def restore(self, key: str, request: gr.Request) -> tuple:
        """(key, source, compare switch, both chats, upload) of a loaded page: a reload finds its stream again."""
        session = self.sessions.get(key, request.session_hash)
        if session is None:
            return key if self.sessions.awaits(key) else self.sessions.issue(), *(gr.skip(),) * 5
        session.shown.clear()
        chats = [self.chat(session, column) for column in (0, 1)]
        return key, session.source or gr.skip(), session.comparing, *chats, session.upload or gr.skip()

    def compare(self, on: bool, key: str | None, request: gr.Request) -> tuple:
        """(key, second chat, plots, plot clock, state line)."""
        sentence = ""
        try:
            key, session = self.sessions.ensure(key, request.session_hash)
            session.compare(bool(on))
            on = session.comparing
        except UserError as error:
            on, session, sentence = False, None, str(error)
        shown = gr.update(visible=on)
        return key, shown, shown, gr.Timer(active=on), panels.state_line(session, sentence=sentence)

    def _started(self, key: str | None, request: gr.Request, start) -> tuple:
        try:
            key, session = self.sessions.ensure(key, request.session_hash)
            start(session)
        except UserError as error:
            return key, panels.state_line(None, sentence=str(error))
        return key, panels.state_line(session)

    # The chat

    def accept(self, text: str, pinned: bool, player: float, key: str | None, request: gr.Request) -> tuple:
        """(key, question box, question in hand, pinned second) for a question that was sent."""
        text = clean(text)
        if not text:
            return gr.skip(), gr.skip(), "", None
        key, session = self._session_or_error(key, request)
        if session.answering:
            raise gr.Error("An answer is still being written, so this question waits; press Stop first.")
        session.repeats = 0
        return key, "", text, number(player) if pinned and session.source != WEBCAM else None

    def answer(self, column: int, again: bool, text: str, at: float | None, key: str | None) -> Iterator:
        """Yields the chat of a column while its answer grows."""
        session = self.sessions.get(key)
        if session is None or not text or (column and not session.comparing):
            yield gr.skip()
            return
        sent = 0.0
        try:
            for _ in session.ask(text, at, column, again=session.repeats if again else 0):
                if time.monotonic() - sent > 0.08:  # a slow line gets fewer, longer steps
                    sent = time.monotonic()
                    yield self.chat(session, column)
            yield self.chat(session, column)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def chat(self, session: LiveSession, column: int) -> list[dict]:
        return panels.messages(session.chats[column], gr.HTML)

    def stop(self, key: str | None) -> None:
        session = self.sessions.get(key)
        if session:
            session.stop_answer()

    def retry(self, key: str | None) -> tuple:
        """(question in hand, pinned second) of the newest turn, taken back to be asked again."""
        session = self.sessions.get(key)
        if session:
            session.finish_answer()
        turn = session.take_back() if session else None
        return (turn.question, turn.at) if turn else ("", None)

    def clear(self, key: str | None) -> tuple:
        session = self.sessions.get(key)
        if session:
            session.clear_chat()
        return [], []

    def _session_or_error(self, key: str | None, request: gr.Request) -> tuple[str, LiveSession]:
        try:
            return self.sessions.ensure(key, request.session_hash)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    # The clock

    def tick(self, player: float, source: str, key: str | None) -> tuple:
        """(state line, spoken state, metrics, film, main button, key), each only where it changed."""
        session = self.sessions.get(key)
        if session is None:
            return (gr.skip(),) * 6 if not key or self.sessions.awaits(key) else self._gone()
        player = (number(player) or 0.0) if source == session.source else 0.0
        kind, word, detail = panels.state(session.watch, player)
        spoken = f"{word.split(' at ')[0]}. {detail}" if kind == "error" else kind
        values = {
            "line": panels.state_line(session, player),
            "spoken": spoken,
            "metrics": panels.metrics(session),
            "film": self._film(session),
            "button": main_label(session, source),
        }
        return *(self._changed(session, name, value) for name, value in values.items()), gr.skip()

    def _gone(self) -> tuple:
        """What a page shows that slept for so long that its session is over."""
        sentence = "This page was away for long, so its stream was ended and deleted; start it again."
        line = panels.state_line(None, sentence=sentence)
        return line, sentence, panels.metrics(None), "", gr.Button(START, variant="primary"), ""

    def _film(self, session: LiveSession) -> str:
        """Pictures are the heavy part of a page's traffic: a new strip at most every two seconds while watching."""
        due = f"{time.monotonic() // 2}" if session.watch and session.watch.running else "still"
        if session.shown.get("film due") == due != "still":
            return session.shown.get("film", "")
        session.shown["film due"] = due
        return panels.film(session.watch)

    def _changed(self, session: LiveSession, name: str, value: str):
        if session.shown.get(name) == value:
            return gr.skip()
        session.shown[name] = value
        return gr.Button(value, variant="secondary" if value == PAUSE else "primary") if name == "button" else value

    def plots(self, key: str | None) -> tuple:
        """The three plots, their axes from zero: a cut axis makes small differences look large."""
        session = self.sessions.get(key)
        if session is None:
            return (gr.skip(),) * 3
        tables = panels.plots(session)
        return tuple(
            gr.update(value=table, x_lim=[0, panels.top(table, 0)], y_lim=[0, panels.top(table, 1)]) for table in tables
        )

    def left(self, request: gr.Request) -> None:
        """The page was closed, or its connection dropped."""
        self.sessions.leave(request.session_hash)


def main_label(session: LiveSession, source: str) -> str:
    """What the main button does next. Another source than the one being watched can always be started."""
    watch = session.watch
    if watch is None or session.source != source:
        return START
    if watch.ended and not watch.columns[0].shown:
        return START
    return AGAIN if watch.ended else RESUME if watch.paused else PAUSE


def number(value: object) -> float | None:
    """A finite, non-negative number, or None."""
    try:
        value = float(value)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) and value >= 0 else None
