"""`ask --keep` and `resume`: a stream goes on in another command as if it had been one; and what cannot, says why."""

import json
from pathlib import Path

import pytest

import pipeline
from pipeline.__main__ import main
from pipeline.keeping.taking import place_of
from tests.keeping.streams import tiny

VIDEO = Path(__file__).parent / "data/corpus/valid/h264_faststart.mp4"
QUESTION = "What is it?"


@pytest.fixture(autouse=True)
def tiny_for_embedded(monkeypatch):
    loaded: list[tuple[str, dict]] = []

    def load(name: str, **options):
        loaded.append((name, options))
        return tiny().model

    monkeypatch.setattr(pipeline, "load", load)
    return loaded


def ask(*arguments: object) -> int:
    return main(["ask", str(VIDEO), QUESTION, "--fps", "5", "--max-tokens", "6", *map(str, arguments)])


def resume(folder: object, *arguments: object) -> int:
    return main(["resume", str(folder), QUESTION, "--max-tokens", "6", *map(str, arguments)])


def document(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_a_stream_goes_on_to_the_same_answer(tmp_path, capsys, tiny_for_embedded) -> None:
    assert ask("--json") == 0
    whole = document(capsys)
    assert "kept" not in whole
    assert ask("--keep", tmp_path / "stream", "--at", "0:01", "--json") == 0
    half = document(capsys)
    assert (
        half["frames"] < whole["frames"] and half["kept"]["bytes"] > VIDEO.stat().st_size and not half["kept"]["error"]
    )
    assert resume(tmp_path / "stream", "--json") == 0
    again = document(capsys)
    for name in ("answer", "frames", "seen_until"):
        assert again[name] == whole[name]
    weights = [[moment["weight"] for moment in told["evidence"]] for told in (again, whole)]
    assert weights[0] == pytest.approx(weights[1], rel=1e-4)  # it was cut elsewhere
    assert again["kept"]["error"] == "" and {name for name, _ in tiny_for_embedded} == {"embedded"}
    assert resume(tmp_path / "stream") == 0  # nothing is left to watch
    assert capsys.readouterr().out.strip() == whole["answer"].strip()


def test_an_earlier_second_is_as_it_was_there_and_changes_nothing(tmp_path, capsys) -> None:
    assert ask("--at", "0:01", "--json") == 0
    then = document(capsys)
    assert ask("--keep", tmp_path / "stream") == 0
    was = {path.name: path.read_bytes() for path in place_of(tmp_path / "stream").iterdir()}
    capsys.readouterr()
    assert resume(tmp_path / "stream", "--at", "0:01", "--json") == 0
    now = document(capsys)
    assert (now["answer"], now["frames"]) == (then["answer"], then["frames"]) and "kept" not in now
    assert {path.name: path.read_bytes() for path in place_of(tmp_path / "stream").iterdir()} == was


def test_its_video_can_be_watched_again_by_another_model(tmp_path, capsys) -> None:
    assert ask("--keep", tmp_path / "stream", "--json") == 0
    whole = document(capsys)
    assert resume(tmp_path / "stream", "--model", "embedded-twin", "--again", "--json") == 0
    assert document(capsys)["answer"] == whole["answer"]


@pytest.mark.parametrize("deed", ["other bytes", "shorter", "gone", "a link"])
def test_another_video_is_refused(deed, tmp_path, capsys) -> None:
    assert ask("--keep", tmp_path / "stream") == 0
    video = place_of(tmp_path / "stream") / "video"
    data = bytearray(video.read_bytes())
    video.unlink()
    if deed == "other bytes":
        data[len(data) // 2] ^= 1
        video.write_bytes(data)
    elif deed == "shorter":
        video.write_bytes(data[:-1])
    elif deed == "a link":
        video.symlink_to(VIDEO)
    capsys.readouterr()
    assert resume(tmp_path / "stream") == 2
    assert "not the one that was watched, so it cannot go on" in capsys.readouterr().err


def test_a_model_that_only_the_folder_names_is_not_loaded(tmp_path, capsys, tiny_for_embedded) -> None:
    """A folder may come from anybody, and a name may be of anything on the Hub."""
    assert ask("--keep", tmp_path / "stream", "--model", "someone/something") == 0
    tiny_for_embedded.clear()
    assert resume(tmp_path / "stream") == 2
    assert "repeat the command with --model" in capsys.readouterr().err and not tiny_for_embedded
    assert resume(tmp_path / "stream", "--model", "someone/something") == 0


def test_a_folder_in_use_and_one_without_a_stream_are_told(tmp_path, capsys) -> None:
    assert resume(tmp_path) == 2
    assert "no kept stream here" in capsys.readouterr().err
    assert ask("--keep", tmp_path / "stream") == 0
    capsys.readouterr()
    assert ask("--keep", tmp_path / "stream") == 2
    assert "a kept stream in stream already" in capsys.readouterr().err


def test_a_fork_goes_on_from_a_second_and_the_original_stays(tmp_path, capsys) -> None:
    assert ask("--at", "0:01", "--json") == 0
    then = document(capsys)
    assert ask("--keep", tmp_path / "stream", "--json") == 0
    whole = document(capsys)
    was = {path.name: path.read_bytes() for path in place_of(tmp_path / "stream").iterdir()}
    assert resume(tmp_path / "stream", "--at", "0:01", "--fork", tmp_path / "fork", "--json") == 0
    now = document(capsys)
    assert (now["answer"], now["frames"]) == (then["answer"], then["frames"]) and not now["kept"]["error"]
    assert {path.name: path.read_bytes() for path in place_of(tmp_path / "stream").iterdir()} == was
    assert resume(tmp_path / "fork", "--json") == 0
    assert document(capsys)["frames"] == whole["frames"]
    assert main(["resume", str(tmp_path / "fork"), ""]) == 0
    assert capsys.readouterr().out == f"Seen until 0:0{int(whole['seen_until'])}: {whole['frames']} pictures.\n"
    assert resume(tmp_path / "stream", "--fork", tmp_path / "fork") == 2
    assert "already" in capsys.readouterr().err


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_another_file_is_watched_on_in_the_same_stream_with_honest_seconds(tmp_path, capsys, monkeypatch) -> None:
    """Killed or not, and gone back to: a second is of one file."""
    assert ask("--keep", tmp_path / "stream", "--at", "0:02", "--json") == 0
    first = document(capsys)
    assert resume(tmp_path / "stream", "--then", VIDEO) == 2
    assert "name its folder with --fork" in capsys.readouterr().err
    assert resume(tmp_path / "stream", "--fork", tmp_path / "fork", "--then", VIDEO, "--json") == 0
    out, told = capsys.readouterr()
    both = json.loads(out)
    assert f"{VIDEO.name} begins at 0:02 of the stream." in told and not both["kept"]["error"]
    assert ask("--json") == 0
    alone = document(capsys)
    assert both["frames"] == first["frames"] + alone["frames"]
    assert both["seen_until"] == pytest.approx(first["seen_until"] + 0.2 + alone["seen_until"])
    assert resume(tmp_path / "fork", "--json") == 0
    again = document(capsys)
    assert (again["answer"], again["frames"]) == (both["answer"], both["frames"])
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.commands.resume._watch_another", interrupted)
        assert resume(tmp_path / "stream", "--fork", tmp_path / "ended", "--then", VIDEO) == 130
    capsys.readouterr()
    assert resume(tmp_path / "ended", "--json") == 0
    assert document(capsys)["frames"] == both["frames"]
    assert resume(tmp_path / "fork", "--at", "0:03", "--json") == 0
    earlier = document(capsys)
    assert 2.8 < earlier["seen_until"] <= 3.0 and earlier["frames"] == first["frames"] + 5
    assert resume(tmp_path / "fork", "--again", "--json") == 0
    assert document(capsys)["frames"] == both["frames"]
