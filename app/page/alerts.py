"""Alerts: rules in plain words with how each was read, and what was told, as a panel. A `View` in, HTML out; every word
that a visitor or a model wrote is escaped."""

from __future__ import annotations

import html
from types import SimpleNamespace
from typing import Any

import gradio as gr

from app.live.face import Table
from app.live.view import NOTHING_WATCHED, View
from app.page.panels import NOTHING, chip, said
from pipeline import Event, Rule, UserError, mmss

NEWEST = 50  # alerts in the list
HOW = "Say it in your own words: a thing and that it comes or goes, such as “tell me when the dog leaves”."
NOTIFY = (
    '<h2>Alerts</h2><button type="button" id="notify" aria-pressed="false">Notify me</button>'
    '<span id="notified" role="status"></span>'
)


def add(ui: SimpleNamespace) -> None:
    """The layout."""
    with gr.Column(elem_id="alerts", min_width=320):
        gr.HTML(NOTIFY, elem_classes="head")
        ui.rule = gr.Textbox(
            placeholder="Tell me when a person enters",
            label="Tell me when",
            show_label=False,
            container=False,
            lines=1,
            max_lines=1,
            submit_btn="Add",
            elem_id="rule",
        )
        ui.unruly = gr.HTML("", elem_id="unruly")
        ui.alerts = gr.HTML(alerts(NOTHING), elem_id="told-of")


def wire(ui: SimpleNamespace, sessions: Table, at_once: dict[str, Any]) -> None:
    """What the box for rules does; Remove is a deed of `Events`, and the clock draws the list."""

    def tell(text: str, key: str | None) -> tuple:
        """(box, sentence) for a rule; what is not taken stays in the box."""
        session = sessions.get(key)
        try:
            if session is None:
                raise UserError(NOTHING_WATCHED.format("tell of"))
            session.add_rule(text)
        except UserError as error:
            return gr.skip(), said(str(error))
        return "", ""

    ui.rule.submit(tell, [ui.rule, ui.key], [ui.rule, ui.unruly], **at_once)


def alerts(view: View) -> str:
    """The rules, then what was told, newest first."""
    rules = "".join(_rule(rule) for rule in view.rules)
    told = told_of(view)
    lines = "".join(_alert(event, view) for event in told[: -NEWEST - 1 : -1])
    more = f"<li>{len(told) - NEWEST:,} earlier ones are marks on the timeline.</li>" if len(told) > NEWEST else ""
    waiting = "<p>Nothing to tell of yet.</p>" if view.rules and not told else ""
    rules = f'<ul class="rules">{rules}</ul>' if rules else f"<p>{HOW}</p>"
    listed = f'<ol class="alerts" data-stream="{view.stream}">{lines}{more}</ol>' if lines else waiting
    return f'<div data-stream="{view.stream}">{rules}{listed}</div>'


def told_of(view: View) -> list[Event]:
    """The alerts in order of time; where two rules told the same, once."""
    told = {(event.time, event.text): event for event in view.events if event.kind == "alert"}
    return sorted(told.values(), key=lambda event: event.time)


def _rule(rule: Rule) -> str:
    text = html.escape(rule.text)
    read = f"You are told: “{html.escape(rule.says)}”"
    if rule.says == rule.text:
        read = "The model is asked every other second whether it is so."
    remove = f'<button type="button" data-deed="untell {rule.number}" aria-label="Remove: {text}">Remove</button>'
    return f"<li><span><q>{text}</q><small>{read}</small></span>{remove}</li>"


def _alert(event: Event, view: View) -> str:
    """Its picture and second, what came true, and on demand the pictures it rests on."""
    pictures = {picture.time: picture.jpeg for picture in view.alerted}
    sure = event.time if event.until is None else event.until
    why = f"So at {mmss(event.time)}, and still at {mmss(sure)}; score {event.weight:.2f} of 1."
    rests_on = "".join(
        chip(at, pictures[at], event.weight) for at in sorted({event.time, sure}) if pictures.get(at) is not None
    )
    text = html.escape(event.text)
    named = f"Clip around {mmss(event.time)}"
    clip = f'<button type="button" data-clip="{event.time:.3f}" aria-label="{named}">Clip</button>'
    return (
        f'<li data-alert="{event.time:.3f} {text}" data-words="{mmss(event.time)} {text}">'
        f'{chip(event.time, pictures.get(event.time))}<div><strong>{text}</strong><details class="facts">'
        f'<summary>Why</summary><span>{why}</span><div class="moments">{rests_on}</div></details></div>'
        f"{clip}</li>"
    )
