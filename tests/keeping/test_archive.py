"""A stream that is taken along comes out as it went in, or not at all: torn, flipped, forged archives are refused in a
sentence and leave nothing behind."""

import io
import itertools
import json
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline
from pipeline.__main__ import main
from pipeline.engine import Engine
from pipeline.keeping.archive import CONTENTS, _alone, archived, unpacked
from pipeline.keeping.found import find
from pipeline.keeping.taking import place_of
from pipeline.stream import UserError
from tests.keeping.streams import digest, keep, states, tiny


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, engine) -> bytes:
    folder = tmp_path_factory.mktemp("archive") / "stream"
    keep(folder, engine).close()
    (place_of(folder) / "video").write_bytes(b"a video" * 1000)
    (place_of(folder) / "secret").write_bytes(b"of somebody else")
    return b"".join(archived(folder))


@pytest.fixture
def opened(tmp_path) -> Callable[[bytes], Path]:
    """opened(bytes) -> the folder of an archive of them."""

    def open_it(data: bytes) -> Path:
        (tmp_path / "taken.tar").write_bytes(data)
        return unpacked(tmp_path / "taken.tar")

    return open_it


def refused(opened, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="nothing of it was opened"):
        opened(data)
    assert [path.name for path in tmp_path.iterdir()] == ["taken.tar"]


def test_what_is_taken_along_goes_on_elsewhere(whole, opened, engine) -> None:
    folder = opened(whole)
    *_, (_, _, state) = states(engine)
    assert digest(engine, find(folder).newest(engine.model).state) == digest(engine, state)
    assert (folder / "video").read_bytes() == b"a video" * 1000
    assert {path.name for path in folder.iterdir()} == {"0000.sqlite", "video"}
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert tar.getnames()[0] == CONTENTS
    with pytest.raises(UserError, match="already"):
        opened(whole)


def test_torn_anywhere_it_is_refused(whole, opened, tmp_path) -> None:
    """At blocks and within them; only the empty blocks at the end may miss."""
    for end in [*range(0, len(whole) - 1536, 7 * 512 + 100), len(whole) - 1537]:
        refused(opened, tmp_path, whole[:end])


def test_flipped_anywhere_that_counts_it_is_refused(whole, opened, tmp_path) -> None:
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        bodies = [(member.offset_data, member.size) for member in tar]
    for start, size in bodies:
        for at in range(start, start + size, max(1, size // 12)):
            refused(opened, tmp_path, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


def killed_at(number: int, archive: Path) -> bool:
    """Whether a process that unpacks it was ended at its so-manieth deed on the disk; False: it had come to its end."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        deeds = itertools.count()

        def before(event: str, _: object) -> None:
            if event in ("open", "os.mkdir", "os.rename", "os.remove", "fcntl.flock") and next(deeds) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(before)
        unpacked(archive)
    finally:
        os._exit(0)


def test_killed_anywhere_nothing_is_half_believed_and_nothing_stays(whole, tmp_path) -> None:
    """Before every deed on the disk, and again on what the one before left."""
    archive, number = tmp_path / "taken.tar", 0
    archive.write_bytes(whole)
    while killed_at(number, archive):
        there = {path.name for path in (tmp_path / "taken").glob("*")}
        assert there in (set(), {"0000.sqlite", "video"}), number
        if there:
            shutil.rmtree(tmp_path / "taken")
        number += 1
    assert number > 8
    assert {path.name for path in tmp_path.iterdir()} == {"taken.tar", "taken"}
    assert (tmp_path / "taken" / "video").read_bytes() == b"a video" * 1000 and find(tmp_path / "taken").points


def test_one_unpacks_it_at_a_time(whole, opened, tmp_path) -> None:
    (tmp_path / ".taken.unpacking").mkdir()
    with _alone(tmp_path / ".taken.unpacking"), pytest.raises(UserError, match="opened by somebody else"):
        opened(whole)
    assert opened(whole).is_dir()


def forged(*entries: tuple[tarfile.TarInfo, bytes], files: list[dict] | None = None, form: int = 1) -> bytes:
    """An archive by a stranger who computes its contents rightly."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        listed = [{"name": info.name, "bytes": len(data), "sha256": _sha(data)} for info, data in entries]
        told = json.dumps({"format": form, "files": files if files is not None else listed}).encode()
        _add(tar, _info(CONTENTS), told)
        for info, data in entries:
            _add(tar, info, data)
    return made.getvalue()


def _add(tar: tarfile.TarFile, info: tarfile.TarInfo, data: bytes) -> None:
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _sha(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _info(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize(
    "name",
    ["../0000.sqlite", "/tmp/0000.sqlite", "0000.sqlite/../../x", "lock", "0000.sqlite-wal", "video.x", "", ".", "a"],
)
def test_other_names_are_refused(name, opened, tmp_path) -> None:
    refused(opened, tmp_path, forged((_info(name), b"data")))
    refused(opened, tmp_path, forged((_info(name), b"data"), files=[]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE])
def test_whatever_is_no_plain_file_is_refused(kind, opened, tmp_path) -> None:
    refused(opened, tmp_path, forged((_info("video", kind, "/etc/passwd"), b"")))


def test_lies_and_repetitions_are_refused(whole, opened, tmp_path) -> None:
    video = _info("video")
    twice = forged((video, b"data"), (_info("video"), b"data"))
    for data in (
        twice,
        forged((video, b"data"), form=2),
        forged((video, b"data"), files=[{"name": "video", "bytes": 4, "sha256": "0" * 64}]),
        forged((video, b"data"), files=[{"name": "video", "bytes": 1 << 60, "sha256": _sha(b"data")}]),
        forged((video, b"data"), files=[{"name": "video", "bytes": True, "sha256": _sha(b"data")}]),
        forged(files=[{"name": "video", "bytes": 4, "sha256": _sha(b"data")}]),
        forged((video, b"data"), files=["video"]),  # type: ignore[list-item]
        b"",
        b"no archive",
        bytes(10_240),
    ):
        refused(opened, tmp_path, data)


def test_a_compressed_one_is_refused(whole, opened, tmp_path) -> None:
    """It could be made to fill the disk."""
    import gzip

    refused(opened, tmp_path, gzip.compress(whole))


def test_the_command_opens_it_and_its_stream_is_checked_as_any(whole, tmp_path, engine, monkeypatch, capsys) -> None:
    monkeypatch.setattr(pipeline, "load", lambda name, **options: engine.model)
    (tmp_path / "taken.tar").write_bytes(whole)
    assert main(["resume", str(tmp_path / "taken.tar"), ""]) == 2  # a video that the stream knows nothing of
    assert "not the one that was watched" in capsys.readouterr().err
    (place_of(tmp_path / "taken") / "video").unlink()
    assert main(["resume", str(tmp_path / "taken"), "--model", "tiny", "What is it?", "--max-tokens", "4"]) == 0
    (tmp_path / "junk.tar").write_bytes(b"junk")
    assert main(["resume", str(tmp_path / "junk.tar"), ""]) == 2
    assert "nothing of it was opened" in capsys.readouterr().err
