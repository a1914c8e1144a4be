"""Alerts on the page: rules as they were read, what was told and why, and a browser that notifies when asked to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.live.view import ModelView, Phase, Picture, View
from app.page.alerts import NEWEST, alerts
from app.page.channel import moment
from pipeline import Event, Rule, UserError
from tests.fake_model import until
from tests.page.conftest import player_time, state, upload
from tests.page.test_looks import clean

RULES = (Rule("a <b>dog</b>", "A dog came into view.", 10.0, 4), Rule("is it so?", "is it so?", 10.0, 5))
TOLD = View(
    phase=Phase.WATCHING,
    models=(ModelView("a", "cpu", frames=9, seen_until=9.0),),
    events=(Event(3.0, "alert", "A <i>dog</i>.", 0.7, 4.0), Event(1.0, "caption", "A tree.", until=2.0)),
    rules=RULES,
    alerted=(Picture(3.0, b"first"), Picture(4.0, b"second")),
)


def test_every_rule_shows_how_it_was_read_and_can_be_removed():
    html = alerts(TOLD)
    assert "a &lt;b&gt;dog&lt;/b&gt;" in html and "“A dog came into view.”" in html and "<b>dog" not in html
    assert 'data-deed="untell 4"' in html and 'data-deed="untell 5"' in html and "asked every other second" in html


def test_an_alert_has_its_picture_and_the_pictures_it_rests_on():
    html = alerts(TOLD)
    assert html.count("data-alert") == 1 and "A &lt;i&gt;dog" in html and "score 0.70" in html
    assert html.count('data-seek="3.000"') == 2 and html.count('data-seek="4.000"') == 1, "the why has both"
    assert "tree" not in html and "own words" in alerts(View())


def test_what_two_rules_tell_alike_is_told_once():
    twice = replace(TOLD, events=(*TOLD.events, replace(TOLD.events[0], weight=0.9)))
    assert alerts(twice).count("data-alert") == 1


def test_of_very_many_alerts_the_newest_are_listed_and_that_is_said():
    events = tuple(Event(float(at), "alert", f"number {at}.") for at in range(NEWEST + 7))
    html = alerts(View(events=events))
    assert html.count("data-alert") == NEWEST and "7 earlier ones" in html
    assert html.index(f"number {NEWEST + 6}.") < html.index("number 7.") and "number 6." not in html


class Red:
    """Tells of red pictures."""

    says, gone, adds_up = "Red came into view.", False, False

    def seen(self, state, since):
        return [(at, float(colour[0] > colour[2])) for at, colour in state.inner if at > since]


@pytest.fixture
def spotting(sessions, monkeypatch):
    def spotter(text: str) -> Red:
        if "red" not in text:
            raise UserError("The rule names nothing that can be recognised, so it was not taken; name a thing.")
        return Red()

    monkeypatch.setattr(sessions.engine.model, "spotter", spotter)


ASKED = """() => { window.asked = 0; window.sent = [];
    window.Notification = class { constructor(title, more) { window.sent.push(more); }
        static permission = "default";
        static async requestPermission() { window.asked += 1; return (Notification.permission = "granted"); } }; }"""


def add_rule(page, words: str) -> None:
    page.fill("#rule input", words)
    page.click("#rule button")


@pytest.mark.browser
def test_a_visitor_writes_rules_is_told_notified_and_removes_them(visitor, spotting, clip):
    page = visitor()
    page.add_init_script(f"({ASKED})()")
    page.reload()
    add_rule(page, "red things")
    page.wait_for_selector("#unruly p:has-text('Nothing is watched')")
    assert page.input_value("#rule input") == "red things", "what is refused stays in the box"
    page.click("#unruly [data-close]")
    page.wait_for_selector("#unruly p", state="detached")
    upload(page, clip)
    state(page, "Ended")
    assert page.evaluate("window.asked") == 0, "permission is asked for by the button alone"
    page.click("#notify")
    page.wait_for_selector("#notify[aria-pressed=true]")
    add_rule(page, "something blue")
    page.wait_for_selector("#unruly p:has-text('name a thing')")
    add_rule(page, "tell me of red")
    page.wait_for_selector(".rules li:has-text('Red came into view.')")
    assert page.input_value("#rule input") == "" and page.locator("#unruly p").count() == 0
    page.wait_for_selector(".alerts li:has-text('Red came into view.') img")
    page.wait_for_selector("#film .mark.alert", state="attached")
    until(lambda: [one["body"] for one in page.evaluate("window.sent")] == ["0:00 Red came into view."])
    assert page.evaluate("window.asked") == 1
    page.click(".alerts summary")
    page.click(".alerts .moments .chip >> nth=1")
    until(lambda: player_time(page) == pytest.approx(1.0, abs=0.2))
    add_rule(page, "red again")
    page.wait_for_selector(".rules li >> nth=1")
    assert page.locator(".alerts details[open]").count() == 1, "what is opened stays open"
    clean(page)
    page.click(".alerts [data-clip] >> nth=0")
    assert clip_is_shown(page) == pytest.approx(5.0, abs=0.3), "from its beginning to five seconds after"
    with page.expect_download() as saved:
        page.click("#clip .save")
    assert saved.value.suggested_filename == "clip-0.00.mp4"
    clean(page)
    page.click("#clip button")
    page.click(".rules li >> nth=0 >> button")
    page.wait_for_selector(".rules li >> nth=1", state="detached")
    assert "red again" in page.inner_text(".rules") and page.locator(".alerts li").count() >= 1
    sent = len(page.evaluate("window.sent"))
    page.reload()
    page.wait_for_selector(".alerts li")
    page.wait_for_timeout(300)
    assert page.evaluate("window.sent") == [] and sent >= 1, "what was there before a reload is not new"


@pytest.mark.browser
def test_a_camera_tells_too(visitor, spotting, sessions):
    page = visitor()
    page.click("#source label:has-text('Webcam')")
    page.click("#go")
    state(page, "Watching")
    add_rule(page, "anything red")
    page.wait_for_selector(".rules li")
    session = next(iter(sessions._by_key.values())).session
    session.offer(_red())
    session.offer(_red())
    page.wait_for_selector(".alerts li:has-text('Red came into view.') img")
    page.click("#film [data-clip]")
    assert clip_is_shown(page) > 0.05
    page.keyboard.press("Escape")
    assert not page.is_visible("#clip")


def clip_is_shown(page) -> float:
    """How many seconds the browser's own player says it has."""
    page.wait_for_selector("#clip video", state="visible")
    page.wait_for_function("document.querySelector('#clip video').readyState >= 2")
    return page.evaluate("document.querySelector('#clip video').duration")


@pytest.mark.parametrize("words", [b"", b"x", b"[]", b"{}", b'{"at": "x"}', b'{"at": -3}', b'{"at": 1e999}', b"7"])
def test_what_is_no_moment_is_not_cut(words):
    with pytest.raises(UserError, match="no moment"):
        moment(words)
    assert moment(b'{"at": 3.5}') == 3.5


def _red():
    from tests.fake_model import RED, picture

    return picture(RED)
