"""labml's RWKV takes nanoGPT's rule, that what has two axes decays, and RWKV's time mixes have three.

`time_mix_key` is a gain of shape (1, 1, d) between this token and the one before; decay pulls it to "the one before".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import WIDTH, LanguageModel, train
from torch import Tensor, nn

import weightdecay


class ChannelMixing(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_mix_key = nn.Parameter(torch.linspace(0, 1, width).view(1, 1, width))
        self.time_mix_receptance = nn.Parameter(torch.linspace(0, 1, width).view(1, 1, width))
        self.key, self.value = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        previous = F.pad(x, (0, 0, 1, -1))
        key = self.key(x * self.time_mix_key + previous * (1 - self.time_mix_key))
        receptance = self.receptance(x * self.time_mix_receptance + previous * (1 - self.time_mix_receptance))
        mixed: Tensor = receptance.sigmoid() * self.value(key.relu().square())
        return x + mixed


def by_axes(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]


def by_role(model: nn.Module) -> list[dict[str, Any]]:
    return weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3)


def loop(groups: Callable[[nn.Module], list[dict[str, Any]]]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    model.blocks = nn.ModuleList(ChannelMixing(WIDTH) for _ in range(2))
    optimizer = torch.optim.AdamW(groups(model), lr=1e-3, betas=(0.9, 0.95))
    train(model, optimizer)
    return Loop(model, optimizer, {"policy": "default", "weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="labml RWKV",
    reference="https://github.com/labmlai/annotated_deep_learning_paper_implementations/blob/25ce87769f38fcc7b068f0a37223278de96fe354/labml_nn/RWKV/experiment.py",
    bug="`dim() >= 2` decays time mixes of shape (1, 1, d)",
    code="decays-exempt",
    severity="error",
    tensors=["blocks.0.time_mix_key", "blocks.1.time_mix_receptance"],
    wrong=lambda: loop(by_axes),
    mended=lambda: loop(by_role),
)
