"""Who decays, by a plan, in an optimizer that trains already: its groups are divided, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from weightdecay.amounts import number
from weightdecay.errors import PlanError
from weightdecay.planning.decay_plan import DecayPlan, checked_optimizers
from weightdecay.planning.roles.roles import NEVER


def regroup(optimizer: Any, plan: DecayPlan, weight_decay: float | None = None) -> None:
    """Give each tensor of an optimizer its plan's share of λ; state, lr and all other settings stay.

        import torch, weightdecay

        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
        weightdecay.regroup(optimizer, weightdecay.plan(model))
        print([group["weight_decay"] for group in optimizer.param_groups])  # [0.1, 0.0]

    A scheduler of torch's keeps one lr for each group that it began with: make it after this.

    Args:
        plan: of the model that the optimizer trains. What it says nothing of, and what has no known role, stays.
        weight_decay: λ; the one of most of the optimizer's tensors, if not given.

    Raises:
        PlanError: the plan belongs to no model, or what is given is no optimizer.
    """
    (checked,) = checked_optimizers([optimizer])
    if not isinstance(plan, DecayPlan):
        raise PlanError(f"plan is a {type(plan).__name__}: give what weightdecay.plan(model) returns")
    shares = _shares(plan)
    λ = _usual(checked.param_groups, plan) if weight_decay is None else weight_decay

    divided: list[dict[str, Any]] = []
    for group in checked.param_groups:
        parts: dict[float, list[int]] = {}
        for place, tensor in enumerate(group["params"]):
            share = shares.get(tensor)
            own = number(group.get("weight_decay")) or 0.0
            parts.setdefault(own if share is None else λ * share, []).append(place)
        divided += [_part(group, value, places) for value, places in parts.items()] or [group]
    checked.param_groups[:] = divided


def _shares(plan: DecayPlan) -> dict[Tensor, float]:
    """The share of λ of each tensor, of which something is known."""
    known = {one.name: one for one in plan if one.given or not NEVER & set(one.roles)}
    groups = plan.param_groups(lr=1.0)
    return {
        tensor: known[name].multiplier
        for group in groups
        for name, tensor in zip(group["param_names"], group["params"], strict=True)
        if name in known
    }


def _usual(groups: list[dict[str, Any]], plan: DecayPlan) -> float:
    """λ of most tensors that have one."""
    found: Counter[float] = Counter()
    for group in groups:
        if λ := number(group.get("weight_decay")):
            found[λ] += len(group["params"])
    return found.most_common(1)[0][0] if found else plan.weight_decay


def _part(group: Mapping[str, Any], weight_decay: float, places: list[int]) -> dict[str, Any]:
    lists = {key: [group[key][place] for place in places] for key in ("params", "param_names") if key in group}
    share = {"decay_multiplier": 1.0 if weight_decay else 0.0} if "decay_multiplier" in group else {}
    same = weight_decay == (number(group.get("weight_decay")) or 0.0)
    return {**group, **lists, **({} if same else {"weight_decay": weight_decay, **share})}
