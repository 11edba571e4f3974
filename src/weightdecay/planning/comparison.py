"""Plans beside each other, and a plan beside an optimizer: what differs, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightdecay.planning.patterns import INDEX, pattern_of

if TYPE_CHECKING:
    from weightdecay.planning.decay_plan import DecayPlan, PlannedTensor

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


def some(names: Sequence[str]) -> str:
    """A few of many names."""
    return ", ".join(names[:_SHOWN]) + (f" … and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
