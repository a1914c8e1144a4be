"""Hand-made findings, scores and plans, so that the rules can be tried without weights or pixels."""

import numpy as np
import torch

from pipeline.questions.asked import parse
from pipeline.questions.index import Index
from pipeline.questions.locator import PLANS, Located
from pipeline.questions.notes import Verdict
from pipeline.questions.planner import Planner
from pipeline.towers.frame_tower import FrameFeatures, labels

COCO = {word: i for i, word in enumerate(labels()["coco"])}
IMAGENET = {word: i for i, word in enumerate(labels()["imagenet"])}
SURE = {"find": (1.0, 0.0, 0.0), "yesno": (1.0, 0.0, 0.0), "here": (1.0, 0.0, 0.0), "towers": (5.0, 1.5)}
QUARTERS = {"left": (0.0, 0.3, 0.2, 0.7), "right": (0.8, 0.3, 1.0, 0.7), "centre": (0.4, 0.4, 0.6, 0.6)}


def features(frames: int, detections: dict[int, list[tuple]] | None = None, classes: dict[int, tuple] | None = None):
    """Findings of `frames` frames: {frame: [(thing, score, place)]} and {frame: (ImageNet word, probability)}."""
    ids, scores = torch.full((frames, 8), -1), torch.zeros(frames, 8)
    boxes, probs = torch.zeros(frames, 8, 4), torch.zeros(frames, 5)
    named = torch.arange(5).repeat(frames, 1) + 900
    for frame, found in (detections or {}).items():
        for i, (thing, score, place) in enumerate(found):
            ids[frame, i], scores[frame, i] = COCO[thing], score
            boxes[frame, i] = torch.tensor(QUARTERS[place])
    for frame, (word, probability) in (classes or {}).items():
        named[frame, 0], probs[frame, 0] = IMAGENET[word], probability
    blank = torch.zeros(0)
    return FrameFeatures(blank, blank, named, probs, blank, ids, scores, boxes)


class HandMade:
    """Stand-in for the trained Locator: the score of a frame is its key's only number."""

    def scores(self, query, keys):
        return keys[None, :, 0]


def located(plan: str, nowhere: float = 0.0) -> Located:
    logits = torch.zeros(1, len(PLANS))
    logits[0, PLANS.index(plan)] = 1
    return Located(torch.ones(1, 1), logits, torch.tensor([nowhere]))


def index(scores, starts=(0,), seen: FrameFeatures | None = None) -> Index:
    """One frame a second."""
    keys = torch.tensor(scores, dtype=torch.float32)[:, None]
    return Index(np.arange(len(scores), dtype=float), keys, np.array(starts), seen or features(len(scores)))


def plan(name: str, idx: Index, text: str = "go on", calibration: dict = SURE, nowhere: float = 0.0) -> Verdict:
    return Planner(HandMade(), calibration).plan(parse(text, float(idx.times[-1])), located(name, nowhere), idx)


def shots(*scores_and_lengths) -> Index:
    """An index of shots given as (score of every frame, frames)."""
    scores = [s for s, n in scores_and_lengths for _ in range(n)]
    return index(scores, np.cumsum([0, *(n for _, n in scores_and_lengths)])[:-1])
