"""Faces, hands and postures of persons in a picture: that they are there and where; never whose, nor what they feel.

Only where the detector found persons: of the LOOKED largest the pose (towers/bodies.py) and the face, of the largest
also the hands, unless it is seen down to its knees. A small head tells who sits from who stands by a pose
(`pipeline.training.postures`); who walks moves. What was found goes into the index beside the detector's boxes, as two
kinds more: FACE and HAND. A box that was looked at and holds neither pose, face nor hand, over an animal's box, is an
animal, not a person.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.senses.colours import PERSON
from pipeline.towers.bodies import MOST, BodyTower, Box, Found, Pose, apart, square_of
from pipeline.towers.frame_tower import FrameFeatures

FACE, HAND = 80, 81  # as kinds of detection: COCO's end at 79
LOOKED = 2  # persons a picture whose pose is read
PALMED = 0.2  # of the picture's height: of smaller persons the palms are a few pixels
POSE_FLOOR, HAND_FLOOR = 0.6, 0.8  # scores from which they are believed
FACE_FLOOR, FACE_ALONE = 0.7, 0.85  # of a face where the pose has its nose, and of one elsewhere: dogs have faces, too
DOUBT = 0.35  # score of a person who seems to be an animal: half seen, never told
MOUNTS, ON = (1, 3, 17, 20, 30, 31, 36, 37), 0.2  # bicycle to surfboard; the share of the smaller box that touches
ANIMAL = 0.5  # what the classifier's animals add up to in a picture of one
UNREAD = 1.0  # a logit between those of sitting and standing
OVER = 0.6  # of the smaller box, that lies in the other
ANIMALS, ANIMAL_CLASSES = range(14, 24), 398  # of COCO's categories, the first of ImageNet's classes
READ = 23  # numbers of a pose that the head reads
OF_A_PERSON = 9  # numbers that are kept of one, see `persons_in`
# Landmarks of the left and of the right side.
SHOULDERS, HIPS, KNEES, ANKLES = (np.array(pair) for pair in ((11, 12), (23, 24), (25, 26), (27, 28)))
SITS = 0.0  # logit below which one more likely sits than stands
STEPS, STAYS, FAR = 0.5, 0.25, 4.0  # torsos a second from which one walks, up to which one stands, of nobody
TILTED, FOOTED = 50.0, 0.8  # degrees of the trunk from upright, torsos from hips down to ankles, of one who bends


def read_off(pose: Pose) -> np.ndarray:
    """(23,) what the head reads: how far knees and ankles lie below the hips, in torsos and metres; how far hips and
    knees are stretched (cosines, -1: straight); lengths of thighs and shins in torsos, the stride, what is seen of the
    legs, the shoulders' height, how far the knees come forward and apart. Of pairs the lesser first."""
    hips, torso = trunk(pose)
    points, world = (pose.points - hips) / max(torso, 1.0), pose.world
    stretched = (_cosine(world, SHOULDERS, HIPS, KNEES), _cosine(world, HIPS, KNEES, ANKLES))
    bones = [np.linalg.norm(points[a] - points[b], axis=1) for a, b in ((HIPS, KNEES), (KNEES, ANKLES))]
    pairs = [points[KNEES, 1], points[ANKLES, 1], world[KNEES, 1], world[ANKLES, 1], *stretched, *bones]
    alone = [
        np.linalg.norm(world[ANKLES[0]] - world[ANKLES[1]]),
        pose.seen[KNEES].mean(),
        pose.seen[ANKLES].mean(),
        points[SHOULDERS, 1].mean(),
        world[SHOULDERS, 1].mean(),
        world[KNEES, 2].mean(),
        abs(points[KNEES[0], 0] - points[KNEES[1], 0]),
    ]
    return np.concatenate([*(np.sort(pair) for pair in pairs), alone]).clip(-9, 9).astype(np.float32)


