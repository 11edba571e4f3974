"""tinygrad's Muon computed the decayed weight, used it for a cast, and threw it away.

A refactor had changed what `_step` returns, from the weight to the update. The test went on passing: its lr·λ of 1e-5
was below the tolerance of its comparison.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.adam import Optimizer
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups
from torch import Tensor


def orthogonal(update: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(update, full_matrices=False)
    nearest: Tensor = u @ v
    return nearest


class Muon(Optimizer):
    def change(self, p: Any, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum = state.setdefault("momentum", torch.zeros_like(p)).mul_(0.95).add_(p.grad)
        p.copy_(self.moved(p, orthogonal(momentum), group["lr"], group["weight_decay"]))

    def moved(self, p: Tensor, update: Tensor, lr: float, weight_decay: float) -> Tensor:
        decayed = p * (1 - lr * weight_decay)
        return p - (lr * update).to(decayed.dtype)


class MendedMuon(Muon):
    def moved(self, p: Tensor, update: Tensor, lr: float, weight_decay: float) -> Tensor:
        decayed = p * (1 - lr * weight_decay)
        return decayed - (lr * update).to(decayed.dtype)


def loop(muon: type[Muon]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    hidden = [p for p in model.blocks.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not other for other in hidden)]
    optimizers = [muon(hidden, lr=1e-3, weight_decay=0.1), torch.optim.AdamW(two_groups(rest, 0.1), lr=1e-3)]
    train(model, *optimizers)
    return Loop(model, optimizers, {"weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="tinygrad",
    reference="https://github.com/tinygrad/tinygrad/pull/17709",
    bug="Muon computes the decayed weight and does not use it",
    code="not-decaying",
    severity="error",
    tensors=["blocks.0.up.weight", "blocks.1.down.weight"],
    wrong=lambda: loop(Muon),
    mended=lambda: loop(MendedMuon),
)
