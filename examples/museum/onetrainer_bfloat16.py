"""OneTrainer's AdamW rounds its update stochastically, and its decay not at all: in bfloat16 nothing decays.

The decay is a multiplication of the bfloat16 weights by 1 − ηλ. That is closer to 1 than bfloat16 can tell, so the
product is the weight itself, at every step, whatever λ says.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.adam import Optimizer, adam
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups
from torch import Tensor


def rounded_stochastically(value: Tensor) -> Tensor:
    """bfloat16 is float32 without its last 16 bits: random ones are added to them before they are cut off."""
    bits = value.view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)
    return ((bits + noise) & -65536).view(torch.float32).bfloat16()


class AdamW(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        update = group["lr"] * adam(state, p.grad)
        decayed = p * (1 - group["lr"] * group["weight_decay"])
        p.copy_(rounded_stochastically(decayed.float() - update))


class MendedAdamW(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        update = group["lr"] * adam(state, p.grad)
        decayed = p.float() * (1 - group["lr"] * group["weight_decay"])
        p.copy_(rounded_stochastically(decayed - update))


def loop(adamw: type[Optimizer]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel(width=64).bfloat16()
    optimizer = adamw(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="OneTrainer",
    reference="https://github.com/Nerogar/OneTrainer/issues/996",
    bug="bfloat16 decay beside a stochastically rounded update",
    code="lost-to-rounding",
    severity="error",
    tensors=["tokens.weight", "blocks.0.up.weight", "head.weight"],
    wrong=lambda: loop(AdamW),
    mended=lambda: loop(MendedAdamW),
)
