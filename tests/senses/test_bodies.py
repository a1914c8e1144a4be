"""Faces, hands and postures: what is kept, what is believed of it, and that pictures without persons cost nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.questions.index import index_log, read_index
from pipeline.senses import bodies as room
from pipeline.senses.bodies import (
    FACE,
    HAND,
    UNREAD,
    Bodies,
    believed,
    bends,
    carried,
    detections_in,
    faces_of,
    persons_in,
    read_off,
    speeds,
    whole,
)
from pipeline.senses.places import Places
from pipeline.senses.sensed import Senses
from pipeline.towers.bodies import Found, Pose
from pipeline.towers.frame_tower import ASSETS, FrameFeatures
from tests.questions.made import COCO, features
from tests.towers.test_towers import picture

BODY = (0.25, 0.25, 0.75, 0.75)


@pytest.fixture(scope="module")
def bodies() -> Bodies:
    return Bodies.load(ASSETS)


def shown(*things: tuple[str, tuple[float, ...]], animal: float = 0.0) -> FrameFeatures:
    """One frame with these boxes (left, top, right, bottom as shares); animal: the classifier's word for a dog."""
    found = features(1, {0: [(thing, 0.7, "left") for thing, _ in things]}, {0: ("Labrador Retriever", animal)})
    for i, (_, box) in enumerate(things):
        found.det_boxes[0, i] = torch.tensor(box)
    return found


def test_of_a_portrait_the_face_is_found_where_it_is(bodies: Bodies) -> None:
    rgb = picture("astronaut")
    numbers = bodies.see([rgb], shown(("person", (0.03, 0.03, 0.71, 0.99)))).numpy()
    kinds, scores, boxes = detections_in(numbers)
    assert kinds[0].tolist().count(FACE) == 1 and HAND not in kinds
    left, top, right, bottom = boxes[0, 0] * 512
    assert scores[0, 0] > 0.8 and 150 < left < right < 300 and 50 < top < bottom < 200
    assert persons_in(numbers)[0, :, 0].tolist() == [0, -1] and persons_in(numbers)[0, 0, 1] > 0.9


def test_a_picture_without_persons_runs_no_network(bodies: Bodies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies.tower, "_run", lambda *_: pytest.fail("a network was run"))
    numbers = bodies.see([picture("chelsea")] * 2, features(2, {0: [("cat", 0.9, "left")]})).numpy()
    assert numbers.shape == (2, Bodies.width) and (persons_in(numbers)[..., 0] == -1).all()
    assert (detections_in(numbers)[0] == -1).all()


def test_what_is_found_does_not_depend_on_the_other_frames(bodies: Bodies) -> None:
    frames = [picture("astronaut"), picture("coffee"), picture("chelsea")]
    some = features(3, {0: [("person", 0.7, "centre")], 2: [("person", 0.5, "left"), ("person", 0.4, "right")]})
    alone = [
        bodies.see([rgb], FrameFeatures(*(c[i : i + 1] if len(c) else c for c in some))) for i, rgb in enumerate(frames)
    ]
    assert torch.allclose(bodies.see(frames, some), torch.cat(alone), atol=1e-3)


def test_in_an_animal_s_picture_postures_are_not_read(bodies: Bodies) -> None:
    for animal, read in ((0.9, False), (0.1, True)):
        found = shown(("person", (0.03, 0.03, 0.71, 0.99)), animal=animal)
        numbers = bodies.see([picture("astronaut")], found).numpy()
        assert (persons_in(numbers)[0, 0, 7] != np.float16(UNREAD)) == read


def test_of_a_body_seen_whole_no_palms_are_looked_for() -> None:
    assert whole(pose()) and not whole(pose(seen=0.1)) and not whole(pose()._replace(there=0.2))


def test_who_is_on_a_bicycle_neither_stands_nor_walks() -> None:
    astride, beside = (0.3, 0.5, 0.7, 0.95), (0.8, 0.5, 0.95, 0.9)
    assert carried(shown(("person", BODY), ("bicycle", astride)), 0, 0)
    assert not carried(shown(("person", BODY), ("bicycle", beside)), 0, 0)
    assert not carried(shown(("person", BODY), ("chair", astride)), 0, 0)


@pytest.mark.parametrize(("word", "told"), [("cycling", False), ("snow", True)])
def test_where_the_places_head_says_so_nobody_stands(bodies: Bodies, word: str, told: bool) -> None:
    places = Places.load(ASSETS)
    still = person(0, there=0.9)[0]
    still[0, 7] = 5.0
    numbers = np.full((4, len(places.words)), -9.0, np.float16)
    at = places.words.index(word)
    numbers[:, at] = places.floors[at] + 1
    sensed = {"bodies": made(*[still] * 4), "places": numbers}
    held = Senses(places, bodies).held(sensed, np.arange(4.0), np.zeros(1, int), "standing")
    assert bool(len(held)) == told


def pose(
    shoulders: tuple[float, float] = (0, -100), knees: float = 100, ankles: float = 200, seen: float = 1.0
) -> Pose:
    """Hips at 0, 0; of the rest where they are from there in pixels, x to the right, y down."""
    points, world = np.zeros((33, 2)), np.zeros((33, 3))
    points[room.SHOULDERS] = shoulders
    points[room.KNEES, 1], points[room.ANKLES, 1] = knees, ankles
    world[:, :2] = points / 200
    return Pose(1.0, points, np.full(33, seen), world)


