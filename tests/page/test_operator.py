"""Operator sources and the probe of what is remembered, on a real page; and that no visitor can name an address."""

from __future__ import annotations

import threading

import gradio_client
import httpx
import pytest

from app.live.table import Sessions
from app.live.view import NOTHING_WATCHED, Recalled, View
from app.page.recalled import recalled
from app.serve import settings_from
from pipeline import Aged, Engine, Score, UserError, addresses
from tests.fake_model import fake_engine, picture, until
from tests.page.conftest import ask, state
from tests.page.test_feed import ticket, told
from tests.sources.serving_live import Recorder
from tests.timeline.test_recall import Forgetful


class Keen(Forgetful):
    """Has an index and answers on a page."""

    unit_frames, long_side, backend, caption_question, about = 1, 64, "cpu", "", "For tests."


@pytest.fixture(scope="module")
def recorder(folder) -> Recorder:
    (folder / "recordings").mkdir()
    made = Recorder(folder / "recordings", seconds=4.0)
    made.record(1, age=20.0)
    return made


@pytest.fixture(scope="module")
def sessions(recorder):
    rival = Keen(0.0)
    rival.name = "Twin"
    table = Sessions(Engine(Keen(1e6)), Engine(rival), places=4, sources=addresses([f"Yard={recorder.folder}"]))
    yield table
    table.shut()


def choose(page, source: str) -> None:
    page.click(f"#source label:has-text('{source}')")


@pytest.mark.browser
def test_visitors_watch_and_ask_of_a_source_that_none_of_them_can_touch(visitor, sessions, recorder):
    one, two = visitor(), visitor()
    for page in (one, two):
        choose(page, "Yard")
        page.wait_for_selector("#operator .live")
        page.click("#go")
        page.wait_for_selector("#go:has-text('Watched for all')")
        assert page.is_disabled("#go")
    one.wait_for_selector("#operator img:not([hidden])")
    until(lambda: one.evaluate("document.querySelector('#operator img').naturalWidth") == 64)
    state(two, "Wa")
    assert "I do not know." in ask(one, "What did you see at 0:00?") or "A cat." in one.inner_text("#chat")
    assert "0:00" not in two.inner_text("#chat")
    one.click("#reset")
    before = sessions.shared["Yard"].viewings[0].frames
    recorder.record()
    until(lambda: sessions.shared["Yard"].viewings[0].frames > before, 30)
    assert str(recorder.folder) not in one.content() + two.content()
    two.click("#probe")
    two.wait_for_selector("#recalled p:has-text('younger than a minute')")
    sources = sum(thread.name == "live source" for thread in threading.enumerate())
    assert sources == 1


def test_programs_open_sources_by_name_and_addresses_never(url, sessions, recorder):
    client = gradio_client.Client(url, verbose=False)
    assert client.predict(api_name="/sources") == ["Yard"]
    key = client.predict("Yard", api_name="/open")
    session = sessions.get(key)
    until(lambda: session.view().frames >= 4, 30)
    status = client.predict(key, api_name="/status")
    assert status["frames"] >= 4 and str(recorder.folder) not in repr(status)
    recorder.record(2, age=0.0)
    until(lambda: any(event.kind == "gap" for event in session.view().events), 30)
    wanted = sum(event.until is not None for event in session.view().events)
    assert "gap" in [kind for _, kind, _ in told(url, ticket(url, key), wanted)]
    newest = httpx.post(f"{url}live/newest", headers={"x-vamba-key": key})
    assert newest.headers["content-type"] == "image/jpeg" and newest.content.startswith(b"\xff\xd8")
    assert httpx.post(f"{url}live/newest", headers={"x-vamba-key": "a" * 22}).status_code == 404
    assert client.predict(key, api_name="/recall")["models"][0]["ages"][0]["young"] is True
    for address in ("rtsp://127.0.0.1:1/x", "http://127.0.0.1:1/live.m3u8", str(recorder.folder), "/etc/passwd"):
        with pytest.raises(Exception, match="no source of this name"):
            client.predict(address, api_name="/open")
    client.predict(key, api_name="/close")


