"""The frozen towers, the packed numbers, the packed language model and the training features."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from pipeline.towers.efficientnet import SameConv
from pipeline.towers.frame_tower import ASSETS, FrameFeatures, FrameTower, canvas, labels, things_shown
from pipeline.towers.nanodet import FLOOR, RGB_MEAN_STD, by_region, suppress
from pipeline.training import features, pack
from pipeline.weights import quant

SHARED = Path(__file__).parents[3] / "shared" / "data"
seeds = st.integers(0, 2**31 - 1)


@pytest.fixture(scope="module")
def tower() -> FrameTower:
    return FrameTower.load()


@pytest.fixture(scope="module")
def lm_files() -> dict[str, Tensor]:
    return {k: v for file in sorted(ASSETS.glob("lm-0*.safetensors")) for k, v in load_file(file).items()}


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS)


def picture(name: str) -> np.ndarray:
    data = pytest.importorskip("skimage.data", reason="scikit-image brings the pictures")
    return getattr(data, name)()


def scene(seed: int, high: int, wide: int) -> np.ndarray:
    """Smooth coloured noise: no two seeds look alike, and both networks see something in it."""
    dice = np.random.default_rng(seed)
    small = torch.from_numpy(dice.integers(0, 255, (1, 3, 6, 9), dtype=np.uint8))
    return F.interpolate(small.float(), size=(high, wide), mode="bilinear")[0].permute(1, 2, 0).byte().numpy()


# ---------------------------------------------------------------- towers


def test_frames_alone_and_together_give_the_same(tower: FrameTower) -> None:
    frames = [scene(i, *shape) for i, shape in enumerate([(180, 320), (320, 180), (180, 320), (64, 64), (90, 160)])]
    together = tower(frames)
    for name, column in together._asdict().items():
        alone = torch.cat([getattr(tower([frame]), name) for frame in frames])
        assert torch.allclose(column.float(), alone.float(), atol=1e-4), name
    assert not torch.allclose(together.pooled[0], together.pooled[2], atol=0.1), "different frames must differ"


def test_a_tensor_of_frames_equals_a_list(tower: FrameTower) -> None:
    frames = [scene(i, 120, 160) for i in range(2)]
    listed, stacked = tower(frames), tower(torch.from_numpy(np.stack(frames)))
    for name, column in listed._asdict().items():
        assert torch.allclose(column.float(), getattr(stacked, name).float(), atol=1e-4), name


@pytest.mark.parametrize(
    ("name", "expected"), [("astronaut", {"person"}), ("chelsea", {"Egyptian cat", "cat"}), ("coffee", {"espresso"})]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_pictures(name: str, expected: set[str], dtype: torch.dtype) -> None:
    said = things_shown(FrameTower.load(dtype=dtype)([picture(name)]), 0)
    assert expected <= {word for word, *_ in said[:3]}
    assert [score for _, score, *_ in said] == sorted((score for _, score, *_ in said), reverse=True)


def test_a_detection_lies_where_the_thing_is(tower: FrameTower) -> None:
    """The astronaut pasted to the right of an empty grey field."""
    astronaut = picture("astronaut")
    frame = np.concatenate((np.full_like(astronaut, 128), astronaut), 1)
    seen = tower([frame])
    assert labels()["coco"][seen.det_ids[0, 0]] == "person"
    left, top, right, bottom = seen.det_boxes[0, 0].tolist()
    assert 0.4 < left < 0.65 and right > 0.85 and top < 0.2 and bottom > 0.8
    assert ("person", "right", 1) in {(word, place, count) for word, _, place, count in things_shown(seen, 0)}


@pytest.mark.parametrize(("kernel", "before"), [(3, 0), (5, 1)])
def test_strided_padding_goes_right_and_below(kernel: int, before: int) -> None:
    """TensorFlow's "same" on an even side: of kernel - 2 padding pixels the smaller half comes first."""
    conv, x = SameConv(1, 1, kernel, 2), torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        conv.weight.zero_()[0, 0, before, before] = 1  # picks the pixel under the window's first unpadded corner
        conv.bias.zero_()
        assert torch.equal(conv(x), x[..., ::2, ::2])


