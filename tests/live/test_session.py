"""One visitor's stream: nothing of another's is ever in it, nothing is lost in silence, and nothing outlives it."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest

from app.live import uploads
from app.live.session import LiveSession, Turn
from app.page import panels
from pipeline import Answer, Engine, Evidence, UserError
from tests.fake_model import FakeModel, fake_engine, picture, until, write_clip

RED, BLUE = (200, 20, 20), (20, 20, 200)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "holiday.mp4")


@pytest.fixture
def made():
    """made(engine, rival) -> LiveSession, closed afterwards."""
    sessions = []

    def make(engine=None, rival=None) -> LiveSession:
        sessions.append(LiveSession(engine or fake_engine(), rival))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


def whole(answers) -> Answer:
    return list(answers)[-1]


def seen(session, column=0) -> tuple:
    return session.column(column).state.backbone


# Watching


def test_a_file_is_seen_whole_and_in_order(made, clip):
    session = made()
    session.open_file(clip)
    until(lambda: session.watch.ended)
    assert [round(at) for at, _ in seen(session)] == list(range(12))
    assert session.watch.error == "" and session.watch.duration == pytest.approx(12, abs=0.5)
    assert panels.state(session.watch)[0] == "ended"


def test_two_streams_never_mix(made):
    """Interleaved, on one engine: each state holds its own colours alone, and each answer its own."""
    engine = fake_engine()
    one, two = made(engine), made(engine)
    for _ in range(6):
        one.offer(picture(RED))
        two.offer(picture(BLUE))
        until(lambda: one.watch.waiting == two.watch.waiting == 0)
    until(lambda: len(seen(one)) == len(seen(two)) == 6)
    assert {colour for _, colour in seen(one)} == {RED} and {colour for _, colour in seen(two)} == {BLUE}
    first, second = whole(one.ask("mine?")), whole(two.ask("yours?"))
    assert str(RED) in first.text and "mine?" in first.text and str(BLUE) not in first.text
    assert str(BLUE) in second.text and [turn.question for turn in two.chats[0]] == ["yours?"]


def test_camera_pictures_are_dropped_by_count_and_offering_never_waits(made):
    model = FakeModel()
    session = made(Engine(model))
    model.gate.clear()
    began = time.monotonic()
    for shade in range(60):
        session.offer(picture((shade, shade, shade)))
    assert time.monotonic() - began < 1.0
    model.gate.set()
    until(lambda: session.watch.waiting == 0 and seen(session) and seen(session)[-1][1] == (59, 59, 59))
    watch = session.watch
    assert watch.dropped > 0 and watch.camera.offered == 60 == watch.dropped + watch.columns[0].shown


def test_pause_holds_still_and_resume_loses_nothing(made, clip):
    session = made(fake_engine(watch_s=0.02))
    session.open_file(clip)
    until(lambda: session.watch.columns[0].shown >= 4)
    session.pause()
    time.sleep(0.15)  # the chunk in hand is finished
    held = session.watch.columns[0].shown
    time.sleep(0.2)
    assert session.watch.columns[0].shown == held < 12 and panels.state(session.watch)[0] == "paused"
    assert whole(session.ask("while paused?")).done
    session.resume()
    until(lambda: session.watch.ended)
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


def test_an_error_in_the_middle_pauses_with_its_sentence_and_resume_goes_on(made, clip):
    model = FakeModel()
    model.fail_at = 5.0
    session = made(Engine(model))
    session.open_file(clip)
    until(lambda: session.watch.error)
    assert "overflowed" in session.watch.error and panels.state(session.watch)[0] == "error"
    before = seen(session)
    time.sleep(0.2)
    assert session.watch.paused and seen(session) == before
    session.resume()
    until(lambda: session.watch.ended)
    assert session.watch.error == "" and seen(session)[: len(before)] == before and len(seen(session)) == 8


def test_a_crash_of_the_model_becomes_a_sentence_and_keeps_what_was_seen(made, clip):
    model = FakeModel()
    session, watch = made(Engine(model)), model.watch

    def crash(chunk, state):
        if state.frames >= 8:
            raise RuntimeError("0xdeadbeef in /secret/path")
        return watch(chunk, state)

    model.watch = crash
    session.open_file(clip)
    until(lambda: session.watch.ended)
    assert "our side" in session.watch.error and "secret" not in session.watch.error
    assert whole(session.ask("what did you see?")).text.startswith("8 frames")


@pytest.mark.parametrize("content", [b"", b"this is a letter\n" * 50, b"#EXTM3U\n/etc/passwd\n"])
def test_what_is_no_video_becomes_a_sentence(made, tmp_path, content):
    path = tmp_path / "holiday.mp4"
    path.write_bytes(content)
    session = made()
    session.open_file(path)
    until(lambda: session.watch.ended)
    sentence = session.watch.error
    assert sentence.endswith(".") and not any(word in sentence for word in ("/", "Errno", "Traceback", "0x"))


def test_a_missing_file_is_refused_with_a_sentence(made, tmp_path):
    with pytest.raises(UserError, match="no longer here"):
        made().open_file(tmp_path / "gone.mp4")


def test_the_state_word_follows_the_stream_and_the_player(made, clip):
    model = FakeModel(watch_s=0.05)
    session = made(Engine(model))
    assert panels.state(None)[0] == "idle"
    model.gate.clear()
    session.open_file(clip)
    assert panels.state(session.watch)[0] == "waiting"
    model.gate.set()
    until(lambda: session.watch.columns[0].shown >= 4)
    model.gate.clear()
    kind, word, _ = panels.state(session.watch, player=0.0)
    assert kind == "watching" and word.startswith("Watching 0:")
    assert panels.state(session.watch, player=500.0)[0] == "catching"
    session.pause()
    assert panels.state(session.watch)[0] == "paused"
    session.resume()
    model.gate.set()
    until(lambda: session.watch.ended)
    assert panels.state(session.watch)[0] == "ended"


def test_how_the_page_cuts_a_stream_never_shows_in_an_answer(made, clip, tiny_model):
    """The property of the pipeline, seen through the page: a real Vamba (random weights, pairs of frames), watched in
    the page's chunks with questions in between, answers as after one pass."""
    from pipeline import Question, VideoChunk, open_video

    engine = Engine(tiny_model())
    with open_video(clip, fps=1.0, long_side=64) as video:
        frames = tuple(video)
    session = made(engine)
    session.open_file(clip)
    while not session.watch.ended:
        list(session.ask("in between?"))
    session.clear_chat()
    once = engine.watch(VideoChunk(frames), engine.start())
    direct = list(engine.ask(Question("what was it?"), once))[-1]
    paged = whole(session.ask("what was it?"))
    assert paged.text == direct.text and paged.tokens > 0 and paged.seen_until == direct.seen_until


