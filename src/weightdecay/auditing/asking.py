"""What was asked of each tensor: given in the call, else by the plan, else by the λ that stand in the groups."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weightdecay.amounts import number
from weightdecay.auditing.arguments import UNSAID, Told
from weightdecay.errors import PlanError
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.plan import plan as planned
from weightdecay.planning.planned import PlannedTensor
from weightdecay.planning.roles.roles import NEVER, NormPlace, Role

_REL = 1e-6  # of two λ that were computed in different ways, or stored in float32
# Whether these decay, published policies differ.
_DISPUTED = frozenset(
    {Role.EMBEDDING, Role.POSITION_EMBEDDING, Role.OUTPUT_HEAD, Role.LEARNED_TOKEN, Role.RELATIVE_POSITION}
)


@dataclass(frozen=True)
class Asked:
    """What was asked of one tensor.

    Attributes:
        decays: whether it is to decay; None where nothing tells, as of a tensor whose role is unknown.
        share: its part of λ.
        weight_decay: λ, where somebody told it.
        disputed: published policies differ on it, and nobody named one.
        none_wanted: the caller said that nothing is to decay.
        role, norm: what it is for, and where its norm stands, if that is known.
    """

    decays: bool | None = None
    share: float = 1.0
    weight_decay: float | None = None
    disputed: bool = False
    none_wanted: bool = False
    role: Role | None = None
    norm: NormPlace | None = None


class Asking:
    """What was asked, tensor by tensor.

    Attributes:
        plan: by which it is judged who decays; None where the model cannot be planned.
        unplanned: why not.
        unknown: names of tensors whose role nothing tells.
    """

    def __init__(self, told: Told) -> None:
        self.told = told
        self.plan, self.unplanned = _plan_of(told)
        self.unknown = [tensor.name for tensor in self.plan or () if tensor.unknown]

    def of(self, name: str, optimizer: int) -> Asked:
        """What was asked of the tensor of that name in that optimizer."""
        given = self.told.weight_decay[optimizer] if self.told.weight_decay else None
        tensor = None if self.plan is None else self.plan.get(name)
        if tensor is None or (not tensor.given and NEVER & set(tensor.roles)):
            return Asked(weight_decay=given, decays=False if given == 0.0 else None, none_wanted=given == 0.0)
        return Asked(
            decays=tensor.decays and given != 0.0,
            share=tensor.multiplier if tensor.decays else 1.0,
            weight_decay=self._weight_decay(tensor, given),
            disputed=not self.told.policy_is_given and bool(_DISPUTED & set(tensor.roles)),
            none_wanted=given == 0.0,
            role=tensor.ruling or tensor.role,
            norm=tensor.norm,
        )

    def _weight_decay(self, tensor: PlannedTensor, given: float | None) -> float | None:
        if self.plan is None or (given is None and self.told.plan is None):
            return None
        # A λ that the model's author wrote on a tensor is no share of the run's.
        is_share = math.isclose(tensor.weight_decay, self.plan.weight_decay * tensor.multiplier, rel_tol=_REL)
        if given is None or not (is_share or tensor.given):
            return tensor.weight_decay
        return given * tensor.multiplier


def _plan_of(told: Told) -> tuple[DecayPlan | None, str]:
    if told.plan is not None and told.policy is UNSAID:
        return told.plan, ""
    if told.model is None:
        return None, "no model was given"
    try:
        if told.plan is not None:
            try:
                return told.plan.under(told.policy), ""
            except PlanError:  # read from a lock: the model itself is asked
                pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return planned(told.model, policy=told.policy, unknown="exempt", trace="optional"), ""
    except PlanError as error:
        return None, error.faults[0]


def same(one: float, other: float) -> bool:
    """Whether two λ, or two lr, are the same number."""
    return math.isclose(one, other, rel_tol=_REL, abs_tol=1e-15)


def steps_taken(optimizer: Any) -> int | None:
    """How many steps an optimizer has made, as its groups or its state count them; None where nothing counts."""
    counts = [int(group["decay_step"]) for group in optimizer.param_groups if "decay_step" in group]
    state = getattr(optimizer, "state", None)
    for own in (*optimizer.param_groups, *(state.values() if isinstance(state, Mapping) else ())):
        step = own.get("step") if isinstance(own, Mapping) else None
        found = number(step) if isinstance(step, int | float | Tensor) else None
        if found is not None:
            counts.append(int(found))
    if not counts and isinstance(state, Mapping) and not state:
        return 0  # no state yet: no step yet, of all that keep some
    return max(counts, default=None)


def length_of(schedule: Any) -> int | None:
    """How many steps a schedule of ours lasts, where it ends at all."""
    if hasattr(schedule, "pieces"):
        first, last = schedule.pieces[-1]
        rest = length_of(last)
        return None if rest is None else first + rest
    if hasattr(schedule, "then"):
        rest = length_of(schedule.then)
        return None if rest is None else schedule.steps + rest
    parts = ("warmup_steps", "stable_steps", "decay_steps")
    if all(hasattr(schedule, part) for part in parts):
        return sum(int(getattr(schedule, part)) for part in parts)
    steps = getattr(schedule, "steps", None)
    return steps if isinstance(steps, int) else None
