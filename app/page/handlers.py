"""What happens when a visitor does something: one small method an event, from component values to component updates.

Every argument is treated as hostile (Gradio's routes can be called with anything). A visitor's session is found by its
key alone; of a stream nothing is read but its `View`. Nothing here waits for a chunk: watching has its own thread.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from app.live.conversation import clean, number, refusal
from app.live.face import Session, Table
from app.live.view import EXAMPLE, SCREEN, UPLOAD, WEBCAM, Phase, View
from app.page import chat, panels, saved
from app.page.alerts import alerts
from app.page.panels import NOTHING, said
from app.page.plots import plots
from app.page.recalled import recalled
from app.page.shown import Shown
from app.page.summary import ASKED, chaptered, suggested
from app.page.timeline import timeline
from pipeline import UserError

START, PAUSE, RESUME, AGAIN, SWITCH_ON = "Start", "Pause", "Resume", "Watch again", "Switch on"
WATCHED = "Watched for all"  # a button that cannot be pressed
CAMERAS = (WEBCAM, SCREEN)
DRAWN = 10 + ASKED  # components that the clock draws
REFUSED = {  # why a browser gives no pictures, and what helps
    "denied": "The browser was not allowed to use the camera, so nothing is watched; allow it beside the page's "
    "address, then press the button again.",
    "missing": "No camera was found, so nothing is watched; connect one, or share your screen.",
    "busy": "Another program uses the camera, so nothing is watched; end it there, then press the button again.",
    "insecure": "Browsers give cameras to pages on https or localhost only, so nothing is watched; open it there.",
    "unshared": "No screen was chosen, so nothing is watched; press the button again and choose one.",
    "unsupported": "This browser cannot share its screen, so nothing is watched; use the webcam, or another browser.",
}


class Events:
    """The handlers of one page; `sessions` is the only thing behind them."""

    def __init__(self, sessions: Table, example: Path) -> None:
        self.sessions, self.example, self.shown = sessions, example, Shown()
        self.wishes: dict[str, Callable[[Session], Any]] = {}  # by key, of those who wait for a place

    # The source

    def choose(self, source: str) -> tuple:
        """Shows the chosen source. What is being watched goes on until something else is started."""
        shared = source in self.sessions.shared
        return tuple(gr.update(visible=one) for one in (source == UPLOAD, source in CAMERAS, source == EXAMPLE, shared))

    def uploaded(self, path: str, key: str | None, request: gr.Request, joins: bool = False) -> tuple:
        """(key, state line, main button) after a file has arrived: it is watched at once."""
        name = Path(path).name
        return self._started(
            key, request, UPLOAD, lambda session: session.open_file(path, UPLOAD, name), Path(path), joins
        )

    def press(
        self,
        label: str,
        source: str,
        path: str | None,
        key: str | None,
        request: gr.Request,
        refused: str = "",
        joins: bool = False,
    ) -> tuple:
        """(key, state line, main button) after the main button, which does what its label says.

        refused: why the browser gave no camera, in a word, or "". joins: what is started goes on from what was seen.
        """
        session = self.sessions.get(key)
        if refused:
            sentence = REFUSED.get(refused, REFUSED["denied"])
            return key, panels.state_line(NOTHING, sentence=sentence), _button(main_label(_seen(session), source))
        if shared := self.sessions.shared.get(source):
            return self._started(key, request, source, lambda one: one.open_shared(shared))
        if label == PAUSE and session:
            session.pause()
        elif label in (RESUME, SWITCH_ON) and session:
            session.resume()
        elif label == AGAIN and session and not joins:
            return self._started(key, request, source, lambda one: one.again())
        elif source == EXAMPLE:
            example = self.example
            return self._started(key, request, source, lambda one: one.open_file(example, EXAMPLE), example, joins)
        elif source in CAMERAS:
            return self._started(key, request, source, lambda one: one.open_camera(source), joins=joins)
        elif path:
            return self.uploaded(path, key, request, joins)
        else:
            sentence = "There is no file yet, so choose one above."
            return key, panels.state_line(_seen(session), sentence=sentence), gr.skip()
        return key, *_standing(_seen(session), source)

    def reset(self, key: str | None) -> tuple:
        """(state line, main button, both chats, upload, undo button, its timer) with everything forgotten."""
        session = self.sessions.get(key)
        if session:
            session.reset()
        return *_standing(_seen(session), ""), [], [], None, *self.undoable(key)

    def restore(self, key: str, request: gr.Request) -> tuple:
        """(key, source, compare switch, both chats, upload) of a loaded page: a reload finds its stream again."""
        try:
            session = self.sessions.bring_back(key, request.session_hash, by_force=True)
        except UserError as error:
            gr.Warning(str(error))
            session = None
        if session is None:
            return key if self.sessions.awaits(key) else self.sessions.issue(), *(gr.skip(),) * 5
        view = session.view()
        self.shown.forget(request.session_hash)
        return key, view.source or gr.skip(), view.comparing, *self.chats(session), view.upload or gr.skip()

    def compare(self, on: bool, key: str | None, request: gr.Request) -> tuple:
        """(key, second chat, what both cost, state line). What was asked before is in the second chat too."""
        view, sentence = NOTHING, ""
        try:
            key, session = self.sessions.ensure(key, request.session_hash)
            session.compare(bool(on))
            view = session.view()
        except UserError as error:
            sentence = str(error)
        second = gr.update(value=chat.messages(view, 1, gr.HTML), visible=view.comparing)
        return key, second, gr.update(visible=view.comparing), panels.state_line(view, sentence=sentence)

    def _started(
        self,
        key: str | None,
        request: gr.Request,
        source: str,
        start: Callable,
        path: Path | None = None,
        joins: bool = False,
    ) -> tuple:
        """joins: the source, at this path where it is a file, goes on from what was seen, in a fork."""
        try:
            session = self.sessions.get(key)
            if joins and session and session.view().frames:
                key, session = self.sessions.join(key, source, path, request.session_hash)
            else:
                key, session = self.sessions.ensure(key, request.session_hash)
                start(session)
        except UserError as error:
            return key, self._waits(key, start) or _refused(error), gr.skip()
        return key, *_standing(session.view(), source)

    # A place

    def _waits(self, key: str | None, start: Callable) -> str:
        """The state line of who found every place taken, and waits for one; "" for who failed at something else."""
        if key is None or not self.sessions.awaits(key):
            return ""
        self.sessions.wait(key)
        self.wishes = {one: wish for one, wish in self.wishes.items() if self.sessions.awaits(one)} | {key: start}
        spot = self.sessions.in_line(key)
        return panels.state_line(NOTHING, told=panels.in_line(spot.place, spot.seconds)) if spot else ""

    def _in_line(self, source: str, key: str, request: gr.Request) -> tuple:
        """What a page shows that has no stream: where it stands in line, if it waits; and what it wished for begins
        when its turn comes. As `tick`."""
        spot, shown = self.sessions.in_line(key), self.shown.of(request.session_hash)
        nothing = (gr.skip(),) * DRAWN
        if spot is None:
            return nothing
        if spot.free and key in self.wishes:
            _, line, button = self._started(key, request, source, self.wishes.pop(key))
            return line, "Your place is free.", gr.skip(), gr.skip(), button, *nothing[5:]
        told = panels.in_line(spot.place, spot.seconds)
        line = _changed(shown, "line", panels.state_line(NOTHING, told=told))
        return line, _changed(shown, "spoken", told.word), *nothing[2:]

    # The chat

    def accept(self, text: str, pinned: bool, player: float, key: str | None, request: gr.Request) -> tuple:
        """(key, question box, sentence) for a question that was sent. What is not taken stays in the box."""
        text = clean(text)
        sentence = refusal(text)
        if not sentence:
            try:
                key, session = self.sessions.ensure(key, request.session_hash)
                at = number(player) if pinned and not session.view().live else None
                session.ask(text, at)
                return key, "", ""
            except UserError as error:
                sentence = str(error)
        return key, gr.skip(), said(sentence)

    def follow(self, model: int, key: str | None, request: gr.Request) -> Iterator:
        """Yields the chat of a model while something is being written or waits. Of several that follow for one page
        the newest goes on alone."""
        session, shown = self.sessions.get(key), self.shown.of(request.session_hash)
        if session is None:
            yield gr.skip()
            return
        mine = shown[f"follows {model}"] = secrets.token_hex(4)
        sent = 0.0
        for _ in session.follow(model):
            if shown.get(f"follows {model}") != mine:
                return
            if time.monotonic() - sent > 0.08:  # a slow line gets fewer, longer steps
                sent = time.monotonic()
                yield self.chat(session, model)
        yield self.chat(session, model)

    def chat(self, session: Session, model: int) -> list[dict]:
        return chat.messages(session.view(), model, gr.HTML)

    def chats(self, session: Session) -> tuple:
        return self.chat(session, 0), self.chat(session, 1)

    def stop(self, key: str | None) -> None:
        session = self.sessions.get(key)
        if session:
            session.stop_answer()

    def retry(self, key: str | None) -> str:
        """A sentence where there is nothing to ask again."""
        session = self.sessions.get(key)
        if session and session.retry() is not None:
            return ""
        if session and session.view().answering:
            return said("This question is being asked again already; wait for its answer, or press Stop.")
        return said("Nothing was asked yet, so there is nothing to ask again.")

    def deed(self, words: str, key: str | None) -> tuple:
        """(both chats) after a button within the conversation: "withdraw 3", "wrong 3 0" or "right 3 0"; or in the
        list of rules, "untell 3"."""
        session, deed = self.sessions.get(key), str(words).split(" ")
        numbers = [int(part) for part in deed[1:3] if part.isdecimal() and part.isascii() and len(part) < 10]
        if session is None:
            return gr.skip(), gr.skip()
        if deed[0] == "withdraw" and len(numbers) == 1:
            session.withdraw(numbers[0])
        elif deed[0] == "untell" and len(numbers) == 1:
            session.remove_rule(numbers[0])
        elif deed[0] in ("wrong", "right") and len(numbers) == 2:
            session.mark(numbers[0], numbers[1], deed[0] == "wrong")
        return self.chats(session)

    def clear(self, key: str | None) -> tuple:
        """(both chats, undo button, its timer)."""
        session = self.sessions.get(key)
        if session:
            session.clear_chat()
        return [], [], *self.undoable(key)

    def undo(self, key: str | None) -> tuple:
        """(state line, both chats, upload, source, sentence, undo button, its timer)."""
        session = self.sessions.get(key)
        done = session is not None and session.undo()
        if session is None or not done:
            sentence = "It was too long ago to be taken back, or something else was started since."
            return *(gr.skip(),) * 5, said(sentence), *self.undoable(key)
        view = session.view()
        source = view.source or gr.skip()
        return panels.state_line(view), *self.chats(session), view.upload, source, "", *self.undoable(key)

    def undoable(self, key: str | None) -> tuple:
        """(undo button, its timer): there while something can be taken back."""
        session = self.sessions.get(key)
        deed = session.view().undo if session else ""
        return gr.update(value=f"Undo {deed}", visible=bool(deed)), gr.Timer(active=bool(deed))

    def markdown(self, key: str | None) -> str:
        return saved.as_markdown(_seen(self.sessions.get(key)))

    def json(self, key: str | None) -> str:
        return saved.as_json(_seen(self.sessions.get(key)))

    def vtt(self, key: str | None) -> str:
        return saved.as_vtt(_seen(self.sessions.get(key)))

    def srt(self, key: str | None) -> str:
        return saved.as_srt(_seen(self.sessions.get(key)))

    def csv(self, key: str | None) -> str:
        return saved.as_csv(_seen(self.sessions.get(key)))

    # The clock

    def tick(
        self,
        player: float,
        source: str,
        key: str | None,
        request: gr.Request,
        filming: bool = True,
        held: bool = False,
    ) -> tuple:
        """(state line, spoken state, metrics, film, main button, key, plots, alerts, summary, suggested questions,
        what was recalled), where this page shows another.

        filming, held: whether this page films, and whether what a pointer is over must not move now.
        """
        session = self.sessions.get(key, request.session_hash)
        if session is None and key and not self.sessions.awaits(key):
            return self._gone(request.session_hash)
        if session is None:
            return self._in_line(source, key or "", request)
        view, shown = session.view(), self.shown.of(request.session_hash)
        player = (number(player) or 0.0) if source == view.source else 0.0
        kind, word, detail = view.told(player)
        values = {
            "line": panels.state_line(view, player),
            "spoken": f"{word.split(' at ')[0]}. {detail}" if kind == "error" else kind,
            "metrics": panels.metrics(view),
            "film": _film(view, shown, held),
            "button": main_label(view, source, filming),
        }
        return (
            *(_changed(shown, name, value) for name, value in values.items()),
            gr.skip(),
            _changed(shown, "plots", plots(view)),
            _changed(shown, "alerts", alerts(view)),
            *_resting(view, shown, held),
            _changed(shown, "recalled", recalled(view)),
        )

    def _gone(self, page: str | None) -> tuple:
        """What a page shows that slept for so long that its session is over."""
        self.shown.forget(page)
        sentence = "This page was away for long, so its stream was ended and deleted; start it again."
        line = panels.state_line(NOTHING, sentence=sentence)
        return line, sentence, panels.metrics(NOTHING), "", _button(START), "", "", *_blank()

    def left(self, request: gr.Request) -> None:
        """The page was closed, or its connection dropped."""
        self.sessions.leave(request.session_hash)
        self.shown.forget(request.session_hash)


def main_label(view: View, source: str, filming: bool = True) -> str:
    """What the main button does next. Another source than the one being watched can always be started."""
    if view.phase is Phase.IDLE or view.source != source:
        return START
    if view.shared:
        return WATCHED
    if view.phase is Phase.ENDED:
        return AGAIN if view.frames else START
    if view.phase in (Phase.PAUSED, Phase.STOPPED):
        return RESUME
    return SWITCH_ON if view.live and view.silent and not filming else PAUSE


def _button(label: str) -> gr.Button:
    quiet = label in (PAUSE, WATCHED)
    return gr.Button(label, variant="secondary" if quiet else "primary", interactive=label != WATCHED)


def _standing(view: View, source: str) -> tuple[str, gr.Button]:
    """The state line and the main button, which never disagree. source: what the page has chosen."""
    return panels.state_line(view), _button(main_label(view, source))


def _refused(error: UserError) -> str:
    return panels.state_line(NOTHING, sentence=str(error))


def _seen(session: Session | None) -> View:
    return session.view() if session else NOTHING


def _blank() -> tuple:
    """(alerts, summary, suggested questions, what was recalled) of no stream."""
    return alerts(NOTHING), chaptered(NOTHING), *suggested(NOTHING), recalled(NOTHING)


def _film(view: View, shown: dict[str, str], held: bool) -> str:
    """Pictures are the heavy part of a page's traffic: a new strip at most every two seconds while watching, and none
    while it is held, under a pointer or a finger that is about to choose."""
    if held and shown.get("film"):
        return shown["film"]
    due = f"{time.monotonic() // 2}" if view.phase is Phase.WATCHING else "still"
    if shown.get("film due") == due != "still":
        return shown.get("film", "")
    shown["film due"] = due
    return timeline(view)


def _resting(view: View, shown: dict[str, str], held: bool) -> tuple:
    """(summary, suggested questions), where this page shows others: what is read and pressed is not to move, so they
    change every ten seconds while watching."""
    when = f"{time.monotonic() // 10}" if view.phase is Phase.WATCHING else f"{len(view.events)} events"
    due = f"{view.stream}: {when}"
    if shown.get("resting due") == due or (held and "summary" in shown):
        return (gr.skip(),) * (1 + ASKED)
    shown["resting due"] = due
    values = {f"asked {number}": words for number, words in enumerate(suggested(view))}
    return tuple(_changed(shown, name, value) for name, value in {"summary": chaptered(view), **values}.items())


def _changed(shown: dict[str, str], name: str, value: str) -> Any:
    """The update of one component; nothing where the page shows the value already."""
    if shown.get(name) == value:
        return gr.skip()
    shown[name] = value
    return _button(value) if name == "button" else value
