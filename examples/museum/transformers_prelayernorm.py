"""transformers' Trainer exempts whole linear layers because a module above them is called "…layernorm".

`Trainer.get_decay_parameter_names` looks for "layernorm" in the whole path of a tensor, in lower case. In
RoBERTa-PreLayerNorm the path of every encoder layer begins with `roberta_prelayernorm`: 24 of 25 linear layers of a
model of 4 layers do not decay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import VOCABULARY, WIDTH, LanguageModel, train
from torch import Tensor, nn

import weightdecay

FORBIDDEN = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]


class ForMaskedLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.roberta_prelayernorm = LanguageModel()
        self.roberta_prelayernorm.head = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.roberta_prelayernorm(ids))
        return logits


def by_path(model: nn.Module) -> list[dict[str, Any]]:
    exempt = [any(re.search(pattern, name.lower()) for pattern in FORBIDDEN) for name, _ in model.named_parameters()]
    pairs = list(zip(exempt, model.parameters(), strict=True))
    return [
        {"params": [p for is_exempt, p in pairs if not is_exempt], "weight_decay": 0.1},
        {"params": [p for is_exempt, p in pairs if is_exempt], "weight_decay": 0.0},
    ]


def by_role(model: nn.Module) -> list[dict[str, Any]]:
    return weightdecay.plan(model, weight_decay=0.1).param_groups(lr=1e-3)


def loop(groups: Callable[[nn.Module], list[dict[str, Any]]]) -> Loop:
    torch.manual_seed(0)
    model = ForMaskedLM()
    optimizer = torch.optim.AdamW(groups(model), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"policy": "default", "weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="transformers",
    reference="https://github.com/huggingface/transformers/pull/35927",
    bug='"layernorm" in a module\'s path exempts its linear layers',
    code="exempt-matrix",
    severity="error",
    tensors=["roberta_prelayernorm.blocks.0.up.weight", "roberta_prelayernorm.blocks.1.down.weight"],
    wrong=lambda: loop(by_path),
    mended=lambda: loop(by_role),
)
