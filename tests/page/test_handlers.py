"""Handlers know a stream by its commands and its View alone, and each page is told what that page does not show yet."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from app.live.table import Sessions
from app.page.handlers import PAUSE, Events
from app.page.shown import Shown
from pipeline import Engine
from tests.fake_model import FakeModel, ended, fake_engine, until, write_clip

APP = Path(__file__).parents[2] / "app"
COMMANDS = {
    "open_file",
    "open_camera",
    "open_shared",
    "probe",
    "offer",
    "pause",
    "resume",
    "again",
    "reset",
    "compare",
    "ask",
    "answer",
    "retry",
    "stop_answer",
    "clear_chat",
    "follow",
    "withdraw",
    "mark",
    "undo",
    "add_rule",
    "clip",
    "remove_rule",
    "take_along",
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "holiday.mp4")


@pytest.fixture
def table():
    one = Sessions(fake_engine(watch_s=0.02), fake_engine("Twin"))
    yield one
    one.shut()


def page(name: str) -> SimpleNamespace:
    return SimpleNamespace(session_hash=name)


class Elsewhere:
    """A session as another process would show it: commands of plain values, and a View that came by pickle."""

    def __init__(self, session) -> None:
        self._session = session

    def view(self):
        return pickle.loads(pickle.dumps(self._session.view()))

    def __getattr__(self, name: str):
        assert name in COMMANDS, f"a page reached for session.{name}"
        command = getattr(self._session, name)

        def call(*values):
            return command(*pickle.loads(pickle.dumps(values)))

        return call


class SessionsElsewhere:
    """The table, with every session of it in another process."""

    def __init__(self, table: Sessions) -> None:
        self._table = table

    def get(self, *args):
        session = self._table.get(*args)
        return Elsewhere(session) if session else None

    def ensure(self, *args):
        key, session = self._table.ensure(*args)
        return key, Elsewhere(session)

    def __getattr__(self, name: str):
        return getattr(self._table, name)


def test_a_page_needs_no_more_than_commands_and_views(table, clip):
    do = Events(SessionsElsewhere(table), clip)
    key = do.restore("", page("one"))[0]
    assert "Opening" in do.press("Start", "Example", None, key, page("one"))[1]
    until(lambda: ended(table.get(key)))
    do.compare(True, key, page("one"))
    until(lambda: len(table.get(key).view().models) == 2 and ended(table.get(key)))
    line, spoken, metrics, film, button, _, costs, *_ = do.tick(0, "Example", key, page("one"))
    assert "Ended" in line and spoken == "ended" and "12" in metrics and "chip" in film and costs.count("<svg") == 3
    assert button.value == "Watch again"
    _, box, sentence = do.accept("what?", False, 0, key, page("one"))
    chats = [list(do.follow(model, key, page("one")))[-1] for model in (0, 1)]
    assert box == sentence == "" and all(
        chat[0]["content"] == "what?" and "12 frames" in chat[1]["content"][0] for chat in chats
    )
    assert do.retry(key) == ""
    assert len(list(do.follow(0, key, page("one")))[-1]) == 2
    do.deed("wrong 2 0 1", key)
    assert table.get(key).view().turn(2).wrong
    assert do.restore(key, page("two"))[1] == "Example"
    do.stop(key)
    assert do.clear(key)[:2] == ([], []) and "Idle" in do.reset(key)[0]
    line, first, *_ = do.undo(key)
    assert "Ended" in line and first[0]["content"] == "what?" and do.json(key) and do.markdown(key)


@pytest.mark.parametrize(
    "name",
    [
        "page/panels.py",
        "page/chat.py",
        "page/timeline.py",
        "page/alerts.py",
        "page/summary.py",
        "page/saved.py",
        "page/handlers.py",
        "page/channel.py",
        "page/shown.py",
        "api.py",
    ],
)
def test_a_page_reads_no_more_than_views(name):
    """Of the rooms behind it: values of view.py, the table of keys, commands, and what makes a visitor's input safe."""
    allowed = {"app.live.view": None}
    if name in ("page/handlers.py", "page/channel.py", "page/alerts.py", "api.py"):
        allowed |= {
            "app.live.face": {"Session", "Table"},
            "app.live.line": {"InLine"},
            "app.live.conversation": {"clean", "number", "refusal"},
        }
    tree = ast.parse((APP / name).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("app.live"):
            names = allowed.get(node.module, set())
            assert names is None or {alias.name for alias in node.names} <= names
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "session":
            assert node.attr in COMMANDS | {"view"}


# Pages


def test_two_pages_of_one_stream_are_both_told(table, clip):
    """A duplicated tab took every change, and the first one stood still for ever with a live-looking Pause button."""
    do = Events(table, clip)
    key = do.restore("", page("one"))[0]
    do.press("Start", "Example", None, key, page("one"))
    assert do.restore(key, page("two"))[0] == key
    for name in ("one", "two"):
        assert do.tick(0, "Example", key, page(name))[4].value == PAUSE
    until(lambda: ended(table.get(key)))
    for name in ("one", "two", "three"):
        line, _, metrics, film, button, *_ = do.tick(0, "Example", key, page(name))
        assert (
            "Ended" in line
            and "<b>12</b>" in metrics
            and film.count("data-seek") == 12
            and button.value == "Watch again"
        )
        assert all(value == gr.skip() for value in do.tick(0, "Example", key, page(name))), "and only once"


def test_the_button_and_the_state_line_agree_after_a_late_pause(table, clip):
    """A page that is a little behind shows Pause although the file has ended."""
    do = Events(table, clip)
    key = do.restore("", page("one"))[0]
    do.press("Start", "Example", None, key, page("one"))
    until(lambda: ended(table.get(key)))
    _, line, button = do.press(PAUSE, "Example", None, key, page("one"))
    assert "Ended" in line and button.value == "Watch again"
    assert do.tick(0, "Example", key, page("one"))[4].value == "Watch again"


def test_pages_are_remembered_by_number_and_forgotten_when_closed():
    shown = Shown(pages=2)
    for name in ("one", "two", "three"):
        shown.of(name)["line"] = name
    assert [shown.of(name).get("line") for name in ("two", "three", "one")] == ["two", "three", None]
    shown.forget("three")
    assert shown.of("three") == {}


def test_the_page_that_was_not_looked_at_for_longest_is_forgotten():
    shown = Shown(pages=2)
    shown.of("one")["line"] = "one"
    for stranger in range(5):  # hashes anybody may invent
        shown.of(f"stranger {stranger}")
        assert shown.of("one") == {"line": "one"} and len(shown._by_page) == 2


WORDS = [
    "",
    "wrong",
    "wrong x y",
    "wrong 1",
    "wrong -1 0",
    "wrong 1 99",
    "withdraw 1e9",
    "withdraw \u0661",
    "drop 1 0",
]


@pytest.mark.parametrize("words", [*WORDS, None, 7.5, "withdraw " + "9" * 5000])
def test_words_that_are_no_deed_do_nothing(table, clip, words):
    do = Events(table, clip)
    key = do.restore("", page("one"))[0]
    do.press("Start", "Example", None, key, page("one"))
    do.accept("what?", False, 0, key, page("one"))
    list(do.follow(0, key, page("one")))
    before = table.get(key).view().conversations
    do.deed(words, key)
    do.deed("wrong 1 0", "a foreign key")
    assert table.get(key).view().conversations == before


@pytest.mark.parametrize(
    ("text", "words"), [("   ", "type one first"), ("x" * 2001, "2,001"), (None, "type one first")]
)
def test_what_is_no_question_stays_in_the_box_and_is_said(table, clip, text, words):
    do = Events(table, clip)
    _, box, sentence = do.accept(text, False, 0, do.restore("", page("one"))[0], page("one"))
    assert box == gr.skip() and words in sentence and len(table) == 0


def test_of_several_that_follow_for_one_page_the_newest_goes_on_alone(clip):
    model = FakeModel()
    table = Sessions(Engine(model))
    do = Events(table, clip)
    key = do.restore("", page("one"))[0]
    do.press("Start", "Example", None, key, page("one"))
    until(lambda: ended(table.get(key)))
    model.speaks.clear()
    do.accept("first", False, 0, key, page("one"))
    first, other = do.follow(0, key, page("one")), do.follow(0, key, page("another tab"))
    next(first), next(other)
    do.accept("second", False, 0, key, page("one"))
    second = do.follow(0, key, page("one"))
    next(second)
    assert list(first) == []
    model.speaks.set()
    assert len(list(second)[-1]) == len(list(other)[-1]) == len(list(do.follow(0, key, page("one")))[-1]) == 4
    table.shut()
