"""How well a trained embedded model finds and reads: `python -m pipeline.training.evaluate --help`. One JSON line last.

Synthetic videos of 1, 5, 15 and 60 minutes are made from pictures never trained on. Their wordings were never trained
on either: somebody wrote them who knew neither the planner's rules nor its mistakes (wordings_test.txt). The real
planner decides from the real locate keys; eight answers are then compared by likelihood, and captions and names are
written out greedily. Calibration (how sure is sure) is fitted on dev pictures and wordings, measured on test's.
Everything runs in large batches through `student.Trainer`, whose modules are those of the product.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from pipeline.models.embedded_net import EmbeddedConfig
from pipeline.models.embedded_reading import END
from pipeline.models.shipped import merged
from pipeline.questions.asked import parse
from pipeline.questions.index import spread
from pipeline.questions.notes import Verdict
from pipeline.questions.planner import READ
from pipeline.questions.things import named_things
from pipeline.towers.frame_tower import ASSETS, FrameFeatures, labels
from pipeline.training.batches import plan_of
from pipeline.training.data import pictures
from pipeline.training.episodes import VIEWS, Episode, World, generate
from pipeline.training.evaluator import Evaluator, upto
from pipeline.training.metrics import binomial_error, bleu4, cider
from pipeline.training.student import flat_table
from pipeline.training.train import features_table
from pipeline.weights.quant import load_trained
from pipeline.weights.shipped import lm_weights

MINUTES = (1, 5, 15, 60)
EPISODES = {1: (88, 40), 5: (36, 100), 15: (20, 180), 60: (14, 320)}  # minutes: (videos, questions of each)
CALIBRATION = ((1, 30, 40), (5, 12, 80), (15, 8, 120), (60, 4, 200))  # minutes, videos, questions of each
LONGEST_TWIN = 5  # minutes: its context holds 13, and costs their square


def with_blank(flat: FrameFeatures) -> FrameFeatures:
    """One more row: a frame in which the towers saw nothing."""

    def grown(column: Tensor, empty: int) -> Tensor:
        wide = column.float() if column.is_floating_point() and not column.is_cuda else column
        wide = wide if wide.is_floating_point() else wide.long()
        return torch.cat([wide, torch.full_like(wide[:1], empty)]) if len(column) else column

    return FrameFeatures(*(grown(c, -1 if n == "det_ids" else 0) for n, c in zip(FrameFeatures._fields, flat)))


class Cell:
    """Right and wrong answers of one measure, as a share with its standard error."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def report(self) -> dict[str, float]:
        share = float(np.mean(self.values)) if self.values else math.nan
        return {
            "share": round(share, 3),
            "error": round(binomial_error(share, max(1, len(self.values))), 3),
            "n": len(self.values),
        }


def examine(e: Evaluator, episode: Episode, cells: dict[str, Cell], rng, choose: bool, variants: bool) -> None:
    """Ask everything about one video and enter the results."""
    rows = episode.frames[:, 0].astype(np.int64) * VIEWS + episode.frames[:, 1]
    kept, index = e.watch(np.append(rows, e.blank))  # the blank frame last: no question sees it but by its number
    index = upto(index, len(rows))
    asked = episode.questions
    located = e.locate([q.text for q in asked], [q.asked_at for q in asked], kept)
    verdicts = []
    for q, found in zip(asked, located):
        so_far = upto(index, q.asked_at + 1)
        verdict = e.planner.plan(parse(q.text, float(so_far.times[-1])), found, so_far)
        verdicts.append(verdict)
        judge_verdict(q, verdict, episode, cells)
    if choose:
        judge_choices(e, episode, asked, verdicts, kept, index, cells, rng, variants)


