"""Fast-LLM's refactor of its norms forgot one argument, and every gain and bias began to decay.

Parameters are made through one function whose `weight_decay` is True unless the layer says otherwise. The new norm
layers, and then linear biases and state-space tensors, no longer said so. Nothing fails when an exemption is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import WIDTH, LanguageModel, train
from torch import Tensor, nn


class Parameters:
    """Who decays, as the layers say when they make their parameters."""

    def __init__(self) -> None:
        self.exempt: list[nn.Parameter] = []

    def get(self, value: Tensor, *, weight_decay: bool = True) -> nn.Parameter:
        made = nn.Parameter(value)
        if not weight_decay:
            self.exempt.append(made)
        return made

    def groups(self, model: nn.Module, weight_decay: float) -> Iterator[dict[str, Any]]:
        exempt = {id(p) for p in self.exempt}
        yield {"params": [p for p in model.parameters() if id(p) not in exempt], "weight_decay": weight_decay}
        if exempt:
            yield {"params": [p for p in model.parameters() if id(p) in exempt], "weight_decay": 0.0}


class Norm(nn.Module):
    def __init__(self, width: int, parameters: Parameters, **settings: bool) -> None:
        super().__init__()
        self.weight = parameters.get(torch.ones(width), **settings)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight)


class Block(nn.Module):
    def __init__(self, width: int, parameters: Parameters, **settings: bool) -> None:
        super().__init__()
        self.norm = Norm(width, parameters, **settings)
        self.linear = nn.Linear(width, width, bias=False)
        self.bias = parameters.get(torch.zeros(width), **settings)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.norm(x)) + self.bias
        return x + F.gelu(y)


def loop(**settings: bool) -> Loop:
    torch.manual_seed(0)
    model, parameters = LanguageModel(), Parameters()
    model.norm = nn.RMSNorm(WIDTH, elementwise_affine=False)
    model.blocks = nn.ModuleList(Block(WIDTH, parameters, **settings) for _ in range(2))
    optimizer = torch.optim.AdamW(list(parameters.groups(model, 0.1)), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"policy": "default", "weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="Fast-LLM",
    reference="https://github.com/ServiceNow/Fast-LLM/pull/545",
    bug="a refactor drops the exemption of norms and biases",
    code="decays-exempt",
    severity="error",
    tensors=["blocks.0.norm.weight", "blocks.1.bias"],
    wrong=lambda: loop(),
    mended=lambda: loop(weight_decay=False),
)
