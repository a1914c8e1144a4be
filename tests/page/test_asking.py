"""Asking, in a real browser: what waits and is withdrawn, stopped, asked again, cleared, taken back, marked, saved."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.fake_model import until
from tests.page.conftest import ask, player_time, state, upload

pytestmark = pytest.mark.browser
SAID = "#said p[role=alert]"


@pytest.fixture
def model(sessions):
    """The page's own model; `speaks` cleared: its answers wait."""
    own = sessions.engine.model
    yield own
    own.speaks.set()
    own.gate.set()


@pytest.fixture
def page(visitor):
    """A visitor who watches the example and has seen something of it."""
    one = visitor()
    one.click("#go")
    one.wait_for_selector("#film .chip")
    return one


def send(page, words: str) -> None:
    page.fill("#question textarea", words)
    page.keyboard.press("Enter")


def asked(page) -> list[str]:
    return page.locator("#chat .user-row").all_inner_texts()


def test_questions_wait_their_turn_in_a_place_that_is_seen_and_can_be_withdrawn(page, model):
    """The second one was refused, and nobody saw why."""
    model.speaks.clear()
    for words in ("first", "second", "third"):
        send(page, words)
        page.wait_for_selector(f"#chat .user-row:has-text('{words}')")
    assert page.locator("#chat .waiting").all_inner_texts() == ["Waiting, 2nd\nWithdraw", "Waiting, 3rd\nWithdraw"]
    page.click("#chat .waiting button >> nth=0")
    page.wait_for_selector("#chat .user-row:has-text('second')", state="detached")
    page.wait_for_selector("#chat .waiting:has-text('2nd')")
    model.speaks.set()
    page.wait_for_selector("#chat .message-row:last-child .facts")
    until(lambda: page.locator("#chat .facts").count() == 2)
    assert asked(page) == ["first", "third"]


def test_a_chip_pressed_in_mid_answer_waits_too(page, model):
    model.speaks.clear()
    send(page, "first")
    page.wait_for_selector("#chat .user-row")
    page.click("#suggestions button >> nth=0")
    page.wait_for_selector("#chat .waiting")
    model.speaks.set()
    until(lambda: page.locator("#chat .facts").count() == 2)


def test_too_many_that_wait_are_refused_in_words_that_are_seen(page, model):
    model.speaks.clear()
    for number in range(9):
        send(page, f"number {number}")
        page.wait_for_selector(f"#chat .user-row:has-text('number {number}')")
    send(page, "one too many")
    page.wait_for_selector(f"{SAID}:has-text('wait already')")
    assert page.input_value("#question textarea") == "one too many", "it can be sent later"
    page.click("#said button")
    page.wait_for_selector(SAID, state="detached")


def test_a_question_right_after_stop_is_taken(page):
    send(page, "tell me " * 60)
    page.wait_for_selector("#chat .bot-row:has-text('frames')")
    page.click("#stop")
    send(page, "and now?")
    page.wait_for_selector("#chat .user-row:has-text('and now?')")
    page.wait_for_selector("#chat .message-row:last-child .facts")
    until(lambda: page.locator("#chat .facts").count() == 2)
    assert "stopped" in page.inner_text("#chat .facts >> nth=0") and "stopped" not in page.inner_text(
        "#chat .facts >> nth=1"
    )


def test_retry_in_mid_answer_loses_no_turn(page, model):
    """The turn was taken away before its successor began, and then that did not."""
    for words in ("one", "two"):
        ask(page, words)
    page.click("#retry")
    page.click("#retry")
    model.speaks.clear()
    page.click("#retry")
    until(lambda: len(asked(page)) == 2)
    model.speaks.set()
    until(lambda: page.locator("#chat .facts").count() == 2 and page.locator("#chat .thinking").count() == 0)
    assert asked(page) == ["one", "two"]


def test_retry_with_nothing_asked_says_so(page):
    page.click("#retry")
    page.wait_for_selector(f"{SAID}:has-text('Nothing was asked yet')")


def test_what_is_asked_in_the_first_moment_waits_for_the_first_picture(visitor, model):
    model.gate.clear()
    page = visitor()
    page.click("#go")
    state(page, "Opening")
    send(page, "what is there?")
    page.wait_for_selector("#chat .thinking:has-text('Waiting for the first picture')")
    model.gate.set()
    page.wait_for_selector("#chat .facts")
    assert page.locator("#chat .sorry").count() == 0


