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

from pipeline.clock import mmss
from pipeline.layers.norms import RMSNorm
from pipeline.memory.log import Field, Log
from pipeline.questions.things import Things, named_things
from pipeline.questions.times import named_stretch, named_time
from pipeline.questions.wordings import SO_FAR, stretch_plan, wording_plan
from pipeline.towers.efficientnet import FrameFeatures, words

READ = 4  # frames of a moment the reader looks at
LISTED = 6  # moments a summary names
LONG_TAKE = 15  # frames from which a shot is looked at in parts
PERSON = 0  # of COCO's categories: the detector misses few people, so a video without any in its eyes has none
SEEN = 0.4  # how sure the towers must be to be believed; people seen with less seldom are people
MAYBE = "maybe "  # before a word the towers doubt
ALIKE = 3.0  # how far below the best a score may lie and still be about the same thing (log of a ratio)

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
        for word, score, place, count in words(features, i, seen=SEEN, sure=0.15):
            if word not in best or score > best[word][0]:
                best[word] = (score, place, count)
    ranked = sorted(best.items(), key=lambda item: -item[1][0])[:at_most]
    return [" ".join(_phrase(word, *entry)) for word, entry in ranked]


def _phrase(word: str, score: float, place: str, count: int) -> Iterator[str]:
    if score < SEEN:
        yield MAYBE.strip()
    if count > 1:
        yield str(count)
    yield word
    if place and place != "centre":
        yield place


def asked_about(said: list[str], text: str, listed: bool = False) -> list[str]:
    """For a question that counts things or lists them: only the words about these things, so that the right number or
    name is copied."""
    counts = re.search(r"\b(how many|count|number of)\b", text, re.IGNORECASE)
    if not counts and not listed:
        return said
    asked = things_asked_for(text)
    return [phrase for phrase in said if asked.shares(named_things(phrase), detected_only=bool(counts))] or said


def things_asked_for(text: str) -> Things:
    """The things a question names; who asks "who" means people."""
    return named_things("person" if re.match(r"\W*who\b", text, re.IGNORECASE) else text)


# ---------------------------------------------------------------- what was seen, frame by frame


class Index(NamedTuple):
    """A snapshot's frames, one row each: seconds, locate keys, where shots begin, and the tower's findings."""

    times: np.ndarray
    keys: Tensor
    starts: np.ndarray  # frame numbers at which a shot begins, the first frame included
    features: FrameFeatures

    def shot_of(self, frame: int) -> int:
        return int(np.searchsorted(self.starts, frame, "right")) - 1

    def cut(self, start: int, stop: int) -> Index:
        """Some of the frames, as a video of their own."""
        starts = self.starts[(self.starts > start) & (self.starts < stop)] - start
        features = FrameFeatures(*(column[start:stop] for column in self.features))
        return Index(self.times[start:stop], self.keys[start:stop], np.concatenate([[0], starts]), features)

    def frames_of(self, shot: int) -> range:
        end = self.starts[shot + 1] if shot + 1 < len(self.starts) else len(self.times)
        return range(int(self.starts[shot]), int(end))


def index_log(width: int, features: int, device: torch.device | str = "cpu") -> Log:
    """An empty table of frames. 3.5 kB a frame."""
    f32, i16 = torch.float32, torch.int16
    columns = {
        "time": Field((None,), torch.float64), "key": Field((None, width), torch.float16),
        "novelty": Field((None,), f32), "classes": Field((None, 5), i16), "class_probs": Field((None, 5), f32),
        "det_ids": Field((None, 8), i16), "det_scores": Field((None, 8), f32), "det_boxes": Field((None, 8, 4), f32),
    }  # fmt: skip
    return Log(columns, block_slots=512, device=device)


def read_index(log: Log, cut: float) -> Index:
    """The table of a snapshot, small enough (an hour is 13 MB) to be put together for every question."""
    columns = {name: log.tensor(name) for name in log.fields}
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


class Fit(NamedTuple):
    """How well frames and shots fit a question. frames (F,), shots (S,): log of a ratio to "nowhere"."""

    frames: np.ndarray
    shots: np.ndarray


