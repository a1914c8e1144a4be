"""Operator sources: watched once for everybody, each visitor's words their own, and nobody can touch the stream."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from app.live.table import Sessions
from app.live.view import Phase
from pipeline import UserError, addresses
from tests.fake_model import asked, ended, fake_engine, picture, until, whole
from tests.sources.serving_live import Recorder, clip, needs_rtsp_server, rtsp_server


@pytest.fixture
def yard(tmp_path) -> Iterator[tuple[Sessions, Recorder]]:
    """A server that watches a folder called Yard, and who records into it."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    recorder = Recorder(folder, seconds=3.0)
    recorder.record(2, age=30.0)
    table = Sessions(fake_engine(), fake_engine("Twin"), places=4, sources=addresses([f"Yard={folder}"]))
    yield table, recorder
    table.shut()
    assert not table.shared["Yard"]._receiver.running


def seated(table: Sessions):
    key, session = table.ensure(None)
    session.open_shared(table.shared["Yard"])
    return key, session


def test_one_is_watching_for_all_and_each_has_a_conversation_of_their_own(yard):
    table, recorder = yard
    (_, one), (_, two) = seated(table), seated(table)
    until(lambda: one.view().frames >= 3)
    assert sum(thread.name == "live source" for thread in threading.enumerate()) == 1
    assert one.watch.shared is two.watch.shared and one.view().newest.jpeg
    answer = whole(asked(one, "mine?"))
    assert "mine?" in answer.text and [turn.question for turn in one.view().conversations[0]] == ["mine?"]
    assert two.view().conversations == ((), ())
    view = two.view()
    assert (view.source, view.file_name, view.shared, view.live) == ("Yard", "Yard", True, True)
    assert str(recorder.folder) not in repr(view)


def test_nobody_can_pause_end_keep_or_fork_it(yard):
    table, recorder = yard
    (key, one), (_, two) = seated(table), seated(table)
    until(lambda: two.view().frames >= 3)
    for deed in (one.pause, one.resume, one.again, one.reset, one.undo, one.reset, one.close):
        deed()
        assert two.view().phase is Phase.WATCHING, deed
    with pytest.raises(UserError, match="for everybody"):
        two.branch(0.0, one)
    with pytest.raises(UserError, match="for everybody"):
        two.keep(True)
    with pytest.raises(UserError, match="for everybody"):
        table.fork(next(key for key, place in table._by_key.items() if place.session is two))
    two.offer(picture((1, 2, 3)))  # a visitor's camera adds nothing
    table.close(key)
    before = two.view().frames
    recorder.record()
    until(lambda: two.view().frames > before)
    assert all(colour != (1, 2, 3) for _, colour in two.watch.viewing(0).state.inner)


def test_who_compares_leaves_others_as_they_are(yard):
    table, recorder = yard
    (_, one), (_, two) = seated(table), seated(table)
    one.compare(True)
    recorder.record(2)
    until(lambda: len(one.view().models) == 2 and one.view().models[1].frames)
    assert len(two.view().models) == 1 and not two.view().comparing
    two.compare(True)
    one.compare(False)
    assert len(two.view().models) == 2 and len(one.view().models) == 1
    assert "both?" in whole(asked(two, "both?", model=1)).text


def test_a_gap_is_on_the_list_of_events_and_the_clock_goes_on(yard):
    table, recorder = yard
    _, one = seated(table)
    until(lambda: one.view().frames >= 3)
    recorder.record(2, age=0.0)
    until(lambda: any(event.kind == "gap" for event in one.view().events))
    (gap,) = [event for event in one.view().events if event.kind == "gap"]
    assert gap.until - gap.time > 15
    until(lambda: gap.until in [at for at, _ in one.watch.viewing(0).state.inner])  # it is told before it is watched
    assert "Nothing came from the source" in gap.text


@needs_rtsp_server
def test_rtsp_through_the_whole_house_says_no_password(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    with rtsp_server(clip(tmp_path / "clip.mp4"), "admin", "s3cret") as server:
        table = Sessions(fake_engine(), places=2, sources=addresses([f"Door={server.url}"]))
        try:
            _, one = table.ensure(None)
            one.open_shared(table.shared["Door"])
            until(lambda: one.view().frames >= 2, 30)
            server.kill()
            until(lambda: one.view().trouble, 30)
            told = one.view().told()
            assert (told.kind, told.word) == ("waiting", "Waiting for the source") and "asked again" in told.detail
            assert "s3cret" not in repr(one.view()) + repr(table.shared["Door"].source) + caplog.text
            server.start()
        finally:
            table.shut()


def test_a_source_that_says_it_is_over_ends_the_stream(tmp_path):
    from tests.sources.serving_live import Hls

    server = Hls(tmp_path, segments=1)
    server.publish()
    server.end()
    table = Sessions(fake_engine(), places=2, sources=addresses([f"Film={server.url}"]))
    try:
        _, one = table.ensure(None)
        one.open_shared(table.shared["Film"])
        until(lambda: ended(one), 30)
        assert one.view().frames >= 2 and "frames" in whole(asked(one, "what?")).text
    finally:
        table.shut()
        server.close()
