"""Locate, then look: which moments of a video answer a question. Pure rules: no pixels, no language model in here.

The `Planner` makes a `Verdict` of what the parser, the trained head and the towers know: which frames the reader looks
at, which second that is, whether the thing was seen at all. "At mm:ss" goes to that time; before and after step one
shot from the found one; scenes are counted, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.questions.asked import Asked
from pipeline.questions.facts import TOLD, runs, surely
from pipeline.questions.index import Index, spread
from pipeline.questions.locator import PLANS, Located, Locator
from pipeline.questions.notes import SEEN, Verdict
from pipeline.questions.things import Things

READ = 4  # frames of a moment the reader looks at
LISTED = 6  # moments a listing names
LONG_TAKE = 15  # frames from which a shot is looked at in parts
WEIGHED = 40  # moments among which a listing chooses
PERSON = 0  # of COCO's categories: the detector misses few people, so a video without any in its eyes has none
ALIKE = 3.0  # how far below the best a score may lie and still be about the same thing (log of a ratio)

KIND_PLANS = {
    "describe": "list",
    "list": "list",
    "stretch": "list",
    "now": "now",
    "at": "now",
    "when": "find",
    "last": "find",
    "again": "find",
    "howlong": "find",
    "yesno": "yesno",
    "both": "yesno",
    "after": "after",
    "before": "before",
    "count_now": "about",
    "count_all": "about",
}
ABOUT_A_THING = ("colour", "wearing", "size_shape", "position", "where", "holding", "doing", "weather", "who")


class Fit(NamedTuple):
    """How well frames and shots fit a question. frames (F,), shots (S,): log of a ratio to "nowhere"."""

    frames: np.ndarray
    shots: np.ndarray


class Earlier(NamedTuple):
    """What a question may refer to: the last one that named a thing, and where the last one led."""

    asked: Asked
    verdict: Verdict


class Planner:
    """From a question's `Located` and a snapshot's index to a Verdict. Pure.

    calibration: per verdict the (a, b, c) of "sure if a * margin + b + c * ln(shots) > 0", fitted on held-out pictures;
    `towers` holds what a named thing's detection adds to a frame's score, and what its absence takes off.
    """

    def __init__(self, locator: Locator, calibration: dict[str, Sequence[float]]):
        self.locator, self.calibration = locator, calibration

    def plan(self, asked: Asked, located: Located, index: Index, earlier: Earlier | None = None) -> Verdict:
        """earlier: what the question may refer to. Of a question about a stretch ("in the last minute"): as if there
        were nothing else."""
        when = asked.when
        if when.unclear or not asked.english:
            return self._now("chat", index)
        if when.both:
            return self._two(when.both, index)
        if when.shift is not None and earlier and earlier.verdict.time is not None:
            return self._at(max(0.0, earlier.verdict.time + when.shift), index)
        name = self._name(asked, located)
        if when.stretch:
            return self._within(name, asked, located, index)
        if earlier:
            asked = asked.of(earlier.asked)
            name = self._name(asked, located)
            if found := self._referred(name, earlier.verdict, index):
                return found
        return self._planned(name, asked, located, index)

    @staticmethod
    def _name(asked: Asked, located: Located) -> str:
        """The plan by the wording, else by the kind of question, else by the trained head."""
        kind = asked.kind
        if kind in ABOUT_A_THING:
            return "find" if any(asked.things) else "now"
        return asked.plan or KIND_PLANS.get(kind or "") or PLANS[int(located.plan[0].argmax())]

    def _within(self, name: str, asked: Asked, located: Located, index: Index) -> Verdict:
        """Of a stretch of time: the index cut to it, and the verdict's frames put back into their places."""
        if name == "chat":
            return self._planned(name, asked, located, index)
        assert asked.when.stretch is not None
        first, last = asked.when.stretch
        if first > index.end + 1:
            return self._now("at", index)._replace(late=True)
        start, stop = index.row_at(first), index.row_at(last) + 1
        verdict = self._planned(asked.plan or stretch_plan(name, asked), asked, located, index.cut(start, stop))
        frames, *listed = (tuple(f + int(start) for f in moment) for moment in (verdict.frames, *verdict.listed))
        return verdict._replace(frames=frames, listed=tuple(listed))

    def _planned(self, name: str, asked: Asked, located: Located, index: Index) -> Verdict:
        if name == "yesno_now" and "so far" in asked.cues:  # "has anybody come by now?" is not about now
            name = "yesno"
        if asked.when.time is not None and name not in ("chat", "yesno", "count", "count_of"):
            return self._at(asked.when.time, index)
        if name in ("find", "about", "yesno", "yesno_now", "after", "before", "count_of"):
            return self._found(name, asked, self.fit(asked.things, located, index), index)
        if name == "first":
            return self._moment(name, index.frames_of(0), index)
        if name == "count":
            return self._now(name, index)._replace(count=len(index.starts))
        if name == "list":
            return self._list(asked.wanted, index)
        return self._now("chat" if name == "chat" else "now", index)  # "last", and "at" without a time, too

    def fit(self, things: Things, located: Located, index: Index) -> Fit:
        """Scores of frames and shots (the log-mean-exp of their frames), over the score of "nowhere"."""
        frames = self.locator.scores(located.query, index.keys.to(located.query))[0].double().cpu().numpy()
        frames = frames - float(located.nowhere[0])
        if (shown := things.shown(index.features)) is not None:
            gain, loss = self.calibration.get("towers", (0.0, 0.0))
            frames = frames + gain * shown - loss
            if things.coco == (PERSON,) and shown.max() < SEEN:
                frames = frames - gain
        return Fit(frames, _log_mean_exp(frames, index.starts))

    def newest(self, index: Index) -> tuple[int, ...]:
        """The frames that are "now"."""
        return tuple(index.frames_of(len(index.starts) - 1))[-READ:]

    def _now(self, name: str, index: Index, found: bool = True) -> Verdict:
        return Verdict(name, self.newest(index), float(index.times[-1]), found)

    def _at(self, time: float, index: Index) -> Verdict:
        if time > index.end + 1:
            return self._now("at", index)._replace(late=True)
        frame = index.row_at(time)
        return Verdict("at", spread(index.frames_of(index.shot_of(frame)), READ, frame), float(index.times[frame]))

    def _two(self, times: tuple[float, float], index: Index) -> Verdict:
        """Two moments that are to be compared, one after the other."""
        first, second = (self._at(time, index) for time in times)
        if first.late or second.late:
            return first if first.late else second
        assert first.time is not None and second.time is not None  # of `_at`
        return first._replace(plan="list", listed=(first.frames, second.frames), times=(first.time, second.time))

    def _moment(self, name: str, frames: range, index: Index, peak: int | None = None) -> Verdict:
        return Verdict(name, spread(frames, READ, peak), float(index.times[frames.start]))

    def _found(self, name: str, asked: Asked, fit: Fit, index: Index) -> Verdict:
        if name == "count_of":
            return self._counted(fit, index)
        newest = self.newest(index)
        here = self.sure("here", float(_log_mean_exp(fit.frames[list(newest)], np.zeros(1, int))[0]), 1)
        if name == "yesno_now" or (name == "about" and here):
            return self._now(name, index, here)
        shot = int(fit.shots.argmax())
        if not self.sure("yesno" if name == "yesno" else "find", fit.shots[shot], len(fit.shots)):
            return self._now("yesno" if name == "yesno" else "find", index, found=False)
        if "first" in asked.cues:  # the earliest that will do, not the one that fits best
            shot = next((s for s, m in enumerate(fit.shots) if m > fit.shots[shot] - ALIKE), shot)
        frames, peak = self._run(index.frames_of(shot), fit.frames)
        if name not in ("after", "before"):
            return self._moment(name, frames, index, peak)
        near = self._beside(frames, shot, 1 if name == "after" else -1, index)
        return self._moment(name, near, index) if near else self._now(name, index, found=False)

    def _referred(self, name: str, earlier: Verdict, index: Index) -> Verdict | None:
        """Of "And then?", "When was it?", "What colour is it?": the shot beside the moments of an earlier verdict, or
        its own moment; None where that was none."""
        if not earlier.found or earlier.late or earlier.plan in ("chat", "count", "count_of"):
            return None
        if name in ("find", "about") and not earlier.listed:
            return earlier._replace(plan=name)
        if name not in ("after", "before"):
            return None
        moments = earlier.listed or (earlier.frames,)
        frames, step = (moments[-1], 1) if name == "after" else (moments[0], -1)
        shot = index.shot_of(frames[0])
        run = index.frames_of(shot)
        run = run if len(run) <= LONG_TAKE else range(frames[0], frames[-1] + 1)
        near = self._beside(run, shot, step, index)
        return self._moment(name, near, index) if near else self._now(name, index, found=False)

    def _run(self, frames: range, scores: np.ndarray) -> tuple[range, int]:
        """The part of a shot a question is about, and its best frame: the whole of a short shot; in a long take (a
        fixed camera never cuts) the stretch around the best frame that fits nearly as well."""
        peak = frames.start + int(scores[frames.start : frames.stop].argmax())
        if len(frames) <= LONG_TAKE:
            return frames, peak
        start, stop = peak, peak + 1
        while start > frames.start and scores[start - 1] > scores[peak] - ALIKE:
            start -= 1
        while stop < frames.stop and scores[stop] > scores[peak] - ALIKE:
            stop += 1
        return range(start, stop), peak

    def _beside(self, frames: range, shot: int, step: int, index: Index) -> range | None:
        """What comes right after (step 1) or before (-1): the rest of a long take, else the neighbouring shot."""
        own = index.frames_of(shot)
        if step > 0 and frames.stop < own.stop:
            return range(frames.stop, min(own.stop, frames.stop + 2 * READ))
        if step < 0 and frames.start > own.start:
            return range(max(own.start, frames.start - 2 * READ), frames.start)
        return index.frames_of(shot + step) if 0 <= shot + step < len(index.starts) else None

    def _counted(self, fit: Fit, index: Index) -> Verdict:
        shots = [s for s, margin in enumerate(fit.shots) if self.sure("here", margin, 1)]
        frames = tuple(index.frames_of(s).start for s in shots)
        times = tuple(float(index.times[f]) for f in frames[:LISTED])
        return self._now("count_of", index, bool(shots))._replace(
            frames=frames[:READ] or self.newest(index), time=None, count=len(shots), times=times
        )

    def sure(self, verdict: str, margin: float, shots: int) -> bool:
        a, b, c = self.calibration[verdict]
        return a * margin + b + c * math.log(shots) > 0

    def _list(self, things: Things, index: Index) -> Verdict:
        """The shots that together show most; of fewer shots than there is room for, the longest are split.

        Where the question names things ("Which animals did you see?"): the shots in which the towers see them best.
        """
        if (shown := things.shown(index.features)) is not None:
            return self._list_of(shown, index)
        pieces = [index.frames_of(s) for s in range(len(index.starts))]
        while len(pieces) < LISTED and len(longest := max(pieces, key=len)) > LONG_TAKE:
            at, half = pieces.index(longest), longest.start + len(longest) // 2
            pieces[at : at + 1] = [range(longest.start, half), range(half, longest.stop)]
        moments = [spread(pieces[i], READ) for i in telling(pieces, index, LISTED)]
        return self._listed(completed(moments, index), index)

    def _list_of(self, shown: np.ndarray, index: Index) -> Verdict:
        best = np.maximum.reduceat(shown, index.starts)
        shots = sorted(s for s in np.argsort(-best)[:LISTED] if best[s] >= SEEN)
        if not shots:
            return self._now("list", index, found=False)
        peaks = [index.starts[s] + int(shown[index.frames_of(s)].argmax()) for s in shots]
        return self._listed([spread(index.frames_of(s), READ, peak) for s, peak in zip(shots, peaks)], index)

    def _listed(self, moments: Sequence[tuple[int, ...]], index: Index) -> Verdict:
        return Verdict("list", moments[0], float(index.times[moments[0][0]]), listed=tuple(moments))


