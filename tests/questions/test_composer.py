"""What composed answers say of hand-made findings: facts where the towers are sure, doubts where no sense can know."""

import numpy as np
import pytest
import torch

from pipeline.questions.asked import parse
from pipeline.questions.composer import UNKNOWABLE, Composer
from pipeline.questions.facts import Known, counted, described, listing, runs, shown_from, surely
from pipeline.questions.notes import Verdict
from pipeline.questions.things import Things
from pipeline.senses.colours import TERMS, WHOLE
from pipeline.senses.sensed import Senses
from pipeline.towers.frame_tower import ASSETS
from pipeline.towers.nanodet import KEPT
from pipeline.training.metrics import DOUBTS
from tests.questions.made import COCO, features, index

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
        ("yesno", "Is there a cat?", "I have not seen a cat."),
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
        ("now", "Is there a dog now?", "Yes, at 0:23."),
        ("now", "Can you see the dog at present?", "Yes, at 0:23."),
        ("count_now", "How many dogs are there at this moment?", "At least one dog at 0:23."),
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
        == "At least one dog at 0:20."
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
    assert listing(INDEX, [(0.0, (0,)), (5.0, (5, 6))], NONE) == ["", "0:05 two dogs."]
    assert listing(INDEX, [(0.0, (0,))], NONE) == ["0:00 I am not sure what this is."]


def test_a_list_of_some_things_names_no_others():
    both = features(12, {f: [("dog", 0.9, "left"), ("car", 0.9, "left")] for f in range(12)})
    moments = [(0.0, (0, 1)), (6.0, (6, 7))]
    wanted = parse("Which animals did you see?", 11.0).wanted
    assert listing(index([0.0] * 12, (0, 6), both), moments, NONE, wanted) == ["0:00 a dog.", "0:06 a dog."]


def test_a_summary_looks_at_all_of_a_short_shot():
    seen = features(12, {f: [("bird", 0.8, "left")] for f in range(6, 9)})
    assert listing(index([0.0] * 12, (0, 6), seen), [(6.0, (10, 11))], NONE) == ["0:06 a bird."]


@pytest.mark.parametrize(
    ("dogs", "cats", "second"),
    [(range(7, 20), (), 7), (range(2, 20), range(9, 20), 9), (range(3, 12), range(12, 20), 3), ((), (), 0)],
)
def test_a_moment_begins_where_what_is_told_of_it_comes(dogs, cats, second):
    things = {f: [("dog", 0.9, "left")] * (f in dogs) + [("cat", 0.9, "right")] * (f in cats) for f in range(20)}
    idx = index([0.0] * 20, (0,), features(20, things))
    assert shown_from(idx, (0, 4, 7, 11, 12, 15, 17, 19)) == second


def test_the_only_picture_of_its_scene_must_be_sure():
    """Somebody stays to the end of a scene; what the next one's first picture half shows is not them any more."""
    for score, end in ((0.48, 10), (0.7, 11)):
        seen = features(20, {f: [("person", 0.8, "left")] for f in range(4, 10)} | {10: [("person", score, "left")]})
        assert runs(index([0.0] * 20, (0, 10), seen), Things((COCO["person"],), ())) == [range(4, end)]


def test_what_one_picture_of_a_cut_shows_must_be_sure():
    for score, said in ((0.55, []), (0.8, ["a dog"])):
        assert surely(index([0.0] * 12, (0,), features(12, {5: [("dog", score, "left")]})), [5]) == said


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("when", "When is only one dog left?", "cannot tell more"),
        ("last", "When do you last see the black dog?", "cannot tell more"),
        ("either", "Is the dog full or empty?", "I am not sure which."),
        ("compare", "Is it the same dog all the time?", "I am not sure; at 0:29 "),
        ("yesno", "Does a dog show up in it at all?", "Yes, at 0:05."),
        ("yesno", "Is there any meat?", "I am not sure."),
    ],
)
def test_a_condition_that_no_sense_knows_is_a_doubt(kind, text, expected):
    late = index([0.0] * 30, (0, 15), features(30, {f: [("dog", 0.9, "left")] for f in (*range(5, 10), 28, 29)}))
    assert expected in Composer(kind, parse(text, 29.0), Verdict("now", (29,), 29.0), late, NONE).answer()


def test_scenes_are_counted_not_written():
    for count, said in ((1, "One scene so far."), (7, "Seven scenes so far."), (11, "11 scenes so far.")):
        assert say("count_all", "How many scenes were there?", Verdict("count", (29,), 29.0, count=count)) == said


VISITS = {f: [("tv", 0.8, "right")] for f in range(40)}
VISITS |= {f: [("tv", 0.8, "right"), ("person", 0.9, "left")] for f in (*range(6, 18), *range(24, 32), 38, 39)}


