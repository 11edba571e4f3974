"""Weight decay as a term of the loss, for comparison with what optimizers do."""

from __future__ import annotations

import torch
from torch import Tensor

from weightdecay.amounts import number
from weightdecay.errors import OptimizerError, group_title
from weightdecay.optim.grouping import HasParamGroups


def penalty(plan: HasParamGroups | torch.optim.Optimizer) -> Tensor:
    """½·Σ λ‖w‖² over a plan's tensors, each with its own λ; differentiable, to add to a loss.

    Its gradient is λ·w. Under plain SGD that is decoupled decay; under Adam it is not, because Adam divides it by √v.

    Args:
        plan: a decay plan, or an optimizer, whose groups say the λ of each tensor.

    Returns:
        A scalar; 0 where nothing decays.

    Raises:
        OptimizerError: this is neither a plan nor an optimizer, a group has no λ, or there is no tensor at all.

    Reference: Loshchilov & Hutter 2019, arXiv:1711.05101, propositions 1 and 2.
    """
    if not isinstance(plan, torch.optim.Optimizer | HasParamGroups):
        raise OptimizerError(
            f"penalty takes a decay plan or an optimizer, got {type(plan).__name__}: give weightdecay.plan(model)"
        )
    groups = plan.param_groups if isinstance(plan, torch.optim.Optimizer) else plan.param_groups(lr=1.0)
    decays = [number(group.get("weight_decay")) for group in groups]
    if faults := [
        f"{group_title(group, index)} has weight_decay {group.get('weight_decay')!r}: give a number"
        for index, (group, weight_decay) in enumerate(zip(groups, decays, strict=True))
        if weight_decay is None
    ]:
        raise OptimizerError(faults)
    params = [(p, weight_decay) for group, weight_decay in zip(groups, decays, strict=True) for p in group["params"]]
    if not params:
        raise OptimizerError("the plan holds no tensors, so there is nothing to penalise")
    total = torch.zeros((), dtype=torch.float32, device=params[0][0].device)
    for p, weight_decay in params:
        if weight_decay:
            wide = p.to(torch.promote_types(p.dtype, torch.float32))
            real = torch.view_as_real(wide) if wide.is_complex() else wide
            total = total + 0.5 * weight_decay * real.square().sum()
    return total
