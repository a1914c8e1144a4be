"""From flags and variables to a running page: settings, models ready before the first visitor, and a clean end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pipeline import UserError
from tests.test_engine import ColourModel

gr = pytest.importorskip("gradio")

from app import serve  # noqa: E402
from app.serve import settings_from  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in [name for name in os.environ if name.startswith("VAMBA_") or name == "SPACE_ID"]:
        monkeypatch.delenv(name)


def test_the_default_model_is_chosen_by_where_it_runs(monkeypatch) -> None:
    here = settings_from([])
    assert (here.model, here.compare_model, here.host) == ("embedded", "embedded-twin", "127.0.0.1")
    assert not here.share
    monkeypatch.setenv("SPACE_ID", "somebody/vamba-live")
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/nvidia0")
    space = settings_from([])
    assert (space.model, space.compare_model, space.host) == ("TIGER-Lab/Vamba-Qwen2-VL-7B", None, "0.0.0.0")
    monkeypatch.setenv("VAMBA_MODEL", "embedded")
    assert settings_from([]).compare_model == "embedded-twin"
    assert settings_from(["--compare-model", "none"]).compare_model is None


def test_a_space_is_told_how_to_save(monkeypatch) -> None:
    assert settings_from([]).options.given() == {}
    for name, value in {"EIGHT_BIT": "1", "INT8": "0", "RETRIEVE": "64", "GPU_MEMORY": "20.5"}.items():
        monkeypatch.setenv(f"VAMBA_{name}", value)
    assert settings_from([]).options.given() == {"eight_bit": True, "retrieve": 64, "gpu_memory": 20.5}
    told = settings_from(["--int8", "--retrieve", "8"]).options
    assert (told.int8, told.retrieve, told.gpu_memory) == (True, 8, 20.5)
    monkeypatch.setenv("VAMBA_RETRIEVE", "0")
    with pytest.raises(UserError, match="VAMBA_RETRIEVE must be"):
        settings_from([])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--replicas", "2"], "--store DIR"),
        (["--replicas", "0", "--store", "there"], "choose 1 to 100"),
        (["--replicas", "2", "--store", "there", "--source", "rtsp://camera"], "leave out --source"),
    ],
)
def test_what_does_not_go_with_replicas_is_refused(flags, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        settings_from(flags)


def test_replicas_without_ray_are_refused(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("app.cluster.engines", "app.cluster.replicas"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=r"requirements-cluster\.txt"):
        serve.serve(settings_from(["--replicas", "2", "--store", str(tmp_path)]))


class Counted(ColourModel):
    """Notes that it was started, as a GPU model compiles then."""

    def __init__(self, name: str, started: list[str]) -> None:
        super().__init__()
        self.name, self.started = name, started

    def start(self):
        self.started.append(self.name)
        return super().start()


def test_models_are_started_before_the_first_visitor(monkeypatch) -> None:
    started: list[str] = []
    at_launch: list[list[str]] = []
    told: dict[str, dict] = {}

    def load(name, **options):
        told[name] = options
        return Counted(name, started)

    monkeypatch.setattr(serve, "load", load)
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **_: at_launch.append(list(started)))
    serve.serve(settings_from(["--model", "one", "--compare-model", "two", "--int8"]))
    assert [sorted(names) for names in at_launch] == [["one", "two"]]
    assert told == {"one": {"int8": True}, "two": {}}, "what saves memory is for the model, not for its rival"


@pytest.mark.parametrize("flags", [["--compare-model"], ["--compare-model", "partner"]])
def test_a_model_is_compared_with_its_natural_partner(monkeypatch, flags) -> None:
    started: list[str] = []
    monkeypatch.setattr(serve, "load", lambda name, **options: Counted(name + "".join(options.values()), started))
    monkeypatch.setattr(serve, "partner_of", lambda name: f"partner of {name}, ")
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **_: None)
    serve.serve(settings_from(["--model", "one, ", *flags, "--mode", "streamed"]))
    assert sorted(set(started)) == ["one, streamed", "partner of one, , streamed"], "the mode goes for both"


def test_a_taken_port_has_its_sentence(monkeypatch) -> None:
    def launch(self, **_):
        raise OSError("Cannot find empty port in range: 7860-7860.")

    monkeypatch.setattr(serve, "load", lambda name: Counted(name, []))
    monkeypatch.setattr(gr.Blocks, "launch", launch)
    with pytest.raises(UserError, match="Port 7860 is taken"):
        serve.serve(settings_from([]))


@pytest.mark.parametrize(
    ("before", "arguments", "variables"),
    [
        ("", ["--model", "nothing/at/all"], {}),
        ("", [], {"VAMBA_GPU_MEMORY": "a lot"}),
        ("import tempfile; tempfile.tempdir = '/dev/null'; ", [], {}),
    ],
    ids=["model", "variable", "temporary folder"],
)
def test_a_mistake_ends_in_a_sentence(before, arguments, variables) -> None:
    command = [sys.executable, "-c", f"{before}from app.serve import main; main()", *arguments]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1 and ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.endswith(".\n") and "nothing was" in ended.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals differ on Windows")
def test_the_front_door_serves_the_page_and_leaves_nothing_behind(tmp_path) -> None:
    """`python app.py`, although a package of that name lies beside it; SIGTERM ends it and its uploads' folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--compare-model", "none", "--port", str(port)]
    variables = os.environ | {"TMPDIR": str(tmp_path)}
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=variables, **silent)
    try:
        page = first_page(f"http://127.0.0.1:{port}/", process)
        assert "Vamba Live" in page
        assert [path.name[:18] for path in tmp_path.iterdir() if "vamba" in path.name] == ["vamba-live-uploads"]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0 and "Traceback" not in errors
    assert not [path for path in tmp_path.iterdir() if "vamba" in path.name]


def first_page(url: str, process: subprocess.Popen[str], wait_s: float = 120) -> str:
    ends = time.monotonic() + wait_s
    while time.monotonic() < ends and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.3)
    pytest.fail(f"no page came; exit code {process.poll()}")
