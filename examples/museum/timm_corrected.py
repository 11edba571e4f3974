"""timm's `corrected_weight_decay` divides by the optimizer's default lr, whatever the group's own peak is.

The rule is λ·η²/peak. With `defaults["lr"]` as everybody's peak, a group at ten times that rate decays ten times as
much as it should.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.adam import Optimizer, adam
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups


class AdamC(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        scale = group["lr"] ** 2 / self.peak(group)
        p.mul_(1 - scale * group["weight_decay"]).sub_(group["lr"] * adam(state, p.grad))

    def peak(self, group: dict[str, Any]) -> float:  # noqa: ARG002
        return float(self.defaults["lr"])


class MendedAdamC(AdamC):
    def peak(self, group: dict[str, Any]) -> float:
        return float(group["initial_lr"])


def loop(adamc: type[AdamC]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    body = [p for p in model.parameters() if p is not model.head.weight]
    groups = two_groups(body, 0.1)
    groups.append({"params": [model.head.weight], "lr": 1e-2, "weight_decay": 0.1})

    optimizer = adamc(groups, lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.5)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="timm",
    reference="https://github.com/huggingface/pytorch-image-models/blob/29993ffcca12b19a02ba44cd2849e82c0a9f841f/timm/optim/adamw.py",
    bug="corrected decay takes one peak for all groups",
    code="wrong-scale",
    severity="error",
    tensors=["head.weight"],
    wrong=lambda: loop(AdamC),
    mended=lambda: loop(MendedAdamC),
)
