"""The command line: what it prints, where, and with which exit code. The model is that of test_engine."""

import argparse
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import pipeline
from pipeline import Frame, UserError, VideoError
from pipeline.__main__ import main
from pipeline.stream import Token
from tests.test_engine import COLOURS, ColourModel

ROOT = Path(__file__).parents[1]


class FakeVideo:
    """A video of `seconds` grey pictures with red ones at `red`; `fails_at` breaks it there."""

    def __init__(self, fps: float = 1.0, seconds: float = 120, red=(41, 42), fails_at: float = float("inf")) -> None:
        self.info = types.SimpleNamespace(duration=float(seconds))
        self.count, self.fps, self.red, self.fails_at, self.closed = int(seconds * fps), fps, red, fails_at, False

    def __iter__(self):
        for index in range(self.count):
            at = index / self.fps
            if at >= self.fails_at:
                raise VideoError("too_slow", "Reading the video took longer than allowed and stopped.")
            colour = COLOURS["red" if int(at) in self.red else "grey"]
            yield Frame(np.full((8, 8, 3), colour, np.uint8), at)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(monkeypatch):
    """Fakes in place of weights and files; the list fills with (video, its keyword arguments)."""
    seen: list[tuple[FakeVideo, dict]] = []

    def open_video(path, fps, long_side):
        video = FakeVideo(fps)
        seen.append((video, {"path": path, "fps": fps, "long_side": long_side}))
        return video

    monkeypatch.setattr(pipeline, "open_video", open_video)
    monkeypatch.setattr(pipeline, "load", named_model)
    return seen


def named_model(name: str, **options) -> ColourModel:
    if name == "missing":
        raise UserError("There is no such model.")
    model = ColourModel()
    model.name = f"Model {name}"
    return model


def ask(*arguments: str) -> int:
    return main(["ask", "clip.mp4", "When was it red?", *arguments])


# --- ask -------------------------------------------------------------------------------------------------------------


def test_json_is_one_document_with_every_figure(opened, capsys):
    assert ask("--json", "--max-tokens", "9") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert len(captured.out.splitlines()) == 1
    assert document["answer"].startswith("I saw that at 0:4")
    assert (document["asked_at"], document["seen_until"], document["frames"]) == (119, 119, 120)
    assert document["dropped"] == 0 and document["backend"] == ColourModel().backend
    best = document["evidence"][0]
    assert 41 <= best["time"] <= 42 and 0.9 < best["weight"] <= 1
    assert set(document["timings"]) == {"watch_s", "picture_ms", "realtime_factor", "first_token_s", "tokens_per_s"}
    assert all(value > 0 for value in document["timings"].values())
    assert document["timings"]["realtime_factor"] == pytest.approx(119 / document["timings"]["watch_s"])
    assert document["bytes"]["state"] == 64 and document["bytes"]["memory"] == 32 * 120
    assert document["bytes"]["memory_on_host"] == 0
    assert document["bytes"]["peak_rss"] > 1 << 20


def test_the_answer_is_streamed_to_stdout_and_the_rest_to_stderr(opened, capsys):
    assert ask("--max-tokens", "5") == 0
    captured = capsys.readouterr()
    assert captured.out == "I saw that at 0:41 \n"
    assert "looked at: 0:4" in captured.err and "120 pictures" in captured.err


def test_at_stops_watching_there(opened, capsys):
    assert ask("--at", "0:30", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["asked_at"], document["seen_until"], document["frames"]) == (30, 30, 31)
    assert not any(41 <= moment["time"] <= 42 for moment in document["evidence"])
    assert all(video.closed for video, _ in opened)


