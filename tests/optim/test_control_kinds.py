"""Control of many groups, and of optimizers whose λ can be taken out of a step, or cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.probing import optimizers as own
from weightdecay.errors import OptimizerError
from weightdecay.optim.control import control
from weightdecay.rules import Rule


def weights(count: int = 1) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(5, 4, generator=generator, dtype=torch.float64)) for _ in range(count)]


def gradient(step: int) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(100 + step), dtype=torch.float64)


def updates(optimizer: torch.optim.Optimizer, steps: int) -> list[list[Tensor]]:
    """What each step subtracts from each weight."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    seen = []
    for step in range(steps):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = gradient(step)
        optimizer.step()
        seen.append([w - p.detach() for w, p in zip(before, params, strict=True)])
    return seen


@pytest.mark.parametrize("rule", ["fixed", Rule("mine", lr_power=1, mask="agreeing")], ids=["fixed", "masked"])
def test_a_decay_behind_the_normalisation_is_taken_out_and_follows_the_rule(rule: Any) -> None:
    (plain,), (p,) = weights(), weights()
    meant = updates(own.DecaysBehindNorm([plain], weight_decay=0.0), 30)
    optimizer = own.DecaysBehindNorm([p], lr=0.1, weight_decay=0.02)
    control(optimizer, rule=rule)
    a = 0.02 if rule == "fixed" else 0.1 * 0.02
    w = p.detach().clone()
    for step, (u,) in enumerate(meant):
        w = w - a * w * (1 if rule == "fixed" else (u * w >= 0)) - u
        p.grad = gradient(step)
        optimizer.step()
        assert torch.allclose(p, w, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (own.BranchesOnDecay, "λ changes its direction"),
        (own.LambdaIsAConstant, "λ moves weights that are 0"),
        (own.LambdaScalesGradient, "λ changes its direction|λ moves weights that are 0"),
        (own.ProjectsOrthogonal, "its update depends on the weights"),
    ],
)
def test_a_lambda_that_does_more_than_decay_is_refused_with_what_it_does(cls: Any, reason: str) -> None:
    rule = Rule("mine", mask="agreeing")  # which no decay of its own could make
    with pytest.raises(OptimizerError, match=reason):
        control(cls(weights(), weight_decay=0.1), rule=rule)


@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.Adam, torch.optim.Adafactor])
def test_each_of_many_equal_groups_decays_as_if_it_were_alone(cls: Any) -> None:
    many = cls([{"params": [p]} for p in weights(20)], lr=0.1, weight_decay=0.02)
    alone = [cls([p], lr=0.1, weight_decay=0.02) for p in weights(20)[::10]]
    for optimizer in (many, *alone):
        control(optimizer, rule="fixed")
        updates(optimizer, 10)
    for index, optimizer in enumerate(alone):
        (p,) = many.param_groups[10 * index]["params"]
        assert torch.equal(p, optimizer.param_groups[0]["params"][0])


def test_a_group_that_becomes_another_than_those_of_its_kind_is_watched_itself() -> None:
    params = weights(3)
    optimizer = own.Lookahead([{"params": [p]} for p in params], lr=0.1, weight_decay=0.1, k=1000)
    control(optimizer, rule="fixed")
    updates(optimizer, 2)
    optimizer.param_groups[1]["k"] = 20
    with pytest.raises(OptimizerError, match=r"group 1\b.*depends on the weights"):
        updates(optimizer, 20)
    assert optimizer.state[params[1]]["step"] < 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adadelta", "Adagrad", "Adamax"])
def test_optimizers_of_torch_are_served_on_half_precision(name: str, dtype: torch.dtype) -> None:
    """In float16 Adam's eps of 1e-8 is 0, and squares of gradients under 0.008 are as well."""
    params = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((30, 20), (30,), (8, 4, 3, 3))]
    optimizer = getattr(torch.optim, name)(params, lr=0.1, weight_decay=0.1)
    held = control(optimizer, rule="fixed")
    assert "exactness seen up to step 16" in repr(held)
