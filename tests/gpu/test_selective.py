"""The own kernels of the published systems, against what they stand for: Mamba-1's scan, and what lies around mixers.

Without a GPU, Triton's interpreter runs them, slowly (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

from pipeline.gpu.dispatch import override
from pipeline.layers.mamba1 import BidirectionalMamba1
from pipeline.layers.norms import RMSNorm
from tests.conftest import gap

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = torch.float16 if INTERPRETED else torch.bfloat16
if not INTERPRETED:
    pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
NEAR = {torch.float32: 1e-5, HALF: 0.01}  # of the largest value; a number of 16 bits is itself rounded by 0.004
LENGTHS = [1, 2, 5] if INTERPRETED else [1, 2, 63, 64, 1569]


pytest.importorskip("triton")
from pipeline.gpu import selective  # noqa: E402  # it needs Triton


@pytest.fixture
def kernels():
    from pipeline.gpu import kernels

    with torch.no_grad():
        yield kernels


def inputs(T: int, dtype: torch.dtype, batch=2, groups=2, channels=37, states=5) -> tuple[torch.Tensor, ...]:
    """u, dt, A, B, C, D; channels and states fill no tile."""
    torch.manual_seed(T)
    u, dt = (torch.randn(batch, T, groups, channels) for _ in range(2))
    B, C = (torch.randn(batch, T, groups, states) for _ in range(2))
    A, D = -torch.rand(groups, channels, states) * 4, torch.randn(groups, channels)
    return tuple(x.to(DEVICE, dtype) for x in (u, F.softplus(dt), A, B, C, D))


def walked(state, u, dt, A, B, C, D) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence as it is written, token by token, in fp64."""
    u, dt, A, B, C, D = (x.double() for x in (u, dt, A, B, C, D))
    h = (
        torch.zeros(*u.shape[::2], *A.shape[1:], dtype=torch.float64, device=u.device)
        if state is None
        else state.double()
    )
    outputs = []
    for t in range(u.shape[1]):
        h = (dt[:, t, ..., None] * A).exp() * h + (dt[:, t] * u[:, t])[..., None] * B[:, t, :, None]
        outputs.append((h * C[:, t, :, None]).sum(-1) + D * u[:, t])
    return torch.stack(outputs, 1), h


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_the_selective_scan_is_the_recurrence(T, dtype, kernels, monkeypatch) -> None:
    """Also in several stretches, the last of them short; the interpreter's are of two tokens."""
    if INTERPRETED:
        monkeypatch.setattr(selective, "STRETCH", 2)
    parts = inputs(T, dtype)
    got, (want, _) = kernels.selective_scan(*parts), walked(None, *parts)
    assert got.dtype == dtype and gap(got.double(), want) < NEAR[dtype]


def test_a_cut_changes_nothing(kernels) -> None:
    """Not a bit inside a stretch."""
    u, dt, A, B, C, D = inputs(7, torch.float32)
    state = torch.randn(2, 2, 37, 5, device=DEVICE)
    whole, last = kernels.selective_scan_from(state, u, dt, A, B, C, D)
    want, final = walked(state, u, dt, A, B, C, D)
    assert gap(whole.double(), want) < 1e-5 and gap(last.double(), final) < 1e-5
    outputs = []
    for some in (slice(0, 4), slice(4, 5), slice(5, 7)):
        y, state = kernels.selective_scan_from(state, u[:, some], dt[:, some], A, B[:, some], C[:, some], D)
        outputs.append(y)
    assert torch.equal(torch.cat(outputs, 1), whole) and torch.equal(state, last)


def test_stretches_begin_where_the_state_before_them_ended(kernels, monkeypatch) -> None:
    parts, state = inputs(5, torch.float32), torch.randn(2, 2, 37, 5, device=DEVICE)
    monkeypatch.setattr(selective, "STRETCH", 2)
    y, last = kernels.selective_scan_from(state, *parts)
    want, final = walked(state, *parts)
    assert gap(y.double(), want) < 1e-5 and gap(last.double(), final) < 1e-5


def test_the_mixer_of_clips_goes_through_it(kernels) -> None:
    torch.manual_seed(0)
    mixer = BidirectionalMamba1(8 if INTERPRETED else 576).requires_grad_(False).to(DEVICE)
    clips = torch.randn(1, 3, 8, device=DEVICE) if INTERPRETED else torch.randn(2, 1569, 576, device=DEVICE)
    found = {}
    for choice in ("own", "torch"):
        with override(choice):
            found[choice] = mixer(clips)
    assert gap(found["own"], found["torch"]) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_gated_heads_and_swiglu(dtype, kernels) -> None:
    """The gate is a slice of a wider projection, as in mmMamba's mixer; three heads of 20 fill no tile."""
    norm = RMSNorm(20, 1e-5).to(DEVICE, dtype).requires_grad_(False)
    norm.weight.copy_(torch.randn(20))
    y, wide = torch.randn(2, 5, 3, 20, device=DEVICE, dtype=dtype), torch.randn(2, 5, 100, device=DEVICE, dtype=dtype)
    gate = wide[..., 17:77]
    got = kernels.gated_heads(y, gate, norm.weight, 1e-5)
    with override("torch"):
        want = (norm(y).float() * F.silu(gate.float().unflatten(-1, (3, 20)))).flatten(2)
    assert got.dtype == dtype and got.shape == (2, 5, 60) and gap(got.float(), want) < NEAR[dtype]
    assert torch.equal(kernels.gated_heads(y[:1], gate[:1], norm.weight, 1e-5), got[:1])
    a, b = gate, torch.randn(2, 5, 60, device=DEVICE, dtype=dtype)
    assert gap(kernels.swiglu(a, b).float(), F.silu(a.float()) * b.float()) < NEAR[dtype]
