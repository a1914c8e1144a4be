"""Locate, then look: where in a video a question points, and what is put in words beside it.

A `Locator` (trained) turns the hidden states of a question into a plan and a query, which is compared with one key a
frame. The `Planner` (rules) makes a `Verdict` of it: which frames the reader looks at, which second that is, whether
the thing was seen at all. "At mm:ss" goes to that time; before and after step one shot from the found one; scenes are
counted, not guessed. A `note` then says it in words a language model can copy. No pixels, no language model in here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.convnets import FrameFeatures, words
from pipeline.engine import mmss
from pipeline.memory import Column, Log
from pipeline.models.vamba import RMSNorm

READ = 4  # frames of a moment the reader looks at
LISTED = 6  # moments a summary names

# What a question asks the model to do. "find" looks for what is described, "about" does so too but prefers the present;
# "count" counts scenes, "count_of" those that show something; "chat" needs no video.
PLANS = (
    "now", "at", "find", "about", "yesno", "yesno_now", "after", "before", "first", "last", "count", "count_of",
    "list", "chat",
)  # fmt: skip


class Located(NamedTuple):
    """What the locator makes of Q questions: unit queries (Q, W), plan logits (Q, plans), nowhere logits (Q,)."""

    query: Tensor
    plan: Tensor
    nowhere: Tensor


class Locator(nn.Module):
    """Where a question points. Cosine between a question's query and a frame's key, times a learned sharpness."""

    def __init__(self, d_model: int, width: int = 256):
        super().__init__()
        self.text_norm, self.query = RMSNorm(d_model, 1e-5), nn.Linear(2 * d_model, width)
        self.plan, self.nowhere = nn.Linear(2 * d_model, len(PLANS)), nn.Linear(2 * d_model, 1)
        self.frame_norm = RMSNorm(d_model, 1e-5)
        self.key = nn.Sequential(nn.Linear(2 * d_model, d_model), nn.GELU(), nn.Linear(d_model, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def read(self, last_QD: Tensor, mean_QD: Tensor) -> Located:
        """From the hidden states of the question at `locate_layer`: its last token and the mean of its tokens."""
        h = torch.cat([self.text_norm(last_QD), self.text_norm(mean_QD)], dim=-1)
        return Located(F.normalize(self.query(h), dim=-1), self.plan(h), self.nowhere(h)[..., 0])

    def keys(self, raw_FD: Tensor, mixed_FD: Tensor) -> Tensor:
        """(F, W) of unit length, from each frame's last token before the mixers and after `locate_depth` of them."""
        both = torch.cat([self.frame_norm(raw_FD), self.frame_norm(mixed_FD)], dim=-1)
        return F.normalize(self.key(both), dim=-1)

    def scores(self, query: Tensor, keys: Tensor) -> Tensor:
        return self.log_scale.exp().clamp(max=100) * (query @ keys.transpose(-1, -2))


# ---------------------------------------------------------------- notes: what is put in words beside a question


class Verdict(NamedTuple):
    """The outcome of locating: the plan, the frames to read (indices), the second it is about, and what is certain."""

    plan: str
    frames: tuple[int, ...]
    time: float | None = None
    found: bool = True
    count: int | None = None
    times: tuple[float, ...] = ()  # where the counted scenes begin
    late: bool = False  # the question names a time the video has not reached
    listed: tuple[tuple[int, ...], ...] = ()  # frames of every moment of a summary


NOT_FOUND = {"yesno": "(no)", "yesno_now": "(no)", "after": "(nothing after)", "before": "(nothing before)"}


def note(verdict: Verdict, seen_words: Sequence[str], now: float) -> str:
    """The line behind a question. Its times, counts and words are what an answer may copy.

    "(at 0:35: 2 person left, tie)", "(yes, at 0:35: dog)", "(no)", "(nothing found)", "(8 scenes)",
    "(2 scenes: 0:12, 0:40)", "(now 0:40, later)".
    """
    if verdict.plan == "chat":
        return "(chat)"
    if verdict.late:
        return f"(now {mmss(now)}, later)"
    if verdict.count is not None:
        times = ", ".join(mmss(t) for t in verdict.times)
        return f"({verdict.count} scene{'s' * (verdict.count != 1)}{': ' * bool(times)}{times})"
    if not verdict.found:
        return NOT_FOUND.get(verdict.plan, "(nothing found)")
    said = f"at {mmss(verdict.time)}: {', '.join(seen_words) or 'unsure'}"
    return f"(yes, {said})" if verdict.plan in ("yesno", "yesno_now") else f"({said})"


