"""timm's layer-wise rates are a key `lr_scale` in the groups, which only timm's own schedulers read.

With any other loop all layers train, and decay, at the full rate: the key is carried along and nobody looks at it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups


def layer_wise(model: LanguageModel, weight_decay: float, layer_decay: float = 0.75) -> list[dict[str, Any]]:
    """The last block at the full rate, each below at 0.75 of the one above."""
    depth = {id(p): index for index, block in enumerate(model.blocks) for p in block.parameters()}
    groups = []
    for group in two_groups(model.parameters(), weight_decay):
        for p in group["params"]:
            scale = layer_decay ** (len(model.blocks) - 1 - depth[id(p)]) if id(p) in depth else 1.0
            groups.append({"params": [p], "weight_decay": group["weight_decay"], "lr_scale": scale})
    return groups


def as_a_key(groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:  # noqa: ARG001
    return groups


def as_rates(groups: list[dict[str, Any]], lr: float) -> list[dict[str, Any]]:
    return [{**group, "lr": lr * group.pop("lr_scale")} for group in groups]


def loop(scaled: Callable[[list[dict[str, Any]], float], list[dict[str, Any]]]) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel(blocks=4)
    optimizer = torch.optim.AdamW(scaled(layer_wise(model, weight_decay=0.05), 1e-3), lr=1e-3)
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.05})


EXHIBIT = Exhibit(
    project="timm",
    reference="https://github.com/huggingface/pytorch-image-models/pull/2532",
    bug="layer-wise rates as `lr_scale`, which no optimizer reads",
    code="ignored-key",
    severity="error",
    tensors=["blocks.0.up.weight", "blocks.1.up.weight"],
    wrong=lambda: loop(as_a_key),
    mended=lambda: loop(as_rates),
)
