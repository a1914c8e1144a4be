"""The papers' headlines on a CPU: the same code with tiny sizes. What it counts, compares and survives."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from pipeline.__main__ import main
from pipeline.bench.cost import Cost
from pipeline.bench.headlines import LIVE, Stream, headlines_table, measure_headlines, over, per_picture
from pipeline.bench.machine import Machine, part_alone
from pipeline.bench.systems import Sizes, gemamba_subject, ml_mamba_subject, mmmamba_subject
from pipeline.layers.mamba2 import MixerConfig
from pipeline.models.ml_mamba import MLMambaConfig
from pipeline.models.mmmamba import MMMambaConfig, StackConfig
from pipeline.towers.siglip_dino import ViTConfig

CPU = torch.device("cpu")
HERE = Machine(CPU, torch.float32, 1e9, 1e9)


def _tiny(kinds: tuple[str, ...]) -> MMMambaConfig:
    stack = StackConfig(width=32, heads=4, kv_heads=2, hidden=48, eps=1e-5, rope_theta=1e4, kinds=kinds)
    return MMMambaConfig(stack, stack, vocab=99, image_token=98, side=56)


def _gemma() -> dict:
    tiny = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    encoder = {"embed_dim": 32, "depth": 2, "img_size": 32, "patch_size": 16, "num_frames": 8}
    return Sizes().gemamba | tiny | {"num_attention_heads": 2, "vision_encoder": encoder}


TINY = Sizes(
    mmmamba={
        "linear": _tiny(("mamba2", "mamba2")),
        "hybrid": _tiny(("mha", "mamba2")),
        "hovle": _tiny(("mha", "mha")),
    },
    ml_mamba=MLMambaConfig(
        features=48,
        mixer=MixerConfig(d_model=32, d_state=16, headdim=16, ssd_block=8),
        layers=2,
        blocks=1,
        vocab=99,
        towers=(
            ViTConfig(32, 3, 16, 48, 14, table=3, prefix=5, scaled=True),
            ViTConfig(16, 3, 16, 48, 14, table=3, prefix=0, scaled=False),
        ),
    ),
    gemamba=_gemma(),
    tokens=400,
)


@pytest.fixture(scope="module")
def measured() -> dict:
    torch.set_num_threads(1)
    return measure_headlines(TINY, CPU, torch.float32, minutes=[1, 2], per_chunk=16)


def test_every_row_is_there_and_counts_what_was_watched(measured) -> None:
    assert json.loads(json.dumps(measured)) == measured
    for name in ("linear", "hybrid", "hovle"):
        row = measured[name]
        assert row["tokens"] >= TINY.tokens and row["finite"]
        assert row["pictures"] % LIVE == 0  # whole chunks, and no more of them than are needed
        assert row["tokens"] - LIVE * row["tokens_a_picture"] < TINY.tokens
        assert row["chunk"]["pictures"] == 16 and row["first_word"] > 0 and row["native_first_word"] > 0
        assert row["profile"]["word"]["top"] and row["profile"]["chunk"]["busy_ms"] > 0
    states = [measured[name]["state_bytes"] for name in ("linear", "hybrid", "hovle")]
    assert states[0] > states[1] > states[2] == 0
    keys = [measured[name]["memory"]["keys"] for name in ("linear", "hybrid", "hovle")]
    assert keys[0] == 0 < keys[1] < keys[2]
    assert measured["linear"]["late_over_early"]["pictures"] == [60, 120]
    assert measured["ml_mamba"]["unit"]["pictures"] == 1 and measured["gemamba"]["unit"]["pictures"] == 8
    assert measured["ml_mamba"]["tokens_a_picture"] == 9 and measured["gemamba"]["tokens_a_picture"] == 1


def test_times_stand_beside_floors(measured) -> None:
    for name in ("linear", "hybrid", "hovle", "ml_mamba", "gemamba"):
        for part in ("watch", "unit", "chunk", "word"):
            if beside := measured[name].get(part):
                assert beside["s"] > beside["floor_s"] > 0 and beside["ratio"] == beside["s"] / beside["floor_s"]


def test_mmmamba_is_compared_with_hovle(measured) -> None:
    for name in ("linear", "hybrid"):
        ratios, own, teacher = measured["over_hovle"][name], measured[name], measured["hovle"]
        assert ratios["word"] == teacher["word"]["s"] / own["word"]["s"]
        assert ratios["memory_saved_floor"] == 1 - own["peak_floor"] / teacher["peak_floor"]
    assert over({"stopped": "out of memory"}, measured["hovle"], {}) == {}


def test_the_table_says_it_all(measured) -> None:
    table = headlines_table(measured)
    for words in (
        "linear over HoVLE",
        "paper",
        "gemamba: unit of 8",
        "ml_mamba: chunk of 16",
        "after 120 pictures over 60",
    ):
        assert words in table
    assert "hovle: out of memory" in headlines_table(measured | {"hovle": {"stopped": "out of memory"}})


SUBJECTS = {
    "linear": partial(mmmamba_subject, TINY.mmmamba["linear"], HERE, "linear"),
    "hovle": partial(mmmamba_subject, TINY.mmmamba["hovle"], HERE, "hovle"),
    "ml-mamba": partial(ml_mamba_subject, TINY.ml_mamba, HERE),
    "gemamba": partial(gemamba_subject, TINY.gemamba, HERE),
}


@pytest.mark.parametrize("name", SUBJECTS)
@torch.no_grad()
def test_the_floor_counts_matrix_products_that_really_run(name) -> None:
    """Torch's own counter sees those of a chunk; scans, and attention where the floor leaves it out, come on top."""
    subject = SUBJECTS[name]()
    stream = Stream(subject)
    each, start = per_picture(stream), subject.model.start()
    with Cost() as counted:
        stream.watch(start, 16, 16)
    assert 0.5 * counted.flops < subject.picture_flops(each) * 16 <= counted.flops


def test_the_published_sizes_are_the_published_ones() -> None:
    """Parameters as the published code has them, without a class token and embeddings that nothing reads."""
    with torch.device("meta"):
        counts = {
            name: sum(p.numel() for p in headlines_net(name).parameters()) for name in ("linear", "hybrid", "hovle")
        }
        words = sum(p.numel() for p in headlines_net("ml_mamba").llm_backbone.parameters())
        gemma = headlines_net("gemamba")
    unread = 92_553 * 2048 + 2048
    assert counts["linear"] + unread == pytest.approx(2_741_992_448, abs=10_000)
    assert counts["hybrid"] + unread == pytest.approx(2_708e6, rel=1e-3)
    assert counts["hovle"] + unread == pytest.approx(2_606e6, rel=1e-3)
    assert words == 2_702_599_680
    own = sum(
        p.numel() for p in [*gemma.model.layers.parameters(), gemma.model.embed_tokens.weight, gemma.model.norm.weight]
    )
    assert own == 2_506_172_416


def headlines_net(name: str):
    from pipeline.models.gemamba import Gemamba
    from pipeline.models.ml_mamba import MLMamba
    from pipeline.models.mmmamba import MMMamba

    sizes = Sizes()
    if name in sizes.mmmamba:
        return MMMamba(sizes.mmmamba[name])
    return MLMamba(sizes.ml_mamba) if name == "ml_mamba" else Gemamba(sizes.gemamba)


def test_what_does_not_fit_is_a_row_of_its_own(monkeypatch, capsys) -> None:
    def full(*_):
        raise torch.OutOfMemoryError

    assert part_alone("hovle", full) == {"stopped": "out of memory"}
    assert "hovle" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_refused(capsys) -> None:
    assert main(["bench", "--size", "published", "--headlines"]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
