"""Lion: the sign of an interpolated momentum.

    u ← sign(β1·m + (1 − β1)·g)          w ← (decay of w) − η_t·u          m ← β2·m + (1 − β2)·g

Every element moves by η_t, so λ is usually 3 to 10 times AdamW's, with η as many times smaller.

Reference: Chen et al. 2023, arXiv:2302.06675, program 1 and §5 for η and λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weightdecay.optim.elementwise import ElementwiseOptimizer
from weightdecay.optim.grouping import Group, Params, Rules, with_gradient
from weightdecay.optim.pieces import Flat
from weightdecay.optim.roundings import NEAREST, RoundingLike
from weightdecay.rules import DECOUPLED


class _Settings(torch.optim.Optimizer):
    """torch has no Lion whose constructor would take its settings by name."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, settings)


class Lion(ElementwiseOptimizer, _Settings):
    """Lion with a decay rule; a for-loop and a foreach path.

    Args:
        params, lr, weight_decay, rule, peak_lr, rounding, maximize: as in `weightdecay.AdamW`.
        betas: β1 of the interpolation and β2 of the momentum.
        foreach: work on all tensors at once; None chooses it on CUDA, as torch does.

    Raises:
        OptimizerError: with every fault of every group; at a step for sparse gradients.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        rule: Rules = DECOUPLED,
        peak_lr: float | None = None,
        rounding: RoundingLike = NEAREST,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        self._construct(locals())

    def _direction_step(self) -> None:
        for group in self.param_groups:
            weights: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            for p in with_gradient(group):
                if self.state[p].get("exp_avg") is None:
                    self.state[p]["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                for listed, tensor in ((weights, p), (gradients, p.grad), (momenta, self.state[p]["exp_avg"])):
                    listed.append(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
            if weights:
                _step(weights, gradients, momenta, group)

    def _next_direction(self, group: Group) -> tuple[str, tuple[float, float]]:
        beta1 = group["betas"][0]
        return "exp_avg", (beta1, 1 - beta1)

    def _state_names(self, group: Group) -> tuple[str, ...]:  # noqa: ARG002
        return ("exp_avg",)

    def _update_pieces(self, pieces: Sequence[Flat], group: Group, weight_decay: float) -> None:
        one_by_one = {**group, "weight_decay": weight_decay, "foreach": False}
        for flat in pieces:
            _step([flat.weights], [flat.gradient], [flat.state["exp_avg"]], one_by_one)


def _step(weights: list[Tensor], gradients: list[Tensor], momenta: list[Tensor], group: Group) -> None:
    """One step of tensors that are real, with decoupled decay."""
    (beta1, beta2), lr = group["betas"], float(group["lr"])
    keep = 1 - lr * float(group["weight_decay"])
    foreach = group["foreach"]
    if foreach or (foreach is None and all(w.is_cuda for w in weights)):
        if group["maximize"]:
            gradients = list(torch._foreach_neg(gradients))
        torch._foreach_mul_(weights, keep)
        directions = torch._foreach_lerp(momenta, gradients, 1 - beta1)
        torch._foreach_sign_(directions)
        torch._foreach_add_(weights, directions, alpha=-lr)
        torch._foreach_lerp_(momenta, gradients, 1 - beta2)
        return
    for w, g, m in zip(weights, gradients, momenta, strict=True):
        gradient = -g if group["maximize"] else g
        w.mul_(keep)
        w.add_(m.lerp(gradient, 1 - beta1).sign_(), alpha=-lr)
        m.lerp_(gradient, 1 - beta2)
