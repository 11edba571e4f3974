"""Where a tensor of a forward comes from: which parameters, by which steps, and whether the input had a part in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from weightdecay.planning.evidence.recorder import Operation
from weightdecay.planning.evidence.uses import Use


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
            axes, counted from the end, along which the parameter varies.
        summed: tables that were added, with how many of their axes were longer than 1 there, as long as nothing else
            was done.
    """

    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    live: bool = False
    trait: str = ""
    source: int = 0
    is_bare: bool = False
    scaled_by: frozenset[str] = frozenset()
    weighed: Mapping[str, tuple[Use, frozenset[int]]] = field(default_factory=dict)
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
