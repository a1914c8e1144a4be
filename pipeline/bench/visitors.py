"""Several visitors at once, as people come: some watch live, some catch up with a file, some ask, some stop an answer.

They go through one `Engine`, each in a thread of its own, as the page's do. One alone comes first.
What a visitor waits for: a live picture until it is seen, a question until its first word, a word until the next one.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.bench.embedded import pictures
from pipeline.bench.machine import Machine, machine_conditions, peak_memory, reset_peak_memory
from pipeline.bench.shapes import Shapes, built, frames_of, pictures_of
from pipeline.engine import Engine
from pipeline.gpu.graphs import Tape
from pipeline.layers.vamba import Vamba
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.load import load
from pipeline.models.vamba_model import VambaModel
from pipeline.stream import Frame, Model, Question, Sampling, StreamState, VideoChunk
from pipeline.towers.qwen import Patching, QwenVision, build_tower

ROLES = ("answers", "live", "catching_up")
QUESTION = Question("Hello, who are you, and what can you do?")
WRITTEN = Question("Hello, who are you?")  # which the embedded language model answers by itself, in 14 words
WORDS, STOPPED_AFTER = 48, 8  # of an answer; every fourth one is stopped early
FILE = 512  # pictures of a file that is caught up with
LIVE_S = 1.0  # seconds of wall clock between two live pictures


@dataclass
class Counts:
    """What visitors of one kind got, and how long each thing was waited for, in seconds."""

    pictures: int = 0
    words: int = 0
    answers: int = 0
    stopped: int = 0
    waits: dict[str, list[float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, what: str, waited: float, pictures: int = 0, words: int = 0) -> None:
        with self.lock:
            self.pictures += pictures
            self.words += words
            self.waits.setdefault(what, []).append(waited)


class Crowd:
    """Visitors of one engine. pictures: of every stream, again and again. seen: what the n-th asks about, in turn."""

    def __init__(self, engine: Engine, pictures: Sequence[Frame], question: Question = QUESTION) -> None:
        self.engine, self.pictures, self.question = engine, pictures, question
        self.seen: Sequence[StreamState] = ()
        self.going: list[StreamState] = []  # streams that live visitors go on with, one each; without, they begin anew
        self.over = threading.Event()

    def watched(self, count: int) -> StreamState:
        """A stream of so many pictures."""
        state, done = self.engine.start(), 0
        while done < count:
            chunk = self._frames(done, min(self.engine.chunk_frames(count - done), count - done))
            state, done = self.engine.watch(chunk, state), done + len(chunk.frames)
        return state

    def _frames(self, start: int, count: int) -> VideoChunk:
        numbers = range(start, start + count)
        return VideoChunk(tuple(Frame(self.pictures[i % len(self.pictures)].rgb, float(i)) for i in numbers))

    def measure(self, roles: Sequence[str], seconds: float, most_live: bool = False) -> dict[str, Any]:
        """roles: what each visitor does. most_live: live visitors show the next picture as soon as the last is seen."""
        self.over = threading.Event()
        counts = {role: Counts() for role in roles}
        visit = {"answers": self._ask, "catching_up": self._catch_up, "live": self._live}
        threads = [
            threading.Thread(target=visit[role], args=(counts[role], number, most_live), daemon=True)
            for number, role in enumerate(roles)
        ]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self.over.set()
        found = shown(counts, seconds)  # before they end: a chunk that is over later is not of this time
        for thread in threads:
            thread.join()
        return found

    def _ask(self, counts: Counts, number: int, _: bool) -> None:
        for turn in itertools.count(number):
            if self.over.is_set():
                return
            newest = time.perf_counter()
            stop = threading.Event()
            for answer in self.engine.ask(
                self.question, self.seen[number % len(self.seen)], Sampling(WORDS, 0.7, 1.0, turn), stop
            ):
                now = time.perf_counter()
                if answer.done:
                    break
                counts.add("first_word" if answer.tokens == 1 else "word", now - newest, words=1)
                newest = now
                if self.over.is_set() or (turn % 4 == 3 and answer.tokens == STOPPED_AFTER):
                    stop.set()
            if stop.is_set():
                counts.add("stop", time.perf_counter() - newest)
            with counts.lock:
                counts.answers += 1
                counts.stopped += stop.is_set()

    def _catch_up(self, counts: Counts, number: int, _: bool) -> None:
        """A file is watched as fast as it can be, in the chunks that the engine wants."""
        while not self.over.is_set():
            state, done = self.engine.start(), 0
            while done < FILE and not self.over.is_set():
                chunk = self._frames(done, min(self.engine.chunk_frames(FILE - done), FILE - done))
                began = time.perf_counter()
                state = self.engine.watch(chunk, state)
                counts.add("chunk", time.perf_counter() - began, pictures=len(chunk.frames))
                done += len(chunk.frames)

    def _live(self, counts: Counts, number: int, most: bool) -> None:
        """A unit of pictures as soon as there is one; what comes while it is watched goes with the next."""
        state = self.going.pop() if self.going else self.engine.start()
        old, done, unit = state.frames, 0, self.engine.unit_frames
        began = time.perf_counter() - number * LIVE_S / 7  # not all at the same moment
        while not self.over.is_set():
            came = unit if most else int((time.perf_counter() - began) / LIVE_S) - done
            if came < unit:
                self.over.wait(LIVE_S / 20)
                continue
            count = self.engine.chunk_frames(came)
            shown_at = time.perf_counter() if most else began + (done + unit) * LIVE_S
            state = self.engine.watch(self._frames(old + done, count), state)
            counts.add("live_picture", time.perf_counter() - shown_at, pictures=count)
            done += count


def shown(counts: dict[str, Counts], seconds: float) -> dict[str, Any]:
    """Pictures and words a second together, and median and worst waits in seconds."""
    waits: dict[str, list[float]] = {}
    for one in counts.values():
        with one.lock:
            for what, found in one.waits.items():
                waits.setdefault(what, []).extend(found)
    return {
        "seconds": seconds,
        "pictures_per_s": sum(one.pictures for one in counts.values()) / seconds,
        "words_per_s": sum(one.words for one in counts.values()) / seconds,
        "answers": sum(one.answers for one in counts.values()),
        "stopped": sum(one.stopped for one in counts.values()),
        "waits": {what: {"median_s": statistics.median(found), "worst_s": max(found)} for what, found in waits.items()},
    }


def measure_visitors(
    engine: Engine,
    pictures: Sequence[Frame],
    visitors: int,
    seconds: float,
    minutes: tuple[int, int],
    question: Question = QUESTION,
) -> dict[str, Any]:
    """One visitor of each kind alone, `visitors` of each kind, an answer beside one and four files, and all mixed.

    minutes: of the one stream that all ask about, and of each where everybody asks about a stream of their own.
    """
    crowd, found = Crowd(engine, pictures, question), {}
    engine.warm_up()
    gc.collect()
    gc.freeze()  # as the page does

    def part(name: str, roles: Sequence[str], most_live: bool = False) -> None:
        if len(roles) > 1:
            crowd.measure(roles, min(seconds, 2.0), most_live)  # their shared passes are recorded, thrown away
        before = Tape.made
        found[name] = crowd.measure(roles, seconds, most_live)
        found[name]["recordings"] = Tape.made - before
        print(f"{name}: measured", file=sys.stderr, flush=True)

    one, own = minutes
    crowd.seen = [crowd.watched(60 * one)]
    crowd.measure(["answers"], min(seconds, 2.0))  # passes are recorded, thrown away
    part(f"one answer about {one} minutes", ["answers"])
    part(f"{visitors} answers about the same {one} minutes", ["answers"] * visitors)
    crowd.seen = []
    crowd.seen = [crowd.watched(60 * own) for _ in range(visitors)]
    part(f"one answer about a stream of its own, {own} minutes", ["answers"])
    part(f"{visitors} answers, each about a stream of its own", ["answers"] * visitors)
    part("one answer beside one file", ["answers", "catching_up"])
    part("one answer beside four files", ["answers", *["catching_up"] * 4])
    part(f"{visitors} visitors of all kinds", [ROLES[number % len(ROLES)] for number in range(visitors)])
    crowd.seen = []
    part("one file", ["catching_up"])
    part("one live stream, picture after picture", ["live"], True)
    part(f"{visitors} live streams, picture after picture", ["live"] * visitors, True)
    alone = found[f"one answer about a stream of its own, {own} minutes"]["words_per_s"]
    beside = {
        files: found[f"one answer beside {files}"]["words_per_s"] / alone if alone else None
        for files in ("one file", "four files")
    }
    return {"visitors": visitors, "seconds": seconds, "parts": found, "words_beside_over_alone": beside}


def measure_live(
    engine: Engine, pictures: Sequence[Frame], streams: int, seconds: float, minutes: int
) -> dict[str, Any]:
    """So many streams of one picture a second, `minutes` old, that are watched on: how long a picture waits until it is
    seen, and what the GPU holds. Where memory runs out it says so, as a visitor would hear it."""
    engine.warm_up()
    crowd = Crowd(engine, pictures)
    crowd.going = [crowd.watched(60 * minutes) for _ in range(streams)]
    engine.confirm(crowd.going[-1])
    gc.collect()
    held = torch.cuda.memory_allocated() if torch.cuda.is_available() else None
    reset_peak_memory()
    found = crowd.measure(["live"] * streams, seconds)
    told = {"streams": streams, "minutes": minutes, **found, "held_gpu": held, **peak_memory()}
    return {"conditions": {"backend": engine.backend, **machine_conditions()}, **told}


def live_table(found: dict[str, Any]) -> str:
    """The document for people."""
    waited = found["waits"].get("live_picture")
    lines = [
        f"{found['streams']} streams, each {found['minutes']} min old, a picture a second: "
        f"{found['pictures_per_s']:.1f} pictures/s",
        f"a picture waits {waited['median_s'] * 1e3:.0f} ms (median), {waited['worst_s'] * 1e3:.0f} ms (worst)"
        if waited
        else "no picture was seen",
    ]
    if found["held_gpu"]:
        lines += [f"the GPU held {found['held_gpu'] / 1e9:.1f} GB before and {found['peak_gpu'] / 1e9:.1f} GB at most"]
    return "\n".join([*lines, ", ".join(f"{key} {value}" for key, value in found["conditions"].items())])


class Numbers:
    """A tokenizer's place at the published size, whose words mean nothing: a number a word. No answer ends early."""

    def encode(self, text: str, add_special_tokens: bool = True, split_special_tokens: bool = False) -> list[int]:
        return [1 + sum(map(ord, word)) % 1000 for word in text.split()]

    def get_vocab(self) -> dict[str, int]:
        return {}

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


