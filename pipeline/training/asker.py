"""Asks questions about one synthetic video: wording, the moment asked about, the moments it rests on, and the answer.

Every answer can be written from the frames of its target shots and a short note: times, counts and class words in it
are the note's. `kind` follows from the wording alone, so a refusal has the kind of the question that met it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pipeline.training.phrases import Phrase, wordings
from pipeline.training.questions import Dice, Example, Shot, agree, clock, restyle, time_phrase, upper
from pipeline.training.world import Fact, World


class Asker:
    """Makes questions about one video. A recipe returns None where this video cannot carry its question."""

    def __init__(self, world: World, shots: Sequence[Shot], pool: np.ndarray, dice: Dice, split: str) -> None:
        self.world, self.shots, self.pool, self.dice, self.train = world, shots, pool, dice, split == "train"
        self.words = wordings(split)
        self.starts = np.array([s.start for s in shots])
        self.end = shots[-1].end - 1
        self.pictures = np.array([s.picture for s in shots])
        self.mentions, self.maybe = world.mentions[self.pictures], world.maybe[self.pictures]
        self.vague = world.vague[self.pictures]
        self.say_yes = dice.chance(0.5)  # flips with every yes/no question made, so that they balance

    # --- what the recipes share -------------------------------------------------------------------------------

    def seen(self, at: int) -> int:
        """How many shots have begun by second `at`."""
        return int(np.searchsorted(self.starts, at, side="right"))

    def some_time(self) -> int:
        """When to ask: half of the time at the end, else anywhere after the first seconds."""
        return self.end if self.dice.chance(0.5) else self.dice.between(min(4, self.end), self.end)

    def inside(self, shot: int) -> int:
        """A second of the shot to ask at."""
        return self.dice.between(self.shots[shot].start, self.shots[shot].end - 1)

    def wording(self, section: str, **blanks: str) -> str:
        text = agree(self.dice.pick(self.dice.pick(self.words[section])), blanks.get("np", ""))
        if "at" in blanks:
            text = text.replace("{At}", upper(blanks["at"]))
        return restyle(upper(text.format(**blanks)), self.dice)

    def say(self, shot: int, skip: int = -1) -> str:
        """What is to be seen in a shot: one of its captions (not number `skip`), or its class word."""
        p = self.shots[shot].picture
        captions = self.world.pictures[p].captions
        if not captions:
            form = self.dice.pick(("{0}.", "{0}.", "There is {0}.", "It is {0}.")) if self.train else "{0}."
            return upper(form.format(self.world.label(p)))
        k = self.dice.below(len(captions))
        return captions[(k + 1) % len(captions)] if k == skip else captions[k]

    def same(self, shot: int, n: int) -> tuple[int, ...]:
        """All shots among the first n that show the shot's picture."""
        return tuple(np.flatnonzero(self.pictures[:n] == self.pictures[shot]).tolist())

    def choices(self, shot: int, answer: str) -> tuple[str, ...]:
        """The answer and seven wrong ones, from other shots of the video first, then from other pictures."""
        if self.train:
            return ()
        right = self.world.pictures[self.pictures[shot]].label or self.pictures[shot]
        others = [s for s, p in enumerate(self.pictures) if (self.world.pictures[p].label or p) != right]
        wrong: dict[str, None] = {}
        for s in (others[i] for i in self.dice.rng.permutation(len(others))[:7]):
            wrong[self.say(s)] = None
        for _ in range(50):
            p = int(self.dice.pick(self.pool))
            if len(wrong) < 7 and p != self.pictures[shot]:
                label = self.world.pictures[p].label
                wrong[
                    upper(self.world.label(p)) + "." if label else self.dice.pick(self.world.pictures[p].captions)
                ] = None
        return (answer, *[w for w in wrong if w != answer][:7])

    def told(self, kind: str, text: str, at: int, shot: int, **more) -> Example:
        """An example answered by what one shot shows; every shot of the same picture is right."""
        answer = more.pop("answer", None) or self.say(shot)
        more.setdefault("target_shots", (shot,))
        more.setdefault("refer_shots", more["target_shots"])
        return Example(kind, text, at, answer=answer, choices=self.choices(shot, answer), **more)

    # --- words that fit exactly one shot ----------------------------------------------------------------------

    def unique(self, shot: int, n: int) -> tuple[str, int] | None:
        """Words that fit the shot and no other of the first n, and the caption number they come from (-1: none)."""
        p = self.shots[shot].picture
        if self.world.pictures[p].label:
            return (self.world.label(p), -1) if self._label_unique(shot, n) else None
        if self.dice.chance(0.3) and (noun := self._unique_noun(shot, n)) is not None:
            return self.world.concepts[noun].one, -1
        found = self.world.phrases[p]
        for k, phrase in (self.dice.pick(found) for _ in range(2 if found else 0)):
            if self._unique_note(shot, n, self.world.notes[p][k]):
                return phrase.np, k
        return None

    def _label_unique(self, shot: int, n: int) -> bool:
        p = self.shots[shot].picture
        label = self.world.pictures[p].label
        same = [q for q in self.pictures[:n] if q != p and self.world.pictures[q].label == label]
        return not same and bool(self.world.rare_label[p])

    def _unique_noun(self, shot: int, n: int) -> int | None:
        """A concept two captions of the shot name and no other picture of the first n may hold."""
        others = self.pictures[:n] != self.pictures[shot]
        fits = self.world.absent(self.maybe[:n][others], self.vague[:n][others]) & (self.mentions[shot] >= 2)
        found = np.flatnonzero(fits)
        return int(self.dice.pick(found)) if len(found) else None

    def _unique_note(self, shot: int, n: int, note: np.ndarray) -> bool:
        if len(note) < 2:
            return False
        others = self.pictures[:n] != self.pictures[shot]
        held = np.where(self.vague[:n, None], self.mentions[:n][:, note] > 0, self.maybe[:n][:, note])
        return not (held.all(1) & others).any()

    def missing(self, n: int) -> str | None:
        """Words for something the first n shots do not show: a description, a class or a thing."""
        u = self.dice.uniform()
        if u < 0.3:
            concept = self._missing_noun(n)
            return None if concept is None else self.world.concepts[concept].one
        for _ in range(24):
            p = int(self.dice.pick(self.pool))
            if self.world.pictures[p].label and self._label_missing(p, n):
                return self.world.label(p)
            if self.world.phrases[p]:
                k, phrase = self.dice.pick(self.world.phrases[p])
                if self._note_missing(self.world.notes[p][k], n):
                    return phrase.np
        return None

    def _missing_noun(self, n: int) -> int | None:
        """An absent concept, drawn by how common it is, so that "dog" is denied as often as "drum" is not."""
        weights = self.world.absent(self.maybe[:n], self.vague[:n]) * (self.world.share + 0.002)
        return self.dice.weighted(weights) if weights.any() else None

    def _label_missing(self, p: int, n: int) -> bool:
        if not self.world.rare_label[p]:
            return False
        label, held = self.world.pictures[p].label, self.world.mentions[p] > 0
        shown = [self.world.pictures[q].label for q in self.pictures[:n] if self.world.vague[q]]
        return label not in shown and not (self.mentions[:n][:, held].any() if held.any() else False)

    def _note_missing(self, note: np.ndarray, n: int) -> bool:
        """No shot holds most of the description, and (in all but very long videos) a thing of it is nowhere."""
        if len(note) < 2:
            return False
        held = self.maybe[:n][:, note] & ~self.vague[:n, None]
        nowhere = self.world.asked[note] & ~held.any(0)
        return bool(held.mean(1).max() <= 0.6 and (n > 100 or nowhere.any()))

    # --- recipes ----------------------------------------------------------------------------------------------

    def now(self) -> Example:
        at = self.some_time()
        shot = self.seen(at) - 1
        return self.told("now", self.wording("now"), at, shot, note_time=at)

    def at(self) -> Example:
        at = self.some_time()
        t = self.dice.between(0, at)
        step = self.dice.pick((1, 1, 5, 10, 30, 60))  # people like round times
        t = t // step * step if t >= step else t
        text = self.wording("at", at=time_phrase(t, self.dice))
        return self.told("at", text, at, self.seen(t) - 1, note_time=t, named_time=t)

    def notyet(self) -> Example:
        at = self.dice.between(0, self.end)
        t = at + self.dice.between(2, max(10, at))
        text = self.wording("at", at=time_phrase(t, self.dice))
        return Example("at", text, at, (), (), f"The video has not reached {clock(t)} yet.", named_time=t, absent=True)

    def when(self) -> Example | None:
        at = self.some_time()
        n = self.seen(at)
        shot = self.dice.below(n)
        if (found := self.unique(shot, n)) is None:
            return None
        shots = self.same(shot, n)
        start = self.shots[shots[0]].start
        answer = self.dice.pick(("At {0}.", "At {0}.", "It appears at {0}.", "You can see it at {0}.")).format(
            clock(start)
        )
        return Example("when", self.wording("when", np=found[0]), at, shots, shots, answer, note_time=start)

    def where_nothing(self) -> Example | None:
        at = self.some_time()
        if (np_ := self.missing(self.seen(at))) is None:
            return None
        kind = self.dice.pick(("when", "when", "when", "describe", "after", "before"))
        answer = self.dice.pick(self.words["refusals"])[0]
        return Example(kind, self.wording(kind, np=np_), at, (), (), answer, absent=True)

    def after(self) -> Example | None:
        return self._neighbour("after", 1, "Nothing after that yet.")

    def before(self) -> Example | None:
        return self._neighbour("before", -1, "Nothing before that.")

    def _neighbour(self, kind: str, step: int, edge: str) -> Example | None:
        at = self.some_time()
        n = self.seen(at)
        at_edge = self.dice.chance(0.08)
        shot = (0 if step < 0 else n - 1) if at_edge else self.dice.below(n)
        if len(self.same(shot, n)) > 1 or (found := self.unique(shot, n)) is None:
            return None
        text = self.wording(kind, np=found[0])
        if not 0 <= shot + step < n:
            return Example(kind, text, at, (), (shot,), edge) if at_edge else None
        start = self.shots[shot + step].start
        answer = self.say(shot + step)
        answer = answer[:-1] + f", at {clock(start)}." if self.dice.chance(0.2) else answer
        return self.told(kind, text, at, shot + step, refer_shots=(shot,), answer=answer, note_time=start)

    def first(self) -> Example:
        return self.told("first", self.wording("first"), self.some_time(), 0, note_time=0)

    def last(self) -> Example:
        at = self.some_time()
        shot = self.seen(at) - 1
        return self.told("last", self.wording("last"), at, shot, note_time=self.shots[shot].start)

    def yesno(self) -> Example | None:
        if self.dice.chance(0.25):
            made = self._yes_now() if self.say_yes else self._no_now()
        else:
            made = self._yes() if self.say_yes else self._no()
        self.say_yes = self.say_yes if made is None else not self.say_yes
        return made

    def _yes(self) -> Example | None:
        at = self.some_time()
        n = self.seen(at)
        if self.dice.chance(0.4):
            shot = self.dice.below(n)
            found = self.unique(shot, n)
            return None if found is None else self._yes_at(at, self.same(shot, n), shot, found[0])
        sure = (self.mentions[:n] >= 2).any(0) & self.world.asked
        if not sure.any():
            return None
        concept = self.dice.weighted(sure / (self.world.share + 0.01))
        shots = tuple(np.flatnonzero(self.mentions[:n, concept]).tolist())
        first = next(s for s in shots if self.mentions[s, concept] >= 2)
        return self._yes_at(at, shots, first, self.world.concepts[concept].one)

    def _yes_at(self, at: int, shots: tuple[int, ...], shot: int, words: str) -> Example:
        shots = (shot, *(s for s in shots if s != shot))  # the surest first: its time is the note's
        start = self.shots[shot].start
        answer = self.dice.pick(("Yes, at {0}.", "Yes, at {0}.", "Yes, I saw that at {0}.")).format(clock(start))
        return Example("yesno", self.wording("yesno", np=words), at, shots, shots, answer, note_time=start)

    def _no(self) -> Example | None:
        at = self.some_time()
        if (words := self.missing(self.seen(at))) is None:
            return None
        answer = self.dice.pick(
            ("No, I have not seen that.", "No, I have not seen that.", "No, that has not appeared.")
        )
        return Example("yesno", self.wording("yesno", np=words), at, (), (), answer, absent=True)

    def _yes_now(self) -> Example | None:
        shot = self.dice.below(len(self.shots))
        sure = (self.mentions[shot] >= 2) & self.world.asked
        if not sure.any():
            return None
        one = self.world.concepts[self.dice.weighted(sure / (self.world.share + 0.01))].one
        at = self.inside(shot)
        answer = self.dice.pick((f"Yes, I see {one} now.", f"Yes, there is {one}.", "Yes."))
        return Example("yesno", self.wording("yesno_now", one=one), at, (shot,), (shot,), answer, note_time=at)

    def _no_now(self) -> Example | None:
        """About something common, or something shown earlier, that is not in the current shot."""
        shot = self.dice.below(len(self.shots))
        earlier = (self.mentions[:shot] >= 2).any(0) if shot and self.dice.chance(0.5) else True
        absent = self.world.absent(self.maybe[shot : shot + 1], self.vague[shot : shot + 1])
        weights = absent * earlier * (self.world.share + 0.002)
        if not weights.any():
            return None
        one = self.world.concepts[self.dice.weighted(weights)].one
        answer = self.dice.pick((f"No, I do not see {one} now.", "No, not at the moment.", "No."))
        return Example("yesno", self.wording("yesno_now", one=one), self.inside(shot), (), (), answer, absent=True)

    def count(self) -> Example:
        at = self.some_time()
        n = self.seen(at)
        scenes = "1 scene" if n == 1 else f"{n} scenes"
        verb = "has" if n == 1 else "have"
        answer = self.dice.pick((f"There {verb} been {scenes} so far.", f"{upper(scenes)} so far.", f"{scenes}."))
        return Example("count", self.wording("count"), at, (), (), answer, note_count=n)

    def count_of(self) -> Example | None:
        at = self.some_time()
        n = self.seen(at)
        if self.dice.chance(0.25):
            concept = self._missing_noun(n)
            if concept is None:
                return None
            text = self.wording("count_of", one=self.world.concepts[concept].one)
            return Example("count_of", text, at, (), (), "None, I have not seen that.", note_count=0, absent=True)
        sure = self.mentions[:n] >= 2
        number = sure.sum(0)
        clear = (sure == self.maybe[:n]).all(0) & (number > 0) & (number <= 6) & self.world.asked
        clear &= self.world.is_animal | (not self.vague[:n].any())
        if not clear.any():
            return None
        return self._counted(at, n, self.dice.weighted(clear * number.astype(float)))

    def _counted(self, at: int, n: int, concept: int) -> Example:
        shots = tuple(np.flatnonzero(self.mentions[:n, concept]).tolist())
        times = tuple(self.shots[s].start for s in shots)
        scenes = "1 scene" if len(shots) == 1 else f"{len(shots)} scenes"
        answer = f"{scenes}: {', '.join(clock(t) for t in times)}." if self.dice.chance(0.5) else f"{scenes}."
        text = self.wording("count_of", one=self.world.concepts[concept].one)
        return Example("count_of", text, at, shots, shots, answer, note_times=times, note_count=len(shots))

    def list(self) -> Example:
        at = self.some_time()
        n = self.seen(at)
        shots = tuple(dict.fromkeys(np.linspace(0, n - 1, min(n, 6)).round().astype(int).tolist()))
        times = tuple(self.shots[s].start for s in shots)
        answer = "; ".join(f"{clock(t)} {self.world.short(self.shots[s].picture)}" for s, t in zip(shots, times)) + "."
        return Example("list", self.wording("list"), at, shots, shots, answer, note_times=times)

    def describe(self) -> Example | None:
        at = self.some_time()
        n = self.seen(at)
        if self.dice.chance(0.35):
            return self.told("describe", self.wording("describe_now"), at, n - 1, note_time=at)
        shot = self.dice.below(n)
        if (found := self.unique(shot, n)) is None:
            return None
        shots = self.same(shot, n)
        text, answer = self.wording("describe", np=found[0]), self.say(shot, skip=found[1])
        start = self.shots[shots[0]].start
        return self.told("describe", text, at, shot, answer=answer, target_shots=shots, note_time=start)

    def name(self) -> Example | None:
        labelled = np.flatnonzero(self.vague)
        if not len(labelled):
            return None
        shot = int(self.dice.pick(labelled))
        label = self.world.label(self.shots[shot].picture)
        answer = upper(self.dice.pick(("{0}.", "{0}.", "It is {0}.", "This looks like {0}.")).format(label))
        at = t = self.inside(shot)
        if self.dice.chance(0.3):
            at = self.dice.between(t, self.end)
            text, named = self.wording("name_at", at=time_phrase(t, self.dice)), t
        else:
            text, named = self.wording("name"), None
        return self.told("name", text, at, shot, answer=answer, note_time=t, named_time=named)

    def attribute(self) -> Example | None:
        shot = self.dice.below(len(self.shots))
        p = self.shots[shot].picture
        acting = [(k, f) for k, f in self.world.phrases[p] if f.subject]
        if acting and (not self.world.facts[p] or self.dice.chance(0.3)):
            return self._doing(shot, *self.dice.pick(acting))
        fact = self.dice.pick(self.world.facts[p]) if self.world.facts[p] else None
        if fact is None or (fact.answer.startswith("One") and self.dice.chance(0.6)):  # "one" would drown the others
            return None
        return self._fact(shot, fact)

    def _doing(self, shot: int, k: int, phrase: Phrase) -> Example:
        at = self.inside(shot)
        text = self.wording("doing_many" if phrase.many else "doing", subject=phrase.subject)
        answer = self.world.pictures[self.shots[shot].picture].captions[k]
        return self.told("attribute", text, at, shot, answer=answer, note_time=at)

    def _fact(self, shot: int, fact: Fact) -> Example:
        """Asked while the shot is on, or later where the thing is in no other shot or the question names a time."""
        at = t = self.inside(shot)
        if fact.form == "how_many" and self.dice.chance(0.35):
            at = self.dice.between(t, self.end)
            text = self.wording("how_many_at", at=time_phrase(t, self.dice), **fact.names)
            return self.told("attribute", text, at, shot, answer=fact.answer, note_time=t, named_time=t)
        later = self.dice.between(t, self.end)
        n = self.seen(later)
        others = self.pictures[:n] != self.pictures[shot]
        if fact.form != "how_many" and self.world.absent(self.maybe[:n][others], self.vague[:n][others])[fact.concept]:
            at = later
        return self.told("attribute", self.wording(fact.form, **fact.names), at, shot, answer=fact.answer, note_time=t)

    def chat(self) -> Example:
        question, _, answer = self.dice.pick(self.words["chat"])[0].partition("|")
        return Example("chat", restyle(question, self.dice), self.some_time(), (), (), answer)

    def ask(self, recipe: str) -> Example | None:
        """One question by a recipe's name, or None where the video cannot carry it."""
        make: Callable[[], Example | None] = getattr(self, recipe)
        example = make()
        return None if example is None else replace(example, recipe=recipe)