def test_the_classifier_knows_imagenet(tower: FrameTower) -> None:
    """One picture for every 20th class: top-1 .72, top-5 .96 when written (.83, .95 on every 8th)."""
    cv2 = pytest.importorskip("cv2")
    source = SHARED / "imagenet-one-per-class-224.zip"
    if not source.exists():
        pytest.skip("the training pictures are not here")
    with zipfile.ZipFile(source) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".webp"))[::20]
        pictures = [cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), 1)[..., ::-1].copy() for name in names]
    hits = tower.classify(pictures)[2] == torch.tensor([[int(name[:4])] for name in names])
    assert hits[:, 0].float().mean() > 0.65 and hits.any(1).float().mean() > 0.9


def graph_outputs(nodes: list[dict], arrays: dict[str, np.ndarray], picture_bgr: np.ndarray) -> list[np.ndarray]:
    """NanoDet's published graph, interpreted node by node: the reference for our module."""
    seen = dict(arrays) | {"input_1": picture_bgr}
    nchw, nhwc = (0, 3, 1, 2), (0, 2, 3, 1)

    def at(x: np.ndarray, function: Callable[[Tensor], Tensor]) -> np.ndarray:
        return function(torch.from_numpy(np.ascontiguousarray(x.transpose(nchw)))).numpy().transpose(nhwc)

    def convolve(x: np.ndarray, kernel: np.ndarray, node: dict) -> np.ndarray:
        stride, weight = int(node["attr"]["strides"]["list"]["i"][1]), torch.from_numpy(kernel).permute(3, 2, 0, 1)
        return at(x, lambda t: F.conv2d(t, weight, stride=stride))

    run = {
        "Pad": lambda node, x, pads: np.pad(x, pads),
        "PadV2": lambda node, x, pads, value: np.pad(x, pads, constant_values=value.item()),
        "Transpose": lambda node, x, order: x.transpose(order),
        "Conv2D": lambda node, x, kernel: convolve(x, kernel, node),
        "Add": lambda node, a, b: a + b,
        "LeakyRelu": lambda node, x: np.where(x > 0, x, x * np.float32(node["attr"]["alpha"]["f"])),
        "MaxPool": lambda node, x: at(x, lambda t: F.max_pool2d(t, 3, 2)),
        "ConcatV2": lambda node, *xs: np.concatenate(xs[:-1], int(xs[-1])),
        "ResizeBilinear": lambda node, x, size: at(x, lambda t: F.interpolate(t, size=size.tolist(), mode="bilinear")),
        "Sigmoid": lambda node, x: 1 / (1 + np.exp(-x)),
        "Identity": lambda node, x: x,
        "Reshape": lambda node, x, shape: x.reshape(1, x.shape[1], -1),
    }
    for node in nodes:
        name, op = node["name"], node["op"]
        if op == "SplitV":
            seen[name], seen[f"{name}:1"] = np.split(seen[node["input"][0]], [80], 1)
        elif op in run:
            seen[name] = run[op](node, *(seen.get(key) for key in node["input"]))
    return [seen[f"Identity{suffix}"] for suffix in ("", "_1", "_2", "_3", "_4", "_5")]


def test_the_detector_equals_its_published_graph(tower: FrameTower) -> None:
    if not (SHARED / "coco-detectors" / "nanodet.json").exists():
        pytest.skip("the published detector is not here")
    nodes, arrays = pack.graph_arrays(SHARED / "coco-detectors")
    rgb = torch.from_numpy(scene(3, 416, 416)).permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(row).view(3, 1, 1) for row in RGB_MEAN_STD)
    expected = graph_outputs(nodes, arrays, ((rgb - mean) / std).flip(1).numpy())
    with torch.no_grad():
        ours = torch.cat([level.flatten(2) for level in tower.detector.maps(rgb)], 2).transpose(1, 2)
    assert np.abs(ours[..., :80].sigmoid().numpy() - np.concatenate(expected[:3], 1)).max() < 1e-5
    assert np.abs(ours[..., 80:].numpy() - np.concatenate(expected[3:], 1)).max() < 1e-4


