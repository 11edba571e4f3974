"""The update that an optimizer's own state tells after a step, as something to be tried: the step shows if it was so.

    Adam's    m̂/(√v̂ + ε)       from exp_avg, exp_avg_sq (or max_exp_avg_sq) and step
    Lion's    sign(β₁·m + (1 − β₁)·g), with m = (m' − (1 − β₂)·g)/β₂ from before the step
    SGD's     the momentum_buffer, or the gradient where there is no momentum

No name of a class is looked at. Whoever makes another step with such state is found out by `Sums.close`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from weightdecay.monitoring.decaying import amount
from weightdecay.monitoring.measuring import Stretch, Undone
from weightdecay.optim.grouping import Group

Kind = Literal["adam", "lion", "sgd"]
# The elements of a tensor that is laid out like the weights, flat.
Flat = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Direction:
    """A direction of one tensor.

    Attributes:
        undone: gives d + η·u for the step d of a stretch: what is left is the decay.
        second: √v̂ of a stretch, where there is a second moment.
    """

    undone: Undone
    second: Stretch | None = None


def kind_of(group: Group, state: Mapping[str, Any]) -> Kind | None:
    """Which direction this group and the state of one of its tensors look like."""
    first = isinstance(state.get("exp_avg"), Tensor)
    second = isinstance(state.get("exp_avg_sq"), Tensor)
    pair = isinstance(group.get("betas"), tuple | list) and len(group["betas"]) == 2
    if first and second and pair and "eps" in group:
        return "adam"
    if first and pair and "exp_avg_sq" not in state and "eps" not in group:
        return "lion"
    if "momentum" in group and "betas" not in group and "ns_steps" not in group:
        return "sgd"
    return None


def supposed(
    kind: Kind, group: Group, state: Mapping[str, Any], gradient: Tensor | None, flat: Flat
) -> Direction | None:
    """The direction of a kind with what this state holds; None where it holds too little.

    Args:
        gradient: of the step, flat; None where it is gone.
        flat: makes state flat, as the weights were.
    """
    lr = amount(group, "lr")
    if kind == "adam":
        return _adam(group, state, flat, lr)
    if kind == "lion":
        return _lion(group, flat(state["exp_avg"]), gradient, lr) if "exp_avg" in state else None
    return _sgd(group, state, gradient, flat, lr)


def _adam(group: Group, state: Mapping[str, Any], flat: Flat, lr: float) -> Direction | None:
    step, second = amount(state, "step"), state.get("max_exp_avg_sq", state.get("exp_avg_sq"))
    if step < 1 or "exp_avg" not in state or not isinstance(second, Tensor):
        return None
    first, second = flat(state["exp_avg"]), flat(second)
    beta1, beta2, eps = float(group["betas"][0]), float(group["betas"][1]), float(group["eps"])
    correction1, correction2 = 1 - beta1**step, math.sqrt(1 - beta2**step)
    if first.shape != second.shape:
        return None

    rate, floor = lr * correction2 / correction1, eps * correction2

    def undone(step: Tensor, begin: int, end: int) -> Tensor:
        return torch.addcdiv(step, first[begin:end], second[begin:end].sqrt().add_(floor), value=rate)

    def root(begin: int, end: int) -> Tensor:
        return second[begin:end].sqrt().div_(correction2)

    return Direction(undone, root)


def _lion(group: Group, momentum: Tensor, gradient: Tensor | None, lr: float) -> Direction | None:
    beta1, beta2 = float(group["betas"][0]), float(group["betas"][1])
    if gradient is None or gradient.shape != momentum.shape or not 0 < beta2 <= 1:
        return None
    sign = -1.0 if group.get("maximize") else 1.0

    def undone(step: Tensor, begin: int, end: int) -> Tensor:
        g = gradient[begin:end].to(momentum.dtype) * sign
        before = (momentum[begin:end] - g * (1 - beta2)).div_(beta2)
        return step.add(before.lerp_(g, 1 - beta1).sign_(), alpha=lr)

    return Direction(undone)


def _sgd(group: Group, state: Mapping[str, Any], gradient: Tensor | None, flat: Flat, lr: float) -> Direction | None:
    momentum, buffer = float(group["momentum"]), state.get("momentum_buffer")
    if momentum and isinstance(buffer, Tensor) and not group.get("nesterov"):
        kept = flat(buffer)
        return Direction(lambda step, begin, end: step.add(kept[begin:end], alpha=lr))
    if momentum or gradient is None:
        return None
    sign = -1.0 if group.get("maximize") else 1.0
    return Direction(lambda step, begin, end: step.add(gradient[begin:end], alpha=lr * sign))
