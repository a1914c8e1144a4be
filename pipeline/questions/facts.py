"""What towers and senses know of some frames, in words, each past a threshold that its file states. No questions here.

A word is said as a fact only from here; whoever has none says so. Frames are rows of an `Index`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from pipeline.clock import mmss
from pipeline.questions.index import Index
from pipeline.questions.notes import SEEN
from pipeline.questions.things import Things, named_things, vetted
from pipeline.senses.bodies import FACE, HAND
from pipeline.senses.colours import CENTRE, TERMS, WHOLE
from pipeline.senses.light import Light
from pipeline.senses.sensed import Senses
from pipeline.towers.frame_tower import FrameFeatures, labels
from pipeline.towers.nanodet import KEPT

GLIMPSE = 0.6  # how sure the towers must be of what one frame alone shows
LONG_TAKE = 15  # frames up to which a shot shows one scene
SHORT = 8  # frames of a video in which one frame is much
TOLD = 0.5  # score from which a detection is said as a fact; persons are seldom mistaken, so SEEN is enough
CLASS_SURE = 0.7  # mean probability from which an ImageNet class is said as a fact
GREY_SURE = 0.9  # the same in black and white, unlike what the classifier learnt: a brick wall is a maze at .83
GROUP_SURE = 0.5  # what the classes of one everyday word must add up to
VISITED = 0.25  # share of a shot with people from which their absence is worth a word
DOUBTED = 0.3  # score from which something may be there
COUNTED = 3  # of one kind in a picture, that are counted; of more there may be more
FEW = 0.1  # share of a colour up to which a thing does not have it
PEOPLE = Things((0,), ())
# Kinds that the towers see at least half in eight of ten pictures whose captions name them, so that "no" may be said;
# and such as lie about, small or in the background, and are missed more often than not (training/README.md).
SELDOM_MISSED = set(named_things("person dog car umbrella").coco)
MISSED = set(named_things("dining table, sports ball, chair, face, hand").coco)
PARTS = {"hand", "hands", "arm", "arms"}  # of a person: where one is, they mostly are
RIDDEN = {"cycling": named_things("bicycle motorcycle"), "riding": named_things("bicycle motorcycle horse elephant")}
HOUSEHOLD = named_things("tv couch bed toilet microwave oven toaster sink refrigerator")  # seen indoors
# Where something is, by the words of the places' head; its other words are no places.
AT = {
    "water": "by the water",
    "pool": "at a pool",
    "beach": "on a beach",
    "snow": "in snow",
    "street": "on a street",
    "grass": "on grass",
    "rocks": "among rocks",
    "mountain": "in the mountains",
    "sand": "on sand",
    "forest": "in a forest",
    "playground": "at a playground",
    "indoors": "indoors",
}
OUTSIDE = ("street", "beach", "snow", "grass", "mountain", "sand")  # of these words, never indoors
SOMEBODY = {"anybody", "anyone", "somebody", "someone", "everybody", "everyone", "nobody", "people", "persons"}
SOMEBODY |= {"somebody else", "visitor", "no one", "human"}
MANY = {
    "person": "people",
    "man": "men",
    "woman": "women",
    "child": "children",
    "knife": "knives",
    "sheep": "sheep",
    "couch": "couches",
    "bus": "buses",
    "bench": "benches",
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
# Everyday words for many classes, whose probabilities add up: a cat is a tabby, an Egyptian cat or a tiger cat.
GROUPS = ("dog", "cat", "bird", "fish", "snake", "monkey", "bear", "butterfly", "turtle", "rabbit", "flower", "rocket")
SUBSTANCES = {"water", "snow", "grass", "sand", "rocks", "indoors", "night"}  # words without "a"


def counted(word: str, number: int) -> str:
    """ "two dogs", "a cat"."""
    word = "person" if word in SOMEBODY else word
    if number == 1:
        return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"
    many = MANY.get(word, word if word.endswith("s") else word + "s")
    return f"{number_word(number)} {many}"


def number_word(number: int) -> str:
    """ "two"; in figures from nine on."""
    return NUMBERS[number] if number < len(NUMBERS) else str(number)


def tallied(word: str, number: int) -> str:
    """What the detector counted: of many it misses some, and those who stand close are one to it."""
    return ("at least " if number > COUNTED else "") + counted(word, number)


def joined(parts: Sequence[str], last: str = "and") -> str:
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}" if len(parts) > 1 else "".join(parts)


def surely(index: Index, frames: Sequence[int]) -> list[str]:
    """What the towers are sure of in some frames, counted: detections by the middle of their counts, then classes."""
    rows = list(frames)
    counts = [(labels()["coco"][i], int(np.ceil(np.median(n)))) for i, n in detected(index, rows)]
    classes = likely(index, rows)
    many = {word for word, number in counts if number > 1}
    classes = [word for word in classes if word.lower().split()[-1] not in many]  # "three bottles" are water bottles
    exact = {word.lower().split()[-1] for word in classes}  # "a coffee mug" needs no "a mug" beside it
    counts = [(word, number) for word, number in counts if number > 1 or (number and word not in exact)]
    said = [tallied(word, number) for word, number in sorted(counts, key=lambda item: -item[1])]
    words_of = " ".join(said).lower().split()
    return [*[counted(word, 1) for word in classes if word.lower() not in words_of], *said]


def detected(index: Index, rows: Sequence[int]) -> list[tuple[int, np.ndarray]]:
    """Kinds of things that the detector is sure of in most of some frames, or very sure of in one: (kind, how many)."""
    scores, ids, sure = _scored(index, rows)
    kinds = [int(i) for i in ids[sure].unique() if i not in (FACE, HAND)]  # whoever is seen has both
    found = [(i, (sure & (ids == i)).sum(1).numpy()) for i in kinds]
    often = len(rows) > 1 or len(index.times) < SHORT  # a cut's half-faded picture alone was "a dog and a frisbee"
    return [(i, n) for i, n in found if (often and (n > 0).mean() > 0.5) or scores[ids == i].max() >= GLIMPSE]


def shown_from(index: Index, frames: Sequence[int]) -> float:
    """The second from which a moment shows all things that are told of it, or the first of them.

    Its shot may begin before they come: "0:00 a person" was said of a room that was empty until 0:07.
    """
    if not (kinds := detected(index, frames)):
        return float(index.times[frames[0]])
    _, ids, sure = _scored(index, range(frames[0], frames[-1] + 1))
    shows = np.array([(sure & (ids == i)).any(1).numpy() for i, _ in kinds])
    there = shows.all(0) if shows.all(0).any() else shows.any(0)
    return float(index.times[frames[0] + int(there.argmax())])


def _scored(index: Index, frames: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores, kinds, and whether that is sure, (frames, KEPT) each, of what the detector found in some frames."""
    rows = list(frames)
    scores = vetted(FrameFeatures(*(column[rows] if len(column) else column for column in index.features)))
    ids = index.features.det_ids[rows]
    return scores, ids, scores >= torch.where(ids == PEOPLE.coco[0], SEEN, TOLD)


