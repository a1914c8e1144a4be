"""The bench at the embedded size: a model and its baseline watch the same growing video and are asked on the way.

The pictures are made, not decoded: smooth, moving, a new scene every half minute, the same for both models. At every
mark it notes the median time of a chunk, what the stream keeps (state and memory), and how fast an answer comes: the
first word of the one that is given (the embedded model's is composed), and words that are written (`words.py`).
Beside the times stands a floor, what this machine could do at best: the multiplications that call really made at the
rate of a large matrix product measured here, or the bytes those multiplications must read at the rate of a large copy
measured here, whichever takes longer. Element-wise work is not in it, so nothing reaches it. Reading it: ten times the
floor is overhead worth hunting, twice the floor is good. Times on a busy machine are worthless: `conditions.load` says
how busy it was.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import sys
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import numpy as np

import pipeline
from pipeline.assets import example_clip
from pipeline.bench.cost import Cost, add_floors
from pipeline.bench.machine import machine_conditions, peak_memory, reset_peak_memory, timed
from pipeline.bench.upkeep import measure_upkeep
from pipeline.bench.words import measure_words
from pipeline.engine import Engine
from pipeline.heap import resident_bytes
from pipeline.models import load as loading
from pipeline.models.embedded import EmbeddedModel
from pipeline.stream import Frame, Model, Question, Sampling, StreamState, UserError, VideoChunk
from pipeline.timeline.gleaner import Gleaner, Played
from pipeline.timeline.timeline import Timeline

FPS = 1.0
SCENE_S = 30
PER_CHUNK = 8
RECENT = 32  # chunks before a mark whose median counts
QUESTION = Question("Describe everything you have seen so far.")
TOKENS = 32
NOTICED = 5  # chunks whose median the timeline's cost is
RULES = (
    "tell me when a person enters",
    "tell me when a dog or a cat appears",
    "let me know when there are more than two cars",
    "notify me when the person leaves",
    "tell me when a bottle is there",
)
RATIOS = ("chunk_ms", "state_bytes", "memory_bytes", "first_token_s", "tokens_per_s")


def measure_pair(names: dict[str, str], minutes: list[int], frames: int) -> dict[str, Any]:
    """The document: {"model": name, "baseline": name} one after the other, so that each one's peak is its own."""
    for name in names.values():
        loading.check(name)  # a misspelt one must not be noticed after minutes of measuring the other
    size, measured = None, {}
    for role, name in names.items():
        reset_peak_memory()
        load_s, model = timed(partial(pipeline.load, name))
        loaded = resident_bytes()
        size = size or _picture_size(model)
        measured[role] = measure_model(model, minutes, frames, size) | {"load_s": load_s}
        measured[role]["resident_bytes"] = {"loaded": loaded} | resident_by_stage(model, measured[role]["rows"])
        if isinstance(model, EmbeddedModel):
            measured[role] |= measure_upkeep(model, list(itertools.islice(pictures(size), frames)))
        del model
        gc.collect()
    together = resident_together(names.values())
    machine = add_floors(measured)
    document = {"conditions": conditions(frames, size), "machine": machine, **measured} | together
    baseline = measured.get("baseline", {"rows": []})
    return document | {"model_over_baseline": compared(measured["model"]["rows"], baseline["rows"])}


def conditions(frames_per_chunk: int, size: tuple[int, int] | None) -> dict[str, Any]:
    """Everything a reader needs to judge or repeat the figures."""
    return {
        "fps": FPS,
        "frames_per_chunk": frames_per_chunk,
        "picture": size,
        "question": QUESTION.text,
        "max_tokens": TOKENS,
        **machine_conditions(),
    }


def _picture_size(model: Model) -> tuple[int, int]:
    """(width, height), 16:9, as large as the first model can use."""
    width = model.long_side
    return width, round(width * 9 / 16)


def pictures(size: tuple[int, int], seed: int = 0) -> Iterator[Frame]:
    """Endless frames, `FPS` a second: four coarse colour fields mixed by slow waves, new fields every scene."""
    import cv2  # the published size makes no such pictures, and a GPU machine may lack it

    for index in itertools.count():
        scene, at = divmod(index / FPS, SCENE_S)
        fields = np.random.default_rng((seed, int(scene))).uniform(0, 255, (4, 6, 8, 3)).astype(np.float32)
        mix = np.exp(2 * np.sin(at / np.array([3.0, 5.0, 7.0, 11.0]) + np.arange(4)))
        coarse = np.tensordot(mix / mix.sum(), fields, 1)
        rgb = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
        yield Frame(np.clip(rgb, 0, 255).astype(np.uint8), index / FPS)


def resident_by_stage(model: Model, rows: list[dict[str, Any]]) -> dict[str, int | None]:
    """What the process held at each mark, and after each late sense has gone through the example clip: what that loads
    stays for the next file. Then the most it ever held."""
    found = {f"minute {row['minute']}": row["resident_bytes"] for row in rows}
    for sense in model.late_senses:
        Gleaner([sense]).go_through([Played(str(example_clip()))])
        found[sense.name] = resident_bytes()
    return found | {"peak": peak_memory()["peak_rss"]}


