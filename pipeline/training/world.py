"""World: everything the captions of all pictures tell, read once into tables, so that making questions is lookups."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.training.data import Picture
from pipeline.training.phrases import PROPER, WORD, Concept, Phrase, Phrases, Verbs, concepts, label_phrase, plurals

COLORS = "black|white|brown|red|blue|green|yellow|orange|pink|purple|gray|grey|tan|golden"
WEAR = "shirt|t-shirt|jacket|coat|vest|dress|hat|cap|helmet|uniform|sweater|jersey|suit|costume|sweatshirt|scarf|skirt"
COLOR = rf"((?:(?:{COLORS}),? (?:and )?)?(?:{COLORS}))"
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
COUNTED = ("person", "dog", "man", "woman", "boy", "girl", "child", "horse", "bird", "cat", "bicycle", "cow")
# ImageNet's order of animals: first index, one past the last, and the thing it belongs to.
IMAGENET_ANIMALS = (
    (0, 7, "fish"),
    (7, 25, "bird"),
    (33, 38, "turtle"),
    (52, 69, "snake"),
    (80, 101, "bird"),
    (127, 147, "bird"),
    (151, 269, "dog"),
    (281, 286, "cat"),
    (294, 298, "bear"),
    (321, 327, "butterfly"),
    (330, 333, "rabbit"),
    (365, 385, "monkey"),
    (385, 387, "elephant"),
    (389, 398, "fish"),
    (0, 398, "animal"),
)
STOP_WORDS = """
a an the in on of is are to at and with his her it its their him them he she they by as for from into up down out
off over one some that this there while whilst another other others next which who what where near through being has
have had be been was were or but not no each both very about onto something doing does do all during against around
towards toward along across behind above under beside between past after before among nearby away back together
front side top end middle edge way set going making getting taking trying gets takes make get goes go like than own
itself himself herself themselves these those so just can will if when then outside inside several many
"""
STOP = frozenset(STOP_WORDS.split())


@dataclass(frozen=True)
class Fact:
    """Something sure about a picture. form: color, wear_color, wearing or how_many; names fill a question's blanks."""

    form: str
    names: dict[str, str]
    answer: str
    concept: int  # what the question is about, as an index into concepts()


def _agreed(found: list[str], least: int) -> str | None:
    """The only value of `found` if it was said at least `least` times, else None."""
    return found[0] if len(found) >= least and len(set(found)) == 1 else None


def _several(text: str, concept: Concept) -> bool:
    many = rf"\b({concept.plural}|two|three|both|several|group|another|other|couple)\b"
    return bool(re.search(many, text))


def color_facts(text: str, named: Sequence[int]) -> list[Fact]:
    """Colours of those animals among the `named` concepts that two captions agree on and none contradicts."""
    facts = []
    for i in named:
        concept = concepts()[i]
        if "animal" in concept.parents and re.search(rf"\b{concept.noun}\b", text) and not _several(text, concept):
            said = re.findall(rf"\b{COLOR} {concept.noun}\b", text)
            if color := _agreed(said, 2):
                facts.append(Fact("color", {"noun": concept.noun}, color.capitalize() + ".", i))
    return facts


def wear_facts(text: str, named: Sequence[int]) -> list[Fact]:
    """What the one person of a picture wears, and its colour where captions agree."""
    facts = []
    for i in named:
        concept = concepts()[i]
        if concept.noun not in ("man", "woman", "boy", "girl", "person", "child") or _several(text, concept):
            continue
        said = re.findall(
            rf"\b{concept.noun} (?:is )?(?:wearing|dressed in|in) (an? (?:[a-z-]+ ){{0,2}}(?:{WEAR}))\b", text
        )
        if said:
            facts.append(Fact("wearing", {"noun": concept.noun}, said[0].capitalize() + ".", i))
        pairs = {w: re.findall(rf"\b{COLOR} {w}\b", text) for w in WEAR.split("|") if said and f" {w}" in said[0]}
        for wear, colors in pairs.items():
            if color := _agreed(colors, 2):
                names = {"noun": concept.noun, "wear": wear}
                facts.append(Fact("wear_color", names, color.capitalize() + ".", i))
    return facts


