"""Timeline: the list of events of one stream, and the producers that fill it after each chunk.

It lies beside the state, which stays a pure function of the pictures. A producer is fed picture by picture, so how the
video is cut into chunks never changes what it notices; what it asks of a state is about seconds that state has seen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from pipeline.engine import Engine
from pipeline.sources.shots import Shots
from pipeline.stream import Event, Frame, Question, Rule, Sampling, StreamState, UserError
from pipeline.timeline.alerts import COOL_DOWN, Armed, AskedSpotter
from pipeline.timeline.captions import Captions
from pipeline.timeline.chapters import chapters

KEPT = 5_000  # events of a stream
GAP = 10.0  # seconds without a picture of a live stream from which on nothing was seen
UNSEEN = "Nothing was seen."
RULES = 20  # of a stream
RULE_CHARACTERS = 300
PIECE = 4  # pictures of a caption's piece, where an index tells them
ASKED_PIECE = 30  # where the model must be asked
ASKED_TOKENS = 32


class Timeline:
    """One thread feeds it, any may look at `events`: what has ended never changes, and more is only appended.

    limit: events kept. Of more, the oldest of the commonest kind goes, so that a rare alert outlives a thousand shots.
    live: whether pictures come as they are taken, so that where none came nothing was seen; a file's last one stands.
    """

    def __init__(self, engine: Engine, limit: int = KEPT, live: bool = False) -> None:
        self.engine, self.limit, self.live = engine, limit, live
        self.events: tuple[Event, ...] = ()  # those that have ended, then those that go on (`until` None)
        self._armed: tuple[Armed, ...] = ()
        self._rules_taken = 0
        self._ended: list[Event] = []
        self._shots, self._captions = Shots(), Captions(PIECE)
        self._newest = -1.0  # second of the newest picture
        self._pictures = 0
        self._whole = 0.0  # newest second whose pictures the tower has encoded, however the chunks were cut

    def go_on(self, events: Sequence[Event], at: float) -> None:
        """With what was noticed before of a stream that was seen until that second. The shot that went on goes on, a
        caption begins anew. Before anything is watched."""
        self._ended = [e for e in events if e.until is not None and e.until <= at and e.kind != "chapter"]
        self._shots.go_on(max((e.until or 0.0 for e in self._ended if e.kind == "shot"), default=0.0))
        self._captions.go_on(at)
        self._newest = at
        self._show()

    def take_rules(self, rules: Sequence[Rule], state: StreamState) -> tuple[Rule, ...]:
        """Rules that were there before: judged as if they had been all along, and what they told is not told twice.
        Before anything else is watched. Returns those that this model cannot judge, which are left out."""
        left_out: list[Rule] = []
        for rule in rules:
            self._rules_taken = max(self._rules_taken, rule.number)
            try:
                index = self.engine.model.spotter(rule.text)
            except UserError:
                left_out.append(rule)
                continue
            armed = Armed(rule, index or AskedSpotter(rule.text, self.engine), -math.inf if index else self._newest)
            if index and state.frames:
                told = {(event.text, event.until) for event in self._ended}
                self._keep([event for event in armed.judge(state) if (event.text, event.until) not in told])
            self._armed = (*self._armed, armed)
        self._show()
        return tuple(left_out)

    def watched(self, frames: Sequence[Frame], state: StreamState, hurry: bool = False) -> None:
        """What is to be noticed of the pictures of a chunk. state: after it. hurry: asks the model nothing."""
        if self.engine.model.shows(state, 0.0, 0.0) is None:
            self._captions.pictures = ASKED_PIECE
        for frame in frames:
            if frame.time > self._newest:  # what overflowed is watched again
                self._see(frame, state, hurry)
        self.judge(state)

    def judge(self, state: StreamState) -> None:
        """Alerts of what was seen and not judged yet. Whoever adds a rule to a stream that is over calls it."""
        for armed in self._armed:
            with suppress(UserError):  # such as no memory left: asked again after the next chunk, and other rules go on
                self._keep([*armed.judge(state)])
        self._show()

    def add(self, event: Event) -> None:
        """An event that is over and that others noticed, such as a gap of the source."""
        self._keep([event])
        self._show()

    @property
    def rules(self) -> tuple[Rule, ...]:
        return tuple(armed.rule for armed in self._armed)

    def add_rule(self, text: str, cool_down: float = COOL_DOWN) -> Rule:
        """Any thread may. An index is judged from its start, a model is asked from now on. UserError for a rule that
        cannot be judged, and for one too many."""
        if len(self._armed) >= RULES:
            raise UserError(f"There are {RULES} rules already, so this one was not taken; remove another first.")
        if not text.strip() or len(text) > RULE_CHARACTERS:
            raise UserError(
                f"A rule has 1 to {RULE_CHARACTERS} characters, so this one was not taken; "
                "say in a few words what to tell of."
            )
        index = self.engine.model.spotter(text)
        spotter = index or AskedSpotter(text, self.engine)
        self._rules_taken += 1
        rule = Rule(text, spotter.says, cool_down, self._rules_taken)
        self._armed = (*self._armed, Armed(rule, spotter, -math.inf if index else self._newest))
        return rule

    def remove_rule(self, number: int) -> None:
        """What it told stays."""
        self._armed = tuple(armed for armed in self._armed if armed.rule.number != number)

    def finish(self, state: StreamState, hurry: bool = False) -> None:
        """The stream is over: what goes on ends with it, and it gets its chapters."""
        end = max(state.seen_until, self._newest)
        shot = self._shots.end(end)
        said = self._captions.end(end, lambda start, _: self._words(state, start, math.inf, hurry))
        self._keep([*said, *([shot] if shot else [])])
        self._shots = Shots()
        self._keep(chapters(self._ended, end))
        self._show()

    def _see(self, frame: Frame, state: StreamState, hurry: bool) -> None:
        if self.live and frame.time - self._newest > GAP and self._newest >= 0:
            self._miss(frame.time, state, hurry)
        first = self._shots.going is None
        shot = self._shots.add(frame)
        cut = first or shot is not None
        said = self._captions.add(frame.time, cut, lambda a, b: self._words(state, a, b, hurry))
        self._keep([*said, *([shot] if shot else [])])
        self._newest, self._pictures = frame.time, self._pictures + 1
        if self._pictures % self.engine.unit_frames == 0:
            self._whole = frame.time

    def _miss(self, until: float, state: StreamState, hurry: bool) -> None:
        """No picture came until that second: what was seen ends before, and begins anew after."""
        said = self._captions.end(self._newest, lambda start, _: self._words(state, start, until, hurry))
        shot = self._shots.end(self._newest)
        known = any(e.kind == "gap" and e.until and self._newest < e.until <= until for e in self._ended)  # by `add`
        gap = [] if known else [Event(self._newest, "gap", UNSEEN, until=until)]
        self._keep([*said, *([shot] if shot else []), *gap])
        self._shots = Shots()
        self._shots.go_on(until)
        self._captions.go_on(until)

    def _words(self, state: StreamState, start: float, end: float, hurry: bool) -> str:
        """What is surely seen: by the model's index, else in its own words."""
        model = self.engine.model
        said = model.shows(state, start, end)
        if said is not None:
            return said
        if hurry or not model.caption_question or self._whole < start:
            return ""
        question = Question(model.caption_question, at=self._whole)
        try:
            *_, answer = self.engine.ask(question, state, Sampling(max_tokens=ASKED_TOKENS))
        except UserError:  # such as no memory left: then nothing is said
            return ""
        return answer.text.strip()

    def _keep(self, events: Sequence[Event]) -> None:
        self._ended.extend(events)
        while len(self._ended) > self.limit:
            kind = Counter(event.kind for event in self._ended).most_common(1)[0][0]
            del self._ended[next(i for i, event in enumerate(self._ended) if event.kind == kind)]

    def _show(self) -> None:
        going = [event for event in (self._shots.going, self._captions.going) if event]
        self.events = (*self._ended, *(replace(event, until=None) for event in going))
