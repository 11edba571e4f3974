"""One function sets η and λ of a step, in any optimizer, by each group's share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import weightdecay
from weightdecay.errors import OptimizerError
from weightdecay.optim.scheduling import apply_schedules
from weightdecay.schedules import Cosine, Linear, Warmup

numbers = st.floats(0.0, 1.0, allow_subnormal=False)
shares = st.floats(1e-3, 1e3)
steps = st.integers(0, 10_000)

MAKERS: dict[str, Callable[[Any], Any]] = {
    "torch.AdamW": lambda groups: torch.optim.AdamW(groups, lr=1e-3),
    "torch.SGD": lambda groups: torch.optim.SGD(groups, lr=1e-3),
    "AdamW": lambda groups: weightdecay.AdamW(groups, lr=1e-3),
    "Lion": lambda groups: weightdecay.Lion(groups, lr=1e-3),
    "SGDW": lambda groups: weightdecay.SGDW(groups, lr=1e-3),
    "Adafactor": lambda groups: weightdecay.Adafactor(groups, lr=1e-3),
    "Muon": lambda groups: weightdecay.Muon(groups, lr=1e-3),
}


def matrix() -> nn.Parameter:
    return nn.Parameter(torch.ones(3, 4))


def optimizer_of(*settings: dict[str, Any], name: str = "torch.AdamW") -> Any:
    return MAKERS[name]([{"params": [matrix()], **one} for one in settings])


def rates(optimizer: Any) -> list[tuple[float, float]]:
    return [(float(group["lr"]), float(group["weight_decay"])) for group in optimizer.param_groups]


def seen(optimizer: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in copy.deepcopy(g).items() if key != "params"} for g in optimizer.param_groups]


# --- what it sets


@pytest.mark.parametrize("name", MAKERS)
def test_each_group_takes_its_share_of_the_numbers_of_the_step(name: str) -> None:
    optimizer = optimizer_of(
        {"decay_multiplier": 1.0, "lr_multiplier": 1.0, "weight_decay": 0.1},
        {"decay_multiplier": 0.5, "lr_multiplier": 10.0, "weight_decay": 0.05, "lr": 1e-2},
        {"decay_multiplier": 0.0, "lr_multiplier": 1.0, "weight_decay": 0.0},
        name=name,
    )
    lr, weight_decay = Warmup(4, then=Cosine(6e-4, 0.0, steps=96)), Linear(0.2, 0.0, steps=100)
    for step in (0, 3, 50, 100, 1000):
        apply_schedules(optimizer, step, lr=lr, weight_decay=weight_decay)
        η, λ = lr(step), weight_decay(step)
        assert rates(optimizer) == [(η, λ), (η * 10.0, λ * 0.5), (η, 0.0)]
        assert [group["decay_step"] for group in optimizer.param_groups] == [step] * 3


def test_a_plans_groups_are_set_as_the_plan_made_them() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    overrides = [weightdecay.Override("0.weight", 0.3, lr_multiplier=5.0)]
    plan = weightdecay.plan(model, weight_decay=0.1, overrides=overrides)
    optimizer = torch.optim.AdamW(plan.param_groups(lr=1e-3))
    as_planned = rates(optimizer)
    apply_schedules(optimizer, 7, lr=0.0, weight_decay=0.0)
    apply_schedules(optimizer, 8, lr=1e-3, weight_decay=0.1)
    assert rates(optimizer) == as_planned


def test_what_is_not_given_is_left_alone() -> None:
    optimizer = optimizer_of({"weight_decay": 0.1, "lr": 1e-3}, {"weight_decay": 0.2, "lr": 1e-2})
    before = seen(optimizer)
    apply_schedules(optimizer, 3)
    assert seen(optimizer) == before
    apply_schedules(optimizer, 3, weight_decay=0.4)  # λ needs nothing of the lr's shares
    assert rates(optimizer) == [(1e-3, 0.2), (1e-2, 0.4)]
    assert "lr_multiplier" not in optimizer.param_groups[0]


def test_only_the_groups_that_are_given_are_set() -> None:
    optimizer = optimizer_of({"weight_decay": 0.1}, {"weight_decay": 0.05})
    apply_schedules(optimizer, 1, lr=0.5, weight_decay=0.2, groups=optimizer.param_groups[1:])
    assert rates(optimizer) == [(1e-3, 0.1), (0.5, 0.1)]
    assert "decay_step" not in optimizer.param_groups[0]
    apply_schedules(optimizer, 2, lr=0.25, weight_decay=0.2)
    assert rates(optimizer) == [(0.25, 0.2), (0.25, 0.1)]


# --- shares


@given(present=st.lists(numbers, min_size=1, max_size=5), values=st.lists(numbers, min_size=1, max_size=6), step=steps)
def test_proportions_hold_through_any_course_and_through_zero(
    present: list[float], values: list[float], step: int
) -> None:
    largest = max(present)
    if not largest:
        return
    optimizer = optimizer_of(*({"weight_decay": λ} for λ in present))
    for value in [*values, 0.0, *values]:
        apply_schedules(optimizer, step, weight_decay=value)
        assert [λ for _, λ in rates(optimizer)] == [value * (λ / largest) for λ in present]
    apply_schedules(optimizer, step, weight_decay=largest)
    assert [λ for _, λ in rates(optimizer)] == pytest.approx(present, rel=1e-12, abs=1e-300)


@given(decays=st.lists(shares, min_size=1, max_size=4), lr=numbers, weight_decay=numbers, step=steps)
def test_twice_is_once(decays: list[float], lr: float, weight_decay: float, step: int) -> None:
    optimizer = optimizer_of(*({"weight_decay": λ} for λ in decays))
    apply_schedules(optimizer, step, lr=lr, weight_decay=weight_decay)
    once = seen(optimizer)
    apply_schedules(optimizer, step, lr=lr, weight_decay=weight_decay)
    assert seen(optimizer) == once


@given(multipliers=st.lists(st.tuples(shares, shares), min_size=1, max_size=4), lr=numbers, weight_decay=numbers)
def test_multipliers_hold_when_everything_starts_at_zero(
    multipliers: list[tuple[float, float]], lr: float, weight_decay: float
) -> None:
    optimizer = optimizer_of(
        *({"decay_multiplier": m, "lr_multiplier": n, "weight_decay": 0.0, "lr": 0.0} for m, n in multipliers)
    )
    apply_schedules(optimizer, 0, lr=0.0, weight_decay=0.0)
    apply_schedules(optimizer, 1, lr=lr, weight_decay=weight_decay)
    assert rates(optimizer) == [(lr * n, weight_decay * m) for m, n in multipliers]


def test_a_group_that_is_added_is_measured_by_what_the_others_shares_say() -> None:
    optimizer = optimizer_of({"weight_decay": 0.1}, {"weight_decay": 0.05})
    apply_schedules(optimizer, 0, weight_decay=0.04)
    optimizer.add_param_group({"params": [matrix()], "weight_decay": 0.02})
    apply_schedules(optimizer, 1, weight_decay=0.08)
    assert [λ for _, λ in rates(optimizer)] == pytest.approx([0.08, 0.04, 0.04])


# --- beside torch's own means


def test_a_scheduler_of_torchs_serves_lr_while_lambda_follows_ours() -> None:
    optimizer = optimizer_of({"weight_decay": 0.1, "lr": 1e-3}, {"weight_decay": 0.1, "lr": 1e-2})
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=4)
    for step in range(4):
        apply_schedules(optimizer, step, weight_decay=Linear(0.1, 0.0, steps=4))
        assert [lr for lr, _ in rates(optimizer)] == pytest.approx([1e-3 * (1 - step / 4), 1e-2 * (1 - step / 4)])
        assert [λ for _, λ in rates(optimizer)] == [0.1 - 0.1 * (step / 4)] * 2
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ["torch.AdamW", "AdamW"])
def test_an_lr_tensor_is_changed_in_place(name: str) -> None:
    lr = torch.tensor(1e-3)
    optimizer = optimizer_of({"lr": lr}, {"lr": lr}, name=name)
    apply_schedules(optimizer, 0, lr=0.25)
    assert all(group["lr"] is lr for group in optimizer.param_groups)
    assert float(lr) == 0.25


def test_an_lr_tensor_that_takes_gradients_is_changed_without_leaving_a_trace() -> None:
    lr = torch.tensor(1e-3, requires_grad=True)
    optimizer = torch.optim.SGD([matrix()], lr=lr)
    apply_schedules(optimizer, 0, lr=0.25)
    assert lr.is_leaf
    assert lr.item() == 0.25


def test_multipliers_and_the_step_travel_with_the_state_and_nothing_is_lost_on_resume() -> None:
    old, new = (optimizer_of({"weight_decay": 0.1}, {"weight_decay": 0.02}) for _ in range(2))
    apply_schedules(old, 9, lr=0.0, weight_decay=0.0)
    new.load_state_dict(old.state_dict())
    for optimizer in (old, new):
        apply_schedules(optimizer, 10, lr=0.5, weight_decay=0.1)
    assert rates(new) == rates(old) == [(0.5, 0.1), (0.5, pytest.approx(0.02))]


# --- faults


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
@pytest.mark.parametrize(
    "wrong", [-0.1, float("nan"), float("inf"), "0.1", True, [0.1], 1j, torch.ones(2), Cosine], ids=repr
)
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_value_that_is_no_number_is_named_and_nothing_has_changed(key: str, wrong: Any, scheduled: bool) -> None:
    optimizer = optimizer_of({"weight_decay": 0.1}, {"weight_decay": 0.05})
    before = seen(optimizer)
    given: Any = {"lr": 0.5, "weight_decay": 0.5, key: (lambda _: wrong) if scheduled else wrong}
    with pytest.raises(OptimizerError, match=f"{key} at step 4 is"):
        apply_schedules(optimizer, 4, **given)
    assert seen(optimizer) == before


@pytest.mark.parametrize(("key", "multiplier"), [("lr", "lr_multiplier"), ("weight_decay", "decay_multiplier")])
@pytest.mark.parametrize("wrong", [-1.0, float("nan"), "1", None, True], ids=repr)
def test_a_multiplier_that_is_no_number_is_named_and_nothing_has_changed(key: str, multiplier: str, wrong: Any) -> None:
    optimizer = optimizer_of({"weight_decay": 0.1}, {"weight_decay": 0.05, multiplier: wrong})
    before = seen(optimizer)
    with pytest.raises(OptimizerError, match=f"group 1 has {multiplier} {wrong!r}: give a finite number"):
        apply_schedules(optimizer, 4, **{key: 0.5})  # type: ignore[arg-type]
    assert repr(seen(optimizer)) == repr(before)


def test_numbers_of_any_kind_are_numbers() -> None:
    several = optimizer_of(
        *({"weight_decay": 0.1, "lr_multiplier": 1, "decay_multiplier": n} for n in (Fraction(1, 2), 1))
    )
    apply_schedules(several, 0, lr=Linear(0.5, 0.0, 4), weight_decay=0.25)
    assert rates(several) == [(0.5, 0.125), (0.5, 0.25)]
    optimizer = optimizer_of({"weight_decay": 0.1})
    value: Any = Fraction(1, 4)
    apply_schedules(optimizer, 0, lr=torch.tensor(0.5), weight_decay=value)  # type: ignore[arg-type]
    assert rates(optimizer) == [(0.5, 0.25)]


@pytest.mark.parametrize("step", [-1, 0.5, "3", True, None], ids=repr)
def test_a_step_that_is_none_is_named(step: Any) -> None:
    with pytest.raises(OptimizerError, match="counted from 0"):
        apply_schedules(optimizer_of({"weight_decay": 0.1}), step, lr=Linear(1.0, 0.0, steps=3))


def test_all_faults_come_at_once() -> None:
    optimizer = optimizer_of({"weight_decay": 0.0, "lr": 1e-3}, {"weight_decay": 0.0, "lr": 1e-2})
    before = seen(optimizer)
    with pytest.raises(OptimizerError) as caught:
        apply_schedules(optimizer, 0, lr=1e-3, weight_decay=0.1)
    assert [word in str(caught.value) for word in ("lr_multiplier", "has weight_decay 0", "group 0, group 1")] == [
        True
    ] * 3
    assert seen(optimizer) == before


def test_a_group_without_multiplier_at_another_lr_is_no_guess() -> None:
    optimizer = optimizer_of({"lr": 1e-3, "lr_multiplier": 1.0}, {"lr": 1e-4})
    with pytest.raises(OptimizerError, match="give each of group 1 an lr_multiplier"):
        apply_schedules(optimizer, 0, lr=1e-3)
    apply_schedules(optimizer_of({"lr": 1e-2, "lr_multiplier": 10.0}, {"lr": 1e-3}), 0, lr=1e-3)


def test_one_tensor_for_two_shares_is_refused() -> None:
    lr = torch.tensor(1e-3)
    optimizer = optimizer_of({"lr": lr, "lr_multiplier": 1.0}, {"lr": lr, "lr_multiplier": 10.0})
    with pytest.raises(OptimizerError, match="group 0 and group 1 have one tensor for lr"):
        apply_schedules(optimizer, 0, lr=0.5)
    alike = optimizer_of({"lr": lr}, {"lr": lr})
    with pytest.raises(OptimizerError, match="give each a tensor of its own"):
        apply_schedules(alike, 0, lr=0.5, groups=alike.param_groups[:1])
    assert float(lr) == pytest.approx(1e-3)


def test_groups_of_another_optimizer_are_refused() -> None:
    mine, other = optimizer_of({"weight_decay": 0.1}), optimizer_of({"weight_decay": 0.1})
    with pytest.raises(OptimizerError, match="are not the optimizer's"):
        apply_schedules(mine, 0, lr=0.5, groups=other.param_groups)


def test_an_optimizer_without_the_key_has_nothing_to_schedule() -> None:
    optimizer = torch.optim.SparseAdam([matrix()])
    with pytest.raises(OptimizerError, match="SparseAdam has no weight_decay in group 0"):
        apply_schedules(optimizer, 0, weight_decay=0.1)
    apply_schedules(optimizer, 0, lr=0.5)
