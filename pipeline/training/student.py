"""What is trained, and its losses: the network with LoRA on its language model, run over batches of episodes.

The inference code's own modules are used (`vamba.Vamba`, `embedded_net.FrameTokens`, `locate.Locator`); only how text
attends differs, because a batch holds many questions on many videos. E episodes, Q questions, L tokens, F frames.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.layers.vamba import Vamba
from pipeline.models.embedded_net import TOKENS, EmbeddedConfig, EmbeddedNet
from pipeline.questions.locator import Located
from pipeline.towers.frame_tower import ASSETS, FrameFeatures
from pipeline.training.batches import GROUP
from pipeline.training.episodes import VIEWS
from pipeline.weights.shipped import lm_weights

LORA_RANK = 16
RANK_DROPOUT = 0.1  # of the low-rank changes, whole ranks at a time
CONFIG: dict[str, Any] = {
    "cross_layers": [12, 16, 20, 24, 28],
    "locate_layer": 12,
    "locate_depth": 2,
    "cut": 0.3,
    "lora_scale": 2.0,
    "use_alpha_balancing": True,
    "attention_bias": False,
    "vision_mamba_mixer_config": {"d_state": 64, "headdim": 64, "expand": 2, "chunk_size": 64},
    "calibration": {"find": [1.0, 0.0, 0.0], "yesno": [1.0, 0.0, 0.0], "here": [1.0, 0.0, 0.0], "towers": [5.0, 1.5]},
}


class LoRALinear(nn.Module):
    """A frozen linear layer plus a trained low-rank change of its weight."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
        rows, columns = linear.weight.shape
        self.lora_a = nn.Parameter(torch.randn(LORA_RANK, columns) / math.sqrt(columns))
        self.lora_b = nn.Parameter(torch.zeros(rows, LORA_RANK))

    def forward(self, x: Tensor) -> Tensor:
        a: Tensor = self.lora_a
        if self.training:
            a = a * F.dropout(a.new_ones(LORA_RANK, 1), RANK_DROPOUT)
        return F.linear(x, self.weight + ((self.lora_b @ a) * CONFIG["lora_scale"]).to(self.weight.dtype))


def build(twin: bool, mixers: bool, seed: int, assets: Path = ASSETS) -> tuple[dict, EmbeddedNet]:
    """The untrained network with the language model in it, and its config.json."""
    torch.manual_seed(seed)
    lm_config, weights = json.loads((assets / "lm-config.json").read_text()), lm_weights(assets)
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
        assert layer.cross_attn is not None and layer.alpha is not None  # of a cross layer, balanced
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
                assert isinstance(linear, nn.Linear)
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
            t.grid[rows].float(),
            t.pooled[rows].float(),
            t.classes[rows].long(),
            t.class_probs[rows].float(),
            t.det[rows].float(),
            none,
            none,
            none,
        )

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

    def question(self, ids: Tensor, q0: Tensor, q1: Tensor, attend, rope) -> tuple[Tensor, Located]:
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
        out |= where | self.contrast_loss(kept, batch, frames)
        return out | self.pair_loss(batch) if self.net.locator.log_scale.requires_grad or not self.training else out

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

    def contrast_loss(self, kept, batch: dict[str, Tensor], frames: int) -> dict[str, Tensor]:
        """Of eight moments and the answers that tell of them: which belongs to which?

        log p(answer | moment) over the sum of the same over all moments is what the answer owes to what was seen (its
        own likelihood cancels): maximal mutual information, Li et al. 2016 (arXiv 1510.03055) eq. 4, in a batch.
        """
        ids, of = batch["contrast_ids"], batch["contrast_of"]
        if not len(ids):
            return {"contrast": batch["contrast_of"].sum() * 0.0, "chosen": torch.tensor(math.nan, device=of.device)}
        asked = {name: batch[name][of] for name in ("episode", "asked_at", "read")}
        own, cross, rope = self._attention(kept, asked, frames, ids)
        h = self.net.vamba.model.embed_tokens(ids)
        h = self.net.vamba.read(h, rope, own, None, range(self.net.cfg.locate_layer))
        h = self.net.vamba.read(h, rope, own, cross, range(self.net.cfg.locate_layer, self.net.cfg.vamba.n_layers))
        place = torch.arange(ids.shape[1] - 1, device=ids.device) + 1
        wanted = (place >= batch["contrast_answer"][:, None]) & (place < batch["contrast_length"][:, None])
        losses = F.cross_entropy(self.net.vamba.logits(h[:, :-1][wanted]).float(), ids[:, 1:][wanted], reduction="none")
        said = losses.new_zeros(len(ids)).index_add(0, wanted.nonzero()[:, 0], -losses).view(-1, GROUP, GROUP)
        owed = said.log_softmax(1)  # (groups, moments, answers): log p(moment | answer)
        right = torch.arange(GROUP, device=ids.device).expand(len(said), -1)
        loss = (-owed.diagonal(dim1=1, dim2=2).mean() + F.cross_entropy(owed.transpose(1, 2), right)) / 2
        return {"contrast": loss, "chosen": (owed.argmax(2) == right).float().mean()}

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
            "where": (loss * used).sum() / used.sum().clamp(min=1),
            "found": hit[real].float().mean(),
            "refused": (sure[used & ~real] < 0).float().mean(),
            "accepted": (sure[real] > 0).float().mean(),
        }

    def pair_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Symmetric InfoNCE between pictures (as one-frame videos) and words, other pictures as negatives."""
        picture, ids = batch["pair_picture"], batch["pair_ids"]
        rows = picture * VIEWS + batch["pair_view"]
        seconds = torch.randint(0, 600, (len(rows),), device=rows.device)
        keys = self._keys(self.tokens(rows, seconds))
        rope = self.net.vamba.rope(
            torch.arange(ids.shape[1], device=ids.device), self.net.vamba.model.embed_tokens.weight.dtype
        )
        start = torch.full_like(batch["pair_q1"], int(batch["head"]))
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


def flat_table(table: dict[str, Tensor], device: torch.device | str) -> FrameFeatures:
    """The feature table with one row a view; what is not in it is left blank."""
    blank = torch.zeros(0, 1)
    return FrameFeatures(*(table.get(name, blank).flatten(0, 1).to(device) for name in FrameFeatures._fields))
