"""What a decoder may look at: keys and values of every cross-attention layer, with a time for every slot.

`Memory` is a Log (see log.py) in the model's type or in 8 bits, with a policy (`all`, `window`, `budget`) and exact
attention over its blocks. Its older blocks may lie in the computer's memory instead of the GPU's (tiers.py), or in a
file (disk.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.gpu.device import sent
from pipeline.memory import attention, tiers
from pipeline.memory.disk import Disk, disk_nbytes
from pipeline.memory.log import Field, Log
from pipeline.memory.means import first_span, means, whole_spans
from pipeline.memory.tiers import Tier

COARSE_SLOTS = 512  # of a block of means
SPAN_SLOTS = 64  # of a block of means of means
Write = Callable[[int | slice, Tensor, Tensor], None]  # (layer, k_KTP, v_KTP)


@dataclass(frozen=True)
class Policy:
    """How much the memory keeps: "all", a "window" of the newest `amount` minutes, a "budget" of `amount` slots.

    What falls out is counted and shown. The same slots fall out however the video was cut into chunks.
    """

    kind: str = "all"
    amount: float = math.inf

    def __post_init__(self) -> None:
        if self.kind not in ("all", "window", "budget"):
            raise ValueError(f"unknown memory policy {self.kind!r}; known: all, window, budget")

    def excess(self, log: Log) -> int:
        """How many of the oldest slots must go."""
        if self.kind == "budget":
            return max(0, len(log) - int(self.amount))
        if self.kind == "window" and len(log):
            newest = log.drop_oldest(len(log) - 1).tensor("time")
            old = 0
            for (times,) in log.views("time"):  # as far as there are old ones: of a day, not all of it
                here = int((times < newest - 60 * self.amount).sum())
                old += here
                if here < len(times):
                    break
            return old
        return 0


@dataclass(frozen=True, eq=False)
class Memory:
    """Keys and values of every cross-attention layer for every video token, with a time per slot.

    log fields: `k`, `v` (layers, K heads, slots, P) in the model's type or int8 with `k_scale`, `v_scale`
    (layers, K heads, slots, 1); `time` (slots,) fp64 seconds. tier: what may lie on the host; None: nothing. disk: what
    goes to a file; None: nothing. coarse: a slot for every instant, its mean key and value: by it a question finds what
    it must read back; None: it is told otherwise. Its own older slots go to a file, too, and its own coarse memory has
    one slot for a minute (`means.SPAN` of its slots).
    """

    log: Log
    policy: Policy = field(default_factory=Policy)
    dropped: int = 0
    tier: Tier | None = None
    disk: Disk | None = None
    coarse: Memory | None = None

    @classmethod
    def empty(
        cls,
        layers: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        eight_bit: bool = False,
        policy: Policy | None = None,
        block_slots: int = 4096,
        tier: Tier | None = None,
        disk: Disk | None = None,
        ranked: bool = False,
    ) -> Memory:
        """ranked: with a coarse memory."""
        shape, scale = (layers, heads, None, head_dim), (layers, heads, None, 1)
        stored = torch.int8 if eight_bit else dtype
        fields = {"k": Field(shape, stored), "v": Field(shape, stored), "time": Field((None,), torch.float64)}
        if eight_bit:
            fields |= {"k_scale": Field(scale, dtype), "v_scale": Field(scale, dtype)}
        coarse = None
        if ranked:
            spans = cls(Log(fields, SPAN_SLOTS, device))
            coarse = cls(Log(fields, COARSE_SLOTS, device), disk=disk.of_means() if disk else None, coarse=spans)
        return cls(Log(fields, block_slots, device), policy or Policy(), tier=tier, disk=disk, coarse=coarse)

    def __len__(self) -> int:
        return len(self.log)

    @property
    def eight_bit(self) -> bool:
        return attention.is_eight_bit(self.log)

    @property
    def nbytes(self) -> int:
        return self.log.nbytes + (self.coarse.nbytes if self.coarse else 0)

    @property
    def host_slots(self) -> int:
        """Visible slots that lie on the host: where there are any, no recorded graph can read this memory."""
        return len(self.log.on_host)

    @property
    def host_nbytes(self) -> int:
        """Bytes of `nbytes` that lie on the host."""
        return self.host_slots * (self.log.slot_nbytes - self.log.fields["time"].bytes_per_slot())

    @property
    def disk_nbytes(self) -> int:
        """Bytes of `nbytes` that lie in a file."""
        return disk_nbytes(self.log) + (self.coarse.disk_nbytes if self.coarse else 0)

    @property
    def times(self) -> np.ndarray:
        """Seconds of every visible slot, ascending."""
        return self.log.tensor("time").cpu().numpy()

    def append(self, times: Tensor) -> tuple[Memory, Write]:
        """Room for len(times) more slots: the new Memory and `write(layer, k_KTP, v_KTP)`, to be called per layer.

        Keys and values go straight into their place: the chunk's K/V exist once.
        """
        log, spans = self.log.reserve(len(times))
        coarse, add_means = (None, None) if self.coarse is None else self.coarse._append_means(times)
        times = sent(times, log.device)
        for block, there, here in spans:
            block.tensors["time"][there] = times[here].to(block.tensors["time"])

        def write(layer: int | slice, k: Tensor, v: Tensor) -> None:
            for name, rows in (("k", k), ("v", v)):
                scale = None
                if self.eight_bit:
                    rows, scale = _to_eight_bit(rows)
                for block, there, here in spans:
                    block.tensors[name][layer, :, there] = rows[..., here, :]
                    if scale is not None:
                        block.tensors[name + "_scale"][layer, :, there] = scale[..., here, :]
            if add_means is not None:
                add_means(layer, k, v)

        return replace(self, log=log, coarse=coarse), write

    def _append_means(self, times: Tensor) -> tuple[Memory, Write]:
        """A slot for every instant of these times (ascending; on a GPU it waits for them), and what writes the means of
        the keys and values given to it."""
        counts = [len([*same]) for _, same in groupby(times.tolist())]
        ends = torch.tensor(counts, dtype=torch.int64).cumsum(0)
        memory, write = replace(self, coarse=None).append(times[ends.to(times.device) - 1])
        return replace(memory, coarse=self.coarse), lambda i, k, v: write(i, means(k, counts), means(v, counts))

    def applied(self) -> Memory:
        """After its policy: the oldest slots beyond it are dropped and counted; then what is to move has moved."""
        n = self.policy.excess(self.log)
        log = self.settled(self.log.drop_oldest(n) if n else self.log)
        coarse = None if self.coarse is None else self.coarse.coarsened().applied()
        if log is self.log and coarse is self.coarse:
            return self
        return replace(self, log=log, coarse=coarse, dropped=self.dropped + log.gone - self.log.gone)

    def coarsened(self) -> Memory:
        """A coarse memory with its own, up to now."""
        if self.coarse is None or self.disk is None:
            return self
        missing = max(0, first_span(self.log) - self.coarse.log.end)
        log = self.disk.forget(replace(self.coarse.log, gone=self.coarse.log.gone + missing))
        coarse = replace(self.coarse, log=log)
        for time, k, v in whole_spans(self.log, log.end):
            coarse, write = coarse.append(time)
            write(slice(None), k, v)
        return replace(self, coarse=coarse)

    def settled(self, log: Log) -> Log:
        """The log with its older blocks on the host or in a file, where they belong there."""
        log = log if self.tier is None else self.tier.settle(log)
        return log if self.disk is None else self.disk.settle(log)

    def select(self, slots: Tensor) -> Memory:
        """A small Memory on the device, of copies of the given slots (int64, ascending): what a `retrieve` reads."""
        names = tuple(self.log.fields)
        log = Log(self.log.fields, -(-max(1, len(slots)) // 64) * 64, self.log.device)  # whole tiles of the kernels
        return Memory(log.append(**dict(zip(names, self.log.gather(slots, *names)))))

    @property
    def near_from(self) -> int:
        """The number of the first slot that does not belong in the file: told by the times alone."""
        far = 0 if self.disk is None else self.disk.far_blocks(self.log)
        return self.log.gone + max(0, far * self.log.block_slots - self.log.first)

    def brought_back(self, slots: Tensor, near_from: int) -> Memory:
        """A Memory on the device for one answer: the given slots before the number `near_from`, copied, and all from
        there on, uncopied."""
        far = min(max(0, near_from - self.log.gone), len(self))
        blocks = -(-(self.log.first + far) // self.log.block_slots) if far else 0
        return Memory(self.log.brought_back(slots, blocks))

    def blocks(self, layer: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
        """Visible keys and values (K, slots, P) of one layer, block by block, in `dtype`."""
        return attention.keys_values(self.log, layer, dtype)

    def attend(self, layer: int, q_HQP: Tensor, want_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Attention of queries (H, Q, P) over all visible slots: output (H, Q, P) and, if wanted, weights (slots,).

        The weights are the mean over heads and queries. Which code runs: see memory/attention.py.
        """
        if self.tier is not None and self.host_slots:
            out, weights = tiers.attend(
                self.tier, self.log, layer, q_HQP, [range(q_HQP.shape[1])] if want_weights else []
            )
            return out, None if weights is None else weights[0]
        return attention.attend(self.log, layer, q_HQP, want_weights)

    def attend_each(self, layer: int, q_HQP: Tensor, want_weights: bool) -> tuple[Tensor, Tensor | None]:
        """`attend` for words of several answers: weights (Q, slots), a row for each."""
        if self.tier is not None and self.host_slots:
            spans = [range(i, i + 1) for i in range(q_HQP.shape[1])] if want_weights else []
            return tiers.attend(self.tier, self.log, layer, q_HQP, spans)
        return attention.attend_each(self.log, layer, q_HQP, want_weights)

    def attend_spans(self, layer: int, q_HQP: Tensor, spans: Sequence[range]) -> tuple[Tensor, Tensor | None]:
        """`attend` with weights (spans, slots): a row for each span of queries, or None. Spans ascend, disjoint."""
        if self.tier is not None and self.host_slots:
            return tiers.attend(self.tier, self.log, layer, q_HQP, spans)
        outputs, found = [], []
        for start, stop in pairwise(sorted({0, q_HQP.shape[1]} | {i for s in spans for i in (s.start, s.stop)})):
            out, weights = self.attend(layer, q_HQP[:, start:stop], want_weights=range(start, stop) in spans)
            outputs.append(out)
            found += [] if weights is None else [weights]
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
        return out, torch.stack(found) if found else None


def _to_eight_bit(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(K, T, P) -> int8 with one scale per head and slot: symmetric, rounding error <= scale / 2.

    Divided in fp32: in bf16 the quotient itself is rounded to halves, and a rounded-down scale made 128 of the largest
    number, which an int8 takes for -128.
    """
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    scale = (wide.abs().amax(-1, keepdim=True) / 127).to(rows.dtype).clamp_min(torch.finfo(rows.dtype).tiny)
    return (wide / scale).round().clamp(-127, 127).to(torch.int8), scale
