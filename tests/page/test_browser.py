"""The page in a real browser: upload, watch, ask, seek; a camera; two visitors; bad files; hostile words."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

from app.live.table import Sessions
from tests.fake_model import until
from tests.page.conftest import ask, player_time, state, upload

pytestmark = pytest.mark.browser


def test_upload_watch_ask_and_seek(visitor, clip, folder):
    page = visitor()
    upload(page, clip)
    state(page, "Ended")
    page.wait_for_selector("#strip .tile:has-text('Frames seen') b:has-text('12')")
    assert "holiday.mp4" in page.inner_text("#line") and page.inner_text("#go") == "Watch again"
    assert "12 frames, last (19" in ask(page, "When was it?")
    facts = page.inner_text("#chat .facts")
    assert "seen until 0:11" in facts
    page.click("#chat .chip")
    until(lambda: player_time(page) == pytest.approx(5, abs=1.1))
    chip = page.locator("#film .chip").nth(1)
    chip.focus()
    page.keyboard.press("Enter")  # by keyboard as well
    until(lambda: player_time(page) == pytest.approx(1, abs=0.2))
    until(lambda: page.inner_text("#spoken").strip() == "ended")
    assert shutil.which("ffprobe").startswith(str(folder)) and not (folder / "called").exists()


def test_the_example_pause_resume_reset_and_a_pinned_question(visitor):
    page = visitor()
    page.click("#go")
    page.wait_for_selector("#go:has-text('Pause')")
    page.wait_for_selector("#film .chip")  # there is something to ask about
    page.click("#go")
    state(page, "Paused")
    page.evaluate("document.querySelector('#example video').pause()")
    page.evaluate("document.querySelector('#example video').currentTime = 2")
    page.click("#pinned input")
    ask(page, "What is this?")
    assert "about 0:02" in page.inner_text("#chat .facts")
    page.click("#go")
    page.wait_for_selector("#go:has-text('Pause')")
    page.click("#reset")
    state(page, "Idle")
    page.wait_for_selector("#go:has-text('Start')")
    assert page.locator("#chat .message-row").count() == 0


def test_stop_retry_and_clear(visitor):
    page = visitor()
    page.click("#go")
    page.wait_for_selector("#film .chip")
    page.fill("#question textarea", "tell me " * 60)
    page.keyboard.press("Enter")
    page.wait_for_selector("#chat .bot-row:has-text('frames')")
    page.click("#stop")
    page.wait_for_selector("#chat .facts:has-text('stopped')")
    page.click("#suggestions button >> nth=0")
    page.wait_for_selector("#chat .message-row:nth-of-type(6) .facts")
    assert page.locator("#chat").bounding_box()["height"] < 600, "a long talk scrolls"
    page.click("#retry")
    page.wait_for_selector("#chat .message-row:last-child .facts")
    assert page.locator("#chat .user-row").count() == 2
    page.click("#clear")
    page.wait_for_selector("#chat .message-row", state="detached")


def test_a_camera_is_watched_and_asked_about(visitor, sessions):
    page = visitor()
    page.click("#source label:has-text('Webcam')")
    page.click("#go")  # switches it on and presses its record button
    state(page, "Watching")
    page.wait_for_selector("#film .chip >> nth=2")
    green = [int(part) for part in re.findall(r"\d+", ask(page, "Which colour?").split("last")[1])[:3]]
    assert green[1] > green[0] and green[1] > green[2]
    page.click("#chat .chip")
    page.wait_for_selector("#chat .chip.large")
    page.click("#reset")
    state(page, "Idle")
    page.wait_for_timeout(2500)
    assert "Idle" in page.inner_text("#line"), "the camera was switched off as well"
    page.click("#go")
    state(page, "Watching")
    page.close()
    until(lambda: len(sessions) == 0 or all(one.left for one in sessions._by_key.values()))


def test_two_visitors_at_once_see_only_their_own(visitor, clip):
    one, two = visitor(), visitor()
    upload(one, clip)
    one.wait_for_selector("#film .chip")
    two.click("#go")
    two.wait_for_selector("#film .chip")
    mine = ask(one, "the red one")
    theirs = ask(two, "the blue one")
    assert "the red one" in mine and "the blue one" in theirs
    assert "blue one" not in one.inner_text("#chat") and "red one" not in two.inner_text("#chat")
    assert "holiday" in one.inner_text("#line") and "holiday" not in two.inner_text("#line")


def test_a_bad_file_shows_a_sentence_and_a_good_one_follows(visitor, clip, folder):
    letter = folder / "letter.mp4"
    letter.write_text("dear reader, " * 500)
    page = visitor()
    upload(page, letter)
    page.wait_for_selector("#line .state.error")
    assert "not a video file" in page.inner_text("#line")
    page.wait_for_timeout(1500)
    assert page.locator("[data-testid=toast-body]:visible").count() == 0, "one sentence, not two that contradict"
    page.click("#reset")
    state(page, "Idle")
    page.set_input_files("#upload input[type=file]", str(clip))
    state(page, "Ended")


def test_hostile_words_stay_words(visitor):
    page = visitor()
    foreign = []
    page.on("request", lambda request: foreign.append(request.url) if "evil" in request.url else None)
    page.click("#go")
    page.wait_for_selector("#film .chip")
    for words in (
        "See <img src=x onerror=alert(1)>",
        "![a](https://evil.example/x.png)",
        "<b onclick=alert(1)>bold</b>",
    ):
        ask(page, words)
        page.wait_for_timeout(150)
    left = (
        "(talk => talk.scrollHeight - talk.scrollTop - talk.clientHeight)(document.querySelector('#chat .bubble-wrap'))"
    )
    until(lambda: page.evaluate(left) < 5)  # the newest answer is in sight
    assert "<img src=x onerror=alert(1)>" in page.inner_text("#chat")
    assert not foreign and page.locator("#chat .message-content :is(img, b)").count() == 0


def test_compare_shows_both_and_what_they_cost(visitor, clip):
    page = visitor()
    upload(page, clip)
    state(page, "Ended")
    page.click("#compare input")
    page.wait_for_selector("#second")
    page.wait_for_selector("#strip .tile.rival b:has-text('480 kB')")  # it has caught up
    ask(page, "And you?")
    page.wait_for_selector("#second .message-row:has-text('12 frames')")
    until(lambda: page.locator("#plots svg :is(polyline, circle).rival").count() == 3)


def test_a_reload_finds_the_stream_and_the_words_again(visitor):
    page = visitor()
    page.click("#go")
    page.wait_for_selector("#film .chip")
    ask(page, "Do you remember?")
    page.reload()
    page.wait_for_selector("#chat .user-row:has-text('Do you remember?')")
    page.wait_for_selector("#film .chip")


def test_a_reload_finds_the_uploaded_file_again(visitor, clip, folder):
    """The player too, and no tool has looked at the file on the way."""
    page = visitor()
    upload(page, clip)
    state(page, "Ended")
    page.reload()
    page.wait_for_function("document.querySelector('#upload video')?.duration > 0")
    page.wait_for_selector("#line:has-text('holiday')")
    page.click("#film .chip >> nth=2")
    page.wait_for_function("window.vambaPlayerTime() > 0")
    assert not (folder / "called").exists()
    page.click("#reset")
    state(page, "Idle")
    page.reload()
    page.wait_for_selector("#go")
    assert page.locator("#upload video").count() == 0


def test_a_duplicated_tab_and_its_first_both_follow_the_stream(visitor):
    """Browsers copy the tab's memory, so both hold one key."""
    one = visitor()
    one.click("#go")
    one.wait_for_selector("#film .chip")
    key = one.wait_for_function("sessionStorage.getItem('vamba-live')").json_value()
    two = one.context.new_page()
    two.add_init_script(f"sessionStorage.setItem('vamba-live', '{key}')")
    two.goto(one.url)
    for page in (one, two):
        state(page, "Ended")
        page.wait_for_selector("#go:has-text('Watch again')")
        page.wait_for_selector("#strip .tile:has-text('Frames seen') b:has-text('71')")


