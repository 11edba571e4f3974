"""Two plans beside each other: where they differ, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from weightdecay.planning.patterns import alike, pattern_of
from weightdecay.planning.planned import Plan, PlannedTensor


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
            "norm": _places(self.ours, self.theirs),
            "multiplier": (f"{self.ours.multiplier:g}", f"{self.theirs.multiplier:g}"),
            "λ": (f"{self.ours.weight_decay:g}", f"{self.theirs.weight_decay:g}"),
            "lr multiplier": (f"{self.ours.lr_multiplier:g}", f"{self.theirs.lr_multiplier:g}"),
            "lr": (_own_rate(self.ours), _own_rate(self.theirs)),
        }
        return tuple(f"{what} {one} → {other}" for what, (one, other) in pairs.items() if one != other)

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(self.changes)}"


def _places(ours: PlannedTensor, theirs: PlannedTensor) -> tuple[str, str]:
    """Where a gain's norm stands; older locks do not say, and that is no difference."""
    if ours.norm is None or theirs.norm is None:
        return "", ""
    return str(ours.norm), str(theirs.norm)


def _own_rate(tensor: PlannedTensor) -> str:
    return "the run's" if tensor.lr is None else f"{tensor.lr:g}"


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
        lines = []
        for group in alike(self, lambda one: one.name, lambda one: one.changes):
            count = f" (×{len(group)})" if len(group) > 1 else ""
            lines.append(f"{pattern_of([one.name for one in group])}{count}: {', '.join(group[0].changes)}")
        return "\n".join(lines) or "the plans agree"


def diff(ours: Plan, theirs: Plan) -> PlanDiff:
    """Tensors that only one plan has, or whose shape, role, multiplier or λ differs."""
    names = [tensor.name for tensor in ours] + [tensor.name for tensor in theirs if tensor.name not in ours]
    found = []
    for name in names:
        difference = Difference(name, ours.get(name), theirs.get(name))
        if difference.changes:
            found.append(difference)
    return PlanDiff(tuple(found))
