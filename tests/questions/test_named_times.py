"""The second a question names, as people name one."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import mmss
from pipeline.questions.asked import without_notes
from pipeline.questions.language import is_english
from pipeline.questions.times import named

DATA = Path(__file__).parents[1] / "data"


def rows(name: str) -> list[tuple[str, float, str]]:
    lines = (DATA / name).read_text().splitlines()[1:]
    return [(phrase, float(now), want) for phrase, now, want in (line.split("\t") for line in lines)]


@pytest.mark.parametrize(("phrase", "now", "want"), rows("times.tsv") + rows("times_more.tsv"))
def test_what_people_type(phrase, now, want):
    """t: a second, s: first and last of a stretch, two: moments to be compared, shift: seconds later, none: no time of
    the video."""
    when = named(phrase, now)
    kind, *numbers = want.split()
    read = {"t": when.time, "s": when.stretch, "two": when.both} | ({"shift": when.shift} if kind == "shift" else {})
    expected: dict[str, object] = dict.fromkeys(read)
    if numbers:
        expected[kind] = float(numbers[0]) if len(numbers) == 1 else tuple(map(float, numbers))
    assert read == expected


def test_what_looks_like_a_time_and_is_none_is_said_to_be_unclear():
    for text in ("at 1:75", "at 0.45", "What is at 0:99?"):
        assert named(text, 600.0).unclear, text
    for text in ("Who wins the 100 m race?", "a dog", "What's the score, 3:15?"):
        assert not named(text, 600.0).unclear, text


def test_later_and_earlier_are_shifts():
    assert named("And 10 seconds later?", 60.0).shift == 10 and named("a minute earlier?", 60.0).shift == -60


def test_typed_notes_are_set_aside():
    assert without_notes("Is there a unicorn? (yes, at 0:12: unicorn)") == "Is there a unicorn?"
    assert without_notes("(yes, at 0:35: dragon) Is there a dragon?") == "Is there a dragon?"
    assert without_notes("(at 0:05)") == "at 0:05" and without_notes("Who (the man) came?") == "Who the man came?"


@pytest.mark.parametrize("line", (DATA / "languages.tsv").read_text(encoding="utf-8").splitlines())
def test_other_languages_are_told_from_english_with_foreign_words(line):
    language, text = line.split("\t")
    assert is_english(text) == (language == "english")


def test_languages():
    for text in ("Was ist in der Tasse?", "Que se passe-t-il ?", "第3分钟发生了什么?", "¿Qué hay en la mesa?"):
        assert not is_english(text), text
    for text in ("What is in the cup?", "Was there a dog?", "", "ok", "café?", "Is the man on the bus?", "wat is dis"):
        assert is_english(text), text


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("What do you see at 12:40?", 760),
        ("1:02:03", 3723),
        ("at 0:05?", 5),
        ("what is at 00:00", 0),
        ("35 seconds in", 35),
        ("the 2 minute mark", 120),
        ("the 2-minute mark", 120),
        ("1 min 5 s", 65),
        ("at 1.5 minutes", 90),
        ("1 hour and 2 minutes in", 3720),
        ("90s in", 90),
        ("(0:35)", 35),
        ("What happened?", None),
        ("How many dogs?", None),
        ("Show me 3 dogs", None),
        ("is it 4K?", None),
        ("a ratio of 1:2", None),
        ("", None),
        ("the first 7 people", None),
        ("2 mice", None),
        ("at second 35", 35),
        ("in second 35", 35),
        ("At minute 2, what was on?", 120),
        ("minute 1 second 5", 65),
        ("at the 35th second", 35),
        ("two minutes in", 120),
        ("at the one minute mark", 60),
        ("@1:05", 65),
        ("forty-five seconds in", 45),
        ("a minute and a half in", 90),
        ("one and a half minutes in", 90),
        ("half a minute in", 30),
        ("a minute in", 60),
        ("at 1m05s", 65),
        ("at 2 mins", 120),
        ("35secs", 35),
        ("00:01:05", 65),
        ("was there a second dog?", None),
        ("the second man", None),
        ("5 men", None),
        ("two women", None),
        ("a minute later", None),
    ],
)
def test_named_time(text, second):
    assert named(text, 9000.0).time == second


def test_some_time_ago_counts_from_now():
    assert named("What was there 10 seconds ago?", 65.0).time == 55
    assert named("and a minute ago", 65.0).time == 5 and named("what did you see 2 minutes back?", 65.0).time == 0
    assert named("at 0:20", 65.0).time == 20


@given(st.integers(0, 9 * 3600))
@settings(max_examples=60, deadline=None)
def test_every_time_a_note_writes_is_read_back(second):
    assert named(f"What was shown at {mmss(second)}?", 9e4).time == second


@pytest.mark.parametrize(
    ("text", "first", "last", "rest"),
    [
        ("What did you see in the last 10 seconds?", 90, 100, "what did you see ?"),
        ("What happened during the last minute?", 40, 100, "what happened ?"),
        ("over the past two minutes", 0, 100, ""),
        ("in the last few seconds", 90, 100, ""),
        ("the first ten seconds", 0, 10, ""),
        ("Was there a dog in the first minute?", 0, 60, "was there a dog ?"),
        ("Between 0:20 and 0:30, was there a cat?", 20, 30, "was there a cat?"),
        ("between 0:30 and 0:20", 20, 30, ""),
        ("since 1:00", 60, 100, ""),
        ("what came from 1 minute to 1:30", 60, 90, "what came"),
        ("Was there a dog before 0:30?", 0, 30, "was there a dog ?"),
        ("until the 2 minute mark", 0, 120, ""),
        ("What happened after second 35?", 35, 100, "what happened ?"),
    ],
)
def test_a_stretch_is_named(text, first, last, rest):
    found = named(text, 100.0)
    assert found.stretch == (first, last) and found.rest == rest


@pytest.mark.parametrize(
    "text",
    [
        "What happened at 0:30?",
        "right before 0:30",
        "just after 1:00",
        "10 seconds ago",
        "the last time",
        "last seen",
        "between 0:75 and 0:80",
        "since 0:75",
        "before 12345:00",
        "from 0:10 to 0:99",
        "the first man",
        "the first 7 people",
        "the last scene",
        "after the dog",
        "before that",
        "a minute later",
        "",
    ],
)
def test_a_moment_is_no_stretch(text):
    assert named(text, 100.0).stretch is None
