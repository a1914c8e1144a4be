"""Train the embedded Vamba, or its transformer twin: `python -m pipeline.training.train --help`.

Frozen: the towers, the language model. Trained: the frame tokens, the mixers, cross-attention (initialised from
self-attention, alpha-balanced), the locator, and LoRA (arXiv 2106.09685) on every linear layer of the language model.
Four losses a step: the answer's tokens (the reader looks at the right moment), where to look (over the shots of the own
video and "nowhere"), what to do (the plan), and pictures against words across the batch.

One command and a seed make the whole run; `--resume` goes on from the newest checkpoint; `log.tsv` is a table of it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.convnets import ASSETS, FrameFeatures, FrameTower
from pipeline.models.embedded import TOKENS, EmbeddedConfig, EmbeddedNet
from pipeline.models.vamba import Vamba
from pipeline.quant import from_file
from pipeline.training.batches import Batches, Scribe, Split
from pipeline.training.data import pictures, read_all
from pipeline.training.episodes import VIEWS, World
from pipeline.training.features import compute

LORA_RANK, LORA_SCALE = 16, 2.0
CONFIG = {
    "cross_layers": [12, 16, 20, 24, 28], "locate_layer": 12, "locate_depth": 2, "cut": 0.3,
    "use_alpha_balancing": True, "attention_bias": False,
    "vision_mamba_mixer_config": {"d_state": 64, "headdim": 64, "expand": 2, "chunk_size": 64},
    "calibration": {"find": [1.0, 0.0, 0.0], "yesno": [1.0, 0.0, 0.0], "here": [1.0, 0.0, 0.0]},
}  # fmt: skip


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trained low-rank change of its weight."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        rows, columns = linear.weight.shape
        self.lora_a = nn.Parameter(torch.randn(LORA_RANK, columns) / math.sqrt(columns))
        self.lora_b = nn.Parameter(torch.zeros(rows, LORA_RANK))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + ((self.lora_b @ self.lora_a) * LORA_SCALE).to(self.weight.dtype))


def language_model(assets: Path = ASSETS) -> tuple[dict, dict[str, Tensor]]:
    """Configuration and weights (fp32) of the shipped language model."""
    tensors: dict[str, Tensor] = {}
    for shard in sorted(assets.glob("lm-*.safetensors")):
        tensors |= load_file(shard)
    return json.loads((assets / "lm-config.json").read_text()), from_file(tensors)


def build(twin: bool, mixers: bool, seed: int, assets: Path = ASSETS) -> tuple[dict, EmbeddedNet]:
    """The untrained network with the language model in it, and its config.json."""
    torch.manual_seed(seed)
    lm_config, weights = language_model(assets)
    config = {**lm_config, **CONFIG, "twin": twin}
    if twin:
        config |= {"cross_layers": [], "vision_mamba_mixer_config": {}}
    if not mixers:
        config["vision_mamba_mixer_config"] = {}
    net = EmbeddedNet(EmbeddedConfig.from_dict(config))
    missing, unexpected = net.vamba.load_state_dict(weights, strict=False)
    assert not unexpected and all("cross_attn" in k or "mixer" in k or "alpha" in k or "lm_head" in k for k in missing)
    for i in net.cfg.vamba.cross_layers:
        layer = net.vamba.layers[i]
        layer.cross_attn.load_state_dict(layer.self_attn.state_dict())
        layer.alpha.data.fill_(0.9)
    return config, net


def with_lora(vamba: Vamba, frozen_dtype: torch.dtype) -> None:
    """Freeze the language model in `frozen_dtype` and put LoRA on its linear layers."""
    vamba.model.embed_tokens.to(frozen_dtype).requires_grad_(False)
    vamba.model.norm.to(frozen_dtype).requires_grad_(False)
    for layer in vamba.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.to(frozen_dtype).requires_grad_(False)
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                setattr(part, name, LoRALinear(linear.to(frozen_dtype)))


class Trainer(nn.Module):
    """The network and its losses on one batch. `table` holds the features of all views on the device."""

    def __init__(self, net: EmbeddedNet, table: FrameFeatures, dropout: float = 0.1):
        super().__init__()
        self.net, self.table, self.dropout = net, table, dropout
        self.twin = net.cfg.twin

    def features(self, rows: Tensor) -> FrameFeatures:
        """FrameFeatures of the given views (row = picture * VIEWS + view)."""
        t = self.table
        none = rows[:0]
        return FrameFeatures(
            t.grid[rows].float(), t.pooled[rows].float(), t.classes[rows].long(), t.class_probs[rows].float(),
            t.det[rows].float(), none, none, none,
        )  # fmt: skip

    def tokens(self, rows: Tensor, seconds: Tensor) -> Tensor:
        """(N, 10, D) of views `rows` shown at `seconds`."""
        features = self.features(rows)
        if self.training:  # the towers are frozen, the pictures few: without noise their features are learnt by heart
            drop = {n: F.dropout(getattr(features, n), 2 * self.dropout) for n in ("pooled", "det", "class_probs")}
            features = features._replace(**drop)
        return F.dropout(self.net.frames(features, seconds), self.dropout, self.training)

    def see(self, tokens_ETD: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Keys and values for the text (per cross layer, or per layer for the twin) and locate keys (E, F, W)."""
        kept: list[tuple[Tensor, Tensor]] = []
        last = slice(TOKENS - 1, None, TOKENS)
        if self.twin:
            raw, mixed = tokens_ETD, self._twin_pass(tokens_ETD, kept)
        else:
            seen: list[Tensor] = []
            start = self.net.vamba.start(len(tokens_ETD))
            self.net.vamba.watch(tokens_ETD, start, lambda j, k, v: kept.append((k, v)), seen=seen)
            raw, mixed = seen[0], seen[self.net.cfg.locate_depth]
        return kept, self.net.locator.keys(raw[:, last], mixed[:, last])

    def _keys(self, tokens_ETD: Tensor) -> Tensor:
        """Locate keys alone, without what lies above the locator."""
        cfg, mixed = self.net.cfg, tokens_ETD
        if self.twin:
            positions = torch.arange(mixed.shape[1], device=mixed.device)
            mixed = self.net.vamba.read(mixed, positions, _causal, None, range(cfg.locate_layer))
        for i in cfg.vamba.cross_layers[: cfg.locate_depth]:
            if (mixer := self.net.vamba.layers[i].vision_mixer) is not None:
                mixed, _ = mixer(mixed, mixer.mixer.start(len(mixed)))
        last = slice(TOKENS - 1, None, TOKENS)
        return self.net.locator.keys(tokens_ETD[:, last], mixed[:, last])

    def _twin_pass(self, tokens: Tensor, kept: list) -> Tensor:
        """Video tokens through the language model; returns the hidden states at the locator."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kept.append((k, v))
            return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=True, enable_gqa=True)

        cfg, positions = self.net.cfg, torch.arange(tokens.shape[1], device=tokens.device)
        h = self.net.vamba.read(tokens, positions, attend, None, range(cfg.locate_layer))
        self.net.vamba.read(h, positions, attend, None, range(cfg.locate_layer, cfg.vamba.n_layers))
        return h

    def question(self, ids: Tensor, q0: Tensor, q1: Tensor, attend, rope) -> tuple[Tensor, object]:
        """Hidden states (Q, L, D) at the locator and what it reads from the question's tokens q0..q1."""
        h = self.net.vamba.model.embed_tokens(ids)
        h = self.net.vamba.read(h, rope, attend, None, range(self.net.cfg.locate_layer))
        place = torch.arange(ids.shape[1], device=ids.device)
        inside = ((place >= q0[:, None]) & (place < q1[:, None])).to(h.dtype)
        mean = (h * inside[..., None]).sum(1) / inside.sum(1, keepdim=True)
        return h, self.net.locator.read(h[torch.arange(len(ids)), q1 - 1], mean)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Losses and accuracies of a batch (see batches.py)."""
        E, frames = batch["frames"].shape[:2]
        rows = batch["frames"][..., 0] * VIEWS + batch["frames"][..., 1]
        seconds = torch.arange(frames, device=rows.device).repeat(E)
        tokens = self.tokens(rows.flatten(), seconds).unflatten(0, (E, frames)).flatten(1, 2)
        kept, keys = self.see(tokens)
        ids = batch["ids"]
        own, cross, rope = self._attention(kept, batch, frames, ids)
        h, located = self.question(ids, batch["q0"], batch["q1"], own, rope)
        where = self.where(located, keys, batch)
        above = range(self.net.cfg.locate_layer, self.net.cfg.vamba.n_layers)
        h = self.net.vamba.read(h, rope, own, cross, above)
        out = {"answer": self.answer_loss(h, batch), "plan": F.cross_entropy(located.plan.float(), batch["plan"])}
        out["plan_right"] = (located.plan.argmax(-1) == batch["plan"]).float().mean()
        return out | where | self.pair_loss(batch)

    def _attention(self, kept, batch, frames: int, ids: Tensor):
        """How text attends: to itself and to the read frames (Vamba), or to itself behind the whole video (twin)."""
        L, episode, device = ids.shape[1], batch["episode"], ids.device
        if not self.twin:
            cross = self._cross(kept, batch, frames)
            rope = self.net.vamba.rope(torch.arange(L, device=device), self.net.vamba.model.embed_tokens.weight.dtype)
            return _causal, cross, rope
        total, seen = kept[0][0].shape[2], (batch["asked_at"] + 1) * TOKENS
        visible = torch.arange(total, device=device) < seen[:, None]  # the video up to the asking, then the own text
        causal = torch.ones(L, L, dtype=torch.bool, device=device).tril()
        mask = torch.cat([visible[:, None].expand(-1, L, -1), causal.expand(len(ids), -1, -1)], -1)[:, None]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            past_k, past_v = (part[episode].to(q.dtype) for part in kept[layer])
            k, v = torch.cat([past_k, k.to(q.dtype)], 2), torch.cat([past_v, v.to(q.dtype)], 2)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

        positions = (seen[:, None] + torch.arange(L, device=device)).flatten()
        cos, sin = self.net.vamba.rope(positions, self.net.vamba.model.embed_tokens.weight.dtype)
        return attend, None, (cos.view(len(ids), 1, L, -1), sin.view(len(ids), 1, L, -1))

    def _cross(self, kept, batch, frames: int):
        read = batch["read"]  # (Q, READ), -1 where fewer
        first = (batch["episode"][:, None] * frames + read.clamp(min=0)) * TOKENS
        slots = (first[..., None] + torch.arange(TOKENS, device=read.device)).flatten(1)
        mask = (read >= 0).repeat_interleave(TOKENS, 1)[:, None, None]

        def attend(place: int, q: Tensor) -> Tensor:
            k, v = (part.transpose(1, 2).flatten(0, 1)[slots].transpose(1, 2).to(q.dtype) for part in kept[place])
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

        return attend

    def answer_loss(self, h: Tensor, batch: dict[str, Tensor]) -> Tensor:
        place = torch.arange(h.shape[1] - 1, device=h.device) + 1
        wanted = (place >= batch["answer"][:, None]) & (place < batch["length"][:, None])
        logits = self.net.vamba.logits(h[:, :-1][wanted])
        return F.cross_entropy(logits.float(), batch["ids"][:, 1:][wanted])

    def where(self, located, keys: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Softmax over the shots seen so far and "nowhere"; a shot scores the log-mean-exp of its frames."""
        scores = self.net.locator.scores(located.query[:, None], keys[batch["episode"]])[:, 0].float()  # Q, F
        frame = torch.arange(scores.shape[1], device=scores.device)
        scores = scores.masked_fill(frame > batch["asked_at"][:, None], -1e4)
        shots = batch["target"].shape[1]
        member = F.one_hot(batch["shot_of_frame"], shots)[batch["episode"]].float()  # Q, F, S
        seen = (member * (frame <= batch["asked_at"][:, None])[..., None]).sum(1)  # frames of each shot so far
        peak = scores.amax(1, keepdim=True)
        mass = torch.einsum("qf,qfs->qs", (scores - peak).exp(), member)
        per_shot = torch.where(seen > 0, (mass / seen.clamp(min=1)).clamp(min=1e-12).log() + peak, -1e4)
        logits = torch.cat([per_shot, located.nowhere.float()[:, None]], 1)
        target = torch.cat([batch["target"] & (seen > 0), ~batch["target"].any(1, keepdim=True)], 1)
        loss = -(logits.log_softmax(1).masked_fill(~target, -1e4)).logsumexp(1)
        used, real = batch["searched"], batch["searched"] & batch["target"].any(1)
        hit = target.gather(1, per_shot.argmax(1, keepdim=True))[:, 0]
        sure = per_shot.amax(1) - located.nowhere.float()
        return {
            "where": (loss * used).sum() / used.sum().clamp(min=1), "found": hit[real].float().mean(),
            "refused": (sure[used & ~real] < 0).float().mean(), "accepted": (sure[real] > 0).float().mean(),
        }  # fmt: skip

    def pair_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Symmetric InfoNCE between pictures (as one-frame videos) and words, other pictures as negatives."""
        picture, ids = batch["pair_picture"], batch["pair_ids"]
        rows = picture * VIEWS + batch["pair_view"]
        seconds = torch.randint(0, 600, (len(rows),), device=rows.device)
        keys = self._keys(self.tokens(rows, seconds))
        rope = self.net.vamba.rope(
            torch.arange(ids.shape[1], device=ids.device), self.net.vamba.model.embed_tokens.weight.dtype
        )
        start = torch.full_like(batch["pair_q1"], batch["head"])
        _, located = self.question(ids, start, batch["pair_q1"], _causal, rope)
        scores = self.net.locator.scores(located.query, keys[:, 0]).float()
        same = picture[:, None] == picture
        own = torch.eye(len(picture), dtype=torch.bool, device=picture.device)
        scores = scores.masked_fill(same & ~own, -1e4)
        target = torch.arange(len(picture), device=picture.device)
        loss = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
        return {"pairs": loss, "pairs_right": (scores.argmax(1) == target).float().mean()}


def _causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=True, enable_gqa=True)


WEIGHTS = {"answer": 1.0, "where": 0.5, "plan": 0.2, "pairs": 0.5}


def flat_table(table: dict[str, Tensor], device: torch.device | str) -> FrameFeatures:
    """The feature table with one row a view; what is not in it is left blank."""
    blank = torch.zeros(0, 1)
    return FrameFeatures(*(table.get(name, blank).flatten(0, 1).to(device) for name in FrameFeatures._fields))


def groups(net: EmbeddedNet, lr: float) -> list[dict]:
    """Optimiser groups: LoRA slower, alphas without decay and faster, the rest at `lr`."""
    named = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    kinds = {"lora": 0.5, "alpha": 3.0, "mixer": 0.7, "": 1.0}
    out: dict[str, list] = {k: [] for k in kinds}
    for name, p in named:
        out[next(k for k in kinds if k in name)].append(p)
    return [
        {"params": ps, "lr": lr * kinds[k], "base": lr * kinds[k], "weight_decay": 0.0 if k == "alpha" else 0.03}
        for k, ps in out.items()
        if ps
    ]


class Average:
    """Exponential moving average of the trained weights: steadier than those of the last step."""

    def __init__(self, net: EmbeddedNet, keep: float = 0.995):
        self.net, self.keep = net, keep
        self.held = {n: p.clone() for n, p in trained(net).items()}

    def update(self) -> None:
        torch._foreach_lerp_(list(self.held.values()), list(trained(self.net).values()), 1 - self.keep)

    def swap(self) -> None:
        """Exchange the network's weights and the averages."""
        for name, p in trained(self.net).items():
            kept = p.clone()
            p.copy_(self.held[name])
            self.held[name] = kept


