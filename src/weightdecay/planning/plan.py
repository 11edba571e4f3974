"""Decide for every tensor of a model whether, how much and why it decays: facts, verdicts, a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from weightdecay.errors import PlanError
from weightdecay.planning.decay_plan import DecayPlan, checked_module
from weightdecay.planning.deciding import Terms, Unknown
from weightdecay.planning.evidence.tensors import TensorFacts, read_shapes, read_tensors
from weightdecay.planning.evidence.tracing import Batch, with_uses
from weightdecay.planning.patterns import some
from weightdecay.planning.policies.overrides import Overrides
from weightdecay.planning.policies.policy_file import PolicyName
from weightdecay.planning.policies.role_policies import Policy


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
    incomplete: str = "",
) -> DecayPlan:
    """The plan from facts alone, such as the names and shapes of a state dict; `plan` says what the arguments are."""
    terms = Terms(tuple(facts), weight_decay, overrides, unknown)
    return DecayPlan.decided(terms, policy, model=model, incomplete=incomplete)


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)
