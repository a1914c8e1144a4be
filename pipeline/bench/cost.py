"""What the operations of a call must at least cost, counted while they run: the floors of the bench's embedded size."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pipeline.bench.machine import copy_rate, matmul_rate


class Cost(TorchFunctionMode):
    """Counts what the matrix products, convolutions and attentions of the calls inside it must at least do.

    flops: by torch's own formulas from the real shapes. bytes: of their inputs that were there before (weights, keys
    and values, states), each once; what the calls make themselves may stay in cache. Packed weights that are unpacked
    inside and kernels written outside torch (Triton) are not in it. Both are lower bounds.
    """

    def __init__(self) -> None:
        super().__init__()
        self._operations = _Operations()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        with self._operations:  # not around everything: torch's CausalBias cannot be constructed inside
            return func(*args, **(kwargs or {}))

    @property
    def flops(self) -> int:
        return self._operations.flops

    @property
    def bytes(self) -> int:
        return sum(self._operations.read.values())

    def floor_s(self, machine: dict[str, float]) -> float:
        """Seconds at best on this machine, whose rates are measured on first use and kept in `machine`."""
        device, dtype = self._operations.device, self._operations.dtype
        flops_key = f"{device.type} {dtype}".replace("torch.", "") + " matmul FLOP/s"
        if flops_key not in machine:
            machine[flops_key] = matmul_rate(device, dtype)
        if (bytes_key := f"{device.type} copy bytes/s") not in machine:
            machine[bytes_key] = copy_rate(device)
        return max(self.flops / machine[flops_key], self.bytes / machine[bytes_key])


class _Operations(TorchDispatchMode):
    """Sees every operation of torch with its real tensors. read: bytes by storage; see `Cost`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.dtype, self.device, self._most = torch.float32, torch.device("cpu"), 0
        self._made: set[int] = set()
        self.read: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:  # matmul, linear and the like may arrive whole
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        before = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **kwargs)
        if flops := _flops(func._overloadpacket, args, kwargs, out):
            self._count(flops, (args, kwargs))
        self._made |= {_storage(t) for t in tree_leaves(out) if isinstance(t, torch.Tensor)} - before
        return out

    def _count(self, flops: int, inputs: Any) -> None:
        self.flops += flops
        tensors = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
        for tensor in tensors:
            key = _storage(tensor)
            if key not in self._made:
                size = min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())
                self.read[key] = max(size, self.read.get(key, 0))
        if flops > self._most:  # the rate that counts is that of the largest product
            self._most, self.dtype, self.device = flops, tensors[0].dtype, tensors[0].device


def add_floors(measured: dict[str, Any]) -> dict[str, float]:
    """Turns every row's costs into floors, and returns this machine's rates.

    Last of all, because measuring the rates takes half a gigabyte that would count as a model's peak.
    """
    machine: dict[str, float] = {}
    for row in itertools.chain.from_iterable(found["rows"] for found in measured.values()):
        costs = {name: cost for name, cost in row["costs"].items() if cost is not None}
        floors = {name: cost.floor_s(machine) for name, cost in costs.items()}
        row["chunk_floor_ms"] = floors["chunk"] * 1e3
        row["first_token_floor_s"] = floors["first_token"]
        row["tokens_per_s_ceiling"] = 1 / floors["token"] if floors.get("token") else None
        row["costs"] = {name: {"flops": cost.flops, "bytes": cost.bytes} for name, cost in costs.items()}
    return machine


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _flops(packet: Any, args: Any, kwargs: Any, out: Any) -> int:
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        # Not in torch's registry, and its count for others refuses heads that share their keys (2.11).
        query, key, value = args[:3]
        return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    return flop_registry[packet](*args, **kwargs, out_val=out) if packet in flop_registry else 0