@pytest.mark.parametrize(
    ("kind", "text", "plan", "expected"),
    [
        ("when", "When does the first person appear?", "find", "At 0:06."),
        ("count_all", "How many people were there?", "about", "I saw people three separate times."),
        ("when", "When is the room empty?", "find", "At 0:00, 0:18 and 0:32."),
        ("after", "What happened after the first person left?", "after", "At 0:18 I see nobody, only a tv."),
        ("now", "What is happening now?", "now", "a person"),
        ("yesno", "Is there a person now?", "yesno_now", "Yes, at 0:39."),
        ("when", "When is the person last there?", "find", "0:38"),
    ],
)
def test_people_who_come_and_go(kind, text, plan, expected):
    """Once: "1:00", "One person.", a second with somebody in it, the beginning, and "A tv."."""
    idx = index([0.0] * 40, (0,), features(40, VISITS))
    verdict = Verdict(plan, (36, 37, 38, 39) if plan == "now" else (0,), 39.0 if plan == "now" else 0.0)
    assert expected in Composer(kind, parse(text, 39.0), verdict, idx, NONE).answer()


def test_which_of_two_things_came_first():
    """ "Before" once won over the yes or no."""
    both = features(
        30, {f: [("cat", 0.9, "left")] for f in range(3, 6)} | {f: [("person", 0.9, "left")] for f in (9, 10)}
    )
    idx = index([0.0] * 30, (0,), both)
    for text, said in (("Did you see a cat before the man?", "Yes, "), ("Did you see a cat after the man?", "No, ")):
        asked = parse(text, 29.0)
        assert asked.plan == "yesno"
        answer = Composer("yesno", asked, Verdict("yesno", (0,), 0.0), idx, NONE).answer()
        assert answer.startswith(said) and "0:03" in answer and "0:09" in answer


def test_numbers_in_words():
    assert (counted("dog", 2), counted("apple", 1), counted("person", 3)) == ("two dogs", "an apple", "three people")


def test_a_thing_that_a_class_names_more_exactly_is_said_once():
    both = {f: [("bottle", 0.9, "left"), ("person", 0.9, "left")] for f in range(3)}
    found = features(3, both, {f: ("water bottle", 0.8) for f in range(3)})
    assert surely(index([0.0] * 3, (0,), found), range(3)) == ["a water bottle", "a person"]
    three = {f: [("bottle", 0.9, "left")] * 3 for f in range(3)}
    found = features(3, three, {f: ("water bottle", 0.8) for f in range(3)})
    assert surely(index([0.0] * 3, (0,), found), range(3)) == ["three bottles"]


@pytest.mark.parametrize(
    ("word", "sure", "said"),
    [
        ("Egyptian cat", 0.8, ["a cat"]),  # the breed is the tower's guess
        ("missile", 0.6, ["a rocket"]),
        ("tennis ball", 0.6, []),  # a broccoli was one at .58
        ("tennis ball", 0.8, ["a tennis ball"]),
    ],
)
def test_a_class_is_said_by_its_everyday_word_or_where_it_is_very_sure(word, sure, said):
    found = features(3, classes={f: (word, sure) for f in range(3)})
    assert surely(index([0.0] * 3, (0,), found), range(3)) == said


def test_in_black_and_white_a_class_must_be_surer_still():
    """A wall of grey bricks is a maze at .83."""
    idx = index([0.0] * 3, (0,), features(3, classes={f: ("maze", 0.83) for f in range(3)}))
    for spread, said in ((1.0, []), (40.0, ["a maze"])):
        lit = idx._replace(sensed={"light": np.full((3, 2), (0.5, spread), np.float16)})
        assert surely(lit, range(3)) == said


def test_a_black_picture_is_said_to_be_black():
    black = sensed(12, {}, light=(0.0, 0.0))
    assert tell("at", "What is at 0:02?", black, at=2) == "At 0:02 I see a black picture."
    assert tell("bw", "Is the picture black?", black).startswith("The picture is black")


def test_a_doubt_says_what_the_pixels_tell():
    blue = sensed(12, {})._replace(features=features(12))
    assert tell("at", "What is at 0:02?", blue, at=2) == ("I am not sure what this is; the picture is mostly blue.")


def test_right_after_and_right_before_are_beside_the_things_own_frames():
    """Within one shot, too: the neighbouring shot may be far from the thing."""
    things = {2: [("cat", 0.9, "left")], 3: [("dog", 0.9, "left")], 4: [("cat", 0.9, "left")]}
    idx = index([0.0] * 9, (0, 7), features(9, things))
    for kind, time in (("after", 4.0), ("before", 0.0)):
        composer = Composer(kind, parse(f"What came {kind} the dog?", 8.0), Verdict(kind, (8,), 8.0), idx, NONE)
        assert composer.verdict.time == time and (2 if kind == "before" else 4) in composer.verdict.frames


