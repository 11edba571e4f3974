"""A plan ends: work is counted alike on every machine, memory is bounded, the clock is a safety stop that is said."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.errors import PlanError
from weightdecay.planning.evidence.budget import MOST_IN_MEMORY, Budget, DeadlineError, OverBudgetError
from weightdecay.planning.evidence.recorder import Recorder
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.evidence.tracing import Traced, trace


class Scaled(nn.Module):
    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def endless(module: Scaled, x: torch.Tensor) -> torch.Tensor:
    while True:
        x = x[:1] * module.scale


def deaf(module: Scaled, x: torch.Tensor) -> torch.Tensor:
    """Goes on whatever happens."""
    while True:
        try:
            x = x[:1] * module.scale
        except Exception:
            continue


def test_a_forward_without_end_is_left_and_the_plan_is_whole_all_the_same() -> None:
    model = Scaled(deaf)
    traced = trace(model, read_tensors(model), budget=Budget(operations=2_000))
    assert not traced.incomplete  # it was the work that ended it, as it does everywhere
    assert traced.tensors[0].uses


def test_a_deadline_cuts_between_operations_and_the_plan_says_that_it_is_incomplete() -> None:
    model = Scaled(endless)
    started = time.monotonic()
    traced = trace(model, read_tensors(model), budget=Budget(deadline=0.2))
    assert "deadline of 0.2 s" in traced.incomplete
    assert time.monotonic() - started < 20  # a busy machine included
    assert weightdecay.plan(model, deadline=0.2).incomplete
    assert not weightdecay.plan(nn.Linear(2, 2)).incomplete


def test_a_batch_on_which_a_forward_does_not_end_is_a_fault_that_says_so() -> None:
    model = Scaled(endless)
    traced = trace(model, read_tensors(model), torch.ones(2, 8), Budget(operations=2_000))
    assert "runs for longer than a look" in traced.batch_fault


def outer(module: Scaled, x: torch.Tensor) -> torch.Tensor:
    wide = x.flatten().repeat(10_000)
    return wide[:, None] * wide[None] * module.scale.sum()


def blank(module: Scaled, x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(100_000, 100_000) + module.scale.sum() * x.sum()


def hoarded(module: Scaled, x: torch.Tensor) -> torch.Tensor:
    kept = [torch.ones(1 << 24) * module.scale.sum() * x.sum() for _ in range(1_000)]
    return kept[0]


def padded(module: Scaled, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.pad(x, (0, 1 << 34)) * module.scale.sum()


@pytest.mark.parametrize("forward", [outer, blank, hoarded, padded])
def test_what_would_allocate_too_much_is_stopped_before(forward: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(PlanError, match="allocate too much"):
        weightdecay.plan(Scaled(forward), batch=torch.ones(2, 8))
    assert weightdecay.plan(Scaled(forward))["scale"].decays is False


def test_results_that_are_dropped_do_not_count_as_memory() -> None:
    with Recorder({}, [], Budget(elements=1 << 40)):
        for _ in range(4):
            torch.ones(MOST_IN_MEMORY // 3)
        kept = [torch.ones(MOST_IN_MEMORY // 3) for _ in range(2)]
        with pytest.raises(OverBudgetError, match="allocate too much"):
            torch.cat(kept)


def test_each_run_leaves_half_of_what_was_left() -> None:
    budget = Budget(operations=64)
    for spent in (32, 16, 8):
        before = budget.operations
        with budget.one_run(), pytest.raises(OverBudgetError, match="runs for longer"), Recorder({}, [], budget):
            endless(Scaled(endless), torch.ones(2, 8))
        assert before - budget.operations == spent
    assert budget.left
    assert not budget.cut


def test_products_cost_their_multiplications() -> None:
    budget, left, right = Budget(), torch.ones(8, 4096), torch.ones(4096, 8)
    before = budget.elements
    with Recorder({}, [], budget):
        _ = left @ right
    assert before - budget.elements == 64 + 2 * 8 * 8 * 4096 // 64


def test_after_the_deadline_nothing_runs() -> None:
    budget = Budget(deadline=1e-9)
    with pytest.raises(DeadlineError), Recorder({}, [], budget):
        torch.ones(2)
    assert budget.cut


def test_no_result_that_is_run_unasked_has_more_elements_than_its_arguments_multiply_up_to() -> None:
    """So that the closer look at memory is spared where the cheap one shows that there is enough."""
    x, y = torch.ones(1 << 14, 2), torch.ones(1 << 15, 2)
    wide: list[Callable[[], torch.Tensor]] = [
        lambda: x.repeat(1 << 14, 1),
        lambda: x[:, :1] * y[:, 0],
        lambda: torch.outer(x[:, 0], y[:, 0]),
    ]
    for widened in wide:
        with pytest.raises(OverBudgetError, match="allocate too much"), Recorder({}, [], Budget(elements=1 << 40)):
            widened()


def test_plans_do_not_depend_on_how_busy_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that runs a thousand times as fast, but for the deadline, changes nothing."""
    model = Scaled(endless)

    def traced() -> Traced:
        return trace(model, read_tensors(model), budget=Budget(operations=2_000, deadline=1e9))

    before = traced()
    real = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: real() * 1_000)
    assert traced() == before
