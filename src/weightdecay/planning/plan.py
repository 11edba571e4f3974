"""Decide for every tensor of a model whether, how much and why it decays: facts, verdicts, a plan."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from weightdecay.errors import PlanError
from weightdecay.planning.decay_plan import DecayPlan, checked_module
from weightdecay.planning.deciding import Terms, Unknown
from weightdecay.planning.evidence.batches import Batch, BatchWarning, batch_faults
from weightdecay.planning.evidence.budget import Budget
from weightdecay.planning.evidence.tensors import TensorFacts, read_shapes, read_tensors
from weightdecay.planning.evidence.tracing import trace as traced_uses
from weightdecay.planning.patterns import some
from weightdecay.planning.policies.overrides import Overrides, listed_overrides
from weightdecay.planning.policies.policy_file import PolicyName
from weightdecay.planning.policies.role_policies import Policy

Trace = bool | Literal["optional"]


def plan(
    model: nn.Module | Mapping[str, torch.Tensor],
    weight_decay: float = 0.1,
    policy: PolicyName | Path | Policy = "default",
    *,
    overrides: Overrides = (),
    unknown: Unknown = "error",
    batch: Batch | None = None,
    trace: Trace = True,
    deadline: float = 60.0,
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
        trace: whether to run (copies of) the model or its parts to see how they use their tensors. With "optional" a
            batch that does not go through is a `BatchWarning`, which verdicts repeat, and inputs are guessed.
        deadline: seconds after which nothing more is run. Work is limited by its amount long before, alike on every
            machine; a plan that the clock cut is `incomplete`.

    Raises:
        PlanError: λ is negative, the policy is not known, an override matches nothing, the batch does not go through
            the model, a tensor's role is unknown and no override covers it; all faults together. Also for models
            without parameters, or with lazy ones.
    """
    asked: dict[str, Any] = {"weight_decay": weight_decay, "policy": policy, "overrides": overrides, "unknown": unknown}
    faults = _tracing_faults(model, batch, trace, deadline)
    if isinstance(model, Mapping):
        if odd := [f"'{name}' is {type(tensor).__name__}" for name, tensor in model.items() if not _is_tensor(tensor)]:
            faults.append(f"a state dict holds tensors alone, but {some(odd)}: give the tensors of one model")
            raise PlanError(faults)
        facts = read_shapes([(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.items()])
        _raise_with_others(faults, facts, asked)
        return plan_tensors(facts, **asked)

    facts = read_tensors(checked_module(model))
    _raise_with_others(faults, facts, asked)
    if not trace:
        return plan_tensors(facts, model=model, **asked)

    traced = traced_uses(model, facts, batch, Budget(deadline=float(deadline)))
    if traced.batch_fault:
        said = f"the batch does not go through {type(model).__name__}: {traced.batch_fault}"
        if trace is True:
            remedy = "give what its forward takes, or trace='optional' to plan without it"
            _raise_with_others([f"{said}: {remedy}"], facts, asked)
        warnings.warn(f"{said}: inputs are guessed in its place", BatchWarning, stacklevel=2)
    return plan_tensors(traced.tensors, model=model, incomplete=traced.incomplete, **asked)


def _tracing_faults(model: object, batch: object, trace: object, deadline: Any) -> list[str]:
    faults = [] if batch is None else batch_faults(batch)
    if batch is not None and (trace is False or isinstance(model, Mapping)):
        faults.append("a batch is given, and nothing to run on it: it needs a module, and trace=True or 'optional'")
    if trace not in (True, False, "optional"):
        faults.append(f"trace is {trace!r}: it is True, False or 'optional'")
    if isinstance(deadline, bool) or not isinstance(deadline, Real) or not float(deadline) > 0.0:
        faults.append(f"deadline is {deadline!r}: it is a number of seconds above 0")
    return faults


def _raise_with_others(faults: Sequence[str], facts: Sequence[TensorFacts], asked: Mapping[str, Any]) -> None:
    """Raise these faults together with those of the other arguments, if there are any; without a trace no role is."""
    if not faults:
        return
    try:
        plan_tensors(facts, **{**asked, "unknown": "exempt" if asked["unknown"] == "error" else asked["unknown"]})
    except PlanError as error:
        raise PlanError([*faults, *error.faults]) from None
    raise PlanError(faults)


def plan_tensors(
    facts: Sequence[TensorFacts],
    weight_decay: float = 0.1,
    policy: str | Path | Policy = "default",
    *,
    overrides: Overrides = (),
    unknown: Unknown = "error",
    model: nn.Module | None = None,
    incomplete: str = "",
) -> DecayPlan:
    """The plan from facts alone, such as the names and shapes of a state dict; `plan` says what the arguments are."""
    terms = Terms(tuple(facts), weight_decay, tuple(listed_overrides(overrides)), unknown)
    return DecayPlan.decided(terms, policy, model=model, incomplete=incomplete)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)
