"""Words: the things captions name, how questions are worded, and captions turned into phrases a question can borrow.

The lists are plain text beside this file: concepts.txt, wordings.txt and wordings_test.txt, each explained at its top.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
WORD = re.compile(r"[a-z][a-z-]*")
PLURAL_LABELS = re.compile(r"(sunglasses|glasses|binoculars|headphones|scissors|pants|jeans|maracas|trunks)$")
MASS_LABELS = re.compile(
    r"(paper|ice cream|mashed potato|guacamole|consomme|dough|velvet|wool|broccoli|espresso|food)$"
)


@dataclass(frozen=True)
class Concept:
    """A thing captions name. one: "a dog"; noun, plural: "dog", "dogs". asked: may stand alone in a question."""

    noun: str
    plural: str
    one: str
    asked: bool
    words: frozenset[str]
    parents: tuple[str, ...]
    doubts: tuple[str, ...]


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return ("an " if noun[0].lower() in "aeiou" and not noun.lower().startswith("uni") else "a ") + noun


def plurals(word: str) -> set[str]:
    """A word and its regular plural."""
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return {word, word[:-1] + "ies"}
    return {word, word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")}


def _concept(line: str) -> Concept:
    head, words = line.split(": ", 1)
    head, _, doubts = head.partition(" ? ")
    head, _, parents = head.partition(" > ")
    found = re.match(r'([~-]*) ?(?:"(.+)" )?(.*)', head.strip())
    assert found is not None  # every part may be empty
    flags, said, name = found.groups()
    noun, _, plural = name.replace("_", " ").partition("/")
    one = said or (noun if "-" in flags else article(noun))
    all_words = frozenset(itertools.chain.from_iterable(plurals(w) for w in words.split()))
    return Concept(noun, plural or noun, one, "~" not in flags, all_words, _names(parents), _names(doubts))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.replace("_", " ") for name in text.split())


@cache
def concepts() -> tuple[Concept, ...]:
    """Everything in concepts.txt, in its order."""
    lines = (HERE / "concepts.txt").read_text(encoding="utf-8").splitlines()
    return tuple(_concept(line) for line in lines if line and not line.startswith("#"))


def expand(line: str) -> list[str]:
    """All wordings of a line with (a|b) choices."""
    found = re.search(r"\(([^()]*\|[^()]*)\)", line)
    if not found:
        return [re.sub(r"\s+(?=[?.!,]|'s\b)", "", re.sub(r"\s+", " ", line)).strip()]
    before, after = line[: found.start()], line[found.end() :]
    return [text for choice in found[1].split("|") for text in expand(before + choice + after)]


@cache
def wordings(split: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """section -> lines -> wordings.

    split: "train"; "dev", every fifth line, which training never sees; or "test", by somebody who knew neither the
    planner's rules nor its mistakes (small talk and refusals are those of "dev").
    """
    kept = {
        name: [line for i, line in enumerate(lines) if name == "refusals" or (i % 5 != 4) == (split == "train")]
        for name, lines in _sections("wordings.txt").items()
    }
    if split == "test":
        kept |= _sections("wordings_test.txt")
    return {
        name: tuple((line,) if name == "chat" else tuple(expand(line)) for line in lines)
        for name, lines in kept.items()
    }


def _sections(file: str) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    for line in (HERE / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            current.append(line)
    return sections


def label_phrase(label: str) -> str:
    """ "a goldfish", "sunglasses": a class name as it stands in a sentence."""
    return label if PLURAL_LABELS.search(label) or MASS_LABELS.search(label) else article(label)


class Verbs:
    """Verb forms of a set of captions: "runs", "run" -> "running", learnt from the -ing words that occur in it."""

    def __init__(self, captions: Iterable[str]) -> None:
        counts = Counter(w for c in captions for w in WORD.findall(c.lower()))
        self.counts = counts
        self.ing = {w for w, n in counts.items() if w.endswith("ing") and n >= 8 and len(w) > 5}
        self.ing -= {
            "building",
            "something",
            "clothing",
            "morning",
            "evening",
            "railing",
            "string",
            "spring",
            "wedding",
        }
        self.third: dict[str, str] = {"has": "having", "lies": "lying", "sits": "sitting", "runs": "running"}
        self.base: dict[str, str] = {}
        for word in sorted(self.ing, key=lambda w: (-counts[w], w)):
            for base in self._bases(word):
                third = base + ("es" if base.endswith(("s", "x", "ch", "sh")) else "s")
                third = base[:-1] + "ies" if base[-1] == "y" and base[-2] not in "aeiou" else third
                if counts[third]:
                    self.base.setdefault(base, word)
                    self.third.setdefault(third, word)

    @staticmethod
    def _bases(word: str) -> list[str]:
        stem = word[:-3]
        doubled = [stem[:-1]] if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "ls" else []
        return [*doubled, stem, stem + "e"]


PROPER = frozenset({"Asian", "American", "African", "German", "Boston", "Indian", "Chinese"})
AUXILIARY = {"is", "are", "was", "were"}
SAFE_VERB_LIST = """runs stands jumps sits plays holds walks rides wears has climbs leaps carries catches throws chases
swims poses smiles watches performs"""
SAFE_VERBS = frozenset(SAFE_VERB_LIST.split())
SUBJECT_START = re.compile(
    r"^(an?|the|two|three|four|five|several|some|many|people|children|kids|men|women|boys|girls|dogs) "
)


@dataclass(frozen=True)
class Phrase:
    """A caption to ask by. np: "a dog running on sand"; subject: "the dog" or ""; many: plural subject."""

    np: str
    subject: str
    many: bool


class Phrases:
    """Turns captions into noun phrases; gives up (None) rather than write bad grammar."""

    def __init__(self, verbs: Verbs) -> None:
        self.verbs = verbs
        alive = [c for c in concepts() if c.noun in ("person", "animal") or set(c.parents) & {"person", "animal"}]
        named = [c for c in concepts() if not c.noun.endswith("ing") or c.noun in ("swing", "building")]
        self.nouns = {w for c in named for w in c.words} - SAFE_VERBS
        self.alive = {w for c in alive for w in c.words}

    def __call__(self, caption: str) -> Phrase | None:
        text = re.sub(r"^There (is|are) ", "", caption.rstrip("."))
        text = (
            text[0] + text[1:] if re.match(r"(Asian|American|African|German)\b", text) else text[0].lower() + text[1:]
        )
        words = text.split()
        if not SUBJECT_START.match(text) or not 3 <= len(words) <= 14 or re.search(r"[?!:;]", text):
            return None
        at = next((i for i, w in enumerate(words) if i and self._verb(words, i)), None)
        if at is None:
            return None if any(self._stray(*pair) for pair in itertools.pairwise(words)) else Phrase(text, "", False)
        return self._reduce(words, at)

    def _verb(self, words: list[str], i: int) -> bool:
        """Is words[i] the finite verb of the sentence?"""
        word, before = words[i], words[i - 1].strip(",")
        if word in ("is", "are"):
            return True
        if word in self.verbs.third:
            return before in self.alive or (
                word in SAFE_VERBS and before not in ("of", "and", "the", "a", "on", "with")
            )
        many = before.endswith("s") or before in ("men", "women", "children", "people") or "and" in words[:i]
        return word in self.verbs.base and before in self.alive and many

    def _stray(self, before: str, word: str) -> bool:
        """A verb that was not recognised as the sentence's own: better no phrase than a broken one."""
        if word in AUXILIARY or (before in self.alive and word.endswith("s") and word not in self.nouns):
            return True
        return word not in self.nouns and (word in self.verbs.third or word in self.verbs.base)

    def _reduce(self, words: list[str], at: int) -> Phrase | None:
        """The phrase with its finite verb made a participle: "a dog is running" -> "a dog running"."""
        subject, rest = words[:at], words[at + 1 :]
        if "who" in subject or "that" in subject or "which" in subject or not rest:
            return None
        if words[at] in ("is", "are"):
            if not re.match(r".*(ing|ed)$|in$|on$|at$|with$|near$|held$|shown$", rest[0]) or rest[0] == "being":
                return None
            many = words[at] == "are"
        else:
            many = words[at] not in self.verbs.third
            rest = [self.verbs.third.get(words[at]) or self.verbs.base[words[at]], *rest]
        rest = [self._participle(rest, i) for i in range(len(rest))]
        text = " ".join(subject + rest)
        if AUXILIARY & set(subject + rest):
            return None
        return Phrase(text, self._definite(subject), many)

    def _participle(self, rest: list[str], i: int) -> str:
        joined = i > 0 and rest[i - 1] in ("and", "then")
        return self.verbs.third.get(rest[i], rest[i]) if joined else rest[i]

    @staticmethod
    def _definite(subject: list[str]) -> str:
        """ "the man in red" of "a man in red"; "" where it would be clumsy."""
        text = re.sub(r"^(an?|the|some|several|many) ", "", " ".join(subject)).strip(",")
        return "the " + text if len(subject) <= 7 and "," not in text and " and " not in text else ""
