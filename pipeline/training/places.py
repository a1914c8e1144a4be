"""Train the sense of places, settings and actions: `python -m pipeline.training.places --data DIR`. One JSON line last.

Targets are words of Flickr8k's captions: positive where two of five captions name one, negative where none does, left
out in between. Class pictures (ImageNet, Caltech-101) are negatives where their class rules a word out. A word's floor
is the lowest one that keeps three promises on pictures its head never saw: PRECISION on Flickr8k's training pictures,
each scored by a head trained without it; at most FALSE_ALARMS of the class pictures that rule the word out; and at most
COMMON of all class pictures, which are unlike Flickr's. A word with too few hits past its floor is never said.
Figures: Flickr8k's dev and test pictures, which took no part.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pipeline.senses.places import NEVER, PlacesHead
from pipeline.towers.frame_tower import ASSETS, FrameTower
from pipeline.training.data import Picture, pictures, read_all
from pipeline.training.features import CLASSIFIER, batches, draw, render

PRECISION, FALSE_ALARMS, COMMON, LEAST_HITS, FOLDS = 0.85, 0.01, 0.03, 20, 3
VIEWS, EPOCHS, BATCH, RATE = 4, 12, 256, 2e-3

PLACES = {
    "water": "water|ocean|sea|lake|river|pool|waves?|surf|pond|stream|creek",
    "pool": "pools?",
    "beach": "beach|shore",
    "waves": "waves?|surf",
    "snow": "snow|snowy|snow-covered",
    "street": "streets?|roads?|sidewalk|crosswalk",
    "city": "city|urban|downtown",
    "building": "buildings?|house|storefront|shop|store",
    "grass": "grass|grassy|lawn",
    "field": "fields?|meadow",
    "forest": "forest|woods|wooded|trees",
    "trees": "trees?",
    "rocks": "rocks?|rocky|boulders?",
    "mountain": "mountains?|mountainside|cliff|hill",
    "sand": "sand|sandy|beach",
    "desert": "desert|dunes?",
    "park": "park|playground",
    "playground": "playground|slide|swings?",
    "track": "track|racetrack",
    "sky": "sky|skies",
    "indoors": "indoors?|inside|room|kitchen|couch|sofa|carpet|bed|bedroom|living room|office|hallway",
    "kitchen": "kitchen|stove|oven|sink",
    "bedroom": "bed|bedroom",
    "restaurant": "restaurant|cafe|bar|diner",
    "stage": "stage|concert|microphone",
    "wall": "walls?|graffiti",
    "stairs": "stairs?|steps|staircase",
    "fence": "fence",
    "bridge": "bridge",
    "boat": "boats?|canoe|kayak|raft|sailboat",
    "table": "tables?",
    "night": "night|nighttime|dark",
    "crowd": "crowds?|crowded|audience|spectators",
}
ACTIONS = {
    "sitting": "sits?|sitting|seated|sat",
    "standing": "stands?|standing",
    "walking": "walks?|walking",
    "running": "runs?|running|sprint(s|ing)",
    "jumping": "jumps?|jumping|leap(s|ing)",
    "swimming": "swims?|swimming|swimmers?",
    "surfing": "surf(s|ing|er|ers|board)?",
    "climbing": "climb(s|ing|er|ers)?",
    "riding": "rides?|riding|rider",
    "cycling": "bikes?|bicycles?|cyclists?|bicyclists?|biking|biker",
    "skateboarding": "skateboard(s|ing|er|ers)?",
    "skiing": "ski(s|ing|er|ers)?|snowboard(s|ing|er|ers)?",
    "playing soccer": "soccer",
    "playing football": "football",
    "playing basketball": "basketball",
    "playing baseball": "baseball",
    "dancing": "danc(e|es|ing|er|ers)",
    "eating": "eat(s|ing)?",
    "smiling": "smil(e|es|ing)",
    "sleeping": "sleep(s|ing)?|asleep",
    "holding": "hold(s|ing)?",
    "playing music": "guitars?|drums?|piano|violin|musicians?|band",
    "hiking": "hik(e|es|ing|er|ers)",
    "a race": "race|racing|racer",
}
PERSONS = {
    "man": "man|men|guy",
    "woman": "woman|women|lady|ladies",
    "child": "child|children|kids?|boys?|girls?|toddler|baby",
    "helmet": "helmets?",
    "hat": "hats?|cap",
    "suit": "suits?",
    "sunglasses": "sunglasses",
}
WORDS = PLACES | ACTIONS | PERSONS
NEED_A_PERSON = (*PERSONS, *(word for word in ACTIONS if word not in ("running", "jumping", "swimming", "standing")))

# What a class rules out. ImageNet's order: animals come first, then things, food from 924, landscapes from 970 to 980.
OUTDOORS = (
    "pool",
    "beach",
    "waves",
    "snow",
    "street",
    "city",
    "grass",
    "field",
    "forest",
    "rocks",
    "mountain",
    "sand",
    "desert",
    "park",
    "playground",
    "track",
)
INDOORS = ["indoors", "kitchen", "bedroom", "restaurant", "stage", "stairs", "table"]
HOUSEHOLD = re.compile(
    r"microwave|toaster|refrigerator|dishwasher|stove|washer|desk|keyboard|\bmouse\b|printer|monitor|television|lamp"
    r"|bookcase|wardrobe|pillow|quilt|crib|cradle|toilet|bathtub|washbasin|shower|soap|coffee|espresso|plate rack|modem"
    r"|laptop|notebook|remote|file|chiffonier|medicine chest|china cabinet|entertainment|dining|couch|rocking chair"
    r"|window shade|library|bookshop|barber|grocery|butcher|tobacco|shoe shop|toyshop|confectionery|bakery|loudspeaker"
    r"|stapler|headphone|cell ?phone|grand piano|metronome|chair|watch|dollar|euphonium|accordion|scissors|calculator"
)


def ruled_out(picture: Picture) -> set[str]:
    """Words the class of a picture (not of Flickr8k) rules out."""
    label = picture.label or ""
    number = int(picture.name.split("_")[0]) if picture.source == "imagenet" else None
    food = number is not None and 924 <= number <= 969
    if food or HOUSEHOLD.search(label.lower()):
        return {*OUTDOORS, "boat", "bridge", "crowd", *NEED_A_PERSON} - {
            "holding",
            "sitting",
            "eating",
            "smiling",
            "hat",
        }
    if number is not None and number < 398:
        return set(NEED_A_PERSON) - {"sitting", "sleeping", "eating", "holding"}
    if number is not None and 970 <= number <= 980:
        return {*INDOORS, "playground", "track", "pool", "suit", "sunglasses", "smiling"}
    return set()


def target(picture: Picture) -> Tensor:
    """(words,) 1 yes, 0 no, -1 not known."""
    if picture.source != "flickr":
        out = ruled_out(picture)
        return torch.tensor([0.0 if word in out else -1.0 for word in WORDS])
    text = [caption.lower() for caption in picture.captions]
    hits = [sum(bool(re.search(rf"\b({pattern})\b", line)) for line in text) for pattern in WORDS.values()]
    return torch.tensor([1.0 if n >= 2 else 0.0 if n == 0 else -1.0 for n in hits])


@torch.no_grad()
def features(rgb: list[np.ndarray], tower: FrameTower, device: str, views: int) -> tuple[Tensor, Tensor]:
    """grid (N, views, 9, 1280) and pooled (N, views, 1280), float16 on the device. View 0 is the clean picture."""
    dice, grids, pools = torch.Generator().manual_seed(0), [], []
    for some in batches(rgb, 64):
        crops, flips, lights = (each.to(device) for each in draw(len(some), max(views, 2), dice))
        seen = render(some.to(device).permute(0, 3, 1, 2).float(), crops, flips, lights, CLASSIFIER)
        grid, pooled, *_ = tower.classify(seen)
        grids.append(grid.half().unflatten(0, (len(some), -1))[:, :views])
        pools.append(pooled.half().unflatten(0, (len(some), -1))[:, :views])
    return torch.cat(grids), torch.cat(pools)


def train(grid: Tensor, pooled: Tensor, targets: Tensor, seed: int = 0) -> PlacesHead:
    """On all views; a masked cross-entropy."""
    torch.manual_seed(seed)
    head = PlacesHead(len(WORDS)).to(grid.device).train()
    optimizer = torch.optim.AdamW(head.parameters(), RATE, weight_decay=0.05)
    count, views = grid.shape[:2]
    steps = EPOCHS * -(-count // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(count).split(BATCH):
            view = torch.randint(views, (len(rows),))
            wanted = targets[rows].to(grid.device)
            logits = head(grid[rows, view], pooled[rows, view])
            loss = F.binary_cross_entropy_with_logits(logits, wanted.clamp(min=0), reduction="none")
            loss = (loss * (wanted >= 0)).sum() / (wanted >= 0).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.no_grad()
def scores(head: PlacesHead, grid: Tensor, pooled: Tensor) -> np.ndarray:
    """(N, words) logits of the clean pictures."""
    some = zip(grid.split(512), pooled.split(512), strict=True)
    return torch.cat([head(g[:, 0], p[:, 0]) for g, p in some]).cpu().numpy()


def out_of_fold(grid: Tensor, pooled: Tensor, targets: Tensor, learnt: np.ndarray) -> np.ndarray:
    """(N, words) logits of the pictures `learnt`, each by a head that was trained without it; else 0."""
    out = np.zeros((len(grid), len(WORDS)), np.float32)
    for fold in range(FOLDS):
        away, rest = learnt[fold::FOLDS], np.setdiff1d(learnt, learnt[fold::FOLDS])
        head = train(grid[rest], pooled[rest], targets[rest])
        out[away] = scores(head, grid[away], pooled[away])
    return out


def auc(scores: np.ndarray, yes: np.ndarray) -> float:
    """Chance that a positive scores above a negative."""
    ranks = scores.argsort().argsort() + 1.0
    n = yes.sum()
    return float((ranks[yes].sum() - n * (n + 1) / 2) / (n * (len(yes) - n)))


def floor_of(scores: np.ndarray, yes: np.ndarray, unlike: np.ndarray, others: np.ndarray) -> float:
    """The lowest logit past which PRECISION holds among `scores` FALSE_ALARMS of `unlike`, COMMON of `others` lie."""
    order = np.argsort(-scores)
    precision = np.cumsum(yes[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(precision >= PRECISION)
    if not len(good) or yes[order][: good[-1] + 1].sum() < LEAST_HITS:
        return NEVER
    floor = float(scores[order[good[-1]]])
    floor = max(floor, float(np.quantile(others, 1 - COMMON)))
    floor = max(floor, float(np.quantile(unlike, 1 - FALSE_ALARMS))) if len(unlike) else floor
    return floor if (scores[yes] >= floor).sum() >= LEAST_HITS else NEVER


def report(logits: np.ndarray, targets: np.ndarray, floors: np.ndarray) -> dict[str, Any]:
    """Per word: AUC, precision and recall past its floor, and how many positives there are."""
    out = {}
    for i, word in enumerate(WORDS):
        known = targets[:, i] >= 0
        yes, scores = targets[known, i] == 1, logits[known, i]
        said = scores >= floors[i]
        out[word] = {
            "auc": round(auc(scores, yes), 3) if 0 < yes.sum() < len(yes) else None,
            "positives": int(yes.sum()),
            "said": int(said.sum()),
            "precision": round(float(yes[said].mean()), 3) if said.any() else None,
            "recall": round(float(said[yes].mean()), 3) if yes.any() else None,
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    began = time.monotonic()
    found = pictures(args.data)
    tower = FrameTower.load(device=args.device)
    grid, pooled = features(read_all(args.data, found), tower, args.device, VIEWS)
    targets = torch.stack([target(p) for p in found])
    part = np.array([p.split if p.source == "flickr" else f"{p.source} {p.split}" for p in found])
    # Half of the class pictures is trained on, the other half sets the floors: ImageNet has one picture a class.
    classes, even = ~np.isin(part, ("train", "dev", "test")), np.arange(len(found)) % 2 == 0
    learnt = np.flatnonzero((part == "train") | (classes & even))
    head = train(grid[learnt], pooled[learnt], targets[learnt])
    logits, unseen = scores(head, grid, pooled), out_of_fold(grid, pooled, targets, learnt)
    wanted, kept = targets.numpy(), np.flatnonzero(np.isin(part, ("dev", "test")))
    flickr, unlike = learnt[part[learnt] == "train"], classes & ~even
    floors = np.array(
        [
            floor_of(
                unseen[flickr][wanted[flickr, i] >= 0, i],
                wanted[flickr][wanted[flickr, i] >= 0, i] == 1,
                logits[unlike & (wanted[:, i] == 0), i],
                logits[unlike, i],
            )
            for i in range(len(WORDS))
        ]
    )
    save_file({k: w.cpu().half().contiguous() for k, w in head.state_dict().items()}, args.out / "places.safetensors")
    config = {"words": list(WORDS), "floors": [round(float(f), 3) for f in floors], "people": list(NEED_A_PERSON)}
    (args.out / "places.json").write_text(json.dumps(config) + "\n")
    table = report(logits[kept], wanted[kept], floors)
    for word, row in table.items():
        print(word, row)
    said = sum(r["said"] for r in table.values())
    right = sum((r["precision"] or 0) * r["said"] for r in table.values())
    aucs = [r["auc"] for r in table.values() if r["auc"] is not None]
    print(
        json.dumps(
            {
                "words": len(WORDS),
                "sayable": int((floors < NEVER).sum()),
                "mean_auc": round(float(np.mean(aucs)), 3),
                "precision": round(right / max(said, 1), 3),
                "said_a_picture": round(said / len(kept), 2),
                "pictures": len(kept),
                "seconds": round(time.monotonic() - began),
            }
        )
    )


if __name__ == "__main__":
    main()
