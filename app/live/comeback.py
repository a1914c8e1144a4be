"""A kept stream comes back: from what lies on the shelf to what a session goes on with."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from app.live import uploads
from app.live.keep import LIVE, Keep, has_ended, noticed_of, pictures_of, turns_of
from app.live.shelf import Shelf
from app.live.uploads import Source
from app.live.view import UPLOAD, Turn
from app.live.watching import FPS, Start
from pipeline import Engine, KeptStream, UserError, mmss


class Back(NamedTuple):
    """start: where watching goes on; None: the file must be watched again from its start, and kept anew."""

    source: Source
    words: tuple[tuple[Turn, ...], tuple[Turn, ...]]
    start: Start | None
    keep: Keep | None


def about(source: Source, engine: Engine) -> dict[str, Any]:
    """What must be known of a stream to go on with it. began: when, as `time.time` counts."""
    named: dict[str, Any] = {"source": source.kind, "name": source.name, "backend": engine.backend}
    return named | {"fps": FPS, "began": time.time()}


def goes_on_alone(shelf: Shelf, name: str) -> bool:
    """Whether a file was being watched when the server ended. Raises UserError where it cannot be read."""
    kept = shelf.open(name)
    try:
        return kept.about.get("source") not in LIVE and not has_ended(kept)
    finally:
        kept.close()
        shelf.release(name)


def of(shelf: Shelf, name: str, engine: Engine) -> Back:
    """All that is kept under a name. Raises UserError where it cannot go on."""
    kept = shelf.open(name)
    try:
        words, pictures, (events, rules) = turns_of(kept), pictures_of(kept), noticed_of(kept)
        kind = kept.about.get("source")
        if kind in LIVE:
            resumed = kept.resume(engine.model)
            since = _camera_now(kept, resumed.state.seen_until)
            note = f"Nothing was seen from {mmss(resumed.state.seen_until)} to {mmss(since)}: the server was away."
            source = Source(str(kind))
        else:
            kept.check_video()
            source = _file(kept)
            try:
                resumed = kept.resume(engine.model)
            except UserError:
                kept.close()
                shelf.release(name)
                return Back(source, words, None, None)
            since, note = 0.0, resumed.note
        start = Start(resumed.state, resumed.position, pictures, since, events=events, rules=rules)
        keep = Keep(shelf, name, kept, engine, " ".join(filter(None, [resumed.note, note][-1:])))
        keep.goes_on(pictures, words, events, rules)
        return Back(source, words, start, keep)
    except BaseException:
        kept.close()
        shelf.release(name)
        raise


def _camera_now(kept: KeptStream, seen_until: float) -> float:
    """The second of the stream that it is now: the gap counts, so that times stay those of a clock on the wall."""
    began = kept.about.get("began")
    passed = time.time() - began if isinstance(began, float) else 0.0
    return max(seen_until, passed)


def _file(kept: KeptStream) -> Source:
    name, kind = str(kept.about.get("name", "")), str(kept.about.get("source", UPLOAD))
    if kind == UPLOAD:
        return uploads.put_back(kept.video, name)
    return Source(kind, name, uploads.own_copy(Path(kept.video)))
