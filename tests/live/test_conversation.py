"""Questions and their answers: one at a time and model, in turn, stopped together, taken back by their number."""

from __future__ import annotations

import threading

import pytest

from app.live.conversation import PUT_ASIDE, WAITING
from pipeline import Answer, Engine, UserError
from tests.fake_model import RED, FakeModel, asked, ended, fake_engine, picture, seen, until, whole


def test_asking_neither_stops_watching_nor_sees_more_than_at_the_time(made, clip):
    session = made(fake_engine(watch_s=0.03, token_s=0.03))
    session.open_file(clip)
    until(lambda: session.view().frames >= 4)
    answers = list(asked(session, "what is it?"))[1:]
    had_seen = int(answers[-1].text.split(" ")[0])
    assert 4 <= had_seen < session.view().frames, "watching went on while it was written"
    assert {answer.seen_until for answer in answers} == {seen(session)[had_seen - 1][0]}
    until(lambda: ended(session))
    assert len(seen(session)) == 12


def test_stop_ends_an_answer_within_a_token(made):
    session = made(fake_engine(token_s=0.02))
    session.offer(picture(RED))
    until(lambda: seen(session))
    answers = asked(session, "a long one with many words " * 20)
    for _ in range(4):
        last = next(answers)
    session.stop_answer()
    rest = list(answers)
    assert rest[-1].stopped and rest[-1].done and rest[-1].tokens <= last.tokens + 1
    assert session.view().conversations[0][-1].answer is rest[-1] and not session.view().answering


def test_a_question_right_after_stop_is_taken(made):
    """It waits until the stopped answer has written its last token."""
    session = made(fake_engine(token_s=0.02))
    session.offer(picture(RED))
    until(lambda: seen(session))
    answers = asked(session, "words " * 200)
    next(answers), next(answers)
    reader = threading.Thread(target=list, args=(answers,))
    reader.start()
    session.stop_answer()
    assert whole(asked(session, "next")).done
    reader.join()
    assert [turn.answer.stopped for turn in session.view().conversations[0]] == [True, False]


def test_a_page_that_goes_away_in_mid_answer_cuts_nothing(made):
    """The answer is written by a thread of its own, and is there when the page comes back."""
    session = watching(made, token_s=0.02)
    answers = asked(session, "what?")
    for _ in range(3):
        next(answers)
    answers.close()
    until(lambda: not session.view().answering)
    kept = session.view().conversations[0][-1].answer
    assert kept.done and not kept.stopped and kept.text.endswith("what?")


# Questions that wait


def watching(made, *engines, **options):
    """A session that has seen one picture."""
    session = made(*(engines or [fake_engine(**options)]))
    session.offer(picture(RED))
    until(lambda: seen(session))
    return session


def test_questions_are_answered_one_after_the_other_and_know_their_places(made):
    model = FakeModel()
    session = watching(made, Engine(model))
    model.speaks.clear()
    numbers = [session.ask(words) for words in ("first", "second", "third")]
    assert [turn.place for turn in session.view().conversations[0]] == [0, 2, 3]
    model.speaks.set()
    last = whole(session.answer(numbers[-1]))
    assert last.done and "2 turns before" in last.text and questions(session) == ["first", "second", "third"]
    assert [turn.place for turn in session.view().conversations[0]] == [0, 0, 0]


def test_a_question_that_waits_can_be_withdrawn_and_one_that_was_begun_cannot(made):
    model = FakeModel()
    session = watching(made, Engine(model))
    model.speaks.clear()
    first, second, third = [session.ask(words) for words in ("first", "second", "third")]
    for question in (first, second, 999):
        session.withdraw(question)
    assert [(turn.question, turn.place) for turn in session.view().conversations[0]] == [("first", 0), ("third", 2)]
    model.speaks.set()
    assert list(session.answer(second)) == [] and whole(session.answer(third)).done and whole(session.answer(first))


