"""Answers composed in code from what the towers and senses know: facts where they are sure, doubts where they are not.

Nothing is said that no sense supports, and what no sense can know (sound, writing, names, feelings) is said to be so.
Empty where the language model is to write. Doubts are worded alike everywhere, so that they can be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.clock import mmss
from pipeline.questions.bodily import Bodily
from pipeline.questions.facts import (
    DOUBTED,
    FEW,
    LONG_TAKE,
    OUTSIDE,
    PARTS,
    PEOPLE,
    SELDOM_MISSED,
    counted,
    described,
    doubtful,
    gaps,
    joined,
    kind_of_person,
    kinds_of,
    named,
    number_word,
    runs,
)
from pipeline.questions.looking import CLOTHES, LOOKED, LOOKS, THERE, TRUE_BY, light
from pipeline.questions.replies import late
from pipeline.questions.tallies import Tallies
from pipeline.questions.things import GROUPED
from pipeline.senses.bodies import HAND
from pipeline.senses.colours import MOST, TERMS
from pipeline.towers.frame_tower import place_of

UNKNOWABLE = {
    "sound": "I cannot hear; I only watch the pictures.",
    "said": "I cannot hear what is said; I only watch the pictures.",
    "text": "I cannot read text in the pictures.",
    "cannot": "I cannot tell that from the pictures.",
    "foreign": "Please ask in English; I understand no other language.",
}
WHENS = ("when", "last", "again", "howlong")
MOST_STAYS = 3  # that are told one by one
NARROWED = {"only", "just", "alone", "both", *TERMS}  # words that ask for less than all of a thing's moments
WHICH = ("position", "holding", "now", "who", "premise", "where")  # of these, "what animal" asks for its name


class Composer(Tallies, Bodily):
    """One question's answer."""

    def answer(self) -> str:
        if self.kind in UNKNOWABLE:
            return self.unfounded(UNKNOWABLE[self.kind])
        if self.verdict.plan == "count" and self.verdict.count is not None:
            said = counted("scene", self.verdict.count) if self.verdict.count > 1 else "one scene"
            return f"{said[0].upper()}{said[1:]} so far."
        if self.kind in ("talk", "about_you", "command", "length"):
            return ""
        if self.verdict.plan == "chat" and not self.asked.each and self.kind not in (*LOOKS, "yesno", "either"):
            return ""
        if self.verdict.late:
            return self.unfounded(late(self.asked))
        if "negated" in self.asked.cues and (not self.asked.each or (self.kind in WHENS and self.of_people())):
            return self.without()
        if self.asked.unnamed[:1] == ("what",) and self.kind in ("position", "holding") and not self.of_a_group():
            return self.on_it()
        if self.pinned and "yes or no" in self.asked.cues and self.of_a_part() and self.somebody():
            return f"Yes, a person's, at {mmss(float(self.index.times[self.verdict.frames[-1]]))}."
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
        if (postures := self.postures()) and (said := self.of_posture(postures)):
            return said
        if self.kind == "doing" and (said := self.doing()):
            return said
        if not self.asked.each and self.asked.place and self.asks_whether():
            return self.setting()
        if "yes or no" in self.asked.cues and (self.kind in LOOKS or self.kind == "count_now") and self.asked.each:
            return self.yes()
        if self.kind in LOOKED:
            return LOOKED[self.kind](self.asked, self.known, self.verdict) or self.look()
        said = tell.get(self.kind, self.look if self.kind in LOOKS else self.moment)()
        doubted = "yes or no" in self.asked.cues and said.startswith("At ")  # what is seen is no yes and no no
        return f"I am not sure; {said[0].lower()}{said[1:]}" if doubted else said

    def of_a_part(self) -> bool:
        """Whether it asks for a hand or an arm, and nothing else."""
        hand = bool(self.asked.each) and all(things.coco == (HAND,) for _, things in self.asked.each)
        return hand or (not self.asked.each and bool(PARTS & set(self.asked.unnamed)))

    def somebody(self) -> bool:
        """Whether a person is seen in the moment, and nothing more is asked of it than parts of one."""
        asks = [word for word in self.asked.unnamed if word not in PARTS | THERE and len(word) > 1]
        return not asks and self.known.there(PEOPLE, self.verdict.frames)

    def asks_whether(self) -> bool:
        """Whether it is a yes-or-no question, be it without its verb: "in the water?"."""
        return "yes or no" in self.asked.cues or len(self.asked.unnamed) == 1

    def of_a_group(self) -> bool:
        """Whether it asks for one of many kinds: "What vegetable is lying there?"."""
        return (
            self.asked.unnamed[:1] in (("what",), ("which",))
            and self.asked.each[:1] != ()
            and (self.asked.each[0][0] in GROUPED and self.kind in WHICH)
        )

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
            return self.unfounded(f"I am not sure whether there is {joined([counted(w, 1) for w in doubted], 'or')}.")
        if self.kind == "list":
            return ""
        words = [word for word, _ in missing]
        there = [word for word, things in of if word not in words]
        unseen = f"I have not seen {joined([counted(word, 1) for word in words], 'or')}"
        seen = f", only {joined([counted(named(word), 1) for word in there])}" if there else ""
        # "Is it a cartoon?" after a car that never came: that there was none is true, "no" to the cartoon is not known.
        denies = self.kind in ("yesno", "both") and not self.asked.refers
        denies &= all(set(things.coco) <= SELDOM_MISSED for _, things in missing)
        said = ("No, " if denies else "") + unseen + seen + "."
        if not there:
            return self.unfounded(said)
        self.show(runs(self.index, next(things for word, things in of if word in there))[0])
        return said

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
            said = self.setting() or light(self.asked, self.known, self.verdict)
            return said or self.unfounded("I am not sure.")
        if not self.runs:
            return self.unfounded("No, I have not seen that.")
        if self.pinned and self.verdict.time is not None and not self.in_view():
            doubt = f"I am not sure about {mmss(self.verdict.time)}"
            not_then = doubt if self.in_view(DOUBTED) or self.often_missed() else f"Not at {mmss(self.verdict.time)}"
            return f"{not_then}; I see {self.things()} at {self.at(self.runs[0])}."
        seen_at = mmss(self.verdict.time) if self.pinned and self.verdict.time is not None else self.at(self.runs[0])
        asks = [word for word in self.asked.unnamed if word not in THERE and len(word) > 1]
        if hue := [word.replace("gray", "grey") for word in asks if word.replace("gray", "grey") in TERMS]:
            if len(hue) > 1:  # "Is it green or red?"
                shown = [term for term in self.known.colours(self.asked.things, self.runs[0]) if term in hue]
                return f"{shown[0].capitalize()}, at {seen_at}." if len(shown) == 1 else "I am not sure which."
            return self.has_colour(hue[0], [word for word in asks if word not in (*TERMS, "gray", *CLOTHES)])
        if len(asks) == 1 and self.known.knows(asks[0]) and self.known.rows_of(asks[0]):  # "Is somebody cycling?"
            return self.setting()
        if asks:
            place = self.asked.place
            more = f"I am not sure whether that is {place}." if place else "I cannot tell more."
            return f"I see {self.things()} at {seen_at}, but {more}"
        if doubted := [word for word, _ in self.asked.each if kind_of_person(word)]:
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
        """Of a place that a yes-or-no question names, or of another word of the places' head."""
        place = self.asked.place
        words = TRUE_BY[place] if place else [word for word in self.asked.unnamed if self.known.knows(word)][:1]
        if not words and not place:
            return ""
        rows = [row for word in words for row in self.known.rows_of(word)]
        if place == "indoors":
            rows = self.known.indoors(range(len(self.index.times)))
        rows = sorted(set(rows) & set(self.verdict.frames)) if self.pinned else sorted(rows)
        if rows:
            self.show(range(rows[0], rows[0] + 1))
            return f"Yes, at {self.at(range(rows[0], len(self.index.times)))}."
        return self.elsewhere(place) if place else self.unfounded("I am not sure.")

    def elsewhere(self, place: str) -> str:
        """Of a place that no sense is sure of: what is known instead."""
        where, seen = self.known.place(self.verdict.frames), joined(self.said[:2])
        at = f"at {mmss(self.verdict.time)}" if self.verdict.time is not None else "there"
        self.verdict = self.verdict._replace(plan="now")  # it was looked at, be it for talk
        outside = place == "outdoors" or bool(set(TRUE_BY[place]) & set(OUTSIDE))
        if where == "indoors" if outside else place == "indoors" and self.known.outdoors(self.verdict.frames):
            return f"No, {at} it is {where}."
        known = f"{at} it is {where}" if where else f"{at} I see {seen}" if seen else ""
        if place == "night" and (shade := {"dark", "bright"} & set(self.known.looks(self.verdict.frames))):
            known = f"{at} the picture is {shade.pop()}"
        doubt = f"I am not sure whether it is {place}"
        return f"{doubt}; {known}." if known else self.unfounded(doubt + ".")

    def when(self) -> str:
        if not self.verdict.found:
            return self.unseen()
        if self.asked.each and self.runs:
            times = self.at(self.runs[0]) if "first" in self.asked.cues else self.stays()
            if doubted := [word for word, _ in self.asked.each if kind_of_person(word)]:
                return f"I see {self.things()} at {times}, but I cannot tell whether it is {counted(doubted[0], 1)}."
            return f"At {times}."
        if self.verdict.time is None or self.known.blank(self.verdict.frames):
            return self.unfounded("I am not sure when that is.")
        return f"At {mmss(self.verdict.time)}."

    def stays(self) -> str:
        """When each stay begins; of many the first, and how many there are more."""
        if len(self.runs) > MOST_STAYS:
            return f"{self.lasting(self.runs[0])}, and {number_word(len(self.runs) - 1)} more times"
        return joined([self.lasting(run) for run in self.runs])

    def unseen(self) -> str:
        """Of what the towers have no word for, that the locator finds it nowhere says little."""
        return self.unfounded("I have not seen that." if self.asked.each else "I am not sure whether that was there.")

    def lasting(self, run: range) -> str:
        """Where it begins; where scenes change meanwhile, where it ends, too."""
        within = self.index.shot_of(run.start) == self.index.shot_of(run.stop - 1)
        return self.at(run) if within else f"{self.at(run)} to {mmss(float(self.index.times[run.stop - 1]))}"

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
            where = self.where()
            outdoors = self.known.outdoors(self.verdict.frames)
            return f"Outdoors, {where[0].lower()}{where[1:]}" if outdoors else where
        return light(self.asked, self.known, self.verdict) or self.unfounded("I am not sure which.")

    def look(self) -> str:
        doubt = LOOKS[self.kind]
        if not self.runs and self.asked.when.time is None:
            return doubt
        return f"{doubt[:-1]}; I see {joined(self.said[:3])}." if self.said else doubt

    def moment(self) -> str:
        if not self.verdict.found:
            return self.unseen()
        seen = described(self.known, self.verdict.frames)
        shot = self.index.frames_of(self.index.shot_of(self.verdict.frames[0]))
        if not seen and len(shot) <= LONG_TAKE and (seen := described(self.known, shot)):
            self.show(shot)
        if not seen or self.verdict.time is None:
            return self.known.unsure(self.verdict.frames)
        return f"At {mmss(self.verdict.time)} I see {seen}."