def spoken(features: FrameFeatures, rows: Sequence[int], at_most: int = 5) -> list[str]:
    """Words for a moment, from the tower's words on its frames: counted, placed, the doubtful ones marked."""
    best: dict[str, tuple[float, str, int]] = {}
    for i in rows:
        for word, score, place, count in words(features, i, seen=0.4, sure=0.15):
            if word not in best or score > best[word][0]:
                best[word] = (score, place, count)
    ranked = sorted(best.items(), key=lambda item: -item[1][0])[:at_most]
    return [" ".join(_phrase(word, *entry)) for word, entry in ranked]


def _phrase(word: str, score: float, place: str, count: int) -> Iterator[str]:
    if score < 0.4:
        yield "maybe"
    if count > 1:
        yield str(count)
    yield word
    if place and place != "centre":
        yield place


_NAMED_TIME = re.compile(r"(?<![\d:])(?:(\d{1,2}):)?(\d{1,3}):([0-5]\d)(?![\d:])")
_SPOKEN_TIME = re.compile(r"(\d+(?:\.\d+)?)[\s-]*(hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)\b", re.IGNORECASE)


def named_time(text: str) -> float | None:
    """The second a question names ("12:40", "1:02:03", "35 seconds in", "the 2 minute mark", "1 min 5 s"), or None."""
    if found := _NAMED_TIME.search(text):
        hours, minutes, seconds = (int(part or 0) for part in found.groups())
        return hours * 3600.0 + minutes * 60 + seconds
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    found = _SPOKEN_TIME.findall(text)
    return sum(float(n) * units[unit[0].lower()] for n, unit in found) if found else None


# ---------------------------------------------------------------- what was seen, frame by frame


class Index(NamedTuple):
    """A snapshot's frames, one row each: seconds, locate keys, where shots begin, and the tower's findings."""

    times: np.ndarray
    keys: Tensor
    starts: np.ndarray  # frame numbers at which a shot begins, the first frame included
    features: FrameFeatures

    def shot_of(self, frame: int) -> int:
        return int(np.searchsorted(self.starts, frame, "right")) - 1

    def frames_of(self, shot: int) -> range:
        end = self.starts[shot + 1] if shot + 1 < len(self.starts) else len(self.times)
        return range(int(self.starts[shot]), int(end))


def index_log(width: int, features: int, device: torch.device | str = "cpu") -> Log:
    """An empty table of frames. 3.5 kB a frame."""
    f32, i16 = torch.float32, torch.int16
    columns = {
        "time": Column((None,), torch.float64), "key": Column((None, width), torch.float16),
        "novelty": Column((None,), f32), "classes": Column((None, 5), i16), "class_probs": Column((None, 5), f32),
        "det_ids": Column((None, 8), i16), "det_scores": Column((None, 8), f32), "det_boxes": Column((None, 8, 4), f32),
    }  # fmt: skip
    return Log(columns, block_slots=512, device=device)


def read_index(log: Log, cut: float) -> Index:
    """The table of a snapshot, small enough (an hour is 13 MB) to be put together for every question."""
    columns = {name: log.column(name) for name in log.columns}
    blank = torch.zeros(0)
    features = FrameFeatures(
        blank, blank, columns["classes"].long(), columns["class_probs"], blank,
        columns["det_ids"].long(), columns["det_scores"], columns["det_boxes"],
    )  # fmt: skip
    novelty = columns["novelty"].numpy()
    starts = np.flatnonzero(novelty > cut)
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    return Index(columns["time"].numpy(), columns["key"], starts, features)


