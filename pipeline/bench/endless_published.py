"""The bench of a stream without an end at the published size: random weights, one GPU, noise for pictures.

Hours of one picture a second go through the whole model, as fast as it goes. Every half hour it notes what the GPU, the
process and the file hold, asks a question, and looks whether the seconds of what was seen are right. Then a shorter
stream is watched twice, with everything kept and without an end, and what a reading is made of is compared: which pairs
are read back beside those that exact attention looks at most, and the logits. With random weights that tells how far
the means stand for what they are of; what a trained checkpoint would miss it does not tell.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.bench.endless import growth, resident
from pipeline.bench.machine import machine_conditions, wait_for_gpu
from pipeline.bench.published import published_model
from pipeline.bench.shapes import Shapes, frames_of, pictures_of
from pipeline.memory.memory import Memory
from pipeline.models.vamba_model import VambaModel
from pipeline.options import ModelOptions
from pipeline.stream import Question, StreamState, VideoChunk

PER_CHUNK = 64
MINUTES = 10.0  # that stay on the GPU, where `--endless` names no others
SHARE = 0.4  # of the free disk that the file may take
EVERY = 1800  # seconds between rows
BESIDE = 2700  # seconds that are also watched with everything kept
WORDS = 12
QUESTIONS = ("What is happening now?", "When does it change?", "What was at the beginning?", "Is there anything red?")
Read = tuple[Tensor, list[int], np.ndarray, float, float]  # logits, words, seconds read, first word's and a word's time


@torch.no_grad()
def measure_endless_published(
    shapes: Shapes, device: torch.device, dtype: torch.dtype, options: ModelOptions, hours: float
) -> dict[str, Any]:
    """The document. The file holds as many hours as fit into a share of the disk; what is older falls out, counted."""
    options = options.model_copy(update={"endless": options.endless or MINUTES})
    model = published_model(shapes, device, dtype, options)
    assert model.disk is not None and options.endless is not None
    per_hour = 1800 * shapes.pair_tokens * model.start().inner.memory.log.slot_nbytes
    free = shutil.disk_usage(tempfile.gettempdir()).free
    model.disk.hours = min(model.disk.hours, SHARE * free / per_hour)
    agreement = _beside_everything(model, shapes, options)
    print(json.dumps(agreement), file=sys.stderr, flush=True)
    rows = []
    for row in _rows(model, shapes, round(3600 * hours)):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    settled = [row for row in rows if row["hour"] >= 1] or rows[-1:]
    return {
        "conditions": {"minutes": options.endless, "file_hours": model.disk.hours, **machine_conditions()},
        "rows": rows,
        **{f"{what}_growth": growth([row[what] for row in settled]) for what in ("rss", "gpu")},
        "beside_everything_kept": agreement,
    }


def _watched(model: VambaModel, shapes: Shapes, length: int, pictures: list[np.ndarray]) -> Iterator[StreamState]:
    """The stream after every chunk."""
    state = model.start()
    while state.frames < length:
        count = min(PER_CHUNK, length - state.frames)
        state = model.watch(VideoChunk(frames_of(shapes, state.frames, count, pictures)), state)
        yield state


def _rows(model: VambaModel, shapes: Shapes, length: int) -> Iterator[dict[str, Any]]:
    pictures, began, told = pictures_of(shapes, PER_CHUNK), time.perf_counter(), 0
    for state in _watched(model, shapes, length, pictures):
        if state.frames // EVERY > told or state.frames == length:
            told = state.frames // EVERY
            yield _row(model, shapes, state, began)


def _row(model: VambaModel, shapes: Shapes, state: StreamState, began: float) -> dict[str, Any]:
    wait_for_gpu()
    watched = time.perf_counter() - began
    _, _, seconds, first, word = _read(model, Question(QUESTIONS[2]), state)
    gc.collect()
    memory = state.inner.memory
    pairs = np.unique(memory.times)
    right = np.arange(state.frames - 2 * len(pairs), state.frames, 2)  # a pair has its first picture's second
    assert memory.coarse is not None and memory.coarse.coarse is not None
    gpu = torch.cuda.is_available()
    return {
        "hour": state.frames / 3600,
        "gpu": torch.cuda.memory_allocated() if gpu else 0,
        "gpu_peak": torch.cuda.max_memory_allocated() if gpu else 0,
        "rss": resident(),
        "disk": state.disk_bytes,
        "file": model.disk.file.nbytes if model.disk else 0,
        "dropped_frames": 2 * memory.dropped // shapes.pair_tokens,
        "means": [len(memory.coarse), len(memory.coarse.coarse)],
        "most_apart_s": float(np.abs(pairs - right).max()),
        "seconds_read": [float(seconds.min()), float(seconds.max()), len(seconds)],
        "first_word_s": first,
        "word_s": word,
        "watched_s": watched,
    }


def _read(model: VambaModel, question: Question, state: StreamState, led: list[int] | None = None) -> Read:
    """WORDS greedy words, or those it is led along."""
    wait_for_gpu()
    began = time.perf_counter()
    decoder, logits = model._read(question, state.inner.memory)
    ids = [int(logits.argmax()) if led is None else led[0]]
    first, steps = time.perf_counter() - began, [logits.double().cpu()]
    while len(steps) < WORDS:
        logits = decoder.feed([ids[-1]])
        steps.append(logits.double().cpu())
        ids.append(int(logits.argmax()) if led is None else led[len(steps) - 1])
    word = (time.perf_counter() - began - first) / (WORDS - 1)
    assert decoder.instants is not None
    return torch.stack(steps), ids, decoder.instants.times, first, word


def _beside_everything(model: VambaModel, shapes: Shapes, options: ModelOptions) -> dict[str, Any]:
    """What means lead to, beside exact attention over everything, of a stream that the GPU holds as a whole."""
    exact = VambaModel(model.net, model.vision, model.tokenizer, eight_bit=bool(options.eight_bit))
    pictures = pictures_of(shapes, PER_CHUNK)
    *_, far = _watched(model, shapes, BESIDE, pictures)
    *_, kept = _watched(exact, shapes, BESIDE, pictures)
    near = far.inner.memory.times[far.inner.memory.near_from - far.inner.memory.log.gone]
    newest = Memory(far.inner.memory.log.drop_oldest(far.inner.memory.near_from - far.inner.memory.log.gone))
    pairs, alone, shares = [], [], []
    for text in QUESTIONS:
        logits, ids, *times = _read(exact, Question(text), kept)
        ours, _, seconds, *ours_times = _read(model, Question(text), far, ids)
        pairs.append((ours, logits))
        decoder, _ = exact._read(Question(text), kept.inner.memory)
        assert decoder.looked is not None and decoder.instants is not None
        looked, old = decoder.looked.cpu().numpy(), decoder.instants.times < near
        back = np.isin(decoder.instants.times, seconds)
        best = np.sort(looked[old])[::-1][: int((back & old).sum())].sum()
        shares.append([float(looked[back & old].sum() / best), float((back & old).sum() / old.sum())])
        alone.append((exact._read(Question(text), newest)[1].double().cpu()[None], logits[:1]))
    return {
        "seconds": BESIDE,
        "greedy_words": _apart(pairs),
        "first_word": _apart([(a[:1], b[:1]) for a, b in pairs]),
        "first_word_newest_minutes_alone": _apart(alone),
        "looked_at_share_of_best": float(np.mean([share for share, _ in shares])),
        "share_of_old_read_back": float(np.mean([share for _, share in shares])),
        "first_word_s": [times[1], ours_times[0]],
    }


def _apart(pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Of (logits, exact logits), (words, V) each: root mean square of their difference in standard deviations of the
    exact ones, and the share of words whose likeliest token is the same."""
    ours, exact = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
    spread = (exact - exact.mean(-1, keepdim=True)).square().mean()
    same = (ours.argmax(-1) == exact.argmax(-1)).double().mean()
    return {"difference": float(((ours - exact).square().mean() / spread).sqrt()), "top1": float(same)}


