"""`python -m pipeline mcp`: videos are watched and asked about by a program that speaks the Model Context Protocol.

Over stdin and stdout (https://modelcontextprotocol.io), by the protocol's own library (requirements-mcp.txt). Each
stream is watched by a thread of its own, so a question is answered at any moment, from what was seen until then. What
calls the tools can read the videos that whoever started this may read; an address is never opened.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import pipeline
from pipeline.clock import mmss, parse_mmss
from pipeline.commands.ask import MODEL, Viewer, check_file, document_of, watch_file
from pipeline.engine import Engine, checked
from pipeline.options import ModelOptions
from pipeline.stream import EVENT_KINDS, Event, Question, Sampling, UserError
from pipeline.timeline.clip import AROUND, clip
from pipeline.timeline.gleaner import Gleaner, Played
from pipeline.timeline.timeline import Timeline

log = logging.getLogger(__name__)

STREAMS = 8  # at once
MISSING = (
    "The Model Context Protocol's library is not installed, so nothing was started; "
    "run pip install -r requirements-mcp.txt."
)
ABOUT = (
    "Watches video files and answers about them at any moment while watching goes on. First call watch; the number it "
    "gives stands for that stream in all other tools. Times are MM:SS. An answer tells of what was seen so far."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=MODEL, help=f"a model's name or folder (default: {MODEL})")
    parser.add_argument("--fps", type=float, default=1.0, help="pictures to watch per second of video (default: 1)")
    ModelOptions.add_flags(parser.add_argument_group("Vamba checkpoints only (--kernels, --mode, --senses: all)"))


def run(args: argparse.Namespace) -> int:
    """Until stdin ends. The model is loaded first, so that no call waits for it."""
    if importlib.util.find_spec("mcp") is None:
        raise UserError(MISSING)
    engine = Engine(pipeline.load(args.model, **ModelOptions.from_flags(args).given()))
    with tempfile.TemporaryDirectory(prefix="vamba-clips-") as clips:
        tools = Tools(engine, args.fps, Path(clips))
        try:
            _server(tools).run("stdio")
        finally:
            tools.close_all()
    return 0


class Unwanted(Exception):
    """Nobody wants the rest of a video."""


class Stream:
    """One video and the thread that watches it. error: why there is no more, in a sentence."""

    def __init__(self, engine: Engine, path: str, fps: float) -> None:
        self.path, self.error, self.over = path, "", False
        self.timeline, self.gleaner = Timeline(engine), Gleaner(engine.model.late_senses)
        self._stop = threading.Event()
        self.viewer = Viewer(engine, engine.start(), noticed=self._noticed)
        self._wanted = True
        self._thread = threading.Thread(target=self._watch, args=(fps,), daemon=True)
        self._thread.start()

    @property
    def events(self) -> tuple[Event, ...]:
        return (*self.timeline.events, *self.gleaner.events)

    def close(self) -> None:
        """Returns when the chunk in work is over."""
        self._wanted = False
        self._stop.set()
        self._thread.join()

    def _watch(self, fps: float) -> None:
        try:
            watch_file([self.viewer], self.path, fps, None)
            self.timeline.finish(self.viewer.state)
            self.error, self.over = self.viewer.broken, True
            self.gleaner.go_through([Played(self.path)], self._stop)
        except Unwanted:
            pass
        except UserError as error:
            self.error = str(error)
        except Exception:  # a thread's end is seen by nobody
            log.exception("watching ended")
            self.error = (
                "Watching failed by a fault of this program, so it ended here; what was seen can be asked about."
            )
        finally:
            self.over = True

    def _noticed(self, frames: tuple, state: Any, _: float) -> None:
        self.timeline.watched(frames, state)
        if not self._wanted:
            raise Unwanted


class Tools:
    """What a program may call; every method is a tool, and its docstring is what the program is told."""

    def __init__(self, engine: Engine, fps: float, clips: Path) -> None:
        self._engine, self._fps, self._clips = engine, fps, clips
        self._streams: dict[int, Stream] = {}
        self._taken = 0
        self._lock = threading.Lock()

    def watch(self, path: str) -> dict[str, Any]:
        """Begins to watch a video file and returns at once with the number of its stream."""
        check_file(path, self._fps)
        with self._lock:
            if len(self._streams) >= STREAMS:
                raise UserError(f"{STREAMS} videos are open already, so this one was not; close one of them first.")
            self._taken += 1
            self._streams[self._taken] = Stream(self._engine, path, self._fps)
            return {"stream": self._taken}

    def status(self, stream: int) -> dict[str, Any]:
        """How far a stream was watched, whether that is over, and why if it ended early."""
        found = self._stream(stream)
        state = found.viewer.state
        return {
            "name": Path(found.path).name,
            "watching": not found.over,
            "seen_until": mmss(state.seen_until),
            "pictures": state.frames,
            "state_bytes": state.state_bytes,
            "memory_bytes": state.memory_bytes,
            "rules": [rule.text for rule in found.timeline.rules],
            "senses": [asdict(reach) for reach in found.gleaner.reaches],
            "error": found.error,
        }

    def ask(self, stream: int, question: str, at: str = "", max_tokens: int = 128) -> dict[str, Any]:
        """Answers from what was seen so far, with the moments it rests on. at: MM:SS, as if asked there."""
        found = self._stream(stream)
        viewer, reaches = found.viewer, found.gleaner.reaches
        sampling = Sampling(max_tokens=max_tokens)
        moment = parse_mmss(at) if at else None
        asked = checked(Question(question, at=moment, events=found.events, reaches=reaches), sampling)
        *_, answer = self._engine.ask(asked, viewer.state, sampling)
        told = document_of(viewer, answer)
        return told | {
            "seen_until": mmss(answer.seen_until),
            "asked_at": mmss(answer.asked_at),
            "evidence": [{"at": mmss(moment.time), "weight": moment.weight} for moment in answer.evidence],
        }

    def events(self, stream: int, kind: str = "", since: str = "00:00") -> list[dict[str, Any]]:
        """What happened when: shots, captions and alerts; once the video is over, chapters and what was read and heard.

        kind: one of those alone. since: MM:SS.
        """
        if kind and kind not in EVENT_KINDS:
            raise UserError(
                f"There are no events of kind {kind!r}, so none were given; kinds: {', '.join(EVENT_KINDS)}."
            )
        begins = parse_mmss(since)
        found = [event for event in self._stream(stream).events if kind in ("", event.kind)]
        return [_told(event) for event in sorted(found, key=lambda event: event.time) if event.time >= begins]

    def alert_when(self, stream: int, rule: str) -> dict[str, Any]:
        """Tells of something from now on: "a person enters". Its alerts come with `events` of kind "alert".

        says: how the rule was read.
        """
        found = self._stream(stream)
        taken = found.timeline.add_rule(rule)
        if found.over:
            found.timeline.judge(found.viewer.state)
        return {"rule": taken.text, "says": taken.says}

    def clip(self, stream: int, at: str, around: float = AROUND) -> dict[str, Any]:
        """The seconds around a moment (MM:SS) as an MP4 without sound. It is gone when the server ends."""
        found, moment = self._stream(stream), parse_mmss(at)
        out = self._clips / f"{stream}-{moment:.0f}-{around:g}.mp4"
        return {"pictures": clip(found.path, moment, out, around), "path": str(out)}

    def close(self, stream: int) -> dict[str, Any]:
        """Ends watching and forgets what was seen."""
        found = self._stream(stream)
        found.close()
        with self._lock:
            self._streams.pop(stream, None)
        return {"closed": stream}

    def _stream(self, number: int) -> Stream:
        found = self._streams.get(number)
        if found is None:
            raise UserError(f"There is no stream {number}, so nothing was done; call watch first.")
        return found

    def close_all(self) -> None:
        """At the end of the program."""
        for stream in self._streams.values():
            stream.close()


def _server(tools: Tools) -> Any:
    """The library's server over the tools."""
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("vamba-live", instructions=ABOUT, log_level="WARNING")
    for tool in (tools.watch, tools.status, tools.ask, tools.events, tools.alert_when, tools.clip, tools.close):
        server.add_tool(_refusing(tool))
    return server


def _refusing(tool: Callable) -> Callable:
    """A user's mistake as the protocol has it: its sentence, not a crash of ours."""
    from mcp.server.mcpserver.exceptions import ToolError

    @wraps(tool)
    def call(*args: Any, **given: Any) -> Any:
        try:
            return tool(*args, **given)
        except (UserError, OSError) as error:
            raise ToolError(str(error)) from None

    return call


def _told(event: Event) -> dict[str, Any]:
    until = None if event.until is None else mmss(event.until)
    return asdict(event) | {"at": mmss(event.time), "ends": until}
