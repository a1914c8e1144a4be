"""A visitor's stream outlives the server: it goes on by itself or when its key comes back, with what was said."""

from __future__ import annotations

import io
import re
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from app.live import watching
from app.live.session import LiveSession
from app.live.shelf import LARGEST, Shelf, name_of
from app.live.view import WEBCAM, Phase
from pipeline import Event, UserError
from pipeline.keeping.found import notes
from pipeline.keeping.taking import place_of
from tests.keeping.streams import digest, slow
from tests.live.kept import CLIP, ended, killed, newest, quick, served, until, upload, visit

__all__ = ["quick", "served", "upload", "visit"]  # fixtures


@pytest.fixture(scope="module")
def whole() -> str:
    """The digest after all of the clip, watched without interruption."""
    session = LiveSession(slow(0))
    patch = pytest.MonkeyPatch()
    patch.setattr(watching, "FPS", 12.0)
    session.open_file(CLIP, "Example")
    ended(session)
    patch.undo()
    return digest(session.engine, newest(session))


def other_weights():
    other = slow(0)
    other.model.net.model.norm.weight += 0.25
    return other


def test_nothing_is_written_unless_the_visitor_wants_it(visit, tmp_path) -> None:
    session = visit(keep=False).session
    assert list((tmp_path / "shelf").iterdir()) == [] and session.view().kept is None and not session.view().keeping


def test_an_upload_goes_on_by_itself_after_a_kill_to_the_same_end(visit, served, upload, tmp_path, whole) -> None:
    """Its key finds it again, with what was said."""
    here = visit(frames=6, seconds=0.2)
    asked = here.session.ask("What is it?")
    until(lambda: here.session.view().turn(asked).answer)
    here.session.stop_answer()
    until(lambda: here.session.view().turn(asked).over)
    here.session.keep_words()
    kept = tmp_path / "shelf" / name_of(here.key)
    until(lambda: notes(kept, "turn") and here.session.view().frames >= 12)
    assert here.session.view().phase is Phase.WATCHING
    killed(tmp_path / "shelf")
    upload.unlink()
    again = served(slow(0.05))
    until(lambda: len(again) == 1)
    back = again.get(here.key)
    assert back is not None and back.view().frames >= 10 and back.view().phase is Phase.WATCHING
    assert back.view().turn(asked).answer.text == here.session.view().turn(asked).answer.text
    ended(back)
    assert digest(back.engine, newest(back)) == whole
    view = back.view()
    assert view.file_name == "clip.mp4" or view.file_name == ""
    assert Path(view.upload).read_bytes() == CLIP.read_bytes() and view.film and view.kept.nbytes > CLIP.stat().st_size
    assert back.ask("And now?") != asked
    assert again.get(name_of(here.key)) is None, "the name on the disk must open nothing"


def test_an_upload_is_not_forgotten_before_its_first_chunk(served, upload, tmp_path, whole) -> None:
    """A server that is killed while the first chunk is in work loses that chunk, not the video."""
    key, session = served(slow(3.0)).ensure(None)
    session.keep(True)
    session.open_file(upload)
    until(lambda: notes(tmp_path / "shelf" / name_of(key), "about"))
    assert not session.view().frames
    killed(tmp_path / "shelf")
    again = served(slow(0))
    until(lambda: len(again) == 1)
    back = again.get(key)
    ended(back)
    assert digest(back.engine, newest(back)) == whole


def test_what_is_no_video_does_not_go_on_by_itself(served, tmp_path) -> None:
    junk = tmp_path / "gradio" / "junk.mp4"
    junk.parent.mkdir()
    junk.write_bytes(b"junk" * 1000)
    table = served(slow(0))
    _, session = table.ensure(None)
    session.keep(True)
    session.open_file(junk)
    ended(session)
    table.shut()
    again = served(slow(0))
    time.sleep(0.5)
    assert len(again) == 0


