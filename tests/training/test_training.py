"""Training on a tiny network: losses fall, batches keep their promises, LoRA folds in exactly, a run can be resumed."""

import argparse
import itertools
import json
import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.layers.mamba2 import MixerConfig
from pipeline.layers.vamba import VambaConfig
from pipeline.models.embedded_net import EmbeddedConfig, EmbeddedNet
from pipeline.models.embedded_reading import ANSWER, END
from pipeline.models.shipped import merged
from pipeline.questions.locator import PLANS
from pipeline.questions.planner import READ
from pipeline.towers.frame_tower import labels
from pipeline.training import train as training
from pipeline.training.batches import GROUP, PAIR_TOKENS, TOKENS_PER_ROW, Batches, Scribe, Split
from pipeline.training.data import Picture
from pipeline.training.episodes import VIEWS, World
from pipeline.training.student import CONFIG, LoRALinear, Trainer, flat_table, with_lora
from tests.conftest import gap

VOCAB, WIDTH = 1200, 32
MIXER = MixerConfig(d_model=WIDTH, d_state=8, headdim=8, ssd_block=16)
NET = dict(
    d_model=WIDTH, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=48, vocab=VOCAB, qkv_bias=False, tie_embeddings=True
)
CPU = torch.device("cpu")


class Words:
    """A tokenizer whose tokens are words, numbered as they come up, and that can be read back. 0 is never a word."""

    def __init__(self):
        self.words: list[str] = ["(padding)"]

    def __call__(self, text, add_special_tokens=True):
        pieces = re.findall(r"<\|\w+\|>|\w+|[^\w ]", text)
        self.words += [w for w in dict.fromkeys(pieces) if w not in self.words]
        return {"input_ids": [self.words.index(w) % VOCAB for w in pieces]}

    def read(self, ids) -> list[str]:
        return [self.words[i] for i in ids]


def album() -> list[Picture]:
    """60 pictures with made-up captions or class names, a third of them held out."""
    who, where = (
        ("A brown dog", "A small boy", "Two women", "A man in a red shirt", "A black cat"),
        ("grass", "beach", "street"),
    )
    does = ("runs on the", "sits on the", "jumps over the", "plays on the")
    splits, found = itertools.cycle(("train", "train", "dev", "train", "test", "train")), []
    for i, (a, b, c) in enumerate(itertools.islice(itertools.product(who, does, where), 40)):
        captions = tuple(
            f"{a} {b} {c}{end}" for end in (".", " in the sun.", " near a tree.", " today.", "  with a ball.")
        )
        found.append(Picture(f"{i}.jpg", "flickr", next(splits), captions))
    for i in range(0, 1000, 50):
        found.append(Picture(f"{i:04d}_x_y.jpg", "imagenet", next(splits), (), labels()["imagenet"][i]))
    return found


def features(count: int) -> dict[str, torch.Tensor]:
    """The towers' findings, made up: every picture its own, its views nearly alike."""
    dice = torch.Generator().manual_seed(5)

    def alike(*shape: int) -> torch.Tensor:
        own = torch.rand(count, 1, *shape, generator=dice)
        return (own + 0.05 * torch.rand(count, VIEWS, *shape, generator=dice)).half()

    classes = torch.randint(0, 1000, (count, 1, 5), generator=dice).expand(-1, VIEWS, -1)
    det_ids = torch.randint(-1, 80, (count, 1, 8), generator=dice).expand(-1, VIEWS, -1)
    return {
        "grid": alike(9, 1280),
        "pooled": alike(1280),
        "classes": classes.short(),
        "class_probs": alike(5) / 5,
        "det": alike(400),
        "det_ids": det_ids.short(),
        "det_scores": alike(8),
        "det_boxes": alike(8, 4),
    }


@pytest.fixture(scope="module")
def world() -> World:
    return World(album())


@pytest.fixture(scope="module")
def table(world) -> dict[str, torch.Tensor]:
    return features(len(world.pictures))