class Planner:
    """From a question's `Located` and a snapshot's index to a Verdict. Pure.

    calibration: per verdict the (a, b, c) of "sure if a * margin + b + c * ln(shots) > 0", fitted on held-out pictures;
    `towers` holds what a named thing's detection adds to a frame's score, and what its absence takes off.
    """

    def __init__(self, locator: Locator, calibration: dict[str, Sequence[float]]):
        self.locator, self.calibration = locator, calibration

    def plan(self, text: str, located: Located, index: Index, earlier: tuple[str, Verdict] | None = None) -> Verdict:
        """earlier: what the question may refer to: the last one that named a thing, and where the last one led.

        Of a question about a stretch ("in the last minute"): as if there were nothing else.
        """
        stretch = named_stretch(text, float(index.times[-1]))
        name = wording_plan(stretch[2] if stretch else text) or PLANS[int(located.plan[0].argmax())]
        earlier = None if stretch else earlier
        if earlier and (found := self._referred(name, earlier[1], index)):
            return found
        if earlier and name in ("find", "about", "count_of"):
            text = f"{text} ({earlier[0]})"
        if stretch is None or name == "chat":
            return self._planned(name, text, located, index)
        first, last, rest = stretch
        start, stop = np.searchsorted(index.times, first), np.searchsorted(index.times, last, "right")
        if start >= stop:
            return self._now("at", index)._replace(late=True)
        verdict = self._planned(wording_plan(rest) or stretch_plan(name, rest), rest, located, index.cut(start, stop))
        frames, *listed = (tuple(f + int(start) for f in moment) for moment in (verdict.frames, *verdict.listed))
        return verdict._replace(frames=frames, listed=tuple(listed))

    def _planned(self, name: str, text: str, located: Located, index: Index) -> Verdict:
        if name == "yesno_now" and SO_FAR.search(text):  # "has anybody come by now?" is not about now
            name = "yesno"
        time = named_time(text, float(index.times[-1]))
        if time is not None and name not in ("chat", "yesno", "count", "count_of"):
            return self._at(time, index)
        if name in ("find", "about", "yesno", "yesno_now", "after", "before", "count_of"):
            return self._found(name, text, self.fit(text, located, index), index)
        if name == "first":
            return self._moment(name, index.frames_of(0), index)
        if name == "count":
            return self._now(name, index)._replace(count=len(index.starts))
        if name == "list":
            return self._list(text, index)
        return self._now("chat" if name == "chat" else "now", index)  # "last", and "at" without a time, too

    def fit(self, text: str, located: Located, index: Index) -> Fit:
        """Scores of frames and shots (the log-mean-exp of their frames), over the score of "nowhere"."""
        frames = self.locator.scores(located.query, index.keys.to(located.query.dtype))[0].double().numpy()
        frames = frames - float(located.nowhere[0])
        if (shown := named_things(text).shown(index.features)) is not None:
            gain, loss = self.calibration.get("towers", (0.0, 0.0))
            frames = frames + gain * shown - loss
            if named_things(text).coco == (PERSON,) and shown.max() < SEEN:
                frames = frames - gain
        return Fit(frames, _log_mean_exp(frames, index.starts))

    def newest(self, index: Index) -> tuple[int, ...]:
        """The frames that are "now"."""
        return tuple(index.frames_of(len(index.starts) - 1))[-READ:]

    def _now(self, name: str, index: Index, found: bool = True) -> Verdict:
        return Verdict(name, self.newest(index), float(index.times[-1]), found)

    def _at(self, time: float, index: Index) -> Verdict:
        if time > index.times[-1] + 1:
            return self._now("at", index)._replace(late=True)
        frame = int(np.abs(index.times - time).argmin())
        return Verdict("at", spread(index.frames_of(index.shot_of(frame)), READ, frame), float(index.times[frame]))

    def _moment(self, name: str, frames: range, index: Index, peak: int | None = None) -> Verdict:
        return Verdict(name, spread(frames, READ, peak), float(index.times[frames.start]))

    def _found(self, name: str, text: str, fit: Fit, index: Index) -> Verdict:
        if name == "count_of":
            return self._counted(fit, index)
        newest = self.newest(index)
        here = self.sure("here", float(_log_mean_exp(fit.frames[list(newest)], np.zeros(1, int))[0]), 1)
        if name == "yesno_now" or (name == "about" and here):
            return self._now(name, index, here)
        shot = int(fit.shots.argmax())
        if not self.sure("yesno" if name == "yesno" else "find", fit.shots[shot], len(fit.shots)):
            return self._now("yesno" if name == "yesno" else "find", index, found=False)
        if re.search(r"\bfirst\b", text, re.IGNORECASE):  # the earliest that will do, not the one that fits best
            shot = next((s for s, m in enumerate(fit.shots) if m > fit.shots[shot] - ALIKE), shot)
        frames, peak = self._run(index.frames_of(shot), fit.frames)
        if name not in ("after", "before"):
            return self._moment(name, frames, index, peak)
        near = self._beside(frames, shot, 1 if name == "after" else -1, index)
        return self._moment(name, near, index) if near else self._now(name, index, found=False)

    def _referred(self, name: str, earlier: Verdict, index: Index) -> Verdict | None:
        """Of "And then?", "When was it?", "What colour is it?": the shot beside the moments of an earlier verdict, or
        its own moment; None where that was none."""
        if not earlier.found or earlier.late or earlier.plan in ("chat", "count", "count_of"):
            return None
        if name in ("find", "about") and not earlier.listed:
            return earlier._replace(plan=name)
        if name not in ("after", "before"):
            return None
        moments = earlier.listed or (earlier.frames,)
        frames, step = (moments[-1], 1) if name == "after" else (moments[0], -1)
        shot = index.shot_of(frames[0])
        run = index.frames_of(shot)
        run = run if len(run) <= LONG_TAKE else range(frames[0], frames[-1] + 1)
        near = self._beside(run, shot, step, index)
        return self._moment(name, near, index) if near else self._now(name, index, found=False)

    def _run(self, frames: range, scores: np.ndarray) -> tuple[range, int]:
        """The part of a shot a question is about, and its best frame: the whole of a short shot; in a long take (a
        fixed camera never cuts) the stretch around the best frame that fits nearly as well."""
        peak = frames.start + int(scores[frames.start : frames.stop].argmax())
        if len(frames) <= LONG_TAKE:
            return frames, peak
        start, stop = peak, peak + 1
        while start > frames.start and scores[start - 1] > scores[peak] - ALIKE:
            start -= 1
        while stop < frames.stop and scores[stop] > scores[peak] - ALIKE:
            stop += 1
        return range(start, stop), peak

    def _beside(self, frames: range, shot: int, step: int, index: Index) -> range | None:
        """What comes right after (step 1) or before (-1): the rest of a long take, else the neighbouring shot."""
        own = index.frames_of(shot)
        if step > 0 and frames.stop < own.stop:
            return range(frames.stop, min(own.stop, frames.stop + 2 * READ))
        if step < 0 and frames.start > own.start:
            return range(max(own.start, frames.start - 2 * READ), frames.start)
        return index.frames_of(shot + step) if 0 <= shot + step < len(index.starts) else None

    def _counted(self, fit: Fit, index: Index) -> Verdict:
        shots = [s for s, margin in enumerate(fit.shots) if self.sure("here", margin, 1)]
        frames = tuple(index.frames_of(s).start for s in shots)
        times = tuple(float(index.times[f]) for f in frames[:LISTED])
        return self._now("count_of", index, bool(shots))._replace(
            frames=frames[:READ] or self.newest(index), time=None, count=len(shots), times=times
        )

    def sure(self, verdict: str, margin: float, shots: int) -> bool:
        a, b, c = self.calibration[verdict]
        return a * margin + b + c * math.log(shots) > 0

    def _list(self, text: str, index: Index) -> Verdict:
        """Shots spread evenly over the video; of fewer shots than there is room for, the longest are split.

        Where the question names things ("Which animals did you see?"): the shots in which the towers see them best.
        """
        if (shown := things_asked_for(text).shown(index.features)) is not None:
            return self._list_of(shown, index)
        pieces = [index.frames_of(s) for s in range(len(index.starts))]
        while len(pieces) < LISTED and len(longest := max(pieces, key=len)) > LONG_TAKE:
            at, half = pieces.index(longest), longest.start + len(longest) // 2
            pieces[at : at + 1] = [range(longest.start, half), range(half, longest.stop)]
        return self._listed([spread(pieces[i], READ) for i in spread(range(len(pieces)), LISTED)], index)

    def _list_of(self, shown: np.ndarray, index: Index) -> Verdict:
        best = np.maximum.reduceat(shown, index.starts)
        shots = sorted(s for s in np.argsort(-best)[:LISTED] if best[s] >= SEEN)
        if not shots:
            return self._now("list", index, found=False)
        peaks = [index.starts[s] + int(shown[index.frames_of(s)].argmax()) for s in shots]
        return self._listed([spread(index.frames_of(s), READ, peak) for s, peak in zip(shots, peaks)], index)

    def _listed(self, moments: Sequence[tuple[int, ...]], index: Index) -> Verdict:
        return Verdict("list", moments[0], float(index.times[moments[0][0]]), listed=tuple(moments))


def _log_mean_exp(scores: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Per stretch beginning at `starts`: the logarithm of the mean of exp(scores)."""
    lengths = np.diff([*starts, len(scores)])
    return np.logaddexp.reduceat(scores, starts) - np.log(lengths)
