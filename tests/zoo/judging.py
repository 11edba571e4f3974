"""Plans of a model against its labels: which tensors are wrong, unknown, or wrong by their shape alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import weightdecay
from tests.zoo.model import Label, Model
from tests.zoo.states import changed, state_of
from weightdecay.errors import PlanError
from weightdecay.naming import parameters_by_name

# So late that only work, and not the clock of a busy machine, limits what is run.
DEADLINE_S = 600.0


@dataclass(frozen=True)
class Judged:
    """One tensor whose label is not open."""

    name: str
    shape: tuple[int, ...]
    label: str
    decays: bool
    unknown: bool
    by_shape: bool

    @property
    def right(self) -> bool:
        return not self.unknown and self.decays == (self.label == "decays")

    @property
    def silently_wrong(self) -> bool:
        """Wrong, and nobody was told that only its shape speaks for it."""
        return not self.unknown and not self.right and self.by_shape

    def __str__(self) -> str:
        said = "unknown" if self.unknown else "decays" if self.decays else "exempt"
        return f"{self.name} {list(self.shape)}: {said}{' by shape alone' if self.by_shape else ''}, but {self.label}"


def judge(plan: weightdecay.DecayPlan, labels: Mapping[str, str]) -> list[Judged]:
    return [
        Judged(line.name, line.shape, labels[line.name], line.decays, line.unknown, line.by_shape)
        for line in plan
        if labels[line.name] != "open"
    ]


def labels_by_name(model: Model, built: nn.Module) -> dict[str, Label]:
    """Labels under the names that plans and states use, which know no wrappers."""
    labels = model.labels(built)
    return {name: labels[parameter] for name, parameter in parameters_by_name(built).items() if parameter in labels}


def batch_of(model: Model) -> Any:
    torch.manual_seed(1)
    return model.batch()


@dataclass(frozen=True)
class Outcome:
    """What came of planning one model.

    Attributes:
        tensors: those whose labels are not open; none where there was no plan.
        fault: why there was none.
        changed: what the plan left otherwise than it was.
        seconds: of this process, not of the clock, which runs on when others compute here.
    """

    tensors: tuple[Judged, ...]
    fault: str
    changed: tuple[str, ...]
    seconds: float

    @property
    def mistakes(self) -> list[str]:
        return [self.fault] if self.fault else [str(tensor) for tensor in self.tensors if not tensor.right]


def outcome(model: Model, *, given: bool) -> Outcome:
    """Plan a model on guessed inputs, or on its batch."""
    built = model.build()
    labels = labels_by_name(model, built)
    batch = batch_of(model) if given else None
    before, started = state_of(built), time.process_time()
    tensors: tuple[Judged, ...] = ()
    fault = ""
    try:
        plan = weightdecay.plan(built, unknown="exempt", batch=batch, deadline=DEADLINE_S)
    except PlanError as error:
        fault = str(error)
    else:
        tensors = tuple(judge(plan, labels))
    seconds = time.process_time() - started
    return Outcome(tensors, fault, tuple(changed(before, state_of(built))), seconds)
