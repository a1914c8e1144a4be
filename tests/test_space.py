"""As on a Space: an ordinary user, code that cannot be written, no Hub, no home, and a small temporary folder.

The app starts there, watches, answers, and says in words what it cannot do. Needs root, to become somebody else.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "assets" / "example.mp4"
USER = 1000  # the one that Spaces run as
SMALL = "48m"  # of the temporary folder

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="util-linux's setpriv is not installed"),
    pytest.mark.skipif(not (ROOT / "assets" / "embedded.safetensors").is_file(), reason="assets/ are not here"),
]


@pytest.fixture(scope="module")
def code(tmp_path_factory) -> Path:
    """A copy of what is pushed to a Space, that the user can read and not write."""
    folder = tmp_path_factory.mktemp("space")
    for name in ("app", "pipeline", "assets"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "app.py", folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in list(folder.parents)[:-1]:
        if parent != Path("/tmp"):
            parent.chmod(parent.stat().st_mode | 0o055)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Iterator[Path]:
    """A temporary folder with little room."""
    folder = tmp_path_factory.mktemp("small")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL},mode=1777", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small folder can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def as_user() -> list[str]:
    """The start of a command run by the Space's user. Only reading is allowed beyond what that user may: the tests'
    own Python often lies in root's home."""
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--bounding-set=-all,+dac_read_search"]
    return [*user, "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--no-new-privs"]


def environment(small: Path, **more: str) -> dict[str, str]:
    """What a Space sets, and nothing of ours."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
    offline = {"HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False", "SPACE_ID": "somebody/vamba-live"}
    return kept | offline | {"HOME": "/nonexistent", "TMPDIR": str(small)} | more


@contextmanager
def served(code: Path, small: Path) -> Iterator[str]:
    """The address of the running app."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    log = code.parent / "space.log"
    with log.open("w") as out:
        command = [*as_user(), sys.executable, "-B", "app.py", "--port", str(port), "--host", "127.0.0.1"]
        app = subprocess.Popen(command, cwd=code, env=environment(small), stdout=out, stderr=out)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, app, log)
            yield url
        finally:
            app.send_signal(signal.SIGTERM)
            app.wait(30)


def wait_for(url: str, app: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        assert app.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(log.read_text())


def test_it_starts_watches_answers_and_says_what_does_not_fit(code, small, tmp_path):
    from gradio_client import Client, handle_file

    with served(code, small) as url:
        client = Client(url, verbose=False)
        key = client.predict(handle_file(str(CLIP)), api_name="/watch")
        for _ in range(600):
            status = client.predict(key, api_name="/status")
            if status["state"] in ("ended", "error"):
                break
            time.sleep(0.2)
        assert status["state"] == "ended" and status["frames"] > 30, status
        answer = client.predict(key, "What do you see at 0:10?", -1, api_name="/ask")
        assert answer["done"] and answer["text"]

        large = tmp_path / "large.mp4"
        large.write_bytes(CLIP.read_bytes() + bytes(64 << 20))
        with pytest.raises(Exception) as refused:
            client.predict(handle_file(str(large)), api_name="/watch")
        assert "Traceback" not in str(refused.value)
        again = client.predict(key, "What do you see at 0:20?", -1, api_name="/ask")
        assert again["text"], "a file that found no room takes nothing from those that did"
        assert client.predict(key, api_name="/close")
    left = [
        path for path in small.iterdir() if not path.name.startswith("torchinductor_")
    ]  # torch's own, for its next start
    assert not left, "nothing of a visitor's stays"


def test_a_model_of_the_hub_is_refused_in_a_sentence(code, small):
    env = environment(small, VAMBA_MODEL="TIGER-Lab/Vamba-Qwen2-VL-7B")
    run = subprocess.run(
        [*as_user(), sys.executable, "-B", "app.py"], cwd=code, env=env, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 1 and "could not be downloaded" in run.stderr
    assert "Traceback" not in run.stderr and len(run.stderr.strip().splitlines()) == 1


def test_the_front_matter_names_the_python_that_ran_this():
    front = (ROOT / "README.md").read_text().split("---")[1]
    named = re.search(r'^python_version: "(\d+\.\d+)"$', front, re.MULTILINE)
    assert named, "README.md's first lines name no Python"
    if named[1] != f"{sys.version_info.major}.{sys.version_info.minor}":
        pytest.skip(f"this is Python {sys.version.split()[0]}; the Space runs {named[1]}")
