"""`python -m pipeline ask FILE QUESTION`: one or two models watch a file, then answer a question about it.

With --keep the stream outlives the command (pipeline/keeping); commands/resume.py goes on with it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

import pipeline
from pipeline.clock import mmss, parse_mmss
from pipeline.commands.probe import check_fps
from pipeline.engine import Engine, checked
from pipeline.keeping.keeper import Keeper
from pipeline.keeping.kept import KeptStream
from pipeline.keeping.reels import frame_records
from pipeline.options import ModelOptions
from pipeline.sources.readers import choose_readers
from pipeline.stream import JSON, Answer, Frame, Question, Sampling, StreamState, UserError, VideoChunk
from pipeline.timeline.gleaner import Gleaner, Played

MODEL, TWIN = "embedded", "embedded-twin"
PARTNER = "partner"  # instead of a name: the model that the other is naturally compared with
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
        const=PARTNER,
        metavar="MODEL",
        help="let a second model watch the same pictures: any; by default the natural partner (of the embedded model "
        "its transformer twin, of mmMamba HoVLE, of Vamba Qwen2-VL)",
    )
    parser.add_argument("--keep", metavar="FOLDER", help="keep the stream there, so that `resume FOLDER` can go on")
    add_answer_arguments(parser)
    ModelOptions.add_flags(parser.add_argument_group("Vamba checkpoints only (--kernels, --mode, --senses: all)"))


def add_answer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--readers", type=int, metavar="N", help="processes that decode the file (default: every core)")
    parser.add_argument("--max-tokens", type=int, default=Sampling.max_tokens, help="length of the answer at most")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the answer")


def run(args: argparse.Namespace) -> int:
    """Answers go to stdout as they grow, where they looked to stderr; with --json one document goes to stdout."""
    until = None if args.at is None else parse_mmss(args.at)
    sampling = Sampling(max_tokens=args.max_tokens)
    question = checked(Question(args.question), sampling)  # before the video is watched for nothing
    options = ModelOptions.from_flags(args)
    choose_readers(args.readers)
    check_file(args.video, args.fps)
    viewers = [viewer_of(args.model, options)]
    if args.compare:
        rival = pipeline.partner_of(args.model) if args.compare == PARTNER else args.compare
        viewers.append(viewer_of(rival, pipeline.beside(rival, options)))
    if args.keep:
        viewers[0].keeper = _keeper(viewers[0].engine, args, options)
    with closing_keepers(viewers):
        watch_file(viewers, args.video, args.fps, until)
    played = Played(args.video, until=math.inf if until is None else until)
    question = with_gleaned(viewers[0].engine, question, [played])
    answers = [answered(viewer, question, sampling, args.json, heading=bool(args.compare)) for viewer in viewers]
    if args.json:
        documents = [document_of(viewer, answer) for viewer, answer in zip(viewers, answers)]
        print(json.dumps(documents if args.compare else documents[0], ensure_ascii=False))
    return 0


@dataclass
class Viewer:
    """One model in front of the video, the seconds it spent watching, and who keeps what it saw.

    position: pictures of the video taken so far. noticed: told of every chunk afterwards, with the seconds of watching.
    broken: why the rest of the video could not be read.
    """

    engine: Engine
    state: StreamState
    watch_s: float = 0.0
    keeper: Keeper | None = None
    position: int = 0
    noticed: Callable[[tuple[Frame, ...], StreamState, float], None] | None = None
    broken: str = ""

    def watch(self, frames: tuple[Frame, ...]) -> None:
        began = time.perf_counter()
        self.state = self.engine.watch(VideoChunk(frames), self.state)
        self.position += len(frames)
        if self.keeper:
            records = frame_records(frames, self.state.frames - len(frames))
            self.keeper.watched(len(frames), self.position, self.state, records)
        self.watch_s += time.perf_counter() - began
        if self.noticed:
            self.noticed(frames, self.state, self.watch_s)

    def conclude(self) -> None:
        """Waits for the last chunk. Raises UserError where the model could not take it."""
        began = time.perf_counter()
        self.engine.confirm(self.state)
        self.watch_s += time.perf_counter() - began


def check_file(video: str, fps: float) -> None:
    """Opens the file once before any model is loaded: its error comes in half a second, not after the weights."""
    check_fps(fps)
    pipeline.open_video(video, fps=fps, long_side=64).close()


def _keeper(engine: Engine, args: argparse.Namespace, options: ModelOptions) -> Keeper:
    """A new stream in the folder of --keep, with the video."""
    about: dict[str, JSON] = {
        "model": args.model,
        "options": options.given(),
        "backend": engine.backend,
        "source": "file",
        "name": Path(args.video).name,
        "fps": args.fps,
    }
    keeper = Keeper(engine, KeptStream.create(Path(args.keep), about))
    keeper.do(partial(keeper.kept.take_video, Path(args.video)))
    return keeper


@contextlib.contextmanager
def closing_keepers(viewers: list[Viewer]) -> Iterator[None]:
    """What is kept is whole however watching ends; why keeping stopped is told on stderr."""
    keepers = [viewer.keeper for viewer in viewers if viewer.keeper]
    try:
        yield
    finally:
        for keeper in keepers:
            keeper.close()
            if keeper.error:
                print(keeper.error, file=sys.stderr)


def viewer_of(name: str, options: ModelOptions) -> Viewer:
    engine = Engine(pipeline.load(name, **options.given()))
    return Viewer(engine, engine.start())


# --- watching --------------------------------------------------------------------------------------------------------


def watch_file(
    viewers: list[Viewer],
    path: str,
    fps: float,
    until: float | None,
    sizes: Sequence[int] = (),
    begins: float = 0.0,
) -> None:
    """Every viewer sees the same pictures in the same chunks, decoded once; each one's time is its own.

    Goes on after the pictures that the first viewer has taken: counting is exact where seeking is not. sizes: of the
    first chunks, as they were cut before. begins: second of the stream at the file's first picture; `until` is a
    second of the stream.
    """
    long_side = max(viewer.engine.long_side for viewer in viewers)
    size = min(viewer.engine.chunk_frames(BACKLOG) for viewer in viewers)
    with contextlib.closing(pipeline.open_video(path, fps=fps, long_side=long_side)) as video:
        end = min(filter(None, [until and until - begins, video.info.duration]), default=None)
        later = (frame.later(begins) if begins else frame for frame in _while_readable(video, viewers))
        frames = itertools.takewhile(lambda frame: until is None or frame.time <= until, later)
        rest = itertools.islice(_with_progress(frames, end, fps), viewers[0].position, None)
        for chunk in _chunks(rest, itertools.chain(sizes, itertools.repeat(size))):
            for viewer in viewers:
                viewer.watch(chunk)
        for viewer in viewers:
            viewer.conclude()


def _while_readable(video: Iterable[Frame], viewers: list[Viewer]) -> Iterator[Frame]:
    """A file that breaks in the middle ends there: what was seen can still be asked about."""
    try:
        yield from video
    except UserError as error:
        print(error, file=sys.stderr)
        for viewer in viewers:
            viewer.broken = str(error)


def _chunks(frames: Iterator[Frame], sizes: Iterator[int]) -> Iterator[tuple[Frame, ...]]:
    while chunk := tuple(itertools.islice(frames, next(sizes))):
        yield chunk


def _with_progress(frames: Iterable[Frame], end: float | None, fps: float) -> Iterator[Frame]:
    """A bar on stderr where stderr is a terminal: video time watched, and how much faster than real time."""
    total = None if end is None else max(1, int(end * fps) + 1)
    with tqdm(total=total, unit="picture", file=sys.stderr, disable=None, leave=False, delay=0.5) as bar:
        for frame in frames:
            bar.update()
            bar.set_description(f"watched {mmss(frame.time)}", refresh=False)
            yield frame


def with_gleaned(engine: Engine, question: Question, files: Sequence[Played]) -> Question:
    """The question with what the late senses found in the files: those that its answer rests on."""
    gleaner, wanted = Gleaner(engine.model.late_senses), engine.model.asks_late_senses(question)
    gleaned_with_progress(gleaner, files, wanted)
    return replace(question, events=gleaner.events, reaches=gleaner.reaches)


def gleaned_with_progress(gleaner: Gleaner, files: Sequence[Played], wanted: Collection[str] | None = None) -> None:
    """A line on stderr where stderr is a terminal: which sense is at work, and how far it has come."""
    with tqdm(file=sys.stderr, disable=None, leave=False, delay=0.5, bar_format="{desc}") as line:
        gleaner.go_through(
            files, None, wanted, lambda reach: line.set_description_str(f"{reach.doing}: {mmss(reach.until)}")
        )


# --- answering -------------------------------------------------------------------------------------------------------


def answered(viewer: Viewer, question: Question, sampling: Sampling, quiet: bool, heading: bool = False) -> Answer:
    """The whole answer; unless `quiet` its words go to stdout as they come, and where it looked to stderr."""
    if heading and not quiet:
        print(f"[{viewer.engine.name}]")
    growing = cast("Generator[Answer, None, None]", viewer.engine.ask(question, viewer.state, sampling))
    with contextlib.closing(growing) as answers:
        *_, answer = answers if quiet else _printed(answers)
    if not quiet:
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
    basis = f"\n  {answer.basis.mode}: {answer.basis.words}" if answer.basis.words else ""
    return (
        f"  looked at: {looked}{basis}\n  asked at {mmss(answer.asked_at)} after {viewer.state.frames} pictures "
        f"in {viewer.watch_s:.1f} s{speed}{note}\n  {_costs(viewer, answer)}"
    )


def _costs(viewer: Viewer, answer: Answer) -> str:
    """What two models are compared by."""
    state, timings = viewer.state, _timings(viewer, answer)
    said = [f"state {state.state_bytes / 1e6:,.1f} MB", f"memory {state.memory_bytes / 1e6:,.1f} MB"]
    said += [f"{state.disk_bytes / 1e6:,.1f} MB of it on the disk"] if state.disk_bytes else []
    said += [f"{ms:,.1f} ms a picture"] if (ms := timings["picture_ms"]) else []
    said += [f"first word after {first:.2f} s"] if (first := timings["first_token_s"]) else []
    return ", ".join(said)


def _timings(viewer: Viewer, answer: Answer) -> dict[str, float | None]:
    """realtime_factor: seconds of video per second of watching, decoding not counted; None for a single picture."""
    return {
        "watch_s": viewer.watch_s,
        "picture_ms": viewer.watch_s / viewer.state.frames * 1e3 if viewer.state.frames else None,
        "realtime_factor": answer.seen_until / viewer.watch_s if answer.seen_until and viewer.watch_s else None,
        "first_token_s": answer.first_token_s,
        "tokens_per_s": answer.tokens_per_s,
    }


def document_of(viewer: Viewer, answer: Answer) -> dict[str, Any]:
    from pipeline.bench.machine import peak_memory  # which loads torch; a model has done so by now

    state = viewer.state
    keeper = viewer.keeper
    kept = {"kept": {"bytes": keeper.nbytes, "seconds": keeper.seconds, "error": keeper.error}} if keeper else {}
    return kept | {
        "model": viewer.engine.name,
        "backend": viewer.engine.backend,
        "answer": answer.text,
        "asked_at": answer.asked_at,
        "seen_until": answer.seen_until,
        "known_until": answer.known_until,
        "mode": answer.basis.mode,
        "basis": answer.basis.words,
        "evidence": [asdict(moment) for moment in answer.evidence],
        "frames": state.frames,
        "dropped": state.dropped,
        "dropped_note": state.dropped_note,
        "timings": _timings(viewer, answer),
        "bytes": {
            "state": state.state_bytes,
            "memory": state.memory_bytes,
            "memory_on_host": state.host_bytes,
            "memory_on_disk": state.disk_bytes,
            **peak_memory(),
        },
    }
