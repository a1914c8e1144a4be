"""Compare, in a real browser: the same question at the same height in both columns, whatever was asked when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fake_model import until
from tests.page.conftest import ask, state

pytestmark = pytest.mark.browser

DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
ROWS = """() => ["chat", "second"].map((id) => [...document.querySelectorAll(`#${id} .user-row`)]
    .map((row) => [row.innerText.trim(), Math.round(row.getBoundingClientRect().y)]))"""
BOXES = "() => ['chat', 'second'].map((id) => Math.round(document.querySelector(`#${{id}} .bubble-wrap`).{}))"
UNANSWERED = "() => [...document.querySelectorAll('#second .unasked')].map((one) => one.innerText)"


@pytest.fixture
def page(visitor, request):
    """A visitor who has watched the example and asked twice, on a page that must not complain."""
    one = visitor(**getattr(request, "param", DESK))
    complaints = []
    one.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
    one.click("#go")
    state(one, "Ended")
    for words in ("One?", "Two, at 0:03?"):
        ask(one, words)
    yield one
    assert complaints == []


@pytest.fixture
def talkative(sessions, monkeypatch):
    """The second model says four times as much."""
    model = sessions.rival.model
    real = model.ask

    def ask_longer(question, state, sampling):
        for token in real(question, state, sampling):
            yield replace(token, text=f"{token.text} and at some length so that it fills a few more lines")

    monkeypatch.setattr(model, "ask", ask_longer)


def compare(page) -> None:
    page.click("#compare input")
    page.wait_for_selector("#second .user-row")
    page.wait_for_selector("#plots polyline.rival >> nth=1")  # it has seen something to answer from


def both_answered(page) -> None:
    for chat in ("#chat", "#second"):
        page.wait_for_selector(f"{chat} .message-row:last-child .facts")


def level(page) -> list[str]:
    """The questions of both columns, once each stands at one height."""
    until(lambda: (rows := page.evaluate(ROWS))[0] == rows[1] and rows[0])
    page.wait_for_timeout(300)
    left, right = page.evaluate(ROWS)
    assert left == right and sorted(at for _, at in left) == [at for _, at in left]
    return [words for words, _ in left]


@pytest.mark.parametrize("page", [DESK, PHONE], ids=["desk", "phone"], indirect=True)
def test_what_was_asked_before_is_on_the_right_too_and_is_not_pretended_to_be_answered(page, talkative):
    compare(page)
    assert level(page) == ["One?", "Two, at 0:03?"]
    assert page.evaluate(UNANSWERED) == ["Not asked: this model was not compared then."] * 2
    ask(page, "Three?")
    both_answered(page)
    assert level(page) == ["One?", "Two, at 0:03?", "Three?"]
    assert len(page.evaluate(UNANSWERED)) == 2 and page.locator("#second .facts").count() == 1
    wide = page.viewport_size["width"]
    words = page.locator("#second .bot-row .message-content").last.bounding_box()
    assert words["width"] >= (290 if wide > 900 else 135) and words["x"] + words["width"] <= wide
    assert page.evaluate("document.documentElement.scrollWidth") <= wide


def test_a_long_answer_on_one_side_leaves_room_on_the_other_and_both_scroll_as_one(page, talkative):
    compare(page)
    for words in ("Three?", "Four?"):
        ask(page, words)
        both_answered(page)
    assert len(level(page)) == 4
    page.click("#chat .facts summary >> nth=-1")  # what opens on one side moves the other
    page.wait_for_selector("#chat .facts[open]")
    assert len(level(page)) == 4
    heights, tops = (page.evaluate(BOXES.format(what)) for what in ("scrollHeight", "scrollTop"))
    assert abs(heights[0] - heights[1]) <= 1 and tops[0] == tops[1] > 0, "the newest is in sight in both"
    for chat, top in (("second", 10), ("chat", 40)):
        page.evaluate(f"document.querySelector('#{chat} .bubble-wrap').scrollTop = {top}")
        until(lambda top=top: page.evaluate(BOXES.format("scrollTop")) == [top, top])
    assert len(level(page)) == 4


def test_they_stand_level_while_being_written_and_when_asked_again(page, sessions):
    compare(page)
    page.click("#retry")
    both_answered(page)
    assert level(page) == ["One?", "Two, at 0:03?"] and len(page.evaluate(UNANSWERED)) == 1
    model = sessions.rival.model
    model.speaks.clear()
    page.fill("#question textarea", "slow " * 30)
    page.keyboard.press("Enter")
    page.wait_for_selector("#chat .message-row:last-child .facts")
    page.wait_for_selector("#second .thinking")
    assert len(level(page)) == 3
    model.speaks.set()
    both_answered(page)
    assert len(level(page)) == 3


def test_switched_off_and_on_again_nothing_is_lost_and_no_room_is_left_over(page, talkative):
    compare(page)
    ask(page, "Three?")
    both_answered(page)
    level(page)
    page.click("#compare input")
    page.wait_for_selector("#second", state="detached")
    gap = """() => [...document.querySelectorAll("#chat .message-row")]
        .some((row) => parseFloat(getComputedStyle(row).marginBottom) > 0)"""
    until(lambda: not page.evaluate(gap))
    ask(page, "Four, alone?")
    compare(page)
    assert level(page) == ["One?", "Two, at 0:03?", "Three?", "Four, alone?"]
    assert len(page.evaluate(UNANSWERED)) == 3
