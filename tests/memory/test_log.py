"""Room of a log's blocks: it goes back to the system when a block is let go, whatever was taken meanwhile."""

from __future__ import annotations

import mmap

import pytest
import torch

from pipeline.heap import resident_bytes
from pipeline.memory.log import OWN_PAGES, Field, Log

WIDE = 512
BLOCKS = 24
SLOTS = 4 * OWN_PAGES // (4 * WIDE)  # of 4 MB a block


@pytest.mark.skipif(resident_bytes() is None or not hasattr(mmap, "MAP_PRIVATE"), reason="Linux tells what is resident")
def test_blocks_that_come_and_go_leave_no_holes():
    torch.ones(7 << 20)  # glibc takes room of up to that size from its heap, once such a one was freed
    log, kept = Log({"k": Field((None, WIDE), torch.float32)}, block_slots=SLOTS), []
    before = resident_bytes()
    for _ in range(BLOCKS):
        log = log.append(k=torch.ones(1, WIDE).expand(SLOTS, WIDE))
        kept.append(torch.ones(8_000))  # what a process takes between two blocks, and keeps
    grown = resident_bytes() - before
    log = log.drop_oldest(SLOTS * (BLOCKS - 1))
    left = resident_bytes() - before
    assert grown > 0.9 * BLOCKS * 4 * OWN_PAGES
    assert left < 0.25 * grown and len(kept) == BLOCKS


@pytest.mark.parametrize("slots", [3, SLOTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float64])
def test_small_and_large_blocks_hold_what_is_written(slots, dtype):
    rows = torch.arange(2 * slots, dtype=torch.float64).remainder(100)[:, None].expand(2 * slots, WIDE).to(dtype)
    log = Log({"k": Field((None, WIDE), dtype)}, block_slots=slots).append(k=rows)
    snapshot = log.until(slots)
    fork = snapshot.append(k=rows[:1])
    log.append(k=rows[:1])
    assert torch.equal(log.tensor("k"), rows) and torch.equal(snapshot.tensor("k"), rows[:slots])
    assert torch.equal(fork.tensor("k"), torch.cat([rows[:slots], rows[:1]]))
