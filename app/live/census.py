"""Census: what a server holds and has done, in numbers an operator may know. Nothing of what is watched or said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from app.live.table import Sessions
from app.live.view import Phase
from pipeline import Engine

SIZES = "asleep_bytes", "state_bytes", "memory_bytes", "kept_bytes"
SUMMED = ("asleep", "places", "free", "came_back", "sources", *SIZES)  # over several engines
HANGS_S = 120.0  # a turn of a model that lasts longer never ends: the longest, a cold start on a GPU, take half of it


@dataclass(frozen=True)
class ModelCensus:
    """One model. counts: what it did since it was loaded, by name; waiting: chunks and words that somebody waits for;
    turn_s: seconds that it has been at work on one of them."""

    name: str
    counts: dict[str, int]
    waiting: int
    turn_s: float


@dataclass(frozen=True)
class Census:
    """streams: how many stand in each phase. asleep: how many of them lie on the disk alone. places: of the server, in
    memory; free: streams that may come. in_line: visitors who wait for a place.
    Bytes of all streams' states, memories and of what is kept on the disk. came_back: streams that went on after a
    restart. sources: the operator's own."""

    streams: dict[str, int]
    asleep: int
    asleep_bytes: int
    places: int
    free: int
    in_line: int
    state_bytes: int
    memory_bytes: int
    kept_bytes: int
    came_back: int
    sources: int
    models: tuple[ModelCensus, ...]

    @property
    def hangs(self) -> str:
        """Which model hangs, in a sentence; "" where none does."""
        stuck = next((one for one in self.models if one.turn_s > HANGS_S), None)
        if stuck is None:
            return ""
        return f"{stuck.name} has been at work on one turn for {stuck.turn_s:.0f} s, so everybody waits; restart it."


def census(sessions: Sessions) -> Census:
    """Of now. Looking keeps no stream alive."""
    views = [session.view() for session in sessions.everyone()]
    models = [model for view in views for model in view.models]
    phases = Counter(view.phase for view in views)
    free, in_line = sessions.standing
    asleep, asleep_bytes = sessions.asleep
    return Census(
        streams={phase.value: phases[phase] for phase in Phase},
        asleep=asleep,
        asleep_bytes=asleep_bytes,
        places=sessions.places,
        free=free,
        in_line=in_line,
        state_bytes=sum(model.state_bytes for model in models),
        memory_bytes=sum(model.memory_bytes for model in models),
        kept_bytes=sum(view.kept.nbytes for view in views if view.kept),
        came_back=sessions.came_back,
        sources=len(sessions.shared),
        models=tuple(of_model(engine) for engine in (sessions.engine, sessions.rival) if engine),
    )


def together(several: Sequence[Census], in_line: int) -> Census:
    """Of engines that serve the same page. in_line: who waits before all of them. A model's turn is the longest."""
    phases: Counter[str] = Counter()
    models: dict[str, ModelCensus] = {}
    for one in several:
        phases.update(one.streams)
        for model in one.models:
            before = models.get(model.name, ModelCensus(model.name, {}, 0, 0.0))
            counts = dict(Counter(before.counts) + Counter(model.counts))
            turn_s = max(before.turn_s, model.turn_s)
            models[model.name] = ModelCensus(model.name, model.counts | counts, before.waiting + model.waiting, turn_s)

    def all_of(name: str) -> int:
        return sum(getattr(one, name) for one in several)

    streams = {phase.value: phases[phase] for phase in Phase}
    summed = {name: all_of(name) for name in SUMMED}
    return Census(streams=streams, in_line=in_line, models=tuple(models.values()), **summed)


def of_model(engine: Engine) -> ModelCensus:
    return ModelCensus(engine.name, asdict(engine.tally.done), engine.waiting, engine.turn_s)
