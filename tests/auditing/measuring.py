"""The decay of a loop, measured without the audit: the same steps with λ and without, and what lies between."""

from __future__ import annotations

from collections.abc import Callable

import torch
from examples.museum.exhibit import Loop
from torch import Tensor


def decay_per_step(make: Callable[[], Loop], steps: int = 1) -> dict[str, float]:
    """⟨w, d⟩ / ‖w‖² of each tensor, d what λ takes away in a step; gradients and random numbers are the same."""
    start, with_decay = after(make(), steps)
    _, without = after(without_decay(make()), steps)
    return {
        name: float((w.double() * (without[name] - with_decay[name]).double()).sum() / w.double().square().sum())
        / steps
        for name, w in start.items()
    }


def after(loop: Loop, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    start = weights(loop)
    torch.manual_seed(1)
    for _ in range(steps):
        for optimizer in loop.optimizers:
            optimizer.step()
    return start, weights(loop)


def weights(loop: Loop) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in loop.model.named_parameters()}


def without_decay(loop: Loop) -> Loop:
    """λ = 0 wherever the loop keeps it: in the groups, or beside them."""
    for optimizer in loop.optimizers:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        if hasattr(optimizer, "weight_decay"):
            optimizer.weight_decay = [0.0] * len(optimizer.param_groups)
    return loop
