"""Server-sent events: an EventSource of the browser's own, a client that is cut off and comes again, and who gets
none."""

from __future__ import annotations

import json

import httpx
import pytest

from app.live.view import View
from app.page.feed import GONE, after, name_of
from pipeline import Event
from tests.fake_model import ended, until
from tests.page.conftest import state

LISTEN = """(ticket) => { window.heard = []; const source = new EventSource("/live/events?ticket=" + ticket);
  for (const kind of ["shot", "caption", "chapter", "alert"])
    source.addEventListener(kind, (event) => window.heard.push([event.lastEventId, JSON.parse(event.data)]));
  source.addEventListener("closed", () => { source.close(); window.over = true; }); }"""


def test_only_what_has_ended_is_told_and_nothing_twice_or_never():
    shots = [Event(float(n), "shot", until=n + 1.0) for n in range(4)]
    view = View(events=(*shots, Event(4.0, "shot")))
    assert after(view, "") == shots and after(view, "what was dropped") == shots
    for n, shot in enumerate(shots):
        assert after(view, name_of(shot)) == shots[n + 1 :]
    names = {name_of(event) for event in [*shots, Event(0.0, "shot", "x", until=1.0), Event(0.0, "alert", until=1.0)]}
    assert len(names) == 6


@pytest.fixture
def watched(sessions, url, clip):
    key, session = sessions.ensure(None, program=True)
    session.open_file(str(clip))
    yield key, session
    sessions.close(key)


def ticket(url: str, key: str) -> str:
    reply = httpx.post(f"{url}live/ticket", headers={"x-vamba-key": key})
    return reply.json()["ticket"] if reply.status_code == 200 else reply.text


def told(url: str, one: str, wanted: int, last: str = "") -> list[tuple[str, str, dict]]:
    """(id, kind, event) of the first events that a client gets, before it goes."""
    found: list[tuple[str, str, dict]] = []
    headers = {"last-event-id": last} if last else {}
    with httpx.stream("GET", f"{url}live/events", params={"ticket": one}, headers=headers, timeout=30) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        for line in reply.iter_lines():
            name, _, value = line.partition(": ")
            if value:
                fields[name] = value
            elif "data" in fields and "id" in fields:
                found.append((fields["id"], fields["event"], json.loads(fields["data"])))
                fields = {}
            if len(found) == wanted:
                break
    return found


def test_who_was_cut_off_gets_what_came_after_and_nobody_else_anything(watched, url):
    key, session = watched
    until(lambda: ended(session) and session.view().events and session.view().events[-1].until is not None)
    count = len(session.view().events)
    one = ticket(url, key)
    assert key not in one
    whole = told(url, one, count)
    assert [event["kind"] for _, _, event in whole] == [kind for _, kind, _ in whole] and count > 1
    assert told(url, one, count - 1, last=whole[0][0]) == whole[1:]
    assert ticket(url, "a" * 22) == GONE
    assert httpx.get(f"{url}live/events", params={"ticket": key}).status_code == 404, "a key is no ticket"
    assert httpx.get(f"{url}live/events").status_code == 404


@pytest.mark.browser
def test_an_event_source_of_the_browser_hears_them_as_they_come_and_the_end(visitor, sessions, url):
    page = visitor()
    page.click("#go")
    page.wait_for_selector("#film .chip")
    (key,) = sessions._by_key
    page.evaluate(LISTEN, ticket(url, key))
    state(page, "Ended")
    session = sessions.get(key)
    until(lambda: len(page.evaluate("window.heard")) == len(session.view().events) > 1)
    heard = page.evaluate("window.heard")
    assert [one["time"] for _, one in heard] == [event.time for event in session.view().events]
    sessions.close(key)
    until(lambda: page.evaluate("window.over === true"))
