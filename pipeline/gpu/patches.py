"""Triton kernels that make a tower's patches of pictures: resized, levelled and laid out in two passes over memory.

`towers/qwen.py: Patching.patches` holds the plain torch code beside them that is always right. By torch it takes a
dozen passes, of fp32 pictures most of them: 5 ms for 64 pictures of 640x360 on an H100.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 512  # of one program: numbers of a row, colours included


def patches(
    rgb_FHWC: Tensor, height: int, width: int, patch: int, merge: int, levels: Tensor, dtype: torch.dtype
) -> Tensor:
    """Patches (F / 2 * h * w, 3 * 2 * patch * patch) of an even number of uint8 pictures.

    height, width: multiples of patch * merge. levels (2, 3) fp32: what a level of each colour is shifted and multiplied
    by. Rounded to whole levels after each direction, as `resize` is, and nearer to Pillow: weights are made in fp64; of
    noise 0.004 % of the levels differ by 1, where torch's differ in 0.02 to 0.2 %.
    """
    F, high, wide, _ = rgb_FHWC.shape
    rgb_FHWC = rgb_FHWC.contiguous()
    across = torch.empty(F, high, width, 3, dtype=torch.uint8, device=rgb_FHWC.device)
    starts, weights = _taps(wide, width, rgb_FHWC.device)
    _across[(F * high, triton.cdiv(3 * width, COLUMNS))](
        rgb_FHWC, across, starts, weights, wide, width, weights.shape[1], COLUMNS
    )
    starts, weights = _taps(high, height, rgb_FHWC.device)
    rows = F // 2 * (height // patch) * (width // patch)
    out = levels.new_empty(rows, 6 * patch * patch, dtype=dtype)
    _down[(F * height, triton.cdiv(3 * width, COLUMNS))](
        across, out, starts, weights, levels, high, height, width, weights.shape[1], patch, merge, COLUMNS
    )
    return out


@lru_cache(64)  # of sizes
def _taps(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Antialiased bicubic (a = -0.5): where each new pixel begins to read (after,), and its weights (after, K)."""
    if before == after:
        return torch.arange(after, dtype=torch.int32, device=device), torch.ones(after, 1, device=device)
    scale = before / after
    wide, centre = max(scale, 1.0), (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    starts = (centre - 2 * wide + 0.5).long().clamp_min(0)
    ends = (centre + 2 * wide + 0.5).long().clamp_max(before)
    at = starts[:, None] + torch.arange(int((ends - starts).max()))
    far = ((at - centre[:, None] + 0.5) / wide).abs()
    near = (1.5 * far - 2.5) * far * far + 1
    rest = ((-0.5 * far + 2.5) * far - 4) * far + 2
    weights = torch.where(far < 1, near, torch.where(far < 2, rest, 0.0)) * (at < ends[:, None])
    return starts.int().to(device), (weights / weights.sum(1, keepdim=True)).float().to(device)


# Sizes are not specialised on: a kernel compiled anew for a picture of another size is a second of silence.


@triton.jit(do_not_specialize=["wide", "width", "taps"])
def _across(rgb, out, starts, weights, wide, width, taps, COLUMNS: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x, colour, inside = at // 3, at % 3, at < 3 * width
    first, total = tl.load(starts + x, inside, 0), tl.zeros([COLUMNS], tl.float32)
    for k in range(taps):
        here = inside & (first + k < wide)
        level = tl.load(rgb + (row * wide + first + k) * 3 + colour, here, 0).to(tl.float32)
        total += level * tl.load(weights + x * taps + k, inside, 0.0)
    total = tl.minimum(tl.maximum(tl.floor(total + 0.5), 0.0), 255.0)
    tl.store(out + row * width * 3 + at, total.to(tl.uint8), inside)


@triton.jit(do_not_specialize=["high", "height", "width", "taps"])
def _down(
    rgb,
    out,
    starts,
    weights,
    levels,
    high,
    height,
    width,
    taps,
    PATCH: tl.constexpr,
    MERGE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    frame, y = (tl.program_id(0) // height).to(tl.int64), tl.program_id(0) % height
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x, colour, inside = at // 3, at % 3, at < 3 * width
    first, total = tl.load(starts + y), tl.zeros([COLUMNS], tl.float32)
    for k in range(taps):
        here = inside & (first + k < high)
        level = tl.load(rgb + (frame * high + first + k) * width * 3 + at, here, 0).to(tl.float32)
        total += level * tl.load(weights + y * taps + k)
    total = tl.minimum(tl.maximum(tl.floor(total + 0.5), 0.0), 255.0)
    value = tl.load(levels + colour) + total * tl.load(levels + 3 + colour)
    # pair, window row, window column, row and column in the window, colour, picture of the pair, pixel row and column
    row, column, windows = y // PATCH, x // PATCH, width // (PATCH * MERGE)
    place = (frame // 2 * (height // (PATCH * MERGE)) + row // MERGE) * windows + column // MERGE
    place = place * MERGE * MERGE + row % MERGE * MERGE + column % MERGE
    pixel = ((colour * 2 + frame % 2) * PATCH + y % PATCH) * PATCH + x % PATCH
    tl.store(out + place * (6 * PATCH * PATCH) + pixel, value.to(out.dtype.element_ty), inside)
