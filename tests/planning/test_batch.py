"""What the user gave is never guessed over: a batch that fails is said, with the forward's own message and place."""

from __future__ import annotations

import inspect
import warnings
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import weightdecay
from weightdecay.errors import PlanError
from weightdecay.planning.evidence.batches import BatchWarning
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.evidence.tracing import trace


class Wants(nn.Module):
    """Five arguments, of which nobody guesses all."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2, 3))
        self.mix = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, a: Any, b: Any, c: Any, d: Any) -> torch.Tensor:
        out: torch.Tensor = self.mix(x) * self.table.sum() * a * b * c * d
        return out


def test_missing_arguments_are_the_errors_message_and_the_forward_its_place() -> None:
    with pytest.raises(PlanError) as caught:
        weightdecay.plan(Wants(), batch=torch.randn(2, 4))
    said = str(caught.value)
    assert "the batch does not go through Wants: TypeError" in said
    assert "missing 4 required positional arguments: 'a', 'b', 'c', and 'd'" in said
    assert f"{__file__}:{Wants.forward.__code__.co_firstlineno}, in forward" in said
    assert "trace='optional'" in said
    assert "unknown role" not in said


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4))
        self.gate = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] != 4:
            raise ValueError("wants\n4 features")
        x = self.inner(x)
        raise NotImplementedError


def test_a_forward_that_raises_is_told_by_type_message_and_line() -> None:
    _, first = inspect.getsourcelines(Raises.forward)
    with pytest.raises(PlanError, match=rf"ValueError: wants 4 features \({__file__}:{first + 2}, in forward\)"):
        weightdecay.plan(Raises(), batch=torch.randn(2, 5))
    with pytest.raises(PlanError, match=rf"NotImplementedError: without a message \({__file__}:{first + 4}"):
        weightdecay.plan(Raises(), batch=torch.randn(2, 4))


def test_a_wrong_shape_names_the_layer_that_refused_it() -> None:
    with pytest.raises(PlanError, match=r"RuntimeError: mat1 and mat2 .*\(in `1\.0`, a Linear\)"):
        weightdecay.plan(nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(4, 4))), batch=torch.randn(2, 5))


def test_a_batch_that_fails_is_said_together_with_all_other_faults() -> None:
    with pytest.raises(PlanError) as caught:
        weightdecay.plan(Raises(), -1.0, overrides={"nothing": 0.0}, batch=torch.randn(2, 5))
    assert len(caught.value.faults) == 3


def test_optional_tracing_warns_and_every_tensor_that_the_batch_did_not_show_says_why() -> None:
    with pytest.warns(BatchWarning, match="Raises: NotImplementedError"):
        plan = weightdecay.plan(Raises(), batch=torch.randn(2, 4), trace="optional")
    assert len(plan) == 3
    model = Raises()
    facts = {facts.name: facts for facts in trace(model, read_tensors(model), torch.randn(2, 4)).tensors}
    assert "NotImplementedError" in facts["gate"].untold
    assert not facts["inner.0.weight"].untold  # seen before it broke


def test_a_batch_that_goes_through_warns_of_nothing_and_leaves_nothing_untold() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weightdecay.plan(model, batch=torch.randn(2, 4), trace="optional")
    traced = trace(model, read_tensors(model), torch.randn(2, 4))
    assert not traced.batch_fault
    assert not any(facts.untold for facts in traced.tensors)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(3, 4)

    def forward(self, left: torch.Tensor, right: Any) -> torch.Tensor:
        right = right.value if isinstance(right, Graph) else right
        out: torch.Tensor = self.left(left) + self.right(right)
        return out


@dataclass
class Graph:
    """As torch_geometric's data: one object that holds tensors."""

    value: torch.Tensor


LEFT, RIGHT = torch.randn(2, 4), torch.randn(2, 3)


@pytest.mark.parametrize(
    "batch",
    [(LEFT, RIGHT), [LEFT, RIGHT], {"left": LEFT, "right": RIGHT}, OrderedDict(left=LEFT, right=RIGHT),
     UserDict(left=LEFT, right=RIGHT), (LEFT, Graph(RIGHT)), (LEFT.half(), RIGHT.bfloat16())],
)  # fmt: skip
def test_a_batch_may_be_positional_or_by_name_and_hold_objects(batch: Any) -> None:
    plan = weightdecay.plan(Two(), batch=batch)
    assert all("traced: multiplies the input" in plan[f"{side}.weight"].evidence for side in ("left", "right"))


def test_a_forward_that_takes_nothing_takes_an_empty_batch() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.ones(3))

        def forward(self) -> torch.Tensor:
            return self.value * 2

    nothing: list[Any] = [(), {}]
    for batch in nothing:
        assert len(weightdecay.plan(Constant(), batch=batch)) == 1


@pytest.mark.parametrize("batch", [3, "text", b"bytes", object(), {1: LEFT}, nn.Linear(2, 2), {LEFT}])
def test_what_is_no_batch_is_named_before_anything_runs(batch: Any) -> None:
    with pytest.raises(PlanError, match="batch"):
        weightdecay.plan(Two(), batch=batch)


def test_a_batch_without_anything_to_run_is_a_contradiction() -> None:
    for model, trace_it in ((Two(), False), (Two().state_dict(), True)):
        with pytest.raises(PlanError, match="nothing to run on it"):
            weightdecay.plan(model, batch=(LEFT, RIGHT), trace=trace_it)


@pytest.mark.parametrize("faulty", [{"trace": "maybe"}, {"trace": None}, {"deadline": 0}, {"deadline": "1"}])
def test_arguments_of_the_trace_are_checked(faulty: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=r"trace is|deadline is"):
        weightdecay.plan(Two(), **faulty)


def test_the_users_batch_stays_as_it_is_though_the_forward_writes_into_it() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            x.mul_(0)
            extra["list"].append(x)
            extra["graph"].value.zero_()
            out: torch.Tensor = self.mix(x)
            return out

    x, extra = torch.ones(2, 4), {"list": [1], "graph": Graph(torch.ones(2))}
    weightdecay.plan(Writes(), batch=(x, extra))
    assert torch.equal(x, torch.ones(2, 4))
    assert extra["list"] == [1]
    assert torch.equal(extra["graph"].value, torch.ones(2))  # type: ignore[attr-defined]
