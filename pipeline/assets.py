"""Where the shipped weights, the example clip and their papers lie."""

from __future__ import annotations

import os
from pathlib import Path

_HERE = Path(__file__).parent
# A checkout has them beside the packages, a wheel inside this one; VAMBA_LIVE_ASSETS names any other place.
_PLACES = (_HERE.parent / "assets", _HERE / "shipped_assets")

ASSETS = Path(os.environ.get("VAMBA_LIVE_ASSETS") or next((place for place in _PLACES if place.is_dir()), _PLACES[0]))
"""The folder of the embedded models, `example.mp4`, MODEL_CARD.md and NOTICE."""


def example_clip() -> Path:
    """The clip that ships along (71 seconds, 640x360, H.264), wherever the assets lie here."""
    return ASSETS / "example.mp4"
