"""`python -m pipeline evaluate --benchmark FILE --videos DIR --model NAME`: a model's accuracy on published questions.

Each video is watched once, in chunks, as the product watches, and every question about it is put to that one stream: by
likelihood (which option's letter is the likeliest first token) and by letter (what the model writes). Every answer is
written to --results as soon as there is one, so a command that was killed goes on where it was. A table by the authors'
categories comes last, and on stdout's last line one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pipeline
from pipeline.checks.benchmarks import LETTERS, Choice, read_benchmark, video_of
from pipeline.commands.ask import MODEL, Viewer, watch_file
from pipeline.commands.probe import check_fps
from pipeline.engine import Engine
from pipeline.options import ModelOptions
from pipeline.sources.readers import choose_readers
from pipeline.stream import Question, Sampling, UserError

ANSWER_TOKENS = 16
SAID = re.compile(r"(?i:answer(?: is)?\s*:?\s*)\(?([A-H])(?![A-Za-z])")
ALONE = re.compile(r"^\W*([A-H])(?:[.:)]|\s*$|\n)")
WAYS = ("likelihood", "letter")

Row = dict[str, Any]  # one question's line in the results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--benchmark", required=True, metavar="FILE", help="questions of Video-MME, LVBench, MLVU, HourVideo"
    )
    parser.add_argument("--videos", required=True, metavar="DIR", help="where their videos lie")
    parser.add_argument("--model", default=MODEL, help=f"a model's name or folder (default: {MODEL})")
    parser.add_argument("--fps", type=float, default=1.0, help="pictures to watch per second of video (default: 1)")
    parser.add_argument(
        "--results", metavar="FILE", help="answers so far, a line each (default: named after both, here)"
    )
    parser.add_argument("--readers", type=int, metavar="N", help="processes that decode the file (default: every core)")
    ModelOptions.add_flags(parser.add_argument_group("Vamba checkpoints only (--kernels, --mode, --senses: all)"))


def run(args: argparse.Namespace) -> int:
    check_fps(args.fps)
    choose_readers(args.readers)
    path, options = Path(args.benchmark), ModelOptions.from_flags(args)
    if not path.is_file():
        raise UserError(f"There is no file {args.benchmark!r}, so nothing was asked; give the benchmark's questions.")
    name, choices = read_benchmark(path)
    by_video, missing = _by_video(choices, Path(args.videos))
    about = {
        "benchmark": name,
        "questions": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        "model": args.model,
        "options": options.given(),
        "fps": args.fps,
    }
    results = Results(Path(args.results or f"{path.stem}-{Path(args.model).name}.jsonl"), about)
    if any(not results.has(asked) for asked in by_video.values()):
        engine = Engine(pipeline.load(args.model, **options.given()))
        _ask_all(engine, by_video, args.fps, results)
    unwatched = sum(not results.has(asked) for asked in by_video.values())
    videos = {"missing_videos": missing, "unwatched_videos": unwatched}
    document = {**about, **videos, **summary(results.rows.values(), len(choices))}
    print(table(document))
    print(json.dumps(document, ensure_ascii=False))
    return 0


def _by_video(choices: Sequence[Choice], folder: Path) -> tuple[dict[Path, list[Choice]], int]:
    """Questions by their video's file, in order, and how many videos are not there."""
    found: dict[Path, list[Choice]] = defaultdict(list)
    missing = set()
    for choice in choices:
        video = video_of(choice, folder)
        if video is None:
            missing.add(choice.videos[:1])
        else:
            found[video].append(choice)
    if not found:
        raise UserError(
            f"None of the {len(missing):,} videos lies in {folder}, so nothing was asked; name the folder that has "
            f"them (the first would be called {choices[0].videos[0]})."
        )
    return found, len(missing)


class Results:
    """Answers so far, a line each behind a line that says what was asked; written as they come."""

    def __init__(self, path: Path, about: Row):
        self.path, self.rows = path, dict[str, Row]()
        written = path.read_bytes() if path.exists() else b""
        whole = written[: written.rfind(b"\n") + 1]  # a line that a kill cut short is asked again
        header = json.dumps(about).encode() + b"\n"
        if header.startswith(written):  # nothing yet, or a kill cut the header short
            path.write_bytes(header)
            return
        self._read(whole, about)
        if whole != written:
            os.truncate(path, len(whole))

    def _read(self, whole: bytes, about: Row) -> None:
        try:
            first, *rows = map(json.loads, whole.decode("utf-8").splitlines())
            self.rows = {row["id"]: row for row in rows}
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.path} is no file of results, so nothing was asked and nothing in it changed; "
                "name another file with --results."
            ) from None
        if first != about:
            raise UserError(
                f"{self.path} holds answers of another model, file or option, so nothing was asked; "
                "name another file with --results."
            )

    def has(self, choices: Sequence[Choice]) -> bool:
        return all(choice.id in self.rows for choice in choices)

    def add(self, row: Row) -> None:
        self.rows[row["id"]] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _ask_all(engine: Engine, by_video: dict[Path, list[Choice]], fps: float, results: Results) -> None:
    """A video that cannot be watched is told on stderr and left out: what has no result is asked another time."""
    for number, (video, choices) in enumerate(by_video.items(), 1):
        if results.has(choices):
            continue
        viewer = Viewer(engine, engine.start())
        try:
            watch_file([viewer], str(video), fps, None)
        except UserError as error:
            print(f"{video.name}: {error}", file=sys.stderr)
            continue
        for choice in choices:
            if choice.id not in results.rows:
                results.add(answered(viewer, choice))
        print(f"{number} of {len(by_video)} videos, {len(results.rows)} answers", file=sys.stderr)