def count_facts(captions: Sequence[str], named: Sequence[int]) -> list[Fact]:
    """How many people, dogs, ... where three captions give the same number (four for one) and none another."""
    facts = []
    for i in named:
        concept = concepts()[i]
        if concept.noun in COUNTED:
            counts = [n for c in captions if (n := _count(c.lower(), concept)) is not None]
            number = counts[0] if counts and len(set(counts)) == 1 else 0
            if number > 0 and len(counts) >= (4 if number == 1 else 3):
                word = ("One", "Two", "Three", "Four", "Five", "Six")[number - 1]
                answer = f"{word} {concept.noun if number == 1 else concept.plural}."
                facts.append(Fact("how_many", {"nouns": concept.plural}, answer, i))
    return facts


@cache
def _count_patterns(concept: Concept) -> tuple[re.Pattern, re.Pattern, re.Pattern]:
    many = "|".join(sorted({p for w in concept.words for p in plurals(w) if p != w and p in concept.words}))
    many += "|" + "|".join(
        concept.words & {"men", "women", "children", "people", "guys", "kids", "ladies", "puppies"} or {"#"}
    )
    one = "|".join(sorted(w for w in concept.words if not re.fullmatch(many, w)))
    numbered = re.compile(rf"\b({'|'.join(NUMBERS)}) (?:[a-z-]+ ){{0,3}}?({many})\b")
    unclear = (
        rf"group|crowd|couple|team|family|another|other|others|several|some|many|few|each|band|audience|pair|{many}"
    )
    return numbered, re.compile(rf"\b({unclear})\b"), re.compile(rf"\b({one})\b")


def _count(caption: str, concept: Concept) -> int | None:
    """The number of things a caption states: None if it names none, -1 if it is unclear."""
    numbered, unclear, one = _count_patterns(concept)
    if found := numbered.search(caption):
        rest = caption[: found.start()] + caption[found.end() :]
        return -1 if unclear.search(rest) or re.search(r"\band (an?|the|one) ", rest) else NUMBERS[found[1]]
    if unclear.search(caption):
        return -1
    singles = {m for m in one.findall(caption)}
    return None if not singles else 1 if len(singles) == 1 else -1


