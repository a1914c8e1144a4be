"""Which senses there are, and which of them are wanted (`--senses`)."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.stream import UserError

OF_PICTURES = ("places", "colours", "light")  # in the order in which the index keeps their numbers
ALL, NONE = "all", "none"


def chosen(told: str | None) -> Mapping[str, str]:
    """The wanted senses by name, each with the model it shall use ("": its own). told: names with commas between them,
    a model after "=", "all" (None, too) or "none". Raises UserError for a name that is none."""
    if told is None or told == ALL:
        return dict.fromkeys(OF_PICTURES, "")
    parts = [part.strip().partition("=") for part in told.split(",")] if told != NONE else []
    named = {name.strip(): model.strip() for name, _, model in parts}
    if unknown := [name for name in named if name not in OF_PICTURES]:
        raise UserError(
            f"There is no sense {unknown[0][:40]!r}, so nothing was loaded; choose from {', '.join(OF_PICTURES)}, "
            f"{ALL} or {NONE}."
        )
    if with_model := [name for name, model in named.items() if model]:
        raise UserError(
            f"The sense {with_model[0]} takes no model, so nothing was loaded; leave out what follows the =."
        )
    return named
