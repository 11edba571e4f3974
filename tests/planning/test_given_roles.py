"""A role that a user gives to tensors: the policy, the table, the lock and the optimizers go by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay import Override, PlanError, Role
from weightdecay.planning.lockfile import read_lock, write_lock
from weightdecay.planning.roles.roles import DECAYING


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))


def test_the_table_shows_a_given_role_with_its_reason() -> None:
    plan = weightdecay.plan(net(), overrides=[Override("0.weight", role=Role.ROUTER, reason="it sends to experts")])
    assert plan["0.weight"].role is Role.ROUTER
    assert plan["0.weight"].reason == "router weight: override '0.weight': it sends to experts"
    assert "router weight" in str(plan)
    assert plan["2.weight"].role is not Role.ROUTER


@pytest.mark.parametrize("role", [role for role in Role if role not in (Role.FROZEN, Role.UNKNOWN)])
def test_the_policy_decides_by_the_given_role(role: Role) -> None:
    plan = weightdecay.plan(net(), overrides=[Override("0.weight", role=role)])
    assert plan["0.weight"].decays == (role in DECAYING)


def test_muon_goes_by_the_given_role() -> None:
    def algorithms(**given: Any) -> dict[str, str]:
        muon = weightdecay.Muon(weightdecay.plan(net(), **given), lr=0.1)
        return {name: group["algorithm"] for group in muon.param_groups for name in group["param_names"]}

    assert algorithms()["0.weight"] == "muon"
    assert algorithms(overrides=[Override("0.weight", role=Role.ROUTER)])["0.weight"] == "adamw"


def test_a_role_alone_leaves_the_shares_to_other_overrides() -> None:
    shares, role = Override("weight", 0.5, lr_multiplier=2.0), Override("0", role=Role.ROUTER)
    for overrides in ([shares, role], [role, shares]):
        tensor = weightdecay.plan(net(), overrides=overrides)["0.weight"]
        assert (tensor.role, tensor.multiplier, tensor.lr_multiplier) == (Role.ROUTER, 0.5, 2.0)


def test_what_is_frozen_stays_frozen() -> None:
    model = net()
    model[0].requires_grad_(False)  # type: ignore[index]
    tensor = weightdecay.plan(model, overrides=[Override("0.weight", role=Role.LINEAR)])["0.weight"]
    assert tensor.frozen
    assert Role.LINEAR in tensor.roles


def test_a_given_role_is_an_answer_where_nothing_else_tells_one() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.thing = nn.Parameter(torch.randn(2, 3))

    with pytest.raises(PlanError, match="unknown role"):
        weightdecay.plan(Table())
    assert weightdecay.plan(Table(), overrides=[Override("thing", role=Role.EMBEDDING)])["thing"].decays


def test_it_comes_from_a_policy_file_and_stays_in_the_lock(tmp_path: Path) -> None:
    policy = tmp_path / "mine.toml"
    policy.write_text('[[override]]\npattern = "0.weight"\nrole = "router weight"\n', encoding="utf-8")
    plan = weightdecay.plan(net(), policy=policy)
    assert plan["0.weight"].role is Role.ROUTER
    write_lock(plan, tmp_path / "lock.json")
    assert not plan.diff(read_lock(tmp_path / "lock.json"))


@pytest.mark.parametrize("wrong", ["router wieght", 3, True, ["router weight"]])
def test_a_role_that_is_none_is_named_with_the_nearest(wrong: Any) -> None:
    with pytest.raises(PlanError, match=r"role .* of '0.weight'"):
        weightdecay.plan(net(), overrides=[Override("0.weight", role=wrong)])
    with pytest.raises(PlanError, match="did you mean 'router weight'"):
        weightdecay.plan(net(), overrides=[Override("0.weight", role="router wieght")])  # type: ignore[arg-type]