def likely(index: Index, rows: Sequence[int]) -> list[str]:
    """Everyday words whose classes add up, over the frames, to enough; ImageNet's own words where one alone is sure.

    A breed or a make is often the wrong one where the kind is right, so a word that has a group is said as the group.
    """
    classes, probs = index.features.classes[list(rows)], index.features.class_probs[list(rows)]
    means = {int(c): float((probs * (classes == c)).sum()) / len(classes) for c in classes.unique()}
    groups = {group: named_things(group).classes for group in GROUPS}
    said = [group for group, of in groups.items() if sum(means.get(c, 0.0) for c in of) >= GROUP_SURE]
    grouped = {c for of in groups.values() for c in of}
    least = GREY_SURE if grey(index, rows) else CLASS_SURE
    sure = sorted((c for c, mean in means.items() if mean >= least and c not in grouped), key=lambda c: -means[c])
    return said + [labels()["imagenet"][c] for c in sure]


def kinds_of(index: Index, group: Things, rows: Sequence[int]) -> list[str]:
    """Which of a group's kinds are seen: detections, else the class that holds most of what the group's add up to."""
    features, rows = index.features, list(rows)
    ids, scores = features.det_ids[rows], features.det_scores[rows]
    found = [labels()["coco"][i] for i in group.coco if (scores * (ids == i)).max() >= TOLD]
    means = {c: float((features.class_probs[rows] * (features.classes[rows] == c)).sum()) for c in group.classes}
    best = max(means, key=lambda c: means[c], default=None)
    if found or best is None or means[best] < SEEN * len(rows):
        return found
    return [labels()["imagenet"][best]] if means[best] >= sum(means.values()) / 2 else []


