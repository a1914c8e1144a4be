"""The command line where the system is against it: pipes nobody reads, full disks, closed streams, signals.

Real processes, because all of this is about what a process leaves behind. The model is that of test_engine.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_cli import write_video

ROOT = Path(__file__).parents[1]
FULL_DISK = Path("/dev/full")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="descriptors and signals differ on Windows")

PROGRAM = """
import sys
import pipeline
from pipeline.__main__ import program
from tests.test_engine import ColourModel

class Announced(ColourModel):
    def watch(self, chunk, state):
        print("watching", file=sys.stderr, flush=True)
        return super().watch(chunk, state)

watch_s = float(sys.argv.pop(1))
pipeline.load = lambda name: Announced(watch_s=watch_s)
program()
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, ["grey"] * 3 + ["red"])
    return str(path)


def command(name: str, clip: str, *arguments: str, watch_s: float = 0.0) -> list[str]:
    question = ["When was it red?"] if name == "ask" else []
    return [sys.executable, "-c", PROGRAM, str(watch_s), name, clip, *question, *arguments]


def ended(arguments: list[str], **given) -> subprocess.CompletedProcess[str]:
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | given
    return subprocess.run(arguments, cwd=ROOT, timeout=120, check=False, **streams)


def sentences(stderr: str) -> list[str]:
    assert "Traceback" not in stderr and "Exception ignored" not in stderr
    return [line for line in stderr.splitlines() if line != "watching"]


# --- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["probe"], ["probe", "--json"], ["ask"], ["ask", "--json"]], ids=" ".join)
def test_a_pipe_that_nobody_reads_ends_it_in_silence(arguments, clip) -> None:
    name, *rest = arguments
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = ended(command(name, clip, *rest), stdout=writes)
    finally:
        os.close(writes)
    assert done.returncode == 141 and sentences(done.stderr) == []


@pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["probe", "--json"], ["ask"], ["ask", "--json"]], ids=" ".join)
def test_a_full_disk_is_told_in_a_sentence(arguments, clip) -> None:
    name, *rest = arguments
    with FULL_DISK.open("w") as full:
        done = ended(command(name, clip, *rest), stdout=full)
    (sentence,) = sentences(done.stderr)
    assert done.returncode == 2 and sentence.startswith("The disk is full")


@pytest.mark.skipif(not FULL_DISK.exists(), reason="this system has no /dev/full")
def test_a_mistake_keeps_its_exit_code_where_it_cannot_be_told(tmp_path) -> None:
    with FULL_DISK.open("w") as full:
        assert ended(command("ask", str(tmp_path / "absent.mp4")), stderr=full).returncode == 2


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_closed_stream_changes_nothing_for_the_others(number, clip) -> None:
    done = ended(command("probe", clip, "--json"), preexec_fn=lambda: os.close(number))
    assert done.returncode == 0 and sentences(done.stderr) == []
    assert done.stdout == "" if number == 1 else json.loads(done.stdout)["ok"]


def test_without_stderr_no_prose_gets_into_stdout(clip, tmp_path) -> None:
    done = ended(command("ask", clip, "--json"), preexec_fn=lambda: os.close(2))
    assert done.returncode == 0 and json.loads(done.stdout)["frames"] == 4
    wrong = ended(command("ask", str(tmp_path / "absent.mp4"), "--json"), preexec_fn=lambda: os.close(2))
    assert wrong.returncode == 2 and wrong.stdout == ""


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ask", "probe"])
def test_no_folder_for_temporary_files_is_needed(name, clip) -> None:
    """No file may grow, as on a file system that is only read: Python then finds no folder that it could use."""
    done = ended(command(name, clip), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    assert done.returncode == 0 and done.stdout and "temporary" not in "".join(sentences(done.stderr))


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, ["Stopped."]), (signal.SIGTERM, 143, []), (signal.SIGHUP, 129, [])],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_a_signal_while_watching_ends_it_and_leaves_nothing_behind(number, code, said, clip, tmp_path) -> None:
    process = subprocess.Popen(
        command("ask", clip, watch_s=300),
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stderr.readline() == "watching\n"
        process.send_signal(number)
        began = time.monotonic()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code and sentences(errors) == said and time.monotonic() - began < 10
    assert not list(tmp_path.iterdir())


def test_a_hang_up_that_is_to_be_ignored_is(clip) -> None:
    """As under nohup."""
    process = subprocess.Popen(
        command("ask", clip, watch_s=3),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    try:
        assert process.stderr.readline() == "watching\n"
        process.send_signal(signal.SIGHUP)
        answer, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and answer.startswith("I saw that at 0:0")