def spread(frames: range, at_most: int, around: int | None = None) -> tuple[int, ...]:
    """At most `at_most` of consecutive frames: those nearest `around`, else evenly spread."""
    if around is not None:
        start = min(max(around - at_most // 2, frames.start), max(frames.stop - at_most, frames.start))
        return tuple(frames[i] for i in range(start - frames.start, min(start - frames.start + at_most, len(frames))))
    picks = np.linspace(0, len(frames) - 1, min(at_most, len(frames))).round().astype(int)
    return tuple(frames[int(i)] for i in picks)


class Planner:
    """From a question's `Located` and a snapshot's index to a Verdict. Pure.

    calibration: per verdict the (a, b, c) of "sure if a * margin + b + c * ln(shots) > 0", fitted on held-out pictures.
    """

    def __init__(self, locator: Locator, calibration: dict[str, tuple[float, float, float]]):
        self.locator, self.calibration = locator, calibration

    def plan(self, text: str, located: Located, index: Index) -> Verdict:
        name = PLANS[int(located.plan[0].argmax())]
        time = named_time(text)
        if time is not None and name not in ("chat", "yesno", "count", "count_of"):
            return self._at(time, index)
        if name in ("find", "about", "yesno", "yesno_now", "after", "before", "count_of"):
            return self._found(name, *self.margins(located, index), index)
        if name == "first":
            return self._moment(name, index.frames_of(0), index)
        if name == "count":
            return Verdict(name, self._newest(index), float(index.times[-1]), count=len(index.starts))
        if name == "list":
            return self._list(index)
        return self._now("chat" if name == "chat" else "now", index)  # "last", and "at" without a time, too

    def margins(self, located: Located, index: Index) -> tuple[np.ndarray, np.ndarray]:
        """Per shot, how much better it fits the question than "nowhere" (log of a ratio); and the frames' scores."""
        scores = self.locator.scores(located.query, index.keys.to(located.query.dtype))[0].double().numpy()
        lengths = np.diff([*index.starts, len(scores)])
        return np.logaddexp.reduceat(scores, index.starts) - np.log(lengths) - float(located.nowhere[0]), scores

    def _newest(self, index: Index) -> tuple[int, ...]:
        return tuple(index.frames_of(len(index.starts) - 1))[-READ:]

    def _now(self, name: str, index: Index, found: bool = True) -> Verdict:
        return Verdict(name, self._newest(index), float(index.times[-1]), found)

    def _at(self, time: float, index: Index) -> Verdict:
        if time > index.times[-1] + 1:
            return self._now("at", index)._replace(late=True)
        frame = int(np.abs(index.times - time).argmin())
        return Verdict("at", spread(index.frames_of(index.shot_of(frame)), READ, frame), float(index.times[frame]))

    def _moment(self, name: str, frames: range, index: Index, peak: int | None = None) -> Verdict:
        return Verdict(name, spread(frames, READ, peak), float(index.times[frames.start]))

    def _found(self, name: str, margins: np.ndarray, scores: np.ndarray, index: Index) -> Verdict:
        if name == "count_of":
            return self._counted(margins, index)
        if name == "yesno_now" or (name == "about" and self.sure("here", margins[-1], 1)):
            return self._now(name, index, self.sure("here", margins[-1], 1))
        shot = int(margins.argmax())
        if not self.sure("yesno" if name == "yesno" else "find", margins[shot], len(margins)):
            return self._now("yesno" if name == "yesno" else "find", index, found=False)
        if name in ("after", "before"):
            shot += 1 if name == "after" else -1
            if not 0 <= shot < len(margins):
                return self._now(name, index, found=False)
            return self._moment(name, index.frames_of(shot), index)
        frames = index.frames_of(shot)
        return self._moment(name, frames, index, frames.start + int(scores[frames.start : frames.stop].argmax()))

    def _counted(self, margins: np.ndarray, index: Index) -> Verdict:
        shots = [s for s, margin in enumerate(margins) if self.sure("here", margin, 1)]
        frames = tuple(index.frames_of(s).start for s in shots)
        times = tuple(float(index.times[f]) for f in frames[:LISTED])
        return self._now("count_of", index, bool(shots))._replace(
            frames=frames[:READ] or self._newest(index), count=len(shots), times=times
        )

    def sure(self, verdict: str, margin: float, shots: int) -> bool:
        a, b, c = self.calibration[verdict]
        return a * margin + b + c * math.log(shots) > 0

    def _list(self, index: Index) -> Verdict:
        lengths = np.diff([*index.starts, len(index.times)])
        longest = np.sort(np.argsort(-lengths, kind="stable")[:LISTED])  # the longest shots, in order of time
        moments = tuple(spread(index.frames_of(int(s)), READ) for s in longest)
        return Verdict("list", moments[0], float(index.times[moments[0][0]]), listed=moments)
