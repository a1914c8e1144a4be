"""Answers from what was read and heard: facts with their seconds, and a doubt or the reason where there is none."""

import re

import pytest

from pipeline.questions.asked import parse
from pipeline.questions.gleaned import gleaned_reply, needed
from pipeline.questions.sought import has, sought
from pipeline.stream import Event, Question, Reach

DOUBT = re.compile("I cannot (say|read|hear|tell)")
READ = (
    Event(5.0, "text", "BAKERY", 0.9, 9.0),
    Event(20.0, "text", "THE PEACH OPEN MOVIE PROJECT PRESENTS", 0.9, 24.0),
    Event(40.0, "text", "BAKERY", 0.9, 44.0),
)
DONE = Reach("text", "Reading text", 60.0, True)


def ask(text, events=READ, reach=DONE, at=None, end=60.0):
    asked = parse(text, end)
    return gleaned_reply(asked, Question(text, at=at, events=tuple(events), reaches=(reach,) if reach else ()), end)


def test_what_is_written_is_quoted_with_its_second_and_rests_on_it():
    said = ask("Is there any text on the screen?")
    assert said.text == 'Yes, at 0:05 I read "BAKERY"; at 0:20 "THE PEACH OPEN MOVIE PROJECT PRESENTS".'
    assert said.times == (5.0, 20.0) and list(said.looked[1]) == [0.5, 0.5]


@pytest.mark.parametrize(("at", "words"), [("0:22", "PEACH"), ("0:18", "PEACH"), ("0:07", "BAKERY"), ("0:43", "0:40")])
def test_a_second_is_answered_by_what_is_written_then_or_within_three_seconds(at, words):
    said = ask(f"What is written at {at}?").text
    assert words in said and said.count('"') == 2


def test_what_is_not_there_is_never_made_up():
    assert ask("What is written at 0:30?").text == "I have not seen any text that I could read at 0:30."
    assert ask("Is there any text on the screen?", ()).text == "I have not seen any text that I could read."


@pytest.mark.parametrize(
    ("reach", "said"),
    [
        (Reach("text", "Reading text"), "I cannot say yet; reading text has yet to begin."),
        (Reach("text", "Reading text", 12.0), "I cannot say yet; reading text has come to 0:12."),
        (
            Reach("text", "Reading text", 0.0, True, "I cannot read text here: no reader."),
            "I cannot read text here: no reader.",
        ),
    ],
)
def test_a_sense_that_has_not_come_so_far_says_so(reach, said):
    assert ask("Is there any text on the screen?", (), reach).text == said and DOUBT.search(said)


def test_what_it_has_read_so_far_is_told_meanwhile():
    assert "BAKERY" in ask("Is there any text on the screen?", READ[:1], Reach("text", "Reading text", 12.0)).text


def test_where_no_sense_reads_nothing_is_claimed():
    assert not ask("Is there any text on the screen?", (), None).text


def test_a_question_that_is_pinned_knows_nothing_of_what_comes_later():
    assert "PEACH" not in ask("Is there any text on the screen?", at=12.0).text


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ('When does "peach" appear?', (20.0,)),
        ("When does the title Open Movie come up on screen?", (20.0,)),
        ("Is the word bakery on screen?", (5.0,)),
        ("When does BAKERY appear?", (5.0,)),
    ],
)
def test_words_are_found_where_they_are_written(text, times):
    assert ask(text).times == times and needed(parse(text, 60.0)) == ("text",)


@pytest.mark.parametrize(
    "text", ["When does the dog appear on screen?", "When does the car come?", 'When is "melon" shown?']
)
def test_what_is_not_written_is_left_to_the_eyes(text):
    assert not ask(text).text


def test_which_of_the_writing_is_a_title_is_doubted():
    said = ask("What is the title written there?").text
    assert said.startswith("I am not sure that it is what is meant; at 0:05 I read")


def test_a_quotation_cannot_break_out_of_its_marks():
    assert (
        ask("Is there any text on the screen?", [Event(1.0, "text", 'SAY "YES" ' + "long " * 60)]).text.count('"') == 2
    )


