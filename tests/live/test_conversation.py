"""Questions and their answers: one at a time and model, stopped together, taken back by their number."""

from __future__ import annotations

import threading

import pytest

from pipeline import Engine, UserError
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


def test_a_page_that_goes_away_in_mid_answer_leaves_what_was_written(made):
    session = made()
    session.offer(picture(RED))
    until(lambda: seen(session))
    answers = asked(session, "what?")
    for _ in range(3):
        next(answers)
    answers.close()
    kept = session.view().conversations[0][-1].answer
    assert kept.done and kept.stopped and kept.text.startswith("1 frames")
    assert whole(asked(session, "and now?")).done, "the column is free again"


def test_one_answer_at_a_time(made):
    session = made()
    session.offer(picture(RED))
    until(lambda: seen(session))
    answers = asked(session, "first")
    next(answers)
    with pytest.raises(UserError, match="press Stop"):
        next(asked(session, "second"))
    assert [turn.question for turn in session.view().conversations[0]] == ["first"]
    answers.close()


def test_evidence_keeps_its_pictures(made, clip):
    session = made()
    session.open_file(clip)
    until(lambda: ended(session))
    answer = whole(asked(session, "when?"))
    pictures = session.view().conversations[0][-1].pictures
    assert answer.evidence and len(pictures) == len(answer.evidence) and pictures[0].startswith(b"\xff\xd8")


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
    first = session.answer(question, 0)
    for _ in range(3):
        next(first)
    session.stop_answer()
    second = whole(session.answer(question, 1))
    last = whole(first)
    assert last.stopped and second.stopped and last.tokens < 10 and second.tokens <= 1
    assert not session.view().answering
    again = session.ask("short")
    assert all(not whole(session.answer(again, model)).stopped for model in (0, 1)), "the stop was theirs alone"


def test_a_stop_before_the_first_word_is_meant_as_well(made):
    session = comparing(made)
    question = session.ask("what?")
    session.stop_answer()
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
    again = session.retry()
    for model in (0, 1):
        list(session.answer(again, model))
    assert questions(session, 0) == questions(session, 1) == ["of both", "of one"]
    assert [turn.repeats for turn in session.view().conversations[0]] == [0, 2]


def test_retry_keeps_the_old_answer_until_the_new_one_begins(made):
    """The page may go away in between, or its event get lost."""
    session = comparing(made)
    list(session.answer(session.ask("what?")))
    before = session.view().conversations[0]
    again = session.retry()
    assert session.view().conversations[0] == before
    answers = session.answer(again)
    next(answers)
    (turn,) = session.view().conversations[0]
    assert turn.question == "what?" and turn.id == again and turn.answer is None
    answers.close()


def test_a_question_is_written_once_and_only_by_who_was_asked(made):
    session = comparing(made)
    session.compare(False)
    question = session.ask("once")
    list(session.answer(question))
    session.compare(True)
    assert list(session.answer(question)) == list(session.answer(question, 1)) == list(session.answer(999)) == []
    assert questions(session) == ["once"] and questions(session, 1) == []


def test_what_was_cleared_is_not_written_any_more(made):
    session = comparing(made)
    question = session.ask("what?")
    session.clear_chat()
    assert list(session.answer(question)) == [] and session.view().conversations == ((), ())
