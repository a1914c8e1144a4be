"""A saved conversation also tells what happened when, and what it cost."""

from __future__ import annotations

import json

from app.live.view import ModelView, Sample, View
from app.page.saved import as_csv, as_json, as_markdown
from pipeline import Event, Rule

EVENTS = (
    Event(0.0, "shot", until=9.0),
    Event(4.0, "alert", "A person came into view.", 0.8, 5.0),
    Event(2.0, "caption", "A *dog*.", until=8.0),
    Event(0.0, "chapter", "A dog.", 1.0, 9.0),
)
VIEW = View(
    file_name="a.mp4",
    events=EVENTS,
    rules=(Rule("a person", "A person came into view.", 10.0, 1),),
    models=(ModelView("Small", "cpu", samples=(Sample(8.0, 21.5, 100, 2_000),)),),
)


def test_json_has_events_in_order_rules_and_costs():
    saved = json.loads(as_json(VIEW))
    assert [(one["time"], one["kind"]) for one in saved["events"]] == [
        (0, "chapter"),
        (0, "shot"),
        (2, "caption"),
        (4, "alert"),
    ]
    assert saved["rules"][0]["says"] == "A person came into view." and saved["costs"]["Small"][0]["ms"] == 21.5


def test_markdown_tells_what_happened_and_no_markup_of_others():
    text = as_markdown(VIEW)
    assert text.endswith(
        "## What happened\n\n- 0:00 chapter: A dog.\n- 0:02 caption: A \\*dog\\*.\n"
        "- 0:04 alert: A person came into view.\n"
    )
    assert "What happened" not in as_markdown(View())


def test_costs_of_nothing_are_a_line_of_names():
    assert as_csv(View()) == "model,at_s,ms_per_frame,state_bytes,memory_bytes\r\n"
