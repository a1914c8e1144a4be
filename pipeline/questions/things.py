"""Things a question names, in the classes the towers know: "a puppy" is COCO's dog and ImageNet's 118 breeds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from pipeline.towers.frame_tower import FrameFeatures, labels

_SAME = {
    "person": "man men woman women boy girl child children kid people someone somebody human guy lady baby worker "
    "player pedestrian toddler adult visitor customer anyone anybody",
    "bicycle": "bike",
    "motorcycle": "motorbike",
    "sports ball": "ball",
    "tv": "television",
    "couch": "sofa",
    "cell phone": "phone smartphone",
    "dining table": "table",
    "potted plant": "plant",
    "airplane": "plane",
    "handbag": "purse",
    "cup": "mug",
    "teddy bear": "teddy",
    "mouse": "",
    "dog": "puppy",
    "cat": "kitten",
}
_KINDS = {
    "animal": "dog cat horse sheep cow bird elephant bear zebra giraffe",
    "vehicle": "car bus truck motorcycle",
    "vegetable": "broccoli carrot",
    "fruit": "banana apple orange",
    "furniture": "chair couch bed bench",
}
GROUPED = {*_KINDS, "bird", "dog", "cat", "fish", "flower"}  # words of which one may ask "which?"
_CLASSES = {  # ImageNet's order of animals: first class, one past the last
    "dog": ((151, 269),),
    "cat": ((281, 286),),
    "bird": ((7, 25), (80, 101), (127, 147)),
    "fish": ((0, 7), (389, 398)),
    "snake": ((52, 69),),
    "monkey": ((365, 385),),
    "bear": ((294, 298),),
    "butterfly": ((321, 327),),
    "turtle": ((33, 38),),
    "rabbit": ((330, 333),),
    "animal": ((0, 398),),
    "flower": ((985, 987),),
    "vegetable": ((936, 948),),
    "fruit": ((948, 958),),
}
_NAMES = {  # everyday words for classes of another name
    "rocket": "missile, projectile",
    "coffee": "espresso, cup",
    "lorry": "truck",
    "mobile": "cell phone",
    "mobile phone": "cell phone",
    "soldier": "person",
    "mice": "mouse",
    "aeroplane": "airplane",
    "sailor": "person",
}
_NOT_THINGS = {"screen", "stage", "web site", "mask", "ring"}  # words of questions more often than things


ANIMALS = range(14, 23)  # of COCO's categories: bird to zebra; ImageNet has no giraffe
ANIMAL_CLASSES = 398  # the first of ImageNet's
# ImageNet's kinds, where no word is shared.
KIN = {"horse": (339,), "sheep": (348, 349), "cow": (345, 346, 347), "elephant": (101, 385, 386)}


class Things(NamedTuple):
    """What a question names: COCO classes and ImageNet classes."""

    coco: tuple[int, ...]
    classes: tuple[int, ...]

    def __or__(self, other: Things) -> Things:
        """What either names."""
        return Things(*(tuple(sorted({*a, *b})) for a, b in zip(self, other)))

    def shares(self, other: Things, detected_only: bool) -> bool:
        """Whether both name the same thing, or one of its kinds. detected_only: among what the detector finds."""
        return bool(set(self.coco) & set(other.coco) or (not detected_only and set(self.classes) & set(other.classes)))

    def shown(self, features: FrameFeatures) -> np.ndarray | None:
        """(F,) 0..1, how surely the towers see one of the things in each frame; None if the question names nothing."""
        if not self.coco and not self.classes:
            return None
        found = torch.isin(features.det_ids, torch.tensor(self.coco, dtype=torch.long))
        scores = vetted(features) if set(self.coco) & set(ANIMALS) else features.det_scores
        seen = (scores * found).amax(1)
        named = torch.isin(features.classes, torch.tensor(self.classes, dtype=torch.long))
        return torch.maximum(seen, (features.class_probs * named).sum(1)).double().numpy()


def vetted(features: FrameFeatures) -> torch.Tensor:
    """(F, 8) scores of the detections, those of animals no more than what the classifier leaves for them: the detector
    takes dogs for cows, birds and cats, the classifier knows a hundred kinds of them."""
    scores, animal = features.det_scores, (features.class_probs * (features.classes < ANIMAL_CLASSES)).sum(1)
    for kind in set(features.det_ids.unique().tolist()) & set(ANIMALS):
        own = (features.class_probs * torch.isin(features.classes, torch.tensor(kinds_of_animal(kind)))).sum(1)
        left = 1 - (animal - own).clamp(min=0)
        scores = torch.where(features.det_ids == kind, torch.minimum(scores, left[:, None]), scores)
    return scores


@cache
def kinds_of_animal(coco: int) -> tuple[int, ...]:
    """ImageNet's classes of one of COCO's animals."""
    word = labels()["coco"][coco]
    return (*KIN.get(word, ()), *_lexicon()[word][1])


@cache
def _lexicon() -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Word or phrase -> (COCO classes, ImageNet classes)."""
    coco = {word: i for i, word in enumerate(labels()["coco"])}
    found: dict[str, tuple[set[int], set[int]]] = {}
    for word, i in coco.items():
        for name in [word, *_SAME.get(word, "").split()]:
            found.setdefault(name, (set(), set()))[0].add(i)
    for word, parts in _KINDS.items():
        found.setdefault(word, (set(), set()))[0].update(coco[p] for p in parts.split())
    for i, word in enumerate(labels()["imagenet"]):
        found.setdefault(word.lower(), (set(), set()))[1].add(i)
    for word, ranges in _CLASSES.items():
        found.setdefault(word, (set(), set()))[1].update(i for low, high in ranges for i in range(low, high))
    for word, parts in _NAMES.items():
        known = found.setdefault(word, (set(), set()))
        for part in parts.split(", "):
            for mine, theirs in zip(known, found[part]):
                mine |= theirs
    return {w: (tuple(sorted(a)), tuple(sorted(b))) for w, (a, b) in found.items() if w not in _NOT_THINGS}


