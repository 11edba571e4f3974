"""A policy gives each tensor its share of λ, and what decided.

Ours decide by role, and for norm gains by where the norm stands. What other frameworks do is emulated in `emulated.py`,
quirks included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from weightdecay.planning.evidence.marks import Mark
from weightdecay.planning.evidence.tensors import TensorFacts
from weightdecay.planning.roles.roles import DECAYING, NEVER, NormPlace, Role, Verdict


@dataclass(frozen=True)
class Decision:
    """The share of λ that a tensor takes, and what decided; a policy of your own may say the reason in words.

    Attributes:
        multiplier: share of the run's λ.
        reason: why, in words; empty where the rest says it.
        ruling: the verdict by whose role it was decided.
        others: those by which it would have been decided otherwise.
        marks: what the model's author says of the tensor, which goes before its role.
    """

    multiplier: float
    reason: str = ""
    ruling: Verdict | None = None
    others: tuple[Verdict, ...] = ()
    marks: tuple[Mark, ...] = ()


class Policy(Protocol):
    """Anything with a name that decides about a tensor."""

    @property
    def name(self) -> str: ...

    def decide(self, facts: TensorFacts, verdicts: Sequence[Verdict]) -> Decision: ...


@dataclass(frozen=True)
class RolePolicy:
    """One multiplier per role, and per place of a norm where gains do not all fare alike.

    A tensor with several roles takes the smallest: who exempts one, exempts the tensor.
    """

    name: str
    multipliers: Mapping[Role, float] = field(hash=False)
    norms: Mapping[NormPlace, float] = field(default_factory=dict, hash=False)

    def decide(self, facts: TensorFacts, verdicts: Sequence[Verdict]) -> Decision:
        shares = [self.share(verdict) for verdict in verdicts]
        lowest = min(shares)
        ruling = verdicts[shares.index(lowest)]
        others = tuple(verdict for verdict, share in zip(verdicts, shares, strict=True) if share != lowest)
        # A mark is for the optimizer, and what is frozen comes to none.
        marks = () if Role.FROZEN in [verdict.role for verdict in verdicts] else facts.marks
        return Decision(lowest, ruling=ruling, others=others, marks=marks)

    def share(self, verdict: Verdict) -> float:
        """The multiplier of one verdict."""
        of_role = self.multipliers[verdict.role]
        if verdict.role is not Role.NORM_GAIN or verdict.norm is None:
            return of_role
        return self.norms.get(verdict.norm, of_role)


def by_roles(name: str, decaying: frozenset[Role], norms: Mapping[NormPlace, float] | None = None) -> RolePolicy:
    return RolePolicy(name, {role: 1.0 if role in decaying else 0.0 for role in Role}, norms or {})


_TRAINED = frozenset(Role) - NEVER

ROLE_POLICIES: dict[str, RolePolicy] = {
    policy.name: policy
    for policy in (
        by_roles("default", DECAYING),
        by_roles("all", _TRAINED),
        by_roles("none", frozenset()),
        by_roles("matrices", DECAYING - {Role.EMBEDDING, Role.POSITION_EMBEDDING, Role.OUTPUT_HEAD}),
        by_roles("no-embeddings", DECAYING - {Role.EMBEDDING, Role.POSITION_EMBEDDING}),
        by_roles("olmo2", _TRAINED - {Role.EMBEDDING}),
        # NVIDIA/Megatron-LM PR #2753, `--apply-wd-to-qk-layernorm`: for Qwen3-Next
        by_roles("qwen3-next", DECAYING, {NormPlace.QUERY_KEY: 1.0}),
    )
}
