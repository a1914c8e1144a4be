"""What the environment refuses is refused in a true sentence of its own, and closed streams change nothing."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.sources import refusals
from pipeline.sources.file import VideoError, open_video, probe
from pipeline.stream import UserError
from tests.sources.test_corpus import clean
from tests.sources.test_video import X264, render

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clip(tmp_path):
    return render(tmp_path / "clip.mp4", [0, 0.5, 1.0], **X264)


def refusal(path) -> VideoError:
    with pytest.raises(VideoError) as error:
        open_video(path)
    assert clean(str(error.value)) and isinstance(error.value, UserError)
    return error.value


@pytest.mark.parametrize(
    "name,kind",
    [
        ("absent.mp4", "not_found"),
        ("clip.mp4/inside.mp4", "not_found"),
        ("nul\0.mp4", "not_found"),
        ("loop.mp4", "circular_link"),
        ("folder.mp4", "folder"),
        ("fifo.mp4", "not_a_file"),
        ("n" * 300 + ".mp4", "name_too_long"),
        ("https://example.org/clip.mp4", "address"),
        ("rtsp://camera/1", "address"),
    ],
)
def test_each_kind_of_no_file_has_its_own_sentence(tmp_path, clip, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo.mp4")
    os.mkdir("folder.mp4")
    os.symlink("loop.mp4", "loop.mp4")
    error = refusal(name)
    assert error.kind == kind and "absent" not in str(error) and "example" not in str(error)
    assert str(error) == refusals.SENTENCES[kind]


def test_a_device_is_no_file():
    assert refusal("/dev/null").kind == "not_a_file"


def test_a_pipe_on_standard_input_is_no_file(clip):
    ask = "import sys; from pipeline.sources.file import probe; print(probe('/dev/stdin')['kind'])"
    with clip.open("rb") as video:
        cat = subprocess.Popen(["cat"], stdin=video, stdout=subprocess.PIPE)
        found = subprocess.run([sys.executable, "-c", ask], stdin=cat.stdout, capture_output=True, text=True, cwd=ROOT)
        cat.stdout.close()
        cat.wait()
    assert found.stdout.strip() == "not_a_file", found.stderr


@pytest.mark.parametrize(
    "number,kind",
    [
        (errno.EACCES, "no_permission"),
        (errno.EPERM, "no_permission"),
        (errno.EIO, "unreadable"),
        (errno.EMFILE, "unreadable"),
        (errno.ESTALE, "unreadable"),
    ],
)
def test_what_the_system_says_is_what_is_said(clip, monkeypatch, number, kind):
    """Tests may run as a user who may read everything, so the system's word is put in its mouth."""

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(refusals.os, "open", refuse)
    assert refusal(clip).kind == kind


def test_no_folder_for_temporary_files_is_needed(clip, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere/at/all")
    assert probe(clip)["ok"]


def test_nothing_is_left_behind(clip, tmp_path, monkeypatch):
    """Not even while the reader runs: whoever is killed in the middle leaves nothing either."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with open_video(clip) as video:
        next(video)
        assert not list(tmp_path.glob("decode-*"))


def test_a_machine_without_room_for_a_reader_says_so(clip, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert refusal(clip).kind == "no_reader"


CLOSED = [closed for n in (1, 2, 3) for closed in itertools.combinations((0, 1, 2), n)]


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_closed_streams_change_nothing(clip, tmp_path, closed):
    """A service may be started with any of its three streams closed; a file then gets a low number of its own."""
    out = tmp_path / "found.json"
    ask = f"import json\nfrom pipeline.sources.file import probe\nfound = probe({str(clip)!r})\n"
    ask += f"open({str(out)!r}, 'w').write(json.dumps(found))"
    close = " ".join(f"{n}{'<' if n == 0 else '>'}&-" for n in closed)
    subprocess.run(["/bin/sh", "-c", f'exec "$0" -c "$1" {close}', sys.executable, ask], cwd=ROOT, check=True)
    found = json.loads(out.read_text())
    assert found["ok"] and found["frames"] == 2, found
