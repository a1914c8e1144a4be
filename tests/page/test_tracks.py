"""Captions as a browser reads them: the file of `pipeline.vtt` in a player's own track element."""

from __future__ import annotations

import base64

import pytest

from app.live.view import ModelView, View
from app.page.channel import subtitles
from pipeline import Event, vtt

EVENTS = (
    Event(0.0, "caption", "A dog.", until=3.5),
    Event(62.0, "caption", 'Two <b>cats</b> & a "tv" --> here.', until=64.0),
    Event(64.0, "alert", "A person came into view.", until=65.0),
    Event(3723.25, "caption", "A person."),
)


def test_of_a_video_that_follows_another_the_subtitles_begin_at_its_own_first_second():
    view = View(events=EVENTS, begins=60.0, models=(ModelView("a", "cpu", seen_until=3730.0),))
    cues = [line for line in subtitles(view).splitlines() if "-->" in line]
    assert cues == ["00:00:02.000 --> 00:00:04.000", "01:01:03.250 --> 01:01:10.000"]


@pytest.mark.browser
def test_the_browsers_own_player_reads_the_captions(browser):
    """Through the parser that shows subtitles, not ours: text as it is, no markup of it, times to the millisecond."""
    page = browser.new_page()
    source = base64.b64encode(vtt(EVENTS, 3730.0).encode()).decode()
    page.set_content(f'<video><track default kind="captions" src="data:text/vtt;base64,{source}"></video>')
    page.wait_for_function("document.querySelector('track').readyState === 2")
    cues = page.evaluate(
        "[...document.querySelector('track').track.cues].map("
        "cue => [cue.startTime, cue.endTime, cue.getCueAsHTML().textContent, cue.getCueAsHTML().childElementCount])"
    )
    page.close()
    assert cues == [
        [0, 3.5, "A dog.", 0],
        [62, 64, 'Two <b>cats</b> & a "tv" --> here.', 0],
        [3723.25, 3730, "A person.", 0],
    ]
