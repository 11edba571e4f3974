"""OLMo resumes a run without decay at λ = 0.1, and it still does not decay.

Without decay the optimizer has one group, with decay two; `fix_optim_state_dict` makes two of the checkpoint's one,
and both keep its λ of 0. torch's `load_state_dict` then overwrites the λ that was just asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from examples.museum.exhibit import Exhibit, Loop
from examples.museum.language_model import LanguageModel, train, two_groups


def two_groups_of_one(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    (saved,) = state["param_groups"]
    places = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    return {**state, "param_groups": [{**saved, "params": places[0]}, {**saved, "params": places[1]}]}


def two_groups_with_their_decay(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    fixed = two_groups_of_one(optimizer, state)
    for group, asked in zip(fixed["param_groups"], optimizer.param_groups, strict=True):
        group["weight_decay"] = asked["weight_decay"]
    return fixed


def loop(fix: Any) -> Loop:
    torch.manual_seed(0)
    model = LanguageModel()
    before = torch.optim.AdamW(
        [p for group in two_groups(model.parameters(), 0.0) for p in group["params"]], weight_decay=0.0
    )
    train(model, before)

    optimizer = torch.optim.AdamW(two_groups(model.parameters(), 0.1), lr=1e-3)
    optimizer.load_state_dict(fix(optimizer, before.state_dict()))
    return Loop(model, optimizer, {"weight_decay": 0.1})


EXHIBIT = Exhibit(
    project="OLMo",
    reference="https://github.com/allenai/OLMo/blob/0154b50e5e582db35d2d7697c7f01bce7298c917/olmo/optim.py",
    bug="a run resumed with λ 0.1 instead of 0 keeps 0",
    code="stale",
    severity="error",
    tensors=["tokens.weight", "blocks.0.up.weight", "head.weight"],
    wrong=lambda: loop(two_groups_of_one),
    mended=lambda: loop(two_groups_with_their_decay),
)
