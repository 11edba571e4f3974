"""Unknown is an answer: what nothing but its shape tells of is no matrix, and sisters are never told apart by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay import Role
from weightdecay.errors import PlanError


def untraced(name: str, *shapes: tuple[int, ...]) -> nn.Module:
    """A model of which nothing can be run, with an attribute of that name in modules of one class."""

    class Holder(nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

        def forward(self, one: Any, two: Any, three: Any, four: Any, five: Any) -> Any:
            raise NotImplementedError

    return nn.ModuleList(Holder(shape) for shape in shapes)


@pytest.mark.parametrize("shape", [(4, 5), (6, 1152), (10, 10), (256, 256), (3, 3, 3), (1, 2, 16, 16), (32, 64)])
def test_a_small_or_square_table_of_a_strangers_class_is_unknown(shape: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="unknown role"):
        weightdecay.plan(untraced("thing", shape))
    assert weightdecay.plan(untraced("thing", shape), unknown="exempt")["0.thing"].role is Role.UNKNOWN


@pytest.mark.parametrize("name", ["scale_shift_table", "static_alpha", "gate_logits", "residual_mix"])
@pytest.mark.parametrize("shape", [(4, 5), (6, 1152), (300, 200)])
def test_a_name_of_scales_on_a_shape_that_is_none_is_unknown_at_every_size(name: str, shape: tuple[int, ...]) -> None:
    plan = weightdecay.plan(untraced(name, shape), unknown="exempt")
    assert plan[f"0.{name}"].role is Role.UNKNOWN


@pytest.mark.parametrize(
    ("shape", "role"), [((128, 4096), Role.ROUTER), ((8, 128), Role.UNKNOWN), ((128,), Role.SCALE)]
)
def test_a_large_gate_is_the_matrix_that_makes_gates(shape: tuple[int, ...], role: Role) -> None:
    plan = weightdecay.plan(untraced("compress_gate", shape), unknown="exempt")
    assert plan["0.compress_gate"].role is role


@pytest.mark.parametrize("name", ["A", "B", "D"])
def test_a_matrix_is_no_state_space_parameter_by_a_letter(name: str) -> None:
    plan = weightdecay.plan(untraced(name, (4, 64)), unknown="exempt")
    assert plan[f"0.{name}"].role is Role.UNKNOWN


class Routed(nn.Module):
    """Experts of a stranger's class, two of torch's layers as wide as they, and beside them what chooses, or adds."""

    def __init__(self, width: int, *, apart: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.block = nn.Module()
        self.block.qq = nn.Module()
        self.block.qq.xx = nn.Parameter(torch.zeros(4, width, 32))
        self.block.zz = nn.Module() if apart else self.block.qq
        self.block.zz.yy = nn.Parameter(torch.zeros(4, 32))


@pytest.mark.parametrize(("width", "role"), [(32, Role.EXPERT_STACK), (64, Role.EXPERT_STACK), (20, Role.UNKNOWN)])
def test_what_leads_from_one_of_the_models_widths_to_another_is_not_small(width: int, role: Role) -> None:
    plan = weightdecay.plan(Routed(width, apart=True), unknown="exempt", trace=False)
    assert plan["block.qq.xx"].role is role
    assert plan["block.zz.yy"].role is (Role.ROUTER if role is Role.EXPERT_STACK else Role.UNKNOWN)
    assert role is Role.UNKNOWN or plan["block.qq.xx"].by_shape


def test_rows_in_the_module_of_the_experts_may_be_their_biases_and_are_unknown() -> None:
    plan = weightdecay.plan(Routed(32, apart=False), unknown="exempt", trace=False)
    assert plan["block.qq.yy"].role is Role.UNKNOWN


def test_sisters_that_only_their_shapes_would_tell_apart_are_all_unknown() -> None:
    plan = weightdecay.plan(untraced("thing", (300, 200), (4, 5)), unknown="exempt")
    assert {tensor.role for tensor in plan} == {Role.UNKNOWN}


def test_what_is_known_of_one_sister_is_known_of_all_and_said() -> None:
    class Seen(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.thing = nn.Parameter(torch.zeros(size, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.thing if self.thing.shape[0] == 8 else x

    plan = weightdecay.plan(nn.Sequential(Seen(8), Seen(300)), batch=torch.randn(2, 8))
    assert plan["0.thing"].decays
    assert plan["1.thing"].decays