def embedded_visitors(name: str, visitors: int, seconds: float, minutes: int) -> dict[str, Any]:
    """The document of a model that comes with the code, or of a folder."""
    model = load(name)
    if isinstance(model, EmbeddedModel):
        model.router = None  # what is composed comes as one word; here the language model writes
    found = measure_visitors(Engine(model), shown_to(model), visitors, seconds, (minutes, 1), WRITTEN)
    return {"conditions": {"model": name, "backend": model.backend, **machine_conditions()}, **found}


def shown_to(model: Model[Any]) -> list[Frame]:
    """64 pictures as large as that model likes them."""
    size = model.long_side, round(model.long_side * 9 / 16)
    return list(itertools.islice(pictures(size), 64))


def published_visitors(
    shapes: Shapes, device: torch.device, dtype: torch.dtype, visitors: int, seconds: float, minutes: int
) -> dict[str, Any]:
    """The document of the published size with random weights, tower included."""
    machine = Machine(device, dtype, 1.0, 1.0)
    tower = built(machine, lambda: build_tower(shapes.baseline["vision_config"]))
    net = built(machine, lambda: Vamba(shapes.vamba, tower))
    eyes = QwenVision(tower, Patching(shapes.baseline["vision_config"]["patch_size"]))
    model = VambaModel(net, eyes, Numbers())
    frames = frames_of(shapes, 0, 64, pictures_of(shapes, 64))
    found = measure_visitors(Engine(model), frames, visitors, seconds, (minutes, min(5, minutes)))
    return {"conditions": {"backend": model.backend, **machine_conditions()}, **found}


def visitors_table(found: dict[str, Any]) -> str:
    """The document for people."""
    lines = [f"{'':<52} {'pictures/s':>10} {'words/s':>8}  waits in ms: median, worst"]
    for name, part in found["parts"].items():
        waits = ", ".join(
            f"{what.replace('_', ' ')} {wait['median_s'] * 1e3:.0f}, {wait['worst_s'] * 1e3:.0f}"
            for what, wait in part["waits"].items()
        )
        if part["recordings"]:
            waits += f"; {part['recordings']} passes were recorded meanwhile"
        lines.append(f"{name:<52} {part['pictures_per_s']:>10.1f} {part['words_per_s']:>8.1f}  {waits}")
    shares = [f"beside {files} {share:.2f}" for files, share in found["words_beside_over_alone"].items() if share]
    lines.append(f"an answer's words a second over alone: {', '.join(shares)}")
    return "\n".join([*lines, ", ".join(f"{key} {value}" for key, value in found["conditions"].items())])
