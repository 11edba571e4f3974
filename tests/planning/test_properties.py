"""Whatever the module tree: a plan is a partition, and neither order nor wrapping changes a verdict."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import weightdecay
from tests.planning.test_plan import RootMeanSquare
from weightdecay.planning.policies.policy_file import POLICIES

WIDTH = 6


class Free(nn.Module):
    """Bare parameters of any shape."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        for index, shape in enumerate(shapes):
            self.register_parameter(f"p{index}", nn.Parameter(torch.ones(shape)))


leaves = st.one_of(
    st.builds(nn.Linear, st.just(WIDTH), st.just(WIDTH), bias=st.booleans()),
    st.builds(nn.Embedding, st.integers(1, 9), st.just(WIDTH)),
    st.builds(nn.LayerNorm, st.just(WIDTH), elementwise_affine=st.booleans()),
    st.builds(nn.Conv1d, st.just(WIDTH), st.just(WIDTH), st.just(3)),
    st.builds(RootMeanSquare, st.just(WIDTH)),
    st.builds(nn.Identity),
    st.builds(Free, st.lists(st.lists(st.integers(1, 8), max_size=4).map(tuple), max_size=3)),
)
trees: st.SearchStrategy[nn.Module] = st.recursive(
    leaves,
    lambda inner: st.lists(inner, min_size=1, max_size=4).map(lambda parts: nn.Sequential(*parts)),
    max_leaves=12,
)
calm = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


def has_parameters(model: nn.Module) -> bool:
    return next(model.parameters(), None) is not None


@calm
@given(model=trees.filter(has_parameters), policy=st.sampled_from(sorted(POLICIES)), tie=st.booleans())
def test_a_plan_is_a_partition_of_the_parameters(model: nn.Module, policy: Any, tie: bool) -> None:
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if tie and len(linears) > 1:
        linears[-1].weight = linears[0].weight
    plan = weightdecay.plan(model, policy=policy, unknown="exempt")
    assert [tensor.name for tensor in plan] == [name for name, _ in model.named_parameters()]
    groups = plan.param_groups(lr=1.0)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted({id(parameter) for parameter in model.parameters()})
    assert plan.check(torch.optim.AdamW(groups)).ok


@calm
@given(model=trees.filter(has_parameters))
def test_a_wrapper_changes_no_verdict(model: nn.Module) -> None:
    bare = weightdecay.plan(model, unknown="exempt")
    assert list(weightdecay.plan(nn.DataParallel(model), unknown="exempt")) == list(bare)
    compiled: Any = torch.compile(model)
    assert list(weightdecay.plan(compiled, unknown="exempt")) == list(bare)


@calm
@given(parts=st.lists(leaves, min_size=2, max_size=5), order=st.randoms(use_true_random=False))
def test_the_order_of_registration_changes_no_verdict(parts: list[nn.Module], order: Any) -> None:
    names = [f"part{index}" for index in range(len(parts))]
    shuffled = order.sample(names, len(names))
    first = nn.ModuleDict(dict(zip(names, parts, strict=True)))
    if not has_parameters(first):
        return
    second = nn.ModuleDict({name: first[name] for name in shuffled})
    plan, other = (weightdecay.plan(model, unknown="exempt") for model in (first, second))
    assert not plan.diff(other)
