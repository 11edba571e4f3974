"""A policy gives each tensor its multiplier of λ, with the reason.

Ours decide by role. What other frameworks do is emulated in `emulation.py`, quirks included. Overrides are regular
expressions in order; the first that is found in a name (or alias) decides, and one that matches nothing is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol

from weightdecay.errors import did_you_mean
from weightdecay.planning.evidence.tensors import TensorFacts
from weightdecay.planning.roles.roles import DECAYING, DISPUTED, Role, Verdict


@dataclass(frozen=True)
class Decision:
    """The share of λ that a tensor takes, and why."""

    multiplier: float
    reason: str


class Policy(Protocol):
    """Anything with a name that decides about a tensor."""

    @property
    def name(self) -> str: ...

    def decide(self, facts: TensorFacts, verdicts: Sequence[Verdict]) -> Decision: ...


@dataclass(frozen=True)
class RolePolicy:
    """One multiplier per role. A tensor with several roles takes the smallest: who exempts one, exempts the tensor."""

    name: str
    multipliers: Mapping[Role, float] = field(hash=False)

    def decide(self, facts: TensorFacts, verdicts: Sequence[Verdict]) -> Decision:
        if facts.marked:
            return Decision(0.0, f"exempt: {facts.marked}")
        ruling = min(verdicts, key=lambda verdict: self.multipliers[verdict.role])
        multiplier = self.multipliers[ruling.role]
        reason = f"{ruling.role}: {ruling.evidence}"
        others = [verdict.role for verdict in verdicts if self.multipliers[verdict.role] != multiplier]
        if others and ruling.role is Role.FROZEN:
            reason += f"; if trained, it would decay as {' and '.join(others)}"
        elif others:
            reason += f"; also {' and '.join(others)}, but one exempt role exempts a tied tensor"
        if multiplier == 0.0 and ruling.role in DISPUTED:
            reason += "; opinions differ on whether such tensors should decay"
        return Decision(multiplier, reason)


def by_roles(name: str, decaying: frozenset[Role]) -> RolePolicy:
    return RolePolicy(name, {role: 1.0 if role in decaying else 0.0 for role in Role})


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


ROLE_POLICIES: dict[str, RolePolicy] = {
    policy.name: policy
    for policy in (
        by_roles("default", DECAYING),
        by_roles("all", frozenset(Role) - {Role.FROZEN, Role.UNKNOWN}),
        by_roles("none", frozenset()),
        by_roles("matrices", DECAYING - {Role.EMBEDDING, Role.POSITION_EMBEDDING, Role.OUTPUT_HEAD}),
        by_roles("no-embeddings", DECAYING - {Role.EMBEDDING, Role.POSITION_EMBEDDING}),
        by_roles("olmo2", frozenset(Role) - {Role.FROZEN, Role.UNKNOWN, Role.EMBEDDING}),
    )
}
