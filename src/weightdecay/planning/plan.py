"""Decide for every tensor of a model whether, how much and why it decays: facts, verdicts, a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from weightdecay.errors import PlanError, did_you_mean
from weightdecay.planning.comparison import some
from weightdecay.planning.decay_plan import DecayPlan, PlannedTensor, checked_module
from weightdecay.planning.evidence.tensors import TensorFacts, read_shapes, read_tensors
from weightdecay.planning.evidence.tracing import Batch, with_uses
from weightdecay.planning.policies.policy_file import PolicyName, find_policy
from weightdecay.planning.policies.role_policies import Override, Policy, RolePolicy, override_faults
from weightdecay.planning.roles.classify import classify
from weightdecay.planning.roles.roles import Role, Strength, Verdict

Overrides = Mapping[str, float] | Sequence[Override]
Unknown = Literal["error", "exempt"]


def plan(
    model: nn.Module | Mapping[str, torch.Tensor],
    weight_decay: float = 0.1,
    policy: PolicyName | Path | Policy = "default",
    *,
    overrides: Overrides = (),
    unknown: Unknown = "error",
    batch: Batch | None = None,
    trace: bool = True,
) -> DecayPlan:
    """Decide for every tensor of a model whether, how much and why it decays.

        λ_tensor = weight_decay · multiplier(role)

    Args:
        model: any module, bare or wrapped, on any device including meta. It is not changed, nor is any random state.
            Or a bare state dict, on whose names and shapes verdicts are weaker, and which has no parameters to group.
        weight_decay: λ as `torch.optim.AdamW` means it, per unit of learning rate.
        policy: name of a policy, `Path` of a TOML policy file, or a policy of your own.
        overrides: regular expressions with their multipliers; the first that is found in a name decides.
        unknown: what to do with a tensor whose job nothing tells: "error" or "exempt".
        batch: what the model's forward takes (a tensor, positional arguments as a tuple, or keywords as a mapping), to
            be traced on a copy of the model; without it, inputs are guessed.
        trace: whether to run (copies of) the model or its parts to see how they use their tensors.

    Raises:
        PlanError: λ is negative, the policy is not known, an override matches nothing, a tensor's role is unknown
            and no override covers it; all faults together. Also for models without parameters, or with lazy ones.
    """
    if isinstance(model, Mapping):
        if odd := [f"'{name}' is {type(tensor).__name__}" for name, tensor in model.items() if not _is_tensor(tensor)]:
            raise PlanError(f"a state dict holds tensors alone, but {some(odd)}: give the tensors of one model")
        facts = read_shapes([(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.items()])
        return plan_tensors(facts, weight_decay, policy, overrides=overrides, unknown=unknown)

    facts = read_tensors(checked_module(model))
    if trace:
        facts = with_uses(model, facts, batch)
    return plan_tensors(facts, weight_decay, policy, overrides=overrides, unknown=unknown, model=model)


def plan_tensors(
    facts: Sequence[TensorFacts],
    weight_decay: float = 0.1,
    policy: str | Path | Policy = "default",
    *,
    overrides: Overrides = (),
    unknown: Unknown = "error",
    model: nn.Module | None = None,
) -> DecayPlan:
    """The plan from facts alone, such as the names and shapes of a state dict; `plan` says what the arguments are."""
    faults = []
    λ: Any = weight_decay
    if isinstance(λ, bool) or not isinstance(λ, Real) or not 0.0 <= float(λ) < math.inf:
        faults.append(f"weight_decay is {λ!r}: λ is a finite number of at least 0, usually 0.01 to 0.1")
    if unknown not in ("error", "exempt"):
        faults.append(f"unknown is '{unknown}': it is 'error' or 'exempt'")
    try:
        chosen, more_overrides = find_policy(policy)
    except PlanError as error:
        raise PlanError([*faults, *error.faults]) from error
    ordered = [*_listed(overrides), *more_overrides]
    faults += _override_faults(ordered, facts)
    if faults:
        raise PlanError(faults)
    lines, strays = [], []
    for tensor, verdicts in zip(facts, classify(facts), strict=True):
        matching = [override for override in ordered if override.matches(tensor)]
        override = next((one for one in matching if one.says_shares), None)
        given = next((one for one in matching if one.role is not None), None)
        lines.append(_line(tensor, _with_given(verdicts, given), chosen, override, weight_decay))
        overridden = override is not None and override.multiplier is not None
        if Role.UNKNOWN in lines[-1].roles and isinstance(chosen, RolePolicy) and not overridden:
            strays.append(f"{tensor.name} {list(tensor.shape)}")
    if strays and unknown == "error":
        raise PlanError(
            f"unknown role: {', '.join(strays)}. Give a batch to trace, say by an override whether they decay, "
            "or exempt them with unknown='exempt'"
        )
    return DecayPlan(lines, policy=chosen.name, weight_decay=weight_decay, model=model)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _listed(overrides: Any) -> list[Any]:
    """Overrides in order, whatever they were given as; what is none is for `override_faults` to say."""
    if isinstance(overrides, Mapping):
        return [Override(pattern, multiplier) for pattern, multiplier in overrides.items()]
    return list(overrides) if isinstance(overrides, Sequence) and not isinstance(overrides, str) else [overrides]


def _override_faults(overrides: Sequence[Override], facts: Sequence[TensorFacts]) -> list[str]:
    faults = [fault for override in overrides for fault in override_faults(override)]
    if faults:
        return faults
    names = [site.name for tensor in facts for site in tensor.sites]
    return [
        f"the override '{override.pattern}' matches no tensor: {did_you_mean(override.pattern, names)}"
        for override in overrides
        if not any(override.matches(tensor) for tensor in facts)
    ]


def _with_given(verdicts: Sequence[Verdict], override: Override | None) -> Sequence[Verdict]:
    """What is known of a tensor, or what a user knows better; what is frozen stays frozen."""
    if override is None or override.role is None:
        return verdicts
    evidence = f"override '{override.pattern}'" + (f": {override.reason}" if override.reason else "")
    frozen = [verdict for verdict in verdicts if verdict.role is Role.FROZEN]
    return [*frozen, Verdict(Role(override.role), evidence, Strength.TRACED)]


def _line(
    facts: TensorFacts, verdicts: Sequence[Verdict], policy: Policy, override: Override | None, weight_decay: float
) -> PlannedTensor:
    decision = policy.decide(facts, verdicts)
    multiplier, reason = decision.multiplier, decision.reason
    if override is not None and override.multiplier is not None:
        multiplier = float(override.multiplier)
        reason = f"override '{override.pattern}'" + (f": {override.reason}" if override.reason else "")
    return PlannedTensor(
        name=facts.name,
        aliases=facts.aliases,
        shape=facts.shape,
        roles=tuple(verdict.role for verdict in verdicts),
        evidence="; ".join(verdict.evidence for verdict in verdicts),
        multiplier=multiplier,
        reason=reason,
        weight_decay=weight_decay * multiplier,
        lr_multiplier=1.0 if override is None else float(override.lr_multiplier),
        contested=any(verdict.contested for verdict in verdicts),
    )
