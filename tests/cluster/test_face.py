"""Both faces of streams, in one process and over a wire, do and show the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from app.cluster.sessions import FarSessions
from app.cluster.table import Where
from app.live.face import Table
from app.live.shelf import Shelf
from app.live.table import Sessions
from app.live.view import CLEAR, Phase
from pipeline import UserError, decode_jpeg
from tests.cluster.near import near
from tests.fake_model import BLUE, RED, ended, fake_engine, picture, until, whole, write_clip

FACES = ["one process", "a wire"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "holiday.mp4")


@pytest.fixture(params=FACES)
def table(request, tmp_path, monkeypatch) -> Iterator[Callable[..., Table]]:
    """table(places) -> an open table over a fake model that takes its time."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    opened = []

    def make(places: int = 4, watch_s: float = 0.0, token_s: float = 0.0) -> Table:
        def engine():
            return fake_engine(watch_s=watch_s, token_s=token_s)

        def twin():
            return fake_engine("Twin", constant=0)

        if request.param == FACES[0]:
            opened.append(Sessions(engine(), twin(), places, Shelf(tmp_path / "store")))
            return opened[-1]
        wires = near(tmp_path / "store", engine, rival=twin, places=places)
        opened.extend(wire.streams.sessions for wire in wires)
        return FarSessions(Where(lambda: wires, 5.0), tmp_path / "store", 5.0)

    yield make
    for one in opened:
        one.shut()


def jpeg(colour: tuple[int, int, int]) -> bytes:
    out = BytesIO()
    Image.fromarray(picture(colour)).save(out, "JPEG", quality=95)
    return out.getvalue()


def uploaded(clip: Path, tmp_path: Path) -> Path:
    path = tmp_path / "gradio" / "abc" / "holiday.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(clip.read_bytes())
    return path


def test_a_file_is_watched_and_asked(table, clip, tmp_path) -> None:
    sessions = table()
    key, session = sessions.ensure(None)
    session.open_file(uploaded(clip, tmp_path), name="holiday.mp4")
    until(lambda: ended(session))
    view = session.view()
    assert view.frames == 12 and view.file_name == "holiday.mp4" and view.names == ("Fake Vamba", "Twin")
    assert view.film and view.upload and Path(view.upload).read_bytes() == clip.read_bytes()
    answer = whole(session.answer(session.ask("What is it?")))
    assert answer.text == "12 frames, last (20, 19, 200), 0 turns before: What is it?" or "12 frames" in answer.text
    assert session.view().turn(1).pictures[0] and sessions.get(key).view().turn(1).over
    assert sessions.get(key[:-1]) is None and sessions.get(None) is None and sessions.get("") is None


def test_words_come_one_by_one_and_stop_ends_them(table, clip) -> None:
    _, session = table(token_s=0.1).ensure(None)
    session.open_file(clip, "Example")
    until(lambda: ended(session))
    seen = []
    for answer in session.answer(session.ask("one two three four five six seven eight nine ten")):
        seen.append(answer.text)
        if len(answer.text.split(" ")) >= 3:
            session.stop_answer()
    assert len(seen) > 3 and len(seen[-1].split(" ")) <= 6
    assert session.view().turn(1).answer.stopped and not session.view().answering


def test_a_conversation_is_followed_until_all_is_answered(table, clip) -> None:
    _, session = table(token_s=0.02).ensure(None)
    session.open_file(clip, "Example")
    until(lambda: ended(session))
    first, second = session.ask("first"), session.ask("second")
    steps = sum(1 for _ in session.follow())
    view = session.view()
    assert steps > 3 and view.turn(first).over and view.turn(second).over
    with pytest.raises(UserError, match="wait already"):
        for _ in range(20):
            session.ask("again")


