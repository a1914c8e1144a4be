"""The phases of a stream: whatever is pressed and whenever, every model sees every picture once and in order, no
command waits for a chunk, and the end stays the end."""

from __future__ import annotations

import random
import threading
import time

import pytest

from app.live import uploads
from app.live.view import EXAMPLE, Phase
from app.live.watching import Source, Watch
from pipeline import Engine, UserError
from tests.fake_model import RED, FakeModel, ended, fake_engine, picture, seen, until, write_clip
from tests.sources.test_cases import CASES

EVERY_SECOND = list(range(12))


@pytest.fixture
def watch():
    """watch(source, engine, rival) -> Watch, closed afterwards."""
    watches = []

    def begin(*args) -> Watch:
        watches.append(Watch(*args))
        return watches[-1]

    yield begin
    for one in watches:
        one.close()


def seconds(session, model: int = 0) -> list[int]:
    return [round(at) for at, _ in seen(session, model)]


def test_pause_at_the_very_end_changes_nothing(made, clip):
    """It said "Paused, press Resume to go on" beside a button that said "Watch again"."""
    session = made()
    session.open_file(clip)
    until(lambda: ended(session))
    session.pause()
    assert session.view().phase is Phase.ENDED and session.view().told().kind == "ended"
    session.resume()
    assert session.view().phase is Phase.ENDED


def test_what_was_mended_in_a_file_is_told_at_its_end(made):
    """Two tracks one after the other are ten seconds, whatever the header of the first one says."""
    session = made()
    session.open_file(CASES / "ts_pid_change.ts", EXAMPLE)
    until(lambda: ended(session))
    assert session.view().told().detail == "All 0:10 seen; ask anything about it."
    session.open_file(CASES / "ts_splice_forward_9h.ts", EXAMPLE)
    until(lambda: ended(session) and session.view().frames == 10)
    assert session.view().told().detail.startswith("All 0:10 seen") and "joined" in session.view().told().detail


def test_pause_in_the_last_chunk_holds_until_resume(made, clip):
    """The end was not read yet; after it there is nothing to hold."""
    model, permits = FakeModel(), threading.Semaphore(2)
    session, watched = made(Engine(model)), model.watch

    def watch_with_a_permit(chunk, state):
        permits.acquire()
        return watched(chunk, state)

    model.watch = watch_with_a_permit
    session.open_file(clip)
    until(lambda: session.view().frames == 8)
    session.pause()
    permits.release()
    time.sleep(0.1)
    held = session.view()
    assert held.phase is Phase.PAUSED and held.frames in (8, 12)
    session.resume()
    until(lambda: ended(session))
    assert seconds(session) == EVERY_SECOND


@pytest.mark.parametrize("failing", [0, 1])
def test_a_model_that_fails_once_loses_no_picture(made, clip, failing):
    """The second one's were lost for ever, and nobody said so."""
    models = [FakeModel(), FakeModel("Twin")]
    models[failing].fail_at = 5.0
    session = made(*map(Engine, models))
    session.compare(True)
    session.open_file(clip)
    until(lambda: session.view().error)
    view = session.view()
    assert view.phase is Phase.STOPPED and [one.frames for one in view.models][failing] == 4
    session.resume()
    until(lambda: ended(session))
    assert seconds(session, 0) == seconds(session, 1) == EVERY_SECOND
    assert [one.note for one in session.view().models] == ["", ""]


def test_after_a_failure_both_are_asked_of_what_both_have_seen(made, clip):
    models = [FakeModel(), FakeModel("Twin")]
    models[1].fail_at = 5.0
    session = made(*map(Engine, models))
    session.compare(True)
    session.open_file(clip)
    until(lambda: session.view().error)
    question = session.ask("how many?")
    first, second = (list(session.answer(question, model))[-1] for model in (0, 1))
    assert first.text == second.text and first.text.startswith("4 frames")


def test_what_fails_twice_is_left_out_counted_and_said(made, clip):
    """Or no press of Resume would ever get past it."""
    model = FakeModel()
    model.refuses = {5}
    session = made(fake_engine(), Engine(model))
    session.compare(True)
    session.open_file(clip)
    until(lambda: session.view().error)
    session.resume()
    until(lambda: ended(session))
    assert seconds(session, 0) == EVERY_SECOND and seconds(session, 1) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert [one.note for one in session.view().models] == ["", "4 frames left out"]


@pytest.mark.parametrize("second,left", [(5, [0, 1, 2, 3, 8, 9, 10, 11]), (11, [0, 1, 2, 3, 4, 5, 6, 7])])
def test_numbers_that_overflow_a_chunk_late_cost_that_chunk_and_no_more(made, clip, second, left):
    """In the middle they are noticed with the next chunk, in the last chunk at the end."""
    model = FakeModel()
    model.finite_later = lambda state: lambda: all(round(at) != second for at, _ in state.inner)
    session = made(Engine(model))
    session.open_file(clip)
    until(lambda: session.view().error)
    assert "overflowed" in session.view().error
    if session.view().phase is Phase.STOPPED:
        session.resume()
    until(lambda: ended(session))
    assert seconds(session) == left and [one.note for one in session.view().models] == ["4 frames left out"]
    assert session.view().frames == 8


def test_a_model_that_joins_late_loses_nothing_when_it_fails(made, clip):
    model = FakeModel("Twin")
    model.fail_at = 5.0
    session = made(rival=Engine(model))
    session.open_file(clip)
    until(lambda: ended(session))
    session.compare(True)
    until(lambda: session.view().error)
    session.resume()
    until(lambda: ended(session))
    assert seconds(session, 1) == EVERY_SECOND
    assert list(session.answer(session.ask("and?"), 1))[-1].text.startswith("12 frames")


