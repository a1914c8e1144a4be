"""One visitor's stream: nothing of another's is ever in it, nothing is lost in silence, and nothing outlives it."""

from __future__ import annotations

import gc
import time
import weakref

import pytest

from app.live import uploads
from app.live.session import LiveSession
from app.live.view import Phase
from pipeline import Engine, UserError
from tests.fake_model import BLUE, RED, FakeModel, asked, ended, fake_engine, picture, seen, until, whole

# Watching


def test_a_file_is_seen_whole_and_in_order(made, clip):
    session = made()
    session.open_file(clip)
    until(lambda: ended(session))
    assert [round(at) for at, _ in seen(session)] == list(range(12))
    assert session.view().error == "" and session.view().duration == pytest.approx(12, abs=0.5)
    assert session.view().told().kind == "ended"


def test_two_streams_never_mix(made):
    """Interleaved, on one engine: each state holds its own colours alone, and each answer its own."""
    engine = fake_engine()
    one, two = made(engine), made(engine)
    for _ in range(6):
        one.offer(picture(RED))
        two.offer(picture(BLUE))
        until(lambda: one.view().waiting == two.view().waiting == 0)
    until(lambda: len(seen(one)) == len(seen(two)) == 6)
    assert {colour for _, colour in seen(one)} == {RED} and {colour for _, colour in seen(two)} == {BLUE}
    first, second = whole(asked(one, "mine?")), whole(asked(two, "yours?"))
    assert str(RED) in first.text and "mine?" in first.text and str(BLUE) not in first.text
    assert str(BLUE) in second.text and [turn.question for turn in two.view().conversations[0]] == ["yours?"]


def test_camera_pictures_are_dropped_by_count_and_offering_never_waits(made):
    model = FakeModel()
    session = made(Engine(model))
    model.gate.clear()
    began = time.monotonic()
    for shade in range(60):
        session.offer(picture((shade, shade, shade)))
    assert time.monotonic() - began < 1.0
    model.gate.set()
    until(lambda: session.view().waiting == 0 and seen(session) and seen(session)[-1][1] == (59, 59, 59))
    view = session.view()
    assert view.dropped > 0 and session.watch.camera.offered == 60 == view.dropped + view.frames


def test_pause_holds_still_and_resume_loses_nothing(made, clip):
    session = made(fake_engine(watch_s=0.02))
    session.open_file(clip)
    until(lambda: session.view().frames >= 4)
    session.pause()
    time.sleep(0.15)  # the chunk in hand is finished
    held = session.view().frames
    time.sleep(0.2)
    assert session.view().frames == held < 12 and session.view().told().kind == "paused"
    assert whole(asked(session, "while paused?")).done
    session.resume()
    until(lambda: ended(session))
    assert [round(at) for at, _ in seen(session)] == list(range(12))


def test_a_paused_camera_takes_nothing(made):
    session = made()
    session.offer(picture(RED))
    until(lambda: len(seen(session)) == 1)
    session.pause()
    session.offer(picture(BLUE))
    session.resume()
    session.offer(picture(RED))
    until(lambda: len(seen(session)) == 2)
    assert {colour for _, colour in seen(session)} == {RED}


def test_an_error_in_the_middle_stops_with_its_sentence_and_resume_loses_nothing(made, clip):
    model = FakeModel()
    model.fail_at = 5.0
    session = made(Engine(model))
    session.open_file(clip)
    until(lambda: session.view().error)
    assert "overflowed" in session.view().error and session.view().told().kind == "error"
    before = seen(session)
    time.sleep(0.2)
    assert session.view().phase is Phase.STOPPED and seen(session) == before
    session.resume()
    until(lambda: ended(session))
    assert session.view().error == "" and seen(session)[: len(before)] == before and len(seen(session)) == 12


