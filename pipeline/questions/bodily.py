"""What persons do with their bodies: sit, stand, walk; at a moment, when, and one after the other."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

import numpy as np

from pipeline.clock import mmss
from pipeline.questions.facts import DOUBTED, PEOPLE, joined
from pipeline.questions.grounds import Grounds

# Wordings of a posture. "Who walks in?" asks for who comes, so plain "walk" counts only beside "when" and the like.
FORMS = {
    "sitting": "sit|sits|sitting|seated|sat",
    "standing": "standing|stand|stands|stood",
    "walking": "walking|walk|walks|strolling",
    "running": "running|run|runs|jogging",
    "bending": "bending|bend|bends|bent|crouching|kneeling|squatting",
    "lying": "lying|lies|lie|laying",
    "jumping": "jumping|jump|jumps",
}
MOST_TOLD = 4  # stretches that are told of


def posture_of(word: str) -> str:
    """Which posture a word asks for; "" for none."""
    return next((posture for posture, forms in FORMS.items() if re.fullmatch(forms, word)), "")


class Bodily(Grounds):
    """What is answered with a posture."""

    def postures(self) -> list[str]:
        """Postures of persons that the question names, in its order."""
        of_others = any(things != PEOPLE for _, things in self.asked.each)
        if of_others or "passes" in self.asked.cues or "counts" in self.asked.cues:
            return []
        return list(dict.fromkeys(filter(None, map(posture_of, self.asked.unnamed))))

    def held(self, word: str) -> list[range]:
        """Stretches of frames in which somebody surely holds a posture, at the second that is asked about if one is."""
        rows = self.known.held(word)
        if self.pinned:
            rows = sorted(set(rows) & set(self.verdict.frames))
        parts = np.split(np.array(rows, int), np.flatnonzero(np.diff(rows) > 2) + 1) if rows else []
        return [range(int(part[0]), int(part[-1]) + 1) for part in parts]

    def of_posture(self, words: Sequence[str]) -> str:
        """The answer to a question that names postures; "" where it asks for something else."""
        if self.kind == "when" and len(words) == 1:
            return self.when_held(words[0])
        if self.kind == "either" or (len(words) > 1 and "yes or no" in self.asked.cues):
            return self.which_held(words)
        return self.whether_held(words[0]) if "yes or no" in self.asked.cues else ""

    def when_held(self, word: str) -> str:
        stretches = self.held(word)
        if "up" in self.asked.unnamed or "down" in self.asked.unnamed:  # "When does he stand up?"
            others = "sitting" if word == "standing" else "standing"
            before = {row for run in self.held(others) for row in run}
            stretches = [run for run in stretches if any(run.start - back in before for back in (1, 2, 3))]
        if not stretches:
            seen = f"; I see a person at {self.at(self.seen[0])}" if self.seen else ""
            return f"I am not sure when that is{seen}."
        self.show(stretches[0])
        first = "first" in self.asked.cues
        return f"At {joined([self.stretch(run) for run in stretches[: 1 if first else MOST_TOLD]])}."

    def whether_held(self, word: str) -> str:
        stretches = self.held(word)
        if stretches:
            self.show(stretches[0])
            return f"Yes, {word} at {self.stretch(stretches[0])}."
        if not self.seen or (self.pinned and self.asked.each and not self.in_view(DOUBTED)):
            return ""  # whoever is not there holds none
        doubt = f"I am not sure whether anybody is {word}"
        return f"{doubt}; {told}." if (told := self.one_after_another()) else f"{doubt}."

    def which_held(self, words: Sequence[str]) -> str:
        found = [(word, run) for word in words for run in self.held(word)[:1]]
        if not found:
            return "I am not sure which."
        self.show(found[0][1])
        said = joined([f"{word} at {self.stretch(run)}" for word, run in sorted(found, key=lambda each: each[1].start)])
        return f"{said[0].upper()}{said[1:]}."

    def doing(self) -> str:
        """What persons do, one posture after the other; "" where none is sure or something else is asked about."""
        if any(things != PEOPLE for _, things in self.asked.each):
            return ""
        said = self.one_after_another()
        return f"{said[0].upper()}{said[1:]}." if said else ""

    def one_after_another(self) -> str:
        """ "standing at 0:03, walking at 0:07 to 0:09"."""
        found = sorted((run.start, word, run) for word in FORMS for run in self.held(word))
        if not found:
            return ""
        told = [next(same) for _, same in groupby(found, key=lambda each: each[1])][:MOST_TOLD]
        self.show(told[0][2])
        return joined([f"{word} at {self.stretch(run)}" for _, word, run in told])

    @property
    def seen(self) -> list[range]:
        """Stretches in which the persons who are asked about are seen."""
        return self.runs if self.asked.each else self.people()

    def stretch(self, run: range) -> str:
        end = float(self.index.times[run.stop - 1])
        return f"{self.at(run)} to {mmss(end)}" if len(run) > 1 else self.at(run)
