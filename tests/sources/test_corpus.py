"""Every odd or hostile file of the corpus ends as its manifest promises, and touches nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import socket
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources import refusals
from pipeline.sources.file import Limits, VideoError, open_video, probe
from tests.places import corpus

CORPUS = corpus()
ENTRIES = json.loads((CORPUS / "manifest.json").read_text())["entries"]
VIDEOS = [e for e in ENTRIES if not e["file"].endswith(".json")]
KINDS = set(refusals.SENTENCES) - {"index", "too_heavy"}


def per_file(entries: list[dict]):
    return pytest.mark.parametrize("entry", entries, ids=[e["file"] for e in entries])


def clean(message: str) -> bool:
    """One sentence, nothing of this machine in it."""
    return message.endswith(".") and not re.search(r"/\w+/|0x|Errno|Traceback|\n|\{", message)


def heavy(entry: dict) -> bool:
    """Minutes of decoding at full size: read under a time budget instead."""
    size = entry.get("size") or [entry.get("ffprobe_5_1_9", {}).get(k, 0) for k in ("width", "height")]
    return size[0] * size[1] * expected_frames(entry) > 5e9


def expected_frames(entry: dict) -> int:
    return int(entry.get("frames") or entry.get("ffprobe_5_1_9", {}).get("nb_read_frames") or 0)


def outcomes(entry: dict) -> tuple[bool, set[str]]:
    """(may be read, kinds of error that are right)."""
    expect, policy = entry["expect"], entry.get("policy", "")
    kinds = set(expect[6:].split("|")) if expect.startswith("error:") else set()
    if expect in ("ok_or_error", "error_or_partial") or policy.startswith("reject-or-ok"):
        kinds |= KINDS
    if expect == "see ffprobe" and not expected_frames(entry):
        kinds |= KINDS
    readable = not expect.startswith("error:") or policy in ("reject-or-ok", "reject-or-1-frame")
    return readable, kinds


@per_file([e for e in VIDEOS if not e.get("template") and not heavy(e)])
def test_corpus_file_ends_as_promised(entry):
    every = expected_frames(entry) <= 3000
    found = probe(CORPUS / entry["file"], fps=None if every else 1.0, limits=Limits(seconds=60))
    readable, kinds = outcomes(entry)
    if not found["ok"]:
        assert found["kind"] in kinds and clean(found["message"]), found
        return
    assert readable, found
    if entry["expect"] == "ok":
        check_what_was_read(entry, found, every)
    elif expected_frames(entry) and every and "nasa" not in entry["file"]:  # ffprobe took NASA's smaller first track
        assert found["frames"] == expected_frames(entry)
    if "frames_min" in entry:
        assert entry["frames_min"] <= found["frames"] <= entry["frames_max"]


def check_what_was_read(entry: dict, found: dict, every: bool) -> None:
    wanted = entry["frames"] if every else min(entry["frames"], entry["duration"])
    assert abs(found["frames"] - wanted) <= entry.get("frames_tolerance", 0 if every else 1), found
    assert [found["width"], found["height"]] == entry["size"]
    if "duration" in entry:
        assert found["seconds"] == pytest.approx(entry["duration"], abs=0.1)


@per_file([e for e in VIDEOS if heavy(e)])
def test_heavy_file_keeps_what_its_budget_allowed(entry):
    frames = []
    start = time.monotonic()
    with open_video(CORPUS / entry["file"], limits=Limits(seconds=5.0)) as source, contextlib.suppress(VideoError):
        frames.extend(source)
    assert frames and time.monotonic() - start < 15
    assert source.processes == []


@per_file([e for e in VIDEOS if e["group"] == "bomb"])
def test_bombs_stay_small(entry):
    """The decode process never holds more than a few pictures: `VmHWM` is the most it ever had resident."""
    peak = 0
    with contextlib.suppress(VideoError), open_video(CORPUS / entry["file"], limits=Limits(seconds=1.5)) as source:
        for _ in source:
            for process in source.processes:
                with contextlib.suppress(OSError):  # it may have ended
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    peak = max(peak, int((re.search(r"VmHWM:\s+(\d+)", status) or [0, 0])[1]))
    assert peak < 700_000, f"{peak} kB"


@pytest.fixture
def trap(tmp_path):
    """A canary folder and a loopback port; afterwards (opened canaries, connections) must be (0, 0)."""
    folder = tmp_path / "canary"
    shutil.copytree(CORPUS / "canary", folder)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    for watched in (folder, tmp_path):
        assert libc.inotify_add_watch(watch, str(watched).encode(), 0x20 | 0x1) >= 0  # IN_OPEN | IN_ACCESS

    def touched() -> set[str]:
        names = set()
        with contextlib.suppress(BlockingIOError):
            while data := os.read(watch, 65536):
                while data:
                    length = struct.unpack_from("IIII", data)[3]
                    names.add(data[16 : 16 + length].rstrip(b"\0").decode())
                    data = data[16 + length :]
        return names

    def connected() -> bool:
        with contextlib.suppress(BlockingIOError):
            listener.accept()
            return True
        return False

    yield folder, listener.getsockname()[1], touched, connected
    os.close(watch)
    listener.close()


def armed(entry: dict, folder: Path, port: int) -> bytes:
    """The attack with its placeholders filled in; binary ones keep their length (their padding gives way)."""
    raw = (CORPUS / entry["file"]).read_bytes()
    full = raw.replace(b"@CANARY@", str(folder).encode()).replace(b"@PORT@", str(port).encode())
    if str(entry["template"]).startswith("padded"):
        grown = len(full) - len(raw)
        end = raw.index(b"@CANARY@") + len(str(folder)) + 16
        pad = re.search(rb"([\n\0])\1{%d}" % (grown - 1), full[end:])
        full = full[: end + pad.start()] + full[end + pad.end() :]
        assert len(full) == len(raw)
    return full


@per_file([e for e in VIDEOS if e["group"] == "attack"])
def test_attack_touches_nothing_else(entry, trap, tmp_path):
    folder, port, touched, connected = trap
    attack, sibling = tmp_path / Path(entry["file"]).name, tmp_path / "sibling.mp4"
    attack.write_bytes(armed(entry, folder, port) if entry.get("template") else (CORPUS / entry["file"]).read_bytes())
    shutil.copy(CORPUS / "canary" / "canary.mp4", sibling)
    touched()
    found = probe(attack, limits=Limits(seconds=20))
    readable, kinds = outcomes(entry)
    assert readable if found["ok"] else found["kind"] in kinds, found
    assert touched() <= {attack.name} and not connected()


def test_the_trap_would_have_noticed(trap):
    folder, port, touched, connected = trap
    (folder / "canary.txt").read_text()
    socket.create_connection(("127.0.0.1", port)).close()
    assert "canary.txt" in touched() and connected()


def test_times_agree_with_the_nasa_oracle():
    """The real capture times of 390 pictures, as published beside the file."""
    clip = CORPUS / "realworld" / "torchcodec__nasa_13013.mp4"
    truth = json.loads(clip.with_name(clip.name + ".stream3.all_frames_info.json").read_text())
    stamps = sorted(float(f["pts_time"] if "pts_time" in f else f["pts"]) for f in truth)
    with open_video(clip, fps=None, long_side=32) as source:
        times = [frame.time for frame in source]
    assert len(times) == len(stamps) == 390
    assert np.abs(np.array(times) - (np.array(stamps) - stamps[0])).max() < 1e-3
