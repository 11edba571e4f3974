"""veGiantModel walks over modules to collect what decays, and meets the tied embedding twice.

In one group, torch only warns of a tensor that is there twice, and steps it twice: it trains and decays at double rate.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train
from torch import nn


def groups_for_weight_decay(model: nn.Module) -> list[dict[str, Any]]:
    decay: dict[str, Any] = {"params": [], "weight_decay": 0.1}
    no_decay: dict[str, Any] = {"params": [], "weight_decay": 0.0}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            (no_decay if isinstance(module, nn.RMSNorm) or name == "bias" else decay)["params"].append(p)
    return [decay, no_decay]


def once(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**group, "params": list({id(p): p for p in group["params"]}.values())} for group in groups]


def loop(*, only_once: bool) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    model.head.weight = model.tokens.weight
    groups = groups_for_weight_decay(model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate parameters")
        optimizer = torch.optim.AdamW(once(groups) if only_once else groups, lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="veGiantModel",
    reference="https://github.com/volcengine/veGiantModel/issues/6",
    bug="the tied embedding is in a group twice",
    code="doubled",
    severity="error",
    tensors=["tokens.weight"],
    wrong=lambda: loop(only_once=False),
    mended=lambda: loop(only_once=True),
)
