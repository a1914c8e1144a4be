"""Faces, hands and postures in answers: told with their seconds where a sense is sure, doubted where none is."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.questions.asked import parse
from pipeline.questions.bodily import posture_of
from pipeline.questions.composer import Composer
from pipeline.questions.facts import surely
from pipeline.questions.index import Index
from pipeline.questions.notes import Verdict
from pipeline.senses.sensed import Senses
from tests.questions.made import features, index

HELD = {"standing": range(2, 6), "walking": range(8, 11), "sitting": range(12, 18)}
PERSONS = {f: [("person", 0.9, "left")] for f in range(2, 18)}
FACES = {f: [*PERSONS[f], ("face", 0.8, "left")] for f in (3, 4)}
HANDS = {f: [*PERSONS[f], ("hand", 0.9, "right")] for f in (6, 7)}
IDX = index([0.0] * 20, (0,), features(20, PERSONS | FACES | HANDS))


class Poses(Senses):
    """Senses that know these postures and nothing else."""

    def held(self, sensed, times, starts, posture):
        return np.array(HELD.get(posture, ()), int)


def tell(kind: str, text: str, idx: Index = IDX, at: int = 19, senses: Senses | None = None) -> str:
    verdict = Verdict("find", (at,), float(at))
    return Composer(kind, parse(text, 19.0), verdict, idx, senses or Poses()).answer()


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("when", "When does a hand appear?", "At 0:06."),
        ("when", "When do you see a face?", "At 0:03."),
        ("yesno", "Is a face to be seen?", "Yes, at 0:03."),
        ("yesno", "Is there a hand?", "Yes, at 0:06."),
        ("position", "Where is the hand?", "At 0:06 in the picture's right."),
        ("either", "Are they sitting or walking?", "Walking at 0:08 to 0:10 and sitting at 0:12 to 0:17."),
        (
            "doing",
            "What is the person doing?",
            "Standing at 0:02 to 0:05, walking at 0:08 to 0:10 and sitting at 0:12 to 0:17.",
        ),
        ("when", "When is somebody sitting?", "At 0:12 to 0:17."),
        ("when", "When does he sit down?", "I am not sure when that is; I see a person at 0:02."),
        ("yesno", "Is anybody walking?", "Yes, walking at 0:08 to 0:10."),
        ("yesno", "Is the man standing?", "Yes, standing at 0:02 to 0:05."),
        ("when", "When is the man lying?", "I am not sure when that is; I see a person at 0:02."),
    ],
)
def test_what_is_said(kind: str, text: str, answer: str) -> None:
    assert tell(kind, text) == answer


def test_a_posture_that_no_sense_knows_is_doubted_not_denied() -> None:
    for said in (tell("yesno", "Is anybody bending?"), tell("yesno", "Is anybody sitting?", senses=Senses())):
        assert said.startswith("I am not sure") and "No" not in said


def test_who_stands_up_sat_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HELD, "standing", range(18, 20))
    assert tell("when", "When does he stand up?") == "At 0:18 to 0:19."


def test_of_a_second_only_its_posture_counts() -> None:
    assert tell("yesno", "Is he walking at 0:09?", at=9) == "Yes, walking at 0:09."
    assert tell("yesno", "Is he walking at 0:03?", at=3).startswith("I am not sure whether anybody is walking")


@pytest.mark.parametrize("text", ["Does a dog walk by?", "When does she walk in?", "How many are sitting there?"])
def test_who_comes_or_is_counted_is_asked_for_no_posture(text: str) -> None:
    verdict = Verdict("find", (19,), 19.0)
    assert Composer("when", parse(text, 19.0), verdict, IDX, Poses()).postures() == []


def test_wordings_of_one_posture_are_one() -> None:
    assert {posture_of(word) for word in ("sit", "sits", "seated", "sat")} == {"sitting"}
    assert posture_of("situation") == posture_of("stair") == ""


def test_faces_and_hands_are_no_things_beside_a_person() -> None:
    assert surely(IDX, [3]) == ["a person"] and surely(IDX, [6]) == ["a person"]


def test_what_has_no_face_is_not_said_to_have_none() -> None:
    nobody = index([0.0] * 9, (0,), features(9, {f: [("person", 0.9, "left")] for f in range(9)}))
    assert tell("yesno", "Is there a face?", nobody, at=8) == "I am not sure whether there is a face."


@pytest.mark.parametrize(("many", "said"), [(2, "two people"), (3, "three people"), (4, "at least four people")])
def test_of_many_it_is_said_that_there_are_at_least_so_many(many: int, said: str) -> None:
    """Of seven in the snow the detector found four."""
    crowd = index([0.0] * 9, (0,), features(9, {f: [("person", 0.9, "left")] * many for f in range(9)}))
    assert surely(crowd, range(9)) == [said]
    assert tell("count_now", "How many people are there?", crowd, at=8).lower().startswith(said)


def test_who_comes_often_is_told_of_once_and_counted() -> None:
    often = {f: [("person", 0.9, "left")] for start in (2, 10, 18, 26) for f in (start, start + 1)}
    idx = index([0.0] * 30, (0,), features(30, often))
    assert tell("when", "When do you see a person?", idx) == "At 0:02, and three more times."
