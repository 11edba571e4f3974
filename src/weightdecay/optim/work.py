"""What a step has to do: a group, and what its rule and rounding come to there."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from weightdecay.optim.grouping import Group, with_gradient
from weightdecay.optim.roundings import Rounding
from weightdecay.rules import Rule


class Work(NamedTuple):
    """A group in one step.

    Attributes:
        decay: a_t; None under a coupled rule.
        kernels: the λ with which the direction's own step makes this decay; None where it cannot.
        place: of the group in the optimizer.
    """

    group: Group
    rule: Rule
    rounding: Rounding
    decay: float | None
    kernels: float | Tensor | None
    place: int

    @property
    def weights(self) -> list[Any]:
        """The parameters that the step changes."""
        return with_gradient(self.group)

    def number(self, position: int) -> int:
        """The number of one of the group's tensors in the whole optimizer, by which it has its own noise."""
        return (self.place << 32) + position
