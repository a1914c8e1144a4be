"""The table of sessions: a key opens one door, places are few, and who has gone makes room."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import gradio as gr
import pytest

from app.live.line import LINE_S
from app.live.room import IDLE_S, KEEP_S, LEFT_S, PROGRAM_S
from app.live.table import Sessions
from app.page.handlers import Events
from pipeline import Engine, UserError
from tests.fake_model import RED, FakeModel, ended, fake_engine, picture, until


@pytest.fixture
def table():
    """table(places) -> Sessions, shut afterwards."""
    tables = []

    def make(places=3, **options) -> Sessions:
        tables.append(Sessions(fake_engine(**options), places=places))
        return tables[-1]

    yield make
    for one in tables:
        one.shut()


def test_keys_are_long_and_open_one_door_only(table):
    sessions = table()
    (key, one), (other, two) = sessions.ensure(None), sessions.ensure(None)
    assert len(key) >= 22 and key != other and one is not two
    assert sessions.get(key) is one and sessions.ensure(key) == (key, one)
    for guess in (None, "", "x" * 22, key[:-1], 7, [key]):
        assert sessions.get(guess) is None


def test_a_full_table_says_so_and_makes_room_by_the_longest_gone(table):
    sessions = table(places=2)
    first, _ = sessions.ensure(None, "page 1")
    second, _ = sessions.ensure(None, "page 2")
    with pytest.raises(UserError, match="All 2 places"):
        sessions.ensure(None)
    sessions.leave("page 2")
    sessions.leave("page 1")
    sessions._by_key[first].touched += 1
    third, _ = sessions.ensure(None)
    assert sessions.get(second) is None and sessions.get(first) and sessions.get(third) and len(sessions) == 2


def test_an_unused_place_gives_way_but_a_used_one_does_not(table, monkeypatch):
    sessions = table(places=2)
    unused, _ = sessions.ensure(None)
    used, session = sessions.ensure(None)
    session.offer(picture(RED))
    monkeypatch.setattr("app.live.room.UNUSED_S", -1)
    new, _ = sessions.ensure(None)
    assert sessions.get(unused) is None and sessions.get(used) is session and sessions.get(new)


def test_who_left_a_camera_goes_soon_and_who_left_a_file_stays_an_hour(table, clip):
    sessions = table(watch_s=0.02)
    camera, one = sessions.ensure(None, "page 1")
    one.offer(picture(RED))
    file, two = sessions.ensure(None, "page 2")
    two.open_file(clip)
    sessions.leave("page 1")
    sessions.leave("page 2")
    now = time.monotonic()
    assert sessions.reap(now + LEFT_S - 1) == 0
    assert sessions.reap(now + LEFT_S + 1) == 1 and camera not in sessions._by_key
    until(lambda: ended(two))  # it goes on being watched without its page
    assert sessions.reap(now + KEEP_S - 5) == 0
    assert sessions.reap(now + KEEP_S + 5) == 1 and file not in sessions._by_key and two.watch is None


def test_a_page_that_comes_back_keeps_its_camera(table):
    sessions = table()
    key, session = sessions.ensure(None, "page")
    session.offer(picture(RED))
    sessions.leave("page")
    assert sessions.get(key) is session
    assert sessions.reap(time.monotonic() + LEFT_S + 1) == 0
    assert sessions.reap(time.monotonic() + IDLE_S + 1) == 1


def test_pages_whose_session_is_over_are_forgotten(table):
    sessions = table()
    over, _ = sessions.ensure(None, "page 1")
    kept, _ = sessions.ensure(None, "page 2")
    for reload in range(20):
        sessions.get(over, f"reload {reload}")
    sessions.close(over)
    sessions.reap()
    assert sessions._pages == {"page 2": kept}


def test_the_reaper_runs_by_itself_and_the_wall_clock_has_no_say(table, monkeypatch):
    sessions = table()
    sessions.ensure(None)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert sessions.reap() == 0
    key, _ = sessions.ensure(None, "page")
    monkeypatch.setattr("app.live.room.LEFT_S", 0)
    sessions.leave("page")
    until(lambda: key not in sessions._by_key, 5)


def test_shutting_leaves_no_thread_behind(clip):
    before = set(threading.enumerate())
    sessions = Sessions(fake_engine(watch_s=0.02))
    for _ in range(2):
        sessions.ensure(None)[1].open_file(clip)
    sessions.shut()
    until(lambda: set(threading.enumerate()) <= before, 5)


def test_a_programs_session_goes_after_minutes_without_a_call(table, clip):
    """Each kept its place for an hour, and eight of them shut everybody out."""
    sessions = table()
    key, session = sessions.ensure(None, program=True)
    session.open_file(clip)
    until(lambda: ended(session))
    assert sessions.reap(time.monotonic() + PROGRAM_S - 5) == 0
    assert sessions.get(key) is session, "a call keeps it"
    assert sessions.reap(time.monotonic() + PROGRAM_S + 5) == 1 and len(sessions) == 0


# Waiting for a place


def test_places_are_given_in_the_order_of_the_line(table):
    sessions = table(places=1)
    taken, session = sessions.ensure(None, "page")
    session.offer(picture(RED))
    first, second, newcomer = [sessions.issue() for _ in range(3)]
    for key in (first, second, first):
        sessions.wait(key)
    assert [sessions.in_line(key).place for key in (first, second)] == [1, 2] and sessions.in_line(newcomer) is None
    sessions.close(taken)
    assert sessions.in_line(first).free and not sessions.in_line(second).free
    for key in (second, newcomer, None):
        with pytest.raises(UserError):
            sessions.ensure(key)
    assert sessions.ensure(first)[0] == first and sessions.in_line(first) is None
    assert sessions.in_line(second).place == 1


def test_who_is_not_heard_of_waits_no_more(table, monkeypatch):
    sessions = table(places=1)
    sessions.ensure(None, "page")[1].offer(picture(RED))
    gone, there = sessions.issue(), sessions.issue()
    sessions.wait(gone)
    sessions.wait(there)
    sessions._line._heard[gone] -= LINE_S + 1
    assert sessions.in_line(there).place == 1
    sessions.wait("x" * 22)
    assert sessions.in_line("x" * 22) is None, "only keys that were issued get in line"


def test_how_long_is_said_only_where_it_is_known(table, clip):
    sessions = table(places=2)
    sessions.ensure(None, "page")[1].offer(picture(RED))
    program, session = sessions.ensure(None, program=True)
    session.open_file(clip)
    first, second = sessions.issue(), sessions.issue()
    sessions.wait(first)
    sessions.wait(second)
    assert sessions.in_line(first).seconds is None, "both are looked at"
    sessions._by_key[program].touched -= 60
    assert sessions.in_line(first).seconds == pytest.approx(PROGRAM_S - 60, abs=5)
    assert sessions.in_line(second).seconds is None


# Pages and their keys


def test_a_key_takes_no_place_until_something_starts(table):
    sessions = table(places=1)
    keys = [sessions.issue() for _ in range(3)]
    assert len(set(keys)) == 3 and len(sessions) == 0 and all(map(sessions.awaits, keys))
    key, session = sessions.ensure(keys[1])
    assert key == keys[1] and sessions.get(key) is session and not sessions.awaits(key)
    with pytest.raises(UserError):
        sessions.ensure(keys[0])
    assert sessions.awaits(keys[0]), "it may try again"
    sessions.close(key)
    other, _ = sessions.ensure(key)
    assert other != key, "a key that is over opens nothing again"


def test_only_keys_that_were_issued_become_doors(table):
    sessions = table()
    for chosen in ("x" * 22, "", None, 7):
        key, _ = sessions.ensure(chosen)
        assert key != chosen and not sessions.awaits(chosen)
        sessions.close(key)


def test_the_newest_keys_are_remembered(table, monkeypatch):
    monkeypatch.setattr("app.live.table.ISSUED", 3)
    sessions = table()
    keys = [sessions.issue() for _ in range(5)]
    assert [sessions.awaits(key) for key in keys] == [False, False, True, True, True]


def test_what_a_page_starts_at_once_finds_one_session(table):
    """A file that has just arrived and a question sent meanwhile: each used to get a session of its own."""
    sessions = table(places=8)
    key, found, ready = sessions.issue(), [], threading.Barrier(6)

    def start():
        ready.wait()
        found.append(sessions.ensure(key, "page"))

    threads = [threading.Thread(target=start) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(sessions) == 1 and len(found) == 6 and {id(session) for _, session in found} == {id(found[0][1])}


def test_an_opened_page_gets_a_key_and_a_reload_keeps_it(table, clip):
    sessions = table()
    do, page = Events(sessions, clip), SimpleNamespace(session_hash="page")
    key, *rest = do.restore("", page)
    assert sessions.awaits(key) and len(rest) == 5 and all(value == gr.skip() for value in rest)
    assert do.restore(key, page)[0] == key
    assert all(value == gr.skip() for value in do.tick(0, "Example", key, page)), "nothing is over that has not begun"
    assert do.press("Start", "Example", None, key, page)[0] == key
    assert do.restore(key, page)[1] == "Example"
    sessions.close(key)
    assert "long" in do.tick(0, "Example", key, page)[0]
    again, *_ = do.restore(key, page)
    assert again != key and sessions.awaits(again)


# Many at once


def test_one_stuck_chunk_delays_nobody(table, clip):
    """The reaper waited ten seconds for each."""
    model = FakeModel()
    sessions = Sessions(Engine(model))
    model.gate.clear()
    for number in range(3):
        session = sessions.ensure(None, f"page {number}")[1]
        session.open_camera()
        session.offer(picture(RED))
        sessions.leave(f"page {number}")
    until(lambda: model.watching)
    began = time.monotonic()
    assert sessions.reap(began + LEFT_S + 1) == 3 and len(sessions) == 0
    assert time.monotonic() - began < 1.0
    model.gate.set()
    sessions.shut()


class Slow(dict):
    """A dictionary that takes its time, so that others come in the middle."""

    def items(self):
        for item in super().items():
            time.sleep(0.002)
            yield item


def test_reaping_while_pages_come_and_look(table):
    """The table of pages changed while it was gone through, and the uploads were not swept either."""
    sessions, done = table(), threading.Event()
    key, session = sessions.ensure(None)
    sessions._pages = Slow({f"page {number}": key for number in range(50)})

    def look() -> None:
        number = 0
        while not done.wait(0.001):
            number += 1
            sessions.get(key, f"another page {number}")

    looker = threading.Thread(target=look)
    looker.start()
    try:
        assert sessions.reap() == 0 and sessions.get(key) is session
    finally:
        done.set()
        looker.join()


def test_a_reaper_that_fails_still_sweeps(table, monkeypatch):
    swept = threading.Event()
    monkeypatch.setattr(Sessions, "reap", lambda self: 1 / 0)
    monkeypatch.setattr("app.live.uploads.sweep", swept.set)
    table()
    assert swept.wait(5)
