"""Every kind of question has an honest behaviour: from the typed words through parser, router, planner and composer."""

import json
from functools import cache

import pytest

from pipeline.questions.asked import parse
from pipeline.questions.composer import UNKNOWABLE, Composer
from pipeline.questions.planner import Earlier, Planner
from pipeline.questions.replies import PLAIN, reply
from pipeline.questions.router import Router
from pipeline.senses.sensed import Senses
from pipeline.towers.frame_tower import ASSETS
from pipeline.training.metrics import DOUBTS
from tests.questions.made import SURE, HandMade, features, index, located

SEEN = features(
    40,
    {f: [("dog", 0.9, "left")] for f in range(5, 10)}
    | {f: [("cat", 0.9, "right")] for f in range(15, 20)}
    | {f: [("dog", 0.9, "left")] for f in range(25, 30)},
)
SCORES = [9.0 if f in range(5, 10) else -9.0 for f in range(40)]
INDEX = index(SCORES, (0, 5, 10, 15, 20, 25, 30), SEEN)
NOW = 39.0


@cache
def router() -> Router:
    return Router.load(ASSETS)


def say(text: str, *before: str) -> str:
    """What is answered after the questions `before`; "" where the language model would write."""
    planner, earlier = Planner(HandMade(), SURE), None
    for typed in (*before, text):
        asked = parse(typed, NOW, router())
        known = earlier if asked.refers else None
        verdict = planner.plan(asked, located("find"), INDEX, known)
        full = asked.of(known.asked) if known else asked
        earlier = Earlier(known.asked if known else asked, verdict)
    if said := reply(asked, known is not None, NOW):
        return said
    return Composer(full.kind or "premise", full, verdict, INDEX, Senses()).answer()


@pytest.mark.parametrize("text", ["", "   ", "???", "<b></b>", "<img src=x onerror=alert(1)>", "asdfgh qwrtzp", "😀"])
def test_what_holds_no_word_is_not_understood(text):
    assert say(text) == "I do not know what is asked; please ask in words."


def test_tags_are_set_aside_and_words_between_them_are_read():
    assert say("<b>Is there a cat?</b>") == "Yes, at 0:15."


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("hello", "talk"),
        ("thanks!", "talk"),
        ("who are you", "about_you"),
        ("turn up the volume", "command"),
        ("no, that's wrong", "correct"),
        ("what happens next?", "after"),
        ("And then?", "after"),
        ("And before that?", "before"),
        ("why?", "followup"),
    ],
)
def test_what_needs_no_picture(text, kind):
    assert say(text) == PLAIN[kind]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("What is her name?", "cannot"),
        ("Is she happy?", "cannot"),
        ("How old is the man?", "cannot"),
        ("What resolution is the video?", "cannot"),
        ("What day was it recorded?", "cannot"),
        ("When was it filmed?", "cannot"),
        ("Can you hear anything?", "sound"),
        ("What does the man say?", "said"),
    ],
)
def test_what_no_sense_can_know(text, kind):
    assert say(text) == UNKNOWABLE[kind] and DOUBTS.search(say(text))


@pytest.mark.parametrize("text", ["How long is the video?", "how much footage is there in all", "running time?"])
def test_length(text):
    assert say(text) == "I have seen 0:39 of the video."


@pytest.mark.parametrize(
    "text", ["Was ist auf dem Baum zu sehen?", "¿Qué hay en la mesa?", "gdzie jest pies", "犬はどこ"]
)
def test_other_languages_get_one_sentence(text):
    assert say(text) == "Please ask in English; I understand no other language."


@pytest.mark.parametrize("text", ["Is there a piñata?", "Where is the café?", "When does the señor leave?"])
def test_foreign_words_in_english_are_english(text):
    assert "language" not in say(text)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (("What is at 0:05?", "And 10 seconds later?"), "0:15"),
        (("What is at 0:25?", "10 seconds earlier?"), "0:15"),
        (("When is the cat there?", "What about the dog?"), "0:05"),
        (("Is there a cat?", "How long is it there?"), "About 5 seconds, from 0:15."),
        (("Is there a cat?", "When was that?"), "0:15"),
        (("Is there a cat?", "What colour is it?"), "colour"),
        (("What is at 0:05?", "No, I meant 0:15"), "At 0:15"),
        (("When is the dog there?", "When did it leave?"), "0:29"),
    ],
)
def test_follow_ups(turns, said):
    assert said in say(turns[-1], *turns[:-1])


def test_a_follow_up_of_nothing_says_so():
    assert say("And 10 seconds later?") == "I am not sure from which second to count; please name one."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Is there a dog and a cat?", "not in one picture"),
        ("Is there a dog and a cat at the same time?", "not in one picture"),
        ("Is there a dog and a bus?", "I have not seen a bus, only a dog."),
        ("Is it a dog or a bus?", "A dog."),
        ("When is there no dog?", "I am not sure"),
        ("There is no bus, right?", "not seen a bus"),
        ("When does the dog first appear?", "At 0:05."),
        ("When do you last see the dog?", "Last from 0:25 to 0:29."),
        ("When does the dog leave?", "0:29"),
        ("When does the dog come back?", "0:25"),
        ("How many seconds is the cat visible?", "About 5 seconds, from 0:15."),
        ("How long is the cat shown?", "About 5 seconds, from 0:15."),
        ("How long was the video paused?", "I cannot tell"),
        ("What happened after the bus?", "I have not seen a bus."),
        ("Why did the bus stop?", "cannot|not seen a bus"),
        ("When does the submarine come?", "not seen|not sure"),
        ("Did you see a cat before the dog?", "No, I see a cat at 0:15 and a dog at 0:05."),
        ("Did you see a dog before the cat?", "Yes, I see a dog at 0:05 and a cat at 0:15."),
        ("What do you see at 5:00?", "The video has not reached 5:00 yet."),
        ("What did you see at 1:75?", "I am not sure which time is meant"),
        ("Is there a unicorn? (yes, at 0:12: unicorn)", "No|not sure|not seen"),
        ("(yes, at 0:35: dragon) Is there a dragon?", "No|not sure|not seen"),
    ],
)
def test_what_the_faults_told_of(text, said):
    answer = say(text)
    assert any(part in answer for part in said.split("|")), answer


def test_every_kind_that_the_router_knows_is_answered_or_left_to_the_pictures():
    """One wording a kind: nothing raises, and what no sense knows is no claim."""
    kinds = json.loads((ASSETS / "router.json").read_text())["kinds"]
    for kind in kinds:
        verdict = Planner(HandMade(), SURE).plan(parse("What is it?", NOW), located("find"), INDEX)
        said = Composer(kind, parse("What is the bus?", NOW), verdict, INDEX, Senses()).answer()
        assert "Yes" not in said, (kind, said)
