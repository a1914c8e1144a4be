"""Tabs and servers: who listens is told, an idle page asks for nothing, a closed tab's stream is found again, and a
server that is gone is said to be."""

from __future__ import annotations

import socket

import pytest

from app.live.table import Sessions
from app.page.ui import build, launch_options
from tests.fake_model import fake_engine, until
from tests.page.conftest import ask, hide, state

pytestmark = pytest.mark.browser


def requests_of(page) -> list[str]:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    return sent


def test_a_page_where_nothing_moves_asks_for_nothing(visitor):
    page = visitor()
    page.wait_for_timeout(1500)
    sent = requests_of(page)
    page.wait_for_timeout(4000)
    assert sent == []
    page.click("#go")
    state(page, "Ended")
    page.wait_for_timeout(2000)
    sent.clear()
    page.wait_for_timeout(4000)
    assert sent == [], "nor after the end"


@pytest.fixture
def unhurried(sessions, monkeypatch):
    """The example takes 20 seconds or more, so that it is still watched when a busy machine comes to look."""
    monkeypatch.setattr(sessions.engine.model, "watch_s", 0.3)


def test_a_hidden_page_asks_for_nothing_and_catches_up_when_it_is_looked_at(visitor, sessions, unhurried):
    page = visitor()
    page.click("#go")
    page.wait_for_selector("#film .chip >> nth=2")
    hide(page, True)
    page.wait_for_timeout(1000)  # what was under way
    (place,) = sessions._by_key.values()
    sent, before, shown = requests_of(page), place.session.view().frames, page.inner_text("#line strong")
    page.wait_for_timeout(4000)
    assert place.session.view().frames > before, "the stream goes on"
    assert sent == [] and page.inner_text("#line strong") == shown
    hide(page, False)
    until(lambda: page.inner_text("#line strong") not in (shown, ""))
    assert len([one for one in sent if one.endswith("live/changes")]) == 1


def test_two_tabs_with_one_key_follow_pause_and_end(visitor, unhurried):
    one = visitor()
    one.click("#go")
    one.wait_for_selector("#film .chip")
    key = one.evaluate("sessionStorage.getItem('vamba-live')")
    two = one.context.new_page()
    two.add_init_script(f"sessionStorage.setItem('vamba-live', '{key}')")
    two.goto(one.url)
    state(two, "Watching")
    two.click("#go:has-text('Pause')")
    for page in (one, two):
        state(page, "Paused")
        page.wait_for_selector("#go:has-text('Resume')")
    one.click("#go")
    for page in (one, two):
        state(page, "Ended")


def test_a_closed_tab_finds_its_stream_again_and_deletes_it(visitor, sessions):
    first = visitor()
    first.click("#go")
    first.wait_for_selector("#film .chip")
    ask(first, "Do you remember?")
    context, address = first.context, first.url
    keeper = context.new_page()  # the browser stays open
    first.close()
    keeper.goto(address)
    keeper.wait_for_selector("#mine summary:has-text('1 elsewhere')")
    assert "Idle" in keeper.inner_text("#line") and "vamba" not in keeper.url
    keeper.click("#mine summary")
    assert "Example" in keeper.inner_text("#mine li") and "questions: 1" in keeper.inner_text("#mine li")
    keeper.click("#mine button:has-text('Open')")
    keeper.wait_for_selector("#chat .user-row:has-text('Do you remember?')")
    keeper.wait_for_selector("#film .chip")
    other = context.new_page()
    other.goto(address)
    other.wait_for_selector("#mine summary:has-text('1 elsewhere')")
    other.click("#mine summary")
    other.click("#mine button:has-text('Delete')")
    other.wait_for_selector("#mine summary:text-is('My streams')")
    assert len(sessions) == 0
    keeper.wait_for_selector("#notice:has-text('no longer has Example')")


def test_a_stranger_sees_nobodys_streams(visitor):
    one, two = visitor(), visitor()
    one.click("#go")
    one.wait_for_selector("#film .chip")
    two.reload()
    two.wait_for_selector("#go")
    two.click("#mine summary")
    two.wait_for_timeout(500)
    assert two.locator("#mine li").count() == 0 and two.inner_text("#mine summary") == "My streams"


def test_keys_are_in_no_address(visitor):
    page = visitor()
    sent = requests_of(page)
    page.click("#go")
    page.wait_for_selector("#film .chip")
    ask(page, "What is it?")
    key = page.evaluate("sessionStorage.getItem('vamba-live')")
    assert len(key) > 20 and len(sent) > 5 and not any(key in address for address in sent)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def serve(port: int):
    table = Sessions(fake_engine(watch_s=0.05), None)
    page = build(table)
    options = {"prevent_thread_lock": True, "quiet": True, "inbrowser": False, "server_port": port}
    page.queue().launch(**options, **launch_options(table))

    def end() -> None:
        page.close(verbose=False)
        table.shut()

    return end


def test_a_server_that_is_gone_is_said_to_be_and_what_was_lost_when_it_is_back(browser):
    port = free_port()
    end = serve(port)
    context = browser.new_context()
    page, idle = context.new_page(), context.new_page()
    for one in (idle, page):
        one.set_default_timeout(30_000)
        one.goto(f"http://127.0.0.1:{port}")
        one.wait_for_selector("#go")
    page.click("#go")
    page.wait_for_selector("#film .chip >> nth=2")
    ask(page, "Is it there?")
    end()
    page.wait_for_selector("#notice.gone:has-text('Trying again')", timeout=10_000)
    end = serve(port)
    page.wait_for_selector("#notice.lost:has-text('Example')")
    assert "its question" in page.inner_text("#notice") and "seen until" in page.inner_text("#notice")
    page.click("#go:has-text('Start')")
    page.wait_for_selector("#film .chip >> nth=2")
    until(lambda: page.locator("#notice").count() == 0)
    idle.bring_to_front()
    until(lambda: idle.locator("#notice").count() == 0)
    assert "Idle" in idle.inner_text("#line"), "who had started nothing lost nothing"
    context.close()
    end()


def test_the_film_strip_does_not_move_under_the_pointer(visitor, unhurried):
    page = visitor()
    page.click("#go")
    page.wait_for_selector("#film .chip >> nth=3")
    page.hover("#film .chip >> nth=2")
    page.wait_for_timeout(600)  # what was under way
    times = "() => [...document.querySelectorAll('#film .chip')].map((chip) => chip.dataset.seek).join()"
    held = page.evaluate(times)
    page.wait_for_timeout(2500)
    state(page, "Watching")
    assert page.evaluate(times) == held
    page.mouse.move(5, 5)
    until(lambda: page.evaluate(times) != held)
