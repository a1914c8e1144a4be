"""Question files of Video-MME, LVBench, MLVU and HourVideo as their authors publish them, as multiple-choice questions.

    Video-MME  videomme/test-*.parquet of the Hub (a row a question), or the authors' JSON (a list of videos, each with
               its `questions`); arXiv 2405.21075
    LVBench    video_info.meta.jsonl: a line a video; options stand in the question as "(A) ..."; arXiv 2406.08035
    MLVU       json/1_plotQA.json ... 7_topic_reasoning.json: the answer is an option's text, and videos lie in a folder
               named as the file; the two generation tasks have no options; arXiv 2406.04264
    HourVideo  dev_v1.0_annotations.json: by video, answer_1 ... answer_5 and correct_answer_label; what offers pictures
               to choose from is left out; arXiv 2411.04998

Anything else is refused in a sentence. Names of videos are taken from such files as names alone: never as paths.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.stream import UserError

LETTERS = "ABCDEFGH"
ENDINGS = ("", ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")
PREFIX = re.compile(r"^\s*\(?([A-H])[.):]\s*")  # of an option that says its letter itself
INSIDE = re.compile(r"\n\s*\(([A-H])\)\s*")  # LVBench's options, in the question
WATCH = re.compile(r"(?:v=|youtu\.be/|shorts/)([\w-]{6,})")  # a video's key in its address


@dataclass(frozen=True)
class Choice:
    """One question. videos: names its video may have, the likeliest first. answer: the right option's place.

    categories: what the authors sort it by.
    """

    id: str
    videos: tuple[str, ...]
    text: str
    options: tuple[str, ...]
    answer: int
    categories: tuple[tuple[str, str], ...]

    @property
    def prompt(self) -> str:
        """As Video-MME's authors ask."""
        letters = LETTERS[: len(self.options)]
        named = f"{', '.join(letters[:-1])}, or {letters[-1]}"
        options = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, self.options))
        return (
            "Select the best answer to the following multiple-choice question based on the video. Respond with only "
            f"the letter ({named}) of the correct option.\n{self.text}\n{options}\nThe best answer is:"
        )


def read_benchmark(path: Path) -> tuple[str, list[Choice]]:
    """The benchmark's name and its questions, in order. UserError for what is none of the four."""
    rows = _rows(path)
    for name, knows, read in FORMATS:
        if knows(rows):
            try:
                found = list(read(rows, path))
            except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
                raise UserError(
                    f"The file looks like {name}'s, but a question in it is garbled ({type(error).__name__}: {error}), "
                    "so nothing was asked; download it again."
                ) from error
            if not found:
                raise UserError(f"No question of this {name} file has options and an answer, so nothing was asked.")
            return name, list(_told_apart(found))
    raise UserError(
        "The questions are in no format that is known here, so nothing was asked; give a file of Video-MME, LVBench, "
        "MLVU or HourVideo as its authors publish it."
    )


def _told_apart(choices: Iterable[Choice]) -> Iterator[Choice]:
    """Where authors call two questions the same, the later ones get a number: answers are kept by name."""
    met: Counter[str] = Counter()
    for choice in choices:
        met[choice.id] += 1
        yield choice if met[choice.id] == 1 else replace(choice, id=f"{choice.id}#{met[choice.id]}")


def video_of(choice: Choice, folder: Path) -> Path | None:
    """Where its video lies in a folder, or in the folder there that MLVU names as the file; None: nowhere."""
    for name in choice.videos:
        for ending in ENDINGS:
            if (found := folder / f"{name}{ending}").is_file():
                return found
    return None


# --- files -----------------------------------------------------------------------------------------------------------


def _rows(path: Path) -> Any:
    """What a file holds: rows of a table or of lines as a list, a document as it is."""
    try:
        if path.suffix == ".parquet":
            return _table(path)
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path.name} cannot be read as questions ({error}), so nothing was asked; give another."
        ) from None


def _table(path: Path) -> Any:
    import pandas

    try:
        table = pandas.read_parquet(path)
    except ImportError:
        raise UserError(
            "Reading a parquet file needs pyarrow, which is not installed, so nothing was asked; install pyarrow."
        ) from None
    return json.loads(table.to_json(orient="records"))


# --- formats ---------------------------------------------------------------------------------------------------------