def test_too_many_are_refused_in_words_and_nothing_that_waits_is_lost(made):
    model = FakeModel()
    session = watching(made, Engine(model))
    model.speaks.clear()
    for number in range(WAITING + 1):
        session.ask(f"number {number}")
    with pytest.raises(UserError, match="wait already"):
        session.ask("one more")
    assert len(questions(session)) == WAITING + 1
    model.speaks.set()
    until(lambda: not session.view().answering)
    assert all(turn.answer.done for turn in session.view().conversations[0])


def test_stop_ends_what_is_written_and_what_waits_goes_on(made):
    model = FakeModel()
    session = watching(made, Engine(model))
    model.speaks.clear()
    numbers = [session.ask(words) for words in ("first", "second")]
    session.stop_answer()
    model.speaks.set()
    assert whole(session.answer(numbers[1])).done
    assert [turn.answer.stopped for turn in session.view().conversations[0]] == [True, False]


def test_what_is_asked_in_the_first_moment_waits_for_the_first_picture(made, clip):
    """It got an error, though the stream was just opening."""
    model = FakeModel()
    session = made(Engine(model))
    model.gate.clear()
    session.open_file(clip)
    question = session.ask("what is there?")
    assert session.view().answering and not session.view().conversations[0][0].over
    model.gate.set()
    assert whole(session.answer(question)).text.split(" ")[0] in ("4", "8", "12")


def test_stop_and_another_video_end_the_wait_for_a_first_picture(made, clip):
    model = FakeModel()
    session = made(Engine(model))
    model.gate.clear()
    session.open_file(clip)
    session.ask("one")
    session.stop_answer()
    until(lambda: not session.view().answering)
    session.ask("two")
    session.open_file(clip, "Example")
    until(lambda: not session.view().answering)
    assert [turn.error for turn in session.view().conversations[0]] == [PUT_ASIDE, PUT_ASIDE]
    model.gate.set()


def test_what_was_said_of_another_video_stays_but_is_not_carried_along(made, clip):
    """Start cleared the conversation without a word."""
    session = made()
    session.open_file(clip)
    until(lambda: ended(session))
    list(asked(session, "about the first"))
    session.open_file(clip, "Example")
    until(lambda: ended(session))
    assert "0 turns before" in whole(asked(session, "about the second")).text
    turns = session.view().conversations[0]
    assert [turn.question for turn in turns] == ["about the first", "about the second"]
    assert [turn.stream for turn in turns] == [1, 2] and session.view().stream == 2


def test_the_oldest_of_very_many_go_and_are_counted(made, monkeypatch):
    monkeypatch.setattr("app.live.conversation.TURNS", 3)
    session = watching(made)
    for number in range(5):
        list(asked(session, f"number {number}"))
    assert questions(session) == ["number 2", "number 3", "number 4"] and session.view().forgotten == 2


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "<b></b>", "?!", "\U0001f600"])
def test_what_holds_no_words_is_not_answered(made, text):
    session = watching(made)
    assert list(asked(session, text)) in ([], [Answer("", 0.0, 0.0)])
    assert "not understood" in session.view().conversations[0][-1].error


# Taking back


def test_clear_can_be_taken_back_for_a_while(made):
    session = watching(made)
    list(asked(session, "one"))
    session.clear_chat()
    session.clear_chat()
    list(asked(session, "two"))
    assert questions(session) == ["two"] and session.view().undo == "Clear"
    assert session.undo() and questions(session) == ["one", "two"] and session.view().undo == ""
    assert not session.undo(), "once"
    session.clear_chat()
    session.let_go_of_undoable(older_than=1000)
    assert session.view().undo
    session.let_go_of_undoable(older_than=0)
    assert not session.undo() and questions(session) == []


def test_reset_can_be_taken_back_and_loses_no_picture(made, clip):
    model = FakeModel()
    session = made(Engine(model))
    model.gate.clear()
    session.open_file(clip)
    until(lambda: model.watching)
    session.ask("did you see it?")
    session.reset()
    session.reset()
    assert session.view().conversations == ((), ()) and session.watch is None and session.view().undo == "Reset"
    model.gate.set()
    assert session.undo()
    until(lambda: ended(session))
    assert [round(at) for at, _ in seen(session)] == list(range(12))
    assert session.view().conversations[0][0].error == PUT_ASIDE