def grey(index: Index, rows: Sequence[int]) -> bool:
    """Whether the pictures are known to be black and white."""
    light = index.sensed.get("light")
    return light is not None and "black and white" in (word for word, _ in Light().say(light[list(rows)]))


def riding(ids: torch.Tensor, boxes: torch.Tensor, mounts: Things) -> bool:
    """Of one frame's detections: whether a person is above a mount and reaches down into it, over its middle."""
    mounted = torch.isin(ids, torch.tensor(mounts.coco, dtype=torch.long))
    return any(
        top < mount[1] + 0.3 * (mount[3] - mount[1])
        and bottom > mount[1]
        and left < mount[0] + 0.7 * (mount[2] - mount[0])
        and right > mount[0] + 0.3 * (mount[2] - mount[0])
        for left, top, right, bottom in boxes[ids == PEOPLE.coco[0]].tolist()
        for mount in boxes[mounted].tolist()
    )


def runs(index: Index, things: Things, least: float = SEEN) -> list[range]:
    """Stretches of frames in which the towers see one of the things, as sure as `least`; gaps of two frames are
    closed. A frame that is the only such one of its scene must be surer, as a cut.s half-faded first one is not."""
    shown = things.shown(index.features)
    if shown is None:
        return []
    hits = np.flatnonzero(shown >= least)
    if len(shown) >= SHORT:
        scene = np.searchsorted(index.starts, hits, "right") - 1
        lengths = np.diff([*index.starts, len(shown)])
        alone = (np.bincount(scene, minlength=len(lengths))[scene] == 1) & (lengths[scene] > 1)
        hits = hits[~alone | (shown[hits] >= GLIMPSE)]
    if not len(hits):
        return []
    parts = np.split(hits, np.flatnonzero(np.diff(hits) > 3) + 1)
    sure = [part for part in parts if len(part) > 1 or len(shown) < SHORT or shown[part[0]] >= GLIMPSE]
    return [range(int(part[0]), int(part[-1]) + 1) for part in sure]


def doubtful(index: Index, things: Things) -> bool:
    """Whether what is not seen may be there: the towers half see it in two frames one after the other, or it is a kind
    that they often miss, as all is that only the classifier knows."""
    if not things.coco or MISSED & set(things.coco):
        return True
    shown = things.shown(index.features)
    assert shown is not None  # of something
    half = shown >= DOUBTED
    return bool((half[1:] & half[:-1]).any())


def gaps(index: Index) -> list[range]:
    """Stretches of two frames or more, also of a whole short video, in which nobody is seen."""
    shown = PEOPLE.shown(index.features)
    assert shown is not None
    hits = np.flatnonzero(shown < DOUBTED)
    parts = [part for part in np.split(hits, np.flatnonzero(np.diff(hits) > 1) + 1) if len(part)]
    return [range(int(p[0]), int(p[-1]) + 1) for p in parts if len(p) > 1 or len(shown) < SHORT]


