"""HVPNeT builds its groups in a loop, and the group of the CRF and the classifier is never appended.

What no optimizer holds neither trains nor decays, and nothing fails: the loss falls, for the rest learns around it.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train


def groups_of(model: LanguageModel, *, append_the_last: bool) -> list[dict[str, Any]]:
    groups = []
    body = [p for name, p in model.named_parameters() if "head" not in name]

    params: dict[str, Any] = {"lr": 3e-5, "weight_decay": 0.01, "params": []}
    params["params"] = [p for p in body if p.ndim == 2]
    groups.append(params)

    params = {"lr": 3e-5, "weight_decay": 0.0, "params": []}
    params["params"] = [p for p in body if p.ndim < 2]
    groups.append(params)

    params = {"lr": 5e-2, "weight_decay": 0.01, "params": []}
    params["params"] = [p for name, p in model.named_parameters() if "head" in name]
    if append_the_last:
        groups.append(params)
    return groups


def loop(*, append_the_last: bool) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    optimizer = torch.optim.AdamW(groups_of(model, append_the_last=append_the_last))
    train(model, optimizer)
    return Loop(model, optimizer, {"weight_decay": 0.01})


EXHIBIT = Exhibit(
    project="HVPNeT",
    reference="https://github.com/zjunlp/HVPNeT/issues/5",
    bug="the classifier's group is made and never appended",
    code="missing",
    severity="error",
    tensors=["head.weight"],
    wrong=lambda: loop(append_the_last=False),
    mended=lambda: loop(append_the_last=True),
)
