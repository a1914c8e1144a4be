"""What composed answers say of hand-made findings: facts where the towers are sure, doubts where no sense can know."""

import pytest

from pipeline.questions.asked import parse
from pipeline.questions.composer import UNKNOWABLE, Composer, counted, summary, surely
from pipeline.questions.notes import Verdict
from tests.questions.made import features, index

SEEN = features(
    30,
    {f: [("dog", 0.9, "left"), ("dog", 0.8, "left")] for f in range(5, 10)}
    | {f: [("dog", 0.9, "left")] for f in range(20, 24)}
    | {27: [("cat", 0.5, "left")]},
)
INDEX = index([0.0] * 30, (0, 15), SEEN)


def say(kind: str, text: str, verdict: Verdict | None = None) -> str:
    return Composer(kind, parse(text, 29.0), verdict or Verdict("find", (29,), 29.0), INDEX).answer()


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("when", "When is the dog there?", "At 0:05 and 0:20."),
        ("when", "When is the dog first there?", "At 0:05."),
        ("last", "When do you last see the dog?", "Last from 0:20 to 0:23."),
        ("again", "When is the dog back?", "0:20"),
        ("howlong", "How long is the dog there the first time?", "About 5 seconds, from 0:05."),
        ("count_now", "How many dogs are there?", "Two dogs at 0:05."),
        ("yesno", "Is there a dog?", "Yes, at 0:05."),
        ("count_all", "How many dogs came in all?", "two separate times"),
        ("both", "Is there a dog and a car?", "No, "),
        ("yesno", "Is there a cat?", "No, I have not seen a cat."),
        ("after", "What came after the car?", "not seen a car"),
        ("yesno", "Is there a red dog?", "cannot tell more"),
        ("yesno", "Is it a cartoon?", "I am not sure"),
        ("either", "Is it a dog or a car?", "A dog."),
        ("colour", "What colour is the dog?", "not sure of its colour"),
        ("who", "Who is it?", "I have not seen a person."),
        ("talk", "Any dogs?", "Yes, at 0:05."),
    ],
)
def test_what_is_said(kind, text, expected):
    assert expected in say(kind, text)


NOW = index([0.0] * 24, (0, 15), features(24, {f: [("dog", 0.9, "left")] for f in range(20, 24)}))


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("yesno", "Is the dog there right now?", "Yes, at 0:23."),
        ("count_now", "How many dogs are there at this moment?", "One dog at 0:23."),
        ("yesno", "Is anybody there?", "No, I have not seen a person."),
    ],
)
def test_now_is_the_newest_picture(kind, text, expected):
    elsewhere = Verdict("find", (3,), 3.0)
    assert Composer(kind, parse(text, 23.0), elsewhere, NOW).answer() == expected
    if kind != "yesno":
        return
    gone = Composer(kind, parse("Is the dog still there?", 29.0), elsewhere, INDEX).answer()
    assert gone == "Not at 0:29; I see a dog at 0:05."


def test_a_second_that_is_named_is_counted_itself():
    at = Verdict("at", (20, 21), 20.0)
    assert (
        Composer("count_now", parse("How many dogs were there at 0:20?", 29.0), at, INDEX).answer()
        == "One dog at 0:20."
    )


def test_what_no_sense_can_know_is_said_to_be_so():
    for kind in UNKNOWABLE:
        assert "cannot" in say(kind, "What is said?") or "do not know" in say(kind, "Was ist das?")


def test_the_evidence_is_the_moment_that_is_spoken_of():
    asked = parse("What colour is the dog?", 29.0)
    assert Composer("colour", asked, Verdict("now", (29,), 29.0), INDEX).verdict.time == 5.0


def test_a_second_that_is_not_reached_is_said_as_it_was_asked():
    assert say("at", "What is at 5:00?", Verdict("at", (29,), 29.0, late=True)) == "The video has not reached 5:00 yet."


def test_a_summary_leaves_out_what_is_not_known_unless_nothing_is():
    assert summary(INDEX, [(0.0, (0,)), (5.0, (5, 6))]) == ["", "0:05 two dogs."]
    assert summary(INDEX, [(0.0, (0,))]) == ["0:00 I am not sure what this is."]


def test_numbers_in_words():
    assert (counted("dog", 2), counted("apple", 1), counted("person", 3)) == ("two dogs", "an apple", "three people")


def test_a_thing_that_a_class_names_more_exactly_is_said_once():
    both = {f: [("cat", 0.9, "left"), ("person", 0.9, "left")] for f in range(3)}
    found = features(3, both, {f: ("Egyptian cat", 0.8) for f in range(3)})
    assert surely(index([0.0] * 3, (0,), found), range(3)) == ["an Egyptian cat", "a person"]
    two = features(3, {f: [("cat", 0.9, "left")] * 2 for f in range(3)}, {f: ("Egyptian cat", 0.8) for f in range(3)})
    assert surely(index([0.0] * 3, (0,), two), range(3)) == ["an Egyptian cat", "two cats"]
