"""`python -m pipeline verify --golden DIR`: recompute a published system's golden tensors and print the differences.

A golden folder holds config.json, model.safetensors and expected.safetensors (inputs and outputs of the published code,
batch 1). Everything goes through the same code that watches video: tower, column, memory, reader. First the whole
video at once is held against the golden tensors; then random cuts, by frames, pairs and tokens, against the whole.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.layers.reading import Reader
from pipeline.layers.vamba import Vamba
from pipeline.memory.memory import Memory
from pipeline.models.vamba import VambaModel
from pipeline.stream import Frame, UserError, VideoChunk
from pipeline.towers.qwen import encode_pairs
from pipeline.towers.seen import Seen
from pipeline.weights.checkpoint import DTYPES, load_net, read_config

# Largest difference allowed, in standard deviations of the tensor: (from the golden tensors, between two cuttings).
# The golden tensors are fp32 themselves, so fp64 cannot come closer to them than fp32 does.
TOLERANCES = {"float64": (1e-3, 1e-9), "float32": (1e-3, 1e-4), "bfloat16": (0.25, 0.25), "float16": (0.05, 0.05)}
ROUNDED = 0.25  # the first of them with 8-bit weights

BLOCK_SLOTS = 48  # of the memory: so small that tiny golden videos span several blocks


@dataclass(frozen=True)
class Golden:
    """A golden folder's inputs and expectations, and the network they belong to."""

    net: Vamba
    expected: dict[str, Tensor]
    patches: Tensor  # (t*h*w, C*2*14*14)
    grid: tuple[tuple[int, int, int], ...]  # (pairs, rows, columns) of every video

    @property
    def prompt(self) -> list[int]:
        return self.expected["input_ids"][0].tolist()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--golden", required=True, metavar="DIR", help="a folder of golden tensors")
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="float32", help="what to compute in (default: float32)"
    )
    parser.add_argument("--int8", action="store_true", help="with the weights of linear layers in 8 bits")
    parser.add_argument("--chunks", type=int, default=6, metavar="N", help="random cuts to try (default: 6)")
    parser.add_argument("--device", help="where to compute (default: the GPU if there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of the random cuts")


def run(args: argparse.Namespace) -> int:
    """Prints one line a tensor and a last line of JSON. Returns 0, or 1 past a tolerance."""
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    golden = read(Path(args.golden), device, DTYPES[args.dtype], args.int8)
    exact, between = TOLERANCES[args.dtype]
    rows = list(compare(golden, args.chunks, args.seed, ROUNDED if args.int8 else exact, between))
    print(f"{'tensor':<34} {'largest difference':>18} {'in std':>10} {'allowed':>9}")
    for row in rows:
        mark = "" if row["ok"] else "  <- too far"
        print(f"{row['tensor']:<34} {row['difference']:>18.3e} {row['in_std']:>10.2e} {row['allowed']:>9.0e}{mark}")
    ok = all(row["ok"] for row in rows)
    report = {
        "golden": Path(args.golden).name,
        "dtype": args.dtype,
        "int8": args.int8,
        "device": device.type,
        "ok": ok,
        "tensors": rows,
    }
    print(json.dumps(report))
    return 0 if ok else 1


def read(folder: Path, device: torch.device, dtype: torch.dtype, int8: bool = False) -> Golden:
    """A golden folder of Vamba, the network in `dtype`; UserError where it is none."""
    try:
        expected = load_file(folder / "expected.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(
            "The golden folder holds no readable expected.safetensors, so there is nothing to compare with; "
            "name a folder of golden data."
        ) from error
    needed = {"pixel_values_videos", "video_grid_thw", "input_ids"}
    config = read_config(folder)
    if "vision_mamba_mixer_config" not in config or not needed <= set(expected):
        raise UserError("These golden tensors are not Vamba's, so they cannot be compared yet; name a Vamba folder.")
    net = load_net(folder, config, device, dtype, int8=int8)
    grid = tuple(tuple(row) for row in expected["video_grid_thw"].tolist())
    return Golden(net, expected, expected["pixel_values_videos"].to(device, dtype), grid)