def judge_verdict(q, verdict: Verdict, episode: Episode, cells: dict[str, Cell]) -> None:
    """What the planner alone decides: times, refusals, yes or no, counts."""
    inside = any(episode.shots[s].start - 1 <= (verdict.time or 0) <= episode.shots[s].end for s in q.target_shots)
    if q.recipe == "when":
        starts = [episode.shots[s].start for s in q.target_shots]
        good = verdict.found and verdict.plan in ("find", "about") and min(abs(verdict.time - s) for s in starts) <= 5
        cells["when"].values.append(good)
        cells["present_refused"].values.append(not verdict.found)
    if q.recipe == "where_nothing":
        cells["absent_refused"].values.append(not verdict.found)
    if q.recipe == "yesno":
        cells["no" if q.absent else "yes"].values.append(verdict.found != q.absent)
    if q.recipe == "count":
        cells["count"].values.append(verdict.count == q.note_count)
        cells["count_within_10_percent"].values.append(abs((verdict.count or 0) - q.note_count) <= 0.1 * q.note_count)
    if q.recipe in ("at", "when", "after", "before", "describe", "first", "last") and q.target_shots:
        cells["evidence_inside"].values.append(verdict.found and inside)
    cells["plan"].values.append(verdict.plan == plan_of(q) or verdict.plan == "at" or q.kind == "last")


def judge_choices(e, episode, asked, verdicts, kept, index, cells, rng, variants: bool) -> None:
    """Which of eight answers is likeliest, less what is likely with nothing to look at, and (`judge_shots`) less
    what is likely at eight moments of the same video."""
    frames, blank = len(episode.frames), len(episode.frames)
    chosen = [i for i, q in enumerate(asked) if q.recipe in ("at", "after", "before") and len(q.choices) == 8]
    jobs: dict[str, list] = defaultdict(list)
    for i in chosen:
        q, v = asked[i], verdicts[i]
        now = upto(index, q.asked_at + 1)
        other = tuple(int(f) for f in rng.integers(0, q.asked_at + 1, READ))
        forms: dict[str, tuple[Verdict, tuple[int, ...], list | None]] = {
            "full": (v, v.frames, None),
            "blank": (v, (blank,), []),
        }
        if variants and not e.net.cfg.twin:
            forms |= {"words": (v, (blank,), None), "shuffled": (v._replace(frames=other), other, None)}
        for name, (verdict, read, said) in forms.items():
            prompt = e.prompt(q.text, verdict, now, float(q.asked_at), said)
            seen = -1 if e.net.cfg.twin and name != "full" else q.asked_at  # the twin is blinded by an empty context
            jobs[name] += [(prompt, e.ids(c + END), seen, read) for c in q.choices]
    scored = {}
    for name, rows in jobs.items():
        prompts, answers, seen, reads = zip(*rows)
        scored[name] = e.likelihood(prompts, answers, kept, frames + 1, seen, reads)[0].reshape(-1, 8)
    for row, i in enumerate(chosen):
        for name in scored:
            right = scored[name][row] - (scored["blank"][row] if name != "blank" else 0)
            label = asked[i].recipe + ("" if name == "full" else f"_{name}")
            cells[label].values.append(int(right.argmax()) == 0)
    if not e.net.cfg.twin:
        for i in chosen:
            judge_shots(e, episode, asked[i], verdicts[i], kept, index, cells, rng)


def judge_shots(e, episode, q, verdict: Verdict, kept, index, cells, rng) -> None:
    """The same answers by log p(answer | moment found) - log mean p(answer | moment) over eight moments of the video.

    The others are the shots that the wrong answers tell of, and any more that are needed. A caption that is likely at
    many moments says little about one (Li et al. 2016, arXiv 1510.03055); the blank memory, which no training has seen,
    measures that worse.
    """
    now = upto(index, q.asked_at + 1)
    told: dict[str, Any] = {}
    for s in episode.shots:
        picture = e.world.pictures[s.picture]
        told |= dict.fromkeys(picture.captions or (e.world.label(s.picture).lower() + ".",), s)
    others = [told.get(c, told.get(c.lower())) for c in q.choices[1:]]
    firsts = [min(s.start, q.asked_at) for s in others if s is not None and s.start <= q.asked_at]
    firsts += rng.integers(0, q.asked_at + 1, 7 - len(firsts)).tolist()
    moments = [verdict]
    for first in firsts:
        frames = now.frames_of(now.shot_of(int(first)))
        moments.append(Verdict("at", spread(frames, READ), float(now.times[frames.start])))
    put = [verdict._replace(frames=m.frames, time=m.time) for m in moments]
    prompts = [e.prompt(q.text, m, now, float(q.asked_at)) for m in put]
    answers, reads = [e.ids(c + END) for c in q.choices], [m.frames for m in moments]
    scores = e.matrix(prompts, answers, kept, len(episode.frames) + 1, q.asked_at, reads)
    owed = scores[0] - np.logaddexp.reduce(scores, 0)
    cells[f"{q.recipe}_of_shots"].values.append(int(owed.argmax()) == 0)


