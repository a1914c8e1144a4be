"""Recall by age: the file changes no answer, its loss would be seen, answers are judged as a visitor reads them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from pipeline.memory.disk import Disk, Written
from pipeline.memory.memory import Policy
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.embedded_net import TOKENS
from pipeline.senses.sensed import Senses
from pipeline.stream import Frame
from pipeline.towers.frame_tower import FrameFeatures
from pipeline.training import endless
from pipeline.training.endless import (
    KEPT,
    NEVER,
    Seen,
    SensesOf,
    Stream,
    age,
    chosen,
    judged,
    measure,
    row_of,
    rows_of,
    table,
)
from pipeline.training.episodes import VIEWS, Episode, Shot, World, generate
from pipeline.training.questions import Example
from pipeline.training.student import flat_table
from tests.training.test_training import Words, album, features, net

NEWEST = 0.25  # minutes that stay
SHOTS = [Shot(0, 0, 100), Shot(1, 100, 130)]


class Speller(Words):
    """Words that are written, too."""

    def __call__(self, text, add_special_tokens=True, split_special_tokens=False):
        return super().__call__(text, add_special_tokens)

    def convert_tokens_to_ids(self, token):
        return self(token)["input_ids"][0]

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(self.words[i] if i < len(self.words) else f"w{i}" for i in ids)


@pytest.fixture(scope="module")
def world():
    return World(album())


@pytest.fixture(scope="module")
def seen(world):
    flat = flat_table(features(len(world.pictures)), "cpu")
    rows = len(flat.grid)
    noise = torch.Generator().manual_seed(1)
    widths = Senses().widths
    flat = FrameFeatures(*(c.float() if c.is_floating_point() else c.long() for c in flat))
    return Seen(flat, {name: torch.rand(rows, width, generator=noise).half() for name, width in widths.items()})


@pytest.fixture(scope="module")
def kept(seen):
    """It takes every question for one about something seen: untrained, it would mostly find nothing."""
    tiny = net().eval()
    tiny.cfg = replace(tiny.cfg, calibration=tiny.cfg.calibration | {"find": (0.0, 9.0, 0.0)})
    return EmbeddedModel(tiny, seen, Speller(), None, SensesOf(Senses(), seen))


@pytest.fixture(scope="module")
def streams(world):
    episode = generate(world, np.arange(len(world.pictures)), np.random.default_rng(3), 90, 400, "test")
    frames = [Frame(Seen.pixel(p * VIEWS + v), float(t)) for t, (p, v) in enumerate(episode.frames.tolist())]
    return [Stream(episode, frames, chosen(episode, 30, NEWEST))]


def start(self, start=EmbeddedModel.start):
    """With blocks of four frames, so that some lie in the file."""
    state = start(self)
    inner = state.inner
    memory = replace(inner.memory, log=replace(inner.memory.log, block_slots=4 * TOKENS))
    return replace(state, inner=replace(inner, memory=memory, index=replace(inner.index, block_slots=4)))


def ways(kept, monkeypatch) -> dict[str, EmbeddedModel]:
    monkeypatch.setattr(EmbeddedModel, "start", start)
    monkeypatch.setattr(endless, "WORDS", 3)
    far, alone = copy.copy(kept), copy.copy(kept)
    far.disk, alone.policy = Disk(NEWEST, TOKENS), Policy("window", NEWEST)
    return {KEPT: kept, "endless": far, "alone": alone}


def test_the_file_changes_no_answer_and_the_newest_minutes_alone_do(kept, streams, monkeypatch):
    found = measure(ways(kept, monkeypatch), streams, NEWEST, 0)
    old = found["by_age"][rows_of(NEWEST)[1]]
    assert list(found["by_age"]) == [*rows_of(NEWEST)[:2], NEVER] and old[KEPT]["n"] >= 5
    for by_way in found["by_age"].values():
        assert by_way["endless"]["less"]["same_answers"] == by_way[KEPT]["n"]
        assert by_way["endless"]["less"]["found"] == by_way["endless"]["less"]["right"] == [0, 0, 0]
    assert old["alone"]["less"]["same_answers"] < old[KEPT]["n"]
    held = found["held"]
    assert held["endless"]["disk"] > held["endless"]["memory"] and not held[KEPT]["disk"]
    assert held["alone"]["memory"] < 0.3 * held[KEPT]["memory"]
    assert str(old[KEPT]["n"]) in table(found) and NEVER in table(found)


def test_what_the_file_loses_is_seen(kept, streams, monkeypatch):
    monkeypatch.setattr(Written, "rows", lambda self, *place, rows=Written.rows: torch.zeros_like(rows(self, *place)))
    found = measure(ways(kept, monkeypatch), streams, NEWEST, 0)
    old = found["by_age"][rows_of(NEWEST)[1]]
    assert old["endless"]["less"]["same_answers"] < old[KEPT]["n"]


@given(some.integers(0, (1 << 24) - 1))
def test_a_pixel_tells_its_view(row):
    assert Seen.rows([Seen.pixel(row)]).tolist() == [row]


def question(recipe: str, target=(), at: int = 129) -> Example:
    return Example("when", "?", at, tuple(target), tuple(target), "", recipe=recipe, absent=not target)


@pytest.mark.parametrize(
    ("recipe", "target", "text", "rests", "wanted"),
    [
        ("when", [1], "At 1:44.", [], ("right", 4)),
        ("when", [1], "At 1:46.", [], ("false", 6)),
        ("when", [1], "There it is.", [101.0], ("right", 1)),
        ("when", [1], "At 0:10.", [100.0], ("false", 90)),  # what is said counts, not what it rests on
        ("when", [1], "I have not seen that.", [], ("false", None)),
        ("when", [1], "I see it at 1:40, but I cannot tell more.", [100.0], ("unsure", None)),
        ("describe", [0], "A dog.", [70.0], ("right", 0)),
        ("before", [0], "A dog.", [110.0], ("false", 10)),
        ("where_nothing", [], "I have not seen that.", [], ("right", None)),
        ("where_nothing", [], "At 0:10.", [], ("false", None)),
        ("where_nothing", [], "I am not sure.", [], ("unsure", None)),
        ("yesno", [1], "Yes, at 1:40.", [100.0], ("right", 0)),
        ("yesno", [1], "No, I have not seen that.", [], ("false", None)),
        ("yesno", [1], "I see a person at 0:00.", [0.0], ("unsure", None)),
        ("yesno", [], "No.", [], ("right", None)),
        ("yesno", [], "Yes, at 0:10.", [10.0], ("false", None)),
    ],
)
def test_an_answer_is_judged_by_what_a_visitor_gets(recipe, target, text, rests, wanted):
    assert judged(question(recipe, target), text, rests, SHOTS) == wanted


def test_ages_are_of_the_newest_showing_and_every_one_has_its_row():
    assert age(question("when", [0, 1], 129), SHOTS) == 0 and age(question("when", [0], 129), SHOTS) == 29
    assert row_of(question("where_nothing"), SHOTS, 5) == NEVER
    ages = (0, 4.9, 5, 20, 90)
    at = {minutes: row_of(question("when", [0], 100 + round(60 * minutes)), SHOTS, 5) for minutes in ages}
    assert list(at.values()) == ["under 5 min", "under 5 min", "5 to 15 min", "15 to 30 min", "over 60 min"]
    assert rows_of(20) == ["under 20 min", "20 to 30 min", "30 to 60 min", "over 60 min", NEVER]


def test_questions_of_every_age_are_asked_and_none_of_the_picture_on_the_screen(world):
    rng = np.random.default_rng(0)
    episode: Episode = generate(world, np.arange(len(world.pictures)), rng, 240, 600, "test")
    asked = chosen(episode, 60, 1.0)
    rows = [row_of(q, episode.shots, 1.0) for q in asked]
    assert {rows.count(row) for row in ("under 1 min", "1 to 15 min", NEVER)} == {10}
    assert [q.asked_at for q in asked] == sorted(q.asked_at for q in asked)
    assert all(q.recipe != "yesno" or q.note_time != q.asked_at or q.absent for q in asked)