def test_words_are_the_same_in_another_number_or_tense():
    assert has("He talked about two dogs and a city", ("dog", "cities", "talking"))
    assert not has("a doggerel", ("dog",))
    assert sought('Did anyone say "good morning"?') == ("good", "morning") and sought("Did anyone mention dogs?") == (
        "dogs",
    )
    assert sought("What was said at the end?") in ((), ("end",))


SPEECH = (
    Event(2.0, "speech", "The children are playing in the garden.", 0.8, 4.2),
    Event(9.1, "speech", "Today we will talk about rockets and cats.", 0.8, 12.2),
)
TUNE, NOISE = Event(14.0, "sound", "music", 1.0, 20.0), Event(30.0, "sound", "sound", 1.0, 34.0)
HEARD = (Reach("sound", "Hearing sounds", 60.0, True), Reach("speech", "Listening", 60.0, True))


def hear(text, events=(*SPEECH, TUNE), reaches=HEARD, at=None):
    question = Question(text, at=at, events=tuple(events), reaches=tuple(reaches))
    return gleaned_reply(parse(text, 60.0), question, 60.0)


@pytest.mark.parametrize(
    ("text", "said", "times"),
    [
        ("What was said at 0:03?", 'At 0:02 I heard "The children are playing in the garden."', (2.0,)),
        ("What is said?", 'At 0:02 I heard "The children', (2.0, 9.1)),
        ("Did anyone mention cats?", 'Yes, at 0:09 I heard "Today we', (9.1,)),
        ("When is the rocket mentioned?", 'At 0:09 I heard "Today we', (9.1,)),
        ("Did anyone mention dogs?", "I have not heard dogs.", ()),
        ("What was said at 0:40?", "I heard nobody speak at 0:40.", ()),
        ("Is there music?", "Yes, music at 0:14.", (14.0,)),
        ("When does the music start?", "Music at 0:14.", (14.0,)),
        ("Can you hear anything?", "Yes, speech at 0:02 and music at 0:14.", (2.0, 14.0)),
        (
            "Can you hear a dog barking?",
            "I hear speech at 0:02 and music at 0:14, but I cannot tell what makes it.",
            (2.0, 14.0),
        ),
    ],
)
def test_what_was_heard_is_told_with_its_seconds(text, said, times):
    reply = hear(text)
    assert reply.text.startswith(said) and reply.times == times
    assert needed(parse(text, 60.0))[-1] == "speech"


@pytest.mark.parametrize(
    ("text", "events", "said"),
    [
        ("Is there music?", (), "I hear nothing; the sound is silent."),
        ("Can you hear anything?", (), "I hear nothing; the sound is silent."),
        ("Is there music?", SPEECH, "I am not sure whether there is music; I hear speech at 0:02."),
        ("Is there music?", (NOISE,), "I am not sure whether there is music; I hear a sound at 0:30."),
        ("What was said at 0:03?", (TUNE,), "I heard nobody speak at 0:03."),
        ("Did anyone mention cats?", (), "I have not heard cats."),
    ],
)
def test_of_a_silent_a_musical_and_a_spoken_clip_nothing_is_made_up(text, events, said):
    assert hear(text, events).text == said


@pytest.mark.parametrize("text", ["What was said at 0:03?", "Is there music?", "Can you hear anything?"])
def test_without_sound_or_before_it_was_heard_it_says_so(text):
    mute = tuple(Reach(one.sense, one.doing, 0.0, True, "The video has no sound.") for one in HEARD)
    assert hear(text, (), mute).text == "The video has no sound."
    early = tuple(Reach(one.sense, one.doing, 1.0) for one in HEARD)
    assert hear(text, (), early).text.startswith("I cannot say yet; ") and hear(text, (), ()).text == ""


def test_a_quoted_sentence_ends_once() -> None:
    assert hear("What was said at 0:03?").text == 'At 0:02 I heard "The children are playing in the garden."'
    assert ask("What is written?").text.endswith('".')