def test_a_kept_stream_is_in_its_browsers_list(visit, served) -> None:
    """Also before anybody brings it back; a stranger's key finds nothing."""
    here = visit()
    here.table.shut()
    again = served(slow(0))
    assert again.peek(here.key).kept.nbytes > 0 and again.peek(here.key).file_name == "A kept stream"
    assert again.peek("another key") is None and len(again) == 0
    again.bring_back(here.key)
    assert again.peek(here.key).file_name != "A kept stream"


def test_where_every_place_is_taken_a_kept_stream_waits(visit, served) -> None:
    """It is refused in a sentence, and comes back when there is a place."""
    here = visit()
    here.table.shut()
    again = served(slow(0), places=1)
    other, _ = again.ensure(None)
    with pytest.raises(UserError, match="places are taken"):
        again.bring_back(here.key)
    again.close(other)
    until(lambda: again.bring_back(here.key))


def test_what_was_watched_before_the_switch_is_kept_too(visit, served, whole) -> None:
    """In the middle, and after the end."""
    here = visit(frames=6, seconds=0.03, keep=False)
    here.session.keep(True)
    until(lambda: here.session.view().phase is Phase.ENDED and here.session.view().kept.nbytes)
    late = visit(keep=False, table=here.table)
    late.session.keep(True)
    until(lambda: late.keeper.written)
    assert late.session.view().phase is Phase.ENDED
    here.table.shut()
    again = served(slow(0))
    for one in (here, late):
        back = again.bring_back(one.key)
        ended(back)
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


def test_delete_deletes_and_watching_goes_on(visit, tmp_path) -> None:
    session = visit(frames=4, seconds=0.03).session
    session.delete_kept()
    assert list((tmp_path / "shelf").iterdir()) == [] and not session.view().keeping and session.view().kept is None
    frames = session.view().frames
    ended(session)
    assert session.view().frames > frames and list((tmp_path / "shelf").iterdir()) == []


def test_reset_deletes_what_is_kept(visit, tmp_path) -> None:
    visit().session.reset()
    assert list((tmp_path / "shelf").iterdir()) == []


def test_switched_off_nothing_more_is_written_and_what_is_there_stays(visit, tmp_path) -> None:
    here = visit(frames=4, seconds=0.03)
    here.session.keep(False)
    frames = here.session.view().frames
    ended(here.session)
    assert here.session.view().frames > frames + 4 and here.session.view().kept.nbytes > 0
    kept = Shelf(tmp_path / "shelf").open(name_of(here.key))
    assert kept.found.cuts[-1].position <= frames + 4
    kept.close()


def test_where_keeping_stops_watching_goes_on_and_the_visitor_is_told(visit, monkeypatch) -> None:
    monkeypatch.setattr("app.live.shelf.LARGEST", 10_000)
    session = visit().session
    until(lambda: "keeping stopped at" in session.view().kept.told)
    assert session.view().phase is Phase.ENDED and not session.view().error


def test_no_room_is_told_and_watching_goes_on(served, visit) -> None:
    table = served(slow(0))
    table.shelf.ceiling = 10
    session = visit(table=table).session
    assert "no room to keep another stream" in session.view().kept.told and not session.view().keeping


def test_another_model_watches_the_file_again_and_what_was_said_stays(visit, served, tmp_path) -> None:
    """In the same folder: a fork of it is not deleted, and if that server is killed too, the file is still there."""
    here = visit()
    asked, frames = here.ask(), here.session.view().frames
    fork, _ = here.table.fork(here.key, 1.0)
    here.table.shut()
    table = served(other_weights())
    back = table.bring_back(here.key)
    assert {path.name for path in (tmp_path / "shelf").iterdir()} == {name_of(here.key), name_of(fork)}
    ended(back)
    assert back.view().frames == frames and back.view().turn(asked).over and back.view().keeping
    was = digest(back.engine, newest(back))
    table.shut()
    again = served(other_weights()).bring_back(here.key)
    ended(again)
    assert digest(again.engine, newest(again)) == was and again.view().turn(asked).over


