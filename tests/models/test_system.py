"""One file and one line make a system: loaded, watched, asked, kept, verified and listed, with nothing else touched."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import pipeline
from pipeline import Engine, Frame, Question, UserError, VideoChunk, models
from pipeline.__main__ import main
from pipeline.gpu import dispatch
from pipeline.models.system import System, readme_table

TOY = '''
"""A system that adds up colours: its state is a running sum, its answer the name of the largest."""
from dataclasses import dataclass, replace

import torch
from torch import nn

from pipeline.keeping import packing
from pipeline.models.system import Golden, Row, System
from pipeline.stream import Model, Packed, StreamState, Token


@dataclass(frozen=True)
class Sums:
    colours: torch.Tensor


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.weigh = nn.Linear(3, config["colours"], bias=False)


class Toy(Model[Sums]):
    about, long_side = "It adds up colours.", 32

    def __init__(self, net, name):
        self.net, self.name = net, name

    def start(self):
        return StreamState(Sums(torch.zeros(3)))

    @torch.no_grad()
    def watch(self, chunk, state):
        sums = state.inner.colours
        for frame in chunk.frames:
            sums = sums + torch.tensor(frame.rgb.mean((0, 1)), dtype=torch.float32)
        return replace(state, inner=Sums(sums), frames=state.frames + len(chunk.frames), seen_until=chunk.seen_until)

    @torch.no_grad()
    def ask(self, question, state, sampling):
        yield Token(0, ("red", "green", "blue")[int(self.net.weigh(state.inner.colours).argmax())])

    def pack(self, state):
        sums = Packed({"sums": packing.pack_tensor(state.inner.colours)}, {})
        return packing.pack_stream(state, "toy", sums)

    def unpack(self, packed):
        return packing.unpack_stream(
            packed, "toy", lambda kept: StreamState(Sums(packing.unpack_tensor(kept, "sums", torch.zeros(3))))
        )


class ToyGolden(Golden):
    kinds = ("rows",)

    def __init__(self, net, expected):
        self.net, self.expected, self.rows = net, expected, expected["rows"]

    def whole(self):
        return {"weighed": self.net.weigh(self.rows.to(self.net.weigh.weight.dtype)).detach()}

    def cut(self, kind, sizes):
        parts = self.rows.to(self.net.weigh.weight.dtype).split(sizes(len(self.rows)))
        return {"weighed": torch.cat([self.net.weigh(part) for part in parts]).detach()}


TOY = System(
    name="Toy",
    recognises=lambda config: "colours" in config,
    build=Net,
    our_key=lambda key: None if key == "spare" else key.removeprefix("toy."),
    wrap=lambda net, of: Toy(net, of.name),
    golden=ToyGolden,
    rows=(Row("`toy`", "anything", "36 B", "12 B", "none", "none"),),
)
'''


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    """The toy's one file and one line, and a checkpoint of it."""
    (tmp_path / "toy_system.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(models, "SYSTEMS", (*models.SYSTEMS, "toy_system:TOY"))
    folder, rows = tmp_path / "checkpoint", torch.randn(7, 3)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"colours": 3}))
    save_file({"toy.weigh.weight": torch.eye(3), "spare": torch.ones(1)}, folder / "model.safetensors")
    save_file({"rows": rows, "weighed": rows.clone()}, folder / "expected.safetensors")
    yield folder
    sys.modules.pop("toy_system", None)


def frames(*colours: tuple[int, int, int]) -> VideoChunk:
    return VideoChunk(tuple(Frame(np.full((4, 4, 3), c, np.uint8), float(i)) for i, c in enumerate(colours)))


def test_it_is_loaded_watched_asked_and_kept(toy) -> None:
    engine = Engine(pipeline.load(str(toy), "cpu"))
    assert (engine.name, engine.about) == ("checkpoint", "It adds up colours.")
    assert (engine.backend, engine.unit_frames, engine.chunk_frames(100)) == ("cpu", 1, 16)  # the base class's defaults
    state = engine.watch(frames((9, 200, 9), (9, 200, 9)), engine.start())
    assert list(engine.ask(Question("which?"), state))[-1].text == "green"
    again = engine.model.unpack(engine.model.pack(state))
    assert torch.equal(again.inner.colours, state.inner.colours) and again.frames == 2


def test_its_options_and_misfits_have_the_sentences_of_all_others(toy) -> None:
    with pytest.raises(UserError, match="Only a Vamba checkpoint takes retrieve"):
        pipeline.load(str(toy), "cpu", retrieve=4)
    save_file({"toy.weigh.weight": torch.eye(4)}, toy / "model.safetensors")
    with pytest.raises(UserError, match="1 of another shape"):
        pipeline.load(str(toy), "cpu")


def test_whose_kernels_compute_is_chosen_with_every_system(toy, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "_chosen", None)
    pipeline.load(str(toy), "cpu", kernels="torch")
    pipeline.load(str(toy), "cpu")
    assert dispatch.chosen() == "torch"
    with pytest.raises(UserError, match="kernels must be auto, own, published or torch, and 'fast' is not"):
        pipeline.load(str(toy), "cpu", kernels="fast")
    monkeypatch.setattr(dispatch, "_chosen", None)
    monkeypatch.setenv("VAMBA_KERNELS", "fast")
    with pytest.raises(UserError, match="no kernels called 'fast'"):
        pipeline.load(str(toy), "cpu")
    monkeypatch.setattr(dispatch, "_published", lambda: "it is not installed")
    with pytest.raises(UserError, match=r"published kernels cannot run here \(it is not installed\)"):
        pipeline.load(str(toy), "cpu", kernels="published")


def test_it_is_verified(toy, capsys) -> None:
    assert main(["verify", "--golden", str(toy), "--device", "cpu", "--chunks", "4"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["tensor"] for row in report["tensors"]] == ["weighed"] + [
        f"cut {n}, by rows: weighed" for n in range(1, 5)
    ]
    save_file({"toy.weigh.weight": 1.1 * torch.eye(3)}, toy / "model.safetensors")
    assert main(["verify", "--golden", str(toy), "--device", "cpu", "--chunks", "0"]) == 1
    save_file({"weighed": torch.ones(1)}, toy / "expected.safetensors")
    assert main(["verify", "--golden", str(toy), "--device", "cpu"]) == 2
    assert "not a Toy's" in capsys.readouterr().err


def test_it_is_listed_and_named_where_nothing_fits(toy, tmp_path) -> None:
    assert "| `toy` | anything | 36 B | 12 B | none | none |" in list(readme_table(models.systems()))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "else"}))
    with pytest.raises(UserError, match="or a Toy"):
        pipeline.load(str(tmp_path), "cpu")


def test_a_record_must_say_how_it_is_opened() -> None:
    with pytest.raises(ValueError, match="recognised, built and wrapped"):
        System(name="nothing")
