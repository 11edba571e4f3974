"""From facts and verdicts to the lines of a plan: overrides decide first, then the author's marks, then the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from weightdecay.errors import PlanError
from weightdecay.planning import reasons
from weightdecay.planning.evidence.tensors import TensorFacts
from weightdecay.planning.patterns import alike, pattern_of
from weightdecay.planning.planned import PlannedTensor
from weightdecay.planning.policies.author_rates import NOTHING, author_rates, contradictions
from weightdecay.planning.policies.overrides import Override, is_multiplier, override_faults, unmatched
from weightdecay.planning.policies.policy_file import find_policy
from weightdecay.planning.policies.role_policies import Decision, Policy, RolePolicy
from weightdecay.planning.roles.classify import classify
from weightdecay.planning.roles.roles import Fixed, Given, Role, Strength, Verdict
from weightdecay.planning.sentences import evidence
from weightdecay.planning.strays import by_pattern, overrides_to_paste

Unknown = Literal["error", "exempt"]


@dataclass(frozen=True)
class Terms:
    """What a plan is made from beside its policy, so that another policy can be asked without looking again.

    Attributes:
        facts: of every tensor, with what a trace has seen.
        overrides: the user's own, without those of a policy file.
        unknown: what to do with a tensor whose job nothing tells.
    """

    facts: tuple[TensorFacts, ...]
    weight_decay: float = 0.1
    overrides: tuple[Override, ...] = ()
    unknown: Unknown = "error"


def decided(terms: Terms, policy: str | Path | Policy) -> tuple[str, list[PlannedTensor]]:
    """The policy's name, and the lines of its plan.

    Raises:
        PlanError: λ, the policy or an override is no such thing, an override matches nothing, marks contradict each
            other, a role is unknown and nothing settles it; all faults together.
    """
    faults = _argument_faults(terms)
    try:
        chosen, more_overrides = find_policy(policy)
    except PlanError as error:
        raise PlanError([*faults, *error.faults]) from error
    overrides = [*terms.overrides, *more_overrides]
    wrong = [fault for override in overrides for fault in override_faults(override)]
    if faults := faults + (wrong or unmatched(overrides, terms.facts)):
        raise PlanError(faults)

    lines = [
        _Line(facts, verdicts, chosen, overrides, terms.weight_decay)
        for facts, verdicts in zip(terms.facts, classify(terms.facts), strict=True)
    ]
    if faults := _undecided(lines, chosen.name):
        raise PlanError(faults)
    faults = _contradictions(lines)
    if terms.unknown == "error":
        faults += _unknown_roles([line.facts for line in lines if line.is_open()], terms.facts)
    if faults:
        raise PlanError(faults)
    return chosen.name, [line.planned() for line in lines]


def _argument_faults(terms: Terms) -> list[str]:
    faults = []
    λ: Any = terms.weight_decay
    if isinstance(λ, bool) or not isinstance(λ, Real) or not 0.0 <= float(λ) < math.inf:
        faults.append(f"weight_decay is {λ!r}: λ is a finite number of at least 0, usually 0.01 to 0.1")
    if terms.unknown not in ("error", "exempt"):
        faults.append(f"unknown is '{terms.unknown}': it is 'error' or 'exempt'")
    return faults


class _Line:
    """What is said of one tensor from all sides, and what that comes to."""

    def __init__(
        self,
        facts: TensorFacts,
        verdicts: Sequence[Verdict],
        policy: Policy,
        overrides: Sequence[Override],
        weight_decay: float,
    ) -> None:
        matching = [override for override in overrides if override.matches(facts)]
        self.override = next((one for one in matching if one.says_shares), None)
        role = next((one for one in matching if one.role is not None), None)
        self.facts, self.λ = facts, weight_decay
        self.verdicts = _with_given(verdicts, role)
        self.decision = policy.decide(facts, self.verdicts)
        self.by_role = isinstance(policy, RolePolicy)
        self.author = author_rates(self.decision.marks) if self.is_decided() and self.decision.marks else NOTHING

    def is_decided(self) -> bool:
        """Whether the policy gave an answer: a user's may give anything."""
        decision: Any = self.decision
        return self.by_role or (isinstance(decision, Decision) and is_multiplier(decision.multiplier))

    @property
    def sets_decay(self) -> bool:
        """Whether a user says how it decays."""
        return self.override is not None and self.override.multiplier is not None

    @property
    def sets_lr(self) -> bool:
        return self.override is not None and self.override.lr_multiplier != 1.0

    @property
    def is_given(self) -> bool:
        """Whether a user or the author says how it decays, so that it rests on no verdict."""
        return self.sets_decay or bool(self.author.on_decay)

    def contradictions(self) -> list[str]:
        if self.author is NOTHING:
            return []
        return contradictions(self.author, self.λ, decay=not self.sets_decay, lr=not self.sets_lr)

    def is_open(self) -> bool:
        """Whether nothing tells what it is for, and nobody how it decays."""
        unknown = any(verdict.role is Role.UNKNOWN for verdict in self.verdicts)
        return unknown and self.by_role and not self.is_given

    def planned(self) -> PlannedTensor:
        facts, verdicts, decision = self.facts, self.verdicts, self.decision
        multiplier, λ = self._decay()
        lr, lr_multiplier = self._lr()
        seen = [evidence(verdict) for verdict in verdicts]
        why = reasons.why(
            decision,
            next((words for words, verdict in zip(seen, verdicts, strict=True) if verdict is decision.ruling), ""),
            self.author,
            self.override,
            decay=self.sets_decay,
            lr=self.sets_lr,
            against=self._overrules_author(),
        )
        return PlannedTensor(
            name=facts.name,
            aliases=facts.aliases,
            shape=facts.shape,
            roles=tuple(verdict.role for verdict in verdicts),
            evidence="; ".join(seen),
            multiplier=multiplier,
            why=why,
            weight_decay=λ,
            ruling=None if self.is_given or decision.ruling is None else decision.ruling.role,
            lr_multiplier=lr_multiplier,
            contested=any(verdict.contested_by is not None for verdict in verdicts),
            lr=lr,
            strength=_strength(verdicts),
            norm=next((verdict.norm for verdict in verdicts if verdict.norm is not None), None),
            given=self.is_given,
            verdicts=tuple(verdicts),
        )

    def _decay(self) -> tuple[float, float]:
        """(multiplier, λ)."""
        author = self.author
        if self.override is not None and self.override.multiplier is not None:
            multiplier = float(self.override.multiplier)
        elif author.on_decay:
            multiplier = author.multiplier(self.λ)
            if author.weight_decay is not None:
                return multiplier, author.weight_decay
        else:
            multiplier = self.decision.multiplier
        return multiplier, self.λ * multiplier

    def _lr(self) -> tuple[float | None, float]:
        """(an η of its own, its share of the run's)."""
        if self.override is not None and self.sets_lr:
            return None, float(self.override.lr_multiplier)
        return self.author.lr, 1.0 if self.author.lr_share is None else self.author.lr_share

    def _overrules_author(self) -> bool:
        """Whether the override says otherwise than the author about λ."""
        said = self.author.on_decay and self.sets_decay
        return bool(said) and not math.isclose(self.author.multiplier(self.λ), self._decay()[0])