def test_a_crash_of_the_model_becomes_a_sentence_and_keeps_what_was_seen(made, clip):
    model = FakeModel()
    session, watch = made(Engine(model)), model.watch

    def crash(chunk, state):
        if state.frames >= 8:
            raise RuntimeError("0xdeadbeef in /secret/path")
        return watch(chunk, state)

    model.watch = crash
    session.open_file(clip)
    until(lambda: ended(session))
    assert "our side" in session.view().error and "secret" not in session.view().error
    assert whole(asked(session, "what did you see?")).text.startswith("8 frames")


@pytest.mark.parametrize("content", [b"", b"this is a letter\n" * 50, b"#EXTM3U\n/etc/passwd\n"])
def test_what_is_no_video_becomes_a_sentence(made, tmp_path, content):
    path = tmp_path / "holiday.mp4"
    path.write_bytes(content)
    session = made()
    session.open_file(path)
    until(lambda: ended(session))
    sentence = session.view().error
    assert sentence.endswith(".") and not any(word in sentence for word in ("/", "Errno", "Traceback", "0x"))


def test_a_missing_file_is_refused_with_a_sentence(made, tmp_path):
    with pytest.raises(UserError, match="no longer here"):
        made().open_file(tmp_path / "gone.mp4")


def test_the_state_word_follows_the_stream_and_the_player(made, clip):
    model = FakeModel(watch_s=0.05)
    session = made(Engine(model))
    assert session.view().told().kind == "idle"
    model.gate.clear()
    session.open_file(clip)
    assert session.view().told().kind == "waiting"
    model.gate.set()
    until(lambda: session.view().frames >= 4)
    model.gate.clear()
    kind, word, _ = session.view().told()
    assert kind == "watching" and word.startswith("Watching 0:")
    assert session.view().told(player=500.0).kind == "catching"
    session.pause()
    assert session.view().told().kind == "paused"
    session.resume()
    model.gate.set()
    until(lambda: ended(session))
    assert session.view().told().kind == "ended"


def test_how_the_page_cuts_a_stream_never_shows_in_an_answer(made, clip, tiny_model):
    """The property of the pipeline, seen through the page: a real Vamba (random weights, pairs of frames), watched in
    the page's chunks with questions in between, answers as after one pass."""
    from pipeline import Question, VideoChunk, open_video

    engine = Engine(tiny_model())
    with open_video(clip, fps=1.0, long_side=64) as video:
        frames = tuple(video)
    session = made(engine)
    session.open_file(clip)
    while not ended(session):
        list(asked(session, "in between?"))
    session.clear_chat()
    once = engine.watch(VideoChunk(frames), engine.start())
    direct = list(engine.ask(Question("what was it?"), once))[-1]
    paged = whole(asked(session, "what was it?"))
    assert paged.text == direct.text and paged.tokens > 0 and paged.seen_until == direct.seen_until


# Comparing


def test_a_second_engine_that_joins_late_sees_the_same_frames(made, clip):
    session = made(fake_engine(watch_s=0.02), fake_engine("Twin", grow=40_000, constant=0))
    session.open_file(clip)
    until(lambda: session.view().frames >= 4)
    session.compare(True)
    until(lambda: ended(session))
    assert seen(session, 1) == seen(session, 0) and len(seen(session, 0)) == 12
    assert [len(model.samples) > 0 for model in session.view().models] == [True, True]


def test_a_second_engine_that_joins_in_the_middle_of_a_chunk_sees_it_once(made, clip):
    model = FakeModel()
    session = made(Engine(model), fake_engine("Twin"))
    model.gate.clear()
    session.open_file(clip)
    until(lambda: model.watching)
    session.compare(True)
    model.gate.set()
    until(lambda: ended(session))
    assert seen(session, 1) == seen(session, 0) and len(seen(session, 0)) == 12


def test_both_are_asked_after_the_same_frames(made, clip):
    """In the middle of a chunk one column is ahead of the other; their answers would not be comparable."""
    session = made(fake_engine(), fake_engine("Twin", watch_s=0.1))
    session.compare(True)
    session.open_file(clip)
    until(lambda: session.watch.viewing(1).state.frames >= 4)
    until(lambda: session.watch.viewing(0).state.frames > session.watch.viewing(1).state.frames)
    question = session.ask("and?")
    one, two = (whole(session.answer(question, model)) for model in (0, 1))
    assert one.seen_until == two.seen_until and one.text.split(",")[0] == two.text.split(",")[0] == "4 frames"


