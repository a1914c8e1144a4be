"""Synthetic long videos as tables of indices (no pixels), with questions about them.

A video is a row of shots; a shot shows one picture through its six views, a slow pan and zoom. Which views a picture
has is the trainer's business: here a frame is (picture index, view index).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.training.asker import Asker
from pipeline.training.questions import KINDS, Dice, Example, Shot, clock
from pipeline.training.world import World, caption_vocabulary, caption_words

__all__ = [
    "KINDS",
    "RECIPES",
    "Episode",
    "Example",
    "Shot",
    "World",
    "caption_vocabulary",
    "caption_words",
    "clock",
    "generate",
    "retrieval_pairs",
]

VIEWS = 6
# How often each sort of question is asked. "where_nothing" and "notyet" teach refusing; their kind is their wording's.
RECIPES = {
    "now": 0.11,
    "at": 0.13,
    "when": 0.12,
    "where_nothing": 0.09,
    "after": 0.11,
    "before": 0.11,
    "first": 0.02,
    "last": 0.02,
    "yesno": 0.13,
    "count": 0.02,
    "count_of": 0.03,
    "list": 0.03,
    "describe": 0.05,
    "name": 0.08,
    "attribute": 0.07,
    "notyet": 0.02,
    "chat": 0.03,
}
THEMES = [
    "person",
    "dog",
    "man",
    "woman",
    "child",
    "boy",
    "girl",
    "ball",
    "water",
    "bicycle",
    "snow",
    "mountain",
    "beach",
]


@dataclass(frozen=True, eq=False)
class Episode:
    """frames: int32 (F, 2) of (picture, view 0..5), one a second. shot_of_frame: int32 (F,). questions: Examples."""

    frames: np.ndarray
    shot_of_frame: np.ndarray
    shots: list[Shot]
    questions: list[Example]


def _lengths(frames: int, dice: Dice) -> list[int]:
    """Seconds of each shot, summing to `frames`: mostly 2-12 s; one video in eight is slow, with shots up to 40 s."""
    low, high = dice.pick(((2, 12), (2, 12), (2, 5), (3, 8), (6, 12), (2, 12), (4, 12), (10, 40)))
    lengths: list[int] = []
    while (left := frames - sum(lengths)) > 0:
        length = dice.between(low, high)
        lengths.append(length if left - length >= 2 else left)
    return lengths


def _pool(world: World, indices: np.ndarray, dice: Dice) -> np.ndarray:
    """Pictures one video draws from. Half of the videos leave out one or two common things, so that even a person or
    a dog can be truly absent; some are all about one thing, so that its shots must be told apart."""
    vague = world.vague[indices]
    pool = indices[~vague] if dice.chance(0.5) else indices
    u = dice.uniform()
    if u < 0.5:
        for _ in range(1 + dice.below(2)):
            pool = pool[~world.maybe[pool, world.number[dice.pick(THEMES)]] | world.vague[pool]]
    elif u < 0.62:
        pool = pool[world.mentions[pool, world.number[dice.pick(THEMES)]] >= 2]
    return pool if len(pool) >= 8 else indices


def _cast(pool: np.ndarray, count: int, dice: Dice) -> list[int]:
    """A picture for every shot; one in thirty comes back later, never next to itself."""
    order = dice.rng.permutation(pool)
    cast = [int(order[i % len(order)]) for i in range(count)]
    for i in range(3, count):
        if dice.chance(1 / 30) and (again := cast[dice.below(i - 2)]) not in (cast[i - 1], *cast[i + 1 : i + 2]):
            cast[i] = again
    return cast


def _views(length: int, dice: Dice) -> np.ndarray:
    """View of each second: along the whole path or a part of it, either way, or (one in five) standing still."""
    first, last = (dice.below(VIEWS), dice.below(VIEWS)) if dice.chance(0.4) else (0, VIEWS - 1)
    if dice.chance(0.2):
        last = first
    path = np.linspace(first, last, length).round().astype(np.int32)
    return path[::-1] if dice.chance(0.5) else path


def _film(world: World, pool: np.ndarray, frames: int, dice: Dice) -> tuple[np.ndarray, np.ndarray, list[Shot]]:
    lengths = _lengths(frames, dice)
    ends = np.cumsum(lengths).tolist()
    shots = [Shot(p, end - n, end) for p, n, end in zip(_cast(pool, len(lengths), dice), lengths, ends)]
    table = np.empty((frames, 2), np.int32)
    for shot in shots:
        table[shot.start : shot.end, 0] = shot.picture
        table[shot.start : shot.end, 1] = _views(shot.end - shot.start, dice)
    return table, np.repeat(np.arange(len(shots), dtype=np.int32), lengths), shots


def generate(
    world: World, indices: np.ndarray, rng: np.random.Generator, frames: int, n_questions: int, split: str = "train"
) -> Episode:
    """A video of `frames` seconds (at least 6) made of the pictures `indices`, and n_questions questions.

    split: whose wordings (phrases.py, `wordings`); "dev" and "test" add eight-way choices. The same Generator state
    gives the same episode. Raises ValueError for fewer than 6 frames or no pictures.
    """
    indices = np.asarray(indices)
    if frames < 6 or not len(indices):
        raise ValueError(f"an episode needs at least 6 frames and one picture, got {frames} and {len(indices)}")
    dice = Dice(rng)
    pool = _pool(world, indices, dice)
    table, shot_of_frame, shots = _film(world, pool, frames, dice)
    asker = Asker(world, shots, indices, dice, split)
    names, weights = list(RECIPES), np.array(list(RECIPES.values()))
    questions: list[Example] = []
    while len(questions) < n_questions:  # "now", "at" and "first" can always be asked, so this ends
        recipe = names[dice.weighted(weights)]
        tries = (asker.ask(recipe) for _ in range(4))
        questions += [q for q in [next((q for q in tries if q), None)] if q]
    return Episode(table, shot_of_frame, shots, questions)


def retrieval_pairs(world: World, indices: np.ndarray, rng: np.random.Generator, n: int) -> list[tuple[int, str]]:
    """n (picture index, words that describe it) pairs: captions, phrases, things and class words."""
    dice = Dice(rng)
    chosen = np.asarray(indices)[rng.integers(0, len(indices), n)].tolist()
    return [(p, _query(world, p, dice)) for p in chosen]


def _query(world: World, p: int, dice: Dice) -> str:
    picture = world.pictures[p]
    if picture.label:
        return dice.pick(("{0}", "{0}", "a photo of {0}", "a picture of {0}", "{1}")).format(
            world.label(p), picture.label
        )
    u = dice.uniform()
    if u < 0.1 and len(sure := np.flatnonzero((world.mentions[p] >= 3) & world.asked)):
        return world.concepts[int(dice.pick(sure))].one
    if u < 0.5 and world.phrases[p]:
        return dice.pick(world.phrases[p])[1].np
    caption = dice.pick(picture.captions)
    return caption if dice.chance(0.5) else caption[0].lower() + caption[1:-1]
