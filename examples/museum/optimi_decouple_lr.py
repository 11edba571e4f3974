"""optimi's `decouple_lr` divides by `max_lr`, which is the constructor's lr for all groups unless each says otherwise.

The rule is λ·η/peak. A head at ten times the rate of the rest decays ten times as fast, although its λ is the same and
the point of the rule is that λ alone says how fast.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.adam import Optimizer, adam
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups


class AdamW(Optimizer):
    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, weight_decay, max_lr=lr)

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        kept = 1 - group["lr"] / group["max_lr"] * group["weight_decay"]
        p.mul_(kept).sub_(group["lr"] * adam(state, p.grad))


def loop(**of_the_head: float) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    body = [p for p in model.parameters() if p is not model.head.weight]
    groups = two_groups(body, 1e-4)
    groups.append({"params": [model.head.weight], "lr": 1e-2, "weight_decay": 1e-4, **of_the_head})

    optimizer = AdamW(groups, lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 1e-4})


EXHIBIT = Exhibit(
    project="optimi",
    reference="https://github.com/warner-benjamin/optimi/blob/0060dd9087a11fccf7d63d9caaaefd8386b1b7e5/optimi/optimizer.py",
    bug="fully decoupled decay takes one max_lr for all groups",
    code="wrong-scale",
    severity="error",
    tensors=["head.weight"],
    wrong=lambda: loop(),
    mended=lambda: loop(max_lr=1e-2),
)
