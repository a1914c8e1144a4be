"""The trained network at work on many questions at once, for evaluate.py: locate, compare answers, write.

M moments, N answers; a text is a list of token ids; frames are numbers in the video that was watched.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models.embedded_reading import ANSWER, END, HEAD, TURN
from pipeline.questions.index import Index
from pipeline.questions.locator import Located
from pipeline.questions.notes import Verdict, note, spoken
from pipeline.questions.planner import READ, Planner
from pipeline.towers.frame_tower import FrameFeatures
from pipeline.training.episodes import World
from pipeline.training.student import Trainer

ROWS = 384  # token rows a batch


class Evaluator:
    """A network, the features of all views (the last row is blank), and what turns text into rows."""

    def __init__(self, net, table: FrameFeatures, small: FrameFeatures, world: World, tokenizer, device):
        self.trainer = Trainer(net, table).to(device).eval()
        self.net, self.world, self.tokenizer, self.device, self.small = net, world, tokenizer, device, small
        self.head = self.ids(HEAD)
        self.planner = Planner(copy.deepcopy(net.locator).cpu(), net.cfg.calibration)  # decides on the CPU
        self.blank, self.cut = len(table.grid) - 1, net.cfg.cut
        pooled = table.pooled.float()
        self.pooled = F.normalize(pooled, dim=-1)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def watch(self, rows_F: np.ndarray) -> tuple[list, Index]:
        """Keys and values of a video given by its view rows, and the planner's index of it."""
        rows = torch.from_numpy(rows_F).to(self.device)
        with torch.no_grad(), self.autocast():
            tokens = self.trainer.tokens(rows, torch.arange(len(rows), device=self.device))
            kept, keys = self.trainer.see(tokens.flatten(0, 1)[None])
        novelty = 1 - (self.pooled[rows][1:] * self.pooled[rows][:-1]).sum(-1)
        cuts = torch.cat([torch.ones(1, device=self.device), novelty]) > self.cut
        chosen = rows.cpu()
        features = FrameFeatures(*(c[chosen] if len(c) else c for c in self.small))
        starts = np.flatnonzero(cuts.cpu().numpy())
        return kept, Index(np.arange(len(rows), dtype=float), keys[0].float().cpu(), starts, features)

    def autocast(self):
        fast = self.device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()  # as what ships runs
        return torch.autocast(self.device.type, torch.bfloat16, enabled=fast)

    @torch.no_grad()
    def locate(self, texts: Sequence[str], seen: Sequence[int], kept: list) -> list[Located]:
        """What the locator reads from each question (on the CPU, fp32). The twin's text stands behind the video."""
        out = []
        for part in range(0, len(texts), ROWS):
            asked = [self.ids(TURN.format(question=t)) for t in texts[part : part + ROWS]]
            ids = self.padded([self.head + a for a in asked])
            q0 = torch.full((len(asked),), len(self.head), device=self.device)
            q1 = torch.tensor([len(self.head) + len(a) for a in asked], device=self.device)
            batch = self.batch(len(asked), seen[part : part + ROWS])
            with self.autocast():
                own, _, rope = self.trainer._attention(kept, batch, 0, ids)
                _, located = self.trainer.question(ids, q0, q1, own, rope)
            located = Located(*(x.float().cpu() for x in located))
            out += [Located(*(x[i : i + 1] for x in located)) for i in range(len(asked))]
        return out

    def batch(self, count: int, seen: Sequence[int], read: Tensor | None = None) -> dict[str, Tensor]:
        zeros = torch.zeros(count, dtype=torch.long, device=self.device)
        read = torch.zeros(count, READ, dtype=torch.long, device=self.device) if read is None else read
        return {"episode": zeros, "asked_at": torch.tensor(list(seen), device=self.device), "read": read}

    def padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        out = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=self.device)
        for i, row in enumerate(rows):
            out[i, : len(row)] = torch.tensor(row)
        return out

    @torch.no_grad()
    def hidden(self, ids: Tensor, kept: list, frames: int, seen: Sequence[int], read: Tensor) -> Tensor:
        with self.autocast():
            own, cross, rope = self.trainer._attention(kept, self.batch(len(ids), seen, read), frames, ids)
            h = self.net.vamba.model.embed_tokens(ids)
            lower = self.net.cfg.locate_layer
            h = self.net.vamba.read(h, rope, own, None, range(lower))
            return self.net.vamba.read(h, rope, own, cross, range(lower, self.net.cfg.vamba.n_layers))

    @torch.no_grad()
    def likelihood(self, prompts, answers, kept, frames: int, seen, reads) -> tuple[np.ndarray, np.ndarray]:
        """Summed log-probability of each answer behind its prompt, and its number of tokens."""
        total, count = [], []
        for part in range(0, len(prompts), ROWS):
            at = slice(part, part + ROWS)
            rows = [p + a for p, a in zip(prompts[at], answers[at])]
            ids, first = self.padded(rows), torch.tensor([len(p) for p in prompts[at]], device=self.device)
            length = torch.tensor([len(r) for r in rows], device=self.device)
            h = self.hidden(ids, kept, frames, seen[at], self.reads(reads[at]))
            place = torch.arange(ids.shape[1] - 1, device=self.device) + 1
            wanted = (place >= first[:, None]) & (place < length[:, None])
            with self.autocast():
                logits = self.net.vamba.logits(h[:, :-1][wanted]).float()
            logp = -F.cross_entropy(logits, ids[:, 1:][wanted], reduction="none")
            row = wanted.nonzero()[:, 0]
            total.append(torch.zeros(len(rows), device=self.device).index_add(0, row, logp).cpu())
            count.append(wanted.sum(1).cpu())
        return torch.cat(total).numpy(), torch.cat(count).numpy()

    @torch.no_grad()
    def matrix(self, prompts, answers, kept, frames: int, seen: int, reads) -> np.ndarray:
        """(M, N) log-probability of each answer behind each moment's prompt, evidence reads[m]. Of Vamba only.

        A prompt runs once, and its answers go on from its keys and values: a quarter of the work of `likelihood`.
        """
        net, device, lower, store = self.net.vamba, self.device, self.net.cfg.locate_layer, {}
        upper, M, N = range(lower, net.cfg.n_layers), len(prompts), len(answers)
        ids, length = self.padded(prompts), torch.tensor([len(p) for p in prompts], device=device)
        said, ends = self.padded(answers), torch.tensor([len(a) for a in answers], device=device)
        wanted = torch.arange(said.shape[1], device=device) < ends[:, None]

        def keep(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            store[layer] = k, v
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def go_on(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = (torch.cat([a.repeat_interleave(N, 0), b], 2) for a, b in zip(store[layer], (k, v)))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

        with self.autocast():
            _, cross, rope = self.trainer._attention(kept, self.batch(M, [seen] * M, self.reads(reads)), frames, ids)
            h = net.read(net.model.embed_tokens(ids), rope, keep, None, range(lower))
            h = net.read(h, rope, keep, cross, upper)
            first = net.logits(h[torch.arange(M), length - 1])  # (M, V)
            text = said[:, :-1].repeat(M, 1)
            places = length.repeat_interleave(N)[:, None] + torch.arange(text.shape[1], device=device)
            cos, sin = (t.view(M * N, 1, text.shape[1], -1) for t in net.rope(places.flatten(), first.dtype))
            behind = torch.arange(ids.shape[1], device=device) < length.repeat_interleave(N)[:, None]
            causal = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool, device=device).tril()
            mask = torch.cat([behind[:, None].expand(-1, text.shape[1], -1), causal.expand(M * N, -1, -1)], -1)[:, None]
            read = self.reads([r for r in reads for _ in range(N)])
            _, cross, _ = self.trainer._attention(kept, self.batch(M * N, [seen] * (M * N), read), frames, text)
            h = net.read(net.model.embed_tokens(text), (cos, sin), go_on, None, range(lower))
            h = net.read(h, (cos, sin), go_on, cross, upper)
            logits = torch.cat([first.repeat_interleave(N, 0)[:, None], net.logits(h)], 1).float()
        logp = -F.cross_entropy(logits.flatten(0, 1), said.repeat(M, 1).flatten(), reduction="none")
        return (logp.view(M, N, -1) * wanted).sum(-1).cpu().numpy()

    def reads(self, frames: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([[*f[:READ], *[-1] * (READ - len(f[:READ]))] for f in frames], device=self.device)

    @torch.no_grad()
    def write(self, prompts, kept, frames: int, seen, reads, longest: int = 28) -> list[str]:
        """Greedy answers, all rows at once (no cache: a few hundred short rows)."""
        rows, done = [list(p) for p in prompts], [False] * len(prompts)
        end, read = self.ids(END)[0], self.reads(reads)
        for _ in range(longest):
            ids, last = self.padded(rows), torch.tensor([len(r) - 1 for r in rows], device=self.device)
            h = torch.cat(
                [
                    self.hidden(ids[i : i + ROWS], kept, frames, seen[i : i + ROWS], read[i : i + ROWS])
                    for i in range(0, len(rows), ROWS)
                ]
            )
            with self.autocast():
                picked = self.net.vamba.logits(h[torch.arange(len(rows)), last]).argmax(-1).tolist()
            for i, token in enumerate(picked):
                done[i] = done[i] or token == end
                if not done[i]:
                    rows[i].append(token)
            if all(done):
                break
        return [self.tokenizer.decode(r[len(p) :], skip_special_tokens=True).strip() for r, p in zip(rows, prompts)]

    def prompt(self, text: str, verdict: Verdict, index: Index, now: float, words: Sequence[str] | None = None):
        said = spoken(index.features, verdict.frames) if words is None else list(words)
        return self.head + self.ids(TURN.format(question=text)) + self.ids(note(verdict, said, now) + ANSWER)


def upto(index: Index, frames: int) -> Index:
    """The index as it was when so many frames had been seen."""
    features = FrameFeatures(*(c[:frames] if len(c) else c for c in index.features))
    return Index(index.times[:frames], index.keys[:frames], index.starts[index.starts < frames], features)
