"""Train the embedded Vamba, or its transformer twin: `python -m pipeline.training.train --help`.

Frozen: the towers, the language model. Trained: the frame tokens, the mixers, cross-attention (initialised from
self-attention, alpha-balanced), the locator, and LoRA (arXiv 2106.09685) on every linear layer of the language model.
Five losses a step: the answer's tokens (the reader looks at the right moment), which of eight moments an answer belongs
to and which of eight answers a moment has, where to look (over the shots of the own video and "nowhere"), what to do
(the plan), and pictures against words across the batch. What is kept are averaged weights, from when they did best on
held-out pictures and wordings: pictures are few, and are learnt by heart if a run goes on for too long.

`--start RUN --reader-only` goes on from a finished run and trains only what lies above the locator: what finds stays as
it is, and so does its calibration. One command and a seed make the whole run; `--resume` goes on from the newest
checkpoint; `log.tsv` is a table of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.models.embedded_net import EmbeddedNet
from pipeline.towers.frame_tower import ASSETS, FrameTower
from pipeline.training.batches import Batches, Scribe, Split
from pipeline.training.data import pictures, read_all
from pipeline.training.episodes import VIEWS, World
from pipeline.training.features import compute
from pipeline.training.student import Trainer, build, flat_table, with_lora

WEIGHTS = {"answer": 1.0, "contrast": 0.2, "where": 0.5, "plan": 0.2, "pairs": 0.5}
HELD_BATCHES = 8


def groups(net: EmbeddedNet, lr: float) -> list[dict]:
    """Optimiser groups: LoRA slower, alphas without decay and faster, the rest at `lr`."""
    named = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    kinds = {"lora": 0.5, "alpha": 3.0, "mixer": 0.7, "": 1.0}
    out: dict[str, list] = {k: [] for k in kinds}
    for name, p in named:
        out[next(k for k in kinds if k in name)].append(p)
    return [
        {"params": ps, "lr": lr * kinds[k], "base": lr * kinds[k], "weight_decay": 0.0 if k == "alpha" else 0.1}
        for k, ps in out.items()
        if ps
    ]


class Average:
    """Exponential moving average of the trained weights, steadier than those of the last step, and the best of it."""

    def __init__(self, net: EmbeddedNet, keep: float = 0.99):
        self.net, self.keep = net, keep
        self.held = {n: p.clone() for n, p in trained(net).items()}
        self.best, self.lowest = self.held, math.inf

    def update(self) -> None:
        torch._foreach_lerp_(list(self.held.values()), list(trained(self.net).values()), 1 - self.keep)

    def swap(self) -> None:
        """Exchange the network's weights and the averages."""
        for name, p in trained(self.net).items():
            kept = p.clone()
            p.copy_(self.held[name])
            self.held[name] = kept

    def judge(self, loss: float) -> None:
        """Keep the averages aside if no earlier ones had a lower loss on what is held out."""
        if loss < self.lowest:
            self.lowest, self.best = loss, {n: p.clone() for n, p in self.held.items()}

    def finish(self) -> None:
        """The network with the best averages."""
        for name, p in trained(self.net).items():
            p.copy_(self.best[name])

    def state_dict(self) -> dict:
        return {"held": self.held, "best": self.best, "lowest": self.lowest}

    def load_state_dict(self, state: dict) -> None:
        self.held, self.best, self.lowest = state["held"], state["best"], state["lowest"]


def trained(net: EmbeddedNet) -> dict[str, Tensor]:
    """What training changed, by name."""
    return {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}


def finished(folder: Path) -> dict[str, Tensor]:
    """The trained weights a run has left."""
    return {n: t for file in sorted(folder.glob("trained-*.safetensors")) for n, t in load_file(file).items()}


def start_from(net: EmbeddedNet, folder: Path, reader_only: bool) -> dict[str, Tensor]:
    """Put a finished run's weights into the network; with `reader_only` freeze what finds. Returns what is frozen."""
    net.load_state_dict({n: t.float() for n, t in finished(folder).items()}, strict=False)
    if not reader_only:
        return {}
    below = tuple(f"vamba.model.layers.{i}." for i in range(net.cfg.locate_layer))
    mixers = tuple(f"vamba.model.layers.{i}.vision_mixer" for i in net.cfg.vamba.cross_layers[: net.cfg.locate_depth])
    frozen = {n: p.detach() for n, p in trained(net).items() if n.startswith(("frames.", "locator.", *below, *mixers))}
    for name in frozen:
        net.get_parameter(name).requires_grad_(False)
    return frozen