def answered(viewer: Viewer, choice: Choice) -> Row:
    """One question put to a stream both ways."""
    engine, state, question = viewer.engine, viewer.state, Question(choice.prompt)
    tokens = engine.between(lambda: list(engine.model.ask(question, state, Sampling(max_tokens=ANSWER_TOKENS))))
    said = "".join(token.text for token in tokens)
    try:
        likeliest: int | None = engine.between(lambda: _likeliest(engine, question, viewer, len(choice.options)))
    except UserError:  # its answers are not drawn word by word
        likeliest = None
    written = letter_of(said, choice.options)
    return {
        "id": choice.id,
        "likelihood": None if likeliest is None else LETTERS[likeliest],
        "letter": written,
        "answer": LETTERS[choice.answer],
        "said": said,
        "categories": [list(pair) for pair in choice.categories],
        "mode": engine.model.basis(question, state).mode,
        "pictures": state.frames,
    }


def _likeliest(engine: Engine, question: Question, viewer: Viewer, count: int) -> int:
    """The place of the letter that is the likeliest first token. An answer stands behind a line's end: as a text of its
    own, a letter would get a space in front where SentencePiece made the tokenizer."""
    model = engine.model
    logits = model.first_logits(question, viewer.state)
    first = [model.tokenizer.encode(f"\n{letter}", add_special_tokens=False)[-1] for letter in LETTERS[:count]]
    if len(set(first)) < count:
        raise UserError(f"{model.name} has no token for each letter, so their likelihoods were not compared.")
    return max(range(count), key=lambda place: float(logits[first[place]]))


def letter_of(said: str, options: Sequence[str]) -> str | None:
    """The letter that an answer means: said alone, after "the answer is", or by an option's whole text; else None."""
    text = said.strip()
    allowed = LETTERS[: len(options)]
    for pattern in (ALONE, SAID):
        if (match := pattern.search(text)) and match[1] in allowed:
            return match[1]
    bare = text.rstrip(".").casefold()
    same = [letter for letter, option in zip(allowed, options) if option.rstrip(".").casefold() == bare]
    return same[0] if len(same) == 1 else None


# --- what came -------------------------------------------------------------------------------------------------------


def summary(rows: Iterator[Row] | Any, asked: int) -> Row:
    """Shares of right answers, over all and by category. What was not understood counts as wrong."""
    rows = list(rows)
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for kind, value in map(tuple, row["categories"]):
            groups[kind, value].append(row)
    categories: dict[str, dict[str, Row]] = defaultdict(dict)
    for (kind, value), members in sorted(groups.items()):
        categories[kind][value] = _shares(members)
    unread = sum(row["letter"] is None for row in rows)
    return {"asked": asked, "overall": _shares(rows), "not_understood": unread, "categories": dict(categories)}


def _shares(rows: Sequence[Row]) -> Row:
    found: Row = {"answers": len(rows)}
    for way in WAYS:
        given = [row for row in rows if way == "letter" or row[way] is not None]
        found[way] = sum(row[way] == row["answer"] for row in given) / len(given) if given else None
    return found


def table(document: Row) -> str:
    lines = [f"{'':<50} {'answers':>8} {'by likelihood':>14} {'by letter':>10}"]
    lines.append(_line(f"{document['benchmark']}, all of {document['asked']:,}", document["overall"]))
    for kind, values in document["categories"].items():
        lines += [_line(f"{kind}: {value}", shares) for value, shares in values.items()]
    for key, what in (("missing_videos", "are not there"), ("unwatched_videos", "could not be watched to their end")):
        if document[key]:
            lines.append(f"{document[key]:,} videos {what}, so their questions were not asked")
    return "\n".join(lines)


def _line(name: str, shares: Row) -> str:
    likely, letter = ("–" if shares[way] is None else f"{shares[way]:.1%}" for way in WAYS)
    return f"{name:<50} {shares['answers']:>8,} {likely:>14} {letter:>10}"
