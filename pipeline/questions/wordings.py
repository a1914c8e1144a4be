"""What a question asks for, where its wording leaves no doubt, whatever the trained heads make of it. English.

The wordings themselves are data: rules.toml, with examples of what each claims and what it leaves alone.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

RULES = Path(__file__).with_name("rules.toml")


class Rule(NamedTuple):
    """One line of rules.toml: a wording, what it asks (kind) and where to look for it (plan), with its examples."""

    pattern: re.Pattern
    kind: str | None
    plan: str | None
    yes: tuple[str, ...]
    no: tuple[str, ...]

    def claims(self, text: str) -> bool:
        return bool(self.pattern.search(plain(text)))


@cache
def rules() -> tuple[Rule, ...]:
    data = tomllib.loads(RULES.read_text(encoding="utf-8"))
    return tuple(
        Rule(
            re.compile(_filled(each["pattern"], data["words"])),
            each.get("kind"),
            each.get("plan"),
            tuple(each["yes"]),
            tuple(each["no"]),
        )
        for each in data["rule"]
    )


def _filled(pattern: str, words: dict[str, str]) -> str:
    """A pattern with the alternatives of [words] in the place of their names."""
    for name, alternatives in reversed(words.items()):
        pattern = pattern.replace(f"<{name}>", alternatives)
    for name, alternatives in words.items():  # those that stand in other alternatives
        pattern = pattern.replace(f"<{name}>", alternatives)
    return pattern


def plain(text: str) -> str:
    """Small letters, "what's" in full."""
    return re.sub(r"\b(what|who|when|where)['’]?s\b", r"\1 is", text.lower().strip())


# Places that a question may name, as they are said.
PLACES = {
    "in the water": r"\bin(to)? (the |a )?(water|sea|ocean|lake|river|pond|waves)\b",
    "at the water": r"\b(by|near|at|beside|on) (the |a )?(water|sea|ocean|lake|river|pond)\b",
    "at the beach": r"\b(at|on|by|near) (the |a )?(beach|seaside|shore|coast)\b",
    "at a pool": r"\b(at|in|by|near) (the |a )?(swimming )?pool\b",
    "in snow": r"\bin (the )?snow\b",
    "on a street": r"\b(on|in) (the|a) (street|road)\b",
    "on grass": r"\b(on|in) (the |a )?(grass|lawn|meadow)\b",
    "in the mountains": r"\bin (the )?(mountains|hills)\b",
    "outdoors": r"\b(outdoors?|outside)\b(?! (the|an?)\b)",
    "indoors": r"\b(indoors?|inside)\b(?! (the|an?)\b)",
    "night": r"\bat night\b|\b(is|was) it (already )?(night|night ?time)\b",
}


def place_named(text: str) -> str:
    """The place of PLACES that a question names; "" where it names none, or two to choose from."""
    found = [place for place, pattern in PLACES.items() if re.search(pattern, plain(text))]
    return found[0] if len(found) == 1 else ""


_REFERRING = {"it", "that", "they", "them", "he", "she", "there", "next", "then"}
CUES = {
    "so far": r"\b(by now|so far|yet|(up to|until) now|ever|at any (point|time)|at some point)\b",
    "now": r"\b(right now|just now|now|currently|at (the|this) moment|at this point|still|at present|presently"
    r"|in this (frame|picture))\b",
    "first": r"\bfirst\b",
    "last": r"\blast\b",
    "negated": r"\b(nobody|no one|no-one|empty|without)\b|\bthere (is|was|are|were) (no|not)\b|^\W*when\b.*\bno \w+\b"
    r"|\bnot (there|visible|in (it|view|sight|the picture)|seen|shown|to be seen)\b"
    r"|\b(is|was|are|were)n['’]?t (there|visible)\b",
    "before": r"\bbefore\b",
    "after": r"\bafter\b",
    "passes": r"\b(walk|run|runn|jump)(s|ed|ing)? (in|into|up|by|past|through|away|off|out|over|to|towards)\b",
    "counts": r"\b(how many|count|number of)\b",
    "who": r"^\W*who\b",
    "yes or no": r"^\W*((is|are|was|were|did|do|does|has|have|had|any)\b|(can|could) (you|we|i|one|anyone) "
    r"((still|also) )?(see|hear|spot|find|notice|recogni[sz]e|identify|make out)\b"
    r"(?!.*\b(what|which|who|where|when|how)\b))",
    "when or where": r"^\W*(when|at what time|where)\b",
}


def wording_plan(text: str) -> str | None:
    """The plan of a wording that leaves no doubt, or None."""
    return next((rule.plan for rule in rules() if rule.plan and rule.claims(text)), None)


def wording_kinds(text: str) -> tuple[str, ...]:
    """The kinds of question that a wording without doubt is: mostly none, seldom two ("Sum it up: how long is it?")."""
    return tuple(rule.kind for rule in rules() if rule.kind and rule.claims(text))


def wording_kind(text: str) -> str | None:
    """The first of `wording_kinds`."""
    return next(iter(wording_kinds(text)), None)


def cues(text: str) -> frozenset[str]:
    """Which of CUES a question holds."""
    return frozenset(name for name, pattern in CUES.items() if re.search(pattern, text, re.IGNORECASE))


# "Is there a river?" points nowhere; "How many are there?" and "are there in it?" do.
_THERE_IS = re.compile(r"\b(is|are|was|were) there\b(?=\s+(?!in\b|on\b|at\b|now\b|then\b|so\b|right\b|yet\b|all\b)\w)")


# Names its moment by something else: "What do they show once the stream is gone?"
_OWN_MOMENT = re.compile(
    r"\b(after|before|once|when|while|until) (the|an?) (?!(one|thing|scene|shot)\b)\w+", re.IGNORECASE
)


def points_back(text: str) -> bool:
    """Whether a question that names nothing itself may be about what the last one was about."""
    if _OWN_MOMENT.search(text):
        return False
    words_of = re.findall(r"[a-z']+", _THERE_IS.sub("is", text.lower()))
    return len(words_of) < 3 or any(word in _REFERRING for word in words_of)
