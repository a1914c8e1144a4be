"""What composed answers say of hand-made findings: facts where the towers are sure, doubts where no sense can know."""

import numpy as np
import pytest

from pipeline.questions.asked import parse
from pipeline.questions.composer import UNKNOWABLE, Composer, summary
from pipeline.questions.facts import Known, counted, described, surely
from pipeline.questions.notes import Verdict
from pipeline.senses.colours import TERMS, WHOLE
from pipeline.senses.sensed import Senses
from pipeline.towers.frame_tower import ASSETS
from pipeline.towers.nanodet import KEPT
from pipeline.training.metrics import DOUBTS
from tests.questions.made import features, index

NONE = Senses()  # no places, and nothing kept of colours and light

SEEN = features(
    30,
    {f: [("dog", 0.9, "left"), ("dog", 0.8, "left")] for f in range(5, 10)}
    | {f: [("dog", 0.9, "left")] for f in range(20, 24)}
    | {27: [("cat", 0.5, "left")]},
)
INDEX = index([0.0] * 30, (0, 15), SEEN)


def say(kind: str, text: str, verdict: Verdict | None = None) -> str:
    return Composer(kind, parse(text, 29.0), verdict or Verdict("find", (29,), 29.0), INDEX, NONE).answer()


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


@pytest.mark.parametrize("text", ["Is it a cartoon?", "Was it animated?", "Is it asleep?"])
def test_what_was_never_there_is_no_no_to_what_else_is_asked_of_it(text):
    asked = parse(text, 29.0).of(parse("Is there a car?", 29.0))
    answer = Composer("yesno", asked, Verdict("find", (29,), 29.0), INDEX, NONE).answer()
    assert answer == "I have not seen a car."


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
    assert Composer(kind, parse(text, 23.0), elsewhere, NOW, NONE).answer() == expected
    if kind != "yesno":
        return
    gone = Composer(kind, parse("Is the dog still there?", 29.0), elsewhere, INDEX, NONE).answer()
    assert gone == "Not at 0:29; I see a dog at 0:05."


def test_a_second_that_is_named_is_counted_itself():
    at = Verdict("at", (20, 21), 20.0)
    assert (
        Composer("count_now", parse("How many dogs were there at 0:20?", 29.0), at, INDEX, NONE).answer()
        == "One dog at 0:20."
    )


def test_what_no_sense_can_know_is_said_to_be_so():
    for kind in UNKNOWABLE:
        assert "cannot" in say(kind, "What is said?") or "ask in English" in say(kind, "Was ist das?")


def test_the_evidence_is_the_moment_that_is_spoken_of():
    asked = parse("What colour is the dog?", 29.0)
    assert Composer("colour", asked, Verdict("now", (29,), 29.0), INDEX, NONE).verdict.time == 5.0


def test_a_second_that_is_not_reached_is_said_as_it_was_asked():
    assert say("at", "What is at 5:00?", Verdict("at", (29,), 29.0, late=True)) == "The video has not reached 5:00 yet."


def test_a_summary_leaves_out_what_is_not_known_unless_nothing_is():
    assert summary(INDEX, [(0.0, (0,)), (5.0, (5, 6))], NONE) == ["", "0:05 two dogs."]
    assert summary(INDEX, [(0.0, (0,))], NONE) == ["0:00 I am not sure what this is."]


def test_numbers_in_words():
    assert (counted("dog", 2), counted("apple", 1), counted("person", 3)) == ("two dogs", "an apple", "three people")


def test_a_thing_that_a_class_names_more_exactly_is_said_once():
    both = {f: [("cat", 0.9, "left"), ("person", 0.9, "left")] for f in range(3)}
    found = features(3, both, {f: ("Egyptian cat", 0.8) for f in range(3)})
    assert surely(index([0.0] * 3, (0,), found), range(3)) == ["an Egyptian cat", "a person"]
    two = features(3, {f: [("cat", 0.9, "left")] * 2 for f in range(3)}, {f: ("Egyptian cat", 0.8) for f in range(3)})
    assert surely(index([0.0] * 3, (0,), two), range(3)) == ["an Egyptian cat", "two cats"]


# --- with senses

SPEAKING = Senses.load(ASSETS)
PERSON = {f: [("person", 0.9, "left")] for f in range(5, 10)}


