"""Neuron_SP's wrapper decays the weights itself, and then steps an AdamW whose groups still carry their λ.

Each half is right alone. Together every step decays twice, and a run at λ = 0.1 is one at 0.2.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups


class DistributedOptimizer:
    """Not a `torch.optim.Optimizer`: something with groups and a step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.weight_decay = [group["weight_decay"] for group in optimizer.param_groups]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @torch.no_grad()
    def step(self) -> None:
        for group, weight_decay in zip(self.param_groups, self.weight_decay, strict=True):
            for p in group["params"]:
                p.mul_(1 - group["lr"] * weight_decay)
        self.optimizer.step()


class MendedOptimizer(DistributedOptimizer):
    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer)
        for group in self.param_groups:
            group["weight_decay"] = 0.0


def loop(wrapper: type[DistributedOptimizer]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    optimizer = wrapper(torch.optim.AdamW(two_groups(model.parameters(), 0.1), lr=1e-3))
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="Neuron_SP",
    reference="https://github.com/dylanyunlon/Neuron_SP/issues/13",
    bug="a wrapper decays, and so does the optimizer in it",
    code="decays-twice",
    severity="error",
    tensors=["tokens.weight", "blocks.0.up.weight", "head.weight"],
    wrong=lambda: loop(DistributedOptimizer),
    mended=lambda: loop(MendedOptimizer),
)