def telling(pieces: Sequence[range], index: Index, at_most: int) -> list[int]:
    """Which pieces of a video together show most, in their order: one after the other the piece that adds most words to
    what the chosen ones tell; then such as tell anything, then any, spread evenly."""
    numbers = spread(range(len(pieces)), WEIGHED)
    words = {i: set(surely(index, spread(pieces[i], READ))) for i in numbers}
    chosen: list[int] = []
    while len(chosen) < at_most:
        told = set[str]().union(*(words[i] for i in chosen))
        best = max(numbers, key=lambda i: len(words[i] - told))
        if not words[best] - told:
            break
        chosen.append(best)
    for rest in ([i for i in numbers if words[i]], numbers):
        left = [i for i in rest if i not in chosen]
        chosen += [left[i] for i in spread(range(len(left)), at_most - len(chosen))] if left else []
    return sorted(chosen)


def completed(moments: Sequence[tuple[int, ...]], index: Index) -> list[tuple[int, ...]]:
    """The moments of a summary, and one for every thing that the detector surely sees somewhere else alone.

    It takes the place of a moment whose words others say as well, where there is one.
    """
    chosen = {moment: set(surely(index, moment)) for moment in moments}
    for run in sure_stays(index):
        new = spread(run, READ)
        adds = set(surely(index, new))
        if len(chosen) >= 2 * LISTED or adds <= set[str]().union(*chosen.values()):
            continue
        chosen = {moment: words for moment, words in chosen.items() if moment[0] != new[0] or not words <= adds}
        if any(moment[0] == new[0] for moment in chosen):
            new = new[1:]
        if len(chosen) >= LISTED and (spare := said_elsewhere(chosen, adds)):
            del chosen[spare]
        chosen[new] = adds
    return sorted(chosen)


