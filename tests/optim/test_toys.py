"""Problems whose answer is known in closed form: where the weights end, and how their norm moves."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightdecay.optim.adafactor import Adafactor
from weightdecay.optim.adamw import AdamL2, AdamW
from weightdecay.optim.control import control
from weightdecay.optim.lion import Lion
from weightdecay.optim.sgdw import SGDW
from weightdecay.schedules import Cosine, Linear

A_H = torch.tensor([[5.0, 1.0], [0.5, 1.0], [-5.0, 0.01]], dtype=torch.float64)
CLIPPED = torch.tensor([1.0, 0.5, -1.0], dtype=torch.float64)  # clip(a, ±1/λ)
RIDGE = A_H[:, 1] * A_H[:, 0] / (A_H[:, 1] + 1.0)  # h·a / (h + λ): 2.5, 0.25, −0.0495


def minimise(optimizer_of: Any, steps: int = 4_000, peak: float = 3e-2) -> Tensor:
    """Where f = ½h(w − a)² with λ = 1 ends, from w = 0, under an lr that falls linearly to 0."""
    target, curvature = A_H.unbind(1)
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = optimizer_of([p], lr=peak, weight_decay=1.0)
    lr = Linear(peak, 0.0, steps)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr(step)
        p.grad = curvature * (p.detach() - target)
        optimizer.step()
    return p.detach()


def assert_ends(found: Tensor, expected: Tensor) -> None:
    assert torch.allclose(found, expected, rtol=0, atol=2e-3), found


def test_adamw_ends_at_the_clipped_target() -> None:
    """Decoupled decay bounds a weight by 1/λ and leaves one within the bound alone."""
    assert_ends(minimise(AdamW, steps=12_000, peak=1e-2), CLIPPED)


def test_lion_ends_at_the_clipped_target_too() -> None:
    assert_ends(minimise(Lion), CLIPPED)


def test_adam_with_l2_ends_at_the_ridge_solution() -> None:
    assert_ends(minimise(AdamL2), RIDGE)


@pytest.mark.parametrize("rule", ["l2", "decoupled"])
def test_sgd_ends_at_the_ridge_solution_either_way(rule: Any) -> None:
    assert_ends(minimise(lambda params, **kw: SGDW(params, rule=rule, **kw)), RIDGE)


@pytest.mark.long
def test_unscaled_adafactor_ends_at_the_clipped_target() -> None:
    """Each weight in a tensor of its own: Adafactor clips the RMS of a tensor's update."""

    def one_by_one(params: Any, **kwargs: Any) -> Any:
        return Adafactor(params, scale_parameter=False, relative_step=False, eps=(1e-15, 1e-3), **kwargs)

    target, curvature = A_H.unbind(1)
    weights = [nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in target]
    optimizer = one_by_one(weights, lr=1e-2, weight_decay=1.0)
    for step in range(20_000):
        optimizer.param_groups[0]["lr"] = Linear(1e-2, 0.0, 20_000)(step)
        for p, a, h in zip(weights, target, curvature, strict=True):
            p.grad = h * (p.detach() - a)
        optimizer.step()
    assert_ends(torch.cat([p.detach() for p in weights]), CLIPPED)


@pytest.mark.parametrize("rule", ["decoupled", "corrected"])
@pytest.mark.parametrize(("total", "plain_ratio"), [(2, 0.815), (5, 0.671), (10, 0.555), (20, 0.450), (50, 0.337)])
def test_corrected_holds_the_norm_while_the_lr_falls_and_decoupled_does_not(
    rule: Any, total: float, plain_ratio: float
) -> None:
    """W ← (1 − a_t)²·W + η_t² from its equilibrium, a_t as our optimizer decays: Defazio 2025, fig. 4."""
    steps, peak = round(200 * total), 2e-3  # a step takes 0.5% at most, near enough to the differential equation
    weight_decay = total / (peak * steps)
    lr = Cosine(peak, 0.0, steps)
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    optimizer = SGDW([p], lr=peak, weight_decay=weight_decay, rule=rule)
    norm = start = peak / math.sqrt(1 - (1 - peak * weight_decay) ** 2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr(step)
        with torch.no_grad():
            p.fill_(1.0)
        optimizer.step()  # without gradient: what is left is 1 − a_t
        norm = math.sqrt((float(p.detach()) * norm) ** 2 + lr(step) ** 2)
    assert norm / start == pytest.approx(plain_ratio if rule == "decoupled" else 1.0, abs=2e-3)


def test_the_norm_relaxes_after_a_change_of_lambda_as_the_formula_says() -> None:
    """λ .1 → .4 at η = 1e-2, from equilibrium: half-life ln2/(2ηλ) of ‖w‖² − its new equilibrium."""
    elements, lr, first, second = 20_000, 1e-2, 0.1, 0.4
    generator = torch.Generator().manual_seed(0)
    equilibrium = math.sqrt(lr / (2 * first))  # RMS of AdamW's weights under noise
    p = nn.Parameter(equilibrium * torch.randn(elements, generator=generator))
    optimizer = AdamW([p], lr=lr, weight_decay=first, betas=(0.9, 0.999))

    def noise_steps(steps: int) -> float:
        for _ in range(steps):
            p.grad = torch.randn(elements, generator=generator)
            optimizer.step()
        return float(p.detach().square().mean())

    before = noise_steps(2_000)
    optimizer.param_groups[0]["weight_decay"] = second
    for steps, left in ((87, 0.624), (86, 0.438)):
        assert noise_steps(steps) / before == pytest.approx(left, rel=0.03)


def test_a_schedule_of_lambda_by_control_changes_the_norm_just_so() -> None:
    p = nn.Parameter(torch.ones(5, dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    optimizer = torch.optim.AdamW([p], lr=0.1, weight_decay=0.2)
    control(optimizer, schedule=Linear(0.2, 0.0, 10))
    for _ in range(10):
        optimizer.step()
    expected = math.prod(1 - 0.1 * 0.2 * (1 - step / 10) for step in range(10))
    assert torch.allclose(p.detach(), torch.full_like(p, expected), rtol=1e-12)