def test_who_was_there_before_somebody_came_is_the_one_before():
    people = {f: [("person", 0.9, "left")] for f in (*range(2, 5), *range(12, 16))}
    idx = index([0.0] * 16, (0,), features(16, people))
    asked, before = parse("Who was there before this man came?", 15.0), Verdict("before", (0,), 0.0)
    assert Composer("before", asked, before, idx, NONE).answer() == "A person, at 0:02; names I do not give."


def test_which_of_a_group_names_its_kinds_alone():
    things = {f: [("apple", 0.9, "left"), ("broccoli", 0.9, "left")] for f in range(4, 9)}
    idx = index([0.0] * 9, (0,), features(9, things))
    for text, said in (("What vegetable is lying there?", "a broccoli"), ("Which fruit is it?", "an apple")):
        answer = Composer("position", parse(text, 8.0), Verdict("find", (0,), 0.0), idx, NONE).answer()
        assert answer == f"At 0:04 I see {said}."


def test_a_summary_says_that_most_is_unknown():
    some = [(float(f), (f,)) for f in (0, 5, 12, 15)]
    assert listing(INDEX, some, NONE) == ["", "0:05 two dogs. Of the rest I am not sure.", "", ""]


def test_nobody_is_said_where_people_come_and_go_not_of_a_hand_that_reaches_in():
    for seen, said in ((range(4, 10), True), (range(9, 10), False)):
        idx = index([0.0] * 12, (0,), features(12, {f: [("person", 0.9, "left")] for f in seen}))
        assert Known(idx, NONE).nobody([0, 1]) == said


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
        ("when", "At what point is it empty for the first time?", "At 0:00."),
        ("colour", "What colour is his jacket?", "Orange, at 0:06."),
        ("yesno", "Is the man in green or red?", "I am not sure which."),
        ("count_all", "How many people came in?", "One person at 0:05."),
        ("now", "What happens now?", "At 0:11 I see nobody, only grass."),
    ],
)
def test_what_is_said_with_senses(kind, text, expected):
    assert tell(kind, text) == expected


def test_a_colour_that_is_there_is_found():
    assert tell("yesno", "Is anyone in red?", sensed(12, {}, chest="red")) == "Yes, at 0:05."
    assert tell("yesno", "Is the man in green or red?", sensed(12, {}, chest="red")) == "Red, at 0:05."


def test_a_setting_is_said_only_where_it_is_sure_and_people_do_something_only_where_one_is():
    for word, over, said in (("grass", 0.5, False), ("grass", 1.5, True), ("child", 9.0, False)):
        assert (word in described(Known(sensed(12, {word: over}), SPEAKING), range(5, 10))) == said, (word, over)


@pytest.mark.parametrize(("where", "said"), [("under", True), ("beside", False), (None, False)])
def test_who_cycles_sits_on_a_bicycle(where, said):
    """Bicycles that stood beside a sleeping man were "cycling"."""
    idx, boxes = sensed(12, {"cycling": 3.0}), {"under": (0.0, 0.5, 0.2, 0.8), "beside": (0.6, 0.5, 0.9, 0.8)}
    seen = {f: [("person", 0.9, "left")] + [("bicycle", 0.9, "left")] * bool(where) for f in range(12)}
    idx = idx._replace(features=features(12, seen))
    idx.features.det_boxes[:, 1] = torch.tensor(boxes.get(where, boxes["under"]))
    assert ("cycling" in described(Known(idx, SPEAKING), range(5, 10))) == said
    asked = parse("Is somebody cycling?", 11.0)
    answer = Composer("yesno", asked, Verdict("find", (6,), 6.0), idx, SPEAKING).answer()
    assert answer == ("Yes, at 0:00." if said else "I see a person at 0:00, but I cannot tell more.")


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


# --- what is not there, and what an answer rests on


def rests(kind: str, text: str, idx, verdict: Verdict | None = None) -> tuple[str, bool]:
    """The answer, and whether it rests on a picture."""
    composer = Composer(kind, parse(text, float(idx.times[-1])), verdict or Verdict("find", (0,), 0.0), idx, SPEAKING)
    return composer.answer(), composer.verdict.found