def test_who_bends_has_the_trunk_tilted_over_straight_legs() -> None:
    assert bends(pose((90, -20))) and bends(pose((-90, -20)))
    assert (
        not bends(pose()) and not bends(pose((90, -20), knees=10, ankles=30)) and not bends(pose((90, -20), seen=0.2))
    )


def test_what_the_head_reads_knows_no_size_and_no_place() -> None:
    one = pose((5, -100), 90, 170)
    other = one._replace(points=one.points * 3 + 40)
    assert np.allclose(read_off(one), read_off(other), atol=1e-4)


def test_who_stands_and_who_sits_lie_apart(bodies: Bodies) -> None:
    with torch.no_grad():
        logits = bodies.head(torch.from_numpy(np.stack([read_off(pose()), read_off(pose(knees=5, ankles=80))])))
    assert logits[0] > bodies.upright > logits[1]


def test_a_face_is_believed_around_a_nose_or_alone_when_very_sure() -> None:
    body = pose()  # its nose is where the hips are
    near, far, sure = Found(0.72, (-5, -5, 5, 5)), Found(0.8, (50, 50, 60, 60)), Found(0.9, (50, 50, 60, 60))
    assert faces_of(body, [near, far, sure]) == [near, sure]
    assert faces_of(body._replace(there=0.1), [near, sure]) == [sure]


def person(place: int, there: float = 0.0, face: float = 0.0, hand: float = 0.0) -> np.ndarray:
    out = np.full((1, 2, 9), -1.0, np.float32)
    out[0, 0] = [place, there, face, hand, 0.5, 0.5, 0.2, 3.0, 0.0]
    return out


@pytest.mark.parametrize(
    ("found", "of", "score"),
    [
        (shown(("person", BODY), ("dog", BODY)), person(0), 0.35),  # it is the dog
        (shown(("person", BODY), ("dog", (0.8, 0.8, 1, 1))), person(0), 0.7),  # the dog is beside it
        (shown(("person", BODY), ("dog", BODY)), person(0, there=0.9), 0.7),  # it has a body
        (shown(("person", BODY), ("dog", BODY)), person(0, face=0.9), 0.7),
        (shown(("person", BODY), ("dog", BODY)), person(0, hand=0.9), 0.7),
        (shown(("person", BODY), animal=0.9), person(0), 0.35),  # a dog the detector did not see as one
        (shown(("person", BODY), ("dog", (0.8, 0.8, 1, 1)), animal=0.9), person(0), 0.7),
        (shown(("person", BODY), ("dog", BODY)), person(-1), 0.7),  # it was not looked at
    ],
)
def test_a_person_without_a_body_over_an_animal_is_half_believed(found: FrameFeatures, of: np.ndarray, score: float):
    assert believed(found, of)[0, 0] == pytest.approx(score)
    assert found.det_scores[0, 0] == pytest.approx(0.7), "what was seen is not changed"


def made(*persons: np.ndarray) -> np.ndarray:
    """Frames of the sense with these (2, 9) persons and neither faces nor hands."""
    rows = np.zeros((len(persons), Bodies.width), np.float32)
    rows[:, : 2 * 9] = np.stack(persons).reshape(len(persons), -1)
    return rows


def test_standing_and_walking_are_told_by_where_the_hips_are_a_second_later(bodies: Bodies) -> None:
    """Of one who is on their feet; who is alone in a shot may do either."""

    def at(x: float, logit: float = 5.0) -> np.ndarray:
        one = person(0, there=0.9)[0]
        one[0, 4], one[0, 7] = x, logit
        return one

    times, none = np.arange(5.0), np.zeros(1, int)
    still = bodies.held(made(*[at(0.5)] * 5), times, none)
    assert still["standing"].all() and not still["walking"].any()
    moving = bodies.held(made(*[at(0.1 + 0.15 * i) for i in range(5)]), times, none)
    assert moving["walking"].all() and not moving["standing"].any()
    assert not any(held.any() for held in bodies.held(made(*[at(0.5, UNREAD)] * 5), times, none).values())
    cut = bodies.held(made(at(0.5), at(0.5)), times[:2], np.array([0, 1]))
    assert not cut["standing"].any() and not cut["walking"].any()
    assert bodies.held(made(*[at(0.5, -2.0)] * 5), times, none)["sitting"].all()
    assert bodies.say(made(*[at(0.5)] * 3)) == [("standing", 1.0)]


def test_nobody_moves_at_no_speed() -> None:
    persons = np.stack([person(-1)[0], person(0, 0.9)[0]])
    there = persons[..., 0] >= 0
    assert np.isinf(speeds(persons, there, np.arange(2.0), np.zeros(1, int))).all()
    assert np.isinf(speeds(persons[:1], there[:1], np.zeros(1), np.zeros(1, int))).all()


def test_faces_and_hands_stand_in_the_index_behind_the_detector_s_own(bodies: Bodies) -> None:
    found = shown(("person", (0.03, 0.03, 0.71, 0.99)))
    log = index_log(1, {"bodies": Bodies.width})
    row = {name: getattr(found, name) for name in ("det_ids", "det_scores", "det_boxes", "class_probs", "classes")}
    numbers = bodies.see([picture("astronaut")], found)
    kept = {name: column.to(log.fields[name].dtype) for name, column in row.items()}
    one = {"time": torch.zeros(1).double(), "key": torch.zeros(1, 1).half(), "novelty": torch.ones(1)}
    seen = read_index(log.append(**one, **kept, **{"sensed bodies": numbers}), 0.5).features
    assert seen.det_ids[0, :8].tolist() == found.det_ids[0].tolist() and FACE in seen.det_ids[0, 8:]
    assert COCO["face"] == FACE and COCO["hand"] == HAND