def test_a_page_that_slept_too_long_says_so_and_can_start_again(visitor, sessions):
    page = visitor()
    page.click("#go")
    page.wait_for_selector("#film .chip")
    for key in list(sessions._by_key):
        sessions.close(key)
    page.wait_for_selector("#line:has-text('away for long')")
    page.click("#go:has-text('Start')")
    page.wait_for_selector("#go:has-text('Pause')")


def test_on_a_phone_nothing_is_wider_than_the_screen(visitor):
    page = visitor(viewport={"width": 390, "height": 844}, is_mobile=True)
    page.click("#go")
    page.wait_for_selector("#film .chip")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert np.ptp([page.locator(part).bounding_box()["x"] for part in ("#stage", "#chat", "#question", "#strip")]) < 2


def test_the_embedded_model_watches_the_example_and_answers(browser):
    """The real thing, from the first click to an answer with its moment."""
    from app.page.ui import build, launch_options
    from pipeline import Engine, UserError, load

    try:
        engine = Engine(load("embedded"))
    except (UserError, ImportError) as error:
        pytest.skip(f"the embedded model is not here: {error}")
    table = Sessions(engine)
    page = build(table)
    _, address, _ = page.queue().launch(prevent_thread_lock=True, quiet=True, inbrowser=False, **launch_options(table))
    visitor = browser.new_page()
    visitor.goto(address)
    visitor.click("#go")
    visitor.wait_for_selector("#line strong:has-text('Ended')", timeout=90_000)
    assert "0:10" in ask(visitor, "When does the clock appear?")
    assert "seen until 1:10" in visitor.inner_text("#chat .facts")
    assert visitor.locator("#chat .chip").count() >= 1
    assert "four oranges" in ask(visitor, "How many oranges are there?")
    assert "0:51" in ask(visitor, "Did the balloon come back?")
    suggested = visitor.locator("#suggestions button").all_inner_texts()
    assert "How many oranges are there?" in suggested and "When does a balloon appear?" in suggested
    visitor.close()
    page.close(verbose=False)
    table.shut()