class Known:
    """What senses beyond the towers say of frames of an index."""

    def __init__(self, index: Index, senses: Senses):
        self.index, self.senses = index, senses

    def settings(self, rows: Sequence[int]) -> list[str]:
        """Places, settings and actions past their floors, surest first; those of people only where one is seen."""
        found = self.senses.settings(self.index.sensed, rows)
        found = [word for word in found if self.senses.alone(word) or self.there(PEOPLE, rows)]
        return [word for word in found if word not in RIDDEN or self.ridden(RIDDEN[word], rows)]

    def ridden(self, mounts: Things, rows: Sequence[int]) -> bool:
        """Whether in most of the frames a person sits where one of the mounts is: a bicycle that stands beside somebody
        is not ridden."""
        features = self.index.features
        hits = [riding(features.det_ids[row], features.det_boxes[row], mounts) for row in rows]
        return 2 * sum(hits) > len(hits)

    def there(self, things: Things, rows: Sequence[int]) -> bool:
        """Whether the towers see one of the things in most of the frames."""
        shown = things.shown(self.index.features)
        return shown is not None and bool(np.median(shown[list(rows)]) >= SEEN)

    def place(self, rows: Sequence[int]) -> str:
        """Where this is, if senses or things say so: "on a street", "indoors"."""
        said = [AT[word] for word in self.settings(rows) if word in AT]
        if said:
            return joined(said[:2])
        return "indoors" if self.there(HOUSEHOLD, rows) else ""

    def indoors(self, rows: Sequence[int]) -> list[int]:
        """Those of the frames that surely show what stands indoors."""
        shown = HOUSEHOLD.shown(self.index.features)
        return [row for row in rows if shown is not None and shown[row] >= TOLD]

    def outdoors(self, rows: Sequence[int]) -> bool:
        """Whether the setting of some frames is one that is never indoors."""
        return bool(set(OUTSIDE) & set(self.settings(rows)))

    def knows(self, word: str) -> bool:
        """Whether a word may be said of a setting."""
        return self.senses.places is not None and self.senses.places.says(word)

    def rows_of(self, word: str) -> list[int]:
        """Frames whose setting is said to be the word, in runs of two or more."""
        numbers = self.index.sensed.get("places")
        if self.senses.places is None or numbers is None:
            return []
        over = numbers[:, self.senses.places.words.index(word)].astype(float)
        maybe = np.flatnonzero(over >= self.senses.places.floors[self.senses.places.words.index(word)]).tolist()
        hits = [i for i in maybe if word in self.settings([i])]
        return [i for i in hits if i + 1 in hits or i - 1 in hits]

    def held(self, posture: str) -> list[int]:
        """Frames in which somebody surely holds a posture, in runs of two or more; one is enough of few."""
        index = self.index
        hits = self.senses.held(index.sensed, index.times, index.starts, posture).tolist()
        few = len(index.times) < SHORT
        near = set(hits)
        return [row for row in hits if few or row + 1 in near or row - 1 in near]

    def nobody(self, rows: Sequence[int]) -> bool:
        """Whether people were seen in the shot of these frames, and none in them."""
        shown = PEOPLE.shown(self.index.features)
        assert shown is not None
        shot = self.index.frames_of(self.index.shot_of(rows[0]))
        often = (shown[shot] >= SEEN).mean() >= VISITED  # a hand that reaches in now and then is no visit
        return bool(often and shown[shot].max() >= GLIMPSE and shown[list(rows)].max() < DOUBTED)

    def looks(self, rows: Sequence[int]) -> list[str]:
        """ "black and white" or "in colour", "black", "dark", "bright" or "white"."""
        return [word for word, _ in self.senses.looks(self.index.sensed, rows)]

    def blank(self, rows: Sequence[int]) -> str:
        """ "a black picture" or "a white picture", where there is nothing else."""
        return next((f"a {word} picture" for word in self.looks(rows) if word in ("black", "white")), "")

    def unsure(self, rows: Sequence[int]) -> str:
        """That it is not known what some frames show, with what the pixels tell."""
        looks = self.scenery(rows)
        return f"I am not sure what this is; the picture is {looks}." if looks else "I am not sure what this is."

    def scenery(self, rows: Sequence[int]) -> str:
        """What the pixels alone tell of a picture: "dark", "mostly green and white"."""
        looks = [word for word in self.looks(rows) if word in ("dark", "black and white")]
        hues = [] if looks else self.overall(rows)
        return joined(looks) or (f"mostly {joined(hues)}" if hues else "")

    def shares(self, things: Things, rows: Iterable[int]) -> np.ndarray:
        """(n, 11) colours of the surest detection of the things in each frame that has one; of what a class alone
        tells, of the frame's middle."""
        features, colours = self.index.features, self.index.sensed.get("colours")
        if colours is None:
            return np.zeros((0, len(TERMS)))
        # Faces and hands, behind the detector's own, are of no measured colour.
        ids, sure = features.det_ids[:, :KEPT].numpy(), features.det_scores[:, :KEPT].numpy() >= SEEN
        named, found = Things((), things.classes).shown(features), []
        for row in rows:
            wanted = np.flatnonzero(np.isin(ids[row], things.coco) & sure[row])
            if len(wanted):
                found.append(self.senses.colours.row(colours[row], int(wanted[0])))
            elif named is not None and named[row] >= GROUP_SURE:
                found.append(self.senses.colours.row(colours[row], CENTRE))
        return np.stack(found) if found else np.zeros((0, len(TERMS)))

    def colours(self, things: Things, rows: Iterable[int]) -> list[str]:
        """Colours of things (of people: of their clothes), the largest share first."""
        found = self.shares(things, rows)
        return [term for term, _ in self.senses.colours.named(found)] if len(found) else []

    def overall(self, rows: Sequence[int]) -> list[str]:
        """Colours of whole frames."""
        if "colours" not in self.index.sensed:
            return []
        return [term for term, _ in self.senses.colours.say(self.index.sensed["colours"][list(rows)], WHOLE)]


