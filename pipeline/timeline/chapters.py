"""Chapters: a stream's shots and captions joined into a few parts, each with a title that was surely seen in it.

Pure functions of the events so far. Nothing is written by a language model: a title is captions, in their order.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.clock import mmss
from pipeline.questions.facts import MANY, SUBSTANCES, counted
from pipeline.questions.things import each_thing
from pipeline.stream import Event

MOST = 10  # chapters, however long the stream is
NAMED = 3  # captions of a title
OF_A_CHAPTER = 10.0  # seconds: the square root of how many of these a stream holds is how many chapters it has
GLIMPSE = 3.0  # seconds of something else that make no chapter
SUGGESTED = 4  # questions


@dataclass(frozen=True)
class Part:
    """Seconds from `start` to `end`, and for how many of them each caption was there ("": none)."""

    start: float
    end: float
    said: Counter[str]  # in the order in which they came

    @property
    def title(self) -> str:
        """The captions that last longest, in the order in which they first came; "" where there is none."""
        longest = [text for text, _ in self.said.most_common() if text][:NAMED]
        first, *rest = [text.rstrip(".") for text in self.said if text in longest] or [""]
        return first and ", then ".join([first, *(text[0].lower() + text[1:] for text in rest)]) + "."

    def joined(self, other: Part) -> Part:
        return Part(self.start, other.end, self.said + other.said)


def chapters(events: Sequence[Event], end: float) -> tuple[Event, ...]:
    """A few parts that cover a stream seen until that second. weight: a part's share of it."""
    parts = _parts(events, end)
    most = max(1, min(MOST, round(math.sqrt(end / OF_A_CHAPTER))))
    costs = _costs(parts)
    while costs and (len(parts) > most or min(costs) < GLIMPSE):
        i = costs.index(min(costs))
        parts[i : i + 2] = [parts[i].joined(parts[i + 1])]
        before = max(i - 1, 0)  # what it costs to join others stays
        costs[before : i + 2] = _costs(parts[before : i + 2])
    length = max(end, 1e-9)
    return tuple(Event(p.start, "chapter", p.title, (p.end - p.start) / length, p.end) for p in parts)


def _parts(events: Sequence[Event], end: float) -> list[Part]:
    """The stream between all its cuts and changes of caption."""
    told = [event for event in events if event.kind in ("shot", "caption", "gap") and event.time < end]
    edges = sorted({0.0, end, *(event.time for event in told), *(e.until for e in told if e.until and e.until < end)})
    captions = sorted((event for event in told if event.kind != "shot"), key=lambda event: event.time)
    parts, i = [], 0
    for start, stop in itertools.pairwise(edges):
        while i + 1 < len(captions) and captions[i + 1].time <= start:
            i += 1
        ends = (captions[i].until or math.inf) if captions else 0.0
        there = bool(captions) and captions[i].time <= start < ends
        parts.append(Part(start, stop, Counter({captions[i].text if there else "": stop - start})))
    return parts


def _costs(parts: Sequence[Part]) -> list[float]:
    """What it costs to join each with the next one: the seconds of the shorter one, times how unlike they are."""
    return [_unlike(a, b) * min(a.end - a.start, b.end - b.start) for a, b in itertools.pairwise(parts)]


def _unlike(a: Part, b: Part) -> float:
    """0 to 1: how much of their time they show other things. Not knowing what is seen is like nothing else."""
    lengths = (a.end - a.start, b.end - b.start)
    return 1 - sum(min(a.said[text] / lengths[0], b.said[text] / lengths[1]) for text in a.said)


def summary(events: Sequence[Event], end: float) -> str:
    """The chapters with their times, a line each: "0:07 to 0:24: A person and a tv."."""
    lines = [
        f"{mmss(one.time)} to {mmss(one.until or end)}: {one.text or 'I am not sure what this is.'}"
        for one in chapters(events, end)
    ]
    return "\n".join(lines)


def suggestions(events: Sequence[Event], end: float) -> tuple[str, ...]:
    """Questions about what was surely seen, most of the time first; none where nothing was."""
    seen: Counter[str] = Counter()
    for event in events:
        if event.kind == "caption":
            lasted = (end if event.until is None else event.until) - event.time
            seen.update(dict.fromkeys([word for word, _ in each_thing(event.text)], lasted))
    words: list[str] = []
    for word, _ in seen.most_common():
        if word not in SUBSTANCES and not any(word.endswith(known) or known.endswith(word) for known in words):
            words.append(word)
    asked = [f"When does {counted(word, 1)} appear?" for word in words[:2]]
    asked += [f"How many {MANY.get(word, word + 's')} are there?" for word in words[:1] if not word.endswith("s")]
    longest = max(chapters(events, end), key=lambda one: one.weight) if end else None
    asked += [f"What do you see at {mmss((longest.time + (longest.until or end)) / 2)}?"] if longest and words else []
    return tuple(asked[:SUGGESTED])