def _with_given(verdicts: Sequence[Verdict], override: Override | None) -> Sequence[Verdict]:
    """What is known of a tensor, or what a user knows better; what is frozen stays frozen."""
    if override is None or override.role is None:
        return verdicts
    frozen = [verdict for verdict in verdicts if verdict.role is Role.FROZEN]
    given = Verdict(Role(override.role), Strength.TRACED, Given(override.pattern, override.reason))
    return [*frozen, given]


def _strength(verdicts: Sequence[Verdict]) -> Strength:
    """Of the weakest of its verdicts; what no optimizer or gradient moves rests on that alone."""
    if isinstance(verdicts[0].source, Fixed):
        return verdicts[0].strength
    return min(verdict.strength for verdict in verdicts)


def _undecided(lines: Sequence[_Line], policy: str) -> list[str]:
    remedy = "give a weightdecay.Decision with a finite multiplier of at least 0"
    return [
        f"policy '{policy}' decides {line.decision!r} about {line.facts.name}: {remedy}"
        for line in lines
        if not line.is_decided()
    ]


def _contradictions(lines: Sequence[_Line]) -> list[str]:
    """One fault for tensors that differ in nothing but the indices in their names."""
    remedy = "The model's author marked it twice: remove one mark, or decide by an override"
    marked = [(line.facts.name, fault) for line in lines for fault in line.contradictions()]
    groups = alike(marked, lambda pair: pair[0], lambda pair: pair[1])
    return [f"{pattern_of([name for name, _ in group])}: {group[0][1]}. {remedy}" for group in groups]


def _unknown_roles(strays: Sequence[TensorFacts], everything: Sequence[TensorFacts]) -> list[str]:
    """One fault for all of them: which they are, by pattern, and the override to paste."""
    if not strays:
        return []
    paste = overrides_to_paste(strays, [site.name for facts in everything for site in facts.sites])
    remedy = "Give a batch to trace, exempt them with unknown='exempt', or say by overrides whether they decay"
    return [f"unknown role: {by_pattern(strays)}. {remedy} {paste}"]
