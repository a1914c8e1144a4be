"""`python -m pipeline bench`: what an hour of video costs. The only file that knows both sizes; see README.md.

With `--file` it measures how long a visitor waits for one (visit.py). The readable table comes first; the last line of
stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.engine import Engine
from pipeline.options import ModelOptions
from pipeline.sources.readers import choose_readers
from pipeline.stream import Frame, UserError

MODEL, BASELINE = "embedded", "embedded-twin"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=MODEL, help=f"a model's name or folder (default: {MODEL})")
    parser.add_argument("--baseline", default=BASELINE, help=f'what to compare with, or "none" (default: {BASELINE})')
    parser.add_argument("--size", choices=["embedded", "published"], default="embedded", help="which pair to measure")
    parser.add_argument(
        "--minutes", type=int, nargs="+", default=[1, 15, 60], help="when to measure (default: 1 15 60)"
    )
    parser.add_argument(
        "--file", metavar="VIDEO", nargs="+", help="only measure from such a file to the moment it can be asked about"
    )
    parser.add_argument("--readers", type=int, metavar="N", help="processes that decode the file (default: every core)")
    parser.add_argument("--frames", type=int, metavar="N", help="pictures per chunk (default: 8; published: 64)")
    parser.add_argument("--visitors", type=int, metavar="N", help="only so many visitors at once, beside one alone")
    parser.add_argument(
        "--live", type=int, metavar="N", help="only N streams of a picture a second, --minutes old each"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of --live and each part of --visitors (default: 8)")
    parser.add_argument("--endless-hours", type=float, metavar="H", help="only a stream of H hours that never ends")
    parser.add_argument("--real-pictures", action="store_true", help="whose towers look at every picture anew")
    group = parser.add_argument_group("published size only")
    group.add_argument("--baseline-frames", type=int, metavar="N", help="how far the baseline watches (default: 1024)")
    ModelOptions.add_flags(group)
    group.add_argument(
        "--loading", metavar="FOLDER", help="only load the checkpoint there; where there is none, write a random one"
    )
    group.add_argument("--mixers", action="store_true", help="only one mixer, by the own and by the published kernels")
    group.add_argument("--headlines", action="store_true", help="only mmMamba beside HoVLE, ML-Mamba and Gemamba")
    group.add_argument("--no-tower", dest="tower", action="store_false", help="leave the vision tower out")
    parser.add_argument("--json", action="store_true", help="print only the JSON document on stdout")


def run(args: argparse.Namespace) -> int:
    """Measures one pair: a table for people, then the document."""
    from pipeline.models.load import choose_kernels  # here, so that `--help` waits for no torch

    frames = 1 if args.frames is None else args.frames
    if not all(1 <= minute <= 600 for minute in args.minutes) or not 1 <= frames <= 512:
        raise UserError("These marks cannot be measured; choose minutes of 1 to 600 and 1 to 512 pictures a chunk.")
    _check_visitors(args)
    choose_kernels(ModelOptions.from_flags(args).given().get("kernels"))
    choose_readers(args.readers)
    document, shown = _published(args) if args.size == "published" else _embedded(args)
    print(shown, file=sys.stderr if args.json else sys.stdout)
    print(json.dumps(document))
    return 0


def _check_visitors(args: argparse.Namespace) -> None:
    if args.visitors is not None and not (1 <= args.visitors <= 64 and 0.1 <= args.seconds <= 60):
        raise UserError("So many visitors cannot be measured; choose 1 to 64 of them and 0.1 to 60 seconds a part.")

    if args.live is not None and not (1 <= args.live <= 256 and 0.1 <= args.seconds <= 600):
        raise UserError("So many streams cannot be measured; choose 1 to 256 of them and 0.1 to 600 seconds.")


def _live(engine: Engine, pictures: Sequence[Frame], args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from pipeline.bench.visitors import live_table, measure_live

    document = measure_live(engine, pictures, args.live, args.seconds, min(args.minutes))
    return document, live_table(document)


def _embedded(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    import pipeline

    if args.file:
        return _visit(Engine(pipeline.load(args.model)), args)
    if args.live:
        from pipeline.bench.visitors import shown_to

        model = pipeline.load(args.model, **ModelOptions.from_flags(args).given())
        return _live(Engine(model), shown_to(model), args)
    from pipeline.bench.embedded import PER_CHUNK, measure_pair
    from pipeline.bench.tables import embedded_table

    if args.visitors:
        from pipeline.bench.visitors import embedded_visitors, visitors_table

        document = embedded_visitors(args.model, args.visitors, args.seconds, min(args.minutes))
        return document, visitors_table(document)
    if args.endless_hours is not None:
        return _endless(args)
    names = {"model": args.model}
    if args.baseline != "none":
        names["baseline"] = args.baseline
    document = measure_pair(names, sorted(set(args.minutes)), args.frames or PER_CHUNK)
    return document, embedded_table(document)


def _endless(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from pipeline.bench.endless import endless_table, measure_endless

    document = measure_endless(args.model, _hours(args), args.real_pictures)
    return document, endless_table(document)


def _hours(args: argparse.Namespace) -> float:
    if not 0.001 <= args.endless_hours <= 48:
        raise UserError("So long a stream cannot be measured; choose up to 48 hours.")
    return args.endless_hours


def _visit(engine: Engine, args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """One file's document, or {"files": theirs}."""
    from pipeline.bench.visit import measure_file, visit_table

    documents = [measure_file(engine, Path(file)) for file in args.file]
    shown = "\n\n".join(map(visit_table, documents))
    return (documents[0] if len(documents) == 1 else {"files": documents}), shown


