"""What a published config.json may say: a field that changes the mathematics is obeyed or refused, never ignored."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pipeline.stream import UserError


def demand(fields: dict[str, Any], where: str, **allowed: Any) -> None:
    """UserError where a field is present and its value is not the one, or among those, that can be run.

    where: the section's name in config.json, for the sentence. A missing or null field passes.
    """
    for name, values in allowed.items():
        value = fields.get(name)
        values = values if isinstance(values, tuple) else (values,)
        if value is not None and value not in values:
            raise UserError(
                f"The model's config says {name} = {str(value)[:60]!r} in {where}, and only "
                f"{' or '.join(map(repr, values))} can be run here, so it was not loaded; use another checkpoint."
            )


def only(fields: dict[str, Any], where: str, known: Collection[str]) -> None:
    """UserError where a section that describes nothing but the network has a field nobody here knows."""
    if unknown := sorted(set(fields) - set(known)):
        raise UserError(
            f"The model's config has fields in {where} that are not known here ({', '.join(unknown[:3])}), "
            "so the model was not loaded; use another checkpoint."
        )


TEXT = (  # what transformers' configurations of text models call alike
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
)


def text_fields(config: dict[str, Any], *more: str) -> dict[str, Any]:
    """Those of TEXT, and more, that a config has: what is not there has the library's default."""
    return {key: config[key] for key in (*TEXT, *more) if config.get(key) is not None}
