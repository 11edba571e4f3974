"""The decay plan: every tensor of a model once, in order, with its share of λ and the reason."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weightdecay.errors import PlanError, did_you_mean
from weightdecay.naming import parameters_by_name
from weightdecay.planning.comparison import PlanDiff, diff, some
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.roles.roles import Role

if TYPE_CHECKING:
    from weightdecay.planning.checking import OptimizerCheck
    from weightdecay.planning.step_checks import DecayRule, RuleName


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

    def param_groups(self, *, lr: float, names: bool = True, **options: Any) -> list[dict[str, Any]]:
        """Parameter groups for any torch optimizer, decaying ones first; frozen tensors are in none.

        Each group carries its shares of λ and η, `decay_multiplier` and `lr_multiplier`, by which schedules set both.
        The tensors are looked up by name now, so that a plan made before `fully_shard` groups what stands there after.

        Args:
            lr: learning rate, times each tensor's own lr multiplier.
            names: whether groups have `param_names`; torch lets no nameless group join named ones, so leave them out
                where others' code adds groups, such as callbacks that unfreeze layers.
            options: further entries of every group, such as `betas`.

        Raises:
            PlanError: lr is no number of at least 0, the plan belongs to no model, or FSDP1 has flattened tensors
                together that decay differently.
        """
        if not _is_rate(lr):
            raise PlanError(f"lr is {lr!r}: give the learning rate, a finite number of at least 0")
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
                **({"param_names": [name for name, _ in groups[key].values()]} if names else {}),
                "weight_decay": self.weight_decay * key[1],
                "decay_multiplier": key[1],
                "name": _group_name(*key),
                "lr": lr * key[0],
                "lr_multiplier": key[0],
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

    def parameters(self) -> Iterator[Any]:
        """The model's tensors, frozen ones too.

        Raises:
            PlanError: the plan belongs to no model.
        """
        return iter(self._parameters().values())

    def _parameters(self) -> Mapping[str, Any]:
        if self._model is None:
            raise PlanError("this plan belongs to no model, so there are no parameters to group: use plan.on(model)")
        return parameters_by_name(self._model)

    def on(self, model: nn.Module, *, part: bool = False) -> DecayPlan:
        """This plan for the same model wrapped, sharded or reloaded, or (`part=True`) for a stage of it.

        Raises:
            PlanError: the model has tensors that the plan does not know, lacks some, or has them in other shapes.
        """
        present = {tensor.name: tensor for tensor in read_tensors(checked_module(model))}
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

    def add_to(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Bring what this plan has and an optimizer lacks into it: unfrozen layers, new adapters.

        They join with the λ, η, peak, rule and options that their like in the optimizer has now. torch's schedulers
        keep to the groups that they began with; `apply_schedules` takes the new ones along.

        Returns:
            The names of the tensors that were added.

        Raises:
            PlanError: the optimizer's groups do not tell what λ is now, or it trains another model.
        """
        from weightdecay.planning.growing import add_to

        (checked,) = checked_optimizers([optimizer])
        return add_to(self, checked)

    def check(
        self,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        model: nn.Module | None = None,
        *,
        rule: RuleName | DecayRule | None = None,
    ) -> OptimizerCheck:
        """Whether an optimizer really carries this plan: `.ok`, `.faults`, `.opaque`, `.raise_if_wrong()`.

        Groups are compared with the plan by their shares of λ and η, and a step of a small copy shows whether the
        optimizer does with them what the plan means: w ← (1 − lr·λ)·w, beside the gradient.

        Args:
            optimizer: any torch optimizer, or all of those that train the model.
            model: the (wrapped) model it trains, if not the one that was planned.
            rule: where λ is meant otherwise: `"l2"` (or a coupled `Rule`) accepts decay through the gradient, another
                name a decay per step that is not lr·λ, and a `Rule` the decay per step that it gives.

        Raises:
            PlanError: what is given is no optimizer, no module or no rule, or the plan belongs to no model.
        """
        from weightdecay.planning.checking import check

        parameters = self._parameters() if model is None else parameters_by_name(checked_module(model))
        return check(self, checked_optimizers(optimizer), parameters, rule)

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


def checked_module(model: Any) -> nn.Module:
    """The module itself.

    Raises:
        PlanError: it is none.
    """
    if isinstance(model, nn.Module):
        return model
    what = f"the class {model.__name__}" if isinstance(model, type) else f"{type(model).__name__}"
    raise PlanError(f"model is {what}: give a torch.nn.Module, or to `weightdecay.plan` a state dict")


def checked_optimizers(given: Any) -> list[torch.optim.Optimizer]:
    """One optimizer or several, as a list.

    Raises:
        PlanError: something among them is none, or there is none.
    """
    several = isinstance(given, list | tuple | set | frozenset | dict)
    listed = list(given.values() if isinstance(given, dict) else given) if several else [given]
    # Wrappers, such as DeepSpeed's, need not be of torch's class.
    odd = [type(one).__name__ for one in listed if not isinstance(getattr(one, "param_groups", None), list)]
    if odd or not listed:
        raise PlanError(f"optimizer is {some(odd) or 'an empty list'}: give a torch optimizer, or a list of them")
    return listed


def _is_rate(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex() and 0.0 <= float(value.detach()) < math.inf
    return not isinstance(value, bool) and isinstance(value, Real) and 0.0 <= float(value) < math.inf


def _group_name(lr_multiplier: float, multiplier: float) -> str:
    name = "no_decay" if multiplier == 0.0 else "decay" if multiplier == 1.0 else f"decay×{multiplier:g}"
    return name if lr_multiplier == 1.0 else f"{name} lr×{lr_multiplier:g}"
