"""The panel of going back: on from an earlier second, a what-if beside the stream, another video after what was seen.

All of these are forks, which leave the stream as it is: it stays under "My streams".
"""

from __future__ import annotations

import html
import math
from types import SimpleNamespace
from typing import Any

import gradio as gr

from app.live.conversation import number
from app.live.face import Table
from app.live.view import SCREEN, WEBCAM, View
from app.page.panels import NOTHING, said
from pipeline import UserError, parse_mmss

WHAT = (
    "<p>Go back to a moment, ask there what you like, and press Resume to go on. Nothing is lost: this makes a second "
    "stream, and the one it comes from stays under “My streams”.</p>"
)
JOINS = "The next video or camera that I start goes on from what was seen"
# What the page knows of its stream is asked anew, under the fork's key.
OPEN = "(key) => { sessionStorage.setItem('vamba-live', key); document.querySelector('#open')?.click(); }"
PLAYER = "(...values) => { values[1] = window.vambaPlayerTime?.() ?? 0; return values; }"


def add(ui: SimpleNamespace) -> None:
    """The layout: closed at first, open by its title."""
    ui.forked = gr.HTML("", elem_id="forked")
    with gr.Accordion("Go back, ask what if, or go on with another video", open=False, elem_id="forking"):
        gr.HTML(WHAT)
        with gr.Row():
            ui.back_to = gr.Textbox(
                placeholder="12:40; empty: where the player is",
                label="The moment to go on from",
                show_label=False,
                container=False,
                elem_id="back-to",
            )
            ui.back = gr.Button("Go on from there", size="sm", elem_id="back", scale=0, min_width=140)
        ui.joins = gr.Checkbox(label=JOINS, container=False, elem_id="joins")


def wire(ui: SimpleNamespace, sessions: Table, page: gr.Blocks, at_once: dict[str, Any]) -> None:
    """What the button and the switch do, and what a page shows whose stream is a fork."""

    def back(text: str, player: float, key: str | None, request: gr.Request) -> tuple:
        session = sessions.get(key)
        try:
            at = moment(text, player, session.view() if session else NOTHING)
            key, _ = sessions.fork(key, at, request.session_hash)
        except UserError as error:
            return key, gr.skip(), said(str(error))
        return key, "", ""

    def look(key: str | None) -> tuple:
        session = sessions.get(key)
        return told(session.view() if session else NOTHING), False

    shown = [ui.forked, ui.joins]
    forked = gr.on(
        [ui.back.click, ui.back_to.submit],
        back,
        [ui.back_to, ui.player, ui.key],
        [ui.key, ui.back_to, ui.said],
        js=PLAYER,
        **at_once,
    )
    forked.then(None, ui.key, None, js=OPEN)
    ui.key.change(look, ui.key, shown, **at_once)
    page.load(look, ui.key, shown, **at_once)


def moment(text: str, player: float, view: View) -> float:
    """The second that is meant: the one written, else the player's, of a camera now. Raises UserError."""
    if text.strip():
        return parse_mmss(text)
    return math.inf if view.source in (WEBCAM, SCREEN) else max(number(player) or 0.0, 0.0)


def told(view: View) -> str:
    """Of what the stream is a fork."""
    return f"<p>{html.escape(view.forked)}</p>" if view.forked else ""