def test_what_was_said_stays_when_another_video_is_started(page, clip):
    ask(page, "about the first")
    upload(page, clip)
    state(page, "Ended")
    page.wait_for_selector("#line:has-text('holiday')")
    ask(page, "about the second")
    assert asked(page) == ["about the first", "about the second"]
    assert "Another video from here on" in page.inner_text("#chat .note")
    chips = page.locator("#chat .moments >> nth=0").locator(".chip")
    assert chips.count() and not chips.first.get_attribute("data-seek"), "the player shows another video"


def test_clear_and_reset_can_be_taken_back(page):
    state(page, "Ended")
    ask(page, "Do you remember?")
    page.click("#clear")
    page.wait_for_selector("#chat .message-row", state="detached")
    page.click("#undo:has-text('Undo Clear')")
    page.wait_for_selector("#chat .user-row:has-text('Do you remember?')")
    page.wait_for_selector("#undo", state="hidden")
    page.click("#reset")
    state(page, "Idle")
    page.click("#undo:has-text('Undo Reset')")
    state(page, "Ended")
    page.wait_for_selector("#chat .user-row:has-text('Do you remember?')")
    assert "71 frames" in ask(page, "Still there?")


def test_the_way_back_ends_and_the_button_with_it(page, sessions, monkeypatch):
    ask(page, "Do you remember?")
    page.click("#clear")
    page.wait_for_selector("#undo:has-text('Undo Clear')")
    for place in list(sessions._by_key.values()):
        place.session.let_go_of_undoable(older_than=0)
    page.wait_for_selector("#undo", state="hidden")


def test_undo_that_comes_too_late_says_so(page, sessions):
    ask(page, "Do you remember?")
    page.click("#clear")
    page.wait_for_selector("#undo:has-text('Undo Clear')")
    for place in list(sessions._by_key.values()):
        place.session.let_go_of_undoable(older_than=0)
    page.evaluate("document.querySelector('#undo').click()")
    page.wait_for_selector(f"{SAID}:has-text('too long ago')")


@pytest.mark.parametrize(("words", "sentence"), [("   \n ", "type one first"), ("x" * 3000, "3,000 characters")])
def test_blank_and_endless_questions_are_refused_in_words_that_are_seen(page, words, sentence):
    send(page, words)
    page.wait_for_selector(f"{SAID}:has-text('{sentence}')")
    if words.strip():
        assert page.input_value("#question textarea") == words, "nothing is cut off in silence"
    ask(page, "and this?")
    page.wait_for_selector(SAID, state="detached")


def test_markup_alone_is_not_understood_and_the_page_says_so(page):
    send(page, "<img src=x onerror=alert(1)>")
    page.wait_for_selector("#chat .sorry:has-text('not understood')")
    assert "<img src=x onerror=alert(1)>" in asked(page)[0]


def test_this_answer_is_wrong_is_kept_for_the_visitors_own_file(page, model):
    """And nothing is sent anywhere: `visitor` fails where a page fetches from elsewhere."""
    ask(page, "Who is *that* at 0:03?")
    page.click("#chat .judge")
    page.wait_for_selector("#chat .judge[aria-pressed=true]:has-text('Marked as wrong')")
    ask(page, "and then?")
    with page.expect_download() as download:
        page.click("#save-as-json")
    saved = json.loads(Path(download.value.path()).read_text())
    turns = saved["conversations"]["Fake Vamba"]
    assert [turn["marked_wrong"] for turn in turns] == [True, False]
    assert turns[0]["question"] == "Who is *that* at 0:03?" and "frames" in turns[0]["answer"] and turns[0]["evidence"]
    with page.expect_download() as download:
        page.click("#save-as-text")
    text = Path(download.value.path()).read_text()
    assert download.value.suggested_filename == "conversation.md"
    assert text.count("Marked as wrong.") == 1 and "**Who is \\*that\\* at 0:03?**" in text
    page.click("#chat .judge[aria-pressed=true]")
    page.wait_for_selector("#chat .judge[aria-pressed=true]", state="detached")


