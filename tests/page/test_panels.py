"""Panels are pure: a view in, words and pictures out, and nothing of it is markup that somebody else wrote."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.live.view import Phase, Turn, View
from app.page import chat, panels
from app.page.panels import NOTHING
from pipeline import Answer, Evidence
from pipeline.stream import Basis

HOSTILE = ["<img src=x onerror=alert(1)>", "</div><script>alert(1)</script>", '" onclick="alert(1)', "&lt;b&gt;"]


@pytest.mark.parametrize("words", HOSTILE)
def test_words_are_never_markup(words):
    view = View(file_name=words, error=words, phase=Phase.ENDED)
    for shown in (panels.state_line(view), panels.state_line(NOTHING, sentence=words)):
        assert "<img" not in shown and "<script" not in shown and 'onclick="' not in shown.replace("&quot;", "")
    answer = Answer(words, 1.0, 2.0, (Evidence(1.0, 0.5, 0.0, 2.0),), done=True)
    turns = [Turn(1, words, answer=answer), Turn(1, words, error=words)]
    for message in chat.messages(View(conversations=(tuple(turns), ())), 0, card=str):
        parts = message["content"] if isinstance(message["content"], list) else [message["content"]]
        assert not any("<img src=x" in part or "<script" in part for part in parts)


def test_markup_of_a_model_is_taken_out():
    assert chat.plain("see ![a cat](http://x/y.png) and [this](javascript:f(1)) <b>now</b>") == "see a cat and this now"
    assert chat.plain("1 < 2 and 3 > 2") == "1 < 2 and 3 > 2"


def test_sizes_and_names_read_well():
    sizes = [0, 15_000, 290_000, 19_600_000, 123_400_000, 30_900_000_000]
    assert [panels.megabytes(size) for size in sizes] == ["0 kB", "15 kB", "290 kB", "19.6 MB", "123 MB", "30.9 GB"]
    assert panels.short("a\u202eb\nc.mp4") == "abc.mp4" and len(panels.short("x" * 300)) == 40


def test_an_answer_from_an_earlier_state_says_so():
    """A question about 0:40 may be answered by a state that knows of 0:32 and no more."""
    turn = Turn(1, "what?", at=40.0)
    answer = Answer("a dog", 40.0, 90.0, done=True, known_until=32.0)
    assert "about 0:40 · answered as of 0:32 · seen until 1:30" in chat.foot(turn, answer, 0, True)
    for known in (40.0, 40.6, None):
        assert "as of" not in chat.foot(turn, replace(answer, known_until=known), 0, True)
    assert "as of" not in chat.foot(Turn(1, "what?"), replace(answer, known_until=90.0), 0, True)


def test_the_second_conversation_has_a_row_for_every_question_of_the_first():
    """Whichever of the two has begun to answer a question again already."""
    done = Answer("a dog", 40.0, 90.0, done=True)
    first = (Turn(1, "one", answer=done), Turn(5, "two", answer=done, retry_of=2), Turn(3, "three"))
    for second in (Turn(2, "two", answer=done, again=True), Turn(5, "two", answer=done, retry_of=2)):
        view = View(conversations=(first, (second,)))
        left, right = (chat.messages(view, model, card=str) for model in (0, 1))
        asked = [[one["content"] for one in side if one["role"] == "user"] for side in (left, right)]
        assert asked == [["one", "two", "three"]] * 2
        assert [chat.NOT_ASKED in one["content"] for one in right if one["role"] == "assistant"] == [True, False, True]
        assert not any(chat.NOT_ASKED in one["content"] for one in left)


def test_a_published_models_mode_stands_under_its_answer() -> None:
    answer = Answer("a dog", 40.0, 90.0, done=True, basis=Basis("streamed", "carried through 90 pictures <b>"))
    shown = chat.foot(Turn(1, "what?"), answer, 0, True)
    assert "seen until 1:30 · streamed: carried through 90 pictures &lt;b&gt;" in shown
    assert "native" not in chat.foot(Turn(1, "what?"), replace(answer, basis=Basis("native")), 0, True)
