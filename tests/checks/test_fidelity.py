"""The figures of `fidelity`: zero where nothing is saved, known where they can be, larger where more is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.__main__ import main
from pipeline.checks import fidelity
from pipeline.checks.fidelity import compared, measure_fidelity, scenes
from pipeline.stream import Question
from tests.checks.test_golden import golden
from tests.weights.test_weights import PLAIN, VAMBA, write

QUESTIONS = [Question("what was it?"), Question("and then?")]


def rows(model, clip, retrieve=(), frames=24) -> dict[str, dict]:
    report = measure_fidelity(model, clip(frames), QUESTIONS, retrieve, 5)
    return {row["what"]: row for row in report["rows"]}


# The figures


def test_equal_logits_differ_by_nothing() -> None:
    exact = torch.randn(4, 30, dtype=torch.float64)
    same = compared([(exact, exact), (exact + 3.0, exact)])  # a softmax does not see a constant
    assert (same["top1"], same["first"], same["answers"]) == (1, 1, 1) and abs(same["kl"]) < 1e-12
    assert compared([(exact, exact)])["difference"] == 0


def test_known_logits_give_known_figures() -> None:
    """Two words, each of two tokens. p = (3/4, 1/4) against q = (1/2, 1/2) and against q = (1/4, 3/4)."""
    p, even, other = (torch.tensor(row, dtype=torch.float64).log() for row in ([0.75, 0.25], [0.5, 0.5], [0.25, 0.75]))
    found = compared([(torch.stack([p, other]), torch.stack([p, p])), (torch.stack([even, p]), torch.stack([p, p]))])
    kl_even, kl_other = 0.75 * np.log(1.5) + 0.25 * np.log(0.5), 0.5 * np.log(3)
    assert found["kl"] == pytest.approx((kl_even + kl_other) / 4)
    spread = (np.log(3) / 2) ** 2
    squares = (2 * np.log(3) ** 2 + np.log(1.5) ** 2 + np.log(2) ** 2) / 8
    assert found["difference"] == pytest.approx(np.sqrt(squares / spread))
    assert (found["top1"], found["first"], found["answers"]) == (0.75, 1.0, 0.5)  # of equals the first counts


# What is compared


def test_saving_nothing_costs_nothing_and_more_costs_more(tiny_model, clip) -> None:
    model = tiny_model(torch.float64)
    found = rows(model, clip, retrieve=[2, 12, 22, 23, 24, 100])
    assert list(found) == [*(f"reads {n} of 24 frames" for n in (2, 12, 22, 23)), "memory in 8 bits"]
    differences = [found[f"reads {n} of 24 frames"]["difference"] for n in (2, 12, 22, 23)]
    assert differences[0] > differences[1] > differences[2] > 1e-3 > 1e-9 > differences[3]  # 23 frames are 12 pairs
    assert found["reads 23 of 24 frames"]["answers"] == 1
    eight, whole = found["memory in 8 bits"], found["reads 2 of 24 frames"]
    assert 1e-5 < eight["difference"] < 0.1 and eight["memory_bytes"] < 0.4 * whole["memory_bytes"]


def test_variants_are_led_along_the_exact_words(tiny_model, clip, monkeypatch) -> None:
    """A variant whose first word differs must still be asked what it says after the exact one's."""
    fed, feed = [], fidelity.VambaModel._read

    def read(self, question, memory):
        decoder, logits = feed(self, question, memory)
        inner, mine = decoder.feed, []
        fed.append(mine)
        decoder.feed = lambda ids: mine.extend(ids) or inner(ids)
        return decoder, logits if len(fed) <= len(QUESTIONS) else -logits

    monkeypatch.setattr(fidelity.VambaModel, "_read", read)
    found = rows(tiny_model(torch.float64), clip, retrieve=[4])
    assert found["reads 4 of 24 frames"]["first"] == 0
    for number in range(2):
        exact, *others = fed[number::2]
        assert len(exact) == 5 and all(other == exact[:4] for other in others) and len(others) == 2


def test_weights_in_8_bits_are_watched_anew(tiny_model, clip) -> None:
    report = measure_fidelity(
        tiny_model(), clip(8), QUESTIONS, [], 3, {"other": lambda: tiny_model(net={"alpha_balancing": False})}
    )
    assert [row["what"] for row in report["rows"]] == ["memory in 8 bits", "other"]
    assert report["rows"][1]["difference"] > 10 * report["rows"][0]["difference"]  # it is another network altogether


# The command


@pytest.mark.parametrize("tokenizer", [True, False])
def test_the_command_prints_a_table_and_a_document(tmp_path, capsys, tokenizer) -> None:
    write(tmp_path, VAMBA, tokenizer=tokenizer)
    arguments = ["--minutes", "0.2", "--retrieve", "4", "99", "--max-tokens", "2", "--question", "what?"]
    assert main(["fidelity", str(tmp_path), *arguments, "--device", "cpu"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    rest = ["memory in 8 bits", "weights in 8 bits", "in bfloat16", "products in 8-bit floating point"]
    assert [row["what"] for row in report["rows"]] == ["reads 4 of 12 frames", *rest]
    assert all(any(line.startswith(row["what"]) for line in shown) for row in report["rows"])
    assert report["frames"] == 12 and report["questions"] == 1 and 0 < report["sure"] < 1
    assert all(0 < row["difference"] < 2 for row in report["rows"])


def test_a_given_video_is_watched(tmp_path, capsys) -> None:
    write(tmp_path, VAMBA, tokenizer=True)
    clip = Path(__file__).parents[2] / "assets" / "example.mp4"
    arguments = ["--video", str(clip), "--fps", "0.1", "--retrieve", "--max-tokens", "1", "--question", "what?"]
    assert main(["fidelity", str(tmp_path), *arguments, "--device", "cpu"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 3 <= report["frames"] <= 20 and len(report["rows"]) == 4


def test_golden_models_keep_their_words_in_8_bits(capsys) -> None:
    """Of the memory. What 8-bit weights and reading a part cost is printed, not promised."""
    for name in ("vamba-released", "vamba-positions"):
        arguments = ["--minutes", "0.5", "--retrieve", "--max-tokens", "6", "--device", "cpu"]
        assert main(["fidelity", str(golden(name)), *arguments]) == 0
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        memory = report["rows"][0]
        assert memory["what"] == "memory in 8 bits" and 1e-5 < memory["difference"] < 0.01 and memory["top1"] == 1


def test_what_cannot_be_compared_is_refused_in_a_sentence(tmp_path, capsys) -> None:
    write(tmp_path, PLAIN, tokenizer=True)
    for arguments in ([str(tmp_path)], ["nothing/here", "--minutes", "0"], ["nothing/here", "--retrieve", "0"]):
        assert main(["fidelity", *arguments, "--device", "cpu"]) == 2
        told = capsys.readouterr().err.strip()
        assert told.count("\n") == 0 and told.endswith(".") and "Traceback" not in told


def test_made_up_scenes_are_the_same_every_time_and_change() -> None:
    one, two = list(scenes(60)), list(scenes(60))
    assert all(np.array_equal(a.rgb, b.rgb) and a.time == b.time for a, b in zip(one, two))
    corners = {a.rgb[0, -1].tobytes() for a in one}
    assert 4 <= len(corners) <= 16 and len({a.rgb.tobytes() for a in one}) == 60
