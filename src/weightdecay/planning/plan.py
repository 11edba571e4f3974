"""The decay plan: every tensor of a model once, in order, with its share of λ and the reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from weightdecay.errors import PlanError, did_you_mean
from weightdecay.planning.classify import classify
from weightdecay.planning.policies import ROLE_POLICIES, Override, Policy
from weightdecay.planning.roles import Role, Verdict
from weightdecay.planning.tensors import TensorFacts, parameters_by_name, read_tensors


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor's line in the plan; `weight_decay` is λ · multiplier."""

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    roles: tuple[Role, ...]
    evidence: str
    multiplier: float
    reason: str
    weight_decay: float
    lr_multiplier: float = 1.0

    @property
    def role(self) -> Role:
        """The first role; only a tied or frozen tensor has more."""
        return self.roles[0]

    @property
    def decays(self) -> bool:
        return self.multiplier != 0.0

    @property
    def frozen(self) -> bool:
        return Role.FROZEN in self.roles

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
            f"{self.decayed_tensors} tensors ({self.decayed_elements:,} elements) decay, "
            f"{self.exempt_tensors} ({self.exempt_elements:,}) do not"
        )


class DecayPlan:
    """A total, ordered partition of a model's tensors by how much of λ they take."""

    def __init__(
        self, tensors: Sequence[PlannedTensor], *, policy: str, weight_decay: float, model: nn.Module | None = None
    ) -> None:
        self.tensors = tuple(tensors)
        self.policy = policy
        self.weight_decay = weight_decay
        self._model = model
        self._by_name = {name: tensor for tensor in self.tensors for name in (tensor.name, *tensor.aliases)}

    def __len__(self) -> int:
        return len(self.tensors)

    def __iter__(self) -> Iterator[PlannedTensor]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> PlannedTensor:
        """The tensor of that name or alias."""
        if name not in self._by_name:
            raise PlanError(f"the plan has no tensor '{name}': {did_you_mean(name, self._by_name)}")
        return self._by_name[name]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}  # a copied or pickled plan carries no weights along

    def summary(self) -> PlanSummary:
        decayed = [tensor for tensor in self if tensor.decays]
        exempt = [tensor for tensor in self if not tensor.decays]
        return PlanSummary(len(decayed), sum(t.numel for t in decayed), len(exempt), sum(t.numel for t in exempt))

    def param_groups(self, *, lr: float, **options: Any) -> list[dict[str, Any]]:
        """Parameter groups for any torch optimizer, decaying ones first; frozen tensors are in none.

        Args:
            lr: learning rate, times each tensor's own lr multiplier.
            options: further entries of every group, such as `betas`.

        Raises:
            PlanError: the plan was read from a file and belongs to no model yet.
        """
        if self._model is None:
            raise PlanError("this plan belongs to no model, so there are no parameters to group: use plan.on(model)")
        parameters = parameters_by_name(self._model)
        groups: dict[tuple[float, float], list[PlannedTensor]] = {}
        for tensor in self:
            if not tensor.frozen:
                groups.setdefault((tensor.lr_multiplier, tensor.multiplier), []).append(tensor)
        return [
            {
                "params": [parameters[tensor.name] for tensor in groups[key]],
                "param_names": [tensor.name for tensor in groups[key]],
                "weight_decay": self.weight_decay * key[1],
                "name": _group_name(*key),
                "lr": lr * key[0],
                **options,
            }
            for key in sorted(groups, key=lambda key: (key[0] != 1.0, key[0], -key[1]))
        ]

    def __str__(self) -> str:
        from weightdecay.planning.render import table_text

        return table_text(self)

    def to_json(self) -> str:
        """The plan in the lock format."""
        from weightdecay.planning.lockfile import to_json

        return to_json(self)


def _group_name(lr_multiplier: float, multiplier: float) -> str:
    name = "no_decay" if multiplier == 0.0 else "decay" if multiplier == 1.0 else f"decay×{multiplier:g}"
    return name if lr_multiplier == 1.0 else f"{name} lr×{lr_multiplier:g}"


def plan(
    model: nn.Module,
    weight_decay: float = 0.1,
    policy: str | Policy = "default",
    *,
    overrides: Mapping[str, float] | Sequence[Override] = (),
    unknown: str = "error",
) -> DecayPlan:
    """Decide for every tensor of a model whether, how much and why it decays.

        λ_tensor = weight_decay · multiplier(role)

    Args:
        model: any module, bare or wrapped, on any device including meta.
        weight_decay: λ as `torch.optim.AdamW` means it, per unit of learning rate.
        policy: name of a policy, or one of your own.
        overrides: regular expressions with their multipliers; the first that matches a name decides.
        unknown: what to do with a tensor whose job nothing tells: "error" or "exempt".

    Raises:
        PlanError: λ is negative, the policy is not known, an override matches nothing, a tensor's role is unknown
            and no override covers it; all faults together.
    """
    facts = read_tensors(model)
    tensors = decide(facts, weight_decay=weight_decay, policy=policy, overrides=overrides, unknown=unknown)
    name = policy if isinstance(policy, str) else policy.name
    return DecayPlan(tensors, policy=name, weight_decay=weight_decay, model=model)


def decide(
    facts: Sequence[TensorFacts],
    *,
    weight_decay: float,
    policy: str | Policy,
    overrides: Mapping[str, float] | Sequence[Override] = (),
    unknown: str = "error",
) -> list[PlannedTensor]:
    """The plan's lines from facts alone; `plan` says what the arguments are."""
    faults = []
    if not (weight_decay >= 0.0 and math.isfinite(weight_decay)):
        faults.append(f"weight_decay is {weight_decay}: λ is a finite number of at least 0, usually 0.01 to 0.1")
    if isinstance(policy, str):
        if policy not in ROLE_POLICIES:
            raise PlanError([*faults, f"there is no policy '{policy}': {did_you_mean(policy, ROLE_POLICIES)}"])
        policy = ROLE_POLICIES[policy]
    if isinstance(overrides, Mapping):
        overrides = [Override(pattern, multiplier) for pattern, multiplier in overrides.items()]
    for override in overrides:
        if not any(override.matches(tensor) for tensor in facts):
            faults.append(f"the override '{override.pattern}' matches no tensor: correct or remove it")
    planned = []
    strays = []
    for tensor, verdicts in zip(facts, classify(facts), strict=True):
        override = next((override for override in overrides if override.matches(tensor)), None)
        if override is None and any(verdict.role is Role.UNKNOWN for verdict in verdicts):
            strays.append(tensor)
        planned.append(_line(tensor, verdicts, policy, override, weight_decay))
    if strays and unknown == "error":
        names = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in strays)
        faults.append(f"unknown role: {names}. Say what they are by an override, or pass unknown='exempt'")
    if faults:
        raise PlanError(faults)
    return planned


def _line(
    facts: TensorFacts, verdicts: Sequence[Verdict], policy: Policy, override: Override | None, weight_decay: float
) -> PlannedTensor:
    decision = policy.decide(facts, verdicts)
    multiplier, reason = decision.multiplier, decision.reason
    if override is not None and override.multiplier is not None:
        multiplier = override.multiplier
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
        lr_multiplier=1.0 if override is None else override.lr_multiplier,
    )
