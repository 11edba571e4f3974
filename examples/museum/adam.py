"""What the exhibits' optimizers have in common: a walk over tensors, and Adam's update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Optimizer(torch.optim.Optimizer):
    """Changes every tensor that has a gradient."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, **settings: Any) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **settings})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.change(p, self.state[p], group)

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        raise NotImplementedError


def adam(state: dict[str, Any], grad: Tensor) -> Tensor:
    """m̂ / (√v̂ + ε), in float32, with its moments kept in `state`."""
    if not state:
        state.update(
            step=0, m=torch.zeros_like(grad, dtype=torch.float32), v=torch.zeros_like(grad, dtype=torch.float32)
        )
    state["step"] += 1
    m = state["m"].lerp_(grad.float(), 1 - 0.9) / (1 - 0.9 ** state["step"])
    v = state["v"].lerp_(grad.float().square(), 1 - 0.99) / (1 - 0.99 ** state["step"])
    update: Tensor = m / (v.sqrt() + 1e-8)
    return update