def endless_published_table(found: dict[str, Any]) -> str:
    lines = [
        f"{'hour':>5} {'GPU':>10} {'process':>10} {'on disk':>10} {'dropped':>8} {'seconds off':>12} {'first word':>11}"
    ]
    lines += [
        f"{row['hour']:>5.2f} {row['gpu'] / 1e9:>7.2f} GB {row['rss'] / 1e9:>7.2f} GB {row['disk'] / 1e9:>7.2f} GB "
        f"{row['dropped_frames']:>8,} {row['most_apart_s']:>11.2f}s {row['first_word_s'] * 1e3:>8.0f} ms"
        for row in found["rows"]
    ]
    beside = found["beside_everything_kept"]
    lines.append(
        f"after the first hour the GPU strays by {found['gpu_growth']:.1%}, the process by {found['rss_growth']:.1%}; "
        f"{found['rows'][-1]['watched_s']:.0f} s"
    )
    lines.append(
        f"beside everything kept, {beside['seconds'] / 60:.0f} minutes: {beside['greedy_words']['top1']:.0%} of the "
        f"words, logits {beside['greedy_words']['difference']:.1%} apart; what is read back is looked at "
        f"{beside['looked_at_share_of_best']:.0%} as much as the best choice"
    )
    return "\n".join(lines)
