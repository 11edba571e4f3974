"""What a step has to do: a group, and what its rule and rounding come to there; also where a CUDA graph records it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.optim.decay import local
from weightdecay.optim.grouping import Group, names_in, with_gradient
from weightdecay.optim.roundings import Rounding, group_rounding
from weightdecay.rules import Rule, group_decay_per_step, group_rule


class Work(NamedTuple):
    """A group in one step.

    Attributes:
        decay: a_t; 0 under a coupled rule, whose λ is the direction's.
        kernels: the λ with which the direction's own step makes this decay; None where it cannot.
        place: of the group in the optimizer.
    """

    group: Group
    rule: Rule
    rounding: Rounding
    decay: float
    kernels: float | Tensor | None
    place: int

    @property
    def weights(self) -> list[Any]:
        """The parameters that the step changes."""
        return with_gradient(self.group)

    def label(self, position: int) -> str:
        """What one of the group's tensors is called in the optimizer: by its name, or its place."""
        names = names_in(self.group)
        return str(names[position]) if names else f"{self.place}.{position}"


def unscales_or_skips(optimizer: Any) -> bool:
    """Do what the fused kernel would do with a GradScaler's `grad_scale` and `found_inf`; True to skip the step."""
    found_inf, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if found_inf is not None and bool(found_inf):
        return True
    if scale is not None:
        torch._foreach_div_([local(p.grad) for group in optimizer.param_groups for p in with_gradient(group)], scale)
        optimizer.grad_scale = None
    return False


# --- steps that a CUDA graph records: what is read then is read once, and replayed


def decay_now(group: Group, kernels_own: bool) -> float:
    """a_t of a group; 0 under a coupled rule, and where a recorded kernel will read lr and λ at each replay.

    Args:
        kernels_own: the kernel means by λ what the group's rule means.

    Raises:
        OptimizerError: the decay per step cannot be known; or lr or λ is on the device that records, and a rule or
            rounding beside the kernel has to read it.
    """
    on_device = any(isinstance(group[key], Tensor) and group[key].is_cuda for key in ("lr", "weight_decay"))
    if not (on_device and torch.cuda.is_current_stream_capturing()):
        return group_decay_per_step(group) or 0.0
    rule, rounding = group_rule(group), group_rounding(group)
    if not kernels_own or rounding.acts_on(torch.bfloat16):
        raise OptimizerError(
            f"a CUDA graph can record an lr on the device only for what a kernel does alone, not for rule '{rule.name}'"
            f" with rounding '{rounding.name}': give lr as a number, and record anew where it changes"
        )
    return 0.0


def uncapturable(group: Group) -> Iterator[str]:
    """Fault: `capturable` with weights on a processor, which torch's kernel refuses when some of them have changed.

    Known at the step and no earlier: a model may be moved to the GPU after its optimizer is made. Compiled, torch takes
    it everywhere; and its fused kernel keeps its count on the processor, whatever is asked.
    """
    asked = group.get("capturable") and not group.get("fused") and not torch.compiler.is_compiling()
    if asked and any(p.is_cpu for p in with_gradient(group)):
        yield (
            "capturable=True records steps of a GPU, and some weights are on cpu: move them there, or give "
            "capturable=False"
        )
