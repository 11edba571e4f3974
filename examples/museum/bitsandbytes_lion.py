"""bitsandbytes' 32-bit Lion added λ·w to the gradient, and then took its sign.

What is left of a decay behind a sign is no decay: it turns single steps round where |λ·w| outweighs the gradient, and
does nothing elsewhere. The 8-bit kernel of the same library had it right.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.adam import Optimizer
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups
from torch import Tensor


class Lion(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        grad = p.grad + group["weight_decay"] * p
        p.sub_(group["lr"] * self.direction(state, grad))

    def direction(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        momentum = state.setdefault("momentum", torch.zeros_like(grad))
        direction: Tensor = momentum.lerp(grad, 0.1).sign()
        momentum.lerp_(grad, 0.01)
        return direction


class MendedLion(Lion):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * self.direction(state, p.grad))


def loop(lion: type[Lion]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    optimizer = lion(two_groups(model.parameters(), 1.0), lr=1e-4)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 1.0})


EXHIBIT = Exhibit(
    project="bitsandbytes",
    reference="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1992",
    bug="Lion's decay goes through the gradient's sign",
    code="coupled",
    severity="warning",
    tensors=["tokens.weight", "blocks.0.up.weight", "head.weight"],
    wrong=lambda: loop(Lion),
    mended=lambda: loop(MendedLion),
)
