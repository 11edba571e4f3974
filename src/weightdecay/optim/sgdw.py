"""SGDW: torch's own SGD with a decay rule.

    b ← μ·b + (1 − τ)·g          w ← (decay of w) − η_t·b

Without momentum, and only then, decoupled decay by λ equals the l2 penalty ½·λ·‖w‖²: proposition 1 of the reference.

Reference: Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightdecay.optim.elementwise import ElementwiseOptimizer
from weightdecay.optim.grouping import Group, Params, Rules
from weightdecay.optim.pieces import Flat
from weightdecay.optim.roundings import NEAREST, RoundingLike
from weightdecay.optim.work import Work
from weightdecay.rules import DECOUPLED, group_rule


class SGDW(ElementwiseOptimizer, torch.optim.SGD):
    """SGD whose decay does not enter the momentum; with rule `l2`, `torch.optim.SGD` itself.

    Args:
        params, lr, weight_decay, peak_lr, rounding: as in `weightdecay.AdamW`.
        rule: the same, and `l2` besides.
        momentum, dampening, nesterov, maximize, foreach, differentiable, fused: as in torch.

    Raises:
        OptimizerError: with every fault of every group.
    """

    kernel_decays = False
    no_coupled_form = ""
    takes_sparse = True

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        rule: Rules = DECOUPLED,
        peak_lr: float | None = None,
        rounding: RoundingLike = NEAREST,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        self._construct(locals())

    def _next_direction(self, group: Group) -> tuple[str, tuple[float, float]]:
        momentum = group["momentum"]
        # Without a buffer yet, or a momentum, the gradient decides, and so it must not be damped to nothing.
        fresh = 1 - group["dampening"] or 1e-30
        if group["nesterov"]:  # g + μ·(μ·b + (1 − τ)·g)
            return "momentum_buffer", (momentum**2, 1 + momentum * fresh)
        return "momentum_buffer", (momentum, fresh)

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def needed_state(self, group: Group, p: Tensor) -> set[str]:  # noqa: ARG002
        return set()  # a buffer begins with the first gradient since there is a momentum, as torch's does

    def _begin(self, p: Tensor, one: Work, position: int) -> None:
        group, state = one.group, self.state[p]
        momentum = group["momentum"]
        if momentum and state.get("momentum_buffer") is None:  # torch saves None where there was no step yet
            # torch's first buffer is the gradient itself, undamped: μ·b_0 + (1 − τ)·g = g
            state["momentum_buffer"] = self._ascended(p.grad, p, group, group["weight_decay"]).mul_(
                group["dampening"] / momentum
            )
        super()._begin(p, one, position)

    def _direction_step(self) -> None:
        self.param_groups = [part for group in self.param_groups for part in self._begun_apart(group)]
        super()._direction_step()

    def _begun_apart(self, group: Group) -> list[Group]:
        """The group; for torch's fused kernel, which takes no mixture, tensors with a buffer and those without one."""
        if not (group["fused"] and group["momentum"]):
            return [group]
        begun = [p for p in group["params"] if self.state.get(p, {}).get("momentum_buffer") is not None]
        fresh = [p for p in group["params"] if self.state.get(p, {}).get("momentum_buffer") is None]
        return [{**group, "params": params} for params in (begun, fresh) if params]

    def _update_pieces(self, pieces: Sequence[Flat], group: Group, weight_decay: float) -> None:
        momentum, lr = group["momentum"], float(group["lr"])
        for flat in pieces:
            gradient = self._ascended(flat.gradient, flat.weights, group, weight_decay)
            if momentum:
                buffer = flat.state["momentum_buffer"]
                buffer.mul_(momentum).add_(gradient, alpha=1 - group["dampening"])
                gradient = gradient.add_(buffer, alpha=momentum) if group["nesterov"] else buffer
            flat.weights.add_(gradient, alpha=-lr)

    def _ascended(self, gradient: Any, weights: Tensor, group: Group, weight_decay: float) -> Tensor:
        """The gradient as the momentum gets it, a float32 copy: its sign, and λ·w where it is coupled."""
        seen: Tensor = (-gradient if group["maximize"] else gradient).to(torch.float32, copy=True).contiguous()
        return seen.add_(weights, alpha=float(weight_decay)) if group_rule(group).coupled else seen
