"""A stream that falls asleep while its page is open: the page says so, keeps what it shows, and wakes it by asking."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from app.live.sleeping import Sleep
from app.live.table import Sessions
from pipeline import Dormitory, Sampling
from tests.fake_model import until
from tests.keeping.streams import tiny
from tests.page.conftest import ask, state, upload

pytestmark = pytest.mark.browser

IDLE_S = 2.0
QUESTION = "What is it?"
SHOTS = os.environ.get("SHOTS")  # a folder for pictures of the page, to look at


@pytest.fixture(scope="module")
def sessions():
    engine, rival = tiny(), tiny()
    for one in (engine, rival):
        one.model.caption_question = ""  # it is asked what a test asks, and nothing else
    table = Sessions(engine, rival, places=2, dormitory=Dormitory(), sleep_after=IDLE_S)
    yield table
    table.shut()


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr("app.live.conversation.sampling", lambda repeats: Sampling(max_tokens=8))


@pytest.fixture
def gate(monkeypatch):
    """Cleared: what was read from the disk is not put back."""
    gate, put_back = threading.Event(), Sleep._put_back
    gate.set()
    monkeypatch.setattr(Sleep, "_put_back", lambda self, *read: (gate.wait(60), put_back(self, *read)))
    yield gate
    gate.set()


def line(page) -> str:
    return " ".join(page.inner_text("#line").split())


def shoot(page, name: str) -> None:
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def test_the_page_says_that_it_sleeps_and_the_next_question_wakes_it_with_the_same_answer(
    visitor, sessions, clip, gate
):
    page = visitor()
    upload(page, clip)
    state(page, "Ended")
    (session,) = (place.session for place in sessions._by_key.values())
    first = ask(page, QUESTION)
    pictures = page.locator("#film .chip").count()
    assert pictures and first.strip()
    state(page, "Asleep")
    assert not session.bed.has_place and sessions.room.dormitory.nbytes > 0
    assert "Nothing is lost; it wakes with your next question (about 1 s)." in line(page)
    assert "on the disk, asleep" in page.inner_text("#strip .tile:has-text('Memory')")
    assert page.locator("#film .chip").count() == pictures and first in page.inner_text("#chat"), "what is shown stays"
    shoot(page, "asleep")
    page.click("#clear")  # that the same is asked: what was said before is part of a question
    page.wait_for_selector("#chat .message-row", state="detached")
    assert session.view().asleep is not None, "nothing of that needed the stream"
    gate.clear()
    page.fill("#question textarea", QUESTION)
    page.keyboard.press("Enter")
    state(page, "Waking")
    assert "comes back from the disk (about 1 s)" in line(page)
    page.wait_for_selector(f"#chat .user-row:has-text('{QUESTION}')")  # what was asked is not lost meanwhile
    shoot(page, "waking")
    gate.set()
    page.wait_for_selector("#chat .message-row:last-child .facts")
    assert page.inner_text("#chat .message-row.bot-row >> nth=-2") == first
    assert session.bed.has_place or session.view().asleep is not None  # awake, or asleep again by now
    state(page, "Asleep")  # and it sleeps again
    page.click("#film .chip")  # a picture is shown by the player, for which no stream is needed
    assert session.view().asleep is not None


def test_two_pages_with_places_for_one_take_turns(visitor, sessions, clip, monkeypatch):
    """Who comes while all places are taken finds one, for the other sleeps; and that one's question is answered."""
    monkeypatch.setattr(sessions.room, "places", 1)
    first = visitor()
    upload(first, clip)
    state(first, "Ended")
    said = ask(first, QUESTION)
    second = visitor()
    state(first, "Asleep")
    upload(second, clip)
    state(second, "Ended")
    until(lambda: sessions.room.awake(sessions._all) <= 1)
    first.click("#clear")
    first.wait_for_selector("#chat .message-row", state="detached")
    assert ask(first, QUESTION) == said
    state(second, "Asleep")
    until(lambda: sessions.room.awake(sessions._all) <= 1)


@pytest.mark.parametrize("device", ["desk", "dark phone"])
def test_asleep_and_waking_are_easy_to_read_and_to_hit(visitor, sessions, clip, gate, device):
    from tests.page.test_looks import DEVICES, STILL, clean  # skips where axe-core is not installed

    page = visitor(**DEVICES[device], **STILL)
    upload(page, clip)
    state(page, "Asleep")
    until(lambda: page.inner_text("#spoken").strip() == "asleep")  # for who cannot see it
    clean(page)
    shoot(page, f"asleep {device}")
    gate.clear()
    page.fill("#question textarea", QUESTION)
    page.keyboard.press("Enter")
    state(page, "Waking")
    page.wait_for_selector(f"#chat .user-row:has-text('{QUESTION}')")
    clean(page)
    shoot(page, f"waking {device}")
    gate.set()
    page.wait_for_selector("#chat .message-row:last-child .facts")
