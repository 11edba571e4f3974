"""Sums over the shards of a distributed tensor."""

from __future__ import annotations

from typing import Any

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
