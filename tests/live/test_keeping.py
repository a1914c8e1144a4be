"""A visitor's stream outlives the server: it goes on by itself or when its key comes back, with what was said.

The tiny model of tests/keeping, slow enough to be ended in the middle of a file.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from app.live import watching
from app.live.session import LiveSession
from app.live.shelf import Shelf, name_of
from app.live.table import Sessions
from app.live.view import WEBCAM, Phase
from pipeline import Engine, Event, UserError
from pipeline.keeping.found import notes
from tests.keeping.streams import digest, slow

CLIP = Path(__file__).parents[1] / "data/corpus/valid/h264_faststart.mp4"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Many pictures of a short file, uploads in a folder of this test."""
    monkeypatch.setattr(watching, "FPS", 12.0)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))


@pytest.fixture
def upload(tmp_path) -> Path:
    path = tmp_path / "gradio" / "clip.mp4"
    path.parent.mkdir()
    shutil.copyfile(CLIP, path)
    return path


@pytest.fixture
def served(tmp_path) -> Iterator[Callable[..., Sessions]]:
    """served(engine) -> the table of a server that was started, on the same shelf every time."""
    tables: list[Sessions] = []

    def serve(engine: Engine, places: int = 8) -> Sessions:
        tables.append(Sessions(engine, None, places, Shelf(tmp_path / "shelf")))
        return tables[-1]

    yield serve
    for table in tables:
        table.shut()


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


def newest(session: LiveSession):
    return session.watch.viewings[0].state


@pytest.fixture(scope="module")
def whole() -> str:
    """The digest after all of the clip, watched without interruption."""
    session = LiveSession(slow(0))
    patch = pytest.MonkeyPatch()
    patch.setattr(watching, "FPS", 12.0)
    session.open_file(CLIP, "Example")
    until(lambda: session.view().phase is Phase.ENDED)
    patch.undo()
    return digest(session.engine, newest(session))


def killed(shelf: Path) -> None:
    """What lies on the shelf is as a server leaves it that is killed now: copied while it is written."""
    copy = shelf.with_name("copy")
    shutil.copytree(shelf, copy)
    shutil.rmtree(shelf)
    copy.rename(shelf)


def test_nothing_is_written_unless_the_visitor_wants_it(served, upload, tmp_path) -> None:
    _, session = served(slow(0)).ensure(None)
    session.open_file(upload)
    until(lambda: session.view().phase is Phase.ENDED)
    assert list((tmp_path / "shelf").iterdir()) == [] and session.view().kept is None and not session.view().keeping


def test_an_upload_goes_on_by_itself_after_a_kill_to_the_same_end(served, upload, tmp_path, whole) -> None:
    """Its key finds it again, with what was said."""
    table = served(slow(0.2))
    key, session = table.ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().frames >= 6)
    asked = session.ask("What is it?")
    until(lambda: session.view().turn(asked).answer)
    session.stop_answer()
    until(lambda: session.view().turn(asked).over)
    session.keep_words()
    until(lambda: notes(tmp_path / "shelf" / name_of(key), "turn") and session.view().frames >= 12)
    assert session.view().phase is Phase.WATCHING
    killed(tmp_path / "shelf")
    upload.unlink()
    again = served(slow(0.05))
    until(lambda: len(again) == 1)
    back = again.get(key)
    assert back is not None and back.view().frames >= 10 and back.view().phase is Phase.WATCHING
    assert back.view().turn(asked).answer.text == session.view().turn(asked).answer.text
    until(lambda: back.view().phase is Phase.ENDED)
    assert digest(back.engine, newest(back)) == whole
    view = back.view()
    assert view.file_name == "clip.mp4" or view.file_name == ""
    assert Path(view.upload).read_bytes() == CLIP.read_bytes() and view.film and view.kept.nbytes > CLIP.stat().st_size
    assert back.ask("And now?") != asked
    assert again.get(name_of(key)) is None, "the name on the disk must open nothing"


def test_a_kept_stream_is_in_its_browsers_list(served, upload) -> None:
    """Also before anybody brings it back; a stranger's key finds nothing."""
    table = served(slow(0))
    key, session = table.ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().phase is Phase.ENDED)
    table.shut()
    again = served(slow(0))
    assert again.peek(key).kept.nbytes > 0 and again.peek(key).file_name == "A kept stream"
    assert again.peek("another key") is None and len(again) == 0
    again.bring_back(key)
    assert again.peek(key).file_name != "A kept stream"


def test_what_was_watched_before_the_switch_is_kept_too(served, upload, whole) -> None:
    """In the middle, and after the end."""
    table = served(slow(0.03))
    key, session = table.ensure(None)
    session.open_file(upload)
    until(lambda: session.view().frames >= 6)
    session.keep(True)
    until(lambda: session.view().phase is Phase.ENDED and session.view().kept.nbytes)
    late_key, late = table.ensure(None)
    late.open_file(CLIP, "Example")
    until(lambda: late.view().phase is Phase.ENDED)
    late.keep(True)
    until(lambda: late.switch.keep.keeper.written)
    assert late.view().phase is Phase.ENDED
    table.shut()
    again = served(slow(0))
    for one in (key, late_key):
        back = again.bring_back(one)
        until(lambda back=back: back.view().phase is Phase.ENDED)
        assert digest(back.engine, newest(back)) == whole


