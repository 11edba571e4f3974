"""The decay plan: every tensor of a model once, in order, with its share of λ and the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from weightdecay.errors import CheckFailedError, PlanError, did_you_mean
from weightdecay.naming import parameters_by_name
from weightdecay.planning.comparison import PlanDiff, diff
from weightdecay.planning.deciding import Terms, decided
from weightdecay.planning.evidence.tensors import read_tensors
from weightdecay.planning.evidence_summary import weak
from weightdecay.planning.groups import param_groups
from weightdecay.planning.lock_format import lock_text, read_lock_text
from weightdecay.planning.patterns import some
from weightdecay.planning.planned import Plan, PlannedTensor, PlanSummary, summary
from weightdecay.planning.policies.policy_file import PolicyName
from weightdecay.planning.policies.role_policies import Policy
from weightdecay.planning.ranks import check_ranks

if TYPE_CHECKING:
    from weightdecay.planning.checking import OptimizerCheck
    from weightdecay.rules import RuleLike


class DecayPlan:
    """A total, ordered partition of a model's tensors by how much of λ they take.

    Attributes:
        tensors: one for each tensor, in the model's order.
        policy: the name of what decided.
        weight_decay: λ, of which each tensor takes its share.
        incomplete: why the evidence was cut short, in words; empty where it was not.
    """

    def __init__(
        self,
        tensors: Sequence[PlannedTensor],
        *,
        policy: str,
        weight_decay: float,
        model: nn.Module | None = None,
        incomplete: str = "",
        terms: Terms | None = None,
    ) -> None:
        self.tensors = tuple(tensors)
        self.policy = policy
        self.weight_decay = weight_decay
        self.incomplete = incomplete
        self._model = model
        self._terms = terms
        self._by_name = {name: tensor for tensor in self.tensors for name in (tensor.name, *tensor.aliases)}

    @classmethod
    def decided(
        cls, terms: Terms, policy: str | Path | Policy, *, model: nn.Module | None = None, incomplete: str = ""
    ) -> DecayPlan:
        """What a policy makes of the facts.

        Raises:
            PlanError: as `weightdecay.plan`.
        """
        name, tensors = decided(terms, policy)
        return cls(
            tensors, policy=name, weight_decay=terms.weight_decay, model=model, incomplete=incomplete, terms=terms
        )

    @classmethod
    def read(cls, path: str | Path) -> DecayPlan:
        """The plan in a lock file; it belongs to no model until `on(model)`.

        Raises:
            PlanError: the file is no lock, or of a newer format.
            DamagedError: it is one, but does not hold together.
        """
        lock = read_lock_text(Path(path))
        return cls(lock.tensors, policy=lock.policy, weight_decay=lock.weight_decay, incomplete=lock.incomplete)

    def under(self, policy: PolicyName | Path | Policy) -> DecayPlan:
        """The same tensors under another policy: the evidence, λ and overrides are this plan's, nothing is run again.

            import weightdecay

            plan = weightdecay.plan(model)
            print(plan.diff(plan.under("transformers")))

        Raises:
            PlanError: there is no such policy, or this plan was read from a lock, or is one of a part of a model.
        """
        if self._terms is None:
            raise PlanError(
                "a plan from a lock or of a part holds no evidence for another policy: plan the model itself"
            )
        return DecayPlan.decided(self._terms, policy, model=self._model, incomplete=self.incomplete)

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
        return summary(self)

    @property
    def by_shape(self) -> tuple[PlannedTensor, ...]:
        """Tensors whose decay rests on nothing but their shape: look at these."""
        return tuple(tensor for tensor in self if tensor.by_shape)

    def raise_if_weak(self) -> None:
        """Raises CheckFailedError if verdicts rest on shapes alone, or the evidence was cut short; all are named."""
        incomplete = f"the plan is incomplete: {self.incomplete}" if self.incomplete else ""
        if faults := [fault for fault in (incomplete, weak(self)) if fault]:
            raise CheckFailedError(faults)

    def param_groups(self, *, lr: float, names: bool = True, **options: Any) -> list[dict[str, Any]]:
        """Parameter groups for any torch optimizer, decaying ones first; frozen tensors are in none.

        Each group carries its shares of λ and η, `decay_multiplier` and `lr_multiplier`, by which schedules set both.
        The tensors are looked up by name now, so that a plan made before `fully_shard` groups what stands there after.

        Args:
            lr: learning rate, times each tensor's own lr multiplier. A rate that the model's author has set stays as
                it is, and its multiplier follows from it.
            names: whether groups have `param_names`; torch lets no nameless group join named ones, so leave them out
                where others' code adds groups, such as callbacks that unfreeze layers.
            options: further entries of every group, such as `betas`.

        Raises:
            PlanError: lr is no number of at least 0, the plan belongs to no model, or FSDP1 has flattened tensors
                together that decay differently.
        """
        return param_groups(self, self._parameters(), lr=lr, names=names, options=options)

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
        return DecayPlan(
            carried,
            policy=self.policy,
            weight_decay=self.weight_decay,
            model=model,
            incomplete=self.incomplete,
            terms=self._terms if len(carried) == len(self) else None,
        )

    def diff(self, other: Plan) -> PlanDiff:
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
        rule: RuleLike | None = None,
    ) -> OptimizerCheck:
        """Whether an optimizer really carries this plan: `.ok`, `.faults`, `.opaque`, `.raise_if_wrong()`.

        Groups are compared with the plan by their shares of λ and η, and a step of a small copy shows whether the
        optimizer does with them what the plan means: w ← (1 − lr·λ)·w, beside the gradient.

        Args:
            optimizer: any torch optimizer, or all of those that train the model.
            model: the (wrapped) model it trains, if not the one that was planned.
            rule: where λ is meant otherwise, a name or a `Rule`: `"l2"` accepts decay through the gradient, another
                the decay per step that it gives; none is asked for where that needs a peak lr that no group has.

        Raises:
            PlanError: what is given is no optimizer, no module or no rule, or the plan belongs to no model.
        """
        from weightdecay.planning.checking import check

        parameters = self._parameters() if model is None else parameters_by_name(checked_module(model))
        return check(self, checked_optimizers(optimizer), parameters, rule)

    def check_ranks(self) -> None:
        """Raises CheckFailedError on all ranks if any rank's plan differs from rank 0's; each rank must call it."""
        check_ranks(self)

    def __str__(self) -> str:
        from weightdecay.planning.render import table_text

        return table_text(self)

    def to_json(self) -> str:
        """The plan in the lock format."""
        return lock_text(self)


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
