"""Products in 8-bit floating point on a GPU that multiplies it: by torch's cuBLAS, or by Triton with what follows.

`layers/fp8.py` holds the plain torch code beside it that is always right. What else rounds inputs is in pointwise.py.
Sums are kept in 14 bits ("fast"), which at 7,168 terms costs .003 std beside the .037 of the codes; in 32 bits products
take 1.15 to 1.3 times as long on an H100.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from pipeline.gpu.device import gpu_size


def fp8_linear(
    codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """As `layers/fp8.py: Fp8Linear.forward`. codes (..., in), weight (out, in), both e4m3 and of multiples of 16."""
    scales = (scale, weight_scale[0]) if scale.dim() == 0 else (scale.reshape(-1, 1), weight_scale[None])
    rows = codes.reshape(-1, codes.shape[-1])
    out = torch._scaled_mm(rows, weight.t(), *scales, bias=bias, out_dtype=dtype, use_fast_accum=True)
    return out.unflatten(0, codes.shape[:-1])


def fp8_gelu(
    codes: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, out_scale: Tensor
) -> Tensor:
    """As `layers/fp8.py: through_gelu`: e4m3 (..., out) of codes (..., in) with one scale.

    26,312 rows of 1,280 to 5,120 on an H100: 316 us; by cuBLAS, with GELU and rounding in a pass of their own, 464.
    """
    rows = codes.reshape(-1, codes.shape[-1])
    (M, K), N = rows.shape, weight.shape[0]
    out = torch.empty(M, N, dtype=codes.dtype, device=codes.device)
    programs, large = gpu_size(codes.device)
    high, wide, deep = (128, 256, 128) if large else (128, 128, 64)
    _gelu[(min(programs // 2, triton.cdiv(M, high) * triton.cdiv(N, wide)),)](
        TensorDescriptor.from_tensor(rows, [high, deep]),
        TensorDescriptor.from_tensor(weight, [wide, deep]),
        TensorDescriptor.from_tensor(out, [high, wide]),
        weight_scale if bias is None else bias,
        scale,
        weight_scale,
        out_scale,
        M,
        N,
        K,
        bias is not None,
        high,
        wide,
        deep,
        8,
        num_warps=8,
        num_stages=3,
    )
    return out.unflatten(0, codes.shape[:-1])


@triton.jit(do_not_specialize=["M"])
def _gelu(
    x,
    weight,
    out,
    bias,
    scale,
    weight_scale,
    out_scale,
    M,
    N,
    K,
    HAS_BIAS: tl.constexpr,
    HIGH: tl.constexpr,
    WIDE: tl.constexpr,
    DEEP: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Tile after tile, those of GROUP rows of tiles together, so that what they read stays at hand; the next tile's
    product begins while the last one is rounded."""
    tiles_m, tiles_n = tl.cdiv(M, HIGH), tl.cdiv(N, WIDE)
    factor, shrink = tl.load(scale) * tl.load(weight_scale), 1 / tl.load(out_scale)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        first = tile // (GROUP * tiles_n) * GROUP
        size = min(tiles_m - first, GROUP)
        m, n = (first + tile % (GROUP * tiles_n) % size) * HIGH, tile % (GROUP * tiles_n) // size * WIDE
        total = tl.zeros([HIGH, WIDE], tl.float32)
        for k in range(0, K, DEEP):
            total = tl.dot(x.load([m, k]), weight.load([n, k]).T, total)
        value = total * factor
        if HAS_BIAS:
            column = n + tl.arange(0, WIDE)
            value += tl.load(bias + column, column < N, 0.0).to(tl.float32)[None, :]
        value = value / (1 + tl.exp(-1.702 * value)) * shrink
        out.store([m, n], value.to(out.dtype))