def test_ways_to_save_reach_the_model_and_only_it(opened, monkeypatch, capsys):
    """Only those that were given: other models take none. The one beside it is left as it is."""
    from pipeline.models.load import load as real

    told = []
    monkeypatch.setattr(pipeline, "load", lambda name, **options: told.append(options) or named_model(name))
    assert ask("--compare") == 0 and told == [{}, {}]
    assert ask("--eight-bit", "--int8", "--retrieve", "64", "--gpu-memory", "2.5", "--compare") == 0
    assert told[2:] == [{"eight_bit": True, "int8": True, "retrieve": 64, "gpu_memory": 2.5}, {}]
    assert ask("--kernels", "torch", "--compare") == 0 and told[4:] == [{"kernels": "torch"}] * 2, "a process has one"
    assert ask("--retrieve", "many") == 2
    capsys.readouterr()
    monkeypatch.setattr(pipeline, "load", real)
    assert ask("--retrieve", "4") == 2 and capsys.readouterr().err.startswith("Only a Vamba checkpoint takes retrieve")


def test_fps_reaches_the_source(opened, capsys):
    assert ask("--fps", "2", "--at", "10", "--json") == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 21
    assert opened[-1][1] == {"path": "clip.mp4", "fps": 2.0, "long_side": ColourModel.long_side}


def test_compare_shows_both_models_the_same_pictures(opened, capsys):
    assert ask("--json", "--compare", "other") == 0
    documents = json.loads(capsys.readouterr().out)
    assert [d["model"] for d in documents] == ["Model embedded", "Model other"]
    assert [d["frames"] for d in documents] == [120, 120]
    assert len(opened) == 2, "one look before loading, one reading for both"
    assert ask("--compare", "other") == 0
    out = capsys.readouterr().out
    assert out.index("[Model embedded]\nI saw") < out.index("[Model other]\nI saw")


