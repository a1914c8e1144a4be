"""Vamba against the published code: golden tensors through the same code that watches and answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.layers.reading import TextDecoder
from pipeline.layers.vamba import Vamba
from pipeline.memory.memory import Memory
from pipeline.models.system import Golden, Sizes, outputs_of
from pipeline.models.vamba_model import VambaModel
from pipeline.stream import Frame, VideoChunk
from pipeline.towers.qwen import as_tower, encode_pairs, places_of
from pipeline.towers.seen import Seen


class VambaGolden(Golden):
    """Golden tensors of Vamba through the same code that watches video: tower, column, memory, decoder.

    patches: (t*h*w, C*2*14*14). grid: (pairs, rows, columns) of every video. block_slots: of the memory, so small that
    tiny videos span several blocks.
    """

    block_slots = 48

    def __init__(self, net: Vamba, expected: Mapping[str, Tensor]):
        weight = net.model.embed_tokens.weight
        self.net, self.expected = net, expected
        self.grid = tuple(tuple(row) for row in expected["video_grid_thw"].tolist())
        self.patches = expected["pixel_values_videos"].to(weight.device, weight.dtype)
        self.prompt: list[int] = expected["input_ids"][0].tolist()
        one = len(self.grid) == 1  # frames of several videos would have no common clock
        self.kinds = ("frames" if one else "pairs", "pairs", "tokens")

    def whole(self) -> dict[str, Tensor]:
        return self.recompute(self.by_pairs(self.grid))

    def cut(self, kind: str, sizes: Sizes) -> dict[str, Tensor]:
        if kind == "frames":  # odd numbers too
            return self.by_frames(sizes(2 * self.grid[0][0], 5))
        if kind == "tokens":
            embeds = torch.cat(list(self.by_pairs(self.grid)), dim=1)
            return self.recompute(embeds.split(sizes(embeds.shape[1]), dim=1))
        return self.recompute(self.by_pairs([(n, h, w) for t, h, w in self.grid for n in sizes(t)]))

    def by_pairs(self, parts: Sequence[tuple[int, int, int]]) -> Iterator[Tensor]:
        """Visual tokens (1, T, D) of each part (pairs, rows, columns) of the video, each through the tower alone."""
        start = 0
        for t, h, w in parts:
            patches = self.patches[start : start + t * h * w]
            start += t * h * w
            yield encode_pairs(as_tower(self.net.visual), patches, torch.tensor([(t, h, w)]))[None]

    @torch.no_grad()
    def recompute(self, pieces: Iterable[Tensor]) -> dict[str, Tensor]:
        """All golden tensors, the column fed with these pieces (1, T, D) of visual tokens, state carried between."""
        stream, embeds, layers = _Column(self), [], []
        for piece in pieces:
            embeds.append(piece)
            layers.append(stream.watch(piece))
        out = {"visual_embeds": torch.cat(embeds, dim=1)}
        out |= {f"video_hidden.{n}": torch.cat(parts, dim=1) for n, parts in enumerate(zip(*layers), start=1)}
        return out | self._read(stream.memory)

    def by_frames(self, sizes: Sequence[int]) -> dict[str, Tensor]:
        """What the decoder reads and says, the video in chunks of `sizes` frames through the model's own `watch`."""
        model = VambaModel(self.net, GoldenVision(self), None, block_slots=self.block_slots)
        state, frames = model.start(), [Frame(np.zeros((1, 1, 3), np.uint8), float(n)) for n in range(sum(sizes))]
        for size in sizes:
            state, frames = model.watch(VideoChunk(tuple(frames[:size])), state), frames[size:]
        return self._read(state.inner.memory)

    @torch.no_grad()
    def _read(self, memory: Memory) -> dict[str, Tensor]:
        keys, values = memory.log.tensor("k"), memory.log.tensor("v")
        return {"memory.k": keys, "memory.v": values, "logits": self._logits(memory)} | self._greedy(memory)

    def _logits(self, memory: Memory) -> Tensor:
        """(1, n, V) of all prompt tokens."""
        net, decoder = self.net, TextDecoder(self.net, memory)
        ids = torch.tensor([self.prompt], device=net.model.embed_tokens.weight.device)
        places = torch.arange(ids.shape[1], device=ids.device)
        return net.logits(net.read(net.model.embed_tokens(ids), places, decoder.cache.attend, decoder.cross_attend))

    def _greedy(self, memory: Memory) -> dict[str, Tensor]:
        """The likeliest token at each of the golden steps, and its logits, one at a time with the conversation's cache.

        Each step goes on with the golden token: it is ours as long as they agree, and one slip does not spoil what
        follows.
        """
        if "greedy_ids" not in self.expected:
            return {}
        decoder, ids, logits = TextDecoder(self.net, memory), self.prompt, []
        for token in self.expected["greedy_ids"][0].tolist():
            logits.append(decoder.feed(ids))
            ids = [token]
        logits_QV = torch.stack(logits)
        return {"greedy_ids": logits_QV.argmax(-1)[None], "greedy_logits": logits_QV[None]}


class GoldenVision:
    """A tower's face that knows a frame by its time: golden data holds patches, not pictures."""

    unit_frames, long_side = 2, 1

    def __init__(self, golden: VambaGolden):
        self.golden = golden

    def tokens(self, frames: Sequence[Frame]) -> Seen:
        _, h, w = self.golden.grid[0]
        pairs = [int(frame.time) // 2 for frame in frames[::2]]
        patches = self.golden.patches.view(-1, h * w, self.golden.patches.shape[-1])[pairs].flatten(0, 1)
        grid = (len(pairs), h, w)
        tower = as_tower(self.golden.net.visual)
        tokens_TD = encode_pairs(tower, patches, torch.tensor([grid]))
        places_3T = places_of([grid], tower.spatial_merge_size).to(patches.device)
        return Seen(tokens_TD[None], 2.0 * (places_3T[0] + pairs[0]).double(), places_3T)


class _Column:
    """The video column with its state and memory, fed piece by piece."""

    def __init__(self, golden: VambaGolden):
        self.net, cfg, weight = golden.net, golden.net.cfg, golden.net.model.embed_tokens.weight
        layers = len(cfg.cross_layers)
        self.memory = Memory.empty(
            layers, cfg.n_kv_heads, cfg.head_dim, weight.dtype, weight.device, block_slots=golden.block_slots
        )
        self.places_3T = places_of(golden.grid, as_tower(self.net.visual).spatial_merge_size).to(weight.device)
        self.states, self.dead = self.net.start(), self.net.layers[-1].vision_mixer
        self.dead_state = self.dead.mixer.start(1) if self.dead else None

    def watch(self, v_1TD: Tensor) -> list[Tensor]:
        """v after each layer, of these tokens.

        The network never runs its last, dead mixer, since nothing reads it; golden data do, so it is run here.
        """
        read: list[Tensor] = []
        start = len(self.memory)
        end = start + v_1TD.shape[1]
        self.memory, write = self.memory.append(torch.arange(start, end))
        places = self.places_3T[:, start:end]
        with outputs_of([layer.vision_mixer for layer in self.net.layers]) as mixed:
            self.states = self.net.watch(v_1TD, self.states, lambda j, k, v: write(j, k[0], v[0]), places, seen=read)
        hidden = [mixed.get(layer, v) for layer, v in zip(self.net.cfg.cross_layers, read)]
        if self.dead:
            hidden[-1], self.dead_state = self.dead(read[-1], self.dead_state)
        elif self.states:  # a checkpoint may lack it; then its output cannot be compared
            hidden.pop()
        return hidden
