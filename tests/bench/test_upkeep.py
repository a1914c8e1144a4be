"""What the embedded model costs beside answers: the bounds of what ships, and that the senses are really taken out."""

import itertools
import time

import pytest
import torch

from pipeline.bench import upkeep
from pipeline.bench.embedded import pictures
from pipeline.bench.upkeep import NoSenses, files, with_and_without
from pipeline.models.embedded import EmbeddedModel
from pipeline.models.load import load


@pytest.fixture(scope="module")
def model() -> EmbeddedModel:
    found = load("embedded", device="cpu")
    assert isinstance(found, EmbeddedModel)
    return found


def test_what_ships_stays_small():
    found = files()
    assert found["assets_bytes"] <= 260e6 and found["largest_asset_bytes"] < 95e6


def test_a_picture_is_measured_with_the_senses_and_without(model, monkeypatch):
    monkeypatch.setattr(upkeep, "ROUNDS", 1)
    torch.set_num_threads(1)
    own, frames = model.senses, list(itertools.islice(pictures((416, 234)), 2))
    found = with_and_without(model, frames)
    assert model.senses is own
    assert found["senses_over_none"] == found["picture_cpu_ms"] / found["picture_cpu_ms_without_senses"] > 0


def test_keeping_is_measured_plain_and_encrypted(model, monkeypatch):
    """What it costs is processor time of the keeper's: without one nothing, and one that works longer costs more."""
    frames = list(itertools.islice(pictures((416, 234)), 8))
    assert set(upkeep.keeping(model, frames)) == {"kept_over_watched", "encrypted_over_watched"}
    put = upkeep.KeptStream.add
    monkeypatch.setattr(upkeep.KeptStream, "add", lambda *given: (busy(), put(*given))[1])
    assert 0.02 < upkeep.kept_over_watched(model, frames) < 5


def busy():
    end = time.thread_time() + 0.1
    while time.thread_time() < end:
        pass


def test_without_senses_nothing_is_kept_of_a_picture():
    assert NoSenses().widths == NoSenses().see([], None) == {}
