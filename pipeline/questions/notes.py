"""What a plan led to, and how that is put in words beside a question, so that a language model can copy it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pipeline.clock import mmss
from pipeline.questions.asked import Asked
from pipeline.questions.things import named_things
from pipeline.towers.frame_tower import FrameFeatures, things_shown

SEEN = 0.4  # how sure the towers must be to be believed; people seen with less seldom are people
MAYBE = "maybe "  # before a word the towers doubt


class Verdict(NamedTuple):
    """The outcome of locating: the plan, the frames to read (indices), the second it is about, and what is certain."""

    plan: str
    frames: tuple[int, ...]
    time: float | None = None
    found: bool = True
    count: int | None = None  # type: ignore[assignment]  # scenes; hides tuple.count, which nobody needs here
    times: tuple[float, ...] = ()  # where the counted scenes begin
    late: bool = False  # the question names a time the video has not reached
    listed: tuple[tuple[int, ...], ...] = ()  # frames of every moment of a listing


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
    assert verdict.time is not None  # what was found has a time
    said = f"at {mmss(verdict.time)}: {', '.join(seen_words) or 'unsure'}"
    return f"(yes, {said})" if verdict.plan in ("yesno", "yesno_now") else f"({said})"


def spoken(features: FrameFeatures, rows: Sequence[int], at_most: int = 5) -> list[str]:
    """Words for a moment, from the tower's words on its frames: counted, placed, the doubtful ones marked."""
    best: dict[str, tuple[float, str, int]] = {}
    for i in rows:
        for word, score, place, count in things_shown(features, i, seen=SEEN, sure=0.15):
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


def asked_about(said: list[str], asked: Asked, listed: bool = False) -> list[str]:
    """For a question that counts things or lists them: only the words about these things, so that the right number or
    name is copied."""
    if not asked.counts and not listed:
        return said
    wanted = asked.wanted
    return [phrase for phrase in said if wanted.shares(named_things(phrase), detected_only=asked.counts)] or said
