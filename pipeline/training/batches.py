"""Training batches: episodes and questions as tensors, made by worker processes while the GPU trains.

A question becomes one row of tokens, exactly as `models/embedded_reading.py` will put them together when answering:
head, (an earlier turn), the question, the note, the answer. Which frames the reader sees, which shots the locator
should find and which plan it should choose ride along. Shapes: E episodes, F frames, Q questions, L tokens, S shots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.models.embedded_reading import ANSWER, END, HEAD, TURN
from pipeline.questions.index import spread
from pipeline.questions.locator import PLANS
from pipeline.questions.notes import Verdict, note, spoken
from pipeline.questions.planner import LISTED, READ
from pipeline.towers.frame_tower import FrameFeatures, labels
from pipeline.training.episodes import VIEWS, Episode, Example, World, generate, retrieval_pairs
from pipeline.training.phrases import label_phrase

TOKENS_PER_ROW = 112
GROUP = 8  # answers told apart
TELLING = ("now", "at", "after", "before", "first", "last", "describe", "name")
PAIR_TOKENS = 48
PAIR_FORMS = ("When do you see {}?", "Did you see {}?", "{}", "What happens after {}?", "Describe the scene with {}.")
NOW_WORDS = re.compile(r"\b(now|at (the|this) moment|current(ly)?|on (the )?screen|latest|visible)\b", re.IGNORECASE)
# (frames, episodes, questions of each): every kind of step costs about the same.
NUMBERS = ("One", "Two", "Three", "Four", "Five", "Six")
IRREGULAR = {
    "person": "people",
    "knife": "knives",
    "mouse": "mice",
    "sheep": "sheep",
    "skis": "skis",
    "scissors": "scissors",
    "wine glass": "wine glasses",
    "toothbrush": "toothbrushes",
    "bus": "buses",
    "couch": "couches",
    "bench": "benches",
    "sandwich": "sandwiches",
    "broccoli": "broccoli",
}
HOW_MANY = (
    "How many {} are there?",
    "How many {} do you see?",
    "Count the {}.",
    "how many {} can you see now",
    "What is the number of {}?",
    "How many {} are in the picture?",
    "How many {} are shown?",
)
WHICH_THINGS = (
    "What objects do you see?",
    "What things are there?",
    "Which objects can you see?",
    "List the objects.",
    "What is in the picture?",
    "name the things you see",
    "What objects are on the screen?",
)
RECIPES = ((12, 64, 4), (40, 32, 8), (96, 24, 10), (160, 16, 16), (480, 6, 36), (1200, 2, 64), (3600, 1, 64))
RECIPE_SHARES = (0.10, 0.2, 0.28, 0.18, 0.14, 0.05, 0.05)


@dataclass(frozen=True)
class Split:
    """Which pictures a batch may use, and how: `train` wordings and word tricks, or held-out wordings as they are."""

    pictures: np.ndarray
    train: bool = True


def plan_of(example: Example) -> str:
    """What the planner should do with a question; depends on its wording, and on what it names."""
    kind = example.kind
    if example.named_time is not None or kind == "at":
        return "at"
    if kind == "yesno":
        return "yesno_now" if NOW_WORDS.search(example.text) else "yesno"
    if kind == "describe":
        return "now" if example.note_time == example.asked_at else "find"
    return {"when": "find", "name": "now", "attribute": "about"}.get(kind, kind)


class Scribe:
    """Turns examples into token rows. `features` are the small columns of the feature table, one row a view."""

    def __init__(self, world: World, features: FrameFeatures, tokenizer, split: Split):
        self.world, self.features, self.tokenizer, self.split = world, features, tokenizer, split
        self.head = self.ids(HEAD)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def verdict(self, example: Example, episode: Episode, rng: np.random.Generator) -> Verdict:
        """What a perfect planner would say."""
        plan, now = plan_of(example), float(example.asked_at)
        shots = [range(s.start, min(s.end, example.asked_at + 1)) for s in episode.shots if s.start <= example.asked_at]
        newest = tuple(shots[-1])[-READ:]
        if example.recipe == "notyet":
            return Verdict("at", newest, now, late=True)
        if plan in ("chat", "count"):
            return Verdict(plan, newest, now, count=example.note_count)
        if plan == "count_of":
            frames = tuple(shots[s].start for s in example.target_shots[:READ]) or newest
            times = tuple(float(t) for t in example.note_times[:LISTED])
            return Verdict(plan, frames, now, bool(times), example.note_count, times)
        if not example.target_shots:
            return Verdict(plan, newest, now, found=False)
        return self._moment(plan, example, shots, rng)

    def _moment(self, plan: str, example: Example, shots: list[range], rng: np.random.Generator) -> Verdict:
        k = int(rng.integers(len(example.target_shots))) if plan == "list" else 0
        frames = shots[example.target_shots[k]]
        time = example.note_times[k] if plan == "list" else example.note_time
        time = float(example.asked_at if time is None else time)
        if plan in ("now", "last", "yesno_now", "about") and frames == shots[-1]:
            return Verdict(plan, tuple(frames)[-READ:], time)
        peak = min(max(int(time), frames.start), frames.stop - 1) if plan == "at" else int(rng.choice(frames))
        return Verdict(plan, spread(frames, READ, peak), time)

    def answer(self, example: Example, verdict: Verdict, episode: Episode) -> str:
        if verdict.plan == "list":  # a summary is written moment by moment
            picture = int(episode.frames[verdict.frames[0], 0])
            assert verdict.time is not None  # of the moment it tells of
            stamp = example.answer.split("; ")[list(example.note_times).index(verdict.time)].split(" ")[0]
            return f"{stamp} {self.world.short(picture)}."
        return example.answer

    def words(self, example: Example, rows: list[int], rng: np.random.Generator) -> tuple[list[str], str | None]:
        """The note's words, with tricks in training so that words are copied, not memorised; and a swapped-in name."""
        said = spoken(self.features, rows)
        if not self.split.train:
            return said, None
        label = self.world.pictures[rows[0] // VIEWS].label
        if label and rng.random() < 0.25:  # another name: the answer must follow the note
            label = labels()["imagenet"][int(rng.integers(1000))]
            return [label, *[w for w in said if rng.random() < 0.3]], label
        if label and rng.random() < 0.85:
            said = [label, *[w for w in said if label not in w and w not in label][:4]]
        unsaid = 0.12 if label else 0.35  # what no word tells must be seen
        return ([] if rng.random() < unsaid else [w for w in said if rng.random() > 0.08]), None

    def drill(self, words: list[str], rng: np.random.Generator) -> tuple[str, list[str], str]:
        """A question, words for the note and an answer that can only come from the note: counting and listing things.

        The picture shows something else, so what is practised is to trust the towers' words.
        """
        things = [labels()["coco"][int(i)] for i in rng.permutation(80)[: 1 + int(rng.integers(3))]]
        counts = [1 + int(rng.integers(6)) if rng.random() < 0.6 else 1 for _ in things]
        many = [IRREGULAR.get(t, t if t.endswith("s") else t + "s") for t in things]
        said = [f"{n} {t}" if n > 1 else t for n, t in zip(counts, things)]
        said = [s + (f" {rng.choice(['left', 'right'])}" if rng.random() < 0.25 else "") for s in said]
        if rng.random() < 0.6:
            question = HOW_MANY[int(rng.integers(len(HOW_MANY)))].format(many[0])
            answer = f"{NUMBERS[counts[0] - 1]} {things[0] if counts[0] == 1 else many[0]}."
        else:
            question = WHICH_THINGS[int(rng.integers(len(WHICH_THINGS)))]
            parts = [
                label_phrase(t) if n == 1 else f"{NUMBERS[n - 1].lower()} {m}" for n, t, m in zip(counts, things, many)
            ]
            answer = "I see " + " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) + "."
        order = rng.permutation(len(said))
        return question, [said[i] for i in order] + words[:1] * int(rng.random() < 0.3), answer

    def row(self, example: Example, episode: Episode, rng: np.random.Generator, history: str = ""):
        """(ids, first token of the question, one past its last, first token of the answer, verdict)."""
        verdict = self.verdict(example, episode, rng)
        rows = [int(p) * VIEWS + int(v) for p, v in episode.frames[list(verdict.frames)]]
        said, swapped = self.words(example, rows, rng)
        answer, question = self.answer(example, verdict, episode), example.text
        label = self.world.pictures[rows[0] // VIEWS].label
        own = label_phrase(label) if label else ""
        if swapped and example.kind == "name":
            answer = f"It is {swapped}." if rng.random() < 0.5 else swapped[:1].upper() + swapped[1:] + "."
        elif swapped and own and own.lower() in answer.lower():
            told = answer.lower().replace(own.lower(), label_phrase(swapped))
            answer = told[:1].upper() + told[1:]
        elif swapped:
            said = [w for w in said if w != swapped]
        if self.split.train and verdict.plan == "now" and example.kind != "yesno" and rng.random() < 0.3:
            question, said, answer = self.drill(said, rng)
        start = self.head + (self.ids(history) if history else [])
        asked = self.ids(TURN.format(question=question))
        noted = self.ids(note(verdict, said, float(example.asked_at)) + ANSWER)
        written = self.ids(answer + END)
        q0, q1 = len(start), len(start) + len(asked)
        return start + asked + noted + written, q0, q1, q1 + len(noted), verdict


class Batches(IterableDataset):
    """Endless batches (dicts of CPU tensors) from a seed; each worker draws its own."""

    def __init__(
        self, scribe: Scribe, seed: int, pairs: int, scale: float = 1.0, longest: int = 3600, contrasts: int = 0
    ):
        self.scribe, self.seed, self.pairs, self.scale, self.contrasts = scribe, seed, pairs, scale, contrasts
        usable = [i for i, r in enumerate(RECIPES) if r[0] <= longest]
        self.recipes = [RECIPES[i] for i in usable]
        self.shares = np.array([RECIPE_SHARES[i] for i in usable]) / sum(RECIPE_SHARES[i] for i in usable)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        info = get_worker_info()
        torch.set_num_threads(1)
        rng = np.random.default_rng([self.seed, info.id if info else 0])
        while True:
            frames, episodes, questions = self.recipes[int(rng.choice(len(self.recipes), p=self.shares))]
            episodes = max(1, round(episodes * self.scale))
            yield self.batch(rng, frames, episodes, max(2, round(questions * min(1, self.scale * 2))))

    def batch(self, rng: np.random.Generator, frames: int, episodes: int, questions: int) -> dict[str, torch.Tensor]:
        s = self.scribe
        wording = "train" if s.split.train else "dev"
        made = [generate(s.world, s.split.pictures, rng, frames, questions, wording) for _ in range(episodes)]
        columns: dict[str, list] = {}
        for e, episode in enumerate(made):
            for example in episode.questions:
                for name, value in self._question(example, episode, rng).items():
                    columns.setdefault(name, []).append(value)
                columns.setdefault("episode", []).append(e)
        shots = max(len(e.shots) for e in made)
        out = self._contrast(columns, rng) | {
            "frames": torch.from_numpy(np.stack([e.frames for e in made])).long(),
            "shot_of_frame": torch.from_numpy(np.stack([e.shot_of_frame for e in made])).long(),
            "ids": _padded(columns.pop("ids"), TOKENS_PER_ROW),
            "target": _members(columns.pop("target"), shots),
        }
        out |= {name: torch.tensor(np.array(values)) for name, values in columns.items()}
        return out | self._pairs(rng)

    def _question(self, example: Example, episode: Episode, rng: np.random.Generator) -> dict[str, object]:
        history = ""
        if self.scribe.split.train and rng.random() < 0.1:
            earlier = episode.questions[int(rng.integers(len(episode.questions)))]
            history = f"<|im_start|>user\n{earlier.text}\n{ANSWER}{earlier.answer}{END}\n"
        ids, q0, q1, answer, verdict = self.scribe.row(example, episode, rng, history)
        if len(ids) > TOKENS_PER_ROW and history:
            ids, q0, q1, answer, verdict = self.scribe.row(example, episode, rng)
        read = list(verdict.frames)[:READ]
        searched = verdict.plan in ("find", "about", "yesno", "after", "before", "yesno_now", "count_of")
        target = example.refer_shots if not example.absent else ()
        return {
            "ids": ids,
            "q0": q0,
            "q1": q1,
            "plan": PLANS.index(verdict.plan),
            "asked_at": example.asked_at,
            "answer": min(answer, TOKENS_PER_ROW),
            "length": min(len(ids), TOKENS_PER_ROW),
            "target": target,
            "read": read + [-1] * (READ - len(read)),
            "shows": self._shows(example, episode, ids[answer:]),
            "searched": searched and not verdict.late and (bool(target) or example.absent),
        }

    def _shows(self, example: Example, episode: Episode, answer: list[int]) -> str:
        """What an answer tells of, where it is a picture's own description; else an empty text."""
        if example.recipe not in TELLING or example.absent or not example.target_shots or ":" in example.answer:
            return ""
        if answer != self.scribe.ids(example.answer + END):  # another word was swapped in, or another question put
            return ""
        picture = episode.shots[example.target_shots[0]].picture
        return self.scribe.world.pictures[picture].label or str(picture)

    def _contrast(self, columns: dict[str, list], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Groups of eight questions answered by eight different pictures: every answer behind every question.

        contrast_of: (rows,) the question whose prompt and evidence a row has. A group is GROUP x GROUP rows: the first
        question with every answer, then the second.
        """
        shows, seen = columns.pop("shows"), set()
        chosen: list[int] = []
        for i in rng.permutation(len(shows)):
            if shows[i] and shows[i] not in seen and len(chosen) < GROUP * self.contrasts:
                seen.add(shows[i])
                chosen.append(int(i))
        chosen = chosen[: len(chosen) // GROUP * GROUP]
        ids, first, last = columns["ids"], columns["answer"], columns["length"]
        pairs = [
            (i, j) for g in range(0, len(chosen), GROUP) for i in chosen[g : g + GROUP] for j in chosen[g : g + GROUP]
        ]
        rows = [(ids[i][: first[i]] + ids[j][first[j] : last[j]])[:TOKENS_PER_ROW] for i, j in pairs]
        return {
            "contrast_ids": _padded(rows, max(map(len, rows), default=0)),
            "contrast_of": torch.tensor([i for i, _ in pairs], dtype=torch.long),
            "contrast_answer": torch.tensor([first[i] for i, _ in pairs], dtype=torch.long),
            "contrast_length": torch.tensor([len(row) for row in rows], dtype=torch.long),
        }

    def _pairs(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Pictures and words that describe them, for the locator: in-batch negatives by the hundred."""
        s = self.scribe
        pairs = retrieval_pairs(s.world, s.split.pictures, rng, self.pairs)
        rows = []
        for _, text in pairs:
            form = PAIR_FORMS[int(rng.integers(len(PAIR_FORMS)))]
            asked = s.ids(TURN.format(question=form.format(text.rstrip("."))))
            rows.append(s.head + asked[: PAIR_TOKENS - len(s.head)])
        return {
            "pair_picture": torch.tensor([p for p, _ in pairs]),
            "pair_view": torch.from_numpy(rng.integers(0, VIEWS, len(pairs))),
            "pair_ids": _padded(rows, PAIR_TOKENS),
            "pair_q1": torch.tensor([len(r) for r in rows]),
        }


def _padded(rows: list[list[int]], width: int) -> torch.Tensor:
    out = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : min(len(row), width)] = torch.tensor(row[:width])
    return out


def _members(sets: list[tuple[int, ...]], size: int) -> torch.Tensor:
    out = torch.zeros(len(sets), size, dtype=torch.bool)
    for i, members in enumerate(sets):
        out[i, list(members)] = True
    return out
