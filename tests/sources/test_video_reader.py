"""The process that decodes one untrusted file: what it may not do, and how it ends."""

from __future__ import annotations

import os
import re
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.file import Limits, VideoError, open_video
from pipeline.sources.process import Budget, Process
from tests.sources.test_corpus import clean
from tests.sources.test_video import X264, render


@pytest.fixture
def minute(tmp_path):
    return render(tmp_path / "minute.mp4", [i / 5 for i in range(300)], size=(320, 240), **X264)


def test_the_process_is_confined(minute, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-of-a-secret")
    with open_video(minute, fps=None) as source:
        proc = Path(f"/proc/{source.processes[0].pid}")
        limits = {line[:26].strip(): line[26:47].strip() for line in (proc / "limits").read_text().splitlines()}
        assert limits["Max open files"] == limits["Max file size"] == limits["Max core file size"] == "0"
        assert limits["Max address space"] == str(Limits().memory) and limits["Max cpu time"] == str(Limits().cpu)
        environment = (proc / "environ").read_bytes()
        assert b"canary-of-a-secret" not in environment and b"CUDA_VISIBLE_DEVICES=\0" in environment
        assert not re.search("torch|gradio", (proc / "maps").read_text())
        assert minute.name not in os.readlink(proc / "cwd") + (proc / "cmdline").read_text()
        assert int((proc / "stat").read_text().rsplit(")", 1)[1].split()[16]) >= 10  # nice
        folder = os.readlink(proc / "cwd")
        assert folder.endswith(" (deleted)") and not Path(folder.removesuffix(" (deleted)")).exists()


def test_frames_wait_in_a_bounded_pipe(minute):
    """A slow taker stops the decoder; no more piles up than may run ahead."""
    with open_video(minute, fps=None, long_side=320, limits=Limits(ahead=1 << 20)) as source:
        next(source)
        time.sleep(0.5)
        before = cpu_seconds(source.processes[0].pid)
        time.sleep(0.5)
        assert cpu_seconds(source.processes[0].pid) == before
        assert len(list(source)) == 299


def cpu_seconds(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_a_process_killed_twice_ends_in_a_sentence_and_keeps_its_frames(minute):
    with open_video(minute, fps=None, long_side=320, limits=Limits(ahead=1 << 20)) as source:
        frames = [next(source) for _ in range(3)]
        os.kill(source.processes[0].pid, 11)
        frames += [next(source) for _ in range(60)]
        os.kill(source.processes[0].pid, 11)
        with pytest.raises(VideoError) as error:
            frames.extend(source)
        assert error.value.kind == "crashed" and clean(str(error.value)) and 63 <= len(frames) < 300
        assert [f.time for f in frames] == pytest.approx([i / 5 for i in range(len(frames))])
        with pytest.raises(StopIteration):
            next(source)


def test_close_from_another_thread_ends_the_iteration(minute):
    source = open_video(minute, fps=None, long_side=320)
    next(source)
    threading.Timer(0.2, source.close).start()
    start, seen = time.monotonic(), 0
    for _ in source:
        time.sleep(0.05)
        seen += 1
    assert seen < 290 and time.monotonic() - start < 5
    source.close()
    assert source.processes == [] and list(source) == []


@pytest.mark.parametrize(
    "message",
    [
        b"\xff" * 64,
        struct.pack("<II", 2, 0) + b"[]",
        struct.pack("<II", 4, 0) + b"null",
        struct.pack("<II", 20, 4_000_000_000) + b"{}",
    ],
)
def test_a_decoder_gone_wild_is_not_believed(minute, monkeypatch, message):
    """Whatever arrives on the pipe ends in one error; nothing is allocated on its word."""
    limits = Limits()
    with open_video(minute, fps=None) as source:
        job = source._job | {"after": -1.0}
        process, answer = Process(job, limits, Budget(limits)), iter(message + bytes(100))
        monkeypatch.setattr(process, "_bytes", lambda n: np.array([next(answer) for _ in range(min(n, 90))], np.uint8))
        with pytest.raises(VideoError) as error:
            process.message()
        process.discard()
        assert error.value.kind == "crashed"


@pytest.mark.parametrize(
    "change",
    [
        {"width": 10**9},
        {"height": -1},
        {"time": float("nan")},
        {"time": -5},
        {"width": "x"},
        {"until": 0.5},
        {"until": float("inf")},
    ],
)
def test_a_frame_that_cannot_be_is_not_shown(minute, monkeypatch, change):
    head = {"type": "frame", "time": 1.0, "width": 8, "height": 8} | change
    with open_video(minute) as source:
        monkeypatch.setattr(source, "_message", lambda: (head, np.zeros(192, np.uint8)))
        with pytest.raises(VideoError):
            next(source)