def plain_suppression(scores: np.ndarray, boxes: np.ndarray) -> list[tuple[int, float]]:
    """The textbook loop over one frame."""
    kept: list[tuple[int, float, np.ndarray]] = []
    order = np.argsort(-scores, axis=None, kind="stable")[:64]
    for cell, id in zip(*np.unravel_index(order, scores.shape)):
        a, score = boxes[cell], scores[cell, id]
        if score < FLOOR:
            break
        for other, _, b in kept:
            shared = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
            union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared
            if shared / union > (0.5 if other == id else 0.8):
                break
        else:
            kept.append((int(id), float(score), a))
    return [(id, score) for id, score, _ in kept[:8]]


@settings(max_examples=25, deadline=None)
@given(seeds)
def test_batched_suppression_equals_the_textbook_loop(seed: int) -> None:
    dice = np.random.default_rng(seed)
    corner, extent = dice.random((3, 40, 2)) * 0.5, 0.2 + dice.random((3, 40, 2)) * 0.3
    boxes = np.concatenate((corner, corner + extent), -1).astype(np.float32)
    scores = (dice.random((3, 40, 80)) ** 40).astype(np.float32)
    ids, kept, _ = suppress(torch.from_numpy(scores), torch.from_numpy(boxes))
    for i in range(3):
        expected = plain_suppression(scores[i], boxes[i])
        assert [id for id in ids[i].tolist() if id >= 0] == [id for id, _ in expected]
        assert kept[i].tolist()[: len(expected)] == pytest.approx([score for _, score in expected])


def test_regions_take_the_best_score_of_their_quarter() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.2, 0.2], [0.6, 0.1, 0.9, 0.3], [0.7, 0.7, 0.9, 0.9]]])
    scores = torch.zeros(1, 3, 80)
    scores[0, 0, 5], scores[0, 1, 5], scores[0, 2, 7] = 0.3, 0.6, 0.9
    regions = by_region(scores, boxes).view(5, 80)
    assert regions[:, 5].tolist() == pytest.approx([0.6, 0.3, 0.6, 0, 0])
    assert regions[:, 7].tolist() == pytest.approx([0.9, 0, 0, 0, 0.9])


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_the_detector_sees_the_shape_of_the_frame(high: int, wide: int) -> None:
    size = canvas(high, wide, 416)
    assert max(size) == 416 and min(size) >= 64 and all(n % 32 == 0 for n in size)
    if max(high, wide) < 4 * min(high, wide):
        assert abs(size[1] / size[0] / (wide / high) - 1) < 0.2


def told(ids: list[int], scores: list[float], boxes: list[list[float]], classes: list[int], probs: list[float]):
    empty = torch.zeros(1, 1)
    column = [torch.tensor([x]) for x in (classes, probs)], [torch.tensor([x]) for x in (ids, scores, boxes)]
    return FrameFeatures(empty, empty, *column[0], empty, *column[1])


def test_words_group_place_and_order() -> None:
    left, right = [0.0, 0.2, 0.2, 0.9], [0.8, 0.2, 1.0, 0.9]
    coco, imagenet = labels()["coco"], labels()["imagenet"]
    person, bottle, cup = coco.index("person"), coco.index("bottle"), imagenet.index("water bottle")
    seen = told([person, bottle, person, -1], [0.9, 0.6, 0.5, 0], [left, right, right, [0] * 4], [cup, 0], [0.7, 0.1])
    expected = [("person", 0.9, "", 2), ("water bottle", 0.7, "", 1), ("bottle", 0.6, "right", 1)]
    assert [(w, round(s, 3), p, n) for w, s, p, n in things_shown(seen, 0)] == expected
    assert things_shown(seen, 0, seen=0.95, sure=0.8) == []


def test_labels_are_distinct_words() -> None:
    for name, count in (("imagenet", 1000), ("coco", 82)):
        found = labels()[name]
        assert len(found) == count == len({word.lower() for word in found})
        assert all(word.strip() == word and word and "," not in word for word in found)


# ---------------------------------------------------------------- packed numbers