@pytest.fixture
def words() -> Words:
    return Words()


def members(world: World, split: str) -> np.ndarray:
    return np.array([i for i, p in enumerate(world.pictures) if p.split == split])


@pytest.fixture
def batches(world, table, words):
    """batches(train=True, seed=0) -> Batches of training pictures or, held-out worded, of dev pictures."""
    notes = flat_table({n: t for n, t in table.items() if n not in ("grid", "pooled", "det")}, "cpu")

    def make(train: bool = True, seed: int = 0, scale: float = 0.05) -> Batches:
        split = Split(members(world, "train" if train else "dev"), train)
        return Batches(Scribe(world, notes, words, split), seed, pairs=12, scale=scale, longest=40, contrasts=2)

    return make


def net(twin: bool = False) -> EmbeddedNet:
    torch.manual_seed(0)
    own = {"cross_layers": (), "mixer": None} if twin else {"cross_layers": (1, 2, 3), "mixer": MIXER}
    cfg = EmbeddedConfig(VambaConfig(**NET, **own), 1, 0 if twin else 2, 0.3, CONFIG["calibration"], twin)
    made = EmbeddedNet(cfg)
    torch.nn.init.normal_(made.vamba.model.embed_tokens.weight, std=0.3)
    with_lora(made.vamba, torch.float32)
    return made


@pytest.fixture
def trainer(table):
    return lambda twin=False: Trainer(net(twin), flat_table(table, "cpu"))


