"""The one door of the engine: everything the page and other programs may use.

Names are resolved on first use, so that `import pipeline` costs milliseconds: torch arrives with the first model
(`load`), the video libraries with the first video (`open_video`, `probe`).
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# Before torch is loaded: its threads sleep when they have nothing to do. Spinning is no quicker on a quiet machine and
# doubles the processor time on a shared one (two busy cores beside it: 21 ms a frame instead of 39).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from pipeline.clock import mmss
    from pipeline.engine import Engine
    from pipeline.models.load import load
    from pipeline.options import ModelOptions
    from pipeline.sources.camera import FrameQueue, thumbnail
    from pipeline.sources.file import VideoError, open_video, probe
    from pipeline.stream import (
        Answer,
        Evidence,
        Frame,
        Question,
        Sampling,
        StreamState,
        UserError,
        VideoChunk,
    )

__all__ = [
    "Answer",
    "Engine",
    "Evidence",
    "Frame",
    "FrameQueue",
    "ModelOptions",
    "Question",
    "Sampling",
    "StreamState",
    "UserError",
    "VideoChunk",
    "VideoError",
    "load",
    "mmss",
    "open_video",
    "probe",
    "thumbnail",
]

_ELSEWHERE = {  # every other name lives in stream.py
    "Engine": "engine",
    "FrameQueue": "sources.camera",
    "ModelOptions": "options",
    "VideoError": "sources.file",
    "load": "models.load",
    "mmss": "clock",
    "open_video": "sources.file",
    "probe": "sources.file",
    "thumbnail": "sources.camera",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    value = getattr(import_module(f"pipeline.{_ELSEWHERE.get(name, 'stream')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