def trained(net: EmbeddedNet) -> dict[str, Tensor]:
    """What training changed, by name."""
    return {n: p.detach() for n, p in net.named_parameters() if p.requires_grad}


def save(net: EmbeddedNet, config: dict, out: Path, shard_bytes: int = 16_000_000) -> None:
    """Write config.json and trained-0000i.safetensors in bf16."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    group, size, number = {}, 0, 1
    for name, p in trained(net).items():
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
    net.to(device)
    loaders = make_loaders(args, world, known, table)
    trainer = Trainer(net, flat_table(table, device)).to(device)
    print(f"{sum(p.numel() for p in trained(net).values()) / 1e6:.1f} M trained parameters", flush=True)
    train(args, config, trainer, loaders, device)


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
    for held, workers, scale in (("train", args.workers, args.scale), ("dev", min(2, args.workers), args.scale * 0.5)):
        chosen = np.flatnonzero(split == held)
        scribe = Scribe(world, notes, tokenizer, Split(chosen, held == "train"))
        pairs = args.pairs if held == "train" else min(128, args.pairs)
        batches = Batches(scribe, args.seed, pairs, scale, args.longest)
        loaders.append(
            DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=6 if workers else None)
        )
    return loaders[0], loaders[1], len(scribe.head)


def train(args, config: dict, trainer: Trainer, loaders, device: torch.device) -> None:
    out, progress = Path(args.out), Progress(args.steps, args.minutes)
    out.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(groups(trainer.net, args.lr), betas=(0.9, 0.98), fused=device.type == "cuda")
    step = restore(args, trainer, optimiser, out)
    batches, held, head = iter(loaders[0]), iter(loaders[1]), loaders[2]
    table, sums, saved, average = Table(out / "log.tsv"), {}, time.monotonic(), Average(trainer.net)
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
        if step % (5 * args.every) == 0:
            average.swap()
            table.write(step, time.monotonic() - progress.began, held_out(trainer, held, head, device), "dev")
            average.swap()
        if time.monotonic() - saved > 60 * args.save_minutes:
            checkpoint(trainer, optimiser, step, out)
            saved = time.monotonic()
    average.swap()
    table.write(step, time.monotonic() - progress.began, held_out(trainer, held, head, device, 12), "dev")
    save(trainer.net, config | {"steps": step, "seed": args.seed}, out)


def step_once(trainer, optimiser, batch, factor: float, head: int, device) -> dict[str, Tensor]:
    trainer.train()
    for group in optimiser.param_groups:
        group["lr"] = group["base"] * factor
    losses = measure(trainer, batch, head, device)
    loss = sum(weight * losses[name] for name, weight in WEIGHTS.items())
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
def held_out(trainer, batches, head: int, device, count: int = 6) -> dict[str, float]:
    trainer.eval()
    rows = [measure(trainer, next(batches), head, device) for _ in range(count)]
    return {name: float(torch.stack([r[name] for r in rows]).nanmean()) for name in rows[0]}


class Table:
    """log.tsv: one row a report, the same on the terminal."""

    COLUMNS = ("answer", "where", "found", "accepted", "refused", "plan", "plan_right", "pairs", "pairs_right")

    def __init__(self, path: Path):
        self.path = path
        if not path.exists():
            path.write_text("\t".join(("split", "step", "seconds", *self.COLUMNS)) + "\n")
            print("\t".join(("split", "step", "seconds", *self.COLUMNS)))

    def write(self, step: int, seconds: float, values: dict[str, float], split: str) -> None:
        line = "\t".join([split, str(step), f"{seconds:.0f}", *(f"{values[c]:.3f}" for c in self.COLUMNS)])
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def checkpoint(trainer, optimiser, step: int, out: Path) -> None:
    """Everything needed to go on, written beside the old one and then renamed over it."""
    part = out / "checkpoint.pt.part"
    torch.save({"step": step, "trained": trained(trainer.net), "optimiser": optimiser.state_dict()}, part)
    part.rename(out / "checkpoint.pt")


def restore(args, trainer, optimiser, out: Path) -> int:
    if not args.resume or not (out / "checkpoint.pt").exists():
        return 0
    held = torch.load(out / "checkpoint.pt", map_location=args.device, weights_only=True)
    trainer.net.load_state_dict(held["trained"], strict=False)
    optimiser.load_state_dict(held["optimiser"])
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
    parser.add_argument("--twin", action="store_true", help="train the transformer twin instead")
    parser.add_argument("--no-mixers", action="store_true", help="ablation: a video column without mixers")
    parser.add_argument("--pictures", type=int, default=0, help="use only about so many pictures (smoke run)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of a batch relative to the real run's")
    parser.add_argument("--pairs", type=int, default=768, help="picture-word pairs a step")
    parser.add_argument("--longest", type=int, default=3600, help="longest episode, seconds")
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--every", type=int, default=50, help="steps between two rows of the log")
    parser.add_argument("--save-minutes", type=float, default=3)
    parser.add_argument("--resume", action="store_true")
    return parser


if __name__ == "__main__":
    run(arguments().parse_args())