@given(seeds, st.sampled_from([4, 6, 8]), st.integers(1, 5), st.integers(1, 4))
def test_packing_errs_by_half_a_step_at_most(seed: int, bits: int, rows: int, groups: int) -> None:
    w = torch.randn(rows, groups * 32, generator=torch.Generator().manual_seed(seed))
    packed = quant.pack(w, bits)
    assert packed.codes.shape[1] * 8 == w.shape[1] * bits
    error = (quant.unpack(packed, bits) - w).abs().unflatten(1, (-1, 32))
    assert (error <= packed.scale.float()[..., None] * 0.5 + 0.01).all()
    spread = 0.25 + 0.8 / w.numel() ** 0.5  # of a step: the mean of |rounding|, and more than five of its deviations
    assert (error.mean() <= packed.scale.float().mean() * spread + 0.001).item()


@given(seeds, st.sampled_from([4, 6, 8]))
def test_codes_survive_squeezing(seed: int, bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(quant.stretch(quant.squeeze(codes, bits), bits), codes)


def test_files_hold_packed_and_plain_side_by_side() -> None:
    w, norm = torch.randn(4, 64), torch.randn(4)
    packed = quant.pack(w, 4)
    back = quant.from_file(quant.to_file("a.weight", packed, 4) | {"b.scale": norm})
    assert set(back) == {"a.weight", "b.scale"} and torch.equal(back["b.scale"], norm)
    assert torch.equal(back["a.weight"], quant.unpack(packed, 4))


@pytest.mark.parametrize("shape", [(3,), (2, 31), (2, 2, 32)])
def test_what_cannot_be_packed_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="32"):
        quant.pack(torch.zeros(shape), 4)


def q4_1_by_hand(raw: bytes, columns: int) -> np.ndarray:
    """GGUF's definition, number by number: block = d, m (float16), 16 bytes; value j and j+16 share byte j."""
    out = []
    for start in range(0, len(raw), 20):
        d, m = (np.float32(x) for x in np.frombuffer(raw[start : start + 4], np.float16))
        data = raw[start + 4 : start + 20]
        out += [d * np.float32(byte & 15) + m for byte in data] + [d * np.float32(byte >> 4) + m for byte in data]
    return np.array(out, np.float32).reshape(-1, columns)


def q4_1_bytes(dice: np.random.Generator, blocks: int) -> bytes:
    heads = dice.standard_normal((blocks, 2)).astype(np.float16).view(np.uint8)
    return np.concatenate((heads, dice.integers(0, 256, (blocks, 16), np.uint8)), 1).tobytes()


@given(seeds)
def test_gguf_numbers_survive_bit_for_bit(seed: int) -> None:
    raw = q4_1_bytes(np.random.default_rng(seed), 6)
    ours = quant.unpack(pack.from_q4_1(np.frombuffer(raw, np.uint8).reshape(2, 60)), 4)
    assert np.array_equal(ours.numpy(), q4_1_by_hand(raw, 96))


def test_a_gguf_file_is_read(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    raw = q4_1_bytes(np.random.default_rng(0), 4)
    file = io.BytesIO()
    file.write(b"GGUF" + struct.pack("<IQQ", 3, 2, 2))
    file.write(text("a.name") + struct.pack("<I", 8) + text("tiny"))
    file.write(text("a.list") + struct.pack("<IIQ3i", 9, 5, 3, 1, 2, 3))
    file.write(text("w") + struct.pack("<IQQIQ", 2, 64, 2, 3, 0))
    file.write(text("norm") + struct.pack("<IQIQ", 1, 2, 0, 96))
    file.write(b"\0" * (-file.tell() % 32) + raw + b"\0" * 16 + struct.pack("<2f", 1.5, -2))
    path = tmp_path / "tiny.gguf"
    path.write_bytes(file.getvalue())
    meta, tensors = pack.read_gguf(path)
    assert meta == {"a.name": "tiny", "a.list": [1, 2, 3]}
    assert tensors["w"][0] == 3 and tensors["w"][1].tobytes() == raw and tensors["w"][1].shape == (2, 40)
    assert tensors["norm"][1].tobytes() == struct.pack("<2f", 1.5, -2)
    path.write_bytes(b"PK" + file.getvalue())
    with pytest.raises(ValueError, match="not a GGUF"):
        pack.read_gguf(path)


def test_straighten_undoes_the_rotary_order() -> None:
    plain = torch.arange(2 * 8 * 3).view(16, 3)  # 2 heads of 8 rows; llama.cpp interleaves the halves of a head
    permuted = plain.view(2, 2, 4, 3).transpose(1, 2).reshape(16, 3)
    assert not torch.equal(permuted, plain) and torch.equal(pack.straighten(permuted, 2), plain)


# ---------------------------------------------------------------- the language model


def test_the_packed_language_model_answers(lm_files: dict[str, Tensor], tokenizer) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**json.loads((ASSETS / "lm-config.json").read_text()))
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(quant.from_file(lm_files), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = model.to(torch.bfloat16).eval().generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0, prompt["input_ids"].shape[1] :])


