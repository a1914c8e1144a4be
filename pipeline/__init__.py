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

if TYPE_CHECKING:  # the same names for those who read types; a test holds them against the table
    from pipeline.assets import example_clip as example_clip
    from pipeline.clock import mmss as mmss
    from pipeline.clock import parse_mmss as parse_mmss
    from pipeline.engine import Engine as Engine
    from pipeline.engine import Overflowed as Overflowed
    from pipeline.keeping.archive import archived as archived
    from pipeline.keeping.asleep import Asleep as Asleep
    from pipeline.keeping.asleep import Dormitory as Dormitory
    from pipeline.keeping.asleep import outline as outline
    from pipeline.keeping.cipher import can_encrypt as can_encrypt
    from pipeline.keeping.cipher import is_encrypted as is_encrypted
    from pipeline.keeping.found import Resumed as Resumed
    from pipeline.keeping.keeper import Keeper as Keeper
    from pipeline.keeping.kept import KeptStream as KeptStream
    from pipeline.keeping.kept import decrypted as decrypted
    from pipeline.keeping.reels import Reel as Reel
    from pipeline.keeping.reels import Shown as Shown
    from pipeline.keeping.reels import Stretch as Stretch
    from pipeline.keeping.reels import frame_records as frame_records
    from pipeline.keeping.segment import Record as Record
    from pipeline.keeping.taking import Lease as Lease
    from pipeline.keeping.taking import TakenOver as TakenOver
    from pipeline.keeping.taking import place_of as place_of
    from pipeline.keeping.taking import promised as promised
    from pipeline.keeping.taking import remove as remove
    from pipeline.models.load import beside as beside
    from pipeline.models.load import load as load
    from pipeline.models.load import partner_of as partner_of
    from pipeline.options import ModelOptions as ModelOptions
    from pipeline.sources.address import Address as Address
    from pipeline.sources.address import addresses as addresses
    from pipeline.sources.camera import FrameQueue as FrameQueue
    from pipeline.sources.camera import decode_jpeg as decode_jpeg
    from pipeline.sources.camera import thumbnail as thumbnail
    from pipeline.sources.file import VideoError as VideoError
    from pipeline.sources.file import open_video as open_video
    from pipeline.sources.file import probe as probe
    from pipeline.sources.live import Receiver as Receiver
    from pipeline.sources.readers import choose_readers as choose_readers
    from pipeline.sources.shots import look as look
    from pipeline.stream import Answer as Answer
    from pipeline.stream import Event as Event
    from pipeline.stream import Evidence as Evidence
    from pipeline.stream import Frame as Frame
    from pipeline.stream import Question as Question
    from pipeline.stream import Reach as Reach
    from pipeline.stream import Rule as Rule
    from pipeline.stream import Sampling as Sampling
    from pipeline.stream import StreamState as StreamState
    from pipeline.stream import UserError as UserError
    from pipeline.stream import VideoChunk as VideoChunk
    from pipeline.timeline.chapters import chapters as chapters
    from pipeline.timeline.chapters import suggestions as suggestions
    from pipeline.timeline.chapters import summary as summary
    from pipeline.timeline.clip import clip as clip
    from pipeline.timeline.clip import write_clip as write_clip
    from pipeline.timeline.export import csv_table as csv_table
    from pipeline.timeline.export import in_order as in_order
    from pipeline.timeline.export import markdown_text as markdown_text
    from pipeline.timeline.export import srt as srt
    from pipeline.timeline.export import vtt as vtt
    from pipeline.timeline.gleaner import Gleaner as Gleaner
    from pipeline.timeline.gleaner import Played as Played
    from pipeline.timeline.recall import Aged as Aged
    from pipeline.timeline.recall import Remembering as Remembering
    from pipeline.timeline.recall import Score as Score
    from pipeline.timeline.recall import moments as moments
    from pipeline.timeline.recall import recall as recall
    from pipeline.timeline.timeline import Timeline as Timeline

PLACES = {  # every name of the door, and the module it lives in
    "Address": "sources.address",
    "Aged": "timeline.recall",
    "Answer": "stream",
    "Asleep": "keeping.asleep",
    "Dormitory": "keeping.asleep",
    "Engine": "engine",
    "Event": "stream",
    "Evidence": "stream",
    "Frame": "stream",
    "FrameQueue": "sources.camera",
    "Gleaner": "timeline.gleaner",
    "Keeper": "keeping.keeper",
    "KeptStream": "keeping.kept",
    "Lease": "keeping.taking",
    "ModelOptions": "options",
    "Overflowed": "engine",
    "Played": "timeline.gleaner",
    "Question": "stream",
    "Reach": "stream",
    "Receiver": "sources.live",
    "Reel": "keeping.reels",
    "Remembering": "timeline.recall",
    "Resumed": "keeping.found",
    "Record": "keeping.segment",
    "Rule": "stream",
    "Sampling": "stream",
    "Score": "timeline.recall",
    "Shown": "keeping.reels",
    "StreamState": "stream",
    "Stretch": "keeping.reels",
    "TakenOver": "keeping.taking",
    "Timeline": "timeline.timeline",
    "UserError": "stream",
    "VideoChunk": "stream",
    "VideoError": "sources.file",
    "addresses": "sources.address",
    "archived": "keeping.archive",
    "beside": "models.load",
    "can_encrypt": "keeping.cipher",
    "chapters": "timeline.chapters",
    "choose_readers": "sources.readers",
    "clip": "timeline.clip",
    "decode_jpeg": "sources.camera",
    "decrypted": "keeping.kept",
    "example_clip": "assets",
    "load": "models.load",
    "look": "sources.shots",
    "mmss": "clock",
    "moments": "timeline.recall",
    "open_video": "sources.file",
    "outline": "keeping.asleep",
    "parse_mmss": "clock",
    "partner_of": "models.load",
    "place_of": "keeping.taking",
    "probe": "sources.file",
    "promised": "keeping.taking",
    "recall": "timeline.recall",
    "remove": "keeping.taking",
    "csv_table": "timeline.export",
    "frame_records": "keeping.reels",
    "in_order": "timeline.export",
    "is_encrypted": "keeping.cipher",
    "markdown_text": "timeline.export",
    "srt": "timeline.export",
    "suggestions": "timeline.chapters",
    "summary": "timeline.chapters",
    "thumbnail": "sources.camera",
    "vtt": "timeline.export",
    "write_clip": "timeline.clip",
}
__all__ = list(PLACES)


def __getattr__(name: str) -> object:
    if name not in PLACES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    value = getattr(import_module(f"pipeline.{PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES})