# Comparing


def test_a_second_engine_that_joins_late_sees_the_same_frames(made, clip):
    session = made(fake_engine(watch_s=0.02), fake_engine("Twin", grow=40_000, constant=0))
    session.open_file(clip)
    until(lambda: session.watch.columns[0].shown >= 4)
    session.compare(True)
    until(lambda: session.watch.ended)
    assert seen(session, 1) == seen(session, 0) and len(seen(session, 0)) == 12
    cost, held, _ = panels.plots(session)
    assert set(cost.dropna()["model"]) == set(held.dropna()["model"]) == {"Fake Vamba", "Twin"}


def test_a_second_engine_that_joins_in_the_middle_of_a_chunk_sees_it_once(made, clip):
    model = FakeModel()
    session = made(Engine(model), fake_engine("Twin"))
    model.gate.clear()
    session.open_file(clip)
    until(lambda: model.watching)
    session.compare(True)
    model.gate.set()
    until(lambda: session.watch.ended)
    assert seen(session, 1) == seen(session, 0) and len(seen(session, 0)) == 12


def test_both_are_asked_after_the_same_frames(made, clip):
    """In the middle of a chunk one column is ahead of the other; their answers would not be comparable."""
    session = made(fake_engine(), fake_engine("Twin", watch_s=0.1))
    session.compare(True)
    session.open_file(clip)
    until(lambda: session.column(1).state.frames >= 4)
    until(lambda: session.column(0).state.frames > session.column(1).state.frames)
    one, two = whole(session.ask("and?")), whole(session.ask("and?", column=1))
    assert one.seen_until == two.seen_until and one.text.split(",")[0] == two.text.split(",")[0] == "4 frames"