_SMALL = frozenset(
    re.findall(
        r"\w+",
        """
    a an the is are was were be been do does did has have had there here it this that these those any some and or of in
    on at to by for with you i we he she they see seen saw can could show shown appear visible picture video clip film
    screen so far ever now yet anywhere somewhere please both same time together also too right not no one
""",
    )
)  # words that ask for nothing beyond the things beside them


def named_things(text: str) -> Things:
    """The things a question names, in the towers' own classes: longest phrases first, plurals allowed."""
    coco: set[int] = set()
    classes: set[int] = set()
    for _, things in each_thing(text):
        coco.update(things.coco)
        classes.update(things.classes)
    return Things(tuple(sorted(coco)), tuple(sorted(classes)))


def each_thing(text: str) -> list[tuple[str, Things]]:
    """Every thing a question names, by itself: [("dog", ...), ("hot dog", ...)]."""
    return [(word, Things(*entry)) for word, entry in _phrases(text) if entry]


def unnamed(text: str) -> tuple[str, ...]:
    """The words of a question that ask for more than the things it names: ("red",) of "Is there a red car?"."""
    return tuple(word for word, entry in _phrases(text) if not entry and word not in _SMALL)


_FILLED = re.compile(r"\b(glass|bottle|bowl) of (beer|wine|water|pop|soda|soup)\b")  # as the towers name them


def _phrases(text: str) -> Iterator[tuple[str, tuple[tuple[int, ...], tuple[int, ...]] | None]]:
    text = _FILLED.sub(r"\2 \1", text.lower())
    words_of, i = re.findall(r"[a-z]+", text), 0
    while i < len(words_of):
        for size in (3, 2, 1):
            phrase = " ".join(words_of[i : i + size])
            forms = (phrase, phrase.removesuffix("s"), phrase.removesuffix("es"), re.sub("ies$", "y", phrase))
            known = next((form for form in forms if form in _lexicon()), None)
            if len(words_of) - i >= size and known:
                yield known, _lexicon()[known]
                break
        else:
            size = 1
            yield words_of[i], None
        i += size
