"""Answers from what was read and heard: facts from the list of events beside the state, doubts where there is none.

A sense that has not gone through everything yet says how far it is; one that could not says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.clock import mmss
from pipeline.questions.asked import Asked
from pipeline.questions.facts import joined
from pipeline.questions.sought import has
from pipeline.stream import Event, Question, Reach

SAID, SEEN_TEXT, SOUND = "speech", "text", "sound"  # kinds of event, and names of the senses that find them
NEAR_S = 3.0  # seconds from the asked one within which something counts as there
MOST = 3  # sayings of an answer
LONGEST = 160  # characters of one


class Reply(NamedTuple):
    """text: "" where nothing is known of what is asked. times: seconds it rests on."""

    text: str
    times: tuple[float, ...] = ()

    @property
    def looked(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The seconds with equal weights, as an answer's evidence; None where it rests on none."""
        return (np.array(self.times), np.full(len(self.times), 1 / len(self.times))) if self.times else None


NOTHING = Reply("")


class Gleanings:
    """What the late senses know as a question is put."""

    def __init__(self, asked: Asked, events: Sequence[Event], reaches: Sequence[Reach], end: float) -> None:
        self.asked, self.end = asked, end
        self.reaches = {reach.sense: reach for reach in reaches}
        self._events = sorted(events, key=lambda event: event.time)

    def of(self, kind: str) -> list[Event]:
        """Events of a kind, in order; of the second or the stretch that is asked about, where there is one."""
        found, when = [event for event in self._events if event.kind == kind], self.asked.when
        if when.stretch:
            start, stop = when.stretch
            return [event for event in found if event.time <= stop and _end(event) >= start]
        at = when.time
        if at is None:
            return found
        near = sorted(found, key=lambda event: away(event, at))
        return [event for event in near[:1] if away(event, at) <= NEAR_S]

    def unfinished(self, sense: str) -> str:
        """Why nothing can be said of what was not found: a sentence, "" where the sense has gone as far as is asked."""
        reach = self.reaches[sense]
        if reach.lacks:
            return reach.lacks
        when = self.asked.when
        last = when.stretch[1] if when.stretch else when.time if when.time is not None else self.end
        if reach.done or reach.until > last + NEAR_S:
            return ""
        how = f"{reach.doing} has come to {mmss(reach.until)}" if reach.until else f"{reach.doing} has yet to begin"
        return f"I cannot say yet; {how[0].lower()}{how[1:]}."


def gleaned_reply(asked: Asked, question: Question, end: float) -> Reply:
    """The answer, where the question is one for the late senses. end: newest second that was seen."""
    events = [event for event in question.events if question.at is None or event.time <= question.at]
    teller = TELLERS.get(asked.kind or "", found_by_words)
    return teller(asked, Gleanings(asked, events, question.reaches, end))


def needed(asked: Asked) -> tuple[str, ...]:
    """Names of the late senses that the answer would rest on."""
    if asked.kind in NEEDED:
        return NEEDED[asked.kind]
    return (SEEN_TEXT,) if asks_for_words(asked) else ()


def asks_for_words(asked: Asked) -> bool:
    """Whether it may be words on the screen that are looked for; a thing on the screen is for the eyes."""
    return bool(asked.words) and (asked.spelt or (asked.on_screen and not asked.each))


def on_screen(asked: Asked, known: Gleanings) -> Reply:
    """What is written, or whether something is."""
    if SEEN_TEXT not in known.reaches:
        return NOTHING
    events = known.of(SEEN_TEXT)
    if not events:
        return Reply(known.unfinished(SEEN_TEXT) or f"I have not seen any text that I could read{at_asked(asked)}.")
    if ONE_OF_MANY & set(asked.unnamed):  # which of it is that, nothing here tells
        read = quoted("at", "I read", events)
        return read._replace(text=f"I am not sure that it is what is meant; {read.text}")
    return quoted("Yes, at" if "yes or no" in asked.cues else "At", "I read", events)


def said(asked: Asked, known: Gleanings) -> Reply:
    """What was said: at a second, in a stretch, with the words that are asked for, or first of all."""
    if SAID not in known.reaches:
        return NOTHING
    events, at = known.of(SAID), at_asked(asked)
    whether = "yes or no" in asked.cues
    words = [word for word in asked.words if word not in SPEECH_WORDS]
    if words and not at and not asked.when.stretch:
        with_words = [event for event in events if has(event.text, words)]
        if with_words:
            return quoted("Yes, at" if whether else "At", "I heard", with_words)
        if whether or asked.spelt or "when or where" in asked.cues:
            never = joined(words, "or") if len(words) < 3 else "that"
            return Reply(known.unfinished(SAID) or f"I have not heard {never}.")
    if events:
        return quoted("Yes, at" if whether else "At", "I heard", events)
    return Reply(known.unfinished(SAID) or f"I heard nobody speak{at}.")


