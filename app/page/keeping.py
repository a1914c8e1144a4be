"""The panel of keeping: a switch, what is kept and until when, Delete, and two sentences on who can read it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import gradio as gr

from app.live.face import Table
from app.live.shelf import DAYS
from app.live.view import View
from app.page.panels import NOTHING, said
from pipeline import UserError, can_encrypt

KEPT = (
    "If you switch this on, the video (of a camera or screen the pictures it sent), what the model saw and your "
    f"conversation are written to this server's disk, and stay there for {DAYS:.0f} days after the last picture was "
    "watched. "
)
PLAIN = (
    "They are not encrypted, which needs a library that this server lacks: whoever runs the server can read them, and "
    "whoever has this page's key"
)
ENCRYPTED = (
    "Whoever runs the server can read them unless you choose “Encrypt”: then all but sizes, counts and times needs "
    "this page's key, which is written to no disk of the server, so that nobody can read what is kept after this page "
    "and its browser are gone, and after a restart the stream goes on once this page is open again"
)
AND = "; Delete removes them at once, and starting another video replaces them."
# A form, because a browser then writes what comes to its disk; a key in an address would end up in logs.
TAKE = """(key) => {
    const form = document.createElement("form");
    Object.assign(form, { method: "post", action: "live/take", target: "_blank" });
    form.append(Object.assign(document.createElement("input"), { type: "hidden", name: "key", value: key }));
    document.body.append(form);
    form.submit();
    form.remove();
}"""


def add(ui: SimpleNamespace) -> None:
    """The layout; the server offers it only where it was given a folder."""
    with gr.Row(elem_id="keeping"):
        ui.keep = gr.Checkbox(label="Keep this stream", container=False, elem_id="keep", scale=0, min_width=150)
        ui.encrypt = gr.Checkbox(
            label="Encrypt", container=False, elem_id="encrypt", scale=0, min_width=90, visible=can_encrypt()
        )
        ui.kept = gr.HTML(told(NOTHING), elem_id="kept")
        ui.delete = gr.Button("Delete", size="sm", elem_id="delete", scale=0, min_width=80, visible=False)
        ui.take = gr.Button("Take along", size="sm", elem_id="take", scale=0, min_width=100, visible=False)
        ui.kept_clock = gr.Timer(2.0)
    gr.HTML(f"<p>{privacy(can_encrypt())}</p>", elem_id="privacy")


def wire(ui: SimpleNamespace, sessions: Table, page: gr.Blocks, at_once: dict[str, Any]) -> None:
    """What the switch, Delete and the clock do."""
    shown = [ui.keep, ui.encrypt, ui.kept, ui.delete, ui.take]

    def switch(on: bool, encrypt: bool, key: str | None, request: gr.Request) -> tuple:
        try:
            key, session = sessions.ensure(key, request.session_hash)
            session.keep(bool(on), bool(encrypt))
        except UserError as error:
            return key, False, gr.skip(), said(str(error)), gr.skip(), gr.skip()
        return key, *standing(session.view())

    def delete(key: str | None) -> tuple:
        try:
            if session := sessions.get(key):
                session.delete_kept()
        except UserError as error:
            gr.Warning(str(error))
        return look(key)

    def look(key: str | None) -> tuple:
        session = sessions.get(key)
        return standing(session.view() if session else NOTHING)

    ui.keep.input(switch, [ui.keep, ui.encrypt, ui.key], [ui.key, *shown], **at_once)
    ui.delete.click(delete, ui.key, shown, **at_once)
    ui.take.click(None, ui.key, None, js=TAKE)
    ui.kept_clock.tick(look, ui.key, shown, **at_once)
    page.load(look, ui.key, shown, **at_once)


def privacy(encrypts: bool) -> str:
    """What is kept, where, for how long, and who can read it, in two sentences."""
    return KEPT + (ENCRYPTED if encrypts else PLAIN) + AND


def standing(view: View) -> tuple:
    """(switch, Encrypt, what is kept in words, Delete, Take along). What is being kept stays encrypted, or not."""
    there = gr.update(visible=view.kept is not None and view.kept.nbytes > 0)
    encrypt = gr.update(value=view.encrypting, interactive=False) if view.keeping else gr.update(interactive=True)
    return view.keeping, encrypt, told(view), there, there


def told(view: View) -> str:
    """Size, date, and what should be known."""
    if view.kept is None:
        return ""
    size, until, sentence, encrypted = view.kept
    date = time.strftime("%d %B", time.localtime(until)).lstrip("0")
    how = ", encrypted" if encrypted else ""
    words = f"<span>{size / 1e6:.1f} MB, until {date}{how}</span>" if size else ""
    return words + said(sentence)
