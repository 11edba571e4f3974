"""A plan survives whatever wraps, shards, compiles or adapts the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import weightdecay
from tests.planning.test_plan import RootMeanSquare, TiedDecoder
from weightdecay.errors import CheckFailedError, PlanError
from weightdecay.planning.roles.roles import Role


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RootMeanSquare(width)
        self.module = nn.Linear(width, width)  # a name that wrappers use too
        self.temperature = nn.Parameter(torch.ones(1, 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.module(self.norm(x)) * self.temperature
        return out


class Stack(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.blocks = nn.ModuleDict({str(index): Block(width) for index in range(2)})
        self.head = nn.Linear(width, 50, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks.values():
            x = block(x)
        logits: torch.Tensor = self.head(x)
        return logits


def test_compiled_parallel_and_averaged_models_have_the_bare_models_plan() -> None:
    model = Stack()
    plan = weightdecay.plan(model)
    ways: list[Any] = [torch.compile, nn.DataParallel, torch.optim.swa_utils.AveragedModel]
    for wrapped in (way(model) for way in ways):
        assert list(weightdecay.plan(wrapped)) == list(plan)
        assert list(plan.on(wrapped)) == list(plan)
    assert "blocks.0.module.weight" in plan


def test_wrappers_around_parts_leave_no_trace_in_names() -> None:
    plan = weightdecay.plan(Stack())
    model: Any = Stack()
    model.blocks["0"] = torch.compile(model.blocks["0"])
    model.embed.compile()
    assert list(weightdecay.plan(model)) == list(plan)
    torch.optim.AdamW(plan.on(model).param_groups(lr=1e-3))


def test_a_pipeline_stage_carries_its_part_of_the_plan() -> None:
    plan = weightdecay.plan(Stack())
    stage: Any = Stack()
    del stage.blocks["0"]
    stage.embed = nn.Identity()
    with pytest.raises(PlanError, match="part=True"):
        plan.on(stage)
    part = plan.on(stage, part=True)
    assert [tensor.name for tensor in part] == [name for name, _ in stage.named_parameters()]
    assert part.check(torch.optim.AdamW(part.param_groups(lr=1e-3))).ok


def test_a_plan_is_refused_for_another_model() -> None:
    plan = weightdecay.plan(Stack())
    with pytest.raises(PlanError) as caught:
        plan.on(Stack(width=24))
    assert len(caught.value.faults) > 5
    with pytest.raises(PlanError, match="does not know mix"):
        plan.on(TiedDecoder())


class BaseTunerLayer(nn.Module):
    """PEFT's layers inherit from a class of this name."""


class LoraLinear(BaseTunerLayer):
    """As PEFT's: the wrapped layer under `base_layer`, the adapters beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 4, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(4, base.out_features, bias=False)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))
        return out


def test_adapters_get_their_roles_and_the_adapted_layers_keep_their_names() -> None:
    model: Any = Stack()
    for block in model.blocks.values():
        block.module = LoraLinear(block.module)
    plan = weightdecay.plan(model)
    assert plan["blocks.0.module.weight"].roles == (Role.FROZEN, Role.LINEAR)
    assert plan["blocks.0.module.lora_A.default.weight"].role is Role.LORA_A
    assert plan["blocks.0.module.lora_B.default.weight"].role is Role.LORA_B
    names = [name for group in plan.param_groups(lr=1.0) for name in group["param_names"]]
    assert "blocks.0.module.lora_A.default.weight" in names
    assert "blocks.0.module.weight" not in names


def test_weight_norm_splits_a_weight_into_a_direction_that_decays_and_a_gain_that_does_not() -> None:
    plan = weightdecay.plan(nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 8)))
    assert plan["0.parametrizations.weight.original0"].role is Role.WEIGHT_NORM_GAIN
    assert plan["0.parametrizations.weight.original1"].role is Role.WEIGHT_NORM_DIRECTION
    assert not plan["0.parametrizations.weight.original0"].decays


def planned_optimizer(model: nn.Module) -> tuple[weightdecay.DecayPlan, torch.optim.Optimizer]:
    plan = weightdecay.plan(model)
    return plan, torch.optim.AdamW(plan.param_groups(lr=1e-3))


def test_an_optimizer_that_carries_the_plan_passes() -> None:
    plan, optimizer = planned_optimizer(Stack())
    found = plan.check(optimizer)
    assert found.ok
    found.raise_if_wrong()


def test_groups_merged_after_the_plan_was_made_are_found() -> None:
    plan, optimizer = planned_optimizer(Stack())
    first, second = optimizer.param_groups
    first["params"] += second["params"]
    first["param_names"] += second["param_names"]
    del optimizer.param_groups[1]
    found = plan.check(optimizer)
    assert "merges what the plan keeps apart" in str(found)
    with pytest.raises(CheckFailedError):
        found.raise_if_wrong()


def test_a_weight_decay_that_a_loaded_state_brought_along_is_found() -> None:
    model = Stack()
    old = torch.optim.AdamW(weightdecay.plan(model, weight_decay=0.01).param_groups(lr=1e-3))
    plan, optimizer = planned_optimizer(model)
    optimizer.load_state_dict(old.state_dict())
    assert "λ 0.01, the plan says 0.1" in str(plan.check(optimizer))


def test_missing_and_doubled_tensors_are_found() -> None:
    plan, optimizer = planned_optimizer(Stack())
    lost = optimizer.param_groups[0]["params"].pop()
    optimizer.param_groups[0]["param_names"].pop()
    assert "in no group" in str(plan.check(optimizer))
    optimizer.param_groups[0]["params"] += [lost, lost]
    optimizer.param_groups[0]["param_names"] += ["head.weight", "head.weight"]
    assert "listed more than once" in str(plan.check(optimizer))


def test_reordered_parameters_under_the_old_names_are_found() -> None:
    plan, optimizer = planned_optimizer(Stack())
    optimizer.param_groups[0]["params"].reverse()
    assert "as if reordered" in str(plan.check(optimizer))


def test_an_optimizer_of_another_copy_of_the_model_is_found() -> None:
    plan, _ = planned_optimizer(Stack())
    _, other = planned_optimizer(Stack())
    assert "before the model was wrapped" in str(plan.check(other))


def test_names_that_a_wrapper_made_are_found() -> None:
    plan, optimizer = planned_optimizer(Stack())
    group = optimizer.param_groups[0]
    group["param_names"] = [f"_orig_mod.{name}" for name in group["param_names"]]
    assert "names that a wrapper made: '_orig_mod.embed.weight'" in str(plan.check(optimizer))
