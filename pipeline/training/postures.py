"""Train the head that tells who sits from who stands: `python -m pipeline.training.postures --data DIR`.

One JSON line last. A picture of Flickr8k shows somebody on their feet where two of its five captions say so (they
stand, walk, run) and none says that anybody sits, lies or kneels; and somebody who sits the other way round. The pose
is that of the largest person the detector finds. The floor is the logit past which PRECISION holds on training
pictures, each scored by a head that was trained without it. Figures: dev and test pictures, which took no part. The
pictures are squashed to a square, so poses are learnt stretched sideways as well.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.assets import ASSETS
from pipeline.senses.bodies import POSE_FLOOR, SITS, UprightHead, read_off
from pipeline.senses.places import NEVER
from pipeline.towers.bodies import BodyTower, Box, Pose, square_of
from pipeline.towers.frame_tower import FrameTower
from pipeline.training.data import Picture, pictures, read_all
from pipeline.training.places import auc

LOW = r"\b(sits?|sitting|seated|sat|kneel\w*|crouch\w*|squat\w*|lies|lying|lays|laying|asleep|sleep\w*)\b"
HIGH = r"\b(stands?|standing|walks?|walking|runs?|running|strolls?|strolling|jogs?|jogging)\b"
PRECISION, LEAST_HITS, FOLDS, STEPS, RATE = 0.95, 15, 5, 300, 1e-2
STRETCHED = (0.8, 1.0, 1.3)  # sideways
MOST = 700  # pictures of either that are learnt from
CHUNK = 32  # pictures a run of the towers


def target(picture: Picture) -> int:
    """1: on their feet, 0: sitting, -1: not known."""
    low, high = (sum(bool(re.search(words, line.lower())) for line in picture.captions) for words in (LOW, HIGH))
    return 1 if high >= 2 and not low else 0 if low >= 2 and not high else -1


def chosen(flickr: Sequence[Picture]) -> list[Picture]:
    """All dev and test pictures, and of the others up to MOST of each posture."""
    learnt = [picture for picture in flickr if picture.split == "train"]
    some = [picture for posture in (0, 1) for picture in [p for p in learnt if target(p) == posture][:MOST]]
    return some + [picture for picture in flickr if picture.split != "train"]


def largest(ids: Tensor, boxes: Tensor, side: int) -> Box | None:
    """The box in pixels of the largest person of one picture, if there is one."""
    persons = (boxes[ids == 0] * side).tolist()
    return max(map(tuple, persons), key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), default=None)


@torch.no_grad()
def poses(rgbs: Sequence[np.ndarray], tower: FrameTower, bodies: BodyTower) -> list[Pose | None]:
    """Of every picture's largest person; None where nobody, or no body, is seen."""
    found: list[Pose | None] = []
    for start in range(0, len(rgbs), CHUNK):
        some = rgbs[start : start + CHUNK]
        _, ids, _, boxes = tower.detect(some)
        people = [largest(ids[i], boxes[i], len(some[i])) for i in range(len(some))]
        parts = [(rgb, square_of(box, "pose")) for rgb, box in zip(some, people, strict=True) if box]
        seen = iter(bodies.poses(parts))
        these = [next(seen) if box else None for box in people]
        found += [pose if pose and pose.there >= POSE_FLOOR else None for pose in these]
    return found


def read(some: Sequence[Pose], stretch: float = 1.0) -> Tensor:
    """(N, 23) what the head reads of poses that are so many times as wide."""
    wide, metres = np.array([stretch, 1.0]), np.array([stretch, 1.0, 1.0])
    return torch.from_numpy(
        np.stack([read_off(pose._replace(points=pose.points * wide, world=pose.world * metres)) for pose in some])
    )


def train(some: Sequence[Pose], targets: np.ndarray, seed: int = 0) -> UprightHead:
    torch.manual_seed(seed)
    inputs = torch.cat([read(some, stretch) for stretch in STRETCHED])
    wanted = torch.from_numpy(np.tile(targets, len(STRETCHED))).float()
    head = UprightHead().train()
    head.get_buffer("mean").copy_(inputs.mean(0))
    head.get_buffer("scale").copy_(inputs.std(0) + 1e-3)
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(head(inputs), wanted).backward()
        optimizer.step()
    return head.eval()


def out_of_fold(some: Sequence[Pose], targets: np.ndarray) -> np.ndarray:
    """(N,) logits, each by a head that was trained without it."""
    out = np.zeros(len(some), np.float32)
    for fold in range(FOLDS):
        away = np.arange(len(some)) % FOLDS == fold
        head = train([pose for pose, out_of in zip(some, away, strict=True) if not out_of], targets[~away])
        with torch.no_grad():
            out[away] = head(read([pose for pose, out_of in zip(some, away, strict=True) if out_of])).numpy()
    return out


def floor_of(scores: np.ndarray, yes: np.ndarray) -> float:
    """The lowest score past which PRECISION holds; NEVER where too few lie past it."""
    order = np.argsort(-scores)
    precision = np.cumsum(yes[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(precision >= PRECISION)
    enough = len(good) and yes[order][: good[-1] + 1].sum() >= LEAST_HITS
    return round(float(scores[order[good[-1]]]), 3) if enough else NEVER


def report(logits: np.ndarray, targets: np.ndarray, upright: float) -> dict[str, Any]:
    """How often each is said, how often wrongly, and of how many; `unknown`: of pictures whose captions say neither."""
    known = targets >= 0
    table: dict[str, Any] = {"auc": round(auc(logits[known], targets[known] == 1), 3)}
    for word, said, yes in (
        ("sitting", logits <= SITS, targets == 0),
        ("upright", logits >= upright, targets == 1),
    ):
        table[word] = {
            "with": int(yes.sum()),
            "found": int((said & yes).sum()),
            "without": int((known & ~yes).sum()),
            "false": int((said & known & ~yes).sum()),
            "unknown": int((~known).sum()),
            "said of unknown": int((said & ~known).sum()),
        }
    return table


def keep(head: UprightHead, upright: float, out: Path) -> None:
    """Into bodies.json and bodies.safetensors, beside the networks."""
    path = out / "bodies.safetensors"
    others = {k: w.clone() for k, w in load_file(path).items() if not k.startswith("head.")}
    save_file(others | {f"head.{k}": w.contiguous() for k, w in head.state_dict().items()}, path)
    described = json.loads((out / "bodies.json").read_text(encoding="utf-8"))
    described["upright"] = upright
    (out / "bodies.json").write_text(json.dumps(described, separators=(",", ":")) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ASSETS)
    args = parser.parse_args()
    some = chosen([picture for picture in pictures(args.data) if picture.source == "flickr"])
    found = poses(read_all(args.data, some), FrameTower.load(), BodyTower.load(args.out))
    seen = [(pose, target(picture), picture.split == "train") for pose, picture in zip(found, some) if pose]
    learnt, wanted = [pose for pose, _, own in seen if own], np.array([t for _, t, own in seen if own])
    upright = floor_of(out_of_fold(learnt, wanted), wanted == 1)
    head = train(learnt, wanted)
    keep(head, upright, args.out)
    apart, truth = [pose for pose, _, own in seen if not own], np.array([t for _, t, own in seen if not own])
    with torch.no_grad():
        table = report(head(read(apart)).numpy(), truth, upright)
    print(json.dumps({"learnt": len(learnt), "apart": len(apart), "upright": upright, **table}))


if __name__ == "__main__":
    main()
