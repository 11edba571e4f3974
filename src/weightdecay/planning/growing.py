"""A plan's tensors that an optimizer lacks, brought into it: unfrozen layers, new adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from weightdecay.errors import PlanError
from weightdecay.planning.planned import Plan

_OF_ITS_TENSORS = ("params", "param_names", "name")
_SCALED = ("lr", "initial_lr", "peak_lr", "max_lr", "min_lr")  # by the lr multiplier
_SETTLED = ("algorithm", "rule")  # what an optimizer's own division of the plan's groups may say


class PlanOfModel(Plan, Protocol):
    """A plan that belongs to a model."""

    def parameters(self) -> Iterator[Any]: ...

    def param_groups(self, *, lr: float) -> list[dict[str, Any]]: ...


def add_to(plan: PlanOfModel, optimizer: torch.optim.Optimizer) -> list[str]:
    """Add groups of the tensors that are missing; returns their names."""
    present = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if present and not present & {id(p) for p in plan.parameters()}:
        raise PlanError(
            f"this {type(optimizer).__name__} trains no tensor of the plan's model: was it made for another copy? "
            "Plan the model that it trains"
        )
    missing = [group for group in _missing(plan, present, _rate(optimizer.param_groups)) if group["params"]]
    # An optimizer that divides a plan's groups by role does the same with what is added.
    divided = getattr(optimizer, "groups_of_plan", lambda _, groups: groups)(plan, missing)

    added, new = [], []
    for group in divided:
        added += group["param_names"]
        new.append(_like_its_kin(group, optimizer.param_groups, plan.weight_decay))
    named = all("param_names" in group for group in optimizer.param_groups)
    for group in new:
        optimizer.add_param_group(group if named else {k: v for k, v in group.items() if k != "param_names"})
    return added


def _rate(present: Sequence[Mapping[str, Any]]) -> float:
    """The run's η before any schedule, as far as the groups still know it: rates of their own are shares of it."""
    for group in present:
        rate = next((group[key] for key in ("initial_lr", "peak_lr", "lr") if group.get(key)), None)
        share = float(group.get("lr_multiplier", 1.0))
        if rate is not None and share:
            return float(rate) / share
    return 1.0


def _missing(plan: PlanOfModel, present: set[int], lr: float) -> list[dict[str, Any]]:
    groups = []
    for group in plan.param_groups(lr=lr):
        kept = [place for place, p in enumerate(group["params"]) if id(p) not in present]
        groups.append({**group, **{k: [group[k][place] for place in kept] for k in ("params", "param_names")}})
    return groups


def _like_its_kin(group: dict[str, Any], present: Sequence[Mapping[str, Any]], weight_decay: float) -> dict[str, Any]:
    """The group with what its like in the optimizer has now.

    Its like has the same shares of λ and η; if none has, any of the same algorithm tells what λ and η are now.
    """
    settled = {key: group[key] for key in _SETTLED if key in group}
    kin = [one for one in present if all(one.get(key, value) == value for key, value in settled.items())]
    kin = kin or list(present)
    shares = ("decay_multiplier", "lr_multiplier")
    same = [one for one in kin if all(one.get(key) == group[key] for key in shares)]
    donor = (same or kin or [{}])[0]
    options = {key: value for key, value in donor.items() if key not in _OF_ITS_TENSORS}

    share = group["lr_multiplier"] / donor.get("lr_multiplier", 1.0)
    scaled = {key: _times(options[key], share) for key in _SCALED if options.get(key) is not None}
    λ = _present_decay(kin, weight_decay) * group["decay_multiplier"]
    return {**group, **options, **scaled, **settled, **_own(group), "weight_decay": λ}


def _own(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in (*_OF_ITS_TENSORS, "decay_multiplier", "lr_multiplier")}


def _times(value: Any, share: float) -> Any:
    """A number times a share; a tensor that all follow stays itself where it may."""
    return value if share == 1.0 else value * share


def _present_decay(groups: Sequence[Mapping[str, Any]], planned: float) -> float:
    """λ as it is now: a schedule may have moved it since the plan."""
    found = {
        float(group["weight_decay"]) / group["decay_multiplier"]
        for group in groups
        if group.get("decay_multiplier") and "weight_decay" in group
    }
    if len({round(λ, 12) for λ in found}) > 1:
        raise PlanError(
            "the optimizer's groups do not agree on λ: "
            + ", ".join(f"{λ:g}" for λ in sorted(found))
            + ". Set their weight_decay by their decay_multiplier first (weightdecay.apply_schedules)"
        )
    return found.pop() if found else planned