def test_nothing_that_a_visitor_sends_becomes_an_address(sessions, tmp_path):
    """Gradio's own routes take anything: a source, a file's path, a name."""
    from app.page.handlers import Events

    class Request:
        session_hash = "one"

    do, key = Events(sessions, tmp_path / "none.mp4"), sessions.issue()
    before = [thread.name for thread in threading.enumerate()].count("live source")
    for source in ("rtsp://127.0.0.1:1/x", "Door=rtsp://127.0.0.1:1/x", str(tmp_path)):
        _, line, _ = do.press("Start", source, None, key, Request())
        assert "There is no file yet" in line
        _, line, _ = do.press("Start", "Upload", source, key, Request())
        assert "nothing was watched" in line or "no longer here" in line
    assert [thread.name for thread in threading.enumerate()].count("live source") == before


def test_flags_name_sources(tmp_path):
    assert settings_from([]).sources == ()
    given = settings_from(["--source", f"Yard={tmp_path}", "--source", "rtsp://u:s3cret@host/x"]).sources
    assert [(one.name, one.kind) for one in given] == [("Yard", "folder"), ("Source 2", "rtsp")]
    assert "s3cret" not in repr(settings_from(["--source", "rtsp://u:s3cret@host/x"]))
    for mistake in (f"Upload={tmp_path}", "rtsp://", f"{tmp_path}/none"):
        with pytest.raises(UserError):
            settings_from(["--source", mistake])


# The probe


def test_a_number_stands_with_what_it_is_of_and_none_where_there_is_none():
    young = Aged(900, 0), Aged(3600, 0)
    own = (Aged(60, 8, 8, Score(7, 9), Score(0, 0)), Aged(300, 8, 8, Score(3, 9), Score(2, 4)), *young)
    rival = (Aged(60, 8, 8, Score(9, 9), Score(1, 2)), Aged(300, 8, 8, Score(0, 9), Score(1, 4)), *young)
    view = View(names=("Vamba (x)", "T<b>win"), recalled=Recalled((own, rival), 700.0, 16, 16))
    words = recalled(view)
    low, high = Score(7, 9).interval
    assert f"78 % of 9 ({100 * low:.0f} to {100 * high:.0f} %)" in words and "nothing there to name" in words
    assert words.count("The stream is younger: 11:40.") == 2 and "NaN" not in words and "nan %" not in words
    assert "T<b>" not in words and words.count("<circle") == 7 and words.count('scope="row"') == 4
    assert "Asking: moment 3 of 16" in recalled(View(recalled=Recalled((own,), 700.0, 2, 16), names=("Vamba",)))
    assert "younger than a minute" in recalled(View(recalled=Recalled(((Aged(60, 0),),), 30.0, 0, 0), names=("V",)))
    assert recalled(View()) == "" and "alert" in recalled(View(recalled=Recalled(error="<i>No.")))


def test_a_probe_of_a_session_asks_both_models_and_ends_with_its_stream():
    table = Sessions(Engine(Keen(1e6)), Engine(Keen(0.0)), places=2)
    try:
        _, session = table.ensure(None)
        with pytest.raises(UserError, match=NOTHING_WATCHED.format("remembered")[:20]):
            session.probe()
        session.open_camera()
        session.compare(True)
        session.probe()
        until(lambda: session.view().recalled.over)
        assert "there is nothing to" in session.view().recalled.error
        session.open_camera()
        assert session.view().recalled is None
    finally:
        table.shut()


def test_a_model_without_an_index_says_so():
    table = Sessions(fake_engine(), places=2)
    try:
        _, session = table.ensure(None)
        session.offer(picture((1, 2, 3)))
        until(lambda: session.view().frames)
        session.probe()
        until(lambda: session.view().recalled.over)
        assert "keeps no index" in session.view().recalled.error
    finally:
        table.shut()
