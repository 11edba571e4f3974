"""optimi sums its updates with Kahan compensation, and multiplies the bfloat16 weights by 1 − ηλ outside of the sum.

What the compensation is there to keep, the decay loses: the product rounds to the weight itself.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.adam import Optimizer, adam
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups
from torch import Tensor


class AdamW(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        update = adam(state, p.grad)
        rest = state.setdefault("rest", torch.zeros_like(p))  # what earlier steps could not add to the weights

        self.decay(p, rest, group["lr"] * group["weight_decay"])
        rest.sub_(group["lr"] * update)
        before = p.clone()
        p.add_(rest)
        rest.add_(before.sub_(p))

    def decay(self, p: Tensor, rest: Tensor, amount: float) -> None:  # noqa: ARG002
        p.mul_(1 - amount)


class MendedAdamW(AdamW):
    def decay(self, p: Tensor, rest: Tensor, amount: float) -> None:
        rest.sub_(p, alpha=amount)


def loop(adamw: type[AdamW]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel(width=64).bfloat16()
    optimizer = adamw(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="optimi",
    reference="https://github.com/warner-benjamin/optimi/blob/02d8e75b094988b1e7852647016bd78a57592da7/optimi/adam.py",
    bug="bfloat16 decay outside of the Kahan sum",
    code="lost-to-rounding",
    severity="error",
    tensors=["tokens.weight", "blocks.0.up.weight", "head.weight"],
    wrong=lambda: loop(AdamW),
    mended=lambda: loop(MendedAdamW),
)