class World:
    """What is known about every picture.

    mentions: uint8 (P, C), how many captions name a concept (a class picture counts 5 for what its label says).
    maybe: bool (P, C), named at all or possible; False means its absence may be claimed for captioned pictures.
    vague: bool (P,), a class picture, of which only animals can be called absent.
    notes[p][k]: concept indices of caption k. phrases[p]: (k, Phrase) pairs. facts[p]: Fact list.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = tuple(pictures)
        self.concepts = concepts()
        self.number = {c.noun: i for i, c in enumerate(self.concepts)}
        self.asked = np.array([c.asked for c in self.concepts])
        self.is_animal = np.array(["animal" in (*c.parents, c.noun) for c in self.concepts])
        captions = [c for p in pictures for c in p.captions]
        self.phrase = Phrases(Verbs(captions))
        self._by_word = self._index()
        self._read()
        named = self.mentions[~self.vague] >= 2
        self.share = named.mean(0) if len(named) else np.zeros(len(self.concepts))
        words = {w for c in captions for w in WORD.findall(c.lower())}
        self.rare_label = np.array([bool(p.label and not set(WORD.findall(p.label.lower())) & words) for p in pictures])

    def _index(self) -> dict[str, tuple[list[int], list[int]]]:
        """word -> (concepts it names with their parents, concepts it leaves in doubt)."""
        named: dict[str, set[int]] = {}
        for i, concept in enumerate(self.concepts):
            for word in concept.words:
                named.setdefault(word, set()).update({i, *(self.number[p] for p in concept.parents)})
        doubted: dict[str, set[int]] = {}
        for i, concept in enumerate(self.concepts):
            for word in {w for d in concept.doubts for w in self.concepts[self.number[d]].words}:
                doubted.setdefault(word, set()).add(i)
        return {w: (sorted(named.get(w, ())), sorted(doubted.get(w, ()))) for w in named.keys() | doubted.keys()}

    def _read(self) -> None:
        size = (len(self.pictures), len(self.concepts))
        self.mentions, self.maybe = np.zeros(size, np.uint8), np.zeros(size, bool)
        self.vague = np.array([not p.captions for p in self.pictures])
        self.notes: list[list[np.ndarray]] = []
        self.phrases: list[list[tuple[int, Phrase]]] = []
        self.facts: list[list[Fact]] = []
        for p, picture in enumerate(self.pictures):
            self.notes.append([self._note(p, caption) for caption in picture.captions])
            self.phrases.append([(k, f) for k, c in enumerate(picture.captions) if (f := self.phrase(c))])
            self.facts.append(self._facts(p, picture.captions))
            if picture.label:
                self._read_label(p, picture)

    def _facts(self, p: int, captions: Sequence[str]) -> list[Fact]:
        """Facts about things at least two captions name."""
        named, text = np.flatnonzero(self.mentions[p] >= 2).tolist(), " ".join(captions).lower()
        return [*color_facts(text, named), *wear_facts(text, named), *count_facts(captions, named)]

    def _note(self, p: int, caption: str) -> np.ndarray:
        found, doubt = self.named(caption)
        self.mentions[p, found] += 1
        self.maybe[p, found] = self.maybe[p, doubt] = True
        return np.array(found, int)

    def named(self, text: str) -> tuple[list[int], list[int]]:
        """Concept indices (named, left in doubt) by a text, the named ones in the order of the text."""
        pairs = [self._by_word[w] for w in WORD.findall(text.lower()) if w in self._by_word]
        found = list(dict.fromkeys(i for named, _ in pairs for i in named))
        return found, sorted({i for _, doubt in pairs for i in doubt})

    def _read_label(self, p: int, picture: Picture) -> None:
        found = self.named(picture.label or "")[0]
        if picture.source == "imagenet":
            index = int(picture.name.split("_")[0])
            found += [self.number[name] for low, high, name in IMAGENET_ANIMALS if low <= index < high]
        found += [self.number[parent] for i in found for parent in self.concepts[i].parents]
        self.mentions[p, found] = 5
        self.maybe[p, found] = True

    def short(self, p: int) -> str:
        """The picture in few words, for lists: its shortest caption (or class), as the middle of a sentence."""
        if not self.pictures[p].captions:
            return self.label(p)
        text = min(self.pictures[p].captions, key=len)[:-1]
        return text if text.split()[0] in PROPER else text[0].lower() + text[1:]

    def label(self, p: int) -> str:
        """The class of a picture as a sentence says it: "a goldfish"."""
        return label_phrase(self.pictures[p].label or "")

    def absent(self, maybe: np.ndarray, vague: np.ndarray) -> np.ndarray:
        """Concepts (C,) that no picture of a video can hold, given its rows of `maybe` (S, C) and `vague` (S,)."""
        return self.asked & ~maybe.any(0) & (self.is_animal | (not vague.any()))


def _lemmas(pictures: Sequence[Picture]) -> dict[str, str]:
    """word -> its plain form, by rule: plurals to singular, verb forms to -ing; stop words are left out."""
    verbs = Verbs(c for p in pictures for c in p.captions)
    singular = {many: w for w in verbs.counts for many in plurals(w) if many != w and verbs.counts[many]}
    irregular = {"men": "man", "women": "woman", "children": "child", "people": "person"}
    plain = {}
    for word, count in verbs.counts.items():
        ing = verbs.third.get(word) or verbs.base.get(word) or ""
        verb = ing if verbs.counts[ing] > count / 2 else ""  # "hands" is a noun here, "runs" is not
        form = irregular.get(word) or verb or singular.get(word, word)
        if word not in STOP and len(word) > 1:
            plain[word] = form
    return plain


def caption_vocabulary(pictures: Sequence[Picture], size: int = 600) -> list[str]:
    """The `size` content words that name most pictures, most frequent first: nouns, -ing verbs, colours, places."""
    plain = _lemmas(pictures)
    counts: Counter[str] = Counter()
    for picture in pictures:
        words = {plain[w] for c in picture.captions for w in WORD.findall(c.lower()) if w in plain}
        counts.update(w for w in words if w not in STOP)
    return [w for w, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:size]]


def caption_words(pictures: Sequence[Picture], vocabulary: Sequence[str]) -> list[set[int]]:
    """For each picture the vocabulary indices its captions, or its class words, name."""
    plain, number = _lemmas(pictures), {w: i for i, w in enumerate(vocabulary)}
    texts = (" ".join((*p.captions, p.label or "")).lower() for p in pictures)
    return [{number[form] for w in WORD.findall(text) if (form := plain.get(w, w)) in number} for text in texts]
