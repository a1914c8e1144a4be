"""The webcam and the shared screen: the button does the next sensible thing, or a sentence says why not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from app.live.view import Phase
from app.page.handlers import REFUSED, SWITCH_ON
from pipeline import UserError, decode_jpeg
from tests.fake_model import until
from tests.page.conftest import state

pytestmark = pytest.mark.browser
ON = "window.vambaFilming()"


def choose(page, source: str) -> None:
    page.click(f"#source label:has-text('{source}')")


def button(page, words: str) -> None:
    page.wait_for_selector(f"#go:has-text('{words}')")


def film(page, source: str = "Webcam") -> None:
    choose(page, source)
    page.wait_for_selector("#camera .live", state="visible")
    page.click("#go")
    state(page, "Watching")
    button(page, "Pause")


def only(sessions):
    return next(iter(sessions._by_key.values())).session


@pytest.mark.parametrize("source", ["Webcam", "Screen"])
def test_pause_rests_what_films_and_resume_goes_on(visitor, sessions, source):
    page = visitor()
    film(page, source)
    page.click("#go")
    state(page, "Paused")
    until(lambda: not page.evaluate(ON))
    light = page.evaluate("document.querySelector('#camera video').srcObject?.active ?? false")
    assert light == (source == "Screen"), "a webcam's light goes out; a screen would have to be chosen again"
    frames = only(sessions).view().frames
    page.wait_for_timeout(2500)
    assert only(sessions).view().frames <= frames + 1, "what was under way, and no more"
    page.click("#go")
    button(page, "Pause")
    until(lambda: page.evaluate(ON) and only(sessions).view().frames > frames + 1)
    assert only(sessions).view().source == source


def test_another_tab_of_the_sources_does_not_switch_the_camera_off(visitor, sessions):
    page = visitor()
    film(page)
    choose(page, "Upload")
    button(page, "Start")
    choose(page, "Webcam")
    button(page, "Pause")
    frames = only(sessions).view().frames
    until(lambda: page.evaluate(ON) and only(sessions).view().frames > frames)


def test_watching_something_else_switches_the_camera_off(visitor):
    page = visitor()
    film(page)
    choose(page, "Example")
    button(page, "Start")
    page.click("#go")
    button(page, "Pause")
    until(lambda: not page.evaluate(ON))


def test_a_reload_goes_on_filming(visitor, sessions):
    page = visitor()
    film(page)
    page.reload()
    page.wait_for_selector("#camera .live.on")
    frames = only(sessions).view().frames
    until(lambda: only(sessions).view().frames > frames + 1)
    button(page, "Pause")


def test_a_camera_that_went_away_is_switched_on_again_by_the_button(visitor, sessions):
    """As after a reload that may not film by itself: the stream is there, and no picture comes."""
    page = visitor()
    film(page)
    page.evaluate("window.vambaCameraOff()")
    button(page, SWITCH_ON)
    assert "Waiting for the camera" in page.inner_text("#line")
    page.click("#go")
    button(page, "Pause")
    until(lambda: page.evaluate(ON) and not only(sessions).view().silent)


def test_sharing_that_the_browser_ends_pauses_the_stream(visitor, sessions):
    page = visitor()
    film(page, "Screen")
    page.evaluate("document.querySelector('#camera video').srcObject.getVideoTracks()[0].onended()")
    state(page, "Paused")
    assert only(sessions).view().phase is Phase.PAUSED and not page.evaluate(ON)
    page.click("#go")
    state(page, "Watching")
    until(lambda: page.evaluate(ON))


@pytest.mark.parametrize(
    "name, why", [("NotAllowedError", "denied"), ("NotFoundError", "missing"), ("NotReadableError", "busy")]
)
def test_a_refused_camera_gets_its_sentence_and_the_button_tries_again(visitor, sessions, name, why):
    page = visitor()
    page.evaluate(
        f"""() => {{ const media = navigator.mediaDevices; window.real = media.getUserMedia.bind(media);
        media.getUserMedia = async () => {{ throw new DOMException("no", "{name}"); }}; }}"""
    )
    choose(page, "Webcam")
    page.wait_for_selector("#camera .live", state="visible")
    page.click("#go")
    page.wait_for_selector("#line .state.error")
    assert REFUSED[why] in page.inner_text("#line") and not any(one.session.watch for one in sessions._by_key.values())
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = window.real; }")
    page.click("#go:has-text('Start')")
    state(page, "Watching")


@pytest.mark.parametrize("words", [b"", b"not a picture", b"\xff\xd8\xff\xe0" + b"\0" * 100, b"GIF89a" + b"\0" * 50])
def test_what_is_no_picture_is_refused_in_words(words):
    with pytest.raises(UserError, match="not a picture"):
        decode_jpeg(words)


def test_a_picture_that_is_too_large_is_never_unpacked():
    made = {}
    for side in (1_000, 2_000):
        made[side] = io.BytesIO()
        Image.new("RGB", (side, side), (9, 99, 199)).save(made[side], "JPEG")
    assert decode_jpeg(made[1_000].getvalue()).shape == (1_000, 1_000, 3)
    assert np.abs(decode_jpeg(made[1_000].getvalue())[0, 0].astype(int) - (9, 99, 199)).max() < 6
    with pytest.raises(UserError):
        decode_jpeg(made[2_000].getvalue())
