"""Tables of rotary positions (RoFormer, arXiv 2104.09864, eq. 34), halves paired as in NeoX."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(positions_T: Tensor, base: float, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (T, width) in `dtype`, for `layers.vamba.rotate`.

    The frequencies are rounded to fp32, as every published model rounds them; the angles are in fp32 or better.
    """
    inv_freq = 1.0 / base ** (torch.arange(0, width, 2, device=positions_T.device).float() / width)
    wide = torch.promote_types(dtype, torch.float32)
    angles = positions_T.to(wide)[:, None] * inv_freq.to(wide)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)
