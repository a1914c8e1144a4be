"""How long a visitor waits: from a file to the moment all of it can be asked about, decoding included, by the engine.

    python -m pipeline bench --file VIDEO... [--size published] [--readers N] [--json]

Beside it stand, from the same run: bare decoding, which is every picture of the file through FFmpeg's decoder on all
cores and nothing else (of a long file its first seconds of work, scaled to all of its pictures); the product's own
reading, with nobody watching; and the model, with pictures that are already decoded. The two last ones go on side by
side, so the larger of bare decoding and model is the floor.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bench.machine import machine_conditions, peak_memory, timed
from pipeline.engine import Engine
from pipeline.sources.file import VideoInfo, open_video
from pipeline.sources.readers import cores, helpers
from pipeline.sources.refusals import Limits
from pipeline.stream import Frame, Question, Sampling, StreamState, VideoChunk

FPS = 1.0
BACKLOG = 1_000_000  # a file is all backlog: the largest chunks the model likes
KEPT = 8 << 30  # bytes of decoded pictures that are kept to measure the model alone
BARE_S = 15.0  # seconds that bare decoding takes at most; what is left is scaled
QUESTION = Question("What do you see in the middle of it?")


def measure_file(engine: Engine, path: Path) -> dict[str, Any]:
    """The document: times in seconds, sizes in bytes. Raises VideoError for a file that cannot be watched.

    bare_decoded: pictures that the seconds of bare decoding were measured on, of all `pictures` of the file.
    """
    info, frames, decoding = _decoded(engine, path)
    _said("reading", decoding)
    _said("warm-up", timed(lambda: _warm_up(engine, frames))[0])
    seconds, decoded = bare_decoding(path, BARE_S)
    pictures = count_pictures(path)
    bare = seconds * pictures / max(1, decoded)
    _said("bare decoding", bare)
    watching, watched = timed(lambda: _watched(engine, frames).frames)  # no state: two hours would not fit in a GPU
    _said("watching", watching)
    answerable, state = timed(lambda: _from_file(engine, path))
    _said("from file to answerable", answerable)
    watching *= state.frames / max(1, watched)
    first = next(iter(engine.ask(QUESTION, state, Sampling(max_tokens=1)))).first_token_s
    return {
        "conditions": _conditions(engine, info),
        "model": engine.name,
        "backend": engine.backend,
        "file": {"width": info.width, "height": info.height, "codec": info.codec, "bytes": info.bytes}
        | {"seconds": state.seen_until, "pictures": pictures, "watched": state.frames},
        "bare_decoding_s": bare,
        "bare_decoded": decoded,
        "decoding_s": decoding,
        "watching_s": watching,
        "answerable": _beside(answerable, max(bare, watching)) | {"over_bare_decoding": answerable / bare},
        "first_word_s": first,
        **peak_memory(),
    }


def _conditions(engine: Engine, info: VideoInfo) -> dict[str, Any]:
    return {
        "fps": FPS,
        "frames_per_chunk": engine.chunk_frames(BACKLOG),
        "readers": helpers(Limits(), info.width, info.height),
        "cores": cores(),
        **machine_conditions(),
    }


def _said(name: str, seconds: float) -> None:
    """On stderr at once: whatever happens to the later parts, this one was measured."""
    print(f"{name}: {seconds:.2f} s", file=sys.stderr, flush=True)


def _beside(seconds: float, floor: float) -> dict[str, float]:
    return {"s": seconds, "floor_s": floor, "ratio": seconds / floor}


def bare_decoding(path: Path, most: float) -> tuple[float, int]:
    """(seconds, pictures decoded): all of the file, or its beginning where all takes longer than `most` seconds.

    The operator's own file: visitors' never come near this.
    """
    import av  # the page's process and the command line never do this

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", cores()
        began, count = time.perf_counter(), 0
        for _ in container.decode(stream):
            count += 1
            if time.perf_counter() - began > most:
                break
        return time.perf_counter() - began, count


def count_pictures(path: Path) -> int:
    """Pictures in a file, by its packets."""
    import av  # as above

    with av.open(path) as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))


def _decoded(engine: Engine, path: Path) -> tuple[VideoInfo, list[Frame], float]:
    """What the file is, its pictures as far as they may be kept, and the seconds that reading all of it takes."""

    def read() -> tuple[VideoInfo, list[Frame]]:
        kept: list[Frame] = []
        room = KEPT
        with open_video(path, fps=FPS, long_side=engine.long_side) as video:
            for frame in video:
                room -= frame.rgb.nbytes
                kept += [frame] if room > 0 else []
            return video.info, kept

    seconds, (info, frames) = timed(read)
    return info, frames, seconds


def _warm_up(engine: Engine, frames: list[Frame]) -> None:
    """Kernels are compiled and passes recorded before visitors come."""
    few = frames[: engine.chunk_frames(BACKLOG)]
    state = _watched(engine, [Frame(np.array(frame.rgb), frame.time) for frame in few])
    next(iter(engine.ask(QUESTION, replace(state), Sampling(max_tokens=1))))


def _from_file(engine: Engine, path: Path) -> StreamState:
    with open_video(path, fps=FPS, long_side=engine.long_side) as video:
        return _watched(engine, video)


def _watched(engine: Engine, frames: Iterable[Frame]) -> StreamState:
    state = engine.start()
    for chunk in _chunks(iter(frames), engine.chunk_frames(BACKLOG)):
        state = engine.watch(VideoChunk(chunk), state)
    engine.confirm(state)
    return state


def _chunks(frames: Iterator[Frame], size: int) -> Iterator[tuple[Frame, ...]]:
    while chunk := tuple(itertools.islice(frames, size)):
        yield chunk


def visit_table(found: dict[str, Any]) -> str:
    """The document for people."""
    file, answerable = found["file"], found["answerable"]
    rows = {
        "bare decoding, all cores": found["bare_decoding_s"],
        f"reading, {found['conditions']['readers']} readers": found["decoding_s"],
        "watching what is decoded": found["watching_s"],
        "from file to answerable": answerable["s"],
        "first word of an answer": found["first_word_s"],
    }
    lines = [
        f"{file['width']}x{file['height']} {file['codec']}, {file['seconds']:,.0f} s, {file['pictures']:,} pictures"
    ]
    lines += [f"{found['model']} ({found['backend']}): {file['watched']:,} watched"]
    lines += [f"{name:<28} {seconds:9.2f} s" for name, seconds in rows.items()]
    lines += [
        f"from file to answerable: {answerable['ratio']:.2f} of its floor, "
        f"{answerable['over_bare_decoding']:.2f} of bare decoding"
    ]
    if found["bare_decoded"] < file["pictures"]:
        lines += [f"bare decoding: scaled from the first {found['bare_decoded']:,} pictures"]
    return "\n".join([*lines, ", ".join(f"{key} {value}" for key, value in found["conditions"].items())])