def test_a_damaged_stream_is_refused_in_a_sentence(visit, served, tmp_path) -> None:
    here = visit()
    here.table.shut()
    (place_of(tmp_path / "shelf" / name_of(here.key)) / "video").write_bytes(b"other")
    with pytest.raises(UserError, match="not the one that was watched"):
        served(slow(0)).bring_back(here.key)


def test_another_video_replaces_what_is_kept(served, upload, tmp_path) -> None:
    key, session = served(slow(0)).ensure(None)
    session.keep(True)
    session.open_file(CLIP, "Example")
    ended(session)
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


# --- encrypted -------------------------------------------------------------------------------------------------------


def test_an_encrypted_stream_waits_for_its_key_and_goes_on_to_the_same_end(visit, served, tmp_path, whole) -> None:
    """Nobody else reads it, also not the server until then; its list knows it all the same."""
    here = visit(frames=6, seconds=0.2, encrypt=True)
    view = here.session.view()
    assert view.encrypting and view.kept.encrypted and view.phase is Phase.WATCHING
    killed(tmp_path / "shelf")
    again = served(slow(0))
    assert again.peek(here.key).kept.encrypted
    time.sleep(0.5)
    assert len(again) == 0, "nobody has come with the key"
    folder = tmp_path / "shelf" / name_of(here.key)
    written = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    assert here.key.encode() not in written and CLIP.read_bytes()[1000:1100] not in written and b"clip" not in written
    back = again.bring_back(here.key)
    ended(back)
    assert digest(back.engine, newest(back)) == whole and back.view().encrypting
    assert Path(back.view().upload).read_bytes() == CLIP.read_bytes()


def test_an_encrypted_stream_is_taken_along_readable_and_forked_for_its_forks_key(visit, served, tmp_path) -> None:
    here = visit(encrypt=True)
    with tarfile.open(fileobj=io.BytesIO(b"".join(here.session.take_along()))) as tar:
        video = tar.extractfile("video")
        assert video and video.read() == CLIP.read_bytes()
    key, fork = here.table.fork(here.key, 1.3)
    until(lambda: fork.view().phase is Phase.PAUSED)
    was = digest(fork.engine, newest(fork))
    assert fork.view().kept.encrypted and {p.name for p in (tmp_path / "shelf").iterdir()} == {
        name_of(here.key),
        name_of(key),
    }
    here.table.shut()
    back = served(slow(0)).bring_back(key)
    until(lambda: back.view().phase is Phase.PAUSED)
    assert digest(back.engine, newest(back)) == was


def test_without_the_library_nothing_is_encrypted(visit, monkeypatch) -> None:
    monkeypatch.setattr("app.live.switch.can_encrypt", lambda: False)
    view = visit(encrypt=True).session.view()
    assert view.keeping and not view.encrypting and not view.kept.encrypted


# --- room ------------------------------------------------------------------------------------------------------------


def test_what_is_over_does_not_take_its_forks_along(visit, tmp_path) -> None:
    """They are watched or were written later, so nobody said that they would go."""
    here = visit()
    key, fork = here.table.fork(here.key, 1.0)
    until(lambda: fork.view().phase is Phase.PAUSED)
    shelf = here.table.shelf
    here.session.close()
    here.session.join(30)
    over = shelf.until(name_of(here.key)) + 1
    fork.resume()
    ended(fork)
    assert shelf.sweep(over) == 1 and shelf.names() == [name_of(key)] and not fork.view().kept.told


def test_room_for_a_second_file_is_reserved_with_it(visit) -> None:
    here = visit()
    here.table.shelf.ceiling = 2 * LARGEST + 20_000_000
    key, fork = here.table.join(here.key, "Example", CLIP)
    assert here.table.shelf.limit(name_of(key)) >= LARGEST + 2 * CLIP.stat().st_size
    ended(fork)
    assert not fork.view().kept.told
