"""Two replicas on Ray Serve, started once for all tests of this folder that want them."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def replicas(tmp_path_factory):
    pytest.importorskip("ray", reason="Ray is not installed (requirements-cluster.txt)")
    from app.cluster.replicas import Replicas
    from tests.cluster.tiny import table

    store = Path(tmp_path_factory.mktemp("cluster")) / "store"
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(store / "uploads")
    found = Replicas(partial(table, store), 2, store, patience=20.0)
    yield found
    found.shut()
    os.environ.pop("GRADIO_TEMP_DIR")
    if before is not None:
        os.environ["GRADIO_TEMP_DIR"] = before
