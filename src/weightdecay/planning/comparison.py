"""Plans beside each other, and a plan beside an optimizer: what differs, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from weightdecay.errors import CheckFailedError
from weightdecay.planning.patterns import INDEX, pattern_of

if TYPE_CHECKING:
    from weightdecay.planning.plan import DecayPlan, PlannedTensor

_SHOWN = 4  # names in one sentence


@dataclass(frozen=True)
class Difference:
    """One tensor on which two plans disagree; a side is None where its plan has no such tensor."""

    name: str
    ours: PlannedTensor | None
    theirs: PlannedTensor | None

    @property
    def changes(self) -> tuple[str, ...]:
        """What differs, in words: shape, role, multiplier and λ."""
        if self.ours is None or self.theirs is None:
            return ("only in the other plan" if self.ours is None else "not in the other plan",)
        pairs = {
            "shape": (list(self.ours.shape), list(self.theirs.shape)),
            "role": (" + ".join(self.ours.roles), " + ".join(self.theirs.roles)),
            "multiplier": (f"{self.ours.multiplier:g}", f"{self.theirs.multiplier:g}"),
            "λ": (f"{self.ours.weight_decay:g}", f"{self.theirs.weight_decay:g}"),
            "lr multiplier": (f"{self.ours.lr_multiplier:g}", f"{self.theirs.lr_multiplier:g}"),
        }
        return tuple(f"{what} {one} → {other}" for what, (one, other) in pairs.items() if one != other)

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(self.changes)}"


@dataclass(frozen=True)
class PlanDiff:
    """All differences between two plans, in order; falsy if there is none."""

    differences: tuple[Difference, ...]

    def __bool__(self) -> bool:
        return bool(self.differences)

    def __len__(self) -> int:
        return len(self.differences)

    def __iter__(self) -> Iterator[Difference]:
        return iter(self.differences)

    def __str__(self) -> str:
        """A line for tensors that differ in the same way and in nothing but the indices in their names."""
        alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for difference in self:
            key = INDEX.sub("#", difference.name), difference.changes
            alike.setdefault(key, []).append(difference.name)
        lines = [
            f"{pattern_of(names)}{f' (×{len(names)})' if len(names) > 1 else ''}: {', '.join(changes)}"
            for (_, changes), names in alike.items()
        ]
        return "\n".join(lines) or "the plans agree"


def diff(ours: DecayPlan, theirs: DecayPlan) -> PlanDiff:
    """Tensors that only one plan has, or whose shape, role, multiplier or λ differs."""
    names = [tensor.name for tensor in ours] + [tensor.name for tensor in theirs if tensor.name not in ours]
    found = []
    for name in names:
        difference = Difference(name, ours.get(name), theirs.get(name))
        if difference.changes:
            found.append(difference)
    return PlanDiff(tuple(found))


@dataclass(frozen=True)
class OptimizerCheck:
    """What an optimizer does otherwise than the plan says, a sentence each."""

    faults: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.faults

    def raise_if_wrong(self) -> None:
        """Raises CheckFailedError with all sentences if there is any."""
        if self.faults:
            raise CheckFailedError(str(self))

    def __str__(self) -> str:
        return "\n".join(self.faults) if self.faults else "the optimizer carries the plan"


def check(plan: DecayPlan, optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.Tensor]) -> OptimizerCheck:
    """Compare an optimizer's groups with the plan, tensor by tensor.

    Args:
        plan: the plan that should be carried.
        optimizer: any torch optimizer; only its `param_groups` are read.
        parameters: canonical name to tensor, of the model that the optimizer trains.
    """
    held: dict[int, list[str]] = {}
    for tensor in plan:
        if not tensor.frozen and tensor.name in parameters:
            held.setdefault(id(parameters[tensor.name]), []).append(tensor.name)
    placed: dict[int, list[int]] = {}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            placed.setdefault(id(parameter), []).append(index)
    faults = [
        *_misplaced(plan, held, placed),
        *(fault for index, group in enumerate(optimizer.param_groups) for fault in _wrong(plan, held, index, group)),
    ]
    return OptimizerCheck(tuple(faults))


def _misplaced(plan: DecayPlan, held: Mapping[int, Sequence[str]], placed: Mapping[int, Sequence[int]]) -> list[str]:
    missing = [name for key, names in held.items() for name in names if key not in placed]
    doubled = [name for key, names in held.items() for name in names if len(placed.get(key, ())) > 1]
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


def _wrong(plan: DecayPlan, held: Mapping[int, Sequence[str]], index: int, group: Mapping[str, Any]) -> list[str]:
    """What one group does otherwise than the plan says."""
    names = [name for parameter in group["params"] for name in held.get(id(parameter), ())]
    actual = float(group.get("weight_decay", 0.0))
    label = f"group {index}" + (f" '{group['name']}'" if "name" in group else "")
    faults = []
    wanted: dict[float, list[str]] = {}
    for name in names:
        wanted.setdefault(plan[name].weight_decay, []).append(name)
    astray = {λ: names for λ, names in wanted.items() if not math.isclose(λ, actual, rel_tol=1e-9, abs_tol=1e-15)}
    if len(wanted) > 1:
        parts = "; ".join(f"{len(names)} with λ {λ:g} ({some(names)})" for λ, names in sorted(wanted.items()))
        faults.append(f"{label} merges what the plan keeps apart, all with λ {actual:g}: {parts}")
    elif astray:
        (λ,) = astray
        faults.append(
            f"{label} has λ {actual:g}, the plan says {λ:g} for its {len(names)} tensors ({some(names)}). "
            "Was it set by a loaded state? load_state_dict restores the λ of every saved group"
        )
    written = group.get("param_names")
    if written is not None:
        faults += _misnamed(label, held, group["params"], list(written))
    return faults


def _misnamed(
    label: str, held: Mapping[int, Sequence[str]], parameters: Iterable[torch.Tensor], written: Sequence[str]
) -> list[str]:
    found = [tuple(held.get(id(parameter), ())) for parameter in parameters]
    if len(found) != len(written):
        return [f"{label} has {len(found)} tensors and {len(written)} names: state saved by name would go astray"]
    pairs = [(name, names[0]) for name, names in zip(written, found, strict=True) if names and name not in names]
    prefixed = [f"'{name}'" for name, own in pairs if name.endswith(f".{own}")]
    swapped = [f"'{name}' is {own}" for name, own in pairs if not name.endswith(f".{own}")]
    faults = []
    if prefixed:
        faults.append(f"{label} has names that a wrapper made: {some(prefixed)}; state saved so fits no bare model")
    if swapped:
        faults.append(f"{label} names {len(swapped)} tensors wrongly, as if reordered: {some(swapped)}")
    return faults


def some(names: Sequence[str]) -> str:
    """A few of many names."""
    return ", ".join(names[:_SHOWN]) + (f" … and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
