"""A question, parsed once. Who plans, finds or notes looks at these fields, never at the typed text again."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pipeline.questions.language import is_english
from pipeline.questions.router import Known, Router
from pipeline.questions.sought import on_screen, sought, spelt
from pipeline.questions.things import Things, each_thing, named_things, unnamed
from pipeline.questions.times import Named, named
from pipeline.questions.wordings import cues, place_named, plain, points_back, wording_kind, wording_kinds, wording_plan

# Kinds in which "it" is the weather, the video or nobody: "Is it raining?" names no thing and refers to none.
OF_NOTHING = ("weather", "bw", "length", "sound", "describe", "list", "talk", "about_you", "command", "foreign")
DESCRIBING = ("describe", "now", "at", "stretch")  # which of them is the parser's to say
SURE_KIND = 0.35  # probability from which the router is believed

Kinds = tuple[tuple[str, float], ...]  # kinds of question and how likely each is


@dataclass(frozen=True)
class Asked:
    """What a question asks. Seconds are resolved: "10 seconds ago" is a second of the video.

    Where a stretch is named ("in the last minute"), all other fields are about the question without it.
    """

    text: str  # as it was typed, but for bracketed notes; for the language model alone
    plan: str | None  # where the wording leaves no doubt (of locator.PLANS); else the trained head's counts
    when: Named  # the second, stretch, two moments or shift that is named
    things: Things  # what is named, in the towers' classes
    wanted: Things  # what a list or a count is of: the things, or people where somebody asks "who"
    cues: frozenset[str]  # single words that matter: see wordings.CUES
    length: bool  # how long the video is
    refers: bool  # names nothing itself, so it may be about what the last question was about ("And then?")
    each: tuple[tuple[str, Things], ...] = ()  # the things one by one, in the question's words
    unnamed: tuple[str, ...] = ()  # words that ask for more than these things
    place: str = ""  # of wordings.PLACES, where one is named
    english: bool = True
    readable: bool = True  # whether there is a word in it that people use
    words: tuple[str, ...] = ()  # to be looked for in what was said or written: quoted ones, else those with a meaning
    spelt: bool = False  # it asks for these very words
    on_screen: bool = False
    kinds: Kinds = ()  # what its wording or the router (router.py) takes it for, the likeliest first

    @property
    def kind(self) -> str | None:
        """The kind of question, where the router is sure enough."""
        return self.kinds[0][0] if self.kinds and self.kinds[0][1] >= SURE_KIND else None

    @property
    def names_time(self) -> bool:
        return any(one is not None for one in (self.when.time, self.when.stretch, self.when.both, self.when.shift))

    @property
    def counts(self) -> bool:
        return "counts" in self.cues

    def of(self, earlier: Asked) -> Asked:
        """The question with what an earlier one named put in the place of "it"."""
        return replace(
            self,
            when=self.when if self.names_time else earlier.when,
            things=self.things | earlier.things,
            each=self.each or earlier.each,
            kinds=tuple(each for each in self.kinds if each[0] != "followup"),
            cues=self.cues | (earlier.cues & {"first", "so far"}),
        )


def parse(text: str, now: float, router: Router | None = None) -> Asked:
    """What `text` asks when the newest second of the video is `now`."""
    text = without_notes(text)
    when = named(text, now)
    rest = when.rest if when.stretch or when.both else text
    heard, things = cues(rest), named_things(rest)
    back = when.shift is not None or (when == Named(when.rest) and points_back(text))
    known = Known(when.time is not None, when.stretch is not None, any(things), any(c.isdigit() for c in text))
    english = is_english(text)
    sure = wording_kind(rest) if english else "foreign"
    kinds = ((sure, 1.0),) if sure else tuple(router.kinds(text, known).items()) if router else ()
    kinds = settled(kinds, when)
    likely = kinds[0][0] if kinds and kinds[0][1] >= SURE_KIND else None
    return Asked(
        text=text,
        plan=wording_plan(rest),
        when=when,
        things=things,
        wanted=named_things("person") if "who" in heard else things,
        cues=heard,
        length="length" in wording_kinds(rest) or (likely == "length" and not any(things)),
        refers=back and not any(things) and not (kinds and kinds[0][0] in OF_NOTHING),
        place=place_named(rest),
        english=english,
        readable=any(c.isalnum() for c in text) and (router is None or not english or router.reads(text)),
        each=tuple(each_thing(rest)),
        unnamed=unnamed(plain(rest)),
        words=sought(rest),
        spelt=spelt(rest),
        on_screen=on_screen(rest),
        kinds=kinds,
    )


def settled(kinds: Kinds, when: Named) -> Kinds:
    """The kinds where a time or a stretch is named: what is described then is that, whatever it sounds like."""
    named_kind = "stretch" if when.stretch else "at" if when.time is not None else None
    if named_kind and kinds and kinds[0][0] in DESCRIBING and (when.stretch or kinds[0][0] != "describe"):
        return ((named_kind, kinds[0][1]), *((kind, chance) for kind, chance in kinds[1:] if kind != named_kind))
    return kinds


_TAG = re.compile(r"</?[a-zA-Z!][^<>]*>")
_NOTE = re.compile(r"\((?:yes|no|at|now|nothing|chat|\d+ scenes?)\b[^()]*\)", re.IGNORECASE)


def without_notes(text: str) -> str:
    """A typed "(yes, at 0:12: unicorn)" looks like the note the model trusts, so it is left out, and brackets with it;
    so are HTML tags.

    Where nothing else was typed, the words stay without their brackets.
    """
    text = _TAG.sub(" ", text)
    bare = _NOTE.sub(" ", text)
    return re.sub(r"[()]", "", bare if re.search(r"\w", bare) else text).strip()