def test_a_camera_goes_on_with_an_honest_gap(served, tmp_path, monkeypatch) -> None:
    table = served(slow(0))
    key, session = table.ensure(None)
    session.keep(True)
    session.open_camera()
    for shade in range(6):
        session.offer(np.full((8, 8, 3), shade * 40, np.uint8))
        time.sleep(0.05)
    until(lambda: session.view().frames == 6 and session.switch.keep.pictured == session.view().seen_until)
    seen = session.view().seen_until
    table.shut()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 300)
    back = served(slow(0)).bring_back(key)
    view = back.view()
    assert view.source == WEBCAM and view.frames == 6 and view.live and view.seen_until == seen
    told = r"Nothing was seen from 0:0\d to 5:[01]\d: the server was away\."  # a busy machine takes its seconds
    assert re.fullmatch(told, view.kept.told)
    back.offer(np.zeros((8, 8, 3), np.uint8))
    until(lambda: back.view().frames == 7)
    assert 300 <= back.view().seen_until < 330


def test_delete_deletes_and_watching_goes_on(served, upload, tmp_path) -> None:
    _, session = served(slow(0.03)).ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().frames >= 4 and session.switch.keep.keeper.written)
    session.delete_kept()
    assert list((tmp_path / "shelf").iterdir()) == [] and not session.view().keeping and session.view().kept is None
    frames = session.view().frames
    until(lambda: session.view().phase is Phase.ENDED)
    assert session.view().frames > frames and list((tmp_path / "shelf").iterdir()) == []


def test_reset_deletes_what_is_kept(served, upload, tmp_path) -> None:
    _, session = served(slow(0)).ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().phase is Phase.ENDED)
    session.reset()
    assert list((tmp_path / "shelf").iterdir()) == []


def test_switched_off_nothing_more_is_written_and_what_is_there_stays(served, upload, tmp_path) -> None:
    key, session = served(slow(0.03)).ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().frames >= 4 and session.switch.keep.keeper.written)
    session.keep(False)
    frames = session.view().frames
    until(lambda: session.view().phase is Phase.ENDED)
    assert session.view().frames > frames + 4 and session.view().kept.nbytes > 0
    kept = Shelf(tmp_path / "shelf").open(name_of(key))
    assert kept.found.cuts[-1].position <= frames + 4
    kept.close()


def test_where_keeping_stops_watching_goes_on_and_the_visitor_is_told(served, upload, monkeypatch) -> None:
    monkeypatch.setattr("app.live.shelf.LARGEST", 10_000)
    _, session = served(slow(0)).ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().phase is Phase.ENDED)
    until(lambda: "keeping stopped at" in session.view().kept.told)
    assert session.view().phase is Phase.ENDED and not session.view().error


def test_no_room_is_told_and_watching_goes_on(served, upload, monkeypatch) -> None:
    table = served(slow(0))
    table.shelf.ceiling = 10
    _, session = table.ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().phase is Phase.ENDED)
    assert "no room to keep another stream" in session.view().kept.told and not session.view().keeping


def test_another_model_watches_the_file_again_and_what_was_said_stays(served, upload) -> None:
    table = served(slow(0))
    key, session = table.ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().phase is Phase.ENDED)
    asked = session.ask("What is it?")
    until(lambda: session.view().turn(asked).over)
    table.shut()
    other = slow(0)
    other.model.net.model.norm.weight += 0.25
    back = served(other).bring_back(key)
    until(lambda: back.view().phase is Phase.ENDED)
    assert back.view().frames == session.view().frames if session.watch else back.view().frames > 12
    assert back.view().turn(asked).over and back.view().keeping


def test_a_damaged_stream_is_refused_in_a_sentence(served, upload, tmp_path) -> None:
    table = served(slow(0))
    key, session = table.ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().phase is Phase.ENDED)
    table.shut()
    (tmp_path / "shelf" / name_of(key) / "video").write_bytes(b"other")
    with pytest.raises(UserError, match="not the one that was watched"):
        served(slow(0)).bring_back(key)


def test_another_video_replaces_what_is_kept(served, upload, tmp_path) -> None:
    key, session = served(slow(0)).ensure(None)
    session.keep(True)
    session.open_file(CLIP, "Example")
    until(lambda: session.view().phase is Phase.ENDED)
    session.open_file(upload)
    until(lambda: session.view().phase is Phase.ENDED and session.switch.keep.keeper.written)
    assert [path.name for path in (tmp_path / "shelf").iterdir() if not path.name.startswith(".")] == [name_of(key)]


def test_what_was_noticed_and_what_is_to_be_told_come_back(served, upload, tmp_path) -> None:
    """A shot that went on when the server was killed is one shot afterwards."""
    table = served(slow(0.2))
    key, session = table.ensure(None)
    session.keep(True)
    session.open_file(upload)
    rule = session.add_rule("tell me when it is over", 30)
    until(lambda: session.view().frames >= 6)
    before = Event(0.0, "alert", rule.says, 0.5, 0.1)
    session.watch.noticing._timeline._keep([before])
    until(lambda: before in session.view().events)
    session.keep_words()
    until(lambda: notes(tmp_path / "shelf" / name_of(key), "event") and session.view().frames >= 10)
    killed(tmp_path / "shelf")
    again = served(slow(0.05))
    until(lambda: len(again) == 1)
    back = again.get(key)
    assert back.view().rules == (rule,) and before in back.view().events
    until(lambda: back.view().phase is Phase.ENDED and any(e.kind == "chapter" for e in back.view().events))
    kinds = [event.kind for event in back.view().events]
    assert kinds.count("alert") == kinds.count("shot") == 1 and all(e.until is not None for e in back.view().events)