def sensed(frames: int, settings: dict[str, float], chest: str = "orange", light: tuple[float, float] = (0.5, 40.0)):
    """Numbers of the senses for every frame: words so far past their floors, the first detection's colour, light."""
    assert SPEAKING.places is not None
    places = np.full((frames, SPEAKING.places.width), -20.0, np.float16)
    for word, over in settings.items():
        i = SPEAKING.places.words.index(word)
        places[:, i] = SPEAKING.places.floors[i] + over
    colours = np.zeros((frames, KEPT + 2, len(TERMS)), np.float16)
    colours[:, 0, TERMS.index(chest)] = 0.9
    colours[:, WHOLE, TERMS.index("blue")] = 0.8
    rows = {"places": places, "colours": colours.reshape(frames, -1), "light": np.tile(np.float16(light), (frames, 1))}
    return index([0.0] * frames, (0,), features(frames, PERSON))._replace(sensed=rows)


def tell(kind: str, text: str, idx=None, at: int = 6) -> str:
    idx = sensed(12, {"grass": 3.0}) if idx is None else idx
    return Composer(kind, parse(text, 11.0), Verdict("find", (at,), float(at)), idx, SPEAKING).answer()


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("where", "Where is this?", "On grass; I see a person."),
        ("wearing", "What is the man wearing?", "A top or jacket in orange, at 0:05."),
        ("colour", "What colour is the shirt?", "Orange, at 0:06."),
        ("colour", "Which colours are there?", "Blue, at 0:06."),
        ("colour", "What colour is the man's hair?", "I am not sure of its colour; I see a person."),
        ("wearing", "Is anyone wearing a red shirt?", "No, I have not seen red there."),
        ("yesno", "Is anyone in green?", "No, I have not seen green there."),
        ("yesno", "Is there grass?", "Yes, at 0:00."),
        ("yesno", "Is there snow?", "I am not sure."),
        ("bw", "Is it black and white or in colour?", "The picture is in colour at 0:06."),
        ("doing", "What is the man doing?", "I am not sure what is being done; I see a person."),
        ("who", "Who is there?", "A person, at 0:05; names I do not give."),
        ("when", "When does the woman appear?", "I see a person at 0:05, but I cannot tell whether it is a woman."),
        ("when", "When is nobody there?", "At 0:00 and 0:10."),
        ("count_all", "How many people came in?", "One person at 0:05."),
        ("now", "What happens now?", "At 0:11 I see nobody, only grass."),
    ],
)
def test_what_is_said_with_senses(kind, text, expected):
    assert tell(kind, text) == expected


def test_a_colour_that_is_there_is_found():
    assert tell("yesno", "Is anyone in red?", sensed(12, {}, chest="red")) == "Yes, at 0:05."


def test_a_setting_is_said_only_where_it_is_sure_and_people_do_something_only_where_one_is():
    for word, over, said in (("grass", 0.5, False), ("grass", 1.5, True), ("child", 9.0, False)):
        assert (word in described(Known(sensed(12, {word: over}), SPEAKING), range(5, 10))) == said, (word, over)
    for rows, said in ((range(5, 10), True), (range(0, 4), False)):
        assert ("cycling" in described(Known(sensed(12, {"cycling": 3.0}), SPEAKING), rows)) == said


def test_dark_and_grey_pictures_are_told_where_it_is_asked():
    dark = sensed(12, {}, light=(0.1, 1.0))
    assert tell("bw", "Is it dark?", dark) == "The picture is dark at 0:06."
    assert tell("bw", "Is this black and white?", dark) == "The picture is black and white at 0:06."


def test_what_no_sense_kept_is_a_doubt():
    bare = index([0.0] * 12, (0,), features(12, PERSON))
    for kind, text in (("where", "Where is this?"), ("wearing", "What does he wear?"), ("bw", "Is it dark?")):
        assert DOUBTS.search(tell(kind, text, bare)), kind


def test_what_only_the_classifier_knows_is_never_denied():
    """It had not seen a white rabbit on a floor, nor flowers in a meadow."""
    assert say("yesno", "Is there a flower?") == "I am not sure whether there is a flower."
    assert say("colour", "What colour is the rabbit?") == "I am not sure whether there is a rabbit."


def test_a_question_of_light_is_no_talk():
    """Once the language model was left to answer "Is it dark?"."""
    dark = sensed(12, {}, light=(0.1, 20.0))
    asked, chat = parse("Is it dark?", 11.0), Verdict("chat", (6,), 6.0)
    assert Composer("bw", asked, chat, dark, SPEAKING).answer() == "The picture is dark at 0:06."
