"""A fork is the stream as it was at a second, bit for bit, kept or not; it goes on by itself, with another file or not;
and what it comes from is untouched."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from PIL import Image

import pipeline
from app.live.session import LiveSession
from app.live.shelf import name_of
from app.live.view import WEBCAM, Phase
from pipeline import UserError, VideoChunk, decode_jpeg
from pipeline.__main__ import main
from tests.keeping.streams import digest, slow
from tests.live.kept import CLIP, ended, killed, newest, quick, served, stands, until, upload, visit

__all__ = ["quick", "served", "upload", "visit"]  # fixtures


def watched_until(at: float) -> str:
    """The digest of a stream that was watched until a second and no further."""
    engine = slow(0)
    state = engine.start()
    with pipeline.open_video(CLIP, fps=12.0, long_side=engine.long_side) as video:
        frames = [frame for frame in video if frame.time <= at]
    for first in range(0, len(frames), 2):
        state = engine.watch(VideoChunk(tuple(frames[first : first + 2])), state)
    return digest(engine, state)


@pytest.mark.parametrize("kept", [False, True])
def test_a_stream_goes_back_to_any_second_and_on_from_there(kept, served, visit) -> None:
    """Bit for bit; its words are those of by then, and the original stays, with its own."""
    table, key, session = visit(keep=kept)
    asked = session.ask("What is it?")
    until(lambda: session.view().turn(asked).over)
    was, before = digest(session.engine, newest(session)), session.view().frames
    other, fork = table.fork(key, 1.3)
    stands(fork)
    view = fork.view()
    assert digest(fork.engine, newest(fork)) == watched_until(1.3)
    assert (
        view.seen_until <= 1.3
        and view.frames == 16
        and not view.conversations[0]
        and "as it was at 0:01" in view.forked
    )
    assert max(picture.time for picture in view.film) <= 1.3
    what_if = fork.ask("What if it went on?")
    until(lambda: fork.view().turn(what_if).over)
    fork.resume()
    ended(fork)
    assert fork.view().frames == before
    assert digest(session.engine, newest(session)) == was and len(session.view().conversations[0]) == 1
    assert session.view().phase is Phase.ENDED and fork.view().keeping == kept
    if kept:
        until(lambda: fork.switch.keep.keeper.written)
        table.shut()
        again = served(slow(0)).bring_back(other)
        ended(again)
        assert again.view().frames == before and again.view().turn(what_if).over


def test_a_fork_stands_after_a_restart_too(served, visit) -> None:
    table, key, _ = visit()
    other, fork = table.fork(key, 2.0)
    stands(fork)
    was = digest(fork.engine, newest(fork))
    table.shut()
    back = served(slow(0)).bring_back(other)
    stands(back)
    assert digest(back.engine, newest(back)) == was


def test_another_file_is_watched_on_in_the_same_stream_and_after_a_restart(served, visit) -> None:
    table, key, session = visit()
    first = session.view()
    other, fork = table.join(key, "Example", CLIP)
    ended(fork)
    view = fork.view()
    assert view.frames == 2 * first.frames and view.begins == pytest.approx(first.seen_until + 1 / 12)
    assert view.seen_until == pytest.approx(view.begins + first.seen_until)
    was = digest(fork.engine, newest(fork))
    earlier_key, earlier = table.fork(other, first.seen_until - 1)  # in the first file
    stands(earlier)
    assert digest(earlier.engine, newest(earlier)) == watched_until(first.seen_until - 1)
    assert earlier.view().begins == 0
    frames = earlier.view().frames
    table.shut()
    back = served(slow(0)).bring_back(other)
    ended(back)
    assert digest(back.engine, newest(back)) == was and back.view().begins == view.begins
    other_model = slow(0)
    other_model.model.net.model.norm.weight += 0.25
    table = served(other_model)
    anew = table.bring_back(earlier_key)
    stands(anew)
    assert anew.view().frames == frames


WAYS = {"over": (None, False), "going on": (6, False), "encrypted": (None, True)}


@pytest.mark.parametrize(("frames", "encrypt"), WAYS.values(), ids=WAYS)
def test_a_second_file_is_not_forgotten_when_the_server_is_killed(frames, encrypt, visit, served, tmp_path) -> None:
    """Before any picture of it was watched."""
    table, key, _ = visit(frames=frames, seconds=0.1, encrypt=encrypt)
    other, fork = table.join(key, "Example", CLIP)
    begins = fork.view().begins
    killed(tmp_path / "shelf")
    alone = LiveSession(slow(0))
    alone.open_file(CLIP, "Example")
    ended(alone)
    again = served(slow(0))
    if encrypt:
        again.bring_back(other)
    until(lambda: again.peek(other) and again.peek(other).frames)
    back = again.get(other)
    ended(back)
    view = back.view()
    assert (
        view.begins == begins
        and view.frames == round(12 * begins) + alone.view().frames
        and view.file_name != "clip.mp4"
    )
    assert view.seen_until == pytest.approx(begins + alone.view().seen_until)


def jpeg(shade: int) -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(made, "JPEG")
    return made.getvalue()


@pytest.mark.parametrize("kept", [False, True])
def test_a_camera_goes_back_and_goes_on_with_an_honest_gap(kept, served) -> None:
    """Kept: to the very second. Not kept: to the nearest state that is held, which is said."""
    table = served(slow(0))
    key, session = table.ensure(None)
    session.keep(kept)
    session.open_camera()
    for shade in range(6):
        session.offer(decode_jpeg(jpeg(shade * 40)), jpeg(shade * 40))
        time.sleep(0.05)
    until(lambda: session.view().frames == 6)
    if kept:
        until(lambda: session.switch.keep.keeper.written)
    at = session.view().seen_until - 0.08
    _, fork = table.fork(key, at)
    stands(fork)
    assert fork.view().seen_until <= at and fork.view().source == WEBCAM
    assert (fork.view().frames >= 3) if kept else ("nearest moment" in fork.view().forked or fork.view().frames < 6)
    fork.resume()
    time.sleep(0.3)
    frames = fork.view().frames
    fork.offer(np.zeros((8, 8, 3), np.uint8))
    until(lambda: fork.view().frames == frames + 1)
    assert fork.view().seen_until >= session.view().seen_until + 0.25 and session.view().frames == 6


def test_deleting_a_kept_stream_deletes_its_forks(tmp_path, visit) -> None:
    table, key, session = visit()
    other, fork = table.fork(key, 1.0)
    stands(fork)
    third, second = table.fork(other, 0.5)
    stands(second)
    assert {path.name for path in (tmp_path / "shelf").iterdir()} == {name_of(one) for one in (key, other, third)}
    session.delete_kept()
    assert list((tmp_path / "shelf").iterdir()) == []
    assert "deleted together" in fork.view().kept.told and fork.view().phase is Phase.PAUSED
    fork.resume()
    ended(fork)
    assert list((tmp_path / "shelf").iterdir()) == []


def test_a_fork_of_nothing_and_too_many_are_refused_in_sentences(served, upload) -> None:
    table = served(slow(0))
    with pytest.raises(UserError, match="nothing to go on from"):
        table.fork("nobody")
    key, session = table.ensure(None)
    with pytest.raises(UserError, match="nothing to go on from"):
        table.fork(key)
    session.open_file(upload)
    ended(session)
    for _ in range(3):
        table.fork(key, 0.5)
    with pytest.raises(UserError, match="3 forks of this stream"):
        table.fork(key, 0.5)
    assert len(table) == 4


def test_a_stream_deleted_from_the_list_is_deleted_from_the_disk(served, upload, tmp_path) -> None:
    """Also one that nobody has brought back."""
    table = served(slow(0))
    keys = []
    for _ in range(2):
        key, session = table.ensure(None)
        keys.append(key)
        session.keep(True)
        session.open_file(upload)
        until(lambda session=session: session.view().phase is Phase.ENDED)
    table.delete(keys[0])
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == [name_of(keys[1])] and len(table) == 1
    table.shut()
    served(slow(0)).delete(keys[1])
    assert list((tmp_path / "shelf").iterdir()) == []


def test_a_stream_is_taken_along_and_goes_on_elsewhere(served, upload, tmp_path, monkeypatch, capsys) -> None:
    """While it is kept, and by an operator; nothing stays behind on the shelf."""
    _, session = served(slow(0.05)).ensure(None)
    with pytest.raises(UserError, match="Nothing is kept"):
        session.take_along()
    session.keep(True)
    session.open_file(upload)
    until(lambda: session.view().frames >= 8 and session.switch.keep.keeper.written)
    (tmp_path / "stream.tar").write_bytes(b"".join(session.take_along()))
    assert [path.name for path in (tmp_path / "shelf").iterdir()] == [session.name]
    ended(session)
    monkeypatch.setattr(pipeline, "load", lambda name, **options: slow(0).model)
    assert main(["resume", str(tmp_path / "stream.tar"), "--model", "tiny", "--fork", str(tmp_path / "fork"), ""]) == 0
    assert "pictures" in capsys.readouterr().out
    session.keep(False)
    session.join(30)
    assert len(b"".join(session.take_along())) > CLIP.stat().st_size
