"""What the answer to one question rests on: frames in which its things are seen, the verdict that leads there."""

from __future__ import annotations

import numpy as np

from pipeline.clock import mmss
from pipeline.questions.asked import Asked
from pipeline.questions.facts import MISSED, PEOPLE, Known, counted, joined, named, runs, surely
from pipeline.questions.index import Index, spread
from pipeline.questions.looking import LOOKS
from pipeline.questions.notes import SEEN, Verdict
from pipeline.senses.sensed import Senses

READ = 4  # frames of a moment
NOW = 2  # newest frames that are "now": who left before is not there
ELSEWHERE = ("after", "before", "now", "describe", "list", "compare", "at")  # kinds not about the thing's own moment


class Grounds:
    """One question's grounds. kind: what is asked (router.py's kinds). runs: frames in which its things are seen.

    verdict: found is False where an answer rests on no picture.
    """

    def __init__(self, kind: str, asked: Asked, verdict: Verdict, index: Index, senses: Senses):
        if kind in ("talk", "about_you", "command", "length") and asked.each:  # who names a thing asks for it
            kind = "yesno" if "yes or no" in asked.cues else "premise"
        if kind in ("now", "at") and asked.each and "yes or no" in asked.cues:  # "Is the bird there now?"
            kind = "yesno"
        self.kind, self.asked, self.verdict, self.index = kind, asked, verdict, index
        self.known = Known(index, senses)
        self.runs = runs(index, asked.things)
        # Of one second, or of the newest picture: then the thing's best moment elsewhere is no answer.
        self.pinned = asked.when.time is not None or ("now" in asked.cues and "so far" not in asked.cues)
        if self.pinned and asked.when.time is None and not verdict.late:
            frames = tuple(index.frames_of(len(index.starts) - 1))[-NOW:]
            self.verdict = verdict = verdict._replace(frames=frames, time=float(index.times[-1]), found=True)
        if verdict.plan == "first" and not asked.each:
            self.verdict = verdict = verdict._replace(frames=tuple(index.frames_of(0))[:READ])
        if kind in LOOKS and self.runs and not self.pinned and self.runs[-1].stop >= len(index.times) - 1:
            self.runs = self.runs[-1:]  # "the man" is the one who is there, if one is
        if self.runs and not self.pinned and kind not in ELSEWHERE and verdict.plan not in ("after", "before"):
            run = self.runs[-1 if kind == "last" else min(1, len(self.runs) - 1) if kind == "again" else 0]
            time = float(index.times[run.start])
            self.verdict = verdict = verdict._replace(frames=spread(run, 4), time=time, found=True)
        if self.runs and kind in ("after", "before") and verdict.plan == kind and not asked.refers:
            self.beside(kind)
        self.said = surely(index, self.verdict.frames)

    def beside(self, kind: str) -> None:
        """Rest on what comes right after, or right before, the things are seen: of a shot's rest, or of the next one.

        Before: of those who are still there ("before this man came") the present stay counts.
        """
        here = self.runs[-1].stop >= len(self.index.times) - 1
        run = self.runs[-1 if kind == "before" and here else 0]
        row = run.stop if kind == "after" else run.start - 1
        if not 0 <= row < len(self.index.times):
            return
        shot = self.index.frames_of(self.index.shot_of(row))
        self.show(
            range(row, min(shot.stop, row + READ)) if kind == "after" else range(max(shot.start, row - 3), row + 1)
        )

    def show(self, run: range) -> None:
        """Rest the answer on these frames."""
        self.verdict = self.verdict._replace(
            frames=spread(run, READ), time=float(self.index.times[run.start]), found=True
        )
        self.said = surely(self.index, self.verdict.frames)

    def unfounded(self, sentence: str) -> str:
        """A sentence that rests on no picture."""
        self.verdict = self.verdict._replace(found=False)
        return sentence

    def near(self) -> list[int]:
        """Frames within a second of the one that is asked about."""
        assert self.verdict.time is not None
        return np.flatnonzero(abs(self.index.times - self.verdict.time) <= 1.05).tolist()

    def in_view(self, least: float = SEEN) -> bool:
        """Whether the things are seen at the second that is asked about."""
        shown = self.asked.things.shown(self.index.features)
        return shown is not None and bool(shown[self.near()].max() >= least)

    def often_missed(self) -> bool:
        """Whether not to see the things says little."""
        return not self.asked.things.coco or bool(MISSED & set(self.asked.things.coco))

    def of_people(self) -> bool:
        return all(things == PEOPLE for _, things in self.asked.each)

    def people(self) -> list[range]:
        return runs(self.index, PEOPLE)

    def together(self) -> bool:
        shown = [things.shown(self.index.features) for _, things in self.asked.each]
        seen = [each >= SEEN for each in shown if each is not None]
        return len(seen) == len(shown) and bool(np.logical_and.reduce(seen).any())

    def things(self) -> str:
        return joined(list(dict.fromkeys(counted(named(word), 1) for word, _ in self.asked.each)))

    def at(self, run: range) -> str:
        return mmss(float(self.index.times[run.start]))

    def seconds(self, run: range) -> float:
        times = self.index.times
        end = times[run.stop] if run.stop < len(times) else times[-1]
        return float(end - times[run.start])
