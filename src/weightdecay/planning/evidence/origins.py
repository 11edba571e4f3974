"""Where a tensor of a forward comes from: which parameters, by which steps, and whether the input had a part in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from weightdecay.planning.evidence.axes import Axes, Change
from weightdecay.planning.evidence.recorder import Operation
from weightdecay.planning.evidence.uses import FORM, Use


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from.

    Parameters and input at once is a parameter that the input has modulated, as hypernetworks do: still a weight, if
    used as one.

    Attributes:
        parameters: those that it is made of, with the steps from each.
        live: whether it depends on the input.
        trait: what kind of live tensor it is, which tells a later partner what it met.
        source: the same number where one live tensor is only another's form: turned, cut, joined again, rotated.
        is_bare: the input alone made it, as it makes masks and positions.
        scaled_by: parameters by which it was multiplied.
        weighed: of those the ones whose products are still to be summed, as far as that is seen, with that use and the
            axes along which the parameter varied.
        features: the axes that a layer gave it.
        changes: of its form, since it had these axes.
        summed: tables that were added, with how many of their axes were longer than 1 there, as long as nothing else
            was done.
    """

    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    live: bool = False
    trait: str = ""
    source: int = 0
    is_bare: bool = False
    scaled_by: frozenset[str] = frozenset()
    weighed: Mapping[str, tuple[Use, Axes]] = field(default_factory=dict)
    features: Axes = frozenset()
    changes: tuple[Change, ...] = ()
    summed: Mapping[str, int] = field(default_factory=dict)


CONSTANT = Origin()


class Argument(NamedTuple):
    """A tensor that an operation takes, and where it comes from; the rest is as an `Operand` has it."""

    slot: str
    tensor: int
    shape: tuple[int, ...]
    form: tuple[int, ...]
    origin: Origin


class Step(NamedTuple):
    """An operation that the input or a parameter had a part in, and where its result comes from."""

    operation: Operation
    arguments: list[Argument]
    live: list[Argument]
    origin: Origin


def takers(operations: Sequence[Operation]) -> Mapping[int, int]:
    """How many operations do something with a tensor, or with another form of it; a copy is a tensor of its own."""
    same: dict[int, int] = {}
    count: Counter[int] = Counter()
    for name, operands, results, _, _ in operations:
        if name in FORM and name not in ("clone", "detach") and operands:
            whole = same.get(operands[0].tensor, operands[0].tensor)
            same.update([(result.tensor, whole) for result in results])
        elif name not in ("clone", "detach"):
            count.update([same.get(operand.tensor, operand.tensor) for operand in operands])
    return defaultdict(int, {**count, **{form: count[whole] for form, whole in same.items()}})
