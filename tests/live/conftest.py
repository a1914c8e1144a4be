"""For tests of streams: a clip of twelve seconds, and sessions that are closed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.live.session import LiveSession
from tests.fake_model import fake_engine, write_clip


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "holiday.mp4")


@pytest.fixture
def made() -> Iterator[Callable[..., LiveSession]]:
    """made(engine, rival) -> LiveSession, closed afterwards."""
    sessions = []

    def make(engine=None, rival=None) -> LiveSession:
        sessions.append(LiveSession(engine or fake_engine(), rival))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()