def _first(rows: Any) -> dict[str, Any]:
    return rows[0] if isinstance(rows, list) and rows and isinstance(rows[0], dict) else {}


def _is_video_mme(rows: Any) -> bool:
    first = _first(rows)
    nested = first.get("questions")
    one = _first(nested) if isinstance(nested, list) else first
    return "task_type" in one and "question" in one and bool({"options", "choices"} & one.keys())


def _video_mme(rows: list[dict[str, Any]], path: Path) -> Iterator[Choice]:
    for row in rows:
        for one in row.get("questions", [row]):
            about = {**row, **one}
            options = about["options"] if "options" in about else about["choices"]
            key = WATCH.search(str(about.get("url") or ""))
            names = [about.get("videoID"), key and key[1], about.get("video_id")]
            sorted_by = {
                "duration": about.get("duration") or about.get("duration_category"),
                "domain": about.get("domain") or about.get("video_category"),
                "sub_category": about.get("sub_category") or about.get("video_sub_category"),
                "task_type": about["task_type"],
            }
            yield _choice(about["question_id"], names, about["question"], options, about["answer"], sorted_by)


def _lvbench(rows: list[dict[str, Any]], path: Path) -> Iterator[Choice]:
    for row in rows:
        for one in row["qa"]:
            text, *parts = INSIDE.split(one["question"])
            kinds = {f"question_type: {kind}": kind for kind in one["question_type"]}
            sorted_by = {"type": row.get("type"), **kinds}
            yield _choice(one["uid"], [row["key"]], text, parts[1::2], one["answer"], sorted_by)


def _mlvu(rows: list[dict[str, Any]], path: Path) -> Iterator[Choice]:
    for number, row in enumerate(rows):
        if "candidates" not in row:  # to be written about, not chosen
            continue
        name = Path(str(row["video"])).name
        names = [f"{path.stem}/{name}", name]
        place = _place(row["answer"], row["candidates"])
        sorted_by = {"question_type": row["question_type"]}
        named = row.get("question_id") or f"{path.stem}-{number}"
        yield _choice(named, names, row["question"], row["candidates"], LETTERS[place], sorted_by, folders=True)


def _place(answer: str, candidates: list[str]) -> int:
    """Of the right option, by its text or its letter."""
    if answer in candidates:
        return candidates.index(answer)
    return LETTERS[: len(candidates)].index(answer)


def _hourvideo(rows: dict[str, Any], path: Path) -> Iterator[Choice]:
    for uid, video in rows.items():
        for one in video["benchmark_dataset"]:
            options = [one[f"answer_{n}"] for n in range(1, 9) if one.get(f"answer_{n}") is not None]
            if options and all(str(option).lower().endswith((".jpg", ".jpeg", ".png")) for option in options):
                continue
            sorted_by = {"task": one.get("task")}
            yield _choice(one["qid"], [uid], one["question"], options, one["correct_answer_label"], sorted_by)


def _choice(
    number: Any,
    names: Iterable[Any],
    text: str,
    options: Iterable[str],
    answer: str,
    sorted_by: dict[str, Any],
    folders: bool = False,
) -> Choice:
    """ValueError for what is no multiple choice."""
    options = tuple(PREFIX.sub("", str(option)).strip() for option in options)
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"question {number} has {len(options)} options")
    place = LETTERS[: len(options)].index(str(answer).strip().strip("().").upper())
    known = [str(name) if folders else Path(str(name)).name for name in names if name]
    if not known:
        raise ValueError(f"question {number} names no video")
    categories = tuple((kind.partition(": ")[0], str(value)) for kind, value in sorted_by.items() if value)
    return Choice(str(number), tuple(dict.fromkeys(known)), str(text).strip(), options, place, categories)


FORMATS: tuple[tuple[str, Callable[[Any], bool], Callable[[Any, Path], Iterator[Choice]]], ...] = (
    ("Video-MME", _is_video_mme, _video_mme),
    ("LVBench", lambda rows: {"key", "qa"} <= _first(rows).keys(), _lvbench),
    ("MLVU", lambda rows: {"video", "question", "question_type", "answer"} <= _first(rows).keys(), _mlvu),
    (
        "HourVideo",
        lambda rows: isinstance(rows, dict) and "benchmark_dataset" in _first(list(rows.values())),
        _hourvideo,
    ),
)
