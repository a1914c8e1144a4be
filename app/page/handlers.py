"""What happens when a visitor does something: one small method an event, from component values to component updates.

Every argument is treated as hostile (Gradio's routes can be called with anything). A visitor's session is found by its
key alone; of a stream nothing is read but its `View`. Nothing here waits for a chunk: watching has its own thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from app.live.conversation import clean, number
from app.live.session import LiveSession
from app.live.table import Sessions
from app.live.view import EXAMPLE, UPLOAD, WEBCAM, Phase, View
from app.page import panels
from app.page.panels import NOTHING
from app.page.plots import plots
from app.page.shown import Shown
from pipeline import UserError

START, PAUSE, RESUME, AGAIN = "Start", "Pause", "Resume", "Watch again"


class Events:
    """The handlers of one page; `sessions` is the only thing behind them."""

    def __init__(self, sessions: Sessions, example: Path) -> None:
        self.sessions, self.example, self.shown = sessions, example, Shown()

    # The source

    def choose(self, source: str) -> tuple:
        """Shows the chosen source. What is being watched goes on until something else is started."""
        return tuple(gr.update(visible=source == name) for name in (UPLOAD, WEBCAM, EXAMPLE))

    def uploaded(self, path: str, key: str | None, request: gr.Request) -> tuple:
        """(key, state line, main button) after a file has arrived: it is watched at once."""
        return self._started(key, request, UPLOAD, lambda session: session.open_file(path, UPLOAD, Path(path).name))

    def camera(self, rgb: np.ndarray | None, key: str | None, request: gr.Request) -> tuple:
        """(key, state line) after a camera picture. The picture is queued or dropped; this returns at once."""
        if rgb is None:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            key, session = self.sessions.ensure(key, request.session_hash)
            session.offer(rgb)
        except UserError as error:
            return key, panels.state_line(NOTHING, sentence=str(error)), gr.skip()
        return key, gr.skip(), gr.skip()

    def press(self, label: str, source: str, path: str | None, key: str | None, request: gr.Request) -> tuple:
        """(key, state line, main button) after the main button, which does what its label says."""
        session = self.sessions.get(key)
        if label == PAUSE and session:
            session.pause()
        elif label == RESUME and session:
            session.resume()
        elif label == AGAIN and session:
            return self._started(key, request, source, LiveSession.again)
        elif source == EXAMPLE:
            return self._started(key, request, source, lambda one: one.open_file(self.example, EXAMPLE))
        elif source == WEBCAM:
            return self._started(key, request, source, LiveSession.open_camera)
        elif path:
            return self.uploaded(path, key, request)
        else:
            sentence = "There is no file yet, so choose one above."
            return key, panels.state_line(_seen(session), sentence=sentence), gr.skip()
        return key, *_standing(_seen(session), source)

    def reset(self, key: str | None) -> tuple:
        """(state line, main button, both chats, upload) with everything forgotten."""
        session = self.sessions.get(key)
        if session:
            session.reset()
        return *_standing(_seen(session), ""), [], [], None

    def restore(self, key: str, request: gr.Request) -> tuple:
        """(key, source, compare switch, both chats, upload) of a loaded page: a reload finds its stream again."""
        session = self.sessions.get(key, request.session_hash)
        if session is None:
            return key if self.sessions.awaits(key) else self.sessions.issue(), *(gr.skip(),) * 5
        view = session.view()
        self.shown.forget(request.session_hash)
        chats = [panels.messages(turns, gr.HTML) for turns in view.conversations]
        return key, view.source or gr.skip(), view.comparing, *chats, view.upload or gr.skip()

    def compare(self, on: bool, key: str | None, request: gr.Request) -> tuple:
        """(key, second chat, what both cost, state line)."""
        view, sentence = NOTHING, ""
        try:
            key, session = self.sessions.ensure(key, request.session_hash)
            session.compare(bool(on))
            view = session.view()
        except UserError as error:
            sentence = str(error)
        shown = gr.update(visible=view.comparing)
        return key, shown, shown, panels.state_line(view, sentence=sentence)

    def _started(self, key: str | None, request: gr.Request, source: str, start: Callable) -> tuple:
        try:
            key, session = self.sessions.ensure(key, request.session_hash)
            start(session)
        except UserError as error:
            return key, panels.state_line(NOTHING, sentence=str(error)), gr.skip()
        return key, *_standing(session.view(), source)

    # The chat

    def accept(self, text: str, pinned: bool, player: float, key: str | None, request: gr.Request) -> tuple:
        """(key, question box, number of the question in hand) for a question that was sent."""
        text = clean(text)
        if not text:
            return gr.skip(), gr.skip(), ""
        try:
            key, session = self.sessions.ensure(key, request.session_hash)
            at = number(player) if pinned and session.view().source != WEBCAM else None
            return key, "", str(session.ask(text, at))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def answer(self, model: int, question: str, key: str | None) -> Iterator:
        """Yields the chat of a model while its answer to the question of that number grows."""
        session, asked = self.sessions.get(key), number(question)
        if session is None or asked is None:
            yield gr.skip()
            return
        sent = 0.0
        try:
            for _ in session.answer(int(asked), model):
                if time.monotonic() - sent > 0.08:  # a slow line gets fewer, longer steps
                    sent = time.monotonic()
                    yield self.chat(session, model)
            yield self.chat(session, model)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def chat(self, session: LiveSession, model: int) -> list[dict]:
        return panels.messages(session.view().conversations[model], gr.HTML)

    def stop(self, key: str | None) -> None:
        session = self.sessions.get(key)
        if session:
            session.stop_answer()

    def retry(self, key: str | None) -> str:
        """The number of the newest question, asked once more; its old turn stays until the new answer begins."""
        session = self.sessions.get(key)
        asked = session.retry() if session else None
        return "" if asked is None else str(asked)

    def clear(self, key: str | None) -> tuple:
        session = self.sessions.get(key)
        if session:
            session.clear_chat()
        return [], []

    # The clock

    def tick(self, player: float, source: str, key: str | None, request: gr.Request) -> tuple:
        """(state line, spoken state, metrics, film, main button, key, plots), where this page shows another."""
        session = self.sessions.get(key, request.session_hash)
        if session is None:
            return (gr.skip(),) * 7 if not key or self.sessions.awaits(key) else self._gone(request.session_hash)
        view, shown = session.view(), self.shown.of(request.session_hash)
        player = (number(player) or 0.0) if source == view.source else 0.0
        kind, word, detail = view.told(player)
        values = {
            "line": panels.state_line(view, player),
            "spoken": f"{word.split(' at ')[0]}. {detail}" if kind == "error" else kind,
            "metrics": panels.metrics(view),
            "film": _film(view, shown),
            "button": main_label(view, source),
        }
        return (
            *(_changed(shown, name, value) for name, value in values.items()),
            gr.skip(),
            _changed(shown, "plots", plots(view)),
        )

    def _gone(self, page: str | None) -> tuple:
        """What a page shows that slept for so long that its session is over."""
        self.shown.forget(page)
        sentence = "This page was away for long, so its stream was ended and deleted; start it again."
        line = panels.state_line(NOTHING, sentence=sentence)
        return line, sentence, panels.metrics(NOTHING), "", gr.Button(START, variant="primary"), "", ""

    def left(self, request: gr.Request) -> None:
        """The page was closed, or its connection dropped."""
        self.sessions.leave(request.session_hash)
        self.shown.forget(request.session_hash)


def main_label(view: View, source: str) -> str:
    """What the main button does next. Another source than the one being watched can always be started."""
    if view.phase is Phase.IDLE or view.source != source:
        return START
    if view.phase is Phase.ENDED:
        return AGAIN if view.frames else START
    return RESUME if view.phase in (Phase.PAUSED, Phase.STOPPED) else PAUSE


def _button(label: str) -> gr.Button:
    return gr.Button(label, variant="secondary" if label == PAUSE else "primary")


def _standing(view: View, source: str) -> tuple[str, gr.Button]:
    """The state line and the main button, which never disagree. source: what the page has chosen."""
    return panels.state_line(view), _button(main_label(view, source))


def _seen(session: LiveSession | None) -> View:
    return session.view() if session else NOTHING


def _film(view: View, shown: dict[str, str]) -> str:
    """Pictures are the heavy part of a page's traffic: a new strip at most every two seconds while watching."""
    due = f"{time.monotonic() // 2}" if view.phase is Phase.WATCHING else "still"
    if shown.get("film due") == due != "still":
        return shown.get("film", "")
    shown["film due"] = due
    return panels.film(view.film)


def _changed(shown: dict[str, str], name: str, value: str) -> Any:
    """The update of one component; nothing where the page shows the value already."""
    if shown.get(name) == value:
        return gr.skip()
    shown[name] = value
    return _button(value) if name == "button" else value
