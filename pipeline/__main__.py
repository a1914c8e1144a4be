"""The command line: `python -m pipeline ask | probe | bench | verify | fidelity`. Heavy imports wait for their command.

Exit codes: 0 done; 1 a command ran and its check failed; 2 a mistake of the user's, told in one sentence on stderr;
130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.stream import Answer, Frame, Question, Sampling, StreamState, UserError, VideoChunk

if TYPE_CHECKING:
    from pipeline.engine import Engine

MODEL, BASELINE = "embedded", "embedded-twin"
BACKLOG = 1_000_000  # a file is all backlog: the largest chunks the model likes


class Parser(argparse.ArgumentParser):
    """argparse that leaves reporting to `main`, so that every mistake ends in one sentence and exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"The command was not understood ({message}), so nothing was done; see {self.prog} --help.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(argv).parse_args(argv)
        return args.command(args)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _parser(argv: Sequence[str]) -> Parser:
    parser = Parser(prog="python -m pipeline", description="Watch a video and ask about it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_ask(commands.add_parser("ask", help="watch a file, then answer a question about it"))
    _add_probe(commands.add_parser("probe", help="say what is in a video file, or why it cannot be read"))
    _add_bench(commands.add_parser("bench", help="what an hour costs: the model and its baseline over growing video"))
    _add_heavy(commands.add_parser("verify", help="recompute golden tensors and print the differences"), argv)
    _add_heavy(commands.add_parser("fidelity", help="how far saving memory or time strays from exact answers"), argv)
    return parser


def _add_ask(parser: Parser) -> None:
    parser.add_argument("video", help="a video file")
    parser.add_argument("question", help="what to ask, in quotes")
    parser.add_argument("--model", default=MODEL, help=f"a model's name or folder (default: {MODEL})")
    parser.add_argument("--at", metavar="MM:SS", help="ask while watching: stop there and answer from what was seen")
    parser.add_argument("--fps", type=float, default=1.0, help="pictures to watch per second of video (default: 1)")
    parser.add_argument(
        "--compare", nargs="?", const=BASELINE, metavar="MODEL",
        help=f"let a second model watch the same pictures (default: {BASELINE})",
    )  # fmt: skip
    parser.add_argument("--max-tokens", type=int, default=Sampling.max_tokens, help="length of the answer at most")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the answer")
    group = parser.add_argument_group("Vamba checkpoints only")
    group.add_argument(
        "--eight-bit", action="store_true", default=None, help="keep the memory's keys and values in 8 bits"
    )
    group.add_argument("--int8", action="store_true", default=None, help="keep the weights of linear layers in 8 bits")
    group.add_argument("--retrieve", type=int, metavar="N", help="answer from the N frames that fit best")
    group.add_argument("--gpu-memory", type=float, metavar="GB", help="of the memory that stay on the GPU")
    parser.set_defaults(command=ask)


def _add_probe(parser: Parser) -> None:
    parser.add_argument("video", help="a video file")
    parser.add_argument("--fps", type=float, default=1.0, help="pictures to count per second of video (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(command=probe)


def _add_bench(parser: Parser) -> None:
    parser.add_argument("--model", default=MODEL, help=f"a model's name or folder (default: {MODEL})")
    parser.add_argument("--baseline", default=BASELINE, help=f'what to compare with, or "none" (default: {BASELINE})')
    parser.add_argument("--size", choices=["embedded", "published"], default="embedded", help="which pair to measure")
    parser.add_argument(
        "--minutes", type=int, nargs="+", default=[1, 15, 60], help="when to measure (default: 1 15 60)"
    )
    parser.add_argument("--frames", type=int, metavar="N", help="pictures per chunk (default: 8; published: 64)")
    group = parser.add_argument_group("published size only")
    group.add_argument("--baseline-frames", type=int, metavar="N", help="how far the baseline watches (default: 1024)")
    group.add_argument("--eight-bit", action="store_true", help="keep the memory's keys and values in 8 bits")
    group.add_argument("--int8", action="store_true", help="keep the weights of linear layers in 8 bits")
    group.add_argument("--retrieve", type=int, metavar="N", help="answer from the N frames that fit best")
    group.add_argument("--gpu-memory", type=float, metavar="GB", help="of the memory that stay on the GPU")
    group.add_argument(
        "--loading", metavar="FOLDER", help="only load the checkpoint there; where there is none, write a random one"
    )
    group.add_argument("--no-tower", dest="tower", action="store_false", help="leave the vision tower out")
    parser.add_argument("--json", action="store_true", help="print only the JSON document on stdout")
    parser.set_defaults(command=bench)


def _add_heavy(parser: Parser, argv: Sequence[str]) -> None:
    name = parser.prog.split()[-1]
    if list(argv[:1]) == [name]:  # its arguments live beside its code, which needs torch
        module = importlib.import_module(f"pipeline.checks.{name}")
        module.add_arguments(parser)
        parser.set_defaults(command=module.run)


# --- ask -------------------------------------------------------------------------------------------------------------


@dataclass
class Column:
    """One model in front of the video, and the seconds it spent watching."""

    engine: Engine
    state: StreamState
    watch_s: float = 0.0

    def watch(self, frames: tuple[Frame, ...]) -> None:
        began = time.perf_counter()
        self.state = self.engine.watch(VideoChunk(frames), self.state)
        self.watch_s += time.perf_counter() - began


def ask(args: argparse.Namespace) -> int:
    from pipeline.clock import parse_mmss
    from pipeline.engine import checked

    until = None if args.at is None else parse_mmss(args.at)
    sampling = Sampling(max_tokens=args.max_tokens)
    question = checked(Question(args.question), sampling)  # before the video is watched for nothing
    _check_file(args.video, args.fps)
    columns = [_column(args.model, **_options(args)), *([_column(args.compare)] if args.compare else [])]
    _watch_file(columns, args, until)
    answers = [(column, _answer(column, question, sampling, args, len(columns) > 1)) for column in columns]
    if args.json:
        documents = [_document(column, answer) for column, answer in answers]
        print(json.dumps(documents if args.compare else documents[0], ensure_ascii=False))
    return 0


def _check_file(video: str, fps: float) -> None:
    """Opens the file once before any model is loaded: its error comes in half a second, not after the weights."""
    import pipeline

    _check_fps(fps)
    pipeline.open_video(video, fps=fps, long_side=64).close()


def _check_fps(fps: float) -> None:
    if not 0 < fps <= 60:
        raise UserError(f"{fps:g} pictures a second cannot be watched; choose more than 0 and at most 60.")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What `pipeline.load` is told of the model: only what was given, since other models take none of it."""
    given = {name: getattr(args, name) for name in ("eight_bit", "int8", "retrieve", "gpu_memory")}
    return {name: value for name, value in given.items() if value is not None}


def _column(name: str, **options: Any) -> Column:
    import pipeline

    engine = pipeline.Engine(pipeline.load(name, **options))
    return Column(engine, engine.start())


def _watch_file(columns: list[Column], args: argparse.Namespace, until: float | None) -> None:
    """Every column sees the same pictures in the same chunks, decoded once; each column's time is its own."""
    import pipeline

    long_side = max(column.engine.long_side for column in columns)
    size = min(column.engine.chunk_frames(BACKLOG) for column in columns)
    with contextlib.closing(pipeline.open_video(args.video, fps=args.fps, long_side=long_side)) as video:
        end = min(filter(None, [until, video.info.duration]), default=None)
        frames = itertools.takewhile(lambda frame: until is None or frame.time <= until, _while_readable(video))
        for chunk in _chunks(_with_progress(frames, end, args.fps), size):
            for column in columns:
                column.watch(chunk)


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
    from tqdm import tqdm

    from pipeline.clock import mmss

    total = None if end is None else max(1, int(end * fps) + 1)
    with tqdm(total=total, unit="picture", file=sys.stderr, disable=None, leave=False, delay=0.5) as bar:
        for frame in frames:
            bar.update()
            bar.set_description(f"watched {mmss(frame.time)}", refresh=False)
            yield frame


def _answer(column: Column, question: Question, sampling: Sampling, args: argparse.Namespace, named: bool) -> Answer:
    """The whole answer; without --json its words go to stdout as they come, and where it looked to stderr."""
    shown, answer = "", None
    if named and not args.json:
        print(f"[{column.engine.name}]")
    with contextlib.closing(column.engine.ask(question, column.state, sampling)) as answers:
        for answer in answers:
            if not args.json:
                print(answer.text[len(shown) :], end="", flush=True)
                shown = answer.text
    if not args.json:
        print(flush=True)
        print(_summary(column, answer), file=sys.stderr)
    return answer


def _summary(column: Column, answer: Answer) -> str:
    from pipeline.clock import mmss

    looked = ", ".join(f"{mmss(m.time)} ({m.weight:.0%})" for m in answer.evidence) or "no moment in particular"
    timings = _timings(column, answer)
    pace = timings["realtime_factor"]
    speed = f", {pace:.1f}x real time" if pace else ""
    note = f"; {column.state.dropped_note}" if column.state.dropped_note else ""
    return (
        f"  looked at: {looked}\n  asked at {mmss(answer.asked_at)} after {column.state.frames} pictures "
        f"in {column.watch_s:.1f} s{speed}{note}"
    )


def _timings(column: Column, answer: Answer) -> dict[str, float | None]:
    """realtime_factor: seconds of video per second of watching, decoding not counted; None for a single picture."""
    return {
        "watch_s": column.watch_s,
        "realtime_factor": answer.seen_until / column.watch_s if answer.seen_until and column.watch_s else None,
        "first_token_s": answer.first_token_s,
        "tokens_per_s": answer.tokens_per_s,
    }


def _document(column: Column, answer: Answer) -> dict[str, Any]:
    from pipeline.bench.embedded import peak_memory

    state = column.state
    return {
        "model": column.engine.name,
        "answer": answer.text,
        "asked_at": answer.asked_at,
        "seen_until": answer.seen_until,
        "evidence": [asdict(moment) for moment in answer.evidence],
        "frames": state.frames,
        "dropped": state.dropped,
        "dropped_note": state.dropped_note,
        "timings": _timings(column, answer),
        "bytes": {
            "state": state.state_bytes,
            "memory": state.memory_bytes,
            "memory_on_host": getattr(state.memory, "host_nbytes", 0),
            **peak_memory(),
        },
    }


# --- the others ------------------------------------------------------------------------------------------------------


def probe(args: argparse.Namespace) -> int:
    """0 for a video; 1 for a file that is none, 2 for no file, with the kind of trouble and its sentence."""
    import pipeline
    from pipeline.sources.refusals import NO_FILE

    _check_fps(args.fps)
    found = pipeline.probe(args.video, fps=args.fps)
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    elif found["ok"]:
        print(_described(found, args.fps))
    else:
        print(f"{found['kind']}: {found['message']}", file=sys.stderr)
    return 0 if found["ok"] else 2 if found["kind"] in NO_FILE else 1


def _described(found: dict[str, Any], fps: float) -> str:
    from pipeline.clock import mmss

    damage = f"; {found['skipped']} damaged packets skipped" if found["skipped"] else ""
    return (
        f"{found['width']}x{found['height']} {found['codec']} in {found['container']}, {mmss(found['seconds'])} long: "
        f"{found['frames']} pictures at {fps:g} a second{damage}"
    )


def bench(args: argparse.Namespace) -> int:
    from pipeline.bench.embedded import run

    return run(args)


if __name__ == "__main__":
    sys.exit(main())
