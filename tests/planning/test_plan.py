from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.errors import PlanError
from weightdecay.planning.roles.roles import Role


class RootMeanSquare(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class TiedDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.Linear(16, 16)
        self.norm = RootMeanSquare(16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.mix(self.embed(tokens))))
        return logits


def test_every_tensor_is_in_the_plan_once_and_in_the_order_of_the_model() -> None:
    model = TiedDecoder()
    plan = weightdecay.plan(model)
    assert [tensor.name for tensor in plan] == [name for name, _ in model.named_parameters()]
    assert len(plan) == 4
    assert plan["embed.weight"].aliases == ("head.weight",)
    assert plan["head.weight"] is plan["embed.weight"]
    assert plan["embed.weight"].roles[0] is Role.EMBEDDING


def test_the_groups_hold_each_trainable_tensor_once_with_its_name() -> None:
    model = TiedDecoder()
    groups = weightdecay.plan(model, weight_decay=0.3).param_groups(lr=2e-3, betas=(0.9, 0.95))
    assert [(group["name"], group["weight_decay"], group["lr"]) for group in groups] == [
        ("decay", 0.3, 2e-3),
        ("no_decay", 0.0, 2e-3),
    ]
    assert groups[0]["param_names"] == ["embed.weight", "mix.weight"]
    assert groups[1]["param_names"] == ["mix.bias", "norm.weight"]
    assert groups[0]["params"][0] is model.embed.weight
    assert groups[1]["betas"] == (0.9, 0.95)
    torch.optim.AdamW(groups)


def test_a_copied_plan_carries_no_weights_and_says_so() -> None:
    plan = weightdecay.plan(TiedDecoder())
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert list(other) == list(plan)
        with pytest.raises(PlanError, match=r"plan\.on\(model\)"):
            other.param_groups(lr=1e-3)


def test_a_name_that_is_not_there_is_answered_with_its_nearest() -> None:
    with pytest.raises(PlanError, match=r"did you mean 'norm\.weight'"):
        weightdecay.plan(TiedDecoder())["norm.wieght"]


def test_frozen_tensors_are_planned_but_in_no_group() -> None:
    model = TiedDecoder()
    model.mix.weight.requires_grad_(False)
    plan = weightdecay.plan(model)
    assert plan["mix.weight"].roles == (Role.FROZEN, Role.LINEAR)
    assert not plan["mix.weight"].decays
    assert "mix.weight" not in [name for group in plan.param_groups(lr=1.0) for name in group["param_names"]]
