"""The bench of a stream without an end: hours of one picture a second through the embedded model, as fast as it goes.

Every hour it notes what the process and the GPU hold, asks about moments of several ages, and looks whether the seconds
of what was seen are right. The same hours are then watched with everything kept, and asked the same. A bank of pictures
comes again and again, and the towers see each of them once (they take most of the time and carry nothing on); all else
is what a visitor's stream does.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import pipeline
from pipeline.bench.embedded import pictures
from pipeline.bench.machine import machine_conditions, timed
from pipeline.clock import mmss
from pipeline.engine import Engine
from pipeline.models.embedded import EmbeddedModel
from pipeline.senses.sensed import Senses
from pipeline.stream import Frame, Question, Sampling, StreamState, UserError, VideoChunk
from pipeline.towers.frame_tower import FrameFeatures

BANK = 240  # pictures, of eight scenes
PER_CHUNK = 8
MINUTES = 10.0  # that stay in memory
AGES = (1, 15, 60, 240)  # minutes
HOUR = 3600
WORDS = 24


class Bank(nn.Module):
    """What a tower saw of some pictures, told again for the same ones."""

    def __init__(self, tower: nn.Module, shown: Sequence[np.ndarray]):
        super().__init__()
        seen = [tower(list(shown[i : i + PER_CHUNK])) for i in range(0, len(shown), PER_CHUNK)]
        self.features = FrameFeatures(*map(torch.cat, zip(*seen)))
        self.rows = {id(picture): row for row, picture in enumerate(shown)}

    def forward(self, shown: Sequence[np.ndarray]) -> FrameFeatures:
        rows = torch.tensor([self.rows[id(picture)] for picture in shown])
        return FrameFeatures(*(column[rows.to(column.device)] for column in self.features))


class SensesBank(Senses):
    """The same for the senses of pictures: what they keep of each."""

    def __init__(self, senses: Senses, shown: Sequence[np.ndarray], bank: Bank):
        self.__dict__.update(senses.__dict__)
        parts = [list(shown[i : i + PER_CHUNK]) for i in range(0, len(shown), PER_CHUNK)]
        seen = [senses.see(part, bank(part).cpu()) for part in parts]
        self._seen = {name: torch.cat([one[name] for one in seen]) for name in senses.widths}
        self._bank = bank

    def see(self, frames: Sequence[np.ndarray], features: FrameFeatures) -> dict[str, torch.Tensor]:
        rows = [self._bank.rows[id(picture)] for picture in frames]
        return {name: numbers[rows] for name, numbers in self._seen.items()}


def measure_endless(name: str, hours: float, real: bool = False, bank: int = BANK) -> dict[str, Any]:
    """real: the towers look at every picture anew."""
    endless, kept = pipeline.load(name, endless=MINUTES), pipeline.load(name)
    if not isinstance(endless, EmbeddedModel) or not isinstance(kept, EmbeddedModel):
        raise UserError("Only the embedded model's hours are measured, so nothing was; leave out --model.")
    width = endless.long_side
    shown = [frame.rgb for frame in islice(pictures((width, round(width * 9 / 16))), bank)]
    if not real:
        bank_of = Bank(endless.tower, shown)
        endless.tower = kept.tower = bank_of  # type: ignore[assignment]  # it is called alike
        endless.senses = kept.senses = SensesBank(endless.senses, shown, bank_of)
    seconds, rows = timed(partial(list, _hours(Engine(endless), shown, round(hours * HOUR))))
    beside = [row["answers"] for row in _hours(Engine(kept), shown, round(hours * HOUR))]
    pairs = [(ours, exact) for row, theirs in zip(rows, beside) for ours, exact in zip(row["answers"], theirs)]
    return {
        "conditions": {"model": name, "minutes": MINUTES, "real_pictures": real, **machine_conditions()},
        "seconds": seconds,
        "rows": rows,
        "answers_like_everything_kept": sum(a["text"] == b["text"] for a, b in pairs) / max(1, len(pairs)),
        "questions": len(pairs),
        **{f"{what}_growth": growth([row[what] for row in rows]) for what in ("rss", "gpu") if what in rows[0]},
    }


def growth(values: Sequence[int]) -> float:
    """The largest distance from the first, as a share of that."""
    return max((abs(value / values[0] - 1) for value in values[1:] if values[0]), default=0.0)


def _hours(engine: Engine, shown: Sequence[np.ndarray], length: int) -> Iterator[dict[str, Any]]:
    """A row an hour."""
    state = engine.start()
    while state.frames < length:
        start = state.frames
        numbers = range(start, min(start + engine.chunk_frames(64), length))
        frames = tuple(Frame(shown[i % len(shown)], float(i)) for i in numbers)
        state = engine.watch(VideoChunk(frames), state)
        if numbers.stop // HOUR > start // HOUR or numbers.stop == length:
            yield _row(engine, state, numbers.stop)


def _row(engine: Engine, state: StreamState, seconds: int) -> dict[str, Any]:
    gc.collect()
    held = {"rss": resident()}
    if torch.cuda.is_available():
        held["gpu"] = torch.cuda.memory_allocated()
    times = state.inner.index.tensor("time").numpy()
    apart = float(np.abs(times - np.arange(seconds - len(times), seconds)).max())
    answers = [_answer(engine, state, seconds - 60 * age) for age in AGES if seconds > 60 * age]
    kept = {"memory_bytes": state.memory_bytes, "disk_bytes": state.disk_bytes, "dropped": state.dropped}
    row = {"hour": seconds / HOUR, **held, **kept, "most_apart_s": apart, "answers": answers}
    print(json.dumps({"model": engine.name, **row}), file=sys.stderr, flush=True)
    return row


def _answer(engine: Engine, state: StreamState, second: int) -> dict[str, Any]:
    question = Question(f"What do you see at {mmss(second)}?")
    *_, answer = engine.ask(question, state, Sampling(max_tokens=WORDS))
    apart = min((abs(moment.time - second) for moment in answer.evidence), default=None)
    shown = {"asked": second, "text": answer.text, "evidence_apart_s": apart}
    return {**shown, "first_token_s": answer.first_token_s}


def resident() -> int:
    """Bytes of memory that this process holds now (Linux)."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) << 10


def endless_table(found: dict[str, Any]) -> str:
    gpu = "gpu" in found["rows"][0]
    lines = [
        f"{'hour':>5} {'process':>10} {'GPU':>10} {'on disk':>10} {'dropped':>8} {'seconds off':>12} "
        f"{'evidence off':>13}"
    ]
    for row in found["rows"]:
        off = max((a["evidence_apart_s"] for a in row["answers"] if a["evidence_apart_s"] is not None), default=0.0)
        held = f"{row['gpu'] / 1e6:7,.0f} MB" if gpu else "-"
        lines.append(
            f"{row['hour']:>5.2f} {row['rss'] / 1e6:>7,.0f} MB {held:>10} {row['disk_bytes'] / 1e6:>7,.0f} MB "
            f"{row['dropped']:>8,} {row['most_apart_s']:>11.2f}s {off:>12.2f}s"
        )
    same = f"{found['answers_like_everything_kept']:.0%} of {found['questions']} answers are those of everything kept"
    return "\n".join(
        [*lines, f"watched and asked in {found['seconds']:.0f} s; the process strays {found['rss_growth']:.1%}", same]
    )