def test_a_camera_sends_its_pictures(table) -> None:
    _, session = table().ensure(None)
    session.open_camera()
    for number, colour in enumerate([RED, BLUE, RED]):
        sent = jpeg(colour)
        session.offer(decode_jpeg(sent), sent)
        until(lambda number=number: session.view().frames == number + 1)
    assert session.view().live and session.view().source == "Webcam"


def test_commands_and_what_is_seen_after_them(table, clip) -> None:
    _, session = table(watch_s=0.05).ensure(None)
    session.open_file(clip, "Example")
    session.pause()
    assert session.view().phase is Phase.PAUSED
    session.resume()
    until(lambda: ended(session))
    session.compare(True)
    until(lambda: len(session.view().models) == 2 and session.view().models[1].frames == 12)
    asked = session.ask("What?")
    until(lambda: all(turn.over for turns in session.view().conversations for turn in turns))
    session.mark(asked, 1, True)
    assert session.view().conversations[1][0].wrong
    again = session.retry()
    until(lambda: session.view().turn(again) and session.view().turn(again).over)
    session.clear_chat()
    assert session.view().undo == CLEAR and not session.view().conversations[0]
    assert session.undo() and session.view().conversations[0] and not session.undo()
    session.again()
    until(lambda: ended(session))
    session.reset()
    assert session.view().phase is Phase.IDLE


def test_what_is_refused_is_refused_in_the_same_sentence(table, clip, tmp_path) -> None:
    _, session = table().ensure(None)
    for deed, sentence in (
        (lambda: session.add_rule("tell me when a dog comes"), "Nothing is watched"),
        (session.probe, "Nothing is watched"),
        (lambda: session.clip(1.0, tmp_path / "clip.mp4"), "Nothing is watched"),
        (lambda: next(session.take_along()), "Nothing is kept"),
        (lambda: session.open_file(tmp_path / "gone.mp4"), "no longer here"),
    ):
        with pytest.raises(UserError, match=sentence):
            deed()


def test_a_clip_and_an_archive_come_whole(table, clip, tmp_path) -> None:
    _, session = table().ensure(None)
    session.open_file(uploaded(clip, tmp_path))
    until(lambda: ended(session))
    session.clip(5.0, tmp_path / "clip.mp4")
    assert b"ftyp" in (tmp_path / "clip.mp4").read_bytes()[:32]


def test_places_keys_and_the_line(table) -> None:
    sessions = table(places=1)
    waiting = sessions.issue()
    assert sessions.awaits(waiting) and sessions.get(waiting) is None and not sessions.awaits("x" * 22)
    key, session = sessions.ensure(None, "page 1")
    session.offer(picture(RED), jpeg(RED))
    with pytest.raises(UserError, match="All 1 places are taken"):
        sessions.ensure(waiting)
    sessions.wait(waiting)
    spot = sessions.in_line(waiting)
    assert spot.place == 1 and not spot.free
    assert sessions.peek(key).live and sessions.peek("x" * 22) is None
    sessions.close(key)
    time.sleep(0.6)
    assert sessions.get(key) is None and sessions.in_line(waiting).free
    assert sessions.ensure(waiting)[0] == waiting and sessions.in_line(waiting) is None
    sessions.leave("page 1")


def test_a_fork_has_a_key_of_its_own(table, clip) -> None:
    sessions = table()
    key, session = sessions.ensure(None)
    session.open_file(clip, "Example")
    until(lambda: ended(session))
    other, fork = sessions.fork(key, 4.0)
    until(lambda: fork.view().phase is Phase.PAUSED)
    assert other != key and fork.view().frames == 5 and session.view().frames == 12
    with pytest.raises(UserError, match="Nothing was seen"):
        sessions.fork("x" * 22)


def test_what_is_closed_is_over(table) -> None:
    sessions = table()
    key, session = sessions.ensure(None)
    session.offer(picture(RED), jpeg(RED))
    sessions.delete(key)
    assert sessions.get(key) is None and sessions.peek(key) is None
    sessions.close(key)
    sessions.close(None)