def test_a_second_engine_may_join_after_the_end(made, clip):
    session = made(rival=fake_engine("Twin"))
    session.open_file(clip)
    until(lambda: session.watch.ended)
    session.compare(True)
    until(lambda: session.watch.ended and len(session.watch.columns) == 2)
    assert seen(session, 1) == seen(session, 0)
    assert whole(session.ask("you too?", column=1)).text.startswith("12 frames")
    session.compare(False)
    assert len(session.watch.columns) == 1


# Asking


def test_asking_neither_stops_watching_nor_sees_more_than_at_the_time(made, clip):
    session = made(fake_engine(watch_s=0.03, token_s=0.03))
    session.open_file(clip)
    until(lambda: session.watch.columns[0].shown >= 4)
    answers = list(session.ask("what is it?"))[1:]
    had_seen = int(answers[-1].text.split(" ")[0])
    assert 4 <= had_seen < session.watch.columns[0].shown, "watching went on while it was written"
    assert {answer.seen_until for answer in answers} == {seen(session)[had_seen - 1][0]}
    until(lambda: session.watch.ended)
    assert len(seen(session)) == 12


def test_stop_ends_an_answer_within_a_token(made):
    session = made(fake_engine(token_s=0.02))
    session.offer(picture(RED))
    until(lambda: seen(session))
    answers = session.ask("a long one with many words " * 20)
    for _ in range(4):
        last = next(answers)
    session.stop_answer()
    rest = list(answers)
    assert rest[-1].stopped and rest[-1].done and rest[-1].tokens <= last.tokens + 1
    assert session.chats[0][-1].answer is rest[-1] and not session.answering


def test_finishing_an_answer_frees_its_column(made):
    session = made(fake_engine(token_s=0.02))
    session.offer(picture(RED))
    until(lambda: seen(session))
    answers = session.ask("words " * 200)
    next(answers), next(answers)
    reader = threading.Thread(target=list, args=(answers,))
    reader.start()
    session.finish_answer()
    assert not session.answering and whole(session.ask("next")).done
    reader.join()


def test_a_page_that_goes_away_in_mid_answer_leaves_what_was_written(made):
    session = made()
    session.offer(picture(RED))
    until(lambda: seen(session))
    answers = session.ask("what?")
    for _ in range(3):
        next(answers)
    answers.close()
    kept = session.chats[0][-1].answer
    assert kept.done and kept.stopped and kept.text.startswith("1 frames")
    assert whole(session.ask("and now?")).done, "the column is free again"


def test_one_answer_at_a_time(made):
    session = made()
    session.offer(picture(RED))
    until(lambda: seen(session))
    answers = session.ask("first")
    next(answers)
    with pytest.raises(UserError, match="press Stop"):
        next(session.ask("second"))
    assert [turn.question for turn in session.chats[0]] == ["first"]
    answers.close()


def test_evidence_keeps_its_pictures(made, clip):
    session = made()
    session.open_file(clip)
    until(lambda: session.watch.ended)
    answer = whole(session.ask("when?"))
    pictures = session.chats[0][-1].pictures
    assert answer.evidence and len(pictures) == len(answer.evidence) and pictures[0].startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("text", "words"), [("", "empty"), ("x" * 2001, "2,000"), ("anything", "Nothing has been seen")]
)
def test_a_question_that_cannot_be_asked_gets_a_sentence_in_the_chat(made, text, words):
    session = made()
    if text != "anything":
        session.offer(picture(RED))
        until(lambda: seen(session))
    list(session.ask(text))
    turn = session.chats[0][-1]
    assert words in turn.error and len(turn.question) <= 2001
    assert not session.answering


def test_surrogates_and_nuls_do_not_travel(made):
    session = made()
    session.offer(picture(RED))
    until(lambda: seen(session))
    list(session.ask("caf\ud800\0e"))
    session.chats[0][-1].question.encode()
    assert "\0" not in session.chats[0][-1].question