def said_elsewhere(chosen: dict[tuple[int, ...], set[str]], adds: set[str]) -> tuple[int, ...] | None:
    """The last moment whose words the others say, or those that are added."""
    for moment in reversed(sorted(chosen)):
        others = adds.union(*(words for other, words in chosen.items() if other != moment))
        if chosen[moment] <= others:
            return moment
    return None


def sure_stays(index: Index) -> list[range]:
    """The longest stretch of one scene in which each of the detector's kinds is surely seen, two frames or more,
    longest first. What ran over a cut was told of the scene before it."""
    sure = index.features.det_ids[index.features.det_scores >= TOLD].unique().tolist()
    stays = []
    for kind in sure:
        parts = []
        for run in runs(index, Things((kind,), ()), TOLD):
            cuts = index.starts[(index.starts > run.start) & (index.starts < run.stop)].tolist()
            parts += [range(a, b) for a, b in pairwise([run.start, *cuts, run.stop])]
        if parts:
            stays.append(max(parts, key=len))
    return sorted((run for run in stays if len(run) > 1), key=len, reverse=True)


def stretch_plan(plan: str, asked: Asked) -> str:
    """The plan of a question about a stretch of time, from the trained head's, which heard the stretch's words too.

    "last" and "first" were the stretch's own words, and what it shows "now" is all that it shows.
    """
    if "yes or no" in asked.cues:
        return "yesno"
    if "when or where" in asked.cues and any(asked.things):
        return "find"
    of_moments = plan in ("find", "after", "before") and not any(asked.things)
    own = plan in ("first", "last") and plan not in asked.cues
    return "list" if plan in ("now", "at", "yesno_now") or of_moments or own else plan


def _log_mean_exp(scores: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Per stretch beginning at `starts`: the logarithm of the mean of exp(scores)."""
    lengths = np.diff([*starts, len(scores)])
    return np.logaddexp.reduceat(scores, starts) - np.log(lengths)
