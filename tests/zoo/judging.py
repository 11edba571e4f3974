"""Plans of a model against its labels: which tensors are wrong, unknown, or wrong by their shape alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import weightdecay
from tests.zoo.model import Label, Model
from weightdecay.errors import PlanError
from weightdecay.naming import parameters_by_name


@dataclass(frozen=True)
class Judged:
    """One tensor whose label is not open."""

    name: str
    shape: tuple[int, ...]
    label: Label
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


def judge(plan: weightdecay.DecayPlan, labels: Mapping[str, Label]) -> list[Judged]:
    return [
        Judged(line.name, line.shape, labels[line.name], line.decays, line.unknown, line.by_shape)
        for line in plan
        if labels[line.name] != "open"
    ]


def labels_by_name(model: Model, built: nn.Module) -> dict[str, Label]:
    """Labels under the names that plans and states use, which know no wrappers."""
    labels = model.labels(built)
    return {name: labels[parameter] for name, parameter in parameters_by_name(built).items() if parameter in labels}


def naive_is_right(built: nn.Module, labels: Mapping[str, Label]) -> bool:
    """Whether "what has two axes or more decays" is right on all that is trained."""
    trained = {name: tensor for name, tensor in parameters_by_name(built).items() if tensor.requires_grad}
    return all(labels[name] in ("open", "decays" if tensor.ndim >= 2 else "exempt") for name, tensor in trained.items())


def planned(built: nn.Module, batch: Any = None) -> weightdecay.DecayPlan:
    return weightdecay.plan(built, unknown="exempt", batch=batch)


def batch_of(model: Model) -> Any:
    torch.manual_seed(1)
    return model.batch()


def verdicts(model: Model, *, given: bool) -> list[Judged] | PlanError:
    """What a plan says of each tensor, or why there is none."""
    built = model.build()
    labels = labels_by_name(model, built)
    try:
        plan = planned(built, batch_of(model) if given else None)
    except PlanError as error:
        return error
    return judge(plan, labels)
