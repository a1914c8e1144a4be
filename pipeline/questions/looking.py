"""What is seen of something: its colour, clothes, light, what is done. Empty where no sense says it."""

from __future__ import annotations

import re

from pipeline.clock import mmss
from pipeline.questions.asked import Asked
from pipeline.questions.facts import OUTSIDE, PEOPLE, Known, joined
from pipeline.questions.notes import Verdict


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text))


# Words of a question that ask for no more than that something is there; for clothes; for a colour; for light.
THERE = _words(
    """standing stand room place scene moment time second frame film screen view else come came coming comes walk walked
    walking enter entered turn turned up show showed shown spot find found anything something still just present around
    left passing pass passed went go goes gone by get got being what which there any other least all ever his her hers
    their its my human humans"""
)
CLOTHES = _words("shirt dress jacket coat vest clothes sweater top wearing wear worn on")
ELSEWHERE_WORN = _words("hat head helmet glasses shoes feet hair trousers pants legs hands neck")
HUES = _words("color colors colour colours coloured colored shade hue kind sort main exactly")
# Places as a question names them (wordings.PLACES), with the words of the places' head that make them true.
TRUE_BY: dict[str, tuple[str, ...]] = {
    "at the beach": ("beach",),
    "in the water": ("swimming",),
    "at the water": ("water", "beach", "pool"),
    "at a pool": ("pool",),
    "in snow": ("snow",),
    "on a street": ("street",),
    "on grass": ("grass",),
    "in the mountains": ("mountain",),
    "outdoors": OUTSIDE,
    "indoors": (),
    "night": (),
}
GREYS = _words("black white monochrome grey gray colour color coloured colored")
LIGHT = _words("dark bright light night lit dim day")
BLANK = _words("black white blank empty")


def colour(asked: Asked, known: Known, verdict: Verdict) -> str:
    """Of things, from their boxes; of clothes, from the person in them; of nothing named, from whole pictures."""
    asks = set(asked.unnamed)
    if verdict.time is None or [w for w in asks if w not in HUES | CLOTHES | THERE and len(w) > 1]:
        return ""
    things = asked.things if any(asked.things) else PEOPLE if CLOTHES & asks else None
    hues = known.colours(things, verdict.frames) if things else known.overall(verdict.frames)
    return f"{joined(hues).capitalize()}, at {mmss(verdict.time)}." if hues else ""


def wearing(asked: Asked, known: Known, verdict: Verdict) -> str:
    """The colours at the chest: of what stands on a head or feet nothing is known."""
    hues = known.colours(PEOPLE, verdict.frames)
    if not hues or verdict.time is None or ELSEWHERE_WORN & set(asked.unnamed):
        return ""
    return f"A top or jacket in {joined(hues)}, at {mmss(verdict.time)}."


def doing(asked: Asked, known: Known, verdict: Verdict) -> str:
    """An action that the places' head is sure of."""
    done = [word for word in known.settings(verdict.frames) if word.split()[0].endswith("ing")]
    return f"{done[0].capitalize()}, at {mmss(verdict.time)}." if done and verdict.time is not None else ""


def light(asked: Asked, known: Known, verdict: Verdict) -> str:
    """Colour or black-and-white, dark or bright, whichever the question names."""
    asks = {
        "black and white": GREYS,
        "in colour": GREYS,
        "dark": LIGHT,
        "bright": LIGHT,
        "black": BLANK,
        "white": BLANK,
    }
    said = [word for word in known.looks(verdict.frames) if asks[word] & set(asked.unnamed)]
    return f"The picture is {joined(said)} at {mmss(verdict.time)}." if said and verdict.time is not None else ""


# What is asked of how something looks, with the doubt where no sense says it.
LOOKS = {
    "colour": "I am not sure of its colour.",
    "bw": "I cannot tell whether it is in colour, dark or bright.",
    "wearing": "I cannot tell the clothing.",
    "size_shape": "I cannot tell size, shape or material.",
    "weather": "I cannot tell the weather or the time of day.",
    "where": "I cannot tell what place this is.",
    "doing": "I am not sure what is being done.",
    "holding": "I am not sure what is held.",
}

LOOKED = {"colour": colour, "wearing": wearing, "doing": doing, "bw": light, "weather": light}
