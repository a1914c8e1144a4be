"""Learns what an alert adds up: `python -m pipeline.training.ratios --data DIR --videos DIR [--findings DIR]`.

A logistic regression a kind (pipeline/timeline/ratios.py) tells pictures that show the thing from pictures that do not:
training stills of Flickr8k, two pictures each, and clips, looped and varied. Then every clip in turn is left out and
watched by what was learnt from all others, so that false alarms are counted on clips that were not learnt from. Writes
`alerts.safetensors` into --out and prints one JSON line. --findings: where the index of the footage lies, or is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from pipeline.assets import ASSETS
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.shipped import load_embedded
from pipeline.questions.things import Things, named_things
from pipeline.stream import Frame, VideoChunk
from pipeline.timeline.indexed import seen_surely
from pipeline.timeline.ratios import Found, Ratios, numbers_of
from pipeline.towers.frame_tower import FrameFeatures
from pipeline.training.alerts import (
    HOLDS,
    RESTART,
    TOGETHER,
    WORDS,
    Made,
    alerts_of,
    looped,
    shown_for,
    told_of,
    varied,
)
from pipeline.training.data import pictures, read_all

LEARNT = ("person", "dog")
COLUMNS = ("key", "classes", "class_probs", "det_ids", "det_scores", "sensed places")
STILLS, CLIPS = 1800, 3600  # how many stills, how many pictures of clips
PENALTY = 1e-3  # on the squares of the weights
FROM_CLIPS = 0.5  # share of what shows the thing not that comes from clips, each of them counting alike


@dataclass(frozen=True)
class Findings:
    """Of the pictures of one kind of footage: what the index keeps of them, what may be seen and what surely is.

    columns: by their names in the index, (F, ...). clips: (F,) the clip that each is of, "" for stills.
    """

    columns: dict[str, np.ndarray]
    clips: np.ndarray
    may: dict[str, np.ndarray]  # by word, (F,) whether the thing may be in the picture
    shows: dict[str, np.ndarray]  # by word, (F,) whether the picture is of it

    def found(self, things: Things) -> Found:
        blank, at = torch.zeros(0), {name: torch.from_numpy(rows) for name, rows in self.columns.items()}
        features = FrameFeatures(
            blank,
            blank,
            at["classes"].long(),
            at["class_probs"].float(),
            blank,
            at["det_ids"].long(),
            at["det_scores"].float(),
            blank,
        )
        places, keys = (self.columns[name].astype(np.float32) for name in ("sensed places", "key"))
        return Found(features, seen_surely(things, 1, features), places, keys)

    def save(self, file: Path) -> None:
        words = {f"may {word}": rows for word, rows in self.may.items()}
        words |= {f"shows {word}": rows for word, rows in self.shows.items()}
        np.savez_compressed(file, clips=self.clips, **self.columns, **words)  # type: ignore[arg-type]  # its stub

    @classmethod
    def load(cls, file: Path) -> Findings:
        with np.load(file) as kept:
            may, shows = ({word: kept[f"{what} {word}"] for word in LEARNT} for what in ("may", "shows"))
            return cls({name: kept[name] for name in COLUMNS}, kept["clips"], may, shows)


def stills(data: Path, rng: np.random.Generator) -> Iterator[tuple[Made, list[str]]]:
    """Training stills, two pictures each, and the words that they are shown for."""
    some = [one for one in pictures(data) if one.source == "flickr" and one.split == "train"]
    some = [some[i] for i in rng.permutation(len(some))][:STILLS]
    for still, rgb in zip(some, read_all(data, some)):
        named = [word for word in WORDS if shown_for(still, word)]
        width = 0.85 if {"dog", "bicycle", "horse", "person"} & set(named) else 0.7
        yield Made(varied([rgb] * 2, rng, width), told_of(still)), named


def clips(videos: Path, rng: np.random.Generator) -> Iterator[tuple[Made, list[str]]]:
    made = 0
    for one in looped(videos, rng):
        yield one, []
        made += len(one.frames)
        if made >= CLIPS:
            return


def watched(model: EmbeddedModel, footage: Iterable[tuple[Made, list[str]]]) -> Findings:
    """What the model's index says of the footage."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    may, shows = ({word: [] for word in LEARNT} for _ in range(2))  # type: ignore[var-annotated]
    clip: list[str] = []
    state = model.start()
    for made, named in footage:
        for i in range(0, len(made.frames), TOGETHER):
            some = made.frames[i : i + TOGETHER]
            chunk = tuple(Frame(rgb, float(state.frames + j)) for j, rgb in enumerate(some))
            state = model.watch(VideoChunk(chunk), state)
            rows = state.inner.index.drop_oldest(len(state.inner.index) - len(some))
            for name in COLUMNS:
                columns[name].append(rows.tensor(name).cpu().numpy())
        clip += [made.clip] * len(made.frames)
        for word in LEARNT:
            may[word] += made.may_show(word)
            shows[word] += [word in named] * len(made.frames)
        state = state if state.frames < RESTART else model.start()
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    as_arrays = ({word: np.array(rows) for word, rows in one.items()} for one in (may, shows))
    return Findings(joined, np.array(clip), *as_arrays)


