"""From facts and verdicts to the lines of a plan: overrides decide first, then the author's marks, then the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from weightdecay.errors import PlanError
from weightdecay.planning.evidence.tensors import TensorFacts
from weightdecay.planning.patterns import alike, by_pattern, overrides_to_paste, pattern_of
from weightdecay.planning.planned import PlannedTensor
from weightdecay.planning.policies.author_rates import NOTHING, author_rates, contradictions
from weightdecay.planning.policies.overrides import Override, is_multiplier, override_faults, unmatched
from weightdecay.planning.policies.policy_file import find_policy
from weightdecay.planning.policies.role_policies import Decision, Policy, RolePolicy
from weightdecay.planning.roles.classify import classify
from weightdecay.planning.roles.roles import Fixed, Given, Role, Strength, Verdict
from weightdecay.planning.sentences import in_words

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

    matching = [[one for one in overrides if one.matches(facts)] if overrides else [] for facts in terms.facts]
    verdicts = [_with_given(found, ours) for found, ours in zip(classify(terms.facts), matching, strict=True)]
    decisions = [chosen.decide(facts, found) for facts, found in zip(terms.facts, verdicts, strict=True)]
    by_role = isinstance(chosen, RolePolicy)
    if not by_role and (faults := _undecided(terms.facts, decisions, chosen.name)):
        raise PlanError(faults)

    lines = [
        _Line(*about, terms.weight_decay, by_role=by_role)
        for about in zip(terms.facts, verdicts, decisions, matching, strict=True)
    ]
    faults = _contradictions(lines)
    if terms.unknown == "error":
        faults += _unknown_roles([line.facts for line in lines if line.is_open], terms.facts)
    if faults:
        raise PlanError(faults)
    words = [
        in_words(
            line.verdicts,
            line.decision,
            line.author,
            line.override,
            decay=line.sets_decay,
            lr=line.sets_lr,
            against=line.overrules_author,
        )
        for line in lines
    ]
    return chosen.name, [line.planned(*said) for line, said in zip(lines, words, strict=True)]


def _argument_faults(terms: Terms) -> list[str]:
    faults = []
    λ: Any = terms.weight_decay
    if isinstance(λ, bool) or not isinstance(λ, Real) or not 0.0 <= float(λ) < math.inf:
        faults.append(f"weight_decay is {λ!r}: λ is a finite number of at least 0, usually 0.01 to 0.1")
    if terms.unknown not in ("error", "exempt"):
        faults.append(f"unknown is '{terms.unknown}': it is 'error' or 'exempt'")
    return faults


class _Line:
    """What is said of one tensor from all sides, and what that comes to.

    Attributes:
        override: the user's that says shares; `sets_decay` and `sets_lr` of which.
        author: what the marks on it come to.
        is_given: a user or the author says how it decays, so that it rests on no verdict.
        is_open: nothing tells what it is for, and nobody how it decays.
        overrules_author: the override says otherwise than the author about λ.
    """

    def __init__(
        self,
        facts: TensorFacts,
        verdicts: Sequence[Verdict],
        decision: Decision,
        matching: Sequence[Override],
        weight_decay: float,
        *,
        by_role: bool,
    ) -> None:
        self.facts, self.verdicts, self.decision, self.λ = facts, verdicts, decision, weight_decay
        self.override = next((one for one in matching if one.says_shares), None) if matching else None
        self.sets_decay = self.override is not None and self.override.multiplier is not None
        self.sets_lr = self.override is not None and self.override.lr_multiplier != 1.0
        self.author = author_rates(decision.marks) if decision.marks else NOTHING

        self.is_given = self.sets_decay or bool(self.author.on_decay)
        self.is_open = by_role and not self.is_given and Role.UNKNOWN in [verdict.role for verdict in verdicts]
        self.multiplier, self.own_λ = self._decay()
        self.overrules_author = self.sets_decay and bool(self.author.on_decay)
        if self.overrules_author:
            self.overrules_author = not math.isclose(self.author.multiplier(self.λ), self.multiplier)

    def contradictions(self) -> list[str]:
        return contradictions(self.author, self.λ, decay=not self.sets_decay, lr=not self.sets_lr)

    def planned(self, evidence: str, why: str) -> PlannedTensor:
        facts, verdicts, ruling = self.facts, self.verdicts, self.decision.ruling
        lr, lr_multiplier = self.author.lr, self.author.lr_share
        if self.override is not None and self.sets_lr:
            lr, lr_multiplier = None, float(self.override.lr_multiplier)
        return PlannedTensor(
            name=facts.name,
            aliases=tuple([site.name for site in facts.sites[1:]]),
            shape=facts.shape,
            roles=tuple([verdict.role for verdict in verdicts]),
            evidence=evidence,
            multiplier=self.multiplier,
            why=why,
            weight_decay=self.own_λ,
            ruling=None if self.is_given or ruling is None else ruling.role,
            lr_multiplier=1.0 if lr_multiplier is None else lr_multiplier,
            contested=bool([verdict for verdict in verdicts if verdict.contested_by is not None]),
            lr=lr,
            strength=_strength(verdicts),
            norm=next((verdict.norm for verdict in verdicts if verdict.norm is not None), None),
            given=self.is_given,
            verdicts=tuple(verdicts),
        )

    def _decay(self) -> tuple[float, float]:
        """(multiplier, λ)."""
        author, multiplier = self.author, self.decision.multiplier
        if self.override is not None and self.override.multiplier is not None:
            multiplier = float(self.override.multiplier)
        elif author.on_decay:
            multiplier = author.multiplier(self.λ)
            if author.weight_decay is not None:
                return multiplier, author.weight_decay
        return multiplier, self.λ * multiplier


def _with_given(verdicts: Sequence[Verdict], matching: Sequence[Override]) -> Sequence[Verdict]:
    """What is known of a tensor, or what a user knows better; what is frozen stays frozen."""
    override = next((one for one in matching if one.role is not None), None) if matching else None
    if override is None or override.role is None:
        return verdicts
    frozen = [verdict for verdict in verdicts if verdict.role is Role.FROZEN]
    given = Verdict(Role(override.role), Strength.TRACED, Given(override.pattern, override.reason))
    return [*frozen, given]


def _strength(verdicts: Sequence[Verdict]) -> Strength:
    """Of the weakest of its verdicts; what no optimizer or gradient moves rests on that alone."""
    if isinstance(verdicts[0].source, Fixed):
        return verdicts[0].strength
    return min([verdict.strength for verdict in verdicts])


def _undecided(facts: Sequence[TensorFacts], decisions: Sequence[Any], policy: str) -> list[str]:
    """The faults of a user's policy, which may answer anything."""
    remedy = "give a weightdecay.Decision with a finite multiplier of at least 0"
    return [
        f"policy '{policy}' decides {decision!r} about {tensor.name}: {remedy}"
        for tensor, decision in zip(facts, decisions, strict=True)
        if not (isinstance(decision, Decision) and is_multiplier(decision.multiplier))
    ]


def _contradictions(lines: Sequence[_Line]) -> list[str]:
    """One fault for tensors that differ in nothing but the indices in their names."""
    remedy = "The model's author marked it twice: remove one mark, or decide by an override"
    marked = [(one.facts.name, fault) for one in lines if one.author is not NOTHING for fault in one.contradictions()]
    groups = alike(marked, lambda pair: pair[0], lambda pair: pair[1])
    return [f"{pattern_of([name for name, _ in group])}: {group[0][1]}. {remedy}" for group in groups]


def _unknown_roles(strays: Sequence[TensorFacts], everything: Sequence[TensorFacts]) -> list[str]:
    """One fault for all of them: which they are, by pattern, and the override to paste."""
    if not strays:
        return []
    paste = overrides_to_paste(strays, [site.name for facts in everything for site in facts.sites])
    remedy = "Give a batch to trace, exempt them with unknown='exempt', or say by overrides whether they decay"
    return [f"unknown role: {by_pattern(strays)}. {remedy} {paste}"]
