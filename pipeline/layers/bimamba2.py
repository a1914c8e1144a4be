"""The Mamba-2 mixer that looks both ways along one picture's patches (ML-Mamba's scan connector, arXiv 2407.19832).

Nothing is carried from call to call: every patch depends on the last one. The two directions share their projections
and the weight of their gated norm; the result is the mean of both.
"""

from __future__ import annotations

from torch import Tensor, nn

from pipeline.gpu.dispatch import mixer_kernels
from pipeline.gpu.scan_inputs import ScanInputs
from pipeline.layers.mamba2 import Mamba2Mixer, MixerConfig, causal_conv, scan


class BidirectionalMamba2(Mamba2Mixer):
    """Parameter names and shapes equal the published ones: mamba-ssm's, and `*_b` for the backward direction."""

    def __init__(self, cfg: MixerConfig):
        super().__init__(cfg)
        self.conv1d_b = nn.Conv1d(cfg.conv_dim, cfg.conv_dim, cfg.d_conv, groups=cfg.conv_dim)
        self.dt_bias_b, self.A_log_b, self.D_b = (
            nn.Parameter(p.detach().clone()) for p in (self.dt_bias, self.A_log, self.D)
        )

    def forward(self, u_BTD: Tensor) -> Tensor:  # type: ignore[override]  # parameters are shared, not the walk
        """(B, T, D) of whole pictures, as many as there are."""
        rows = self.in_proj(u_BTD)
        ahead = self._direction(rows, self.conv1d, self.dt_bias, self.A_log, self.D)
        back = self._direction(rows.flip(1), self.conv1d_b, self.dt_bias_b, self.A_log_b, self.D_b).flip(1)
        return self.out_proj((ahead + back) / 2)

    def _direction(self, rows: Tensor, conv: nn.Conv1d, dt_bias: Tensor, A_log: Tensor, D: Tensor) -> Tensor:
        """Gated and normalised outputs (B, T, d_inner) of one direction, from zeros."""
        cfg, start = self.cfg, self.start(len(rows))
        kernels = mixer_kernels(rows, *start, cfg.ngroups)
        z, xBC, dt = rows.split([cfg.d_inner, cfg.conv_dim, cfg.nheads], dim=-1)
        convolve = kernels.causal_conv if kernels else causal_conv
        xBC, _ = convolve(xBC, start.conv, conv.weight, conv.bias)
        inputs = ScanInputs.of_rows(xBC, dt, dt_bias, A_log, start.ssm, D, cfg.ngroups, cfg.dt_limit)
        y, _ = scan(kernels, inputs, cfg.ssd_block)
        assert self.norm is not None  # the published one always has it
        return self.norm(y.flatten(-2), z, kernels)
