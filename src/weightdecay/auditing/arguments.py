"""The arguments of an audit, checked: every fault at once, each with its argument's name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from torch import Tensor, nn

from weightdecay.amounts import number
from weightdecay.auditing.ignoring import Ignored, ignored_of
from weightdecay.errors import ConfigError
from weightdecay.planning.decay_plan import DecayPlan
from weightdecay.planning.policies.policy_file import find_policy
from weightdecay.rules import Rule, as_rule

Rate = float | Callable[[int], float]


class _Unsaid(str):
    """The default policy where nobody named one; equal to its name, and told apart by being this object."""


UNSAID: Any = _Unsaid("default")


@dataclass(frozen=True)
class Told:
    """What the caller says was meant.

    Attributes:
        optimizers: with what each is called in the caller's code.
        plan: of this model.
        policy: who is exempt, and whether somebody said so.
        weight_decay, lr: one for each optimizer; None where nothing was said. An lr may be a schedule.
        steps: of the whole run.
        loaded_over: λ of groups, by (optimizer, group), before a load that was seen put another in its place.
    """

    model: nn.Module | None
    optimizers: tuple[Any, ...]
    names: tuple[str, ...]
    plan: DecayPlan | None
    policy: Any
    weight_decay: tuple[float | None, ...]
    lr: tuple[Rate | None, ...]
    rule: Rule | None
    steps: int | None
    ignored: Ignored
    loaded_over: Mapping[tuple[int, int], float] = field(default_factory=dict)

    @property
    def policy_is_given(self) -> bool:
        """Whether a plan or a policy says who decays, and not our default."""
        return self.plan is not None or self.policy is not UNSAID


def told(
    model: Any,
    optimizer: Any,
    *,
    optimizers: Any,
    plan: Any,
    policy: Any,
    weight_decay: Any,
    lr: Any,
    rule: Any,
    steps: Any,
    ignore: Any,
) -> Told:
    """The arguments of `audit`.

    Raises:
        ConfigError: with every fault.
    """
    faults: list[str] = []

    def checked(make: Callable[[], Any], name: str = "") -> Any:
        try:
            return make()
        except ConfigError as error:
            faults.extend(f"{name}: {fault}" if name else fault for fault in error.faults)
            return None

    every, names = _optimizers(optimizer, optimizers, faults)
    if model is not None and not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        faults.append(f"model is {what}: give the torch.nn.Module that is trained")
        model = None
    if plan is not None and not isinstance(plan, DecayPlan):
        faults.append(f"plan is a {type(plan).__name__}: give what weightdecay.plan(model) returns")
        plan = None
    if plan is not None and model is not None:
        plan = checked(lambda: plan.on(model), "plan is not of this model")
    if policy is not UNSAID:
        checked(lambda: find_policy(policy), "policy")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        faults.append(f"steps is {steps!r}: give the number of optimizer steps of the whole run, at least 1")

    made = Told(
        model=model,
        optimizers=every,
        names=names,
        plan=plan,
        policy=policy,
        weight_decay=_for_each("weight_decay", weight_decay, len(every), faults),
        lr=_for_each("lr", lr, len(every), faults, or_schedule=True),
        rule=None if rule is None else checked(lambda: as_rule(rule), "rule"),
        steps=steps,
        ignored=checked(lambda: ignored_of(ignore)) or Ignored({}),
    )
    if faults:
        raise ConfigError(faults)
    return made


def _optimizers(optimizer: Any, optimizers: Any, faults: list[str]) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """The optimizers, each once, and what the caller calls them."""
    listed: list[tuple[Any, str]] = []
    for name, given in (("optimizer", optimizer), ("optimizers", optimizers)):
        if isinstance(given, Mapping):
            listed += [(one, f"{name}[{key!r}]") for key, one in given.items()]
        elif isinstance(given, list | tuple):
            listed += [(one, f"{name}[{place}]") for place, one in enumerate(given)]
        elif given is not None:
            listed.append((given, name))
    if not listed:
        faults.append("optimizer: none was given; audit(model, optimizer)")

    once = {id(one): (one, name) for one, name in reversed(listed)}
    every = [once[key] for key in dict.fromkeys(id(one) for one, _ in listed)]
    for one, name in every:
        groups = getattr(one, "param_groups", None)
        are_groups = isinstance(groups, Sequence) and all(isinstance(g, Mapping) and "params" in g for g in groups)
        if isinstance(one, type):
            faults.append(f"{name} is the class {one.__name__}: give an optimizer that was made from it")
        elif not are_groups or not callable(getattr(one, "step", None)):
            faults.append(f"{name} is a {type(one).__name__}: an audit takes what has `param_groups` and `step()`")
    return tuple(one for one, _ in every), tuple(name for _, name in every)


def _for_each(name: str, given: Any, count: int, faults: list[str], or_schedule: bool = False) -> tuple[Any, ...]:
    """One value for each optimizer."""
    if given is None:
        return (None,) * count
    values = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(values) != count:
        faults.append(f"{name} has {len(values)} values for {count} optimizers: give one number, or one for each")
        return (None,) * count
    made = []
    for value in values:
        if or_schedule and callable(value) and not isinstance(value, type | Tensor):
            made.append(value)
            continue
        amount = number(value) if isinstance(value, Tensor | Real) else None
        if amount is None or not 0.0 <= amount < math.inf:
            kinds = "a finite number of at least 0" + (
                ", or a schedule that gives one for a step" if or_schedule else ""
            )
            faults.append(f"{name} is {value!r}: give {kinds}")
        made.append(amount)
    return tuple(made)