def test_a_video_that_breaks_in_the_middle_is_answered_from_what_was_seen(monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "load", named_model)
    monkeypatch.setattr(pipeline, "open_video", lambda *_, **__: FakeVideo(fails_at=50))
    assert ask("--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["frames"] == 50
    assert "longer than allowed" in captured.err


def test_a_real_file_end_to_end(monkeypatch, capsys, tmp_path):
    """Ten seconds, red in the middle, through the real decoder."""
    monkeypatch.setattr(pipeline, "load", named_model)
    path = tmp_path / "clip.mp4"
    write_video(path, ["grey"] * 5 + ["red"] * 2 + ["grey"] * 3)
    assert main(["ask", str(path), "When was it red?", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["frames"] == 10 and document["evidence"][0]["time"] in (5, 6)


def write_video(path: Path, colours: list[str]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for colour in colours:
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), COLOURS[colour], np.uint8), format="rgb24")
            for _ in range(4):
                container.mux(stream.encode(picture))
        container.mux(stream.encode())


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "clip.mp4", ""],
        ["ask", "clip.mp4", "x" * 2001],
        ["ask", "clip.mp4", "hi", "--at", "1:99"],
        ["ask", "clip.mp4", "hi", "--at=-5"],
        ["ask", "clip.mp4", "hi", "--fps", "0"],
        ["ask", "clip.mp4", "hi", "--fps", "nan"],
        ["ask", "clip.mp4", "hi", "--fps", "often"],
        ["ask", "clip.mp4", "hi", "--max-tokens", "0"],
        ["ask", "clip.mp4", "hi", "--model", "missing"],
        ["ask", "clip.mp4", "hi", "--compare", "missing"],
        ["ask", "clip.mp4"],
        ["sing"],
        [],
        ["bench", "--minutes", "0"],
        ["bench", "--minutes", "soon"],
        ["bench", "--frames", "0"],
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_and_exit_code_2(arguments, opened, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(".\n") or captured.err.endswith("--help.\n")
    assert len(captured.err.splitlines()) == 1 and "Traceback" not in captured.err


@pytest.mark.parametrize("content", [None, b"", b"not a video at all"])
def test_a_bad_file_is_told_before_any_model_is_loaded(content, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(pipeline, "load", lambda name: pytest.fail("the weights were loaded first"))
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    assert main(["ask", str(path), "hi"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert str(tmp_path) not in captured.err


def test_a_video_without_pictures_until_then_cannot_be_asked(monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "load", named_model)
    monkeypatch.setattr(pipeline, "open_video", lambda *_, **__: FakeVideo(seconds=0))
    assert ask() == 2
    assert "Nothing has been seen" in capsys.readouterr().err


def test_what_the_system_refuses_is_told_in_a_sentence(opened, monkeypatch, capsys):
    def refused(name):
        raise PermissionError(13, "Permission denied", "/some/where")

    monkeypatch.setattr(pipeline, "load", refused)
    assert ask() == 2
    told = capsys.readouterr().err
    assert "(Permission denied)" in told and told.endswith(".\n") and "/some" not in told and told.count("\n") == 1


def test_ctrl_c_while_answering_stops_cleanly(opened, monkeypatch, capsys):
    closed = []

    class Interrupted(ColourModel):
        def ask(self, question, state, sampling):
            try:
                yield Token(0, "one ")
                raise KeyboardInterrupt
            finally:
                closed.append(True)

    monkeypatch.setattr(pipeline, "load", lambda name: Interrupted())
    assert ask() == 130
    captured = capsys.readouterr()
    assert captured.out.startswith("one ") and "Traceback" not in captured.err
    assert closed == [True] and all(video.closed for video, _ in opened)


# --- probe -----------------------------------------------------------------------------------------------------------


def test_probe_describes_a_video(capsys, tmp_path):
    write_video(tmp_path / "clip.mp4", ["grey"] * 3)
    assert main(["probe", str(tmp_path / "clip.mp4")]) == 0
    assert "64x48" in (line := capsys.readouterr().out) and "3 pictures at 1 a second" in line
    assert main(["probe", str(tmp_path / "clip.mp4"), "--json", "--fps", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["frames"] == 12


def test_probe_says_why_not(capsys, tmp_path):
    (tmp_path / "notes.mp4").write_bytes(b"these are notes")
    assert main(["probe", str(tmp_path / "notes.mp4")]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("not_a_video: ") and len(captured.err.splitlines()) == 1
    assert main(["probe", str(tmp_path / "absent.mp4"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["kind"] == "not_found"


# --- verify, and the door --------------------------------------------------------------------------------------------


def test_verify_is_handed_over(monkeypatch):
    """The command belongs to pipeline/checks/verify.py: its arguments come from there, its exit code goes out."""
    got = []

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--golden", required=True)

    def run(args: argparse.Namespace) -> int:
        got.append(args.golden)
        return 1

    module = types.SimpleNamespace(add_arguments=add_arguments, run=run)
    monkeypatch.setitem(sys.modules, "pipeline.checks.verify", module)
    monkeypatch.setattr(pipeline, "verify", module, raising=False)
    assert main(["verify", "--golden", "somewhere"]) == 1 and got == ["somewhere"]


def fresh(program: str) -> str:
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_door_is_quick_and_lazy():
    """Importing the package, its nouns and the command line loads neither torch nor numpy nor the video libraries."""
    heavy = "sorted({'torch', 'numpy', 'av', 'cv2', 'transformers'} & set(sys.modules))"
    out = fresh(
        "import sys, time; began = time.perf_counter(); import pipeline, pipeline.__main__\n"
        "from pipeline import Frame, VideoChunk, Question, Sampling, Answer, Evidence, StreamState, UserError\n"
        f"print(time.perf_counter() - began, {heavy})"
    )
    seconds, loaded = out.split(maxsplit=1)
    assert loaded.strip() == "[]" and float(seconds) < 0.3
    assert "'torch'" not in fresh(f"import sys; from pipeline import Engine, mmss, open_video; print({heavy})")


def test_every_name_of_the_door_opens():
    assert set(pipeline.__all__) <= set(dir(pipeline))
    assert all(getattr(pipeline, name) is not None for name in pipeline.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        pipeline.nonsense  # noqa: B018
