"""What is freed goes back to the system, and what is held is told."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import engine as watching
from pipeline.engine import TIDY_S, Engine
from pipeline.heap import give_back, resident_bytes
from pipeline.stream import Frame, VideoChunk
from tests.fake_model import FakeModel


def test_it_is_told_what_is_held(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmRSS:\t    2048 kB\n")
    assert resident_bytes(tmp_path / "status") == 2 << 20
    assert resident_bytes(tmp_path / "none") is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
def test_what_lies_between_pieces_in_use_goes_back() -> None:
    """Of arrays below the size that gets pages of its own every other one stays: nothing can shrink from its end."""
    arrays = [np.ones(60_000, np.uint8) for _ in range(4_000)]
    arrays[::2] = [np.zeros(0, np.uint8)] * 2_000
    before = resident_bytes()
    give_back()
    after = resident_bytes()
    assert before is not None and after is not None and before - after > 60e6, "of 120 MB"


def test_watching_gives_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now, given = [0.0], list[float]()
    monkeypatch.setattr(watching, "give_back", lambda: given.append(now[0]))
    engine = Engine(FakeModel(), lambda: now[0])
    state = engine.start()
    for second in range(200):
        now[0] = float(second)
        state = engine.watch(VideoChunk((Frame(np.zeros((8, 8, 3), np.uint8), now[0]),)), state)
    assert given == [TIDY_S * n for n in range(1, 7)]
