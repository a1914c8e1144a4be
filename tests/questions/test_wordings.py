"""What questions name and what they ask for, where their wording leaves no doubt."""

import pytest

from pipeline.questions.asked import parse
from pipeline.questions.things import named_things
from pipeline.questions.wordings import wording_kind, wording_plan
from tests.questions.made import COCO, IMAGENET, features


def coco(*words):
    return tuple(sorted(COCO[w] for w in words))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Is there a teddy bear?", coco("teddy bear")),
        ("Is there a bear?", coco("bear")),
        ("How many dogs are there?", coco("dog")),
        ("two buses", coco("bus")),
        ("a sofa and a bike", coco("couch", "bicycle")),
        ("Did a woman walk by?", coco("person")),
        ("traffic lights", coco("traffic light")),
        ("puppies or kids", coco("dog", "person")),
        ("kittens and ladies", coco("cat", "person")),
        ("what is on the screen", ()),
        ("What happened?", ()),
        ("", ()),
        ("the stage of the web site", ()),
    ],
)
def test_named_things(text, expected):
    assert named_things(text).coco == expected


def test_the_longest_phrase_is_what_is_named():
    hot, table = named_things("a hot dog"), named_things("on the dining table")
    assert hot.coco == coco("hot dog") and not set(coco("dog")) & set(hot.coco)
    assert not any(151 <= c < 269 for c in hot.classes), "a hot dog is no breed of dog"
    assert table.coco == coco("dining table")


def test_kinds_name_their_members_and_breeds():
    animal, dog = named_things("any animals?"), named_things("a puppy or a dog")
    assert set(coco("dog", "cat", "zebra")) <= set(animal.coco) and COCO["car"] not in animal.coco
    assert {151, 268} <= set(dog.classes) and 269 not in dog.classes and 281 not in dog.classes
    assert named_things("a goldfish").classes == (IMAGENET["goldfish"],)


def test_questions_that_name_nothing_leave_scores_alone():
    seen = features(3, {1: [("dog", 0.9, "left")]})
    assert named_things("what is on the screen").shown(seen) is None
    assert named_things("the dog").shown(seen).tolist() == pytest.approx([0, 0.9, 0])
    breed = features(2, classes={1: ("goldfish", 0.7)})
    assert named_things("the goldfish").shown(breed).tolist() == pytest.approx([0, 0.7])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("When does the dog first appear?", "find"),
        ("Show me the dog", "find"),
        ("please find the red car", "find"),
        ("Show me 0:35", None),
        ("What came before the dog?", "before"),
        ("Describe this.", "now"),
        ("describe it", "now"),
        ("Describe the dog", None),
        ("Summarise it", "list"),
        ("Give me a recap", "list"),
        ("What is this video about?", "list"),
        ("Tell me what the clip is about", "list"),
        ("How many scenes are there?", "count"),
        ("How many scenes show a dog?", None),
        ("How many dogs are there?", "about"),
        ("What colour is the car?", "about"),
        ("what color is it", "about"),
        ("", None),
        ("What is the first thing?", None),
        ("Hello", None),
        ("How often did the dog bark?", "count_of"),
        ("What time is it?", None),
        ("What time was it?", "find"),
        ("When?", "find"),
        ("And then?", "after"),
        ("What happened?", "list"),
        ("What did you see?", "list"),
        ("So, what have I missed so far?", "list"),
        ("What's in the video?", "list"),
        ("Who was shown?", "list"),
        ("Which animals did you see in it?", "list"),
        ("What kinds of fruit were there?", "list"),
        ("What do you see?", None),
        ("What is in the picture?", None),
        ("What did you see before the dog?", None),
        ("What colours did you see?", None),
        ("What was in the box?", None),
        ("Who is in the picture?", None),
        ("What happened when the dog came?", None),
    ],
)
def test_wordings_without_doubt(text, expected):
    assert wording_plan(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How long is the video?", True),
        ("how long is it", True),
        ("What is the length of this clip?", True),
        ("How long is the dog in the picture?", False),
        ("How long is it there?", False),
        ("How long was the dog?", False),
    ],
)
def test_how_much_was_seen_is_asked(text, expected):
    assert (wording_kind(text) == "length") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("And then?", True),
        ("When was it?", True),
        ("What came next?", True),
        ("When?", True),
        ("How many are there?", True),
        ("What color is it?", True),
        ("When was the dog there?", False),
        ("And at 0:25?", False),
        ("What do you see in this picture?", False),
    ],
)
def test_what_refers_to_the_last_question(text, expected):
    assert parse(text, 9.0).refers == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How does this one open?", "first"),
        ("What did the video start with?", "first"),
        ("What is there when it ends?", "last"),
        ("How do you open a bottle?", None),
    ],
)
def test_wordings_of_the_two_ends(text, expected):
    assert wording_plan(text) == expected
