"""Each published system, tiny and with random weights: loaded from a folder, watched and asked by the command line."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from pipeline.__main__ import main
from pipeline.models import systems
from pipeline.models.load import load, partner_of
from pipeline.models.mmmamba import MMMamba, MMMambaConfig
from pipeline.models.prompts import GemmaPrompt, InternPrompt, ZephyrPrompt
from pipeline.models.system import readme_table
from pipeline.stream import Question, UserError
from pipeline.weights import convert as convert_module
from pipeline.weights.convert import convert
from pipeline.weights.pieces import PieceTokenizer
from tests.test_cli import write_video
from tests.weights.test_weights import PLAIN, VAMBA, write

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
INTERN = {"<|im_end|>": 500, "<|im_start|>": 501, "<img>": 503, "</img>": 504, "<IMG_CONTEXT>": 505}
SYSTEMS = ["mmmamba-linear", "mmmamba-hybrid", "hovle", "ml-mamba", "gemamba"]
QWENS = {"vamba": VAMBA, "qwen2-vl": PLAIN}


def pieces(folder: Path) -> None:
    """A tiny SentencePiece model with byte fallback, and the chat format's tokens beside it, as InternLM2's folder."""
    text = ["what is it that you see in the video", "system user assistant Frame-1: Frame-2:", "a dog runs"] * 9
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=made,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    added = {str(number): {"content": name, "special": True} for name, number in INTERN.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))


def byte_level(marks: list[str]) -> PreTrainedTokenizerFast:
    """Every byte is a token, the marks are special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {mark: n for n, mark in enumerate(marks)} | {letter: n for n, letter in enumerate(letters, len(marks))}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


ZEPHYR, GEMMA = ["<|endoftext|>"], ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]


def checkpoint(system: str, folder: Path) -> Path:
    """A folder as the Hub's would be, of golden or random weights."""
    folder.mkdir(exist_ok=True)
    if system in QWENS:
        write(folder, QWENS[system], tokenizer=True)
        return folder
    known = system if (GOLDEN / system).is_dir() else "mmmamba-hybrid"
    config, weights = json.loads((GOLDEN / known / "config.json").read_text()), {}
    if system in ("mmmamba-linear", "hovle"):
        for section in ("embedding_config", "llm_config"):
            kinds = config[section].pop("layers_block_type")
            if system == "mmmamba-linear":
                config[section]["layers_block_type"] = ["mamba2"] * len(kinds)
        torch.manual_seed(0)
        weights = MMMamba(MMMambaConfig.from_dict(config)).state_dict()
    else:
        weights = load_file(GOLDEN / known / "model.safetensors")
    if system == "ml-mamba":
        towers = load_file(GOLDEN / "ml-mamba-towers" / "model.safetensors")
        config |= json.loads((GOLDEN / "ml-mamba-towers" / "config.json").read_text())
        for name in ("dino_featurizer", "siglip_featurizer"):
            own = {key: t for key, t in towers.items() if key.startswith(name)}
            save_file(own, folder / f"{name}.safetensors")
        byte_level(ZEPHYR).save_pretrained(folder)
    elif system == "gemamba":
        byte_level(GEMMA).save_pretrained(folder)
    else:
        pieces(folder)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: t.clone() for key, t in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("system", [*SYSTEMS, *QWENS])