def calibrate(e: Evaluator, split: np.ndarray, seed: int) -> dict[str, Sequence[float]]:
    """Fit sigmoid(a * margin + b + c * ln shots) on dev pictures: for finding, for yes/no, and for one shot."""
    rng, rows = np.random.default_rng(seed), defaultdict(list)
    e.cut = fit_cut(e, split, np.random.default_rng(seed))
    for minutes, count, questions in CALIBRATION:
        if e.net.cfg.twin and minutes > LONGEST_TWIN:
            continue
        for _ in range(count):
            episode = generate(e.world, split, rng, 60 * minutes, questions, "dev")
            frames = episode.frames[:, 0].astype(np.int64) * VIEWS + episode.frames[:, 1]
            kept, index = e.watch(frames)
            asked = [q for q in episode.questions if plan_of(q) in ("find", "after", "before", "yesno", "yesno_now")]
            for q, found in zip(asked, e.locate([q.text for q in asked], [q.asked_at for q in asked], kept)):
                now = upto(index, q.asked_at + 1)
                fits = e.planner.fit(named_things(q.text), found, now)
                kind = {"yesno": "yesno", "yesno_now": "here"}.get(plan_of(q), "find")
                newest = fits.frames[list(e.planner.newest(now))]
                margin = float(np.log(np.exp(newest).mean())) if kind == "here" else float(fits.shots.max())
                rows[kind].append((margin, math.log(len(fits.shots)), 0.0 if q.absent else 1.0))
    fitted: dict[str, Sequence[float]] = {
        kind: fit(np.array(values), with_length=kind != "here") for kind, values in rows.items()
    }
    # Refusing what was there is worse than guessing: at most 8 % of what is present may be refused.
    a, b, c = fitted["find"]
    present = np.array([r for r in rows["find"] if r[2] == 1])
    fitted["find"] = (a, max(b, -float(np.quantile(a * present[:, 0] + c * present[:, 1], 0.08))), c)
    fitted["towers"] = e.planner.calibration.get("towers", (0.0, 0.0))
    return {kind: tuple(round(x, 4) for x in values) for kind, values in fitted.items()}


def fit_cut(e: Evaluator, split: np.ndarray, rng) -> float:
    """The novelty from which a new shot begins: best F1 against the true cuts of a few videos."""
    novelties: list[np.ndarray] = []
    cuts: list[np.ndarray] = []
    for _ in range(20):
        episode = generate(e.world, split, rng, 300, 1, "dev")
        rows = torch.from_numpy(episode.frames[:, 0].astype(np.int64) * VIEWS + episode.frames[:, 1]).to(e.device)
        novelties.append((1 - (e.pooled[rows][1:] * e.pooled[rows][:-1]).sum(-1)).float().cpu().numpy())
        cuts.append(np.diff(episode.shot_of_frame) > 0)
    found, true = np.concatenate(novelties), np.concatenate(cuts)
    grid = np.linspace(0.05, 0.9, 86)
    f1 = [2 * (true & (found > g)).sum() / max(1, true.sum() + (found > g).sum()) for g in grid]
    print(f"cuts: best F1 {max(f1):.3f}, within shots {np.quantile(found[~true], [0.5, 0.9, 0.99])}", flush=True)
    return round(float(grid[int(np.argmax(f1))]), 3)


