"""bitsandbytes' CUDA kernels of Adam and AdEMAMix decay the weight that has already been updated.

The update is shrunk along, by a factor of 1 − ηλ. At usual rates that is one part in ten thousand of a step; what is
lost is that two backends of one library agree.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.adam import Optimizer, adam
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups


class AdamW(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.sub_(group["lr"] * adam(state, p.grad)).mul_(1 - group["lr"] * group["weight_decay"])


class MendedAdamW(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * adam(state, p.grad))


def loop(adamw: type[Optimizer]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    optimizer = adamw(two_groups(model.parameters(), 0.1), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="bitsandbytes",
    reference="https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2010",
    bug="on CUDA the decay acts after the update",
    code="wrong-order",
    severity="note",
    tensors=["tokens.weight", "blocks.0.up.weight", "head.weight"],
    wrong=lambda: loop(AdamW),
    mended=lambda: loop(MendedAdamW),
)