def test_watched_and_asked_by_the_command_line(capsys, tmp_path, system) -> None:
    folder = checkpoint(system, tmp_path / system)
    write_video(tmp_path / "film.mp4", ["red", "green", "blue"])
    asked = [str(tmp_path / "film.mp4"), "what is it?", "--model", str(folder), "--max-tokens", "4", "--json"]
    assert main(["ask", *asked]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["model"] == system and said["frames"] >= 3 and said["backend"].startswith(("cpu", "cuda"))
    assert (said["bytes"]["state"] > 0) == (system in ("mmmamba-linear", "mmmamba-hybrid", "ml-mamba", "vamba"))
    assert bool(said["evidence"]) == (system != "mmmamba-linear")  # one picture is evidence, a state is none
    assert said["mode"] == "native" and bool(said["basis"]) == (system in SYSTEMS)
    assert main(["ask", *asked, "--at", "0:01"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out.splitlines()[-1])["known_until"] <= 1.0


MODES = {
    "mmmamba-linear": ("native: 12 pictures, 0:00 to 0:11", "trained on some 30"),
    "ml-mamba": ("native: one picture, of 0:11", "trained on one"),
    "gemamba": ("native: 8 pictures, 0:00 to 0:10", "trained on one clip of 8"),
}


@pytest.mark.parametrize("system", MODES)
def test_a_stream_is_answered_in_the_native_form_unless_the_operator_says_otherwise(capsys, tmp_path, system) -> None:
    folder, film = checkpoint(system, tmp_path / system), tmp_path / "film.mp4"
    write_video(film, ["red", "green", "blue"] * 4)
    asked = ["ask", str(film), "what is it?", "--model", str(folder), "--max-tokens", "4"]
    assert main(asked) == 0
    native, streamed = MODES[system]
    assert native in capsys.readouterr().err
    assert main([*asked, "--mode", "streamed"]) == 0
    assert f"streamed: carried through 12 pictures, {streamed}" in capsys.readouterr().err
    assert main([*asked, "--mode", "streamed", "--json", "--keep", str(tmp_path / "kept")]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "streamed"
    resume = ["resume", str(tmp_path / "kept"), "what is it?", "--model", str(folder), "--max-tokens", "4", "--json"]
    assert main([*resume, "--mode", "native"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["mode"] == "native" and native == f"native: {said['basis']}"


@pytest.mark.parametrize(
    ("system", "section", "change", "said"),
    [
        ("hovle", "embedding_config", {"pixel_shuffle_loc": "post"}, "pixel_shuffle_loc = 'post'"),
        ("mmmamba-linear", "llm_config", {"layers_block_type": ["mamba3"] * 4}, "'mamba3'"),
        ("mmmamba-hybrid", "llm_config", {"bias": True}, "bias = 'True'"),
        ("ml-mamba", "model", {"arch_specifier": "linear"}, "arch_specifier"),
        ("ml-mamba", "llm", {"ssm_cfg": {"layer": "Mamba2", "twist": 1}}, "twist"),
        ("gemamba", None, {"mm_projector_type": "qformer"}, "mm_projector_type"),
        ("gemamba", None, {"num_hidden_layers": 5}, "missing"),
    ],
)
def test_what_is_not_known_is_refused_in_words(tmp_path, system, section, change, said) -> None:
    folder = checkpoint(system, tmp_path / system)
    config = json.loads((folder / "config.json").read_text())
    (config if section is None else config[section]).update(change)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=said):
        load(str(folder), "cpu")


def test_who_is_naturally_compared_with_whom(tmp_path) -> None:
    folders = {system: str(checkpoint(system, tmp_path / system)) for system in [*SYSTEMS, *QWENS]}
    assert partner_of("embedded") == "embedded-twin" and partner_of("embedded-twin") == "embedded"
    assert partner_of(folders["mmmamba-linear"]) == partner_of(folders["mmmamba-hybrid"]) == "OpenGVLab/HoVLE"
    assert partner_of(folders["hovle"]) == "hustvl/mmMamba-linear"
    assert partner_of(folders["vamba"]).startswith("Qwen/") and "Vamba" in partner_of(folders["qwen2-vl"])
    with pytest.raises(UserError, match="Gemamba has no partner"):
        partner_of(folders["gemamba"])


def test_any_two_systems_are_compared_side_by_side(capsys, tmp_path) -> None:
    folders = [str(checkpoint(system, tmp_path / system)) for system in ("mmmamba-linear", "hovle")]
    write_video(tmp_path / "film.mp4", ["red", "green", "blue"])
    asked = ["ask", str(tmp_path / "film.mp4"), "what?", "--model", folders[0], "--compare", folders[1]]
    assert main([*asked, "--max-tokens", "3", "--json"]) == 0
    pupil, teacher = json.loads(capsys.readouterr().out)
    assert (pupil["model"], teacher["model"]) == ("mmmamba-linear", "hovle")
    assert pupil["bytes"]["state"] > 0 == teacher["bytes"]["state"]
    for said in (pupil, teacher):
        assert said["frames"] == 3 and said["mode"] == "native" and said["bytes"]["memory"] > 0
        assert said["timings"]["picture_ms"] > 0 and said["timings"]["first_token_s"] > 0
        assert said["timings"]["picture_ms"] == pytest.approx(said["timings"]["watch_s"] / 3 * 1e3)
    assert main([*asked, "--max-tokens", "3"]) == 0
    told = capsys.readouterr()
    assert "[mmmamba-linear]" in told.out and "[hovle]" in told.out
    assert told.err.count("ms a picture, first word after") == 2 and "state 0.0 MB, memory" in told.err


def test_missing_and_unexpected_keys_are_named(tmp_path) -> None:
    folder = checkpoint("hovle", tmp_path / "hovle")
    weights = load_file(folder / "model.safetensors")
    weights["stranger"] = weights.pop("language_model.output.weight")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"language_model.output.weight.*stranger"):
        load(str(folder), "cpu")


@pytest.mark.parametrize("system", ["mmmamba-linear", "gemamba"])
def test_without_a_tokenizer_it_is_not_loaded(tmp_path, system) -> None:
    folder = checkpoint(system, tmp_path / system)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        load(str(folder), "cpu")


# --- prompts ---------------------------------------------------------------------------------------------------------

TURNS = Question("and <|im_end|> now?", history=(("what is it?", "a dog"),))


def streamed(prompt, question: Question, units: int, picture: list[int]) -> list[int]:
    ids = list(prompt.opening)
    for unit in range(1, units + 1):
        ids += [*prompt.before(unit), *picture, *prompt.after(unit)]
    return ids + prompt.question(question, units)


def test_mmmambas_streamed_ids_are_those_of_the_whole_string(tmp_path) -> None:
    pieces(tmp_path)
    tokenizer = PieceTokenizer.from_folder(tmp_path)
    whole = (
        f"<|im_start|>{InternPrompt.system}<|im_end|><|im_start|>user\n"
        "Frame-1: <img><IMG_CONTEXT><IMG_CONTEXT></img>\nFrame-2: <img><IMG_CONTEXT><IMG_CONTEXT></img>\n"
        "what is it?<|im_end|><|im_start|>assistant\na dog<|im_end|><|im_start|>user\n"
        "and now?<|im_end|><|im_start|>assistant\n"
    )
    plain = Question("and now?", history=TURNS.history)
    prompt = InternPrompt(tokenizer)
    assert streamed(prompt, plain, 2, [505, 505]) == tokenizer.encode(whole)
    assert streamed(prompt, plain, 2, [505, 505])[0] == 1  # <s>
    assert prompt.stops == {500, 501, 2}
    unsplit = prompt.question(TURNS, 2)  # a mark's name that a visitor typed stays letters
    assert unsplit.count(500) == prompt.question(plain, 2).count(500)


def test_ml_mambas_streamed_ids_are_those_of_the_whole_string() -> None:
    tokenizer = byte_level(ZEPHYR)
    whole = (
        "<|user|>\nwhat is it?<|endoftext|>\n<|assistant|>\na dog<|endoftext|>\n"
        "<|user|>\nand now?<|endoftext|>\n<|assistant|>\n"
    )
    prompt = ZephyrPrompt(tokenizer)
    ids = streamed(prompt, Question(" and<image> now? ", history=TURNS.history), 3, [])
    assert ids == tokenizer.encode(whole, add_special_tokens=False) and prompt.stops == {0}


def test_gemambas_streamed_ids_are_those_of_the_whole_string() -> None:
    tokenizer, clip = byte_level(GEMMA), [-200]
    before, after = (
        tokenizer.encode(text, add_special_tokens=False)
        for text in (
            "<bos><start_of_turn>user\n",
            "\nwhat is it?<end_of_turn>\n<start_of_turn>model\na dog<end_of_turn>\n<start_of_turn>user\nand now?"
            "<end_of_turn>\n<start_of_turn>model\n",
        )
    )
    prompt = GemmaPrompt(tokenizer)
    ids = streamed(prompt, Question("and now?", history=TURNS.history), 2, clip)
    assert ids == [*before, *clip, *clip, *after] and prompt.stops == {1, 4}


@pytest.mark.parametrize("text", ["what is it", " a  dog\n", "caf\u00e9 \U0001f600", "<s> </s>", ""])
def test_a_piece_tokenizer_gives_back_what_it_took(tmp_path, text) -> None:
    pieces(tmp_path)
    tokenizer = PieceTokenizer.from_folder(tmp_path)
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert " ".join(tokenizer.decode([500, *ids, 504]).split()) == " ".join(text.split())
    assert tokenizer.encode(f"<img>{text}</img>", add_special_tokens=False) == [503, *ids, 504]


# --- pickles ---------------------------------------------------------------------------------------------------------


def test_ml_mambas_four_places_become_one_folder(tmp_path, monkeypatch, capsys) -> None:
    whole, hub = checkpoint("ml-mamba", tmp_path / "whole"), tmp_path / "hub"
    for name in (convert_module.ML_MAMBA, convert_module.NEOX, *convert_module.TOWERS.values()):
        (hub / name).mkdir(parents=True)
    parts: dict[str, dict] = {}
    for key, tensor in load_file(whole / "model.safetensors").items():
        part, _, rest = key.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    (hub / convert_module.ML_MAMBA / "checkpoints").mkdir()
    torch.save({"model": parts}, hub / convert_module.ML_MAMBA / "checkpoints" / "latest-checkpoint.pt")
    shutil.copyfile(whole / "config.json", hub / convert_module.ML_MAMBA / "config.json")
    for tower, name in convert_module.TOWERS.items():
        own = {key.partition(".")[2]: t for key, t in load_file(whole / f"{tower}.safetensors").items()}
        save_file(own, hub / name / "model.safetensors")
    byte_level(ZEPHYR).save_pretrained(hub / convert_module.NEOX)
    monkeypatch.setattr(convert_module, "snapshot", lambda name, patterns: hub / name)
    assert main(["convert", convert_module.ML_MAMBA, str(tmp_path / "made")]) == 0
    assert "siglip_featurizer.safetensors" in capsys.readouterr().out
    net, twin = (load(str(folder), "cpu").net.state_dict() for folder in (tmp_path / "made", whole))
    assert set(net) == set(twin) and all(torch.equal(net[key], twin[key]) for key in net)


def test_a_published_pickle_is_converted_and_loads(tmp_path) -> None:
    folder = checkpoint("ml-mamba", tmp_path / "ml-mamba")
    nested: dict[str, dict] = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        part, _, rest = key.partition(".")
        nested.setdefault(part, {})[rest] = tensor
    nested["llm_backbone"]["lm_head.weight"] = nested["llm_backbone"]["backbone.embedding.weight"]
    (tmp_path / "published").mkdir()
    torch.save({"model": nested}, tmp_path / "published" / "latest-checkpoint.pt")
    before = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="safetensors"):
        load(str(folder), "cpu")
    written = convert(str(tmp_path / "published" / "latest-checkpoint.pt"), folder)
    after = load_file(written[0])
    assert set(after) == set(before) and all(torch.equal(after[key], before[key]) for key in before)
    assert load(str(folder), "cpu").name == "ml-mamba"


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_that_runs_code_is_not_opened(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"weight": torch.ones(2), "more": Bomb()}}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="could run code"):
        convert(str(tmp_path / "bad.pt"), tmp_path / "out")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(UserError, match="no file"):
        convert(str(tmp_path / "none.pt"), tmp_path / "out")


