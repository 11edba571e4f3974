"""Whether optimizers really carry a plan: their groups beside it, and what their step does with them.

The groups say what was asked for. Whether the optimizer reads it, and means by λ what the plan means, is seen from a
step of a small copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightdecay.amounts import amount
from weightdecay.errors import CheckFailedError, OptimizerError, PlanError
from weightdecay.planning.groups import misspelt_keys
from weightdecay.planning.patterns import some
from weightdecay.planning.planned import Plan, PlannedTensor
from weightdecay.planning.step_checks import CheckedGroup, defaults_of, seen_in_steps
from weightdecay.rules import DECOUPLED, Rule, RuleLike, as_rule

_REL, _ABS = 1e-6, 1e-15  # of two λ that were computed in different ways, one in float32 perhaps


@dataclass(frozen=True)
class OptimizerCheck:
    """What optimizers do otherwise than the plan says, a sentence each.

    Attributes:
        opaque: what could not be seen, and why; no fault.
    """

    faults: tuple[str, ...]
    opaque: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.faults

    def raise_if_wrong(self) -> None:
        """Raises CheckFailedError with all sentences if there is any."""
        if self.faults:
            raise CheckFailedError("\n".join(self.faults))

    def __str__(self) -> str:
        remarks = [f"not seen: {reason}" for reason in self.opaque]
        return "\n".join([*self.faults, *remarks] if self.faults else ["the optimizer carries the plan", *remarks])


def check(
    plan: Plan,
    optimizers: Sequence[torch.optim.Optimizer],
    parameters: Mapping[str, torch.Tensor],
    rule: RuleLike | None = None,
) -> OptimizerCheck:
    """Compare optimizers with the plan, tensor by tensor, and look at a step of each.

    Args:
        plan: the plan that should be carried.
        optimizers: those that train the model, together.
        parameters: canonical name to tensor, of the model that they train.
        rule: how λ is meant, if not as torch.optim.AdamW means it.

    Raises:
        PlanError: there is no such rule.
    """
    given: Any = rule  # by a caller whom no type checker has seen
    try:
        # The fields of a rule, which states hold, are none here.
        meant = DECOUPLED if given is None else as_rule(given if isinstance(given, str | Rule) else repr(given))
    except OptimizerError as error:
        raise PlanError(error.faults) from error
    optimizers = list({id(one): one for one in optimizers}.values())
    held: dict[int, list[str]] = {}
    for tensor in plan:
        if not tensor.frozen and tensor.name in parameters:
            held.setdefault(id(parameters[tensor.name]), []).append(tensor.name)
    groups = list(_checked(optimizers, held))

    faults = _misplaced(plan, held, groups)
    if unread := [fault for one in groups for fault in _no_amounts(one)]:
        return OptimizerCheck(tuple(faults + unread))
    for one in groups:
        faults += _misspelt(one) + _wrong_decay(plan, one) + _misnamed(one, held)
    for optimizer in optimizers:
        own = [one for one in groups if one.optimizer is optimizer]
        faults += _wrong_rates(plan, own) + _out_of_proportion(own)
    seen, opaque = seen_in_steps(plan, optimizers, groups, meant)
    return OptimizerCheck(tuple(faults + seen), tuple(opaque))


def _checked(optimizers: Sequence[torch.optim.Optimizer], held: Mapping[int, Sequence[str]]) -> Iterator[CheckedGroup]:
    for optimizer in optimizers:
        whose = f" of {type(optimizer).__name__}" if len(optimizers) > 1 else ""
        for index, group in enumerate(optimizer.param_groups):
            label = f"group {index}" + (f" '{group['name']}'" if "name" in group else "") + whose
            names = tuple(name for parameter in group["params"] for name in held.get(id(parameter), ()))
            yield CheckedGroup(optimizer, group, label, names)


# --- groups beside the plan


def _misplaced(plan: Plan, held: Mapping[int, Sequence[str]], groups: Sequence[CheckedGroup]) -> list[str]:
    placed: dict[int, int] = {}
    for one in groups:
        for parameter in one.group["params"]:
            placed[id(parameter)] = placed.get(id(parameter), 0) + 1
    missing = [name for key, names in held.items() for name in names if key not in placed]
    doubled = [name for key, names in held.items() for name in names if placed.get(key, 0) > 1]
    strangers = sum(key not in held for key in placed)
    faults = []
    if missing:
        faults.append(
            f"{len(missing)} of the plan's {len(plan)} tensors are in no group and will not train: {some(missing)}. "
            "Was the optimizer made before the model was wrapped, sharded or moved?"
        )
    if doubled:
        faults.append(f"{len(doubled)} tensors are listed more than once and decay as often: {some(doubled)}")
    if strangers:
        faults.append(f"{strangers} of the optimizer's tensors are not trainable tensors of the plan's model")
    return faults


def _no_amounts(one: CheckedGroup) -> list[str]:
    """Settings that are to be numbers, and with which nothing can be compared."""
    return [
        f"{one.label} has {key} {one.group[key]!r:.60}: it must be a finite number of at least 0"
        for key in ("lr", "weight_decay", "lr_multiplier", "decay_multiplier")
        if key in one.group and amount(one.group[key]) is None
    ]


def _misspelt(one: CheckedGroup) -> list[str]:
    settings = {"lr", "weight_decay", *defaults_of(one.optimizer)}
    return [f"{one.label} has {fault}" for fault in misspelt_keys(one.group, settings)]


def _wrong_decay(plan: Plan, one: CheckedGroup) -> list[str]:
    """λ of one group against the plan's; while a schedule sets it, its share alone."""
    group, actual = one.group, float(one.group.get("weight_decay", 0.0))
    scheduled = "decay_step" in group and "decay_multiplier" in group
    what, actual = ("decay_multiplier", float(group["decay_multiplier"])) if scheduled else ("λ", actual)
    wanted: dict[float, list[str]] = {}
    for name in one.names:
        wanted.setdefault(plan[name].multiplier if scheduled else plan[name].weight_decay, []).append(name)
    if len(wanted) > 1:
        parts = "; ".join(
            f"{len(names)} with {what} {value:g} ({some(names)})" for value, names in sorted(wanted.items())
        )
        return [f"{one.label} merges what the plan keeps apart, all with {what} {actual:g}: {parts}"]

    astray = {value: names for value, names in wanted.items() if not _close(value, actual)}
    return [
        f"{one.label} has {what} {actual:g}, the plan says {value:g} for its {len(names)} tensors ({some(names)}). "
        "Was it set by a loaded state? load_state_dict restores the λ of every saved group"
        for value, names in astray.items()
    ] + _lost_share(one, scheduled)