def _cosine(points: np.ndarray, a: np.ndarray, at: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the angle between a and b as seen from `at`, for both sides."""
    one, other = points[a] - points[at], points[b] - points[at]
    return (one * other).sum(1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)).clip(1e-6)


def trunk(pose: Pose) -> tuple[np.ndarray, float]:
    """The middle of the hips, and how far from there to that of the shoulders, in pixels."""
    hips, shoulders = pose.points[HIPS].mean(0), pose.points[SHOULDERS].mean(0)
    return hips, float(np.linalg.norm(hips - shoulders))


def bends(pose: Pose) -> bool:
    """Whether somebody on their feet has the trunk tilted; legs and trunk must be seen."""
    hips, torso = trunk(pose)
    across, up = pose.points[SHOULDERS].mean(0) - hips
    tilt = np.degrees(np.arctan2(abs(across), -up))
    below = (pose.points[ANKLES, 1].mean() - hips[1]) / max(torso, 1.0)
    return bool(tilt >= TILTED and below >= FOOTED and pose.seen[[*HIPS, *KNEES, *ANKLES]].min() > 0.5)


def faces_of(pose: Pose, found: Sequence[Found]) -> list[Found]:
    """The faces that are believed: very sure ones, and sure ones around the nose of a body."""
    (x, y), there = pose.points[0], pose.there >= POSE_FLOOR
    return [
        each
        for each in found
        if each.score >= FACE_ALONE or (there and each.box[0] <= x <= each.box[2] and each.box[1] <= y <= each.box[3])
    ]


def whole(pose: Pose) -> bool:
    """Whether a body is seen down to the knees: its palms are then a few pixels, and not looked for."""
    return bool(pose.there >= POSE_FLOOR and pose.seen[KNEES].max() >= 0.5)


def carried(features: FrameFeatures, i: int, place: int) -> bool:
    """Whether a frame's detection reaches into something that is ridden."""
    mounts = np.isin(features.det_ids[i].numpy(), MOUNTS)
    boxes = features.det_boxes[i].numpy()
    return bool((_shared(boxes[place], boxes[mounts]) >= ON).any())


def animal_share(features: FrameFeatures) -> np.ndarray:
    """(F,) what the classifier's animals add up to."""
    return (features.class_probs * (features.classes < ANIMAL_CLASSES)).sum(1).numpy()


class UprightHead(nn.Module):
    """What is read off poses (N, 23) -> (N,) logits: high for whoever is on their feet, low for whoever sits."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.register_buffer("mean", torch.zeros(READ))
        self.register_buffer("scale", torch.ones(READ))
        self.hidden, self.word = nn.Linear(READ, width), nn.Linear(width, 1)
        self.drop = nn.Dropout(0.3)

    def forward(self, read: Tensor) -> Tensor:
        scaled = (read - self.get_buffer("mean")) / self.get_buffer("scale")
        return self.word(self.drop(nn.functional.gelu(self.hidden(scaled))))[:, 0]


class Bodies:
    """upright: logit of the head from which somebody is surely on their feet. That somebody sits is more likely than
    not below SITS, and no more than that: senses.sensed has the places' head agree."""

    name, cost_ms, width = "bodies", 30.0, LOOKED * OF_A_PERSON + 2 * MOST * 5
    words = ("sitting", "standing", "walking", "bending")

    def __init__(self, tower: BodyTower, head: UprightHead, upright: float):
        self.tower, self.head, self.upright = tower, head.eval(), upright

    @classmethod
    def load(cls, assets: Path, device: torch.device | str = "cpu") -> Bodies:
        """From `bodies.json` and `bodies.safetensors`. FileNotFoundError without them."""
        upright = json.loads((assets / "bodies.json").read_text(encoding="utf-8"))["upright"]
        head, weights = UprightHead(), load_file(assets / "bodies.safetensors").items()
        head.load_state_dict({k.removeprefix("head."): w.float() for k, w in weights if k.startswith("head.")})
        return cls(BodyTower.load(assets, device), head.requires_grad_(False), upright)

    @property
    def nets(self) -> list[nn.Module]:
        return [self.tower, self.head]

    # --- while watching

    @torch.no_grad()
    def see(self, frames: Sequence[np.ndarray], features: FrameFeatures) -> Tensor:
        """(F, width) float16: see `persons_in` and `detections_in`."""
        kept = [_largest(features, i, rgb.shape) for i, rgb in enumerate(frames)]
        parts = [(i, row, box) for i, boxes in enumerate(kept) for row, box in boxes]
        poses = self.tower.poses([(frames[i], square_of(box, "pose")) for i, _, box in parts])
        faces = self.tower.boxes("face", [(frames[i], square_of(box, "face")) for i, _, box in parts], FACE_FLOOR)
        faces = [faces_of(pose, found) for pose, found in zip(poses, faces, strict=True)]
        of_animals = animal_share(features) >= ANIMAL
        firsts = [n for n, (i, row, _) in enumerate(parts) if row == kept[i][0][0]]
        first = [n for n in firsts if not whole(poses[n]) and _palmed(parts[n][2], frames[parts[n][0]])]
        squares = [(frames[parts[n][0]], square_of(parts[n][2], "palm")) for n in first]
        hands = dict(zip(first, self.tower.boxes("palm", squares, HAND_FLOOR), strict=True))
        out = np.zeros((len(frames), self.width), np.float32)
        out[:, : LOOKED * OF_A_PERSON : OF_A_PERSON] = -1
        for i, rgb in enumerate(frames):
            own = [n for n, part in enumerate(parts) if part[0] == i]
            rows = [self._person(parts[n][1], poses[n], faces[n], hands.get(n, []), rgb.shape[0]) for n in own]
            # A dog from behind has the pose of one who sits, and who rides that of one who stands.
            unread = [bool(of_animals[i]) or carried(features, i, parts[n][1]) for n in own]
            rows = [[*row[:7], UNREAD, 0.0] if left else row for row, left in zip(rows, unread, strict=True)]
            if rows:
                flat = np.concatenate(rows)
                out[i, : len(flat)] = flat
                self._write(out[i], 0, apart([face for n in own for face in faces[n]]), rgb.shape)
                self._write(out[i], 1, [hand for n in own for hand in hands.get(n, [])], rgb.shape)
        return torch.from_numpy(out).half()

    def _person(self, row: int, pose: Pose, faces: Sequence[Found], hands: Sequence[Found], high: int) -> list[float]:
        hips, torso = trunk(pose)
        logit = float(self.head(torch.from_numpy(read_off(pose))[None])[0])
        best = [max((each.score for each in found), default=0.0) for found in (faces, hands)]
        return [row, pose.there, *best, hips[0] / high, hips[1] / high, torso / high, logit, bends(pose)]

    def _write(self, out: np.ndarray, part: int, found: Sequence[Found], shape: tuple[int, ...]) -> None:
        """part: 0 faces, 1 hands."""
        start = self.width - (2 - part) * MOST * 5
        size = np.array([shape[1], shape[0]] * 2)
        for i, each in enumerate(found[:MOST]):
            out[start + 5 * i : start + 5 * i + 5] = [each.score, *np.clip(np.array(each.box) / size, 0, 1)]

    def held(self, numbers: np.ndarray, times: np.ndarray, starts: np.ndarray) -> dict[str, np.ndarray]:
        """By posture: (F,) whether somebody is surely seen to hold it. numbers: (F, width); times: seconds of the
        frames; starts: those that begin a shot.

        Whether one who is on one's feet stands or walks is told by where the hips are a frame before and after.
        """
        persons = persons_in(numbers)
        there = (persons[..., 0] >= 0) & (persons[..., 1] >= POSE_FLOOR)
        bent = there & (persons[..., 8] > 0)
        up, speed = there & (persons[..., 7] >= self.upright) & ~bent, speeds(persons, there, times, starts)
        found = {
            "sitting": there & (persons[..., 7] <= SITS) & ~bent,
            "standing": up & (speed <= STAYS),
            "walking": up & (speed >= STEPS) & (speed < FAR),
            "bending": bent,
        }
        return {word: np.asarray(held.any(1)) for word, held in found.items()}

    def say(self, numbers: np.ndarray) -> list[tuple[str, float]]:
        """Postures held in more than half of the frames of a moment of one shot, a second apart, with their share."""
        held = self.held(numbers, np.arange(len(numbers), dtype=float), np.zeros(1, int))
        shares = {word: float(rows.mean()) for word, rows in held.items() if len(rows)}
        return sorted(((w, share) for w, share in shares.items() if share > 0.5), key=lambda each: -each[1])


def speeds(persons: np.ndarray, there: np.ndarray, times: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(F, LOOKED) torsos a second that the hips of each person move to the nearest person's of a neighbouring frame of
    the shot, the lesser of both neighbours; infinite where there is none."""
    speed = np.full(there.shape, np.inf)
    if len(times) < 2:
        return speed
    shots = np.searchsorted(starts, np.arange(len(times)), "right")
    hips = np.where(there[..., None], persons[..., 4:6], np.nan)
    away = np.linalg.norm(hips[:-1, :, None] - hips[1:, None], axis=-1)  # F - 1, of one frame, of the next one
    away = np.where(np.isnan(away), np.inf, away)
    away[shots[:-1] != shots[1:]] = np.inf
    took = np.diff(times).clip(1e-3)[:, None]
    torso = persons[..., 6].clip(1e-3)
    speed[:-1] = away.min(2) / took / torso[:-1]
    speed[1:] = np.minimum(speed[1:], away.min(1) / took / torso[1:])
    return speed


# --- in the index


def persons_in(numbers: np.ndarray) -> np.ndarray:
    """(F, LOOKED, 9): a detection's place (-1: nobody), pose, face, hand, hips' x and y and the torso in heights of the
    picture, the head's logit, whether one bends. numbers: (F, width)."""
    end = LOOKED * OF_A_PERSON
    return np.asarray(numbers, np.float32)[:, :end].reshape(len(numbers), LOOKED, OF_A_PERSON)


def detections_in(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Faces and hands as detections: kinds (F, 8), scores (F, 8), boxes (F, 8, 4) in shares; kind -1: none."""
    found = np.asarray(numbers, np.float32)[:, -2 * MOST * 5 :].reshape(len(numbers), 2 * MOST, 5)
    return np.where(found[..., 0] > 0, np.repeat([FACE, HAND], MOST), -1), found[..., 0], found[..., 1:]


def with_bodies(features: FrameFeatures, numbers: np.ndarray) -> FrameFeatures:
    """The detector's findings with faces and hands behind them; persons who are animals are half believed."""
    kinds, sure, places = (torch.from_numpy(each) for each in detections_in(numbers))
    scores = torch.from_numpy(believed(features, persons_in(numbers)))
    return features._replace(
        det_ids=torch.cat([features.det_ids, kinds.to(features.det_ids.dtype)], 1),
        det_scores=torch.cat([scores, sure], 1),
        det_boxes=torch.cat([features.det_boxes, places], 1),
    )


def believed(features: FrameFeatures, persons: np.ndarray) -> np.ndarray:
    """(F, 8) the detector's scores, at most DOUBT of persons without pose, face or hand who lie over an animal, or are
    the only thing there that may be the animal the classifier names.

    Of 94 "persons" in pictures of dogs alone 52 have none of the three, of 57 beside dogs 18 (training/README.md).
    """
    scores, boxes = features.det_scores.numpy().copy(), features.det_boxes.numpy()
    animals = np.isin(features.det_ids.numpy(), ANIMALS)
    unseen = (animal_share(features) >= ANIMAL) & ~animals.any(1)
    frames = np.arange(len(scores))
    for person in persons.swapaxes(0, 1):
        place = person[:, 0].astype(int)
        bare = (place >= 0) & (person[:, 1] < POSE_FLOOR) & (person[:, 2] <= 0) & (person[:, 3] <= 0)
        own = boxes[frames, place.clip(0)][:, None]
        over = animals & (_shared(own, boxes) >= OVER)
        doubted = frames[bare & (over.any(1) | unseen)]
        scores[doubted, place[doubted]] = np.minimum(scores[doubted, place[doubted]], DOUBT)
    return scores


def _shared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The part of the smaller of two boxes that lies in the other: (..., 4) -> (...)."""
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
    smaller = np.minimum((a[..., 2:] - a[..., :2]).prod(-1), (b[..., 2:] - b[..., :2]).prod(-1))
    return sides.prod(-1) / smaller.clip(1e-9)


def _largest(features: FrameFeatures, i: int, shape: tuple[int, ...]) -> list[tuple[int, Box]]:
    """The largest persons of a frame: their places among the detections, their boxes in pixels."""
    boxes = features.det_boxes[i].double() * torch.tensor([shape[1], shape[0]] * 2)
    rows = [row for row, kind in enumerate(features.det_ids[i].tolist()) if kind == PERSON]
    found = [(row, _box(boxes[row])) for row in rows]
    return sorted((each for each in found if _pixels(each[1]) > 0), key=lambda each: -_pixels(each[1]))[:LOOKED]


def _box(numbers: Tensor) -> Box:
    left, top, right, bottom = numbers.tolist()
    return left, top, right, bottom


def _pixels(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _palmed(box: Box, rgb: np.ndarray) -> bool:
    return box[3] - box[1] >= PALMED * rgb.shape[0]