def resident_together(names: Collection[str]) -> dict[str, int | None]:
    """What the process holds with both models loaded, as the page has them; nothing where there is one."""
    if len(names) < 2:
        return {}
    models = [pipeline.load(name) for name in names]
    found = {"resident_bytes_together": resident_bytes()}
    del models
    gc.collect()
    return found


# --- measuring -------------------------------------------------------------------------------------------------------


def measure_model(model: Model, minutes: list[int], frames_per_chunk: int, size: tuple[int, int]) -> dict[str, Any]:
    """One model from an empty stream to the last mark. A model that must stop early says why in `stopped`."""
    engine, frames, rows, stopped = Engine(model), pictures(size), [], ""
    state = engine.start()
    engine.watch(VideoChunk(tuple(itertools.islice(pictures(size), frames_per_chunk))), state)  # warm-up, thrown away
    try:
        for minute in minutes:
            state, chunk_ms = _watch_until(engine, state, frames, minute, frames_per_chunk)
            rows.append(_row(engine, state, minute, chunk_ms, frames_per_chunk, size))
            print(f"{engine.name}: minute {minute} measured", file=sys.stderr, flush=True)
    except UserError as error:
        stopped = str(error)
    return {
        "name": engine.name,
        "backend": engine.backend,
        "rows": rows,
        "growth": _ratios(rows[-1], rows[0]) if rows else {},
        "stopped": stopped,
        **peak_memory(),
    }


def _watch_until(
    engine: Engine, state: StreamState, frames: Iterator[Frame], minute: int, per_chunk: int
) -> tuple[StreamState, float | None]:
    """Watches up to `minute`. Returns the median milliseconds of the last full chunks; None if none was full."""
    spent: list[float] = []
    left = round(minute * 60 * FPS) - state.frames
    while left > 0:
        chunk = VideoChunk(tuple(itertools.islice(frames, min(per_chunk, left))))  # made before the clock starts
        seconds, state = timed(partial(engine.watch, chunk, state))
        left -= len(chunk.frames)
        if len(chunk.frames) == per_chunk:
            spent.append(seconds * 1e3)
    return state, statistics.median(spent[-RECENT:]) if spent else None


def _row(
    engine: Engine, state: StreamState, minute: int, chunk_ms: float | None, per_chunk: int, size: tuple[int, int]
) -> dict[str, Any]:
    answers = [list(engine.ask(QUESTION, state, Sampling(max_tokens=TOKENS)))[-1] for _ in range(3)]
    chunk = VideoChunk(tuple(Frame(f.rgb, f.time + minute * 60) for f in itertools.islice(pictures(size), per_chunk)))
    with Cost() as watching:
        engine.watch(chunk, state)  # states are values: this one is thrown away and the stream goes on as before
    first, token = _answer_costs(engine.model, state)
    written = None
    if isinstance(engine.model, EmbeddedModel):
        written = measure_words(engine.model, QUESTION, state)
    notice_ms = _notice_ms(engine, state, chunk)
    return {
        "minute": minute,
        "frames": state.frames,
        "chunk_ms": chunk_ms,
        "notice_ms": notice_ms,
        "notice_over_chunk": notice_ms / chunk_ms if notice_ms and chunk_ms else None,
        "first_token_s": _median(answer.first_token_s for answer in answers),
        "written_first_s": written.first_s if written else None,
        "tokens_per_s": written.a_second if written else _median(answer.tokens_per_s for answer in answers),
        "state_bytes": state.state_bytes,
        "memory_bytes": state.memory_bytes,
        "dropped": state.dropped,
        "resident_bytes": resident_bytes(),
        "dropped_note": state.dropped_note,
        "costs": {"chunk": watching, "first_token": first, "token": written.cost if written else token},
    }


def _notice_ms(engine: Engine, state: StreamState, chunk: VideoChunk) -> float | None:
    """Median milliseconds that every producer of the timeline takes for one more chunk, with five rules. None for a
    model that keeps no index: what it is asked is an answer like others."""
    if engine.model.shows(state, 0.0, 0.0) is None:
        return None
    timeline, spent = Timeline(engine), []
    for rule in RULES:
        timeline.add_rule(rule)
    for step in range(NOTICED + 1):  # the first one judges all that was seen before
        frames = tuple(Frame(frame.rgb, frame.time + step * len(chunk.frames) / FPS) for frame in chunk.frames)
        state = engine.watch(VideoChunk(frames), state)
        seconds, _ = timed(partial(timeline.watched, frames, state))
        spent.append(seconds * 1e3)
    return statistics.median(spent[1:])


def _answer_costs(model: Model, state: StreamState) -> tuple[Cost, Cost | None]:
    """What the first token costs (with reading the question) and what the second one costs; None if there is none."""
    tokens = iter(model.ask(QUESTION, state, Sampling(max_tokens=2)))
    with Cost() as first:
        next(tokens, None)
    with Cost() as second:
        more = next(tokens, None)
    return first, second if more else None


def _median(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratios(new: dict[str, Any], old: dict[str, Any]) -> dict[str, float | None]:
    return {key: new[key] / old[key] if new[key] is not None and old[key] else None for key in RATIOS}


def compared(model: list[dict[str, Any]], baseline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Model over baseline at every mark both reached. Below 1 it needs less (tokens_per_s: above 1 is faster)."""
    return [{"minute": m["minute"], **_ratios(m, b)} for m, b in zip(model, baseline)]
