"""What a plan says, as values; and what those who read a plan need to know of it.

The lock, the table, the comparison and the check of ranks read any `Plan`; none of them knows how one is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from weightdecay.planning.roles.roles import NormPlace, Role, Strength, Verdict


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor's line in a plan.

    Attributes:
        evidence: what the roles rest on, in words.
        why, ruling: what decided about its share of λ, in words, and the role by which it did, if it was one.
        multiplier, weight_decay: λ of this tensor is `weight_decay`, the run's times the multiplier.
        lr_multiplier: its share of the run's η.
        lr: a learning rate of its own, set by the model's author; groups get the multiplier that follows from it.
        contested: it is used otherwise than the torch type of its owner makes one expect.
        strength: of the weakest evidence that the roles rest on; None from a lock of an older version.
        norm: where the norm of a gain stands, as far as it is known.
        given: its decay was said by an override or by the model's author, and rests on no verdict.
        verdicts: the roles with their evidence as data; none from a lock.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    roles: tuple[Role, ...]
    evidence: str
    multiplier: float
    why: str
    weight_decay: float
    ruling: Role | None = None
    lr_multiplier: float = 1.0
    contested: bool = False
    lr: float | None = None
    strength: Strength | None = None
    norm: NormPlace | None = None
    given: bool = False
    verdicts: tuple[Verdict, ...] = field(default=(), compare=False)

    @property
    def role(self) -> Role:
        """The first role; only a tied or frozen tensor has more."""
        return self.roles[0]

    @property
    def reason(self) -> str:
        """Why it takes this share of λ, in words."""
        return self.why if self.ruling is None else f"{self.ruling}: {self.why}"

    @property
    def decays(self) -> bool:
        return self.multiplier != 0.0

    @property
    def frozen(self) -> bool:
        return Role.FROZEN in self.roles

    @property
    def by_shape(self) -> bool:
        """Whether its decay rests on nothing but its shape."""
        return self.strength is Strength.SHAPE and not (self.unknown or self.given or self.frozen)

    @property
    def unknown(self) -> bool:
        """Whether nothing tells what it is for, and nobody has said how it decays."""
        return Role.UNKNOWN in self.roles and not (self.given or self.frozen)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class PlanSummary:
    """How many tensors and elements decay, and how many do not."""

    decayed_tensors: int
    decayed_elements: int
    exempt_tensors: int
    exempt_elements: int

    def __str__(self) -> str:
        return (
            f"{self.decayed_tensors} tensor{'' if self.decayed_tensors == 1 else 's'} "
            f"({self.decayed_elements:,} elements) decay, {self.exempt_tensors} ({self.exempt_elements:,}) do not"
        )


class Plan(Protocol):
    """What a reader needs of a plan: its tensors in order and by name, and what holds for all of them."""

    @property
    def policy(self) -> str: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def incomplete(self) -> str:
        """Why the evidence was cut short; empty where it was not."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[PlannedTensor]: ...

    def __contains__(self, name: object) -> bool: ...

    def __getitem__(self, name: str) -> PlannedTensor: ...

    def get(self, name: str) -> PlannedTensor | None: ...

    def summary(self) -> PlanSummary: ...


def summary(tensors: Iterable[PlannedTensor]) -> PlanSummary:
    """The totals of some tensors."""
    listed = list(tensors)
    decayed = [tensor for tensor in listed if tensor.decays]
    exempt = [tensor for tensor in listed if not tensor.decays]
    return PlanSummary(len(decayed), sum(t.numel for t in decayed), len(exempt), sum(t.numel for t in exempt))
