"""What processes that hold parts of one tensor do together: sums over its shards, and decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def added_over_shards(moments: Tensor, of: Tensor) -> Tensor:
    """Moments of the numbers that lie here, added over all processes that hold a part of the tensor."""
    if not is_distributed(of):
        return moments
    distributed: Any = of
    mesh = distributed.device_mesh
    for dimension, placement in enumerate(distributed.placements):
        dist.all_reduce(moments, group=mesh.get_group(dimension))
        if placement.is_replicate():
            moments = moments / mesh.size(dimension)
    return moments


def agreed(decision: bool, tensors: Iterable[Tensor]) -> bool:
    """Whether any process decides so; steps are collective, and all must make the same ones."""
    return agreed_each([decision], tensors)[0]


def agreed_each(decisions: Sequence[bool], tensors: Iterable[Tensor]) -> list[bool]:
    """The same of several decisions."""
    distributed: Any = next((tensor for tensor in tensors if is_distributed(tensor)), None)
    if distributed is None or not decisions:
        return list(decisions)
    flags = torch.tensor([float(decision) for decision in decisions], device=distributed.to_local().device)
    for dimension in range(distributed.device_mesh.ndim):
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=distributed.device_mesh.get_group(dimension))
    return [bool(flag > 0) for flag in flags]
