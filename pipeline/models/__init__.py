"""The systems, one line each. A line names where the system's record lies; see models/system.py for what it says.

They are imported one after the other and only as far as needed: the embedded model starts without the published ones'
code, which takes seconds to import.
"""

from collections.abc import Iterator
from pkgutil import resolve_name

from pipeline.models.system import System

SYSTEMS = (  # the first that recognises a config.json has it: Vamba calls itself qwen2_vl, too
    "pipeline.models.shipped:EMBEDDED",
    "pipeline.models.shipped:TWIN",
    "pipeline.models.vamba:VAMBA",
    "pipeline.models.transformer:QWEN2_VL",
    "pipeline.models.mmmamba:MMMAMBA",
    "pipeline.models.ml_mamba:ML_MAMBA",
    "pipeline.models.ml_mamba:ML_MAMBA_TOWERS",
    "pipeline.models.gemamba:GEMAMBA",
)


def systems() -> Iterator[System]:
    """Their records, in order, each imported when it is asked for."""
    for place in SYSTEMS:
        yield resolve_name(place)
