"""One reading process, seen from outside: how it is started, what it says, how it ends.

Nothing it says is believed beyond what is checked here and in file.py: a codec may have been taken over by the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.sources.refusals import Limits, VideoError, sentence

READER = "pipeline.sources.reader"
HEADER = 1 << 18  # bytes of a message's header at most: a segment of pictures, all wanted
PIPE = 1 << 20  # bytes a pipe may hold, where the system allows it: one picture in two reads instead of twelve

Message = tuple[dict[str, Any], np.ndarray]  # header, payload (uint8)


class Budget:
    """The seconds that all readers of a file may work, side by side. Any threads may spend."""

    def __init__(self, limits: Limits) -> None:
        self.left, self.readers = limits.seconds, 1
        self._lock = threading.Lock()

    def spend(self, seconds: float) -> None:
        with self._lock:
            self.left -= seconds / self.readers


class Process:
    """A reading process. One thread talks to it; any thread may kill it."""

    def __init__(self, job: dict[str, Any], limits: Limits, budget: Budget) -> None:
        self.limits, self.budget = limits, budget
        self._payload = 3 * job["long_side"] ** 2
        self._child = started(job, limits)
        assert self._child.stdout is not None and self._child.stdin is not None  # pipes
        self._pipes = self._child.stdout, self._child.stdin
        self._out, self._in = self._child.stdout.fileno(), self._child.stdin
        with contextlib.suppress(OSError, AttributeError):
            fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, PIPE)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def kill(self) -> None:
        self._child.kill()

    def discard(self) -> None:
        """Its end, waited for, and everything it held."""
        self._child.kill()
        self._child.wait()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # what was not yet written to it
                pipe.close()

    def tell(self, line: dict[str, Any]) -> None:
        """Raises VideoError where it no longer listens."""
        try:
            self._in.write(json.dumps(line).encode() + b"\n")
        except OSError:
            raise self._died() from None

    def message(self) -> Message:
        """The next header and payload. Raises VideoError for the decoder's errors, its death, silence and nonsense."""
        with self.checked():
            text, payload = struct.unpack("<II", self._bytes(8).tobytes())
            if text > HEADER or payload > self._payload:
                raise ValueError("message too long")
            head = json.loads(self._bytes(text).tobytes())
            body = self._bytes(payload)
            if head["type"] == "error":
                raise sentence(str(head["kind"]), dict(head["facts"]), self.limits)
            return head, body

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        with checked(self.limits):
            yield

    def _bytes(self, n: int) -> np.ndarray:
        """Exactly `n` bytes from the decoder."""
        data, got = np.empty(n, np.uint8), 0
        while got < n:
            self._wait()
            count = os.readv(self._out, [data[got:].data])
            if count == 0:
                raise self._died()
            got += count
        return data

    def _wait(self) -> None:
        """Until the decoder has said something, within its budget of seconds."""
        start = time.monotonic()
        ready = select.poll()
        ready.register(self._out, select.POLLIN)
        heard = ready.poll(max(0.0, min(self.limits.stall, self.budget.left * self.budget.readers)) * 1000)
        self.budget.spend(time.monotonic() - start)
        if not heard:
            raise sentence("too_slow", {}, self.limits)

    def _died(self) -> VideoError:
        try:
            code = self._child.wait(10)
        except subprocess.TimeoutExpired:
            code = None
        return Died("too_slow" if code in (-signal.SIGXCPU, -signal.SIGKILL) else "crashed", self.limits)


class Died(VideoError):
    """The process ended without a word."""

    def __init__(self, kind: str, limits: Limits) -> None:
        super().__init__(kind, sentence(kind, {}, limits).message)


@contextlib.contextmanager
def checked(limits: Limits) -> Iterator[None]:
    """Nonsense from a decoder gone wild becomes an error like its death."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError):
        raise sentence("crashed", {}, limits) from None


def started(job: dict[str, Any], limits: Limits) -> subprocess.Popen[bytes]:
    """The decode process, in an empty folder that is gone as soon as it runs. Raises VideoError."""
    try:
        try:
            folder = tempfile.mkdtemp(prefix="decode-")
        except OSError:  # no folder for temporary files: it opens nothing anyway
            return spawn(job, "/")
        try:
            return spawn(job, folder)
        finally:
            os.rmdir(folder)
    except OSError:  # no memory, no processes, no descriptors left
        raise sentence("no_reader", {}, limits) from None


def spawn(job: dict[str, Any], folder: str) -> subprocess.Popen[bytes]:
    """The decode process: no secrets, no GPU, one descriptor, or none where it reads a live source. Its limits it sets
    itself."""
    folders = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    env = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, folders)),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    if "LD_LIBRARY_PATH" in os.environ:  # some Pythons do not start without
        env["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return subprocess.Popen(
        [sys.executable, "-B", "-P", "-m", READER, json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        cwd=folder,
        env=env,
        pass_fds=(job["fd"],) if "fd" in job else (),
        start_new_session=True,
    )