def compare(golden: Golden, cuts: int, seed: int, exact: float, between: float) -> Iterator[dict]:
    """One row a tensor: name, largest difference, that in the tensor's standard deviations, and whether it passes."""
    whole = recompute(golden, by_pairs(golden, golden.grid))
    for name, values in golden.expected.items():
        if name in whole:
            yield _row(name, whole[name], values, exact)
    chance = random.Random(seed)
    for number in range(cuts):
        kind, again = _cut(golden, number, chance, whole["visual_embeds"])
        for name in again:
            if name != "greedy_ids":  # they are the logits' affair
                yield _row(f"cut {number + 1}, by {kind}: {name}", again[name], whole[name], between)


def _cut(golden: Golden, number: int, chance: random.Random, embeds: Tensor) -> tuple[str, dict[str, Tensor]]:
    """The tensors after a random cut by frames (odd numbers too), pairs or tokens; the first of each is the finest."""
    finest, kind = number < 3, ("frames", "pairs", "tokens")[number % 3]
    if kind == "frames" and len(golden.grid) == 1:
        return kind, by_frames(golden, _sizes(2 * golden.grid[0][0], chance, 1 if finest else 5))
    if kind == "tokens":
        sizes = _sizes(embeds.shape[1], chance, 1 if finest else embeds.shape[1])
        return kind, recompute(golden, embeds.split(sizes, dim=1))
    parts = [(n, h, w) for t, h, w in golden.grid for n in _sizes(t, chance, 1 if finest else t)]
    return "pairs", recompute(golden, by_pairs(golden, parts))


def _row(name: str, ours: Tensor, theirs: Tensor, allowed: float) -> dict:
    ours, theirs = ours.cpu(), theirs.cpu()
    if not theirs.is_floating_point():
        same = torch.equal(ours, theirs)
        return {"tensor": name, "difference": float((ours != theirs).sum()), "in_std": 0.0, "allowed": 0.0, "ok": same}
    if ours.shape != theirs.shape:
        return {"tensor": name, "difference": float("inf"), "in_std": float("inf"), "allowed": allowed, "ok": False}
    difference = float((ours.double() - theirs.double()).abs().max())
    relative = difference / max(float(theirs.double().std()), 1e-30)
    # `not >` would let a NaN pass
    return {"tensor": name, "difference": difference, "in_std": relative, "allowed": allowed, "ok": relative <= allowed}


def _sizes(total: int, chance: random.Random, most: int) -> list[int]:
    """Random positive sizes, none above `most`, that sum to `total`."""
    sizes = []
    while total:
        sizes.append(chance.randint(1, min(most, total)))
        total -= sizes[-1]
    return sizes


def by_pairs(golden: Golden, parts: Sequence[tuple[int, int, int]]) -> Iterator[Tensor]:
    """Visual tokens (1, T, D) of each part (pairs, rows, columns) of the video, each through the tower by itself."""
    start = 0
    for t, h, w in parts:
        patches = golden.patches[start : start + t * h * w]
        start += t * h * w
        yield encode_pairs(golden.net.visual, patches, torch.tensor([(t, h, w)]))[None]


@torch.no_grad()
def recompute(golden: Golden, pieces: Iterable[Tensor]) -> dict[str, Tensor]:
    """All golden tensors, the column fed with these pieces (1, T, D) of the visual tokens, state carried between."""
    stream, embeds = _Column(golden), []
    columns = [stream.watch(embeds.append(piece) or piece) for piece in pieces]
    out = {"visual_embeds": torch.cat(embeds, dim=1)}
    out |= {f"video_hidden.{layer}": torch.cat(parts, dim=1) for layer, parts in enumerate(zip(*columns), start=1)}
    return out | _read(golden, stream.memory)


def by_frames(golden: Golden, sizes: Sequence[int]) -> dict[str, Tensor]:
    """What the decoder reads and says, the video in chunks of `sizes` frames through the model's own `watch`."""
    model = VambaModel(golden.net, _GoldenVision(golden), None, block_slots=BLOCK_SLOTS)
    state, frames = model.start(), [Frame(np.zeros((1, 1, 3), np.uint8), float(n)) for n in range(sum(sizes))]
    for size in sizes:
        state, frames = model.watch(VideoChunk(tuple(frames[:size])), state), frames[size:]
    return _read(golden, state.memory)


