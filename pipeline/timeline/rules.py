"""Rules in plain words, read once: "tell me when a person enters" is about a person who comes into view.

A rule that asks for more than its things, their number and that they come or go is refused, not half kept: who wants to
hear of a fall would be told of everybody who stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.questions.asked import parse
from pipeline.questions.facts import NUMBERS, counted, joined, named
from pipeline.questions.things import Things, named_things
from pipeline.stream import UserError

LONGEST = 200  # characters of a rule
MOST = 6  # of a thing that the detector counts
# Words that ask to be told, and that say of a thing no more than that it comes, is there, goes, and where.
KNOWN = frozenset(
    re.findall(
        r"\w+",
        """
    tell me us when whenever if once as soon alert notify warn ping let know inform say send message remind a an the my
    our your their his her please want to be told would like could can you i next time moment every each just hey shout
    beep watch out look keep eye and or
    enter enters entered entering appear appears appeared appearing come comes came coming arrive arrives arrived
    arriving show shows showing turn turns up walk walks walking in into approach approaches approaching pass passes
    passing by get gets visible seen see sees spot spots spotted detect detects detected there here is are be present
    drive drives pulls step steps at on inside through around stand stands again back both together same
    leave leaves left leaving go goes gone going away disappear disappears disappeared vanish vanishes exit exits exited
    no longer not anymore any more missing removed taken empty
    view room house picture frame scene shot video camera image front hall hallway garden yard backyard driveway door
    gate kitchen office shop store building entrance street road area zone place sight of from
    than over least two three four five six seven eight some several 1 2 3 4 5 6 7 8
""",
    )
)
NUMBER = re.compile(rf"(\bmore than |\bover )?\b({'|'.join(NUMBERS[2:])}|[2-9]|[1-9]\d+)\b", re.IGNORECASE)
GOES = re.compile(
    r"\b(leav\w+|left(?! of)|go(es|ing|ne)?(?! (in|into|to|up|by|past|through|on)\b)|disappear\w*|vanish\w*|exit\w*|"
    r"removed|taken|missing|empty)\b",
    re.IGNORECASE,
)
EVERYBODY = {"nobody", "everybody", "everyone", "somebody"}


@dataclass(frozen=True)
class Read:
    """A rule as it is judged. things: in words and classes. either: one of them is enough. gone: told when they are
    there no longer. number: so many of a thing at least."""

    things: tuple[tuple[str, Things], ...]
    either: bool
    gone: bool
    number: int

    @property
    def says(self) -> str:
        """How it was understood, and the text of its alerts."""
        many = self.number > 1
        words = [counted(word, self.number) if many else counted(word, 1) for word, _ in self.things]
        what = joined(words, "or" if self.either else "and")
        least = "At least " if many else ""
        verb = (
            "went out of view" if self.gone else "came into view" if len(words) == 1 or self.either else "are in view"
        )
        said = f"{least}{what} {verb}."
        return said[0].upper() + said[1:]


def read_rule(text: str) -> Read:
    """Raises UserError, in one sentence, for what cannot be judged."""
    if len(text) > LONGEST:
        raise UserError(f"The rule has more than {LONGEST} characters, so it was not taken; say it in a sentence.")
    asked = parse(text, 0.0)
    if not asked.english:
        raise UserError("The rule was not understood, so it was not taken; write it in English.")
    things = {named(word): (named(word), of) for word, of in asked.each}
    if not things and ("negated" in asked.cues or EVERYBODY & set(asked.unnamed)):
        things = {"person": ("person", named_things("person"))}
    _check(text, list(things), [word for word in asked.unnamed if word not in KNOWN | EVERYBODY])
    gone = "negated" in asked.cues or bool(GOES.search(text))
    return Read(tuple(things.values()), bool(re.search(r"\bor\b", text)), gone, _number(text))


def _check(text: str, things: Sequence[str], more: Sequence[str]) -> None:
    """more: words that ask for what cannot be told."""
    if not things:
        raise UserError(
            "The rule names nothing that can be recognised, so it was not taken; name a thing, such as a person, a dog "
            "or a car."
        )
    hear = f"you hear when {joined([counted(word, 1) for word in things], 'or')} comes or goes"
    if more:
        raise UserError(
            f'Whether "{" ".join(more)}" is so cannot be told, so the rule was not taken; without it {hear}.'
        )
    if len(things) > 1 and not re.search(r"\b(and|or|both)\b", text, re.IGNORECASE):
        raise UserError(
            f"How one thing stands to another cannot be told, so the rule was not taken; with a rule for each {hear}."
        )


def _number(text: str) -> int:
    found = NUMBER.search(text)
    if not found:
        return 1
    said = found[2].lower()
    number = (NUMBERS.index(said) if said in NUMBERS else int(said)) + bool(found[1])
    if number > MOST:
        raise UserError(f"So many cannot be counted, so the rule was not taken; ask for {MOST} at most.")
    return number