def test_a_second_engine_may_join_after_the_end(made, clip):
    session = made(rival=fake_engine("Twin"))
    session.open_file(clip)
    until(lambda: ended(session))
    session.compare(True)
    until(lambda: ended(session) and len(session.view().models) == 2)
    assert seen(session, 1) == seen(session, 0)
    assert whole(asked(session, "you too?", model=1)).text.startswith("12 frames")
    session.compare(False)
    assert len(session.view().models) == 1


# Ending


def test_close_frees_memory_threads_and_files(clip):
    session = LiveSession(fake_engine(watch_s=0.05))
    session.open_file(clip)
    until(lambda: session.view().frames)
    own, worker, state = session.watch.source.path, session.watch._worker, weakref.ref(session.watch.viewing(0).state)
    assert own.exists() and worker.is_alive() and own != clip
    session.close()
    assert not own.parent.exists() and clip.exists()
    until(lambda: not worker.is_alive())
    gc.collect()
    assert state() is None
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.open_file(clip)
    assert session.watch is None, "nothing is watched for nobody"


def test_reset_forgets_everything_and_the_next_stream_starts_from_nothing(made, clip):
    session = made()
    session.open_file(clip)
    until(lambda: ended(session))
    list(asked(session, "what?"))
    session.reset()
    assert session.watch is None and session.view().conversations == ((), ())
    session.offer(picture(RED))
    assert session.watch is None, "a picture that was on its way starts nothing"
    session.open_camera()
    session.offer(picture(BLUE))
    until(lambda: seen(session))
    assert seen(session)[0][1] == BLUE and len(seen(session)) == 1


def test_who_opens_another_file_deletes_none_under_others(made, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    shared, other = tmp_path / "abc" / "holiday.mp4", tmp_path / "def" / "other.mp4"
    for upload in (shared, other):
        upload.parent.mkdir()
        upload.write_bytes(clip.read_bytes())
    one, two = made(), made()
    one.open_file(shared)
    two.open_file(shared)
    one.open_file(other)
    assert shared.exists(), "somebody else still plays it"
    one.open_camera()
    assert other.exists(), "it stays while something else is watched"
    one.close()
    assert not other.exists() and shared.exists()
    two.close()
    assert not shared.exists()


def test_an_upload_is_deleted_by_its_last_user_and_nothing_else_is(made, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    upload = tmp_path / "abc" / "holiday.mp4"
    upload.parent.mkdir()
    upload.write_bytes(clip.read_bytes())
    one, two = made(), made()
    one.open_file(upload)
    two.open_file(upload)
    one.reset()
    one.let_go_of_undoable(older_than=0)
    assert upload.exists(), "somebody else still plays it"
    two.reset()
    assert upload.exists(), "Reset can be taken back"
    two.let_go_of_undoable(older_than=0)
    assert not upload.exists()
    outside = made()
    outside.open_file(clip)
    outside.reset()
    outside.let_go_of_undoable(older_than=0)
    assert clip.exists(), "a file outside the uploads is not ours"


def test_pieces_of_aborted_uploads_are_swept(tmp_path, monkeypatch):
    (tmp_path / "tmpabc").write_bytes(b"half a video")
    (tmp_path / "whole.mp4").write_bytes(b"a video")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    assert uploads.sweep(older_than=-1) == 0, "a folder shared with others is left alone"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert uploads.sweep() == 0 and uploads.sweep(older_than=-1) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["whole.mp4"]


def test_watching_again_keeps_what_is_to_be_told_and_another_file_does_not(made, clip):
    session = made()
    session.open_file(clip)
    rule = session.add_rule("tell me when it is over", 30)
    until(lambda: ended(session))
    session.again()
    assert session.view().rules == (rule,)
    until(lambda: ended(session))
    assert session.view().rules == (rule,) and len(seen(session)) == 12
    session.open_file(clip)
    assert session.view().rules == ()