@pytest.mark.parametrize(
    ("kind", "text", "answer", "found"),
    [
        ("yesno", "Is there a cat?", "I have not seen a cat.", False),
        ("premise", "the apple", "I have not seen an apple.", False),
        ("yesno", "Is there a table?", "I am not sure whether there is a table.", False),
        ("when", "When does the ball come?", "I am not sure whether there is a ball.", False),
        ("yesno", "Is there a flower?", "I am not sure whether there is a flower.", False),
        ("yesno", "Is there any meat?", "I am not sure.", False),
        ("when", "When is the stream shown?", "I am not sure when that is.", False),
        ("sound", "Is there music?", "I cannot hear; I only watch the pictures.", False),
        ("both", "Is there a dog and a person?", "No, I have not seen a dog, only a person.", True),
        ("yesno", "Is there a person?", "Yes, at 0:05.", True),
    ],
)
def test_absence_rests_on_no_picture_and_is_sure_only_where_the_towers_seldom_miss(kind, text, answer, found):
    """A table that is there was denied; "I have not seen an apple." once showed a picture of something else."""
    idx = sensed(12, {}, light=(0.0, 0.0))
    assert rests(kind, text, idx) == (answer, found)


@pytest.mark.parametrize("kind", ["text", "said", "cannot"])
def test_what_cannot_be_known_rests_on_no_picture(kind):
    assert not rests(kind, "What is it?", sensed(12, {}))[1]


@pytest.mark.parametrize(
    ("text", "settings", "answer"),
    [
        ("Is it at the beach?", {"beach": 2.0}, "Yes, at 0:00."),
        ("Is it outdoors?", {"beach": 2.0}, "Yes, at 0:00."),
        ("Is it indoors?", {"beach": 2.0}, "No, at 0:06 it is on a beach."),
        ("Is it in the water?", {"beach": 2.0}, "I am not sure whether it is in the water; at 0:06 it is on a beach."),
        ("in the water?", {}, "I am not sure whether it is in the water; at 0:06 I see a person."),
        ("Is it at the beach?", {}, "I am not sure whether it is at the beach; at 0:06 I see a person."),
        ("Is anybody in the water?", {}, "I see a person at 0:05, but I am not sure whether that is in the water."),
        ("Is it at night?", {}, "I am not sure whether it is night; at 0:06 I see a person."),
    ],
)
def test_a_place_is_a_yes_or_no_or_a_doubt_that_names_it(text, settings, answer):
    for kind in ("where", "yesno") if text.startswith("Is it") else ("yesno",):
        assert tell(kind, text, sensed(12, settings)) == answer


def test_what_stands_indoors_makes_it_indoors():
    idx = sensed(12, {})._replace(features=features(12, {f: [("tv", 0.8, "left")] for f in range(12)}))
    assert tell("where", "Is it indoors?", idx) == "Yes, at 0:00."
    for text in ("Is it outdoors?", "Is it on the beach?"):
        assert tell("where", text, idx) == "No, at 0:06 it is indoors."


def test_it_is_night_where_the_pixels_are_dark_at_most():
    assert tell("weather", "Is it at night?", sensed(12, {}, light=(0.1, 20.0))).startswith(
        "I am not sure whether it is"
    )


@pytest.mark.parametrize(
    ("found", "classes", "answer"),
    [
        (1, {}, "At least one dog at 0:00."),
        (2, {}, "Two dogs at 0:00."),
        (0, {f: ("Whippet", 0.8) for f in range(9)}, "I see at least one dog at 0:00; I cannot tell how many."),
    ],
)
def test_of_animals_there_may_be_more_than_one_that_is_found(found, classes, answer):
    """Two dogs beside each other are one box, or none that the detector takes for a dog."""
    idx = index([0.0] * 9, (0,), features(9, {f: [("dog", 0.9, "left")] * found for f in range(9)}, classes))
    assert rests("count_now", "How many dogs are there?", idx)[0] == answer


def test_an_animal_is_none_where_the_classifier_knows_another():
    """Whippets were a cow at .57."""
    for word, said in (("Whippet", []), ("ox", ["a cow"])):
        found = features(9, {f: [("cow", 0.57, "left")] for f in range(9)}, {f: (word, 0.56) for f in range(9)})
        cows = [w for w in surely(index([0.0] * 9, (0,), found), range(9)) if "cow" in w]
        assert cows == said, word


def test_a_hand_is_a_persons_where_one_is_seen():
    idx = sensed(12, {})
    for at, answer in ((6, "Yes, a person's, at 0:06."), (1, "I am not sure whether there is a hand.")):
        assert tell("yesno", f"Is there a hand at 0:0{at}?", idx, at) == answer


def test_when_tells_the_end_of_a_stay_in_which_scenes_change():
    both = features(12, {f: [("person", 0.9, "left")] for f in range(2, 9)})
    for starts, answer in (((0, 5), "At 0:02 to 0:08."), ((0,), "At 0:02.")):
        assert rests("when", "When did you see a person?", index([0.0] * 12, starts, both))[0] == answer


def test_a_summary_of_what_nothing_is_known_says_what_the_pixels_tell():
    dark = sensed(12, {}, light=(0.1, 20.0))._replace(features=features(12))
    assert listing(dark, [(0.0, (0, 1))], SPEAKING) == ["0:00 I am not sure what this is; the picture is dark."]