class _GoldenVision:
    """A tower's face that knows a frame by its time: golden data holds patches, not pictures."""

    unit_frames, long_side = 2, 1

    def __init__(self, golden: Golden):
        self.golden = golden

    def tokens(self, frames: Sequence[Frame]) -> Seen:
        _, h, w = self.golden.grid[0]
        pairs = [int(frame.time) // 2 for frame in frames[::2]]
        patches = self.golden.patches.view(-1, h * w, self.golden.patches.shape[-1])[pairs].flatten(0, 1)
        grid = (len(pairs), h, w)
        tokens_TD = encode_pairs(self.golden.net.visual, patches, torch.tensor([grid]))
        places_3T = _places([grid], self.golden.net.visual.spatial_merge_size).to(patches.device)
        return Seen(tokens_TD[None], 2.0 * (places_3T[0] + pairs[0]).double(), places_3T)


class _Column:
    """The video column with its state and memory, fed piece by piece."""

    def __init__(self, golden: Golden):
        self.net, cfg, weight = golden.net, golden.net.cfg, golden.net.model.embed_tokens.weight
        layers = len(cfg.cross_layers)
        self.memory = Memory.empty(
            layers, cfg.n_kv_heads, cfg.head_dim, weight.dtype, weight.device, block_slots=BLOCK_SLOTS
        )
        self.places_3T = _places(golden.grid, self.net.visual.spatial_merge_size).to(weight.device)
        self.states, self.dead = self.net.start(), self.net.layers[-1].vision_mixer
        self.dead_state = self.dead.mixer.start(1) if self.dead else None

    def watch(self, v_1TD: Tensor) -> list[Tensor]:
        """v after each layer, of these tokens.

        The network starts its last, dead mixer afresh each time, since nothing reads it; golden data do, so its state
        is carried here.
        """
        hidden, read, start = [], [], len(self.memory)
        end = start + v_1TD.shape[1]
        self.memory, write = self.memory.append(torch.arange(start, end))
        places = self.places_3T[:, start:end]
        self.states = self.net.watch(v_1TD, self.states, lambda j, k, v: write(j, k[0], v[0]), places, hidden, read)
        if self.dead:
            hidden[-1], self.dead_state = self.dead(read[-1], self.dead_state)
        elif self.states:  # a checkpoint may lack it; then its output cannot be compared
            hidden.pop()
        return hidden


@torch.no_grad()
def _read(golden: Golden, memory: Memory) -> dict[str, Tensor]:
    keys, values = memory.log.tensor("k"), memory.log.tensor("v")
    return {"memory.k": keys, "memory.v": values, "logits": _logits(golden, memory)} | _greedy(golden, memory)


def _places(grid: Sequence[tuple[int, int, int]], merge: int) -> Tensor:
    """(3, T): pair, row and column of every token; each video starts at 0."""
    places = []
    for t, h, w in grid:
        axes = torch.meshgrid(torch.arange(t), torch.arange(h // merge), torch.arange(w // merge), indexing="ij")
        places.append(torch.stack([axis.flatten() for axis in axes]))
    return torch.cat(places, dim=1)


def _logits(golden: Golden, memory: Memory) -> Tensor:
    """(1, n, V) of all prompt tokens."""
    net = golden.net
    reader = Reader(net, memory)
    ids = torch.tensor([golden.prompt], device=net.model.embed_tokens.weight.device)
    places = torch.arange(ids.shape[1], device=ids.device)
    return net.logits(net.read(net.model.embed_tokens(ids), places, reader.cache.attend, reader._cross))


def _greedy(golden: Golden, memory: Memory) -> dict[str, Tensor]:
    """The likeliest token at each of the golden steps, and its logits, one at a time with the conversation's cache.

    Each step goes on with the golden token: it is ours as long as they agree, and one slip does not spoil what follows.
    """
    if "greedy_ids" not in golden.expected:
        return {}
    reader, ids, logits = Reader(golden.net, memory), golden.prompt, []
    for token in golden.expected["greedy_ids"][0].tolist():
        logits.append(reader.feed(ids))
        ids = [token]
    logits_QV = torch.stack(logits)
    return {"greedy_ids": logits_QV.argmax(-1)[None], "greedy_logits": logits_QV[None]}