def regression(numbers: np.ndarray, there: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(N + 1,) weights, the constant last, of examples that count so much each; the log-likelihood ratio comes of it as
    both answers count alike in all."""
    x, y, share = (torch.tensor(rows, dtype=torch.float32) for rows in (numbers, there, counts / counts.sum()))
    weight, constant = torch.zeros(x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    steps = torch.optim.LBFGS([weight, constant], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        steps.zero_grad()
        each = F.binary_cross_entropy_with_logits(x @ weight + constant, y, reduction="none")
        whole = (share * each).sum() + PENALTY * weight.square().sum()
        whole.backward()
        return whole

    steps.step(loss)
    return torch.cat([weight, constant]).detach().numpy()


def learnt(word: str, still: Findings, clip: Findings, without: str = "") -> np.ndarray:
    """A kind's weights. without: a clip that is left out."""
    things = named_things(word)
    yes, no = still.shows[word], ~still.may[word]
    rows = ~clip.may[word] & (clip.clips != without)
    of_clips = np.array([1 / (clip.clips[rows] == name).sum() for name in clip.clips[rows]])
    counts = [np.full(yes.sum(), 1 / yes.sum()), np.full(no.sum(), (1 - FROM_CLIPS) / no.sum())]
    counts.append(FROM_CLIPS * of_clips / of_clips.sum())
    on_stills, on_clips = numbers_of(things, still.found(things)), numbers_of(things, clip.found(things))
    numbers = np.concatenate([on_stills[yes], on_stills[no], on_clips[rows]])
    there = np.concatenate([np.ones(yes.sum()), np.zeros(no.sum() + rows.sum())])
    return regression(numbers, there, np.concatenate(counts))


def left_out(word: str, still: Findings, clip: Findings) -> dict[str, list[int]]:
    """By clip: false alarms of what was learnt without it, and pictures of it that do not hold the thing."""
    told, things = {}, named_things(word)
    for name in HOLDS:
        rows = ~clip.may[word] & (clip.clips == name)
        if rows.any():
            ratios = Ratios({str(things.coco[0]): learnt(word, still, clip, name)}).of(things, clip.found(things))
            chances = 1 / (1 + np.exp(-ratios[rows].clip(-30, 30)))
            told[name] = [alerts_of(chances.tolist(), adds_up=True), int(rows.sum())]
    return told


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--findings", type=Path)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    still, clip = findings(args)
    weights = {str(named_things(word).coco[0]): learnt(word, still, clip) for word in LEARNT}
    of = hashlib.sha256((ASSETS / "embedded.safetensors").read_bytes()).hexdigest()
    save_file(weights, args.out / "alerts.safetensors", {"embedded.safetensors": of})
    told = {word: left_out(word, still, clip) for word in LEARNT}
    print(json.dumps({"false_alarms_and_pictures_of_clips_left_out": told}))
    return told


def findings(args: argparse.Namespace) -> list[Findings]:
    """Of stills and of clips: those that are kept, or made now."""
    made: list[Findings] = []
    for name in ("stills", "clips"):
        file = args.findings / f"{name}.npz" if args.findings else None
        if file and file.is_file():
            made.append(Findings.load(file))
            continue
        of_stills = name == "stills"
        rng = np.random.default_rng(12 if of_stills else 11)
        footage = stills(args.data, rng) if of_stills else clips(args.videos, rng)
        made.append(watched(load_embedded(device=args.device), footage))
        if file:
            made[-1].save(file)
    return made


if __name__ == "__main__":
    main()
