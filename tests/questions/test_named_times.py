"""The second a question names, as people name one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.clock import mmss
from pipeline.questions.times import named_stretch, named_time


@pytest.mark.parametrize(
    ("text", "second"),
    [
        ("What do you see at 12:40?", 760), ("1:02:03", 3723), ("at 0:05?", 5), ("what is at 00:00", 0),
        ("35 seconds in", 35), ("the 2 minute mark", 120), ("the 2-minute mark", 120), ("1 min 5 s", 65),
        ("after 1.5 minutes", 90), ("1 hour and 2 minutes in", 3720), ("90s in", 90), ("(0:35)", 35),
        ("What happened?", None), ("How many dogs?", None), ("Show me 3 dogs", None), ("is it 4K?", None),
        ("a ratio of 1:2", None), ("", None), ("the first 7 people", None), ("2 mice", None),
        ("at second 35", 35), ("in second 35", 35), ("At minute 2, what was on?", 120), ("minute 1 second 5", 65),
        ("at the 35th second", 35), ("two minutes in", 120), ("at the one minute mark", 60), ("@1:05", 65),
        ("forty-five seconds in", 45), ("a minute and a half in", 90), ("one and a half minutes in", 90),
        ("half a minute in", 30), ("a minute in", 60), ("at 1m05s", 65), ("at 2 mins", 120), ("35secs", 35),
        ("00:01:05", 65), ("10 seconds ago", 10), ("was there a second dog?", None), ("the second man", None),
        ("5 men", None), ("two women", None), ("a minute later", None),
    ],
)  # fmt: skip
def test_named_time(text, second):
    assert named_time(text) == second


def test_some_time_ago_counts_from_now():
    assert named_time("What was there 10 seconds ago?", 65.0) == 55
    assert named_time("and a minute ago", 65.0) == 5 and named_time("what did you see 2 minutes back?", 65.0) == 0
    assert named_time("at 0:20", 65.0) == 20


@given(st.integers(0, 9 * 3600))
@settings(max_examples=60, deadline=None)
def test_every_time_a_note_writes_is_read_back(second):
    assert named_time(f"What was shown at {mmss(second)}?") == second


@pytest.mark.parametrize(
    ("text", "first", "last", "rest"),
    [
        ("What did you see in the last 10 seconds?", 90, 100, "what did you see ?"),
        ("What happened during the last minute?", 40, 100, "what happened ?"),
        ("over the past two minutes", 0, 100, ""), ("in the last few seconds", 90, 100, ""),
        ("the first ten seconds", 0, 10, ""), ("Was there a dog in the first minute?", 0, 60, "was there a dog ?"),
        ("Between 0:20 and 0:30, was there a cat?", 20, 30, "was there a cat?"),
        ("between 0:30 and 0:20", 20, 30, ""), ("since 1:00", 60, 100, ""),
        ("what came from 1 minute to 1:30", 60, 90, "what came"),
        ("Was there a dog before 0:30?", 0, 30, "was there a dog ?"), ("until the 2 minute mark", 0, 120, ""),
        ("What happened after second 35?", 35, 100, "what happened ?"),
    ],
)  # fmt: skip
def test_a_stretch_is_named(text, first, last, rest):
    found = named_stretch(text, 100.0)
    assert found[:2] == (first, last) and found[2].strip() == rest


@pytest.mark.parametrize(
    "text",
    [
        "What happened at 0:30?", "right before 0:30", "just after 1:00", "10 seconds ago", "the last time",
        "last seen", "between 0:75 and 0:80", "since 0:75", "before 12345:00", "from 0:10 to 0:99",
        "the first man", "the first 7 people", "the last scene", "after the dog", "before that", "a minute later", "",
    ],
)  # fmt: skip
def test_a_moment_is_no_stretch(text):
    assert named_stretch(text, 100.0) is None
