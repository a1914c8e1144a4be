"""What a scan of Mamba-2 takes (arXiv 2405.21060), in one value, whoever runs it."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

UNLIMITED = (0.0, math.inf)


class ScanInputs(NamedTuple):
    """What a network holds: step sizes before their softplus, logarithms of decays, a skip D (H or H * P, or None).

    x, B, C may be slices, contiguous in their widths. ssm is the state before the first token; nobody changes it.
    """

    x_BTHP: Tensor
    dt_BTH: Tensor
    dt_bias_H: Tensor
    A_log_H: Tensor
    B_BTGN: Tensor
    C_BTGN: Tensor
    ssm_BHPN: Tensor
    D: Tensor | None = None
    dt_limit: tuple[float, float] = UNLIMITED

    @classmethod
    def of_rows(
        cls,
        xBC_BTC: Tensor,
        dt_BTH: Tensor,
        dt_bias_H: Tensor,
        A_log_H: Tensor,
        ssm_BHPN: Tensor,
        D: Tensor | None,
        groups: int,
        dt_limit: tuple[float, float] = UNLIMITED,
    ) -> ScanInputs:
        """From the rows behind the convolution: x, B and C side by side, B and C of all groups."""
        (_, heads, P, N) = ssm_BHPN.shape
        x, B, C = xBC_BTC.split([heads * P, groups * N, groups * N], dim=-1)
        B, C = B.unflatten(-1, (groups, N)), C.unflatten(-1, (groups, N))
        return cls(x.unflatten(-1, (heads, P)), dt_BTH, dt_bias_H, A_log_H, B, C, ssm_BHPN, D, dt_limit)
