"""What notes say: every verdict in words, the towers' words counted and placed, and only what was asked about."""

from pipeline.questions.asked import parse
from pipeline.questions.locator import PLANS
from pipeline.questions.notes import Verdict, asked_about, note, spoken
from tests.questions.made import features


def test_every_plan_has_a_note_that_says_its_verdict():
    for name in PLANS:
        found = note(Verdict(name, (0,), 35.0), ["dog"], 50.0)
        lost = note(Verdict(name, (0,), 35.0, found=False), ["dog"], 50.0)
        if name == "chat":
            assert found == lost == "(chat)"
        else:
            assert found == ("(yes, at 0:35: dog)" if name.startswith("yesno") else "(at 0:35: dog)")
            assert "0:35" not in lost and "dog" not in lost and lost.startswith("(no")
    assert note(Verdict("after", (0,), found=False), [], 5) == "(nothing after)"
    assert note(Verdict("before", (0,), found=False), [], 5) == "(nothing before)"
    assert note(Verdict("yesno", (0,), found=False), [], 5) == "(no)"


def test_notes_of_counts_late_times_and_unsure_moments():
    assert note(Verdict("count", (0,), 9.0, count=8), ["dog"], 9) == "(8 scenes)"
    assert note(Verdict("count", (0,), 9.0, count=1), ["dog"], 9) == "(1 scene)"
    assert note(Verdict("count_of", (0,), 9.0, count=2, times=(12.0, 40.0)), [], 50) == "(2 scenes: 0:12, 0:40)"
    assert note(Verdict("count_of", (0,), 9.0, False, count=0), [], 50) == "(0 scenes)"
    assert note(Verdict("at", (0,), 35.0, late=True), ["dog"], 40.0) == "(now 0:40, later)"
    assert note(Verdict("at", (0,), 3605.0), [], 4000.0) == "(at 1:00:05: unsure)"


def test_spoken_marks_doubt_counts_and_places():
    seen = features(
        3,
        {
            0: [("person", 0.9, "left"), ("person", 0.8, "left"), ("tie", 0.7, "centre")],
            1: [("dog", 0.6, "right")],
            2: [("cat", 0.35, "left")],
        },
        {1: ("goldfish", 0.2), 2: ("rooster", 0.1)},
    )
    assert spoken(seen, [0]) == ["2 person left", "tie"]
    assert spoken(seen, [1]) == ["dog right", "maybe goldfish"]
    assert spoken(seen, [2]) == [], "a weak detection and a weak class are not said at all"
    assert spoken(seen, [0, 1, 2]) == ["2 person left", "tie", "dog right", "maybe goldfish"]
    assert spoken(seen, [0, 1], at_most=2) == ["2 person left", "tie"]


def test_the_best_frame_of_a_moment_speaks_for_each_word():
    seen = features(2, {0: [("dog", 0.5, "left")], 1: [("dog", 0.8, "right"), ("dog", 0.6, "right")]})
    assert spoken(seen, [0, 1]) == ["2 dog right"]
    spread_out = features(1, {0: [("dog", 0.8, "right"), ("dog", 0.6, "left")]})
    assert spoken(spread_out, [0]) == ["2 dog"], "things on both sides have no one place"


def test_a_list_of_things_hears_only_of_them():
    said = ["person left", "Egyptian cat", "2 dog", "espresso"]
    assert asked_about(said, parse("Which animals did you see?", 9.0), listed=True) == ["Egyptian cat", "2 dog"]
    assert asked_about(said, parse("Who was there?", 9.0), listed=True) == ["person left"]
    assert asked_about(said, parse("Which cars did you see?", 9.0), listed=True) == said, "none of it: then all of it"
    assert asked_about(said, parse("Which animals did you see?", 9.0)) == said


def test_only_what_the_detector_counts_is_counted():
    assert asked_about(["golden retriever", "2 dog"], parse("How many dogs are there?", 9.0)) == ["2 dog"]
    assert (
        asked_about(["golden retriever", "2 dog"], parse("Which dogs were there?", 9.0), listed=True)[0]
        == "golden retriever"
    )


def test_a_question_that_counts_hears_only_of_what_it_counts():
    said = ["2 person left", "dog", "maybe 3 dog right", "hot dog", "tie"]
    assert asked_about(said, parse("How many dogs are there?", 9.0)) == ["dog", "maybe 3 dog right"]
    assert asked_about(said, parse("Count the people", 9.0)) == ["2 person left"]
    assert asked_about(said, parse("What about the dogs?", 9.0)) == said, "not a question that counts"
    assert asked_about(said, parse("How many zebras are there?", 9.0)) == said, "nothing known about them: all is said"
