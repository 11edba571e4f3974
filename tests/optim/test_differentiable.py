"""Steps that autograd goes through: `differentiable=True`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.sgdw import SGDW
from weightdecay.rules import Rule


@pytest.mark.parametrize(
    ("cls", "rule"),
    [(AdamW, "decoupled"), (AdamW, "cautious"), (AdamW, "towards_one"), (AdamL2, "l2"), (SGDW, "l2"), (SGDW, "fixed")],
)
def test_a_differentiable_step_has_the_gradient_of_its_formula(cls: Any, rule: str) -> None:
    def stepped(w: Tensor) -> Tensor:
        p = w.clone()
        p.grad = torch.full_like(p, 0.5)
        cls([p], lr=0.1, weight_decay=0.2, rule=rule, differentiable=True).step()
        return p

    w = torch.tensor([1.5, -0.7, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stepped, (w,))
    (gradient,) = torch.autograd.grad(stepped(w).sum(), w)
    if rule == "decoupled":
        assert torch.allclose(gradient, torch.full_like(w, 1 - 0.1 * 0.2))
    if rule == "cautious":  # u has the sign of the gradient, which is positive
        assert torch.allclose(gradient, torch.where(w > 0, 1 - 0.1 * 0.2, 1.0).double())


@pytest.mark.parametrize(
    ("cls", "rule"),
    [
        (AdamW, "cautious"), (AdamW, "fixed"), (AdamW, "towards_initial"), (SGDW, "cautious"), (SGDW, "l2"),
        (AdamW, Rule("mine", mask="strictly_agreeing", target="one")),
    ],
)  # fmt: skip
def test_the_gradient_goes_through_steps_to_the_gradients_that_they_take(cls: Any, rule: Any) -> None:
    def stepped(w: Tensor, gradient: Tensor) -> Tensor:
        p = w.clone()
        optimizer = cls([p], lr=0.1, weight_decay=0.2, rule=rule, differentiable=True)
        for _ in range(2):
            p.grad = gradient * gradient.sin()
            optimizer.step()
        return p

    w, gradient = ([1.5, -0.7, 0.3], [0.8, 0.4, -0.9])
    assert torch.autograd.gradcheck(
        stepped, tuple(torch.tensor(given, dtype=torch.float64, requires_grad=True) for given in (w, gradient))
    )


@pytest.mark.parametrize(("cls", "rule"), [(AdamW, "decoupled"), (AdamL2, "l2"), (SGDW, "l2")])
@pytest.mark.parametrize("setting", ["lr", "weight_decay"])
def test_a_differentiable_step_has_the_gradient_of_lr_and_weight_decay(cls: Any, rule: str, setting: str) -> None:
    def loss(value: Tensor) -> Tensor:
        p = torch.tensor([1.5, -0.7], dtype=torch.float64, requires_grad=True).clone()
        optimizer = cls(
            [p], **{"lr": 0.01, "weight_decay": 0.2, setting: value.clone()}, rule=rule, differentiable=True
        )
        for _ in range(2):
            p.grad = p.clone() ** 2
            optimizer.step()
        return p.square().sum()

    assert torch.autograd.gradcheck(loss, (torch.tensor(0.05, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize(
    ("cls", "rule"), [(AdamW, "fixed"), (AdamW, "lr_squared"), (AdamW, "towards_one"), (SGDW, "decoupled")]
)
@pytest.mark.parametrize("setting", ["lr", "weight_decay"])
def test_where_that_gradient_would_be_lost_the_step_is_refused(cls: Any, rule: str, setting: str) -> None:
    p = torch.ones(2, requires_grad=True).clone()
    p.grad = torch.ones(2)
    asked = {"lr": 0.01, "weight_decay": 0.2, setting: torch.tensor(0.05, requires_grad=True)}
    optimizer = cls([p], **asked, rule=rule, differentiable=True)
    with pytest.raises(OptimizerError, match=f"rule '{rule}' of {cls.__name__} passes no gradient on"):
        optimizer.step()
    assert not optimizer.state
