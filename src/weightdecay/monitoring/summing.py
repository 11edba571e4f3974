"""Sums over the ranks that hold shards of tensors: one exchange for all tensors that are spread alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from weightdecay.monitoring.rotation import Turned


def over_shards(tensors: Sequence[Turned], sums: Sequence[Tensor]) -> list[list[float]]:
    """Each tensor's sums over all its shards, as numbers; of a tensor that is whole on each rank its own.

    Every rank must come here with the same tensors.
    """
    alike: dict[Any, list[int]] = defaultdict(list)
    for index, turned in enumerate(tensors):
        alike[_spread(turned.tensor)].append(index)

    found: list[list[float]] = [[] for _ in tensors]
    for groups, members in alike.items():
        total = torch.stack([sums[index].to(sums[members[0]].device) for index in members])
        for group in groups[1]:
            dist.all_reduce(total, group=group)
        for index, values in zip(members, total.tolist(), strict=True):
            found[index] = values
    return found


def _spread(tensor: Any) -> tuple[torch.device, tuple[dist.ProcessGroup, ...]]:
    """Where it lies, and the groups of ranks over which its elements are spread."""
    placements = getattr(tensor, "placements", ())
    groups = [tensor.device_mesh.get_group(axis) for axis, where in enumerate(placements) if where.is_shard()]
    return tensor.device, tuple(groups)