def _lost_share(one: CheckedGroup, scheduled: bool) -> list[str]:
    """A scheduled group whose λ is not in proportion to its share."""
    if not scheduled or one.group["decay_multiplier"]:
        return []
    λ = float(one.group.get("weight_decay", 0.0))
    return [f"{one.label} has λ {λ:g} and a share of 0: something else than the schedule set it"] if λ else []


def _out_of_proportion(groups: Sequence[CheckedGroup]) -> list[str]:
    """λ over its share is one number over the groups that one schedule sets."""
    bases: dict[float, list[CheckedGroup]] = {}
    for one in groups:
        if "decay_step" in one.group and (share := float(one.group.get("decay_multiplier", 0.0))):
            base = float(one.group["weight_decay"]) / share
            near = next((known for known in bases if _close(known, base)), base)
            bases.setdefault(near, []).append(one)
    if len(bases) < 2:
        return []
    parts = "; ".join(
        f"{', '.join(one.label for one in ones)}: λ {float(ones[0].group['weight_decay']):g} at a share of "
        f"{ones[0].group['decay_multiplier']:g}"
        for ones in bases.values()
    )
    return [f"the groups' λ are not in the proportions of their shares ({parts}): one was set by something else"]


def _wrong_rates(plan: Plan, groups: Sequence[CheckedGroup]) -> list[str]:
    """η over its plan's multiplier is one number over an optimizer's groups."""
    bases: dict[float, list[CheckedGroup]] = {}
    faults = []
    for one in groups:
        multipliers = {_share_of_rate(plan[name], one.group) for name in one.names}
        if len(multipliers) > 1:
            shown = ", ".join(f"{multiplier:g}" for multiplier in sorted(multipliers))
            faults.append(f"{one.label} has one lr for tensors whose lr multipliers the plan keeps apart: {shown}")
        elif len(multipliers) == 1 and "lr" in one.group and (multiplier := multipliers.pop()):
            base = float(one.group["lr"]) / multiplier
            near = next((known for known in bases if math.isclose(known, base, rel_tol=1e-6)), base)
            bases.setdefault(near, []).append(one)
    planned = any(tensor.lr_multiplier != 1.0 or tensor.lr is not None for tensor in plan)
    marked = any("lr_multiplier" in one.group for one in groups)
    if len(bases) < 2 or not (planned or marked):
        return faults
    parts = "; ".join(
        f"{', '.join(one.label for one in ones)}: lr {float(ones[0].group['lr']):g} at a multiplier of "
        f"{_share_of_rate(plan[ones[0].names[0]], ones[0].group):g}"
        for ones in bases.values()
    )
    return [*faults, f"the groups' lr are not in the plan's proportions ({parts}): one of its lr multipliers is lost"]


def _share_of_rate(tensor: PlannedTensor, group: Mapping[str, Any]) -> float:
    """A tensor's share of η. Of a rate that its author set, only its group knows it: it depends on the run's η."""
    if tensor.lr is None:
        return tensor.lr_multiplier
    return float(group.get("lr_multiplier", 1.0 if float(group.get("lr", 0.0)) != tensor.lr else 0.0))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_REL, abs_tol=_ABS)


def _misnamed(one: CheckedGroup, held: Mapping[int, Sequence[str]]) -> list[str]:
    written = one.group.get("param_names")
    if written is None:
        return []
    parameters: Iterable[torch.Tensor] = one.group["params"]
    found = [tuple(held.get(id(parameter), ())) for parameter in parameters]
    if len(found) != len(written):
        return [f"{one.label} has {len(found)} tensors and {len(written)} names: state saved by name would go astray"]

    pairs = [(name, names[0]) for name, names in zip(written, found, strict=True) if names and name not in names]
    prefixed = [f"'{name}'" for name, own in pairs if name.endswith(f".{own}")]
    swapped = [f"'{name}' is {own}" for name, own in pairs if not name.endswith(f".{own}")]
    faults = []
    if prefixed:
        faults.append(f"{one.label} has names that a wrapper made: {some(prefixed)}; state saved so fits no bare model")
    if swapped:
        faults.append(f"{one.label} names {len(swapped)} tensors wrongly, as if reordered: {some(swapped)}")
    return faults