def test_retry_draws_again_and_clear_forgets_words_only(made):
    model = FakeModel()
    session = made(Engine(model))
    session.offer(picture(RED))
    until(lambda: seen(session))
    list(session.ask("one"))
    list(session.ask("two"))
    assert "1 turns before" in session.chats[0][-1].answer.text
    turn = session.take_back()
    list(session.ask(turn.question, again=session.repeats))
    assert model.samplings[0].temperature == 0 < model.samplings[-1].temperature
    assert [turn.question for turn in session.chats[0]] == ["one", "two"]
    session.clear_chat()
    assert session.chats == ([], []) and len(seen(session)) == 1


# Ending


def test_close_frees_memory_threads_and_files(clip, tmp_path):
    session = LiveSession(fake_engine(watch_s=0.05))
    session.open_file(clip)
    until(lambda: session.watch.columns[0].shown)
    own, thread, state = session._own, session.watch._thread, weakref.ref(session.column(0).state)
    assert own.exists() and thread.is_alive()
    session.close()
    gc.collect()
    assert not own.parent.exists() and not thread.is_alive() and state() is None and clip.exists()
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.open_file(clip)
    assert session._own is None, "nothing is copied for nobody"


def test_reset_forgets_everything_and_the_next_stream_starts_from_nothing(made, clip):
    session = made()
    session.open_file(clip)
    until(lambda: session.watch.ended)
    list(session.ask("what?"))
    session.reset()
    assert session.watch is None and session.chats == ([], [])
    session.offer(picture(RED))
    assert session.watch is None, "a picture that was on its way starts nothing"
    session.open_camera()
    session.offer(picture(BLUE))
    until(lambda: seen(session))
    assert seen(session)[0][1] == BLUE and len(seen(session)) == 1


def test_an_upload_is_deleted_by_its_last_user_and_nothing_else_is(made, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    upload = tmp_path / "abc" / "holiday.mp4"
    upload.parent.mkdir()
    upload.write_bytes(clip.read_bytes())
    one, two = made(), made()
    one.open_file(upload)
    two.open_file(upload)
    one.reset()
    assert upload.exists(), "somebody else still plays it"
    two.reset()
    assert not upload.exists()
    outside = made()
    outside.open_file(clip)
    outside.reset()
    assert clip.exists(), "a file outside the uploads is not ours"


def test_pieces_of_aborted_uploads_are_swept(tmp_path, monkeypatch):
    (tmp_path / "tmpabc").write_bytes(b"half a video")
    (tmp_path / "whole.mp4").write_bytes(b"a video")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    assert uploads.sweep(older_than=-1) == 0, "a folder shared with others is left alone"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert uploads.sweep() == 0 and uploads.sweep(older_than=-1) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["whole.mp4"]


# What the page shows


HOSTILE = ["<img src=x onerror=alert(1)>", "</div><script>alert(1)</script>", '" onclick="alert(1)', "&lt;b&gt;"]


@pytest.mark.parametrize("words", HOSTILE)
def test_words_are_never_markup(made, words):
    session = made()
    session.file_name = words
    session.watch = None
    for shown in (panels.state_line(session), panels.state_line(session, sentence=words)):
        assert "<img" not in shown and "<script" not in shown and 'onclick="' not in shown.replace("&quot;", "")
    answer = Answer(words, 1.0, 2.0, (Evidence(1.0, 0.5, 0.0, 2.0),), done=True)
    turns = [Turn(words, answer=answer), Turn(words, error=words)]
    for message in panels.messages(turns, card=str):
        parts = message["content"] if isinstance(message["content"], list) else [message["content"]]
        assert not any("<img src=x" in part or "<script" in part for part in parts)


def test_markup_of_a_model_is_taken_out():
    assert (
        panels.plain("see ![a cat](http://x/y.png) and [this](javascript:f(1)) <b>now</b>") == "see a cat and this now"
    )
    assert panels.plain("1 < 2 and 3 > 2") == "1 < 2 and 3 > 2"


def test_sizes_and_names_read_well():
    sizes = [0, 15_000, 290_000, 19_600_000, 123_400_000, 30_900_000_000]
    assert [panels.megabytes(size) for size in sizes] == ["0 kB", "15 kB", "290 kB", "19.6 MB", "123 MB", "30.9 GB"]
    assert panels.short("a\u202eb\nc.mp4") == "abc.mp4" and len(panels.short("x" * 300)) == 40
