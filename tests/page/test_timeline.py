"""The timeline under the player: true to time, moved by pointer and keyboard, read out once, and reached by a link."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from app.live.view import ModelView, Phase, Picture, Turn, View
from app.page.timeline import listed, timeline, track
from pipeline import Answer, Event, Evidence
from tests.fake_model import until
from tests.page.conftest import ask, player_time, state

SHOTS = (Event(0.0, "shot", weight=1.0, until=25.0), Event(25.0, "shot", weight=0.5))
SEEN = View(
    phase=Phase.WATCHING,
    duration=100.0,
    models=(ModelView("a", "cpu", frames=50, seen_until=50.0),),
    film=(Picture(0.0, b"jpeg"),),
    events=(*SHOTS, Event(25.0, "caption", "A <b>cat</b>.", until=40.0), Event(30.0, "alert", "a cat is there")),
)


def test_the_track_is_true_to_time():
    html = track(SEEN)
    assert 'class="seen" style="width:50.00%"' in html and 'aria-valuemax="100"' in html
    assert 'class="shot" style="left:0.00%;width:25.00%"' in html
    assert 'class="shot" style="left:25.00%;width:25.00%"' in html, "what goes on reaches to what was seen"
    assert 'class="mark alert" style="left:30.00%"' in html


def test_marks_are_those_of_whole_answers_about_this_stream():
    evidence = (Evidence(10.0, 1.0, 9.0, 11.0),)
    turns = (
        Turn(1, "one", answer=Answer("x", 1.0, 2.0, evidence, done=True)),
        Turn(2, "two", answer=Answer("x", 1.0, 2.0, evidence)),
        Turn(3, "three", answer=Answer("x", 1.0, 2.0, evidence, done=True), stream=7),
        Turn(4, "four", error="no"),
    )
    html = track(View(duration=20.0, conversations=(turns, ())))
    assert html.count("mark answer") == 1 and 'left:50.00%" title="0:10 An answer rests on this: one"' in html


def test_words_of_models_are_never_markup_and_a_stream_without_pictures_has_no_timeline():
    assert "<b>cat" not in timeline(SEEN) and "A &lt;b&gt;cat&lt;/b&gt;." in timeline(SEEN)
    assert timeline(View()) == ""


def test_a_camera_cannot_be_sought():
    html = timeline(replace(SEEN, live=True))
    assert 'role="slider"' not in html and 'data-length="50.000"' in html
    assert "data-seek" not in listed(replace(SEEN, live=True))


@pytest.mark.parametrize("kind, named", [("speech", "Speech"), ("text", "Writing"), ("gap", "")])
def test_what_is_heard_read_or_missed_shows_too(kind, named):
    """Whoever notices it; whatever its words are, they are words."""
    event = Event(10.0, kind, "<i>EXIT</i>", until=20.0)
    html, lines = track(replace(SEEN, events=(event,))), listed(replace(SEEN, events=(event,)))
    place = f'class="mark {kind}" style="left:10.00%"' if named else 'class="gap" style="left:10.00%;width:10.00%"'
    assert place in html and "<i>EXIT" not in html
    assert f"{named}: </strong>&lt;i&gt;EXIT&lt;/i&gt;" in lines if named else "&lt;i&gt;EXIT&lt;/i&gt;" in lines
    heard = f'data-captions="0 {SEEN.phase} {int(kind == "speech")}"'
    assert heard in html, "speech is among the subtitles"


def test_a_day_of_shots_stays_a_track():
    shots = tuple(Event(float(at), "shot", weight=at % 7 / 7, until=at + 1.0) for at in range(5_000))
    assert track(View(duration=5_000.0, events=shots)).count('class="shot"') == 300


PLACE = """() => { const [bar, head] = [".track", ".playhead"]
    .map((one) => document.querySelector(`#film ${one}`).getBoundingClientRect());
    return (head.x + head.width / 2 - bar.x) / bar.width; }"""


@pytest.fixture
def page(visitor, sessions, monkeypatch):
    """The example, watched whole by a model that says something of every piece."""
    monkeypatch.setattr(sessions.engine.model, "shows", lambda _, start, end: f"Words of {start:.0f}.")
    one = visitor()
    one.click("#go")
    state(one, "Ended")
    one.wait_for_selector("#film .track .shot >> nth=3")
    one.evaluate("document.querySelector('#example video').pause()")
    return one


@pytest.mark.browser
def test_click_drag_and_keys_seek_and_what_was_seen_shows(page):
    bar = page.locator("#film .track")
    bar.scroll_into_view_if_needed()
    box = bar.bounding_box()
    stage = page.locator("#stage").bounding_box()
    assert abs(box["x"] - stage["x"]) < 12 and abs(box["width"] - stage["width"]) < 24, "under the player, as wide"

    def at(share: float) -> tuple[float, float]:
        return box["x"] + share * box["width"], box["y"] + box["height"] / 2

    page.mouse.click(*at(0.5))
    until(lambda: player_time(page) == pytest.approx(35.5, abs=0.5))
    until(lambda: page.evaluate(PLACE) == pytest.approx(0.5, abs=0.01))
    page.mouse.move(*at(0.25))
    until(lambda: page.inner_text("#film .caption").startswith("0:17 Words of 1"))
    page.mouse.down()
    for share in (0.4, 0.6, 0.75):
        page.mouse.move(*at(share))
    page.mouse.up()
    until(lambda: player_time(page) == pytest.approx(53.2, abs=0.5))
    bar.focus()
    for key, second in (("Home", 0), ("ArrowRight", 5), ("PageUp", 35), ("ArrowLeft", 30), ("End", 71)):
        page.keyboard.press(key)
        until(lambda second=second: player_time(page) == pytest.approx(second, abs=0.5))
    assert bar.get_attribute("aria-valuetext").startswith("1:1")


@pytest.mark.browser
def test_what_was_seen_is_a_list_that_seeks_stays_open_and_marks_come_with_answers(page):
    page.click("#film .events summary")
    page.click("#film .events li >> nth=2 >> button")
    said = page.inner_text("#film .events li >> nth=2")
    until(lambda: 0 < player_time(page) < 20 and said.split(" ", 1)[1] in page.inner_text("#film .caption"))
    assert page.inner_text("#film .events li[aria-current]") == said
    ask(page, "What is it?")
    page.wait_for_selector("#film .track .mark.answer", state="attached")
    assert page.locator("#film .events[open]").count() == 1
    told = page.locator("#told")
    assert told.get_attribute("aria-live") == "polite" and told.inner_text().strip().startswith("1:")


LOADED = """(text) => new Promise((done, failed) => {
    const track = Object.assign(document.createElement("track"), { kind: "captions", default: true });
    track.src = URL.createObjectURL(new Blob([text], { type: "text/vtt" }));
    track.onload = () => done([...track.track.cues].map((cue) => [cue.startTime, cue.endTime, cue.text]));
    track.onerror = () => failed("not read");
    document.querySelector("#example video").append(track);
    track.track.mode = "hidden"; })"""


@pytest.mark.browser
def test_the_player_has_what_was_seen_as_subtitles_and_zoom_makes_room(page):
    page.wait_for_selector("#example video track", state="attached")
    assert page.evaluate("document.querySelector('#example track').track.mode") == "disabled", (
        "the visitor's to switch on"
    )
    assert page.evaluate("document.querySelector('#example track').readyState") != 3, "an error would stay"
    page.evaluate("document.querySelector('#example track').track.mode = 'showing'")
    page.wait_for_function("document.querySelector('#example track').track.cues?.length > 10")
    active = "[...document.querySelector('#example track').track.activeCues]"
    cue = f"{active}.map((cue) => [cue.startTime, cue.endTime, cue.text])"
    for at in (30.5, 0.5):
        page.evaluate(f"document.querySelector('#example video').currentTime = {at}")
        until(lambda at=at: [start <= at < end for start, end, _ in page.evaluate(cue)] == [True])
        assert page.evaluate(cue)[0][2] in page.inner_text("#film .caption")
    zoomed(page)


VISIBLE = """() => { const [pane, head] = [".window", ".playhead"]
    .map((one) => document.querySelector(`#film ${one}`).getBoundingClientRect());
    return pane.left <= head.left && head.right <= pane.right; }"""


def zoomed(page) -> None:
    """The track is wider than its window, which follows the playhead, and true to time all the same."""
    bar, pane = page.locator("#film .track"), page.locator("#film .window")
    narrow = bar.bounding_box()["width"]
    page.click("#film [data-zoom='2']")  # 71 s: a minute is as close as it gets
    until(lambda: bar.bounding_box()["width"] == pytest.approx(narrow * 71 / 60, rel=0.03))
    assert " to " in page.inner_text("#film .zoom small")
    bar.focus()
    page.keyboard.press("End")
    until(lambda: page.evaluate(VISIBLE) and page.evaluate(PLACE) > 0.98)
    box = pane.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 15)
    until(lambda: player_time(page) == pytest.approx(71 - 30, abs=2))
    bar.focus()
    page.keyboard.press("-")
    until(lambda: bar.bounding_box()["width"] == pytest.approx(narrow, rel=0.01))


@pytest.mark.browser
def test_captions_and_costs_are_saved_and_the_browser_itself_reads_the_captions(page):
    files = {}
    for kind in ("vtt", "srt", "csv"):
        with page.expect_download() as download:
            page.click(f"#save-as-{kind}")
        files[download.value.suggested_filename] = Path(download.value.path()).read_text()
    assert files["captions.srt"].startswith("1\n00:00:00,000 --> ") and files["costs.csv"].startswith("model,at_s,")
    cues = page.evaluate(LOADED, files["captions.vtt"])
    assert len(cues) > 10 and cues[0][0] == 0 and cues[0][2] == "Words of 0."
    assert all(start < end for start, end, _ in cues) and files["captions.srt"].count(" --> ") == len(cues)
    assert len(files["costs.csv"].splitlines()) > 10


@pytest.mark.browser
def test_an_address_with_a_time_begins_there(page):
    for link, second in (("#t=0:42", 42), ("#t=7", 7), ("#t=0:01:02", 62)):
        page.evaluate(f"location.hash = '{link}'")
        until(lambda second=second: player_time(page) == pytest.approx(second, abs=0.3))
    for junk in ("#t=x", "#t=1:2:3:4", "#elsewhere"):
        page.evaluate(f"location.hash = '{junk}'")
    page.wait_for_timeout(300)
    assert player_time(page) == pytest.approx(62, abs=0.3)
    page.evaluate("location.hash = '#t=0:20'")
    page.reload()
    page.wait_for_selector("#film .track")
    until(lambda: player_time(page) == pytest.approx(20, abs=0.5))
