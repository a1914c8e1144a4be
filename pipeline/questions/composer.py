"""Answers composed in code from what the towers and senses know: facts where they are sure, doubts where they are not.

Nothing is said that no sense supports, and what no sense can know (sound, writing, names, feelings) is said to be so.
Empty where the language model is to write. Doubts are worded alike everywhere, so that they can be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.clock import mmss
from pipeline.questions.asked import Asked
from pipeline.questions.facts import (
    FEW,
    GENDERED,
    LONG_TAKE,
    MANY,
    NUMBERS,
    PEOPLE,
    Known,
    counted,
    described,
    doubtful,
    gaps,
    joined,
    kinds_of,
    named,
    runs,
    surely,
)
from pipeline.questions.index import Index, spread
from pipeline.questions.looking import CLOTHES, LOOKED, THERE, light
from pipeline.questions.notes import SEEN, Verdict
from pipeline.questions.replies import late
from pipeline.questions.things import GROUPED, Things
from pipeline.senses.colours import MOST, TERMS
from pipeline.senses.counting import counts, traffic
from pipeline.senses.sensed import Senses
from pipeline.towers.frame_tower import labels, place_of

READ = 4  # frames of a moment
NOW = 2  # newest frames that are "now": who left before is not there
UNKNOWABLE = {
    "sound": "I cannot hear; I only watch the pictures.",
    "said": "I cannot hear what is said; I only watch the pictures.",
    "text": "I cannot read text in the pictures.",
    "cannot": "I cannot tell that from the pictures.",
    "foreign": "Please ask in English; I understand no other language.",
}
ELSEWHERE = ("after", "before", "now", "describe", "list", "compare", "at")  # kinds not about the thing's own moment
WHENS = ("when", "last", "again", "howlong")
NARROWED = {"only", "just", "alone", "both", *TERMS}  # words that ask for less than all of a thing's moments
WHICH = ("position", "holding", "now", "who", "premise", "where")  # of these, "what animal" asks for its name
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


class Composer:
    """One question's facts. kind: what is asked (router.py's kinds)."""

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

    def answer(self) -> str:
        if self.kind in UNKNOWABLE:
            return UNKNOWABLE[self.kind]
        if self.verdict.plan == "count" and self.verdict.count is not None:
            said = counted("scene", self.verdict.count) if self.verdict.count > 1 else "one scene"
            return f"{said[0].upper()}{said[1:]} so far."
        if self.kind in ("talk", "about_you", "command", "length"):
            return ""
        if self.verdict.plan == "chat" and not self.asked.each and self.kind not in (*LOOKS, "yesno", "either"):
            return ""
        if self.verdict.late:
            return late(self.asked)
        if "negated" in self.asked.cues and (not self.asked.each or (self.kind in WHENS and self.of_people())):
            return self.without()
        if self.asked.unnamed[:1] == ("what",) and self.kind in ("position", "holding") and not self.of_a_group():
            return self.on_it()
        if absent := self.absent():
            return absent
        if self.runs and self.of_a_group() and (named_so := self.which()):
            return named_so
        if "negated" in self.asked.cues and self.kind in (*WHENS, "now", "at"):
            return "I am not sure when that is."
        if self.runs and self.kind in WHENS and NARROWED & set(self.asked.unnamed):
            return f"I see {self.things()} at {self.at(self.runs[0])}, but I cannot tell more."
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
            "where": self.where,
            "who": self.who,
            "either": self.either,
            "followup": self.moment,
            "before": self.who if "who" in self.asked.cues else self.moment,
        }
        if "yes or no" in self.asked.cues and (self.kind in LOOKS or self.kind == "count_now") and self.asked.each:
            return self.yes()
        if self.kind in LOOKED:
            return LOOKED[self.kind](self.asked, self.known, self.verdict) or self.look()
        said = tell.get(self.kind, self.look if self.kind in LOOKS else self.moment)()
        doubted = "yes or no" in self.asked.cues and said.startswith("At ")  # what is seen is no yes and no no
        return f"I am not sure; {said[0].lower()}{said[1:]}" if doubted else said

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

    def of_a_group(self) -> bool:
        """Whether it asks for one of many kinds: "What vegetable is lying there?"."""
        return (
            self.asked.unnamed[:1] in (("what",), ("which",))
            and self.asked.each[:1] != ()
            and (self.asked.each[0][0] in GROUPED and self.kind in WHICH)
        )

    def of_people(self) -> bool:
        return all(things == PEOPLE for _, things in self.asked.each)

    def which(self) -> str:
        """The kinds of a group that are seen: now, if one is there, else where one was first."""
        run = self.runs[-1 if self.runs[-1].stop >= len(self.index.times) - 1 else 0]
        kinds = [counted(word, 1) for word in kinds_of(self.index, self.asked.each[0][1], run)]
        if not kinds:
            return ""
        self.show(run)
        return f"At {self.at(run)} I see {joined(kinds)}."

    # --- is it there, and when

    def absent(self) -> str:
        """Where something is named that the towers would know and have not seen."""
        of = self.asked.each[:1] if self.kind in ("count_now", "count_all") else self.asked.each
        missing = [(word, things) for word, things in of if not runs(self.index, things)]
        if not missing or self.kind in ("describe", "now", "either"):
            return ""
        if doubted := [word for word, things in missing if doubtful(self.index, things)]:
            return f"I am not sure whether there is {joined([counted(word, 1) for word in doubted], 'or')}."
        if self.kind == "list":
            return ""
        words = [word for word, _ in missing]
        there = [word for word, things in of if word not in words]
        unseen = f"I have not seen {joined([counted(word, 1) for word in words], 'or')}"
        seen = f", only {joined([counted(named(word), 1) for word in there])}" if there else ""
        # "Is it a cartoon?" after a car that never came: that there was none is true, "no" to the cartoon is not known.
        denies = self.kind in ("yesno", "both") and not self.asked.refers
        return ("No, " if denies else "") + unseen + seen + "."

    def without(self) -> str:
        """Of "nobody" or "empty": when nobody is seen, and what is to be seen then."""
        empty = gaps(self.index)
        if self.kind in ("yesno", "both"):
            frames = self.verdict.frames if self.pinned else None
            if frames is not None and self.verdict.time is not None:
                at = mmss(self.verdict.time)
                return f"Yes, I see nobody at {at}." if self.known.nobody(frames) else f"No, I see a person at {at}."
            return f"Yes, at {self.at(empty[0])}." if empty else "I am not sure."
        if not empty:
            return "I am not sure when that is."
        self.show(empty[0])
        empty = empty[:1] if "first" in self.asked.cues else empty
        return f"At {joined([self.at(run) for run in empty[:4]])}." if self.kind == "when" else self.moment()

    def show(self, run: range) -> None:
        """Rest the answer on these frames."""
        self.verdict = self.verdict._replace(
            frames=spread(run, READ), time=float(self.index.times[run.start]), found=True
        )
        self.said = surely(self.index, self.verdict.frames)

    def near(self) -> list[int]:
        """Frames within a second of the one that is asked about."""
        assert self.verdict.time is not None
        return np.flatnonzero(abs(self.index.times - self.verdict.time) <= 1.05).tolist()

    def in_view(self) -> bool:
        """Whether the things are seen at the second that is asked about."""
        shown = self.asked.things.shown(self.index.features)
        return shown is not None and bool(shown[self.near()].max() >= SEEN)

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
        if not self.asked.each:
            return self.setting() or light(self.asked, self.known, self.verdict) or "I am not sure."
        if not self.runs:
            return "No, I have not seen that."
        if self.pinned and self.verdict.time is not None and not self.in_view():
            return f"Not at {mmss(self.verdict.time)}; I see {self.things()} at {self.at(self.runs[0])}."
        seen_at = mmss(self.verdict.time) if self.pinned and self.verdict.time is not None else self.at(self.runs[0])
        asks = [word for word in self.asked.unnamed if word not in THERE and len(word) > 1]
        if hue := [word.replace("gray", "grey") for word in asks if word.replace("gray", "grey") in TERMS]:
            if len(hue) > 1:  # "Is it green or red?"
                shown = [term for term in self.known.colours(self.asked.things, self.runs[0]) if term in hue]
                return f"{shown[0].capitalize()}, at {seen_at}." if len(shown) == 1 else "I am not sure which."
            return self.has_colour(hue[0], [word for word in asks if word not in (*TERMS, "gray", *CLOTHES)])
        if asks:
            return f"I see {self.things()} at {seen_at}, but I cannot tell more."
        if doubted := [word for word, _ in self.asked.each if word in GENDERED]:
            return f"I see {self.things()} at {seen_at}, but I cannot tell whether it is {counted(doubted[0], 1)}."
        if len(self.asked.each) > 1 and not self.together():
            return f"I have seen {self.things()}, but not in one picture."
        return f"Yes, at {seen_at}."

    def has_colour(self, hue: str, more: Sequence[str]) -> str:
        """Whether one of the things (of people: their clothes) has a colour."""
        rows = [row for run in self.runs for row in run] if not self.pinned else self.verdict.frames
        shares = self.known.shares(self.asked.things, rows)
        if not len(shares) or more:
            return f"I see {self.things()} at {self.at(self.runs[0])}, but I cannot tell more."
        share = shares[:, TERMS.index(hue)]
        if share.max() >= MOST:
            frames = [row for row in rows if self.known.colours(self.asked.things, [row])[:1] == [hue]]
            return f"Yes, at {mmss(float(self.index.times[frames[0]]))}." if frames else "I am not sure."
        return f"No, I have not seen {hue} there." if share.max() < FEW else "I am not sure."

    def setting(self) -> str:
        """Of a word of the places' head that a yes-or-no question names."""
        words = [word for word in self.asked.unnamed if self.known.knows(word)]
        if not words:
            return ""
        rows = self.known.rows_of(words[0])
        if len(rows):
            self.show(range(rows[0], rows[0] + 1))
            return f"Yes, at {mmss(float(self.index.times[rows[0]]))}."
        return "I am not sure."

    def together(self) -> bool:
        shown = [things.shown(self.index.features) for _, things in self.asked.each]
        seen = [each >= SEEN for each in shown if each is not None]
        return len(seen) == len(shown) and bool(np.logical_and.reduce(seen).any())

    def things(self) -> str:
        return joined(list(dict.fromkeys(counted(named(word), 1) for word, _ in self.asked.each)))

    def at(self, run: range) -> str:
        return mmss(float(self.index.times[run.start]))

    def when(self) -> str:
        if not self.verdict.found:
            return "I have not seen that."
        if self.asked.each and self.runs:
            first = self.runs[:1] if "first" in self.asked.cues else self.runs[:4]
            times = joined([self.at(run) for run in first])
            if doubted := [word for word, _ in self.asked.each if word in GENDERED]:
                return f"I see {self.things()} at {times}, but I cannot tell whether it is {counted(doubted[0], 1)}."
            return f"At {times}."
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

    # --- how many

    def counts(self) -> np.ndarray:
        """(F,) how many of the things the detector finds in each frame."""
        return counts(self.index.features, self.counted_of())

    def counted_of(self) -> tuple[int, ...]:
        """What is to be counted: the first thing that is named ("how many bottles on the table")."""
        return self.asked.each[0][1].coco if self.asked.each else self.asked.things.coco

    def at_once(self) -> str:
        if not self.counted_of() or not self.counts().any():
            return "I cannot tell how many."
        if self.pinned and self.verdict.time is not None:
            many = int(np.ceil(np.median(self.counts()[self.near()])))
            none = f"I am not sure that there is any at {mmss(self.verdict.time)}."
            return f"{self.number(many)} at {mmss(self.verdict.time)}." if many else none
        most = int(np.quantile(self.counts()[self.counts() > 0], 0.9))
        frame = int(np.flatnonzero(self.counts() >= most)[0])
        self.show(range(frame, frame + 1))
        return f"{self.number(most)} at {mmss(float(self.index.times[frame]))}."

    def number(self, many: int) -> str:
        word = labels()["coco"][self.counted_of()[0]]
        said = counted(word, many) if many > 1 else f"one {word}"
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
            times = NUMBERS[len(stays)] if len(stays) < len(NUMBERS) else len(stays)
            return f"I saw {MANY.get(word, word + 's')} {times} separate times."
        return self.at_once() if came.there + came.came <= came.most else f"{self.number(came.there + came.came)} came."

    # --- where, who, what

    def on_it(self) -> str:
        """What is on, in or beside something, or held: what is seen at the moment, where a moment is known."""
        if (self.runs or self.pinned) and self.said and not self.known.there(PEOPLE, self.verdict.frames):
            return self.moment()
        doubt = "I am not sure what is there."
        return f"{doubt[:-1]}; I see {joined(self.said[:3])}." if self.runs and self.said else doubt

    def position(self) -> str:
        return self.placed(self.runs[0]) if self.runs else "I am not sure where that is."

    def placed(self, run: range) -> str:
        """In which part of the picture the first of the things is seen."""
        features = self.index.features
        for frame in run:
            hit = np.isin(features.det_ids[frame].numpy(), self.asked.things.coco)
            if hit.any():
                place = place_of(features.det_boxes[frame][int(np.flatnonzero(hit)[0])].tolist())
                return f"At {mmss(float(self.index.times[frame]))} in the picture's {place}."
        return f"I see it at {self.at(run)}."

    def where(self) -> str:
        rows = list(self.verdict.frames)
        place = self.known.place(rows) or self.known.place(range(len(self.index.times)))
        if place:
            return f"{place[0].upper()}{place[1:]}" + (f"; I see {joined(self.said[:2])}." if self.said else ".")
        return self.placed(self.runs[0]) if self.runs else self.look()

    def who(self) -> str:
        people = runs(self.index, PEOPLE)
        if not people:
            return "I have not seen a person."
        if self.kind == "before" and self.runs:
            return self.who_before(people)
        if self.pinned and self.verdict.time is not None:
            at = mmss(self.verdict.time)
            return f"I see nobody at {at}." if self.known.nobody(self.verdict.frames) else f"A person, at {at}."
        self.show(people[0])
        return f"A person, at {joined([self.at(run) for run in people[:4]])}; names I do not give."

    def who_before(self, people: Sequence[range]) -> str:
        """Who was there before the things, or before those who are there now, came."""
        row = self.verdict.frames[-1]
        earlier = [run for run in people if run.stop <= row + 1]
        if not earlier:
            return "I have seen nobody before that."
        self.show(earlier[-1])
        return f"A person, at {self.at(earlier[-1])}; names I do not give."

    def either(self) -> str:
        present = [word for word, things in self.asked.each if runs(self.index, things)]
        if len(self.asked.each) > 1 and len(present) == 1:
            return f"{counted(present[0], 1).capitalize()}."
        if {"indoors", "outdoors", "inside", "outside"} & set(self.asked.unnamed):
            return self.where()
        return light(self.asked, self.known, self.verdict) or "I am not sure which."

    def look(self) -> str:
        doubt = LOOKS[self.kind]
        if not self.runs and self.asked.when.time is None:
            return doubt
        return f"{doubt[:-1]}; I see {joined(self.said[:3])}." if self.said else doubt

    def moment(self) -> str:
        if not self.verdict.found:
            return "I have not seen that."
        seen = described(self.known, self.verdict.frames)
        shot = self.index.frames_of(self.index.shot_of(self.verdict.frames[0]))
        if not seen and len(shot) <= LONG_TAKE and (seen := described(self.known, shot)):
            self.show(shot)
        if not seen or self.verdict.time is None:
            looks = self.known.scenery(self.verdict.frames)
            return f"I am not sure what this is; the picture is {looks}." if looks else "I am not sure what this is."
        return f"At {mmss(self.verdict.time)} I see {seen}."
