"""Alerts: what a visitor wants to be told of, once each time it comes (or goes), and seldom when it does not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.engine import Engine
from pipeline.stream import Event, Question, Rule, Sampling, Spotter, StreamState

SURE = 0.6  # score from which a picture shows the thing: see pipeline/training/alerts.py for what comes of it
CLEAR = 0.3  # score below which it does not
NEWEST, SHOWING = 3, 2  # of the newest pictures, how many must show it
LONGEST_RUN = 30  # pictures that an alert rests on, at most
LASTING, LASTS = 5, 0.44  # or so many one after the other, none clear of it, with this mean
ENOUGH = 8.0  # or, where what pictures say adds up, a sum of so much for the thing (natural logarithm of odds)
MOST = 0.6 * ENOUGH  # of which one picture gives no more than this, so that none alone tells
ABSENT = 3  # pictures one after the other that must be clear of it
COOL_DOWN = 10.0  # seconds
ASKED_EVERY = 2.0  # seconds of the video between two questions, where a model must be asked


class Glimpse(NamedTuple):
    """A picture's second, and how surely the thing is in it."""

    time: float
    score: float


class Total:
    """What pictures say for a thing, added up: a cumulative sum of log-likelihood ratios that never falls below 0 and
    is kept from growing past what is enough (CUSUM: Page 1954, "Continuous inspection schemes")."""

    def __init__(self) -> None:
        self.sum, self.run = 0.0, deque[Glimpse](maxlen=LONGEST_RUN)  # run: the pictures since it was 0

    def add(self, one: Glimpse) -> None:
        chance = min(max(one.score, 1e-9), 1 - 1e-9)
        self.sum = min(self.sum + min(math.log(chance / (1 - chance)), MOST), ENOUGH)
        self.run.append(one)
        if self.sum <= 0:
            self.clear()

    def clear(self) -> None:
        self.sum = 0.0
        self.run.clear()


class Armed:
    """Judges one rule picture by picture. A thing that stays is told once; told again after it was absent.

    A cool-down counts from the alert that was sent. What comes meanwhile and stays is told when it is over.
    until: second of the newest picture that was judged.
    """

    def __init__(self, rule: Rule, spotter: Spotter, until: float = -math.inf) -> None:
        self.rule, self.spotter, self.until = rule, spotter, until
        self._quiet_until = -math.inf
        self._newest: deque[Glimpse] = deque(maxlen=max(NEWEST, ABSENT, LASTING))
        self._armed = not spotter.gone  # what goes must have been there
        self._total = Total()

    def judge(self, state: StreamState) -> Iterator[Event]:
        """The alerts of the pictures that came since."""
        for time, score in self.spotter.seen(state, self.until):
            self.until = time
            self._newest.append(Glimpse(time, score))
            self._total.add(self._newest[-1])
            yield from self._judged(time)

    def _judged(self, time: float) -> Iterator[Event]:
        shown, clear = self._shown(), [one for one in list(self._newest)[-ABSENT:] if one.score < CLEAR]
        present, absent = bool(shown), len(clear) == ABSENT
        comes, rests = (absent, clear) if self.spotter.gone else (present, shown)
        if comes and self._armed and time >= self._quiet_until:
            self._armed, self._quiet_until = False, time + self.rule.cool_down
            scores = [one.score for one in rests]
            weight = sum(scores) / len(scores)
            yield Event(rests[0].time, "alert", self.rule.says, 1 - weight if self.spotter.gone else weight, time)
        elif present if self.spotter.gone else absent:
            self._armed = True
            self._total.clear()

    def _shown(self) -> list[Glimpse]:
        """The pictures that show the thing: those that add up to enough; where scores do not add up, enough of the
        newest surely, or a run of them that is likely as a whole."""
        if self.spotter.adds_up:
            return list(self._total.run) if self._total.sum >= ENOUGH else []
        newest = list(self._newest)
        surely = [one for one in newest[-NEWEST:] if one.score >= SURE]
        if len(surely) >= SHOWING:
            return surely
        run = newest[-LASTING:]
        likely = len(run) == LASTING and min(one.score for one in run) >= CLEAR
        return run if likely and sum(one.score for one in run) >= LASTS * LASTING else []


class AskedSpotter:
    """Where no index tells: the model is asked whether it is so, every other second and pinned to it."""

    gone = False  # the question is whether it is so, coming or going
    adds_up = False  # yes or no is no chance

    def __init__(self, text: str, engine: Engine) -> None:
        self.says, self._engine = text, engine
        self._question = f'Somebody wants to know: "{text}" Is that so right now? Answer yes or no.'

    def seen(self, state: StreamState, since: float) -> Sequence[tuple[float, float]]:
        first = math.floor(since / ASKED_EVERY) + 1 if since >= 0 else 0
        seconds = [n * ASKED_EVERY for n in range(first, math.floor(state.seen_until / ASKED_EVERY) + 1)]
        # What waits for its partner is not asked about yet: afterwards the answer may be another.
        return [(at, self._score(at, state)) for at in seconds if not state.held or at < state.held[0].time]

    def _score(self, at: float, state: StreamState) -> float:
        *_, answer = self._engine.ask(Question(self._question, at=at), state, Sampling(max_tokens=3))
        return float(answer.text.strip().lower().startswith("yes"))
