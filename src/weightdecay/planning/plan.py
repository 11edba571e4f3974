"""The decay plan: every tensor of a model once, in order, with its share of λ and the reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from weightdecay.errors import PlanError, did_you_mean
from weightdecay.naming import parameters_by_name
from weightdecay.planning.classify import classify
from weightdecay.planning.comparison import OptimizerCheck, PlanDiff, check, diff, some
from weightdecay.planning.policies import Override, Policy, RolePolicy, override_faults
from weightdecay.planning.policyfile import find_policy
from weightdecay.planning.roles import Role, Verdict
from weightdecay.planning.tensors import TensorFacts, read_shapes, read_tensors
from weightdecay.planning.tracing import Batch, with_uses

Overrides = Mapping[str, float] | Sequence[Override]
Unknown = Literal["error", "exempt"]


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor's line in the plan; `weight_decay` is λ · multiplier, `contested` as in `Verdict`."""

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    roles: tuple[Role, ...]
    evidence: str
    multiplier: float
    reason: str
    weight_decay: float
    lr_multiplier: float = 1.0
    contested: bool = False

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
            f"{self.decayed_tensors} tensor{'' if self.decayed_tensors == 1 else 's'} "
            f"({self.decayed_elements:,} elements) decay, {self.exempt_tensors} ({self.exempt_elements:,}) do not"
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

    def get(self, name: str) -> PlannedTensor | None:
        """The tensor of that name or alias, or None."""
        return self._by_name.get(name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}  # a copied or pickled plan carries no weights along

    def summary(self) -> PlanSummary:
        decayed = [tensor for tensor in self if tensor.decays]
        exempt = [tensor for tensor in self if not tensor.decays]
        return PlanSummary(len(decayed), sum(t.numel for t in decayed), len(exempt), sum(t.numel for t in exempt))

    def param_groups(self, *, lr: float, **options: Any) -> list[dict[str, Any]]:
        """Parameter groups for any torch optimizer, decaying ones first; frozen tensors are in none.

        The tensors are looked up by name now, so that a plan made before `fully_shard` groups what stands there after.

        Args:
            lr: learning rate, times each tensor's own lr multiplier.
            options: further entries of every group, such as `betas`.

        Raises:
            PlanError: the plan belongs to no model, or FSDP1 has flattened tensors together that decay differently.
        """
        parameters = self._parameters()
        groups: dict[tuple[float, float], dict[int, tuple[str, Any]]] = {}
        for tensor in self:
            if not tensor.frozen:
                members = groups.setdefault((tensor.lr_multiplier, tensor.multiplier), {})
                members.setdefault(id(parameters[tensor.name]), (tensor.name, parameters[tensor.name]))
        self._refuse_torn(groups)
        return [
            {
                "params": [parameter for _, parameter in groups[key].values()],
                "param_names": [name for name, _ in groups[key].values()],
                "weight_decay": self.weight_decay * key[1],
                "name": _group_name(*key),
                "lr": lr * key[0],
                **options,
            }
            for key in sorted(groups, key=lambda key: (key[0] != 1.0, key[0], -key[1]))
        ]

    def _refuse_torn(self, groups: Mapping[tuple[float, float], Mapping[int, tuple[str, Any]]]) -> None:
        """A flat parameter of FSDP1 can be in one group only."""
        seen: dict[int, str] = {}
        for members in groups.values():
            for key, (name, _) in members.items():
                if key in seen:
                    raise PlanError(
                        f"FSDP1 has flattened {seen[key]} and {name} into one tensor, but they decay differently: wrap "
                        "with use_orig_params=True, or use fully_shard"
                    )
                seen[key] = name

    def _parameters(self) -> Mapping[str, Any]:
        if self._model is None:
            raise PlanError("this plan belongs to no model, so there are no parameters to group: use plan.on(model)")
        return parameters_by_name(self._model)

    def on(self, model: nn.Module, *, part: bool = False) -> DecayPlan:
        """This plan for the same model wrapped, sharded or reloaded, or (`part=True`) for a stage of it.

        Raises:
            PlanError: the model has tensors that the plan does not know, lacks some, or has them in other shapes.
        """
        present = {tensor.name: tensor for tensor in read_tensors(model)}
        faults = []
        unknown = [name for name in present if name not in self]
        if unknown:
            near = did_you_mean(unknown[0], self._by_name)
            faults.append(f"the plan does not know {some(unknown)}: {near} Plan this model itself")
        carried = [tensor for tensor in self if {tensor.name, *tensor.aliases} & present.keys()]
        missing = [tensor.name for tensor in self if tensor not in carried]
        if missing and not part:
            faults.append(f"the model lacks {some(missing)}: pass part=True if it is one stage of the planned model")
        faults += [
            f"{name} is {list(facts.shape)}, in the plan {list(self[name].shape)}: another size of this model?"
            for name, facts in present.items()
            if name in self and facts.shape != self[name].shape
        ]
        if faults:
            raise PlanError(faults)
        return DecayPlan(carried, policy=self.policy, weight_decay=self.weight_decay, model=model)

    def diff(self, other: DecayPlan) -> PlanDiff:
        """What this plan says otherwise than another; falsy if they agree."""
        return diff(self, other)

    def check(self, optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> OptimizerCheck:
        """Whether an optimizer really carries this plan: `.ok`, `.faults`, `.raise_if_wrong()`.

        Args:
            optimizer: any torch optimizer.
            model: the (wrapped) model it trains, if not the one that was planned.
        """
        parameters = self._parameters() if model is None else parameters_by_name(model)
        return check(self, optimizer, parameters)

    def check_ranks(self) -> None:
        """Raises CheckFailedError on all ranks if any rank's plan differs from rank 0's; each rank must call it."""
        from weightdecay.planning.ranks import check_ranks

        check_ranks(self)

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
    model: nn.Module | Mapping[str, torch.Tensor],
    weight_decay: float = 0.1,
    policy: str | Policy = "default",
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
        policy: name of a policy, path of a TOML policy file, or a policy of your own.
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
        facts = read_shapes([(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in model.items()])
        return plan_tensors(facts, weight_decay, policy, overrides=overrides, unknown=unknown)
    facts = read_tensors(model)
    if trace:
        facts = with_uses(model, facts, batch)
    return plan_tensors(facts, weight_decay, policy, overrides=overrides, unknown=unknown, model=model)


def plan_tensors(
    facts: Sequence[TensorFacts],
    weight_decay: float = 0.1,
    policy: str | Policy = "default",
    *,
    overrides: Overrides = (),
    unknown: Unknown = "error",
    model: nn.Module | None = None,
) -> DecayPlan:
    """The plan from facts alone, such as the names and shapes of a state dict; `plan` says what the arguments are."""
    faults = []
    if not (weight_decay >= 0.0 and math.isfinite(weight_decay)):
        faults.append(f"weight_decay is {weight_decay}: λ is a finite number of at least 0, usually 0.01 to 0.1")
    if unknown not in ("error", "exempt"):
        faults.append(f"unknown is '{unknown}': it is 'error' or 'exempt'")
    try:
        chosen, more_overrides = find_policy(policy)
    except PlanError as error:
        raise PlanError([*faults, *error.faults]) from error
    if isinstance(overrides, Mapping):
        overrides = [Override(pattern, multiplier) for pattern, multiplier in overrides.items()]
    ordered = [*overrides, *more_overrides]
    faults += _override_faults(ordered, facts)
    if faults:
        raise PlanError(faults)
    lines, strays = [], []
    for tensor, verdicts in zip(facts, classify(facts), strict=True):
        override = next((override for override in ordered if override.matches(tensor)), None)
        lines.append(_line(tensor, verdicts, chosen, override, weight_decay))
        overridden = override is not None and override.multiplier is not None
        if Role.UNKNOWN in lines[-1].roles and isinstance(chosen, RolePolicy) and not overridden:
            strays.append(f"{tensor.name} {list(tensor.shape)}")
    if strays and unknown == "error":
        raise PlanError(
            f"unknown role: {', '.join(strays)}. Give a batch to trace, say by an override whether they decay, "
            "or exempt them with unknown='exempt'"
        )
    return DecayPlan(lines, policy=chosen.name, weight_decay=weight_decay, model=model)


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
