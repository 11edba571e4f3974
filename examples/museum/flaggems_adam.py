"""FlagGems' fused kernel for `torch.optim.Adam` followed AdamW's rule.

`aten::_fused_adam` adds λ·w to the gradient, where the moments see it; the Triton kernel shrank the weights instead.
At λ = 0 both are the same, and there they were compared.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.adam import Optimizer, adam
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups


class FusedAdam(torch.optim.Adam):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        Optimizer.step(self)  # type: ignore[arg-type]

    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * adam(state, p.grad))


class MendedFusedAdam(FusedAdam):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.sub_(group["lr"] * adam(state, p.grad + group["weight_decay"] * p))


def loop(kernel: type[FusedAdam]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    optimizer = kernel(two_groups(model.parameters(), 0.01), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.01, "rule": "l2"})


EXHIBIT = Exhibit(
    project="FlagGems",
    reference="https://github.com/flagos-ai/FlagGems/issues/4988",
    bug="the fused kernel of Adam decays as AdamW",
    code="decoupled",
    severity="warning",
    tensors=["tokens.weight", "blocks.0.up.weight", "head.weight"],
    wrong=lambda: loop(FusedAdam),
    mended=lambda: loop(MendedFusedAdam),
)