def optimiser(trainer: Trainer, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW(training.groups(trainer.net, lr), betas=(0.9, 0.98))


def total(trainer: Trainer, batch: dict, head: int) -> float:
    trainer.eval()
    torch.manual_seed(0)  # the pairs' seconds are drawn
    with torch.no_grad():
        losses = training.measure(trainer, batch, head, CPU)
    return float(sum(weight * losses[name] for name, weight in training.WEIGHTS.items()))


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("twin", [False, True], ids=["vamba", "twin"])
def test_steps_lower_the_loss_and_leave_the_language_model_alone(batches, trainer, twin):
    made, student = batches(), trainer(twin)
    batch, head = next(iter(made)), len(made.scribe.head)
    frozen = {n: p.clone() for n, p in student.net.named_parameters() if not p.requires_grad}
    optimise, before = optimiser(student), total(student, batch, head)
    for _ in range(12):
        losses = training.step_once(student, optimise, batch, 1.0, head, CPU)
    assert all(torch.isfinite(losses[name]) for name in training.WEIGHTS)
    assert total(student, batch, head) < 0.8 * before
    now = dict(student.net.named_parameters())
    assert frozen and all(torch.equal(now[n], p) for n, p in frozen.items())


@pytest.mark.parametrize("twin", [False, True], ids=["vamba", "twin"])
def test_every_trained_weight_learns(batches, trainer, twin):
    made, student = batches(), trainer(twin)
    optimise = optimiser(student)
    before = {n: p.clone() for n, p in training.trained(student.net).items()}
    for batch in itertools.islice(made, 2):  # lora_a moves only after lora_b has
        training.step_once(student, optimise, batch, 1.0, len(made.scribe.head), CPU)
    still = [n for n, p in training.trained(student.net).items() if torch.equal(p, before[n])]
    assert not still, still
    assert any("lora_a" in n for n in before) and any("mixer" in n for n in before) == (not twin)


def test_an_answer_learns_only_from_its_own_tokens(batches, trainer):
    made, student = batches(), trainer().eval()
    batch, head = next(iter(made)), len(made.scribe.head)
    place = torch.arange(TOKENS_PER_ROW)
    behind = place >= batch["length"][:, None]
    noisy = batch | {"ids": torch.where(behind, torch.randint(1, VOCAB, batch["ids"].shape), batch["ids"])}
    assert behind.any() and total(student, noisy, head) == pytest.approx(total(student, batch, head), rel=1e-5)
    answers = (place >= batch["answer"][:, None]) & ~behind
    other = batch | {"ids": torch.where(answers, (batch["ids"] + 7) % VOCAB, batch["ids"])}
    assert total(student, other, head) != pytest.approx(total(student, batch, head), rel=1e-5)


@pytest.mark.parametrize("twin", [False, True], ids=["vamba", "twin"])
def test_frames_after_the_asking_are_not_seen(batches, trainer, twin):
    made, student = batches(), trainer(twin).eval()
    batch, head = made.batch(np.random.default_rng(3), 12, 1, 60), len(made.scribe.head)
    asked_at, shot = batch["asked_at"], batch["shot_of_frame"][0]
    searching = {i: batch["searched"] & (asked_at < i) & (shot[asked_at] == shot[i]) for i in range(1, 12)}
    cut = max(searching, key=lambda i: int(searching[i].sum()))  # in the middle of a shot that is searched
    assert searching[cut].any()
    rows = asked_at < cut
    batch = {n: t[rows] if len(t) == len(rows) else t for n, t in batch.items()}
    frames = batch["frames"].clone()
    frames[:, cut:, 0] = (frames[:, cut:, 0] + 1) % 60
    assert total(student, batch | {"frames": frames}, head) == pytest.approx(total(student, batch, head), rel=1e-6)
    frames[:, 0, 0] = (frames[:, 0, 0] + 1) % 60
    assert total(student, batch | {"frames": frames}, head) != pytest.approx(total(student, batch, head), rel=1e-6)


# ---------------------------------------------------------------- batches


def some(batches: Batches, count: int = 6) -> Iterator[dict[str, torch.Tensor]]:
    return itertools.islice(batches, count)


@pytest.mark.parametrize("train", [True, False], ids=["train", "dev"])
def test_rows_are_question_note_answer(batches, words, train):
    made = batches(train)
    turn, end = words.read(made.scribe.ids(ANSWER)), words.read(made.scribe.ids(END))
    for batch in some(made):
        for ids, q0, q1, answer, length in zip(*(batch[n].tolist() for n in ("ids", "q0", "q1", "answer", "length"))):
            assert len(made.scribe.head) <= q0 < q1 < answer < length <= TOKENS_PER_ROW
            assert 0 not in ids[:length] and set(ids[length:]) <= {0}
            assert ids[: len(made.scribe.head)] == made.scribe.head
            asked = words.read(ids[q0:q1])
            assert asked[:2] == ["<|im_start|>", "user"] and asked[-1] == "\n" and "<|im_end|>" not in asked
            told = words.read(ids[q1:answer])
            assert told[0] == "(" and told[-len(turn) :] == turn
            written = words.read(ids[answer:length])
            assert length == TOKENS_PER_ROW or (written[-1:] == end and end[0] not in written[:-1])


@pytest.mark.parametrize("train", [True, False], ids=["train", "dev"])
def test_what_is_read_and_sought_was_shown_by_the_asking(batches, train):
    plans, short = set(), 0
    for batch in some(batches(train)):
        asked_at, episode, read = batch["asked_at"], batch["episode"], batch["read"]
        assert read.shape[1] == READ and (read <= asked_at[:, None]).all() and (read[:, 0] >= 0).all()
        assert ((read >= 0).int().diff(dim=1) <= 0).all(), "places without a frame come last"
        real = read[:, 1:] >= 0
        assert (read.diff(dim=1)[real] > 0).all(), "each frame once, in order"
        short += int((~real).sum())
        assert (asked_at < batch["frames"].shape[1]).all() and (asked_at >= 0).all()
        assert (episode < len(batch["frames"])).all() and (batch["plan"] < len(PLANS)).all()
        for row, shots in enumerate(batch["target"]):
            begun = batch["shot_of_frame"][episode[row], : asked_at[row] + 1].unique().tolist()
            assert set(shots.nonzero()[:, 0].tolist()) <= set(begun)
        plans |= set(batch["plan"].tolist())
    assert short, "some moments have fewer frames than are read"
    assert len(plans) > 6, "the batches practise most of what can be asked"


def test_some_searches_are_in_vain_and_most_are_not(batches):
    batch = batches().batch(np.random.default_rng(0), 40, 8, 12)
    searched, real = batch["searched"], batch["target"].any(1)
    assert 0 < (searched & ~real).sum() < (searched & real).sum()


def test_batches_come_from_their_seed(batches):
    first, again, other = (next(iter(batches(seed=s))) for s in (1, 1, 2))
    assert first.keys() == again.keys() and all(torch.equal(first[n], again[n]) for n in first)
    assert first["frames"].shape != other["frames"].shape or not torch.equal(first["frames"], other["frames"])


def some_contrast(made: Batches) -> dict[str, torch.Tensor]:
    return next(b for b in itertools.islice(made, 20) if len(b["contrast_ids"]))


def test_every_answer_of_a_group_stands_behind_every_question(batches, words):
    batch = some_contrast(batches(scale=0.3))
    of, ids = batch["contrast_of"].view(-1, GROUP, GROUP), batch["contrast_ids"]
    assert len(ids) % GROUP**2 == 0 and (of == of[:, :, :1]).all() and len(of[:, :, 0].unique()) == of.shape[0] * GROUP
    first, last = batch["contrast_answer"], batch["contrast_length"]
    rows = [(tuple(r[:a].tolist()), tuple(r[a:z].tolist())) for r, a, z in zip(ids, first, last)]
    for group in range(len(of)):
        block = [rows[group * GROUP**2 + i * GROUP : group * GROUP**2 + (i + 1) * GROUP] for i in range(GROUP)]
        assert all(len({prompt for prompt, _ in question}) == 1 for question in block), "one prompt, eight answers"
        assert all([a for _, a in question] == [a for _, a in block[0]] for question in block)
        for i, question in enumerate(block):
            k = int(of[group, i, 0])
            own = batch["ids"][k, : batch["length"][k]].tolist()
            assert own == [*question[i][0], *question[i][1]], "the right answer stands on the diagonal"
            assert ":" not in words.read(question[i][1])


@pytest.mark.parametrize("twin", [False, True], ids=["vamba", "twin"])
def test_telling_moments_apart_is_learnt_and_needs_the_pictures(batches, trainer, twin):
    made, student = batches(scale=0.3), trainer(twin)
    batch, head = some_contrast(made), len(made.scribe.head)

    def contrast(batch: dict) -> float:
        torch.manual_seed(0)
        return training.held_out(student, [batch], head, CPU)["contrast"]

    before, optimise = contrast(batch), optimiser(student)
    same = contrast(batch | {"read": torch.zeros_like(batch["read"])}) if not twin else None
    for _ in range(10):
        training.step_once(student, optimise, batch, 1.0, head, CPU)
    assert contrast(batch) < (0.99 if twin else 0.95) * before
    assert same is None or same != before


def test_pairs_fit_their_rows(batches):
    made = batches()
    batch = next(iter(made))
    assert (batch["pair_q1"] > len(made.scribe.head)).all() and (batch["pair_q1"] <= PAIR_TOKENS).all()
    place = torch.arange(PAIR_TOKENS)
    assert ((batch["pair_ids"] == 0) == (place >= batch["pair_q1"][:, None])).all()
    assert ((batch["pair_view"] >= 0) & (batch["pair_view"] < VIEWS)).all()


def test_held_out_pictures_are_never_trained_on(world, table):
    args = argparse.Namespace(workers=0, scale=0.05, pairs=24, longest=40, seed=3, contrasts=1)
    loaders = training.make_loaders(args, world, list(world.pictures), table)
    shown = []
    for loader in loaders[:2]:
        seen = [torch.cat([b["frames"][..., 0].flatten(), b["pair_picture"]]) for b in itertools.islice(loader, 5)]
        shown.append({world.pictures[i].split for i in torch.cat(seen).tolist()})
    assert shown == [{"train"}, {"dev"}]
    rows = next(iter(loaders[0]))["pair_ids"]
    assert loaders[2] > 5 and (rows[:, : loaders[2]] == rows[0, : loaders[2]]).all(), "every row begins with the head"


# ---------------------------------------------------------------- LoRA


@pytest.fixture
def changed() -> EmbeddedNet:
    """A network whose low-rank changes are far from zero."""
    made = net()
    for name, p in made.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(p, std=0.3)
    return made.requires_grad_(True)


def test_merging_folds_low_rank_changes_into_the_weights(changed):
    changed = changed.eval()
    linears = {n: m for n, m in changed.named_modules() if isinstance(m, LoRALinear)}
    lm = {
        n: p
        for n, p in changed.vamba.state_dict().items()
        if not any(part in n for part in ("lora", "cross_attn", "mixer", "alpha", "lm_head"))
    }
    own = {n: p for n, p in changed.state_dict().items() if n.removeprefix("vamba.") not in lm and "lm_head" not in n}
    plain = merged(changed.cfg, lm, own, CONFIG["lora_scale"])
    folded = dict(plain.named_modules())
    assert len(linears) == 4 * 7
    for name, linear in linears.items():
        x = torch.randn(3, linear.weight.shape[1])
        assert gap(folded[name](x), linear(x)) < 1e-5, name
        assert gap(torch.nn.functional.linear(x, linear.weight), linear(x)) > 1e-2, "the change is there to be lost"
    assert torch.equal(plain.locator.key[0].weight, changed.locator.key[0].weight)


# ---------------------------------------------------------------- a run: progress, log, checkpoints


def test_progress_ends_by_steps_or_minutes_whichever_comes_first(monkeypatch):
    now = [50.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    progress = training.Progress(steps=200, minutes=10, warmup=20)
    assert progress.share(0) == 0 and progress.share(100) == 0.5 and progress.share(200) == 1
    rates = [progress.factor(s) for s in range(201)]
    assert np.all(np.diff(rates[:20]) > 0) and np.all(np.diff(rates[20:]) < 0) and max(rates) <= 1
    assert rates[0] <= 0.05 and rates[-1] == pytest.approx(0.02)
    now[0] += 300
    assert progress.share(0) == 0.5 and progress.share(150) == 0.75
    now[0] += 3000
    assert progress.share(0) > 1 and progress.factor(150) == pytest.approx(0.02)


def test_the_log_is_one_table_however_often_it_is_opened(tmp_path):
    values = {name: i / 8 for i, name in enumerate(training.Table.COLUMNS)}
    for step in (5, 10):
        training.Table(tmp_path / "log.tsv").write(step, 1.6, values, "train")
    head, *rows = [line.split("\t") for line in (tmp_path / "log.tsv").read_text().splitlines()]
    assert head == ["split", "step", "seconds", *training.Table.COLUMNS]
    assert [row[:3] for row in rows] == [["train", "5", "2"], ["train", "10", "2"]]
    assert [float(x) for x in rows[1][3:]] == pytest.approx(list(values.values()), abs=1e-3)


def test_a_restored_run_goes_on_as_if_never_stopped(batches, trainer, tmp_path):
    made, first, second = batches(), trainer(), trainer()
    head, (one, two) = len(made.scribe.head), some(made, 2)
    args = argparse.Namespace(resume=True, device="cpu")
    optimise, late = optimiser(first), optimiser(second)
    assert training.restore(args, second, late, training.Average(second.net), tmp_path) == 0, (
        "nothing to go on from yet"
    )
    training.step_once(first, optimise, one, 1.0, head, CPU)
    kept, found = training.Average(first.net), training.Average(second.net)
    kept.judge(0.5)
    kept.update()
    training.checkpoint(first, optimise, kept, 7, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert training.restore(argparse.Namespace(resume=False, device="cpu"), second, late, None, tmp_path) == 0
    assert training.restore(args, second, late, found, tmp_path) == 7
    assert found.lowest == 0.5 and all(torch.equal(found.best[n], kept.best[n]) for n in kept.best)
    assert all(torch.equal(found.held[n], kept.held[n]) for n in kept.held)
    for student, steps in ((first, optimise), (second, late)):
        torch.manual_seed(1)
        training.step_once(student, steps, two, 0.5, head, CPU)
    mine, theirs = training.trained(first.net), training.trained(second.net)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_the_average_trails_the_weights_and_swaps_back(trainer):
    student = trainer()
    average = training.Average(student.net, keep=0.75)
    name, weight = next((n, p) for n, p in student.net.named_parameters() if p.requires_grad)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1.0)
    average.update()
    average.swap()
    assert gap(weight.detach(), before + 0.25) < 1e-5, name
    average.swap()
    assert torch.equal(weight.detach(), before + 1)


def test_a_reader_trained_on_leaves_what_finds_as_it_was(batches, trainer, tmp_path):
    first, made = trainer(), batches(scale=0.3)
    batch, head = next(iter(made)), len(made.scribe.head)
    training.step_once(first, optimiser(first), batch, 1.0, head, CPU)
    training.save(first.net, {"twin": False}, tmp_path)
    second = trainer()
    frozen = training.start_from(second.net, tmp_path, reader_only=True)
    begun = {n: p.clone() for n, p in second.net.named_parameters()}
    training.step_once(second, optimiser(second), batch, 1.0, head, CPU)
    changed = {n for n, p in second.net.named_parameters() if not torch.equal(p, begun[n])}
    assert frozen.keys() | changed <= training.trained(first.net).keys() and not changed & frozen.keys()
    finding = ("frames.", "locator.", "vamba.model.layers.0.", "vamba.model.layers.1.vision_mixer")
    assert all(n in frozen for n in training.trained(first.net) if n.startswith(finding))
    assert any("cross_attn" in n for n in changed) and any("layers.3" in n and "lora" in n for n in changed)
    training.save(second.net, {"twin": False}, tmp_path / "on", frozen)
    assert training.finished(tmp_path / "on").keys() == training.finished(tmp_path).keys()


def test_the_best_averages_are_what_is_left(trainer):
    student = trainer()
    average, weight = training.Average(student.net, keep=0.0), next(iter(training.trained(student.net).values()))
    seen = []
    for loss in (3.0, 1.0, 2.0):  # the second is the best
        weight.add_(1.0)
        average.update()
        average.judge(loss)
        seen.append(weight.clone())
    average.finish()
    assert torch.equal(weight, seen[1]) and average.lowest == 1.0


def test_a_run_writes_log_checkpoint_and_weights_and_resumes(batches, trainer, tmp_path):
    made = batches()
    args = argparse.Namespace(
        out=tmp_path, steps=2, minutes=5, lr=1e-3, every=1, save_minutes=0, resume=False, device="cpu", seed=0
    )
    fixed = itertools.cycle(some(made, 2))
    training.train(args, {"twin": False}, trainer(), (fixed, fixed, len(made.scribe.head)), CPU)
    args.steps, args.resume = 3, True
    training.train(args, {"twin": False}, trainer(), (fixed, fixed, len(made.scribe.head)), CPU)
    rows = [line.split("\t")[:2] for line in (tmp_path / "log.tsv").read_text().splitlines()[1:]]
    assert rows == [["dev", "0"], ["train", "1"], ["train", "2"], ["dev", "2"], ["train", "3"], ["dev", "3"]]
    assert json.loads((tmp_path / "config.json").read_text()) | {"dev_answer_loss": 0} == {
        "twin": False,
        "steps": 3,
        "seed": 0,
        "dev_answer_loss": 0,
    }
    saved = load_file(tmp_path / "trained-00001.safetensors")
    assert saved.keys() == training.trained(net()).keys() and all(torch.isfinite(t).all() for t in saved.values())
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 3