def _published(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """UserError without a GPU, or where the options cannot be measured."""
    import torch

    from pipeline.bench.loading import measure_loading
    from pipeline.bench.published import measure_mixers_alone, measure_published, published_model
    from pipeline.bench.shapes import PUBLISHED
    from pipeline.bench.tables import loading_table, mixers_table, published_table

    if not torch.cuda.is_available():
        raise UserError("The published size needs an NVIDIA GPU, and none was found here; leave --size out.")
    if any(n is not None and (n < 2 or n % 2) for n in (args.frames, args.baseline_frames)):
        raise UserError("The tower takes pictures in pairs, so this cannot be measured; choose even numbers of frames.")
    options, device = ModelOptions.from_flags(args), torch.device("cuda", torch.cuda.current_device())
    if args.file:
        return _visit(Engine(published_model(PUBLISHED, device, torch.bfloat16, options)), args)
    if args.loading:
        document = measure_loading(Path(args.loading), PUBLISHED.config, device, options.rounding)
        return document, loading_table(document)
    if args.mixers:
        document = measure_mixers_alone(PUBLISHED, device, torch.bfloat16)
        return document, mixers_table(document)
    if args.headlines:
        from pipeline.bench.headlines import Sizes, headlines_table, measure_headlines

        document = measure_headlines(Sizes(), device, torch.bfloat16, minutes=args.minutes, per_chunk=args.frames or 64)
        return document, headlines_table(document)
    if args.endless_hours is not None:
        from pipeline.bench.endless_published import endless_published_table, measure_endless_published

        document = measure_endless_published(PUBLISHED, device, torch.bfloat16, options, _hours(args))
        return document, endless_published_table(document)
    if args.live:
        from pipeline.bench.shapes import frames_of, pictures_of

        model = published_model(PUBLISHED, device, torch.bfloat16, options)
        return _live(Engine(model), frames_of(PUBLISHED, 0, 64, pictures_of(PUBLISHED, 64)), args)
    if args.visitors:
        from pipeline.bench.visitors import published_visitors, visitors_table

        document = published_visitors(PUBLISHED, device, torch.bfloat16, args.visitors, args.seconds, max(args.minutes))
        return document, visitors_table(document)
    document = measure_published(
        PUBLISHED,
        device,
        torch.bfloat16,
        minutes=args.minutes,
        frames=args.frames or 64,
        baseline_frames=args.baseline_frames or 1024,
        options=options,
        tower=args.tower,
    )
    return document, published_table(document)