def test_another_stream_ends_the_way_back_to_the_one_that_was_reset(made, clip):
    """A visitor has one place, and so one stream."""
    session = made()
    session.open_file(clip)
    until(lambda: ended(session))
    worker = session.watch._worker
    session.reset()
    session.open_file(clip, "Example")
    until(lambda: ended(session) and not worker.is_alive())
    assert session.view().undo == "" and not session.undo() and session.view().file_name == ""


def test_a_mark_is_kept_with_the_answer(made):
    session = watching(made)
    question = session.ask("right?")
    list(session.answer(question))
    session.mark(question, 0, True)
    for foreign in ((999, 0), (question, 7), (question, -1)):
        session.mark(*foreign, True)
    assert [turn.wrong for turn in session.view().conversations[0]] == [True]
    session.clear_chat()
    session.undo()
    assert session.view().conversations[0][0].wrong
    session.mark(question, 0, False)
    assert not session.view().conversations[0][0].wrong


def test_evidence_keeps_its_pictures(made, clip):
    session = made()
    session.open_file(clip)
    until(lambda: ended(session))
    answer = whole(asked(session, "when?"))
    pictures = session.view().conversations[0][-1].pictures
    assert answer.evidence and len(pictures) == len(answer.evidence) and pictures[0].startswith(b"\xff\xd8")


def test_a_time_that_is_said_has_its_picture_and_one_that_was_not_seen_has_none(made, clip):
    session = made()
    session.open_file(clip)
    until(lambda: ended(session))
    whole(asked(session, "is it there at 0:01 and at 9:59?"))
    said = session.view().conversations[0][-1].said
    assert [moment.time for moment in said] == [1.0] and said[0].jpeg.startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("text", "words"), [("", "empty"), ("x" * 2001, "2,000"), ("anything", "Nothing has been seen")]
)
def test_a_question_that_cannot_be_asked_gets_a_sentence_in_the_chat(made, text, words):
    session = made()
    if text != "anything":
        session.offer(picture(RED))
        until(lambda: seen(session))
    list(asked(session, text))
    turn = session.view().conversations[0][-1]
    assert words in turn.error and len(turn.question) <= 2001
    assert not session.view().answering


def test_surrogates_and_nuls_do_not_travel(made):
    session = made()
    session.offer(picture(RED))
    until(lambda: seen(session))
    list(asked(session, "caf\ud800\0e"))
    session.view().conversations[0][-1].question.encode()
    assert "\0" not in session.view().conversations[0][-1].question


def test_retry_draws_again_and_clear_forgets_words_only(made):
    model = FakeModel()
    session = made(Engine(model))
    session.offer(picture(RED))
    until(lambda: seen(session))
    list(asked(session, "one"))
    list(asked(session, "two"))
    assert "1 turns before" in session.view().conversations[0][-1].answer.text
    list(session.answer(session.retry()))
    assert model.samplings[0].temperature == 0 < model.samplings[-1].temperature
    assert [turn.question for turn in session.view().conversations[0]] == ["one", "two"]
    session.clear_chat()
    assert session.view().conversations == ((), ()) and len(seen(session)) == 1


# Comparing


def comparing(made, **options):
    """A session of two models that have seen one picture."""
    session = made(fake_engine(**options), fake_engine("Twin", **options))
    session.compare(True)
    session.offer(picture(RED))
    until(lambda: [one.frames for one in session.view().models] == [1, 1] and seen(session, 1))
    return session


def test_stop_stops_both_models(made):
    """The second one's answer took the stop back when it began, and both ran to their end."""
    session = comparing(made, token_s=0.02)
    question = session.ask("words " * 60)
    until(lambda: all(turns and turns[0].answer for turns in session.view().conversations))
    session.stop_answer()
    answers = [whole(session.answer(question, model)) for model in (0, 1)]
    assert all(answer.stopped and answer.tokens < 30 for answer in answers)
    until(lambda: not session.view().answering)
    again = session.ask("short")
    assert all(not whole(session.answer(again, model)).stopped for model in (0, 1)), "the stop was theirs alone"


