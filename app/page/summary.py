"""Summary: what a stream was about, as a few chapters with their times, and questions about what was seen in it.

A `View` in, HTML and words out; every word that a model wrote is escaped.
"""

from __future__ import annotations

import html
from types import SimpleNamespace

import gradio as gr

from app.live.view import View
from app.page.panels import NOTHING
from pipeline import Event, chapters, mmss, suggestions, summary

ALWAYS = ("What is happening now?", "Describe the video so far.")
OTHERWISE = ("What did you see at 0:10?", "When does a person appear?", "How many scenes were there?", "What is shown?")
ASKED = 6  # suggested questions
UNSURE = "I am not sure what this is."
EMPTY = "<p>A few chapters with their times stand here as soon as something was seen.</p>"


def add(ui: SimpleNamespace) -> None:
    """The layout; the clock draws it."""
    with gr.Column(elem_id="summary", min_width=320):
        ui.summary = gr.HTML(chaptered(NOTHING), elem_classes="head")


def chaptered(view: View) -> str:
    """The chapters so far, with times that seek where the player can."""
    lines = "".join(_line(chapter, view) for chapter in chapters_of(view))
    text = html.escape(summary(view.events, view.seen_until) if lines else "")
    copy = f'<button type="button" data-copy="{text}">Copy</button>' if lines else ""
    return f"<h2>Summary</h2>{copy}{f'<ol>{lines}</ol>' if lines else EMPTY}"


def chapters_of(view: View) -> tuple[Event, ...]:
    """Those of a stream that is over, else what they would be if it were."""
    over = tuple(event for event in view.events if event.kind == "chapter")
    return over or (chapters(view.events, view.seen_until) if view.seen_until else ())


def _line(chapter: Event, view: View) -> str:
    end = mmss(view.seen_until if chapter.until is None else chapter.until)
    start = mmss(chapter.time)
    go = f'<button type="button" class="time" data-seek="{chapter.time:.3f}">{start}</button>'
    return f"<li><span>{start if view.live else go} to {end}</span> {html.escape(chapter.text or UNSURE)}</li>"


def suggested(view: View) -> tuple[str, ...]:
    """ASKED questions: two that always fit, those about what was seen, and others while little was."""
    seen = suggestions(view.events, view.seen_until)
    return tuple(dict.fromkeys((*ALWAYS, *seen, *OTHERWISE)))[:ASKED]