def test_evidence_is_in_order_of_time_with_a_picture_per_moment_said_and_times_are_links(page):
    """The text said 0:02 and 1:10; the pictures were of other moments and in another order."""
    state(page, "Ended")
    page.evaluate("document.querySelector('#example video').pause()")
    ask(page, "What was at 1:02, 0:03 and 9:59?")
    times = page.locator("#chat .moments .chip span").all_inner_texts()
    assert times == ["0:03", "0:35", "1:02"]
    assert page.locator("#chat .moments .chip img").count() == 3
    links = page.locator("#chat button.time")
    assert links.all_inner_texts() == ["1:02", "0:03"], "9:59 was never seen"
    links.first.click()
    until(lambda: player_time(page) == pytest.approx(62, abs=0.3))
    links.nth(1).focus()
    page.keyboard.press("Enter")
    until(lambda: player_time(page) == pytest.approx(3, abs=0.3))


def test_hostile_words_beside_times_stay_words(page):
    answer = ask(page, "at 0:01 <b onclick=alert(1)>bold</b> ![x](https://evil.example/0:02.png) <i>0:03</i>")
    assert "bold" in answer and page.locator("#chat .words :is(b, i, img, a)").count() == 0
    assert page.locator("#chat .words button:not(.time)").count() == 0


def test_engineering_is_told_only_on_demand(page):
    ask(page, "How fast was that?")
    assert not page.locator("#chat .facts span").is_visible()
    page.click("#chat .facts summary")
    page.wait_for_selector("#chat .facts span:has-text('tokens a second')")
    assert re.search(r"first word after \d", page.inner_text("#chat .facts span"))


def test_a_reload_in_mid_answer_goes_on_following(page, model):
    model.speaks.clear()
    send(page, "first")
    page.wait_for_selector("#chat .user-row:has-text('first')")
    send(page, "second")
    page.wait_for_selector("#chat .waiting")
    page.reload()
    page.wait_for_selector("#chat .waiting:has-text('2nd')")
    model.speaks.set()
    until(lambda: page.locator("#chat .facts").count() == 2)
    assert "stopped" not in page.inner_text("#chat"), "a page that goes away cuts nothing"


def test_a_full_house_has_a_line_and_what_was_wished_for_begins_by_itself(visitor, sessions):
    others = []
    for _ in range(sessions.places):
        key, session = sessions.ensure(None, program=True)
        session.open_camera()
        others.append(key)
    one, two = visitor(), visitor()
    one.click("#go")
    one.wait_for_selector("#line strong:has-text('Waiting for a place, 1st')")
    two.click("#go")
    two.wait_for_selector("#line strong:has-text('Waiting for a place, 2nd')")
    send(two, "and questions?")
    two.wait_for_selector(f"{SAID}:has-text('places are taken')")
    sessions.close(others[0])
    state(one, "Ended")
    two.wait_for_selector("#line strong:has-text('Waiting for a place, 1st')")
    sessions.close(others[1])
    two.wait_for_selector("#go:has-text('Pause'), #go:has-text('Watch again')")


def test_a_queue_that_is_full_is_said(page):
    """Gradio's own answer, which is shown as a toast; one of an event that is not queued is not."""
    page.route("**/queue/join**", lambda route: route.fulfill(status=503, json={"detail": "Queue is full."}))
    send(page, "anybody there?")
    page.wait_for_selector("[data-testid=toast-body]:has-text('busy')")
    page.unroute("**/queue/join**")


def test_an_upload_plays_when_it_is_watched_and_watch_again_rewinds(visitor, clip):
    page = visitor()
    upload(page, clip)
    state(page, "Ended")
    until(lambda: player_time(page) > 0.5)
    page.evaluate("document.querySelector('#upload video').currentTime = 9")
    until(lambda: player_time(page) >= 9)
    page.click("#go:has-text('Watch again')")
    until(lambda: player_time(page) < 5)
    until(lambda: not page.evaluate("document.querySelector('#upload video').paused"))


def test_a_gif_can_be_chosen_and_is_watched(visitor, folder):
    from PIL import Image

    path = folder / "blink.gif"
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=1000, loop=0)
    page = visitor()
    page.click("#source label:has-text('Upload')")
    with page.expect_file_chooser() as chosen:
        page.click("#upload button >> nth=0")
    assert "gif" in chosen.value.element.get_attribute("accept")
    chosen.value.set_files(str(path))
    state(page, "Ended")
    assert page.inner_text("#strip .tile:has-text('Frames seen') b").strip() in ("3", "4")
    page.wait_for_selector("[data-testid=toast-text]:has-text('watched all the same'):visible")
