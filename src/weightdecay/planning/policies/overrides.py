"""What a user says by patterns of names: the first that is found in a name decides, one that finds none is a fault."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from weightdecay.errors import did_you_mean
from weightdecay.planning.evidence.tensors import TensorFacts
from weightdecay.planning.roles.roles import Role

Overrides = Mapping[str, float] | Sequence["Override"]


@dataclass(frozen=True)
class Override:
    """What a user says about the tensors whose name `pattern` is found in.

    Args:
        pattern: regular expression, searched in the canonical name and its aliases.
        multiplier: share of λ, 0 exempts; None leaves it to the policy.
        lr_multiplier: share of the learning rate, passed through to the parameter groups.
        role: what the tensors are for, in place of what is seen; the policy and the optimizers then go by it.
    """

    pattern: str
    multiplier: float | None = None
    lr_multiplier: float = 1.0
    reason: str = ""
    role: Role | None = None

    @property
    def says_shares(self) -> bool:
        """Whether this decides about λ and η; one that gives a role alone leaves them to others."""
        return self.role is None or self.multiplier is not None or self.lr_multiplier != 1.0

    def matches(self, facts: TensorFacts) -> bool:
        return any(re.search(self.pattern, site.name) for site in facts.sites)


def listed_overrides(overrides: Any) -> list[Any]:
    """Overrides in order, whatever they were given as; what is none is for `override_faults` to say."""
    if isinstance(overrides, Mapping):
        return [Override(pattern, multiplier) for pattern, multiplier in overrides.items()]
    return list(overrides) if isinstance(overrides, Sequence) and not isinstance(overrides, str) else [overrides]


def is_multiplier(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and 0.0 <= float(value) < math.inf


def override_faults(override: Any) -> list[str]:
    """What is wrong with an override in itself, before it meets a model; be it of whatever type."""
    if not isinstance(override, Override):
        return [f"overrides holds {override!r}: give a mapping of patterns to multipliers, or a list of Override"]

    faults = []
    pattern: Any = override.pattern
    try:
        re.compile(pattern)
    except re.error as error:
        faults.append(f"'{pattern}' is no regular expression: {error}")
    except TypeError:
        faults.append(f"{pattern!r} is no regular expression: the pattern of an override is a string")
    if override.multiplier is not None and not is_multiplier(override.multiplier):
        faults.append(f"multiplier {override.multiplier!r} of '{override.pattern}' is no finite number of at least 0")
    if not is_multiplier(override.lr_multiplier):
        faults.append(
            f"lr_multiplier {override.lr_multiplier!r} of '{override.pattern}' is no finite number of at least 0"
        )
    if override.role is not None and override.role not in (known := [role.value for role in Role]):
        faults.append(f"role {override.role!r} of '{override.pattern}': {did_you_mean(str(override.role), known)}")
    return faults


def unmatched(overrides: Sequence[Override], facts: Sequence[TensorFacts]) -> list[str]:
    """A fault for each override that is found in no name."""
    names = [site.name for tensor in facts for site in tensor.sites]
    return [
        f"the override '{override.pattern}' matches no tensor: {did_you_mean(override.pattern, names)}"
        for override in overrides
        if not any(override.matches(tensor) for tensor in facts)
    ]
