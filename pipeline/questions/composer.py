"""Answers composed in code from what the towers know: said as facts where they are sure, as doubts where they are not.

Nothing is said that no sense supports, and what no sense can know (sound, writing, names, feelings) is said to be so.
Empty where the language model is to write. Doubts are worded alike everywhere, so that they can be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.clock import mmss
from pipeline.questions.asked import Asked
from pipeline.questions.index import Index, spread
from pipeline.questions.notes import SEEN, Verdict
from pipeline.questions.things import Things
from pipeline.towers.frame_tower import labels, place_of

READ = 4  # newest frames that are "now"
GLIMPSE = 0.6  # how sure the towers must be of what one frame alone shows
SHORT = 8  # frames of a video in which one frame is much
CLASS_SURE = 0.5  # mean probability from which an ImageNet class is said as a fact
SOMEBODY = {"anybody", "anyone", "somebody", "someone", "everybody", "everyone", "nobody", "people", "persons"}
MANY = {"person": "people", "knife": "knives", "sheep": "sheep", "couch": "couches", "bus": "buses", "bench": "benches"}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
UNKNOWABLE = {
    "sound": "I cannot hear; I only watch the pictures.",
    "said": "I cannot hear what is said; I only watch the pictures.",
    "text": "I cannot read text in the pictures.",
    "cannot": "I cannot tell that from the pictures.",
    "foreign": "I do not know this language; please ask in English.",
}
ELSEWHERE = ("after", "before", "now", "describe", "list", "compare", "at")  # kinds not about the thing's own moment
LOOKS = {
    "colour": "I am not sure of its colour.",
    "bw": "I cannot tell whether it is in colour, dark or bright.",
    "wearing": "I cannot tell the clothing.",
    "size_shape": "I cannot tell size, shape or material.",
    "weather": "I cannot tell the weather or the time of day.",
    "where": "I cannot tell what place this is.",
    "doing": "I am not sure what is being done.",
    "holding": "I am not sure what is held.",
}


def counted(word: str, number: int) -> str:
    """ "two dogs", "a cat"."""
    word = "person" if word in SOMEBODY else word
    if number == 1:
        return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"
    many = MANY.get(word, word if word.endswith("s") else word + "s")
    return f"{NUMBERS[number] if number < len(NUMBERS) else number} {many}"


def joined(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def surely(index: Index, frames: Sequence[int]) -> list[str]:
    """What the towers are sure of in some frames, counted: detections by the middle of their counts, then classes."""
    features, rows = index.features, list(frames)
    sure = features.det_scores[rows] >= SEEN
    ids = features.det_ids[rows]
    found = [(int(i), (sure & (ids == i)).sum(1)) for i in ids[sure].unique()]
    counts = [(labels()["coco"][i], int(np.ceil(np.median(n.numpy())))) for i, n in found]
    classes = [labels()["imagenet"][c] for c in likely(index, rows)]
    exact = {word.lower().split()[-1] for word in classes}  # "an Egyptian cat" needs no "a cat" beside it
    counts = [(word, number) for word, number in counts if number > 1 or (number and word not in exact)]
    said = [counted(word, number) for word, number in sorted(counts, key=lambda item: -item[1])]
    words_of = " ".join(said).lower().split()
    return [*[counted(word, 1) for word in classes if word.lower() not in words_of], *said]


def likely(index: Index, rows: Sequence[int]) -> list[int]:
    """ImageNet classes whose probability, averaged over the frames, is enough to be said as a fact."""
    classes, probs = index.features.classes[list(rows)], index.features.class_probs[list(rows)]
    means = {int(c): float((probs * (classes == c)).sum()) / len(classes) for c in classes.unique()}
    return sorted((c for c, mean in means.items() if mean >= CLASS_SURE), key=lambda c: -means[c])


def runs(index: Index, things: Things) -> list[range]:
    """Stretches of frames in which the towers see one of the things; gaps of two frames are closed."""
    shown = things.shown(index.features)
    if shown is None:
        return []
    hits = np.flatnonzero(shown >= SEEN)
    if not len(hits):
        return []
    parts = np.split(hits, np.flatnonzero(np.diff(hits) > 3) + 1)
    sure = [part for part in parts if len(part) > 1 or len(shown) < SHORT or shown[part[0]] >= GLIMPSE]
    return [range(int(part[0]), int(part[-1]) + 1) for part in sure]


def late(asked: Asked) -> str:
    """That the video has not come so far; the second is said as it was asked."""
    when = asked.when
    first = when.time if when.time is not None else max(when.both) if when.both else (when.stretch or (None,))[0]
    return "" if first is None else f"The video has not reached {mmss(first)} yet."


class Composer:
    """One question's facts. kind: what is asked (router.py's kinds)."""

    def __init__(self, kind: str, asked: Asked, verdict: Verdict, index: Index):
        if kind in ("talk", "about_you", "command", "length") and asked.each:  # who names a thing asks for it
            kind = "yesno" if "yes or no" in asked.cues else "premise"
        self.kind, self.asked, self.verdict, self.index = kind, asked, verdict, index
        self.runs = runs(index, asked.things)
        # Of one second, or of the newest picture: then the thing's best moment elsewhere is no answer.
        self.pinned = asked.when.time is not None or ("now" in asked.cues and "so far" not in asked.cues)
        if self.pinned and asked.when.time is None and not verdict.late:
            frames = tuple(index.frames_of(len(index.starts) - 1))[-READ:]
            self.verdict = verdict = verdict._replace(frames=frames, time=float(index.times[-1]), found=True)
        if self.runs and not self.pinned and kind not in ELSEWHERE and verdict.plan not in ("after", "before"):
            run = self.runs[-1 if kind == "last" else min(1, len(self.runs) - 1) if kind == "again" else 0]
            time = float(index.times[run.start])
            self.verdict = verdict = verdict._replace(frames=spread(run, 4), time=time, found=True)
        self.said = surely(index, verdict.frames)

    def answer(self) -> str:
        if self.kind in UNKNOWABLE:
            return UNKNOWABLE[self.kind]
        if self.kind in ("talk", "about_you", "command", "length") or self.verdict.plan in ("count", "chat"):
            return ""
        if self.verdict.late:
            return late(self.asked)
        if absent := self.absent():
            return absent
        if "negated" in self.asked.cues and self.kind not in ("yesno", "both"):
            return "I am not sure when that is."
        tell: dict[str, Callable[[], str]] = {
            "yesno": self.yes,
            "both": self.yes,
            "when": self.when,
            "last": self.last,
            "again": self.again,
            "howlong": self.how_long,
            "count_now": self.at_once,
            "count_all": self.in_all,
            "position": self.position,
            "who": self.who,
            "either": self.either,
            "followup": self.moment,
        }
        if self.kind in LOOKS:
            return self.look()
        return tell.get(self.kind, self.moment)()

    def absent(self) -> str:
        """Where something is named that the towers would know and have not seen."""
        missing = [word for word, things in self.asked.each if not runs(self.index, things)]
        if not missing or self.kind in ("describe", "now", "list", "either"):
            return ""
        there = [word for word, things in self.asked.each if word not in missing]
        unseen = f"I have not seen {joined([counted(word, 1) for word in missing]).replace(' and ', ' or ')}"
        seen = f", only {joined([counted(word, 1) for word in there])}" if there else ""
        return ("No, " if self.kind in ("yesno", "both") else "") + unseen + seen + "."

    def in_view(self) -> bool:
        """Whether the things are seen at the second that is asked about."""
        return any(frame in run for run in self.runs for frame in self.verdict.frames)

    def order(self) -> str:
        """Of "Did you see a cat before the man?": which of the two came first."""
        way = self.asked.cues & {"before", "after"}
        if len(self.asked.each) != 2 or len(way) != 1:
            return ""
        first, second = (runs(self.index, things) for _, things in self.asked.each)
        times = [f"{counted(word, 1)} at {self.at(run[0])}" for (word, _), run in zip(self.asked.each, (first, second))]
        earlier = first[0].start < second[0].start
        return f"{'Yes' if earlier == ('before' in way) else 'No'}, I see {joined(times)}."

    def yes(self) -> str:
        if order := self.order():
            return order
        if self.pinned and self.runs and self.verdict.time is not None and not self.in_view():
            return f"Not at {mmss(self.verdict.time)}; I see {self.things()} at {self.at(self.runs[0])}."
        if self.asked.each and self.runs:
            seen_at = (
                mmss(self.verdict.time) if self.pinned and self.verdict.time is not None else self.at(self.runs[0])
            )
            if self.asked.unnamed:
                return f"I see {self.things()} at {seen_at}, but I cannot tell more."
            if len(self.asked.each) > 1 and not self.together():
                return f"I have seen {self.things()}, but not in one picture."
            return f"Yes, at {seen_at}."
        if self.asked.each:
            return "No, I have not seen that."
        return "I am not sure."

    def together(self) -> bool:
        shown = [things.shown(self.index.features) for _, things in self.asked.each]
        seen = [each >= SEEN for each in shown if each is not None]
        return len(seen) == len(shown) and bool(np.logical_and.reduce(seen).any())

    def things(self) -> str:
        return joined([counted(word, 1) for word, _ in self.asked.each])

    def at(self, run: range) -> str:
        return mmss(float(self.index.times[run.start]))

    def when(self) -> str:
        if not self.verdict.found:
            return "I have not seen that."
        if self.asked.each and self.runs:
            first = self.runs[:1] if "first" in self.asked.cues else self.runs[:4]
            return f"At {joined([self.at(run) for run in first])}."
        return "I am not sure when that is." if self.verdict.time is None else f"At {mmss(self.verdict.time)}."

    def last(self) -> str:
        if not self.runs:
            return self.moment()
        run = self.runs[-1]
        return f"Last from {self.at(run)} to {mmss(float(self.index.times[run.stop - 1]))}."

    def again(self) -> str:
        if not self.runs:
            return "I am not sure."
        if len(self.runs) == 1:
            return f"I have seen it only once, at {self.at(self.runs[0])}."
        return f"Again at {joined([self.at(run) for run in self.runs[1:4]])}."

    def how_long(self) -> str:
        if not self.runs:
            return "I cannot tell how long."
        once = "first" in self.asked.cues or len(self.runs) == 1
        lasting = sum(self.seconds(run) for run in (self.runs[:1] if once else self.runs))
        return f"About {lasting:.0f} seconds, from {self.at(self.runs[0])}."

    def seconds(self, run: range) -> float:
        times = self.index.times
        end = times[run.stop] if run.stop < len(times) else times[-1]
        return float(end - times[run.start])

    def counts(self) -> np.ndarray:
        """(F,) how many of the things the detector finds in each frame."""
        features = self.index.features
        found = np.isin(features.det_ids.numpy(), self.asked.things.coco) & (features.det_scores.numpy() >= SEEN)
        return found.sum(1)

    def at_once(self) -> str:
        if not self.asked.things.coco or not self.counts().any():
            return "I cannot tell how many."
        if self.pinned and self.verdict.time is not None:
            many = int(np.ceil(np.median(self.counts()[list(self.verdict.frames)])))
            none = f"I am not sure that there is any at {mmss(self.verdict.time)}."
            return f"{self.number(many)} at {mmss(self.verdict.time)}." if many else none
        most = int(np.quantile(self.counts()[self.counts() > 0], 0.9))
        frame = int(np.flatnonzero(self.counts() >= most)[0])
        return f"{self.number(most)} at {mmss(float(self.index.times[frame]))}."

    def number(self, many: int) -> str:
        word = labels()["coco"][self.asked.things.coco[0]]
        said = counted(word, many) if many > 1 else f"one {word}"
        return said[0].upper() + said[1:]

    def in_all(self) -> str:
        if not self.asked.things.coco or not self.runs:
            return "I cannot tell how many."
        if len(self.runs) == 1 or self.pinned:
            return self.at_once()
        word = labels()["coco"][self.asked.things.coco[0]]
        times = NUMBERS[len(self.runs)] if len(self.runs) < len(NUMBERS) else len(self.runs)
        return f"I saw {MANY.get(word, word + 's')} {times} separate times."

    def position(self) -> str:
        if not self.runs:
            return "I am not sure what is there."
        if self.asked.unnamed[:1] == ("what",):
            return self.moment()
        features = self.index.features
        for frame in self.runs[0]:
            hit = np.isin(features.det_ids[frame].numpy(), self.asked.things.coco)
            if hit.any():
                place = place_of(features.det_boxes[frame][int(np.flatnonzero(hit)[0])].tolist())
                return f"At {mmss(float(self.index.times[frame]))} in the picture's {place}."
        return f"I see it at {self.at(self.runs[0])}; I cannot tell where in the picture."

    def who(self) -> str:
        people = [run for run in runs(self.index, Things((0,), ()))]
        if not people:
            return "I have not seen a person."
        return f"I see a person at {joined([self.at(run) for run in people[:3]])}; I cannot tell who it is."

    def either(self) -> str:
        present = [word for word, things in self.asked.each if runs(self.index, things)]
        if len(self.asked.each) > 1 and len(present) == 1:
            return f"{counted(present[0], 1).capitalize()}."
        return "I am not sure which."

    def look(self) -> str:
        doubt = LOOKS[self.kind]
        if not self.runs and self.asked.when.time is None:
            return doubt
        return f"{doubt[:-1]}; I see {joined(self.said[:3])}." if self.said else doubt

    def moment(self) -> str:
        if not self.verdict.found:
            return "I have not seen that."
        if not self.said:
            return "I am not sure what this is."
        return f"At {mmss(self.verdict.time)} I see {joined(self.said[:4])}." if self.verdict.time is not None else ""


def summary(index: Index, moments: Sequence[tuple[float, Sequence[int]]]) -> list[str]:
    """A sentence for every moment the towers are sure of, "" for the others; all of one doubt if they are of none."""
    known = [surely(index, frames)[:3] for _, frames in moments]
    said = [f"{mmss(time)} {joined(words)}." if words else "" for (time, _), words in zip(moments, known)]
    return said if any(said) else [f"{mmss(time)} I am not sure what this is." for time, _ in moments]
