"""How many of a thing are seen: at once, at a second, and how many came."""

from __future__ import annotations

import numpy as np

from pipeline.clock import mmss
from pipeline.questions.facts import MANY, number_word, runs, tallied
from pipeline.questions.grounds import Grounds
from pipeline.questions.things import ANIMALS, Things
from pipeline.senses.counting import counts, traffic
from pipeline.towers.frame_tower import labels


class Tallies(Grounds):
    """What is answered with a number."""

    def counts(self) -> np.ndarray:
        """(F,) how many of the things the detector finds in each frame."""
        return counts(self.index.features, self.counted_of())

    def of_animals(self) -> bool:
        return set(self.counted_of()) <= set(ANIMALS)

    def countable(self) -> bool:
        """Whether what is to be counted is one kind, and seen, be it by the classifier alone."""
        return len(self.counted_of()) == 1 and self.of_animals() and bool(self.runs)

    def counted_of(self) -> tuple[int, ...]:
        """What is to be counted: the first thing that is named ("how many bottles on the table")."""
        return self.asked.each[0][1].coco if self.asked.each else self.asked.things.coco

    def at_once(self) -> str:
        doubt = "I cannot tell how many."
        if not self.counted_of() or not self.counts().any():
            at = mmss(self.verdict.time) if self.pinned and self.verdict.time is not None else ""
            least = self.countable() and (not at or self.in_view())
            return f"I see {self.number(1).lower()} at {at or self.at(self.runs[0])}; {doubt}" if least else doubt
        if self.pinned and self.verdict.time is not None:
            many = int(np.ceil(np.median(self.counts()[self.near()])))
            none = f"I am not sure that there is any at {mmss(self.verdict.time)}."
            return f"{self.number(many)} at {mmss(self.verdict.time)}." if many else none
        most = int(np.quantile(self.counts()[self.counts() > 0], 0.9))
        frame = int(np.flatnonzero(self.counts() >= most)[0])
        self.show(range(frame, frame + 1))
        return f"{self.number(most)} at {mmss(float(self.index.times[frame]))}."

    def number(self, many: int) -> str:
        """How many are detected; of animals, who lie together, maybe more (of 18 pictures with one dog 5 had two)."""
        word = labels()["coco"][self.counted_of()[0]]
        said = tallied(word, many) if many > 1 else f"at least one {word}" if self.of_animals() else f"one {word}"
        return said[0].upper() + said[1:]

    def in_all(self) -> str:
        kinds = self.counted_of()
        stays = runs(self.index, Things(kinds, ()))
        if len(kinds) != 1 or not stays:
            return "I cannot tell how many."
        if self.pinned:
            return self.at_once()
        came, word = traffic(self.counts()), labels()["coco"][kinds[0]]
        if len(stays) > 1:
            return f"I saw {MANY.get(word, word + 's')} {number_word(len(stays))} separate times."
        all_of_them = came.there + came.came
        return self.at_once() if all_of_them <= came.most else f"{self.number(all_of_them)} came."
