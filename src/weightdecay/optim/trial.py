"""What the step of an optimizer that others wrote does, seen on a small copy of it."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from weightdecay.optim.checks import group_title

_SIZES = (6, 8, 2, 3, 2)  # of a small tensor's axes
_STEPS, _SHRINK, _LR = 12, 0.1, 0.1
_ALIKE = 1e-3  # of the update; of 130 optimizers none lay between 8e-5, which is rounding, and 5e-3: see docs/log.md


def why_shrinking_before_is_not_exact(optimizer: torch.optim.Optimizer) -> list[str]:
    """The groups in which weights that shrink just before the step change the step itself; none where all is well.

    Two copies of the optimizer, with a small tensor for each group and no decay of their own, get the same gradients.
    One has its weights shrunk before each step, the other takes the step of the whole weights and subtracts a·w:

        (1 − a)·w − u((1 − a)·w)   against   (1 − a)·w − u(w)

    which is the same for every direction u that reads no weights, and another for a trust ratio, a scale by the
    weights' norm or an average of past weights.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            before, starts = _steps(optimizer, shrunk_before=True)
            torch.manual_seed(0)
            after, _ = _steps(optimizer, shrunk_before=False)
    except Exception as error:  # whatever others' code may raise on a tensor that it was not made for
        return [f"its step could not be tried on a small tensor ({type(error).__name__}: {error})"]
    faults = []
    for index, (group, a, b, start) in enumerate(zip(optimizer.param_groups, before, after, starts, strict=True)):
        kept = start * (1 - _SHRINK) ** _STEPS
        if not float((a - b).abs().max()) <= _ALIKE * float((b - kept).abs().max()):
            faults.append(f"{group_title(group, index)}: its update depends on the weights, or on chance")
    return faults


def _steps(optimizer: torch.optim.Optimizer, *, shrunk_before: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The small weights, one tensor for each group, after some steps, and as they were before the first."""
    twin = small_copy(optimizer, lr=_LR, weight_decay=0.0)
    weights = [group["params"][0] for group in twin.param_groups]
    starts = [w.detach().clone() for w in weights]
    step: Any = type(twin).step
    for number in range(_STEPS):
        generator = torch.Generator().manual_seed(number)
        for w in weights:
            w.grad = torch.randn(w.shape, generator=generator).to(w)
        whole = [w.detach().clone() for w in weights]
        if shrunk_before:
            torch._foreach_mul_([w.detach() for w in weights], 1 - _SHRINK)
        getattr(step, "__wrapped__", step)(twin)  # not the hooks: nobody is to count this step
        if not shrunk_before:
            torch._foreach_add_([w.detach() for w in weights], whole, alpha=-_SHRINK)
    return [w.detach() for w in weights], starts


def small_copy(optimizer: torch.optim.Optimizer, **settings: float) -> torch.optim.Optimizer:
    """The optimizer without state, with one small float32 tensor in each group for its parameters.

    Args:
        settings: for every group, in place of its own.
    """
    generator = torch.Generator().manual_seed(0)
    memo: dict[int, Any] = {}  # what stands in for what in the copy
    groups = []
    for group in optimizer.param_groups:
        first = group["params"][0]
        small = torch.randn(_SIZES[: first.ndim], generator=generator).to(first.device).requires_grad_()
        memo |= {id(p): small for p in group["params"]}
        groups.append(
            {**{key: value for key, value in group.items() if key != "params"}, **settings, "params": [small]}
        )
    memo |= {id(optimizer.state): defaultdict(dict), id(optimizer.param_groups): groups, id(optimizer): None}
    twin: torch.optim.Optimizer = object.__new__(type(optimizer))
    vars(twin).update({
        key: value if "hook" in key else copy.deepcopy(value, memo)
        for key, value in vars(optimizer).items()
        if key != "step"  # which a scheduler wraps
    })  # fmt: skip
    return twin
