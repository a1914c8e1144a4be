"""A question is parsed once: what `Asked` holds is all that planner and notes need to know of it."""

import ast
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from pipeline.questions.asked import parse
from pipeline.questions.things import named_things

QUESTIONS = Path(__file__).parents[2] / "pipeline" / "questions"


def test_all_of_a_question_is_read_at_once():
    asked = parse("When was the dog first there in the last 10 seconds?", 60.0)
    assert asked.when.stretch == (50.0, 60.0) and asked.when.time is None and asked.plan == "find"
    assert asked.things == named_things("dog") and {"first", "when or where"} <= asked.cues
    assert not asked.refers and not asked.length and not asked.counts


def test_the_words_of_a_stretch_are_not_the_questions_own():
    asked = parse("What was shown in the last 10 seconds?", 60.0)
    assert "last" not in asked.cues
    assert "last" in parse("What was the last thing shown in the first minute?", 60.0).cues


def test_seconds_are_those_of_the_video():
    assert parse("What was there 10 seconds ago?", 65.0).when.time == 55
    assert parse("in the last minute", 90.0).when.stretch == (30.0, 90.0)


def test_who_asks_for_people():
    who = parse("Who was there with the dog?", 9.0)
    assert who.wanted == named_things("person") and who.things == named_things("dog")


def test_it_is_what_an_earlier_question_named():
    earlier = parse("When was the dog first there?", 9.0)
    it = parse("How often was it there?", 9.0)
    assert it.refers and it.of(earlier).things == earlier.things and "first" in it.of(earlier).cues
    assert parse("When?", 9.0).of(parse("What was at 0:05?", 9.0)).when.time == 5.0


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        parse("When?", 9.0).plan = "find"


@pytest.mark.parametrize("name", ["planner.py", "locator.py", "notes.py", "index.py"])
def test_nothing_behind_the_parser_reads_the_typed_text(name):
    """No pattern matching, and nobody but the model takes `Asked.text`."""
    tree = ast.parse((QUESTIONS / name).read_text())
    assert not any(isinstance(node, ast.Import) and any(a.name == "re" for a in node.names) for node in ast.walk(tree))
    assert not any(isinstance(node, ast.Attribute) and node.attr == "text" for node in ast.walk(tree))


def test_there_is_points_nowhere():
    assert not parse("Is there a river?", 30.0).refers and not parse("Are there any leaves?", 30.0).refers
    assert parse("Is it there?", 30.0).refers and parse("And then?", 30.0).refers


def test_words_that_are_run_together_are_read_apart():
    assert parse("whats on the wall", 30.0).unnamed[0] == "what"
