"""The decay of a group: by which rule, what its numbers ask for, and what a step is known to take.

Of our optimizers, and of others under `control`, the rule is theirs, and what they take is what it asks for. Of all
others the probe says how λ enters their step (`weightdecay.probing`). What rounding then leaves of it the weights tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from weightdecay.errors import OptimizerError
from weightdecay.optim.base import DecayingOptimizer
from weightdecay.optim.control import controlled
from weightdecay.optim.grouping import Group
from weightdecay.optim.precision import realised_decay
from weightdecay.optim.roundings import LOW_PRECISION, group_rounding
from weightdecay.probing.probe import GroupReport, probe_step
from weightdecay.rules import L2, Rule, group_decay_per_step, group_rule

Seen = Literal["step", "rule", "probe", ""]
"""How a decay was seen: in the real step, by the rule of an optimizer that keeps to it, on twins, not at all."""

# Below it a factor 1 − a in float32 is another number than it should be.
FINE = 1e-6
# What twins have shown at one lr and λ holds near them, where it is not known how it follows them.
_NEAR = 0.1


@dataclass(frozen=True)
class GroupDecay:
    """What is known of a group's decay in one step.

    Attributes:
        rule: `L2` where λ goes through the gradient.
        requested: a_t that the group's numbers ask for; None under a coupled rule.
        taken: what a step takes by itself, before any rounding of the weights; None where nobody knows.
        why: why it is not known.
    """

    rule: Rule
    requested: float | None
    taken: float | None
    seen: Seen
    why: str = ""


class DecayOf:
    """The groups' decay of one optimizer; others' are probed once, and again when their groups become others."""

    def __init__(self, optimizer: torch.optim.Optimizer | None, groups: list[Group]) -> None:
        self._optimizer = optimizer
        self._is_ours = isinstance(optimizer, DecayingOptimizer)
        self._reports: list[GroupReport] | None = None
        self._at: list[tuple[float, float]] = []
        # What probes have said of groups with such keys: an audit, say, shows single tensors for a while.
        self._probed: dict[Any, tuple[list[GroupReport], list[tuple[float, float]]]] = {}
        self._probe(groups)

    @property
    def keeps_to_rules(self) -> bool:
        """Whether its groups say by which rule they decay, and it does what they say."""
        return self._is_ours or (self._optimizer is not None and controlled(self._optimizer) is not None)

    def _probe(self, groups: list[Group]) -> None:
        if self.keeps_to_rules or self._optimizer is None:
            return
        kinds = tuple(tuple(sorted(map(str, group))) for group in groups)
        if kinds not in self._probed:
            at = [(amount(group, "lr"), amount(group, "weight_decay")) for group in groups]
            self._probed[kinds] = list(probe_step(self._optimizer).groups), at
        self._reports, self._at = self._probed[kinds]

    def regrouped(self, groups: list[Group]) -> None:
        """The groups are others than before."""
        self._probe(groups)

    def of(self, index: int, group: Group) -> GroupDecay:
        """One group's decay with the numbers that it has now."""
        if self.keeps_to_rules:
            return self._by_rule(index, group)
        return self._by_probe(index, group)

    def _by_rule(self, index: int, group: Group) -> GroupDecay:
        control = None if self._optimizer is None else controlled(self._optimizer)
        if control is not None:
            group = {**group, "weight_decay": control.weight_decays()[index]}
        try:
            rule, asked = group_rule(group), group_decay_per_step(group)
        except OptimizerError as error:
            return GroupDecay(group_rule(group), None, None, "", "; ".join(error.faults))
        return GroupDecay(rule, asked, asked, "rule")

    def _by_probe(self, index: int, group: Group) -> GroupDecay:
        lr, λ = amount(group, "lr"), amount(group, "weight_decay")
        try:
            rule = group_rule(group)  # a group of the trainer or of a plan may say one that others do not read
        except OptimizerError:
            rule = group_rule({})
        asked = lr * λ if rule.coupled else group_decay_per_step({**group, "lr": lr, "weight_decay": λ})
        if self._reports is None or index >= len(self._reports):
            return GroupDecay(rule, asked, None, "", "what its step does cannot be tried")
        report = self._reports[index]
        if report.opaque:
            return GroupDecay(rule, asked, None, "", report.opaque)
        if report.form == "coupled":
            return GroupDecay(L2, None, None, "", "λ goes through the gradient")
        if report.form == "decoupled" and report.own_decay_is_lr_times_lambda:
            return GroupDecay(rule, asked, lr * λ + report.hidden_decay, "probe")
        lr_then, λ_then = self._at[index]
        near = abs(lr - lr_then) <= _NEAR * lr_then and abs(λ - λ_then) <= _NEAR * λ_then
        if report.form == "other" or report.decays_apart or report.idle_steps or not near:
            return GroupDecay(rule, asked, None, "", "how its decay follows lr and λ is not known")
        return GroupDecay(rule, asked, report.decay_per_step + report.hidden_decay, "probe")


def left_by_rounding(
    weights: Tensor, decay: float, group: Group, *, ours: bool, is_master: bool, kind: type
) -> float | None:
    """The part of a decay that rounding of the weights leaves; None where nobody knows how they are rounded.

    Args:
        weights: those that the optimizer steps: masters, where it has them.
        ours: whether the group's `rounding` is what is done.
        kind: the optimizer's class.
    """
    low = weights.dtype in LOW_PRECISION and not is_master
    if not decay or (ours and low and group_rounding(group).acts_on(weights.dtype)):
        return 1.0
    if low and not (ours or kind.__module__.startswith("torch.optim")):
        return None  # many keep what rounding loses, each in another way
    if not low and (decay >= FINE or weights.dtype == torch.float64):
        return 1.0
    return realised_decay(weights, decay)


def amount(group: Mapping[str, Any], key: str) -> float:
    """A number of a group; 0 where it has none."""
    value = group.get(key, 0.0)
    if isinstance(value, Tensor):
        return float(value.detach()) if value.numel() == 1 else 0.0
    return float(value) if isinstance(value, int | float) else 0.0