def named(word: str) -> str:
    """A thing as the detector knows it: whether a person is a man or a player it cannot tell."""
    return "person" if kind_of_person(word) else word


def kind_of_person(word: str) -> bool:
    """Whether it asks for more than that somebody is there."""
    return word not in SOMEBODY | {"person"} and named_things(word) == PEOPLE


def described(known: Known, rows: Sequence[int]) -> str:
    """What is seen in some frames: things, settings, that nobody is there, that they are black."""
    if blank := known.blank(rows):
        return blank
    said = surely(known.index, rows)[:4]
    said += [word for word in map(phrased, known.settings(rows)) if word not in said][: 5 - len(said)]
    if not known.nobody(rows):
        return joined(said)
    return f"nobody, only {joined(said)}" if said else "nobody"


def told(known: Known, rows: Sequence[int], wanted: Things | None) -> str:
    """What a listing says of a moment: of its frames, else of the whole of a short shot; of wanted things alone."""
    shot = known.index.frames_of(known.index.shot_of(rows[0]))
    for some in (rows, shot) if len(shot) <= LONG_TAKE else (rows,):
        seen = [w for w in surely(known.index, some) if wanted and wanted.shares(named_things(w), False)]
        if said := joined(seen) if wanted else described(known, some):
            return said
    return ""


def phrased(word: str) -> str:
    """A word of the places' head as something seen."""
    return word if word in SUBSTANCES or word.endswith("ing") or " " in word else counted(word, 1)


def listing(
    index: Index, moments: Sequence[tuple[float, Sequence[int]]], senses: Senses, wanted: Things | None = None
) -> list[str]:
    """A sentence for every moment the towers are sure of, "" for the others; all of one doubt if they are of none.

    Where most are unknown, that is said at the end. wanted: of what things alone ("Which animals?"), if of some.
    """
    known = Known(index, senses)
    seen = [told(known, frames, wanted) for _, frames in moments]
    said = [f"{mmss(time)} {words}." if words else "" for (time, _), words in zip(moments, seen)]
    if not any(said):
        return [f"{mmss(time)} {known.unsure(frames)}" for time, frames in moments]
    if 2 * seen.count("") > len(seen):
        last = max(i for i, sentence in enumerate(said) if sentence)
        said[last] += " Of the rest I am not sure."
    return said