def save(net: EmbeddedNet, config: dict, out: Path, also: dict | None = None, shard_bytes: int = 16_000_000) -> None:
    """Write config.json and trained-0000i.safetensors in bf16: what was trained, and `also` some more."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    group: dict[str, Tensor] = {}
    size, number = 0, 1
    for name, p in (trained(net) | (also or {})).items():
        tensor = p.to("cpu", torch.bfloat16).contiguous()
        if group and size + tensor.nbytes > shard_bytes:
            save_file(group, out / f"trained-{number:05d}.safetensors")
            group, size, number = {}, 0, number + 1
        group[name] = tensor
        size += tensor.nbytes
    save_file(group, out / f"trained-{number:05d}.safetensors")


class Progress:
    """How far a run is, by steps or by minutes, whichever ends first; and its learning-rate factor."""

    def __init__(self, steps: int, minutes: float, warmup: int = 100):
        self.steps, self.seconds, self.warmup, self.began = steps, 60 * minutes, warmup, time.monotonic()

    def share(self, step: int) -> float:
        return max(step / self.steps, (time.monotonic() - self.began) / self.seconds)

    def factor(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, self.share(step))))
        )


def run(args: argparse.Namespace) -> None:
    device, began = torch.device(args.device), time.monotonic()
    torch.set_float32_matmul_precision("high")
    known = pictures(args.data)
    if args.pictures:  # a smoke run on a few
        known = known[:: max(1, len(known) // args.pictures)]
    world = World(known)
    table = features_table(args, known, device)
    print(f"features of {len(known)} pictures after {time.monotonic() - began:.0f} s", flush=True)
    config, net = build(args.twin, not args.no_mixers, args.seed)
    frozen = torch.bfloat16 if device.type == "cuda" else torch.float32
    with_lora(net.vamba, frozen)
    frozen_parts = start_from(net, Path(args.start), args.reader_only) if args.start else {}
    net.to(device)
    loaders = make_loaders(args, world, known, table)
    trainer = Trainer(net, flat_table(table, device)).to(device)
    print(f"{sum(p.numel() for p in trained(net).values()) / 1e6:.1f} M trained parameters", flush=True)
    train(args, config, trainer, loaders, device, frozen_parts)


def features_table(args, known, device) -> dict[str, Tensor]:
    """The towers' features of every view, from the cache file if there is one."""
    cache = Path(args.features) if args.features else None
    if cache and cache.exists():
        return load_file(cache)
    rgb = read_all(args.data, known)
    tower = FrameTower.load(device=device, dtype=torch.float16 if device.type == "cuda" else torch.float32)
    table = compute(rgb, tower, device, views=VIEWS, seed=args.seed)
    if cache:
        save_file(table, cache)
    return table