def sounds(asked: Asked, known: Gleanings) -> Reply:
    """Whether there is sound, music or speech; what makes another sound is not known."""
    if SOUND not in known.reaches:
        return NOTHING
    speech = known.of(SAID) if SAID in known.reaches else []
    music = [event for event in known.of(SOUND) if event.text == MUSIC]
    other = [event for event in known.of(SOUND) if event.text != MUSIC]
    heard = [(name, found[0]) for name, found in (("speech", speech), ("music", music), ("a sound", other)) if found]
    if not heard:
        waits = known.unfinished(SOUND) or (known.unfinished(SAID) if SAID in known.reaches else "")
        return Reply(waits or f"I hear nothing; the sound is silent{at_asked(asked)}.")
    told_of = joined([f"{name} at {mmss(event.time)}" for name, event in heard])
    times = tuple(event.time for _, event in heard)
    wanted = {"speech": SPEECH_WORDS, "music": MUSIC_WORDS} if asked.words else {}
    for name, words in wanted.items():
        if words & set(asked.words):
            first = next((event for one, event in heard if one == name), None)
            if first and {"yes or no", "when or where"} & asked.cues:
                yes = "Yes, " + name if "yes or no" in asked.cues else name.capitalize()
                return Reply(f"{yes} at {mmss(first.time)}.", (first.time,))
            if not first:
                return Reply(
                    known.unfinished(SOUND) or f"I am not sure whether there is {name}; I hear {told_of}.", times
                )
    if set(asked.words) - SPEECH_WORDS - MUSIC_WORDS - ANY_SOUND:
        return Reply(f"I hear {told_of}, but I cannot tell what makes it.", times)
    return Reply(f"{'Yes, ' if 'yes or no' in asked.cues else 'I hear '}{told_of}.", times)


def quoted(begins: str, does: str, events: Sequence[Event]) -> Reply:
    """ "At 0:12 I read "EXIT"; at 0:20 "ROOM 5"." """
    firsts: dict[str, Event] = {}
    for event in events:
        firsts.setdefault(event.text, event)
    shown = list(firsts.values())[:MOST]
    said = [f'at {mmss(event.time)} "{cut(event.text)}"' for event in shown[1:]]
    more = [f"and {len(firsts) - MOST} more"] if len(firsts) > MOST else []
    first = f'{begins} {mmss(shown[0].time)} {does} "{cut(shown[0].text)}"'
    told = "; ".join([first, *said, *more])
    ends = told.endswith(('."', '!"', '?"'))  # a sentence that was said has its own end
    return Reply(told if ends else told + ".", tuple(event.time for event in shown))


def found_by_words(asked: Asked, known: Gleanings) -> Reply:
    """Of "When does EXIT appear on screen?": where the words of a question that names no things are written."""
    if SEEN_TEXT not in known.reaches or not asks_for_words(asked):
        return NOTHING
    events = [event for event in known.of(SEEN_TEXT) if has(event.text, asked.words)]
    return quoted("Yes, at" if "yes or no" in asked.cues else "At", "I read", events) if events else NOTHING


def cut(text: str) -> str:
    """As much of it as an answer holds; quotation marks would end the quotation."""
    text = text.replace('"', "'")
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rsplit(" ", 1)[0] + "…"


def at_asked(asked: Asked) -> str:
    return "" if asked.when.time is None else f" at {mmss(asked.when.time)}"


def away(event: Event, time: float) -> float:
    """Seconds between a second and an event; 0 within it."""
    return max(event.time - time, time - _end(event), 0.0)


def _end(event: Event) -> float:
    return event.time if event.until is None else event.until


ONE_OF_MANY = frozenset(
    [
        "title",
        "name",
        "plate",
        "number",
        "headline",
        "score",
        "label",
        "credits",
        "menu",
        "tattoo",
        "jersey",
        "brand",
        "price",
    ]
)
MUSIC = "music"  # the text of its events
SPEECH_WORDS = frozenset(
    ["speech", "talk", "talking", "speaking", "voice", "voices", "conversation", "narration", "narrator", "people"]
)
MUSIC_WORDS = frozenset(["music", "song", "songs", "musical", "soundtrack", "tune", "melody", "singing", "score"])
ANY_SOUND = frozenset(
    [
        "sound",
        "sounds",
        "audio",
        "audible",
        "noise",
        "noises",
        "silent",
        "quiet",
        "mute",
        "muted",
        "track",
        "background",
        "start",
        "starts",
        "playing",
        "play",
    ]
)
NEEDED = {"text": (SEEN_TEXT,), "said": (SAID,), "sound": (SOUND, SAID)}
TELLERS: dict[str, Callable[[Asked, Gleanings], Reply]] = {"text": on_screen, "said": said, "sound": sounds}