@given(st.text(st.characters(max_codepoint=0x1FFFF, exclude_categories=("Cc", "Cs")), max_size=60))
def test_text_survives_the_tokenizer(tokenizer, text: str) -> None:
    """Its vocabulary lacks a few bytes (some control characters, planes above the second): those become unknown."""
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_tokenizer_speaks_smollm(tokenizer) -> None:
    """Numbers by the digit, no prefix space, the chat's marks as single tokens, and SmolLM2's own system line."""
    assert tokenizer.tokenize("at 12:35") == ["at", "Ġ", "1", "2", ":", "3", "5"]
    assert tokenizer("<|im_start|>").input_ids == [1] and tokenizer("<|im_end|>").input_ids == [2]
    assert len(tokenizer) == 49152 and tokenizer.eos_token_id == tokenizer.pad_token_id == 2
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    expected = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == expected


def test_files_stay_small(lm_files: dict[str, Tensor]) -> None:
    """Files over 50 MB are refused by tools on the way to a Space; the whole must clone quickly."""
    sizes = {path.name: path.stat().st_size / 1e6 for path in ASSETS.iterdir() if path.is_file()}
    lm = [size for name, size in sizes.items() if name.startswith("lm-0")]
    assert lm and max(lm) <= 48 and sum(lm) < 92
    assert sizes["towers.safetensors"] < 20


# ---------------------------------------------------------------- training features


def test_features_do_not_depend_on_batching(tower: FrameTower) -> None:
    pictures = [scene(i, 224, 224) for i in range(3)]
    whole = features.compute(pictures, tower, "cpu", views=3, seed=5, batch=3)
    pairs = features.compute(iter(pictures), tower, "cpu", views=3, seed=5, batch=2)
    for name, column in whole.items():
        assert column.shape[:2] == (3, 3), name
        assert torch.allclose(column.float(), pairs[name].float(), atol=5e-3), name
    clean = tower.classify(pictures)[1]
    assert torch.allclose(whole["pooled"][:, 0].float(), clean, atol=5e-3), "view 0 is the clean picture"
    assert not torch.allclose(whole["pooled"][:, 1].float(), clean, atol=0.1), "the others are not"


@given(seeds)
def test_paths_stay_inside_and_move_steadily(seed: int) -> None:
    crops, flips, lights = features.draw(4, 6, torch.Generator().manual_seed(seed))
    assert (crops[..., :2].abs() + crops[..., 2:] <= 1 + 1e-5).all(), "a view would leave the picture"
    assert (crops[:, 1:, 2:].prod(-1).sqrt() >= features.SMALLEST - 1e-3).all()
    steps = crops[:, 2:] - crops[:, 1:-1]
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=1e-5)
    assert set(flips.tolist()) <= {1.0, -1.0}
    assert (lights[:, 0] == 1).all() and ((lights - 1).abs() <= features.LIGHT + 1e-5).all()


def test_rendering_crops_flips_and_lights() -> None:
    rgb = torch.zeros(1, 3, 8, 8)
    rgb[..., :4] = 100.0  # the left half is bright
    whole, left = [0.0, 0.0, 1.0, 1.0], [-0.5, 0.0, 0.5, 1.0]
    crops, lights = torch.tensor([[whole, whole, left]]), torch.tensor([[[1.0, 1.0], [1.0, 1.5], [1.0, 1.0]]])
    views = features.render(rgb, crops, torch.tensor([-1.0]), lights, (8, 8))
    assert torch.allclose(views[0].permute(2, 0, 1), rgb[0], atol=1e-3), "view 0 is untouched"
    assert torch.allclose(views[1].permute(2, 0, 1), rgb[0].flip(-1) * 1.5, atol=1e-3)
    assert (views[2][:, 1:] > 99).all(), "the crop shows the bright half only"