def make_loaders(args, world: World, known, table: dict[str, Tensor]) -> tuple[DataLoader, DataLoader, int]:
    """Endless training batches, held-out ones (dev pictures, held-out wordings), and the tokens of the head."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ASSETS)
    notes = flat_table({n: t for n, t in table.items() if n not in ("grid", "pooled", "det")}, "cpu")
    split = np.array([p.split for p in known])
    loaders = []
    for held, workers, scale in (("train", args.workers, args.scale), ("dev", min(2, args.workers), args.scale)):
        chosen = np.flatnonzero(split == held)
        scribe = Scribe(world, notes, tokenizer, Split(chosen, held == "train"))
        pairs = args.pairs if held == "train" else min(128, args.pairs)
        batches = Batches(scribe, args.seed, pairs, scale, args.longest, args.contrasts)
        loaders.append(
            DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=6 if workers else None)
        )
    return loaders[0], loaders[1], len(scribe.head)


def train(args, config: dict, trainer: Trainer, loaders, device: torch.device, frozen: dict | None = None) -> None:
    out, progress = Path(args.out), Progress(args.steps, args.minutes)
    out.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(groups(trainer.net, args.lr), betas=(0.9, 0.98), fused=device.type == "cuda")
    average = Average(trainer.net)
    step = restore(args, trainer, optimiser, average, out)
    batches, head = iter(loaders[0]), loaders[2]
    held = list(itertools.islice(loaders[1], HELD_BATCHES))  # always the same, so that their losses can be compared
    table, saved = Table(out / "log.tsv"), time.monotonic()
    sums: dict[str, list[Tensor]] = {}

    def judge() -> None:
        average.swap()
        row = held_out(trainer, held, head, device)
        average.swap()
        average.judge(row["answer"])
        table.write(step, time.monotonic() - progress.began, row, "dev")

    if step == 0:
        judge()
    while progress.share(step) < 1:
        losses = step_once(trainer, optimiser, next(batches), progress.factor(step), head, device)
        step += 1
        average.update()
        for name, value in losses.items():
            sums.setdefault(name, []).append(value)
        if step % args.every == 0:
            row = {n: float(torch.stack(v).nanmean()) for n, v in sums.items()}
            table.write(step, time.monotonic() - progress.began, row, "train")
            sums = {}
        if step % (4 * args.every) == 0 and progress.share(step) < 1:
            judge()
        if time.monotonic() - saved > 60 * args.save_minutes:
            checkpoint(trainer, optimiser, average, step, out)
            saved = time.monotonic()
    judge()
    average.finish()
    save(
        trainer.net,
        config | {"steps": step, "seed": args.seed, "dev_answer_loss": round(average.lowest, 4)},
        out,
        frozen,
    )


def step_once(trainer, optimiser, batch, factor: float, head: int, device) -> dict[str, Tensor]:
    trainer.train()
    for group in optimiser.param_groups:
        group["lr"] = group["base"] * factor
    losses = measure(trainer, batch, head, device)
    weighed = (weight * losses[name] for name, weight in WEIGHTS.items() if name in losses)
    loss = sum(weighed, start=torch.zeros((), device=device))
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 1.0)
    optimiser.step()
    return {name: value.detach() for name, value in losses.items()}


def measure(trainer, batch, head: int, device) -> dict[str, Tensor]:
    batch = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()} | {"head": head}
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return trainer(batch)


@torch.no_grad()
def held_out(trainer, batches, head: int, device) -> dict[str, float]:
    trainer.eval()
    rows = [measure(trainer, batch, head, device) for batch in batches]
    return {name: float(torch.stack([r[name] for r in rows]).nanmean()) for name in rows[0]}


class Table:
    """log.tsv: one row a report, the same on the terminal."""

    COLUMNS = (
        "answer",
        "contrast",
        "chosen",
        "where",
        "found",
        "accepted",
        "refused",
        "plan",
        "plan_right",
        "pairs",
        "pairs_right",
    )

    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            path.write_text("\t".join(("split", "step", "seconds", *self.COLUMNS)) + "\n")
            print("\t".join(("split", "step", "seconds", *self.COLUMNS)))

    def write(self, step: int, seconds: float, values: dict[str, float], split: str) -> None:
        line = "\t".join(
            [split, str(step), f"{seconds:.0f}", *(f"{values.get(c, math.nan):.3f}" for c in self.COLUMNS)]
        )
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def checkpoint(trainer, optimiser, average: Average, step: int, out: Path) -> None:
    """Everything needed to go on, written beside the old one and then renamed over it."""
    part = out / "checkpoint.pt.part"
    held = {"trained": trained(trainer.net), "optimiser": optimiser.state_dict(), "average": average.state_dict()}
    torch.save({"step": step} | held, part)
    part.rename(out / "checkpoint.pt")


def restore(args, trainer, optimiser, average: Average, out: Path) -> int:
    if not args.resume or not (out / "checkpoint.pt").exists():
        return 0
    held = torch.load(out / "checkpoint.pt", map_location=args.device, weights_only=True)
    trainer.net.load_state_dict(held["trained"], strict=False)
    optimiser.load_state_dict(held["optimiser"])
    average.load_state_dict(held["average"])
    return held["step"]


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder with the picture archives (see data.py)")
    parser.add_argument("--out", required=True, help="folder for the trained weights and the log")
    parser.add_argument("--features", help="file to keep the towers' features in")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", help="folder of a finished run to go on from")
    parser.add_argument("--reader-only", action="store_true", help="with --start: leave what finds as it is")
    parser.add_argument("--twin", action="store_true", help="train the transformer twin instead")
    parser.add_argument("--no-mixers", action="store_true", help="ablation: a video column without mixers")
    parser.add_argument("--pictures", type=int, default=0, help="use only about so many pictures (smoke run)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of a batch relative to the real run's")
    parser.add_argument("--pairs", type=int, default=768, help="picture-word pairs a step")
    parser.add_argument("--contrasts", type=int, default=3, help="groups of eight answers told apart, a step")
    parser.add_argument("--longest", type=int, default=3600, help="longest episode, seconds")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--every", type=int, default=25, help="steps between two rows of the log")
    parser.add_argument("--save-minutes", type=float, default=3)
    parser.add_argument("--resume", action="store_true")
    return parser


if __name__ == "__main__":
    run(arguments().parse_args())