def test_a_stop_before_the_first_word_is_meant_as_well(made):
    models = [FakeModel(), FakeModel("Twin")]
    session = made(*map(Engine, models))
    session.compare(True)
    session.offer(picture(RED))
    until(lambda: len(session.view().models) == 2 and all(one.frames for one in session.view().models))
    for model in models:
        model.speaks.clear()
    question = session.ask("what?")
    session.stop_answer()
    for model in models:
        model.speaks.set()
    assert all(whole(session.answer(question, model)).stopped for model in (0, 1))


def questions(session, model=0) -> list[str]:
    return [turn.question for turn in session.view().conversations[model]]


def test_retry_takes_back_the_same_question_of_both_and_nothing_else(made):
    """It popped the newest turn of each chat, whatever question that was of."""
    session = comparing(made)
    both = session.ask("of both")
    for model in (0, 1):
        list(session.answer(both, model))
    session.compare(False)
    list(session.answer(session.ask("of one")))
    again = session.retry()
    list(session.answer(again, 0))
    assert list(session.answer(again, 1)) == [], "it was not put to the second"
    assert questions(session, 0) == ["of both", "of one"] and questions(session, 1) == ["of both"]
    session.compare(True)
    until(lambda: len(session.view().models) == 2)
    session.offer(picture(RED))
    until(lambda: session.view().models[1].frames)
    again = session.retry()
    for model in (0, 1):
        list(session.answer(again, model))
    assert questions(session, 0) == questions(session, 1) == ["of both", "of one"]
    assert [turn.repeats for turn in session.view().conversations[0]] == [0, 2]


def test_retry_keeps_the_old_answer_until_the_new_one_begins(made):
    """The page may go away in between, or its event get lost."""
    model = FakeModel()
    session = watching(made, Engine(model))
    list(session.answer(session.ask("what?")))
    (before,) = session.view().conversations[0]
    model.speaks.clear()
    again = session.retry()
    (turn,) = session.view().conversations[0]
    assert turn.answer == before.answer and turn.again
    assert session.retry() is None, "it is being asked again already"
    model.speaks.set()
    list(session.answer(again))
    (turn,) = session.view().conversations[0]
    assert (turn.question, turn.id, turn.repeats) == ("what?", again, 1) and turn.answer.done and not turn.again


def test_a_retry_that_is_stopped_or_fails_loses_no_answer(made):
    model = FakeModel()
    session = watching(made, Engine(model))
    first = whole(asked(session, "what?"))
    model.speaks.clear()
    session.retry()
    session.stop_answer()
    model.speaks.set()
    until(lambda: not session.view().answering)
    assert [turn.answer for turn in session.view().conversations[0]] == [first]
    model.ask = lambda *_: 1 / 0
    list(session.answer(session.retry()))
    old, new = session.view().conversations[0]
    assert old.answer == first and "our side" in new.error


def test_retry_while_others_wait_comes_first_and_keeps_its_place(made):
    model = FakeModel()
    session = watching(made, Engine(model))
    model.speaks.clear()
    session.ask("first")
    second = session.ask("second")
    session.retry()
    model.speaks.set()
    list(session.answer(second))
    until(lambda: not session.view().answering)
    assert [(turn.question, turn.repeats) for turn in session.view().conversations[0]] == [("first", 1), ("second", 0)]


def test_a_question_is_put_only_to_who_was_asked(made):
    session = comparing(made)
    session.compare(False)
    question = session.ask("once")
    list(session.answer(question))
    session.compare(True)
    assert list(session.answer(question, 1)) == list(session.answer(999)) == []
    assert questions(session) == ["once"] and questions(session, 1) == []


def test_what_was_cleared_is_not_written_any_more(made):
    session = comparing(made)
    question = session.ask("what?")
    session.clear_chat()
    assert list(session.answer(question)) == [] and session.view().conversations == ((), ())
