"""The summary and the suggested questions, from what was seen; and what can be taken along: copies, links and paper."""

from __future__ import annotations

import itertools
from dataclasses import replace

import gradio as gr
import pytest

from app.live.view import ModelView, Phase, View
from app.page.handlers import _resting
from app.page.summary import ASKED, UNSURE, chaptered, suggested
from pipeline import Event
from tests.page.conftest import ask, player_time, state

SEEN = View(
    phase=Phase.WATCHING,
    models=(ModelView("a", "cpu", frames=90, seen_until=90.0),),
    events=(
        Event(0.0, "shot", until=40.0),
        Event(0.0, "caption", "A <b>dog</b>.", until=40.0),
        Event(40.0, "shot"),
        Event(40.0, "caption", "A dog.", until=80.0),
    ),
)


def test_while_it_is_watched_the_chapters_are_those_so_far():
    html = chaptered(SEEN)
    assert html.count("<li>") >= 2 and "A &lt;b&gt;dog" in html and "<b>" not in html
    assert 'data-seek="0.000"' in html and "to 1:30" in html
    assert "data-seek" not in chaptered(replace(SEEN, live=True)), "a camera cannot be sought"
    assert "<li>" not in chaptered(View()) and "data-copy" not in chaptered(View())


def test_of_a_stream_that_is_over_they_are_its_own():
    over = replace(SEEN, events=(*SEEN.events, Event(0.0, "chapter", "", 1.0, 90.0)))
    assert chaptered(over).count("<li>") == 1 and UNSURE in chaptered(over)


def test_suggested_questions_are_about_what_was_seen_and_always_as_many():
    asked = suggested(SEEN)
    assert "When does a dog appear?" in asked and "When does a person appear?" not in asked
    assert len(asked) == len(set(asked)) == len(suggested(View())) == ASKED
    assert "When does a person appear?" in suggested(View()), "while nothing was seen"


def test_they_do_not_move_under_a_pointer_and_are_sent_once():
    shown: dict[str, str] = {}
    first = _resting(View(), shown, held=True)
    assert all(isinstance(value, str) for value in first), "a page that shows nothing yet"
    assert all(value == gr.skip() for value in _resting(SEEN, shown, held=True))
    over = replace(SEEN, phase=Phase.ENDED)
    assert "When does a dog appear?" in _resting(over, shown, held=False)
    assert all(value == gr.skip() for value in _resting(over, shown, held=False))


@pytest.mark.browser
def test_the_page_has_chapters_that_seek_and_suggests_what_was_seen(visitor, sessions, monkeypatch):
    monkeypatch.setattr(sessions.engine.model, "shows", lambda _, start, end: "A dog." if start < 36 else "A cat.")
    page = visitor()
    page.click("#go")
    state(page, "Ended")
    page.wait_for_selector("#summary li:has-text('A cat.')")
    assert page.inner_text("#summary li >> nth=0").endswith("A dog.")
    page.click("#summary li:has-text('A cat.') button")
    assert 30 < player_time(page) < 40
    page.click("#suggestions button:has-text('When does a dog appear?')")
    page.wait_for_selector("#chat .user-row:has-text('When does a dog appear?')")
    page.mouse.move(1, 1)
    ask(page, "And then?")
    taken_along(page)
    printed(page)


def taken_along(page) -> None:
    """The answer, links to its question and its moment, and the summary; a link to a question goes there."""
    page.evaluate(
        "() => { window.copied = []; navigator.clipboard.writeText = async (words) => { window.copied.push(words); }; }"
    )
    for button in ("#chat [data-copy]", "#chat [data-link^=q]", "#chat [data-link^=t]", "#summary [data-copy]"):
        page.click(f"{button} >> nth=-1")
        page.wait_for_selector(f"{button}:has-text('Copied')")
    answer, question, moment, summary = page.evaluate("window.copied")
    assert answer.startswith("And then?\n71 frames") and question.endswith("/#q=2") and "/#t=0:3" in moment
    assert summary.splitlines()[0].startswith("0:00 to 0:") and summary.endswith("A cat.")
    page.evaluate("location.hash = '#q=1'")
    page.wait_for_selector("#q-1.named")


def printed(page) -> None:
    """Every message, one under the other, on paper of its own; nothing that is there to be pressed."""
    page.emulate_media(media="print")
    rows = [row.bounding_box() for row in page.locator("#chat .message-row").all()]
    assert len(rows) == 6 and all(a["y"] + a["height"] <= b["y"] + 1 for a, b in itertools.pairwise(rows))
    assert rows[-1]["y"] + rows[-1]["height"] <= page.locator("#summary").bounding_box()["y"]
    for part in ("#question", "#go", "#stage", "#alerts", "#strip", "#chat [data-copy] >> nth=0"):
        assert not page.is_visible(part), part
    assert page.is_visible("#summary li >> nth=1") and page.is_visible("#chat .chip >> nth=0")