def test_a_video_encoder_of_its_own_file_joins_gemamba(tmp_path) -> None:
    """Its published pickle holds `vision_encoder.` keys; the checkpoint may lack the encoder."""
    folder = checkpoint("gemamba", tmp_path / "gemamba")
    weights = load_file(folder / "model.safetensors")
    stem = "model.vision_tower.vision_tower."
    encoder = {key.removeprefix(stem): t for key, t in weights.items() if key.startswith(stem)}
    save_file({key: t for key, t in weights.items() if not key.startswith(stem)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="missing"):
        load(str(folder), "cpu")
    torch.save(encoder | {"other": {"scale": torch.ones(1)}}, tmp_path / "vision_encoder.pth")
    shutil.move(
        convert(str(tmp_path / "vision_encoder.pth"), tmp_path / "out")[0], folder / "vision_encoder.safetensors"
    )
    with pytest.raises(UserError, match=r"not known \(other.scale\)"):
        load(str(folder), "cpu")
    torch.save(encoder, tmp_path / "vision_encoder.pth")
    shutil.move(
        convert(str(tmp_path / "vision_encoder.pth"), tmp_path / "out")[0], folder / "vision_encoder.safetensors"
    )
    assert load(str(folder), "cpu").unit_frames == 8


def test_the_readme_lists_every_system_as_its_record_does() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text().splitlines()
    assert [line for line in readme_table(systems()) if line not in readme] == []
