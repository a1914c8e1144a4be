"""`python -m pipeline ask FILE QUESTION`: one or two models watch a file, then answer a question about it."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

from tqdm import tqdm

import pipeline
from pipeline.clock import mmss, parse_mmss
from pipeline.commands.probe import check_fps
from pipeline.engine import Engine, checked
from pipeline.options import ModelOptions
from pipeline.stream import Answer, Frame, Question, Sampling, StreamState, UserError, VideoChunk

MODEL, RIVAL = "embedded", "embedded-twin"
BACKLOG = 1_000_000  # a file is all backlog: the largest chunks the model likes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", help="a video file")
    parser.add_argument("question", help="what to ask, in quotes")
    parser.add_argument("--model", default=MODEL, help=f"a model's name or folder (default: {MODEL})")
    parser.add_argument("--at", metavar="MM:SS", help="ask while watching: stop there and answer from what was seen")
    parser.add_argument("--fps", type=float, default=1.0, help="pictures to watch per second of video (default: 1)")
    parser.add_argument(
        "--compare",
        nargs="?",
        const=RIVAL,
        metavar="MODEL",
        help=f"let a second model watch the same pictures (default: {RIVAL})",
    )
    parser.add_argument("--max-tokens", type=int, default=Sampling.max_tokens, help="length of the answer at most")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the answer")
    ModelOptions.add_flags(parser.add_argument_group("Vamba checkpoints only (--kernels: all)"))


def run(args: argparse.Namespace) -> int:
    """Answers go to stdout as they grow, where they looked to stderr; with --json one document goes to stdout."""
    until = None if args.at is None else parse_mmss(args.at)
    sampling = Sampling(max_tokens=args.max_tokens)
    question = checked(Question(args.question), sampling)  # before the video is watched for nothing
    options = ModelOptions.from_flags(args)
    _check_file(args.video, args.fps)
    viewers = [_viewer(args.model, options)]
    if args.compare:
        viewers.append(_viewer(args.compare, ModelOptions(kernels=options.kernels)))
    _watch_file(viewers, args, until)
    answers = [_answer(viewer, question, sampling, args) for viewer in viewers]
    if args.json:
        documents = [_document(viewer, answer) for viewer, answer in zip(viewers, answers)]
        print(json.dumps(documents if args.compare else documents[0], ensure_ascii=False))
    return 0


@dataclass
class Viewer:
    """One model in front of the video, and the seconds it spent watching."""

    engine: Engine
    state: StreamState
    watch_s: float = 0.0

    def watch(self, frames: tuple[Frame, ...]) -> None:
        began = time.perf_counter()
        self.state = self.engine.watch(VideoChunk(frames), self.state)
        self.watch_s += time.perf_counter() - began


def _check_file(video: str, fps: float) -> None:
    """Opens the file once before any model is loaded: its error comes in half a second, not after the weights."""
    check_fps(fps)
    pipeline.open_video(video, fps=fps, long_side=64).close()


def _viewer(name: str, options: ModelOptions) -> Viewer:
    engine = Engine(pipeline.load(name, **options.given()))
    return Viewer(engine, engine.start())


# --- watching --------------------------------------------------------------------------------------------------------


def _watch_file(viewers: list[Viewer], args: argparse.Namespace, until: float | None) -> None:
    """Every viewer sees the same pictures in the same chunks, decoded once; each one's time is its own."""
    long_side = max(viewer.engine.long_side for viewer in viewers)
    size = min(viewer.engine.chunk_frames(BACKLOG) for viewer in viewers)
    with contextlib.closing(pipeline.open_video(args.video, fps=args.fps, long_side=long_side)) as video:
        end = min(filter(None, [until, video.info.duration]), default=None)
        frames = itertools.takewhile(lambda frame: until is None or frame.time <= until, _while_readable(video))
        for chunk in _chunks(_with_progress(frames, end, args.fps), size):
            for viewer in viewers:
                viewer.watch(chunk)


def _while_readable(video: Iterable[Frame]) -> Iterator[Frame]:
    """A file that breaks in the middle ends there: what was seen can still be asked about."""
    try:
        yield from video
    except UserError as error:
        print(error, file=sys.stderr)


def _chunks(frames: Iterable[Frame], size: int) -> Iterator[tuple[Frame, ...]]:
    frames = iter(frames)
    while chunk := tuple(itertools.islice(frames, size)):
        yield chunk


def _with_progress(frames: Iterable[Frame], end: float | None, fps: float) -> Iterator[Frame]:
    """A bar on stderr where stderr is a terminal: video time watched, and how much faster than real time."""
    total = None if end is None else max(1, int(end * fps) + 1)
    with tqdm(total=total, unit="picture", file=sys.stderr, disable=None, leave=False, delay=0.5) as bar:
        for frame in frames:
            bar.update()
            bar.set_description(f"watched {mmss(frame.time)}", refresh=False)
            yield frame


# --- answering -------------------------------------------------------------------------------------------------------


def _answer(viewer: Viewer, question: Question, sampling: Sampling, args: argparse.Namespace) -> Answer:
    """The whole answer; without --json its words go to stdout as they come, and where it looked to stderr."""
    if args.compare and not args.json:
        print(f"[{viewer.engine.name}]")
    growing = cast("Generator[Answer, None, None]", viewer.engine.ask(question, viewer.state, sampling))
    with contextlib.closing(growing) as answers:
        *_, answer = answers if args.json else _printed(answers)
    if not args.json:
        print(flush=True)
        print(_summary(viewer, answer), file=sys.stderr)
    return answer


def _printed(answers: Iterable[Answer]) -> Iterator[Answer]:
    shown = ""
    for answer in answers:
        print(answer.text[len(shown) :], end="", flush=True)
        shown = answer.text
        yield answer


def _summary(viewer: Viewer, answer: Answer) -> str:
    looked = ", ".join(f"{mmss(m.time)} ({m.weight:.0%})" for m in answer.evidence) or "no moment in particular"
    pace = _timings(viewer, answer)["realtime_factor"]
    speed = f", {pace:.1f}x real time" if pace else ""
    note = f"; {viewer.state.dropped_note}" if viewer.state.dropped_note else ""
    return (
        f"  looked at: {looked}\n  asked at {mmss(answer.asked_at)} after {viewer.state.frames} pictures "
        f"in {viewer.watch_s:.1f} s{speed}{note}"
    )


def _timings(viewer: Viewer, answer: Answer) -> dict[str, float | None]:
    """realtime_factor: seconds of video per second of watching, decoding not counted; None for a single picture."""
    return {
        "watch_s": viewer.watch_s,
        "realtime_factor": answer.seen_until / viewer.watch_s if answer.seen_until and viewer.watch_s else None,
        "first_token_s": answer.first_token_s,
        "tokens_per_s": answer.tokens_per_s,
    }


def _document(viewer: Viewer, answer: Answer) -> dict[str, Any]:
    from pipeline.bench.machine import peak_memory  # which loads torch; a model has done so by now

    state = viewer.state
    return {
        "model": viewer.engine.name,
        "backend": viewer.engine.backend,
        "answer": answer.text,
        "asked_at": answer.asked_at,
        "seen_until": answer.seen_until,
        "evidence": [asdict(moment) for moment in answer.evidence],
        "frames": state.frames,
        "dropped": state.dropped,
        "dropped_note": state.dropped_note,
        "timings": _timings(viewer, answer),
        "bytes": {
            "state": state.state_bytes,
            "memory": state.memory_bytes,
            "memory_on_host": state.host_bytes,
            **peak_memory(),
        },
    }