def test_a_model_that_joins_after_a_part_was_left_out_sees_that_part(made, clip):
    """How far a file was shown is not how many frames the first model took."""
    model = FakeModel()
    model.refuses = {1}
    session = made(Engine(model), fake_engine("Twin"))
    session.open_file(clip)
    until(lambda: session.view().error)
    session.resume()
    until(lambda: ended(session))
    session.compare(True)
    until(lambda: ended(session) and len(session.view().models) == 2)
    until(lambda: seconds(session, 1) == EVERY_SECOND)  # the stream is still called ended until the second model begins
    assert len(seen(session, 0)) == 8


def test_compare_said_twice_gives_two_models(made, clip):
    """A reload sets the switch, which says it again; between two chunks there came a third."""
    model = FakeModel()
    session = made(Engine(model), fake_engine("Twin"))
    model.gate.clear()
    session.open_file(clip)
    until(lambda: model.watching)
    for _ in range(3):
        session.compare(True)
    model.gate.set()
    until(lambda: ended(session))
    assert [one.name for one in session.view().models] == ["Fake Vamba", "Twin"]
    assert seconds(session, 0) == seconds(session, 1) == EVERY_SECOND


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_pressed_both_models_see_every_picture_once(made, clip, seed):
    draw = random.Random(seed)
    models = [FakeModel(watch_s=0.01), FakeModel("Twin", watch_s=0.005)]
    models[seed % 2].fail_at = float(draw.randrange(1, 12))
    session = made(*map(Engine, models))
    session.open_file(clip)
    for _ in range(30):
        draw.choice([session.pause, session.resume, lambda: session.compare(draw.random() < 0.7), session.view])()
        time.sleep(draw.choice([0, 0, 0.01, 0.03]))
        assert len(session.view().models) <= 2
    session.compare(True)
    until(lambda: session.resume() or (ended(session) and len(session.view().models) == 2))
    assert seconds(session, 0) == seconds(session, 1) == EVERY_SECOND


def test_reset_and_close_do_not_wait_for_a_chunk(made, clip, tmp_path, monkeypatch):
    """They took ten seconds of a web thread, then gave up waiting. The file is gone at once all the same."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    upload = write_clip(tmp_path / "holiday.mp4", seconds=2)
    model = FakeModel()
    session = made(Engine(model))
    model.gate.clear()
    session.open_file(upload)
    until(lambda: model.watching)
    own, worker, began = session.watch.source.path, session.watch._worker, time.monotonic()
    session.reset()
    session.close()
    assert time.monotonic() - began < 1.0 and worker.is_alive()
    assert not own.parent.exists() and not upload.exists() and session.view().phase is Phase.IDLE
    model.gate.set()
    until(lambda: not worker.is_alive())
    assert session.view().frames == 0, "a late chunk changes nothing that anybody looks at"


def test_a_stream_that_follows_a_stuck_one_is_its_own(made, clip):
    model = FakeModel()
    session = made(Engine(model))
    model.gate.clear()
    session.open_file(clip)
    until(lambda: model.watching)
    session.again()
    model.gate.set()
    until(lambda: ended(session))
    assert seconds(session) == EVERY_SECOND


def test_a_camera_whose_model_crashed_keeps_what_it_saw(made):
    """The next picture used to begin a new stream and forget the conversation."""
    model = FakeModel()
    session = made(Engine(model))
    session.offer(picture(RED))
    until(lambda: session.view().frames == 1)
    list(session.answer(session.ask("what?")))
    watched, model.watch = model.watch, lambda chunk, state: 1 / 0
    session.offer(picture(RED))
    until(lambda: ended(session))
    model.watch = watched
    session.offer(picture(RED))
    view = session.view()
    assert view.frames == 1 and "our side" in view.error and len(view.conversations[0]) == 1


def test_no_phase_leads_back_from_closed(watch, clip):
    one = watch(Source("Upload", path=clip), fake_engine(watch_s=0.05))
    one.close()
    one.resume(), one.pause(), one.compare(fake_engine("Twin"))
    one.join(5)
    assert not one._worker.is_alive() and one._phase is Phase.CLOSED


def test_commands_from_many_threads_never_meet_a_stream_that_went_away(made, clip):
    """Each reads the stream once: between two looks Reset may have taken it."""
    session, faults, done = made(rival=fake_engine("Twin")), [], threading.Event()

    def press() -> None:
        while not done.is_set():
            try:
                for command in (session.pause, session.resume, session.view, session.stop_answer):
                    command()
                session.compare(True)
                _ = session.has_file
                list(session.answer(session.ask("?")))
            except UserError:  # an answer is being written
                pass
            except Exception as error:
                faults.append(error)

    threads = [threading.Thread(target=press) for _ in range(3)]
    [thread.start() for thread in threads]
    for _ in range(15):
        session.open_file(clip, "Example")
        session.again()
        session.reset()
    done.set()
    [thread.join() for thread in threads]
    assert not faults


def test_a_file_that_cannot_be_copied_ends_nothing(made, clip, tmp_path):
    session = made()
    session.open_file(clip, "Example")
    with pytest.raises(UserError, match="no longer here"):
        session.open_file(tmp_path / "gone.mp4")
    until(lambda: ended(session))
    assert session.view().frames == 12 and not uploads._users


def test_a_view_tells_the_shots_of_what_was_watched(made, clip):
    session = made()
    session.open_file(clip)
    until(lambda: ended(session) and any(event.kind == "chapter" for event in session.view().events))
    shots = [(event.time, event.until) for event in session.view().events if event.kind == "shot"]
    assert shots == [(0, 6), (6, session.view().seen_until)]