def test_going_back_makes_a_stream_of_its_own_and_another_video_goes_on_from_it(visitor, clip):
    """The one it comes from stays in the list; seconds are the stream's, and those of an earlier video seek nothing."""
    page = visitor()
    upload(page, clip)
    state(page, "Ended")
    seen = page.inner_text("#strip .tile:has-text('Frames seen') b")
    page.click("#forking button >> nth=0")
    page.fill("#back-to textarea, #back-to input", "twelve")
    page.click("#back")
    page.wait_for_selector("#said:has-text('write it like 12:40')")
    page.fill("#back-to textarea, #back-to input", "0:03")
    page.click("#back")
    page.wait_for_selector("#forked:has-text('as it was at 0:03')")
    state(page, "Paused at 0:03")
    assert "4 frames" in ask(page, "What if it ended here?")
    page.click("#joins input")
    page.click("#source label:has-text('Example')")
    page.click("#go")
    page.wait_for_selector("#forked:has-text('Example begins at 0:04 of this stream')")
    page.wait_for_selector("#film .track[data-begins='4.000']")
    assert page.evaluate("window.vambaSeek(2)") is False and page.evaluate("window.vambaSeek(6)") is True
    page.wait_for_function("Math.abs(window.vambaPlayerTime() - 6) < 2")
    page.click("#mine summary")
    page.wait_for_selector("#mine li >> nth=2")
    page.locator("#mine li:has-text('Ended') button:has-text('Open')").click()
    state(page, "Ended")
    assert page.inner_text("#strip .tile:has-text('Frames seen') b") == seen
    assert page.locator("#chat .user-row").count() == 0
