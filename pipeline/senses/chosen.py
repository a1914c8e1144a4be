"""Which senses there are, and which of them are wanted (`--senses`)."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.senses.sound import Sounds
from pipeline.senses.speech import Speech
from pipeline.senses.text import Text
from pipeline.stream import LateSense, UserError

OF_PICTURES = ("places", "bodies", "colours", "light")  # in the order in which the index keeps their numbers
OF_FILES = ("sound", "text", "speech")  # in the order in which they go through a file: the quickest first
SENSES = (*OF_PICTURES, *OF_FILES)
ABLE = ("speech",)  # those that take another model than their own
ALL, NONE = "all", "none"


def chosen(told: str | None) -> Mapping[str, str]:
    """The wanted senses by name, each with the model it shall use ("": its own). told: names with commas between them,
    a model after "=", "all" (None, too) or "none". Raises UserError for a name that is none."""
    if told is None or told == ALL:
        return dict.fromkeys(SENSES, "")
    parts = [part.strip().partition("=") for part in told.split(",")] if told != NONE else []
    named = {name.strip(): model.strip() for name, _, model in parts}
    if unknown := [name for name in named if name not in SENSES]:
        raise UserError(
            f"There is no sense {unknown[0][:40]!r}, so nothing was loaded; choose from {', '.join(SENSES)}, "
            f"{ALL} or {NONE}."
        )
    if unable := [name for name, model in named.items() if model and name not in ABLE]:
        raise UserError(f"The sense {unable[0]} takes no model, so nothing was loaded; leave out what follows the =.")
    return named


def late_senses(wanted: Mapping[str, str]) -> tuple[LateSense, ...]:
    """Those of files, which load what they need when they are first used."""
    senses: dict[str, LateSense] = {"sound": Sounds(), "text": Text(), "speech": Speech(wanted.get("speech", ""))}
    return tuple(senses[name] for name in OF_FILES if name in wanted)
