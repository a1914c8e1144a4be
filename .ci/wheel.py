"""Builds the wheel, installs it beside the tests' own packages, and starts its program from an empty folder.

`python .ci/wheel.py`: exit code 0 when the page answers.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    with (
        tempfile.TemporaryDirectory() as built,
        tempfile.TemporaryDirectory() as target,
        tempfile.TemporaryDirectory() as empty,
    ):
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", built, str(ROOT)], check=True)
        (wheel,) = Path(built).glob("vamba_live-*.whl")
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.0f} MB")
        subprocess.run([*pip, "install", "--no-deps", "--target", target, str(wheel)], check=True)
        env = os.environ | {"PYTHONPATH": target, "PYTHONSAFEPATH": "1"}
        where = "import pipeline, app; print(pipeline.__file__, app.__file__, sep='\\n')"
        run = subprocess.run(
            [sys.executable, "-c", where], cwd=empty, env=env, capture_output=True, text=True, check=True
        )
        assert all(line.startswith(target) for line in run.stdout.split()), run.stdout
        return started([sys.executable, str(Path(target) / "bin" / "vamba-live")], Path(empty), env)


def started(command: list[str], folder: Path, env: dict[str, str]) -> int:
    """0 once the program's page answers, 1 where it ends or stays silent."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    app = subprocess.Popen([*command, "--port", str(port)], cwd=folder, env=env)
    try:
        for _ in range(300):
            if app.poll() is not None:
                print(f"vamba-live ended with {app.returncode}")
                return 1
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as page:
                    print(f"vamba-live serves its page from an empty folder ({page.status})")
                    return 0
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        print("vamba-live did not answer")
        return 1
    finally:
        app.terminate()
        app.wait(30)


if __name__ == "__main__":
    sys.exit(main())