def fit(rows: np.ndarray, with_length: bool, rounds: int = 2000) -> tuple[float, float, float]:
    """Logistic regression with balanced classes, by gradient descent."""
    margin, length, label = (torch.tensor(c, dtype=torch.float64) for c in rows.T)
    weight = torch.where(label == 1, 0.5 / label.mean(), 0.5 / (1 - label).mean())
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([p], lr=0.05)
    for _ in range(rounds):
        z = p[0] * margin + p[1] + p[2] * length * float(with_length)
        loss = (F.binary_cross_entropy_with_logits(z, label, weight)) + 1e-4 * p.pow(2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return tuple(p.tolist())


def captions(e: Evaluator, chosen: Sequence[int], rng) -> dict[str, object]:
    """Captions of test pictures: written, and the loss of the references with right, shuffled and blank pictures."""
    rows = np.array([[p * VIEWS + v for v in (0, 1, 2, 3)] for p in chosen])
    kept, index = e.watch(np.append(rows.flatten(), e.blank))
    reads = [tuple(range(4 * i, 4 * i + 4)) for i in range(len(chosen))]
    seen = [index.times.size - 1] * len(chosen)
    verdicts = [(Verdict("now", r, float(r[-1] % 60)), float(r[-1] % 60)) for r in reads]
    prompts = [e.prompt("Describe what you see.", v, index, now) for v, now in verdicts]
    references = [e.world.pictures[p].captions for p in chosen]
    out: dict[str, object] = {}
    if not e.net.cfg.twin:  # the twin would see all pictures at once
        said = e.write(prompts, kept, index.times.size, seen, reads)
        out |= {"cider": round(cider(said, references), 3), "bleu4": round(bleu4(said, references), 3)}
        out["examples"] = [(s, r[0]) for s, r in list(zip(said, references))[:12]]
        turn = rng.permutation(len(chosen))
        other = [turn[(list(turn).index(i) + 1) % len(turn)] for i in range(len(chosen))]
        blank = (index.times.size - 1,)
        unseen = [e.prompt("Describe what you see.", v, index, now, []) for v, now in verdicts]
        forms: dict[str, tuple[list[list[int]], list[tuple[int, ...]]]] = {
            "right": (prompts, reads),
            "blank": (unseen, [blank] * len(reads)),
            "shuffled": ([prompts[j] for j in other], [reads[j] for j in other]),
        }
        for name, (asked, looked) in forms.items():
            each = [(asked[i], e.ids(c + END), seen[i], looked[i]) for i, cs in enumerate(references) for c in cs]
            heads, answers, until, read = zip(*each)
            total, count = e.likelihood(heads, answers, kept, index.times.size, until, read)
            out[f"loss_{name}"] = round(float(-total.sum() / count.sum()), 3)
    return out


def names(e: Evaluator, chosen: Sequence[int]) -> dict[str, object]:
    """Classes never trained: is the class named? Beside it, how often the tower's best word is right."""
    kept, index = e.watch(np.array(chosen) * VIEWS)
    verdicts = [(Verdict("now", (i,), float(i % 60)), float(i % 60)) for i in range(len(chosen))]
    prompts = [e.prompt("What object is this?", v, index, now) for v, now in verdicts]
    said = e.write(prompts, kept, len(chosen), [len(chosen) - 1] * len(chosen), [(i,) for i in range(len(chosen))], 16)
    wanted = [e.world.pictures[p].label.lower() for p in chosen]  # type: ignore[union-attr]  # they are of classes
    tower = [labels()["imagenet"][int(c)].lower() for c in index.features.classes[:, 0]]
    return {
        "named": round(float(np.mean([w in s.lower() for w, s in zip(wanted, said)])), 3),
        "tower_top1": round(float(np.mean([w == t for w, t in zip(wanted, tower)])), 3),
        "n": len(said),
        "examples": list(zip(said, wanted))[:8],
    }


def recall(e: Evaluator, split: np.ndarray, args: argparse.Namespace) -> dict[str, dict]:
    """Everything asked about videos of each length."""
    out = {}
    for m in args.minutes:
        count, questions = EPISODES[m]
        cells: dict[str, Cell] = defaultdict(Cell)
        rng = np.random.default_rng([args.seed, m])
        for i in range(max(1, round(count * args.share))):
            episode = generate(e.world, split, rng, 60 * m, questions, args.wordings)
            examine(e, episode, cells, rng, choose=not args.finding_only, variants=i % 4 == 0)
        out[str(m)] = {name: cell.report() for name, cell in sorted(cells.items())}
        yes, no = out[str(m)].get("yes"), out[str(m)].get("no")
        if yes and no:
            out[str(m)]["yesno_balanced"] = {
                "share": round((yes["share"] + no["share"]) / 2, 3),
                "n": yes["n"] + no["n"],
            }
        print(f"{m} min:", {k: v["share"] for k, v in out[str(m)].items()}, flush=True)
    return out


def trained_parts(args: argparse.Namespace) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and trained weights: a training run's, or those that ship."""
    weights: dict[str, Tensor] = {}
    if args.trained:
        config = json.loads((Path(args.trained) / "config.json").read_text())
        for file in sorted(Path(args.trained).glob("trained-*.safetensors")):
            weights |= {n: t.float() for n, t in load_file(file).items()}
    else:
        name = "twin" if args.twin else "embedded"
        config = json.loads((ASSETS / f"{name}.json").read_text())
        weights = load_trained(ASSETS / f"{name}.safetensors")
    if args.no_mixers:
        config["vision_mamba_mixer_config"] = {}
        weights = {n: t for n, t in weights.items() if "vision_mixer" not in n}
    return config, weights


def run(args: argparse.Namespace) -> dict[str, object]:
    from transformers import AutoTokenizer

    device, began = torch.device(args.device), time.monotonic()
    known = [p for p in pictures(args.data) if p.split != "train" or not args.held_out]
    table = features_table(args, known, device)
    config, weights = trained_parts(args)
    net = merged(EmbeddedConfig.from_dict(config), lm_weights(), weights, config["lora_scale"]).to(device)
    if device.type == "cuda":
        net.vamba.model.embed_tokens.to(torch.bfloat16)
        net.vamba.lm_head.weight = net.vamba.model.embed_tokens.weight
    flat = with_blank(flat_table(table, device))
    small = with_blank(flat_table({n: t for n, t in table.items() if n not in ("grid", "pooled", "det")}, "cpu"))
    e = Evaluator(net, flat, small, World(known), AutoTokenizer.from_pretrained(ASSETS), device)
    splits = np.array([p.split for p in known])
    test = np.flatnonzero(splits == "test")
    dev = np.flatnonzero(splits == "dev")
    result: dict[str, object] = {"steps": config.get("steps"), "twin": config["twin"], "no_mixers": args.no_mixers}
    if args.calibrate:
        fitted = calibrate(e, dev, args.seed)
        e.planner.calibration = fitted
        result |= {"calibration": fitted, "cut": e.cut}
    held = np.concatenate([test, [i for i in dev if known[i].source != "flickr"]])
    result["recall"] = recall(e, held, args)
    if args.finding_only:
        return result | {"seconds": round(time.monotonic() - began)}
    result["captions"] = captions(e, test[: args.captions].tolist(), np.random.default_rng(args.seed))
    unseen = [int(i) for i in dev if known[i].source == "imagenet"][: args.captions]
    result["classes_never_trained"] = names(e, unseen)
    result["seconds"] = round(time.monotonic() - began)
    return result


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder with the picture archives")
    parser.add_argument("--trained", help="a training run's folder; without it the weights that ship")
    parser.add_argument("--twin", action="store_true", help="of those that ship, the transformer twin")
    parser.add_argument("--finding-only", action="store_true", help="leave out what needs the reader (quick on a CPU)")
    parser.add_argument("--held-out", action="store_true", help="compute features of held-out pictures only")
    parser.add_argument("--features", help="file with the towers' features")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=int, nargs="+", default=MINUTES)
    parser.add_argument("--share", type=float, default=1.0, help="share of the videos (a quick look)")
    parser.add_argument("--captions", type=int, default=593)
    parser.add_argument("--calibrate", action="store_true", help="fit the calibration on the dev pictures first")
    parser.add_argument("--no-mixers", action="store_true", help="ablation: leave the trained mixers out")
    parser.add_argument("--wordings", choices=("dev", "test"), default="test", help="whose wordings are asked")
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    print(json.dumps(run(arguments().parse_args())))
