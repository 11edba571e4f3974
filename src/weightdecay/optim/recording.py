"""The decay of a step that a CUDA graph may be recording: what is read then is read once, and replayed."""

from __future__ import annotations

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.optim.grouping import Group
from weightdecay.optim.roundings import group_rounding
from weightdecay.rules import group_decay_per_step, group_rule


def decay_now(group: Group, kernels_own: bool) -> float | None:
    """a_t of a group, None under a coupled rule; 0 where a recorded kernel will read lr and λ at each replay.

    Args:
        kernels_own: the kernel means by λ what the group's rule means.

    Raises:
        OptimizerError: the decay per step cannot be known; or lr or λ is on the device that records, and a rule or
            rounding beside the kernel has to read it.
    """
    if not _read_at_replays(group):
        return group_decay_per_step(group)
    rule, rounding = group_rule(group), group_rounding(group)
    if not kernels_own or rounding.acts_on(torch.bfloat16):
        raise OptimizerError(
            f"a CUDA graph can record an lr on the device only for what a kernel does alone, not for rule '{rule.name}'"
            f" with rounding '{rounding.name}': give lr as a number, and record anew where it changes"
        )
    return None if rule.coupled else 0.0


def _read_at_replays(group: Group) -> bool:
    on_device = any(isinstance(group[key], Tensor) and group[key].is_cuda for key in ("lr", "weight_decay"))
    return on_device and torch.cuda.is_current_stream_capturing()
