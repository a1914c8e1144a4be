"""A question, parsed once. Who plans, finds or notes looks at these fields, never at the typed text again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.questions.things import Things, named_things
from pipeline.questions.times import named_stretch, named_time
from pipeline.questions.wordings import asks_length, cues, points_back, wording_plan


@dataclass(frozen=True)
class Asked:
    """What a question asks. Seconds are resolved: "10 seconds ago" is a second of the video.

    Where a stretch is named ("in the last minute"), all other fields are about the question without it.
    """

    text: str  # as it was typed; for the language model alone
    plan: str | None  # where the wording leaves no doubt (of locator.PLANS); else the trained head's counts
    time: float | None  # the second that is named
    stretch: tuple[float, float] | None  # first and last second
    things: Things  # what is named, in the towers' classes
    wanted: Things  # what a list or a count is of: the things, or people where somebody asks "who"
    cues: frozenset[str]  # single words that matter: see wordings.CUES
    length: bool  # how long the video is
    refers: bool  # names nothing itself, so it may be about what the last question was about ("And then?")

    @property
    def counts(self) -> bool:
        return "counts" in self.cues

    def of(self, earlier: Asked) -> Asked:
        """The question with what an earlier one named put in the place of "it"."""
        return replace(
            self, time=earlier.time if self.time is None else self.time, things=self.things | earlier.things,
            cues=self.cues | (earlier.cues & {"first", "so far"}),
        )  # fmt: skip


def parse(text: str, now: float) -> Asked:
    """What `text` asks when the newest second of the video is `now`."""
    stretch = named_stretch(text, now)
    rest = stretch[2] if stretch else text
    heard, things = cues(rest), named_things(rest)
    return Asked(
        text=text, plan=wording_plan(rest), time=named_time(rest, now), stretch=stretch and stretch[:2], things=things,
        wanted=named_things("person") if "who" in heard else things, cues=heard, length=asks_length(text),
        refers=named_time(text) is None and not any(named_things(text)) and points_back(text),
    )  # fmt: skip
