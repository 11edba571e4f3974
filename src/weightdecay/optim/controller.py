"""A decay rule, and a schedule for λ, on an optimizer that others wrote, without a change in the training loop.

    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1)
    control(optimizer, rule="independent", peak_lr=6e-4, schedule=Linear(6e-5, 0.0, steps=10_000))

Hooks before and after each step give the optimizer the λ that makes its own decay the rule's. Where its own decay is
not `w ← (1 − lr·λ)·w`, λ is 0 for the step and the weights shrink just before it, which is the same thing for any
direction that does not read the weights; whether it does is seen on a small copy of the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from weightdecay.errors import OptimizerError, did_you_mean
from weightdecay.optim.base import DecayingOptimizer, is_only_saved, warn_of_rounding, with_gradient
from weightdecay.optim.checks import group_title, number
from weightdecay.optim.decay import pull_, shrink_
from weightdecay.optim.grouping import Group
from weightdecay.optim.rules import RULES, Decoupled, group_decay_per_step
from weightdecay.optim.schedules import Schedule
from weightdecay.optim.trial import why_shrinking_before_is_not_exact

# One peak for all groups (of one lr), one for each in order, or by group name.
PeakLr: TypeAlias = float | Sequence[float] | Mapping[str, float]

# Optimizers whose own weight_decay shrinks by 1 − lr·weight_decay with lr the group's. Of torch, before 2.9, not all.
_SHRINKS_BY_LR_TIMES_LAMBDA = tuple(
    getattr(torch.optim, name) for name in ("AdamW", "Adafactor", "Muon") if hasattr(torch.optim, name)
)
# Schedule-Free decays at y by adding λ·y to the normalised gradient, with an lr of its own making.
_DECAYS_AT_Y = "schedulefree"


class Control:
    """The hooks of one controlled optimizer; `remove()` takes them off and leaves λ as it is.

    State lies in the groups (`rule`, `peak_lr`, `decay_share`, `decay_step`) and so travels with `state_dict`; hooks do
    not, as with any torch optimizer: after unpickling or copying, control the copy anew.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rule: str | None, schedule: Schedule | None) -> None:
        self.optimizer = optimizer
        self.schedule = schedule
        self._rule = rule
        self._with_own_rule = {index for index, group in enumerate(optimizer.param_groups) if "rule" in group}
        self._given: list[float] | None = None
        self._native = isinstance(optimizer, DecayingOptimizer)
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before),
            self.optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        for index, group in enumerate(self.optimizer.param_groups):
            if index not in self._with_own_rule:
                group.pop("rule", None)

    def decay_per_step(self) -> list[float | None]:
        """For each group the fraction that its next step will remove."""
        self._set_scheduled()
        return [group_decay_per_step(group) for group in self.optimizer.param_groups]

    def _set_scheduled(self) -> None:
        """λ of this step: the group with the largest λ follows the schedule, the others in proportion, 0 stays 0."""
        if self.schedule is None:
            return
        for group in self.optimizer.param_groups:
            group.setdefault("decay_share", 1.0 if float(group["weight_decay"]) else 0.0)  # one that was added since
            step = steps_taken(self.optimizer, group)
            value = number(self.schedule(step))
            if value is None or not (math.isfinite(value) and value >= 0):
                raise OptimizerError(
                    f"the schedule gives λ = {value} at step {step}: it must give a finite number of at least 0"
                )
            group["weight_decay"] = value * group["decay_share"]

    def _adopt_new_groups(self) -> None:
        """Groups that were added, or loaded from an optimizer without control, follow the rule for the rest."""
        if all("rule" in group for group in self.optimizer.param_groups):
            return
        if faults := _optimizer_faults(self.optimizer, self._rule, self.schedule):
            raise OptimizerError(faults)
        for group, followed in zip(
            self.optimizer.param_groups, _rules_followed(self.optimizer, self._rule), strict=True
        ):
            group["rule"] = followed

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._given is not None:  # the step before did not finish: its closure raised
            self._restore()
        if is_only_saved(optimizer):
            self._given = [group["weight_decay"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["decay_step"] = steps_taken(optimizer, group)  # which torch's own state counts as one
                group["weight_decay"] = 0.0
            return
        self._adopt_new_groups()
        self._set_scheduled()
        if self._native or bool(getattr(optimizer, "found_inf", None)):
            return
        decays = [group_decay_per_step(group) for group in optimizer.param_groups]
        closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer itself
        outside = [not _kernel_can(group, optimizer) for group in optimizer.param_groups]
        if closure is not None and any(here and decay for here, decay in zip(outside, decays, strict=True)):
            raise OptimizerError(
                f"{type(optimizer).__name__} with a closure cannot decay exactly: the weights would shrink before the "
                "closure takes its gradient; compute the gradient first and call step() without closure"
            )
        if sparse := [
            group_title(group, index)
            for index, (group, decay) in enumerate(zip(optimizer.param_groups, decays, strict=True))
            if decay and any(p.grad.is_sparse for p in with_gradient(group))
        ]:
            raise OptimizerError(
                f"{type(optimizer).__name__}, {', '.join(sparse)}: a sparse gradient steps a few rows, and decay would "
                "reach all of them: make the embedding dense (sparse=False), or give its group weight_decay 0"
            )
        self._given = [group["weight_decay"] for group in optimizer.param_groups]
        with torch.no_grad():
            for group, decay, here in zip(optimizer.param_groups, decays, outside, strict=True):
                if group["rule"] == "l2":
                    continue
                if here:
                    _decay(group, decay or 0.0)
                    group["weight_decay"] = 0.0
                elif not isinstance(RULES[group["rule"]], Decoupled):
                    group["weight_decay"] = (decay or 0.0) / float(group["lr"])

    def _after(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG002
        self._restore()
        if bool(getattr(optimizer, "found_inf", None)) or is_only_saved(optimizer):
            return  # a GradScaler's skipped step is no step, nor is one that only shows what state there is
        for group in optimizer.param_groups:
            group["decay_step"] = steps_taken(optimizer, group, before=True) + 1

    def _restore(self) -> None:
        if self._given is not None:
            for group, weight_decay in zip(self.optimizer.param_groups, self._given, strict=False):
                group["weight_decay"] = weight_decay
            self._given = None


def control(
    optimizer: torch.optim.Optimizer,
    *,
    rule: str | None = None,
    peak_lr: PeakLr | None = None,
    schedule: Schedule | None = None,
) -> Control:
    """Let an optimizer decay by a rule, and its λ follow a schedule.

    Args:
        optimizer: torch's, ours, or another's whose groups have `lr` and `weight_decay`.
        rule: one of `RULES`; a group with its own `rule` keeps it. None: ours keep their rules, others get `decoupled`.
        peak_lr: the highest lr of the schedule, for `independent` and `corrected`: one number where all groups have
            one lr, else one for each group, in order or by name. Where none is given a group's own `peak_lr` holds. The
            lr that a scheduler shows when one attaches is not the peak, and so it is never guessed.
        schedule: λ at each step, counted from 0. The group with the largest λ follows it, the others keep their
            proportion to it (`decay_share`), and groups that do not decay go on not decaying.

    Returns:
        The hooks, to be removed when they are not wanted any more.

    Raises:
        OptimizerError: with every fault: an unknown rule, or one that reaches no group because each has its own; a peak
            that is missing or unclear; groups without `weight_decay` or a schedule over nothing but zeros; a rule that
            is not exact for this optimizer; an optimizer that is under control already. Nothing has changed then.
    """
    faults = _optimizer_faults(optimizer, rule, schedule)
    if not faults and any(
        isinstance(getattr(h, "__self__", None), Control) for h in optimizer._optimizer_step_pre_hooks.values()
    ):
        faults = [f"this {type(optimizer).__name__} is under control already: remove() that control first"]
    if faults:
        raise OptimizerError(faults)
    groups, rules = optimizer.param_groups, _rules_followed(optimizer, rule)
    if faults := _reach_faults(rule, rules) + _peak_faults(groups, rules, peak_lr):
        raise OptimizerError(faults)
    controlled = Control(optimizer, rule, schedule)
    before = [dict(group) for group in groups]
    largest = max((float(group["weight_decay"]) for group in groups), default=0.0)
    for index, (group, followed) in enumerate(zip(groups, rules, strict=True)):
        group["rule"] = followed
        if RULES[followed].needs_peak:
            group["peak_lr"] = _peak_of(group, index, peak_lr)
        if schedule is not None:
            group.setdefault("decay_share", float(group["weight_decay"]) / (largest or 1.0))
    try:
        controlled.decay_per_step()  # a decay over 1 is to be known now
    except OptimizerError:
        for group, as_given in zip(groups, before, strict=True):
            group.clear()
            group.update(as_given)
        raise
    if isinstance(optimizer, DecayingOptimizer) and rule is not None:
        optimizer.defaults["rule"] = rule
    controlled.attach()
    for index, group in enumerate(groups):
        warn_of_rounding(group, index)
    return controlled


def steps_taken(optimizer: torch.optim.Optimizer, group: Group, *, before: bool = False) -> int:
    """Steps that the group has made: our own count, or what the optimizer's state says of the time before it.

    Args:
        before: the optimizer has just made a step that our count does not hold yet.
    """
    if "decay_step" in group:
        return int(group["decay_step"])
    counts = [int(optimizer.state[p]["step"]) for p in group["params"] if "step" in optimizer.state.get(p, {})]
    return max(max(counts, default=0) - (1 if before else 0), 0)


def _rules_followed(optimizer: torch.optim.Optimizer, rule: str | None) -> list[str]:
    """The rule of each group: the one that is asked for, unless the group has its own."""
    groups = optimizer.param_groups
    if not isinstance(optimizer, DecayingOptimizer):
        return [group.get("rule", rule or "decoupled") for group in groups]
    rest = optimizer.defaults["rule"]  # of the groups that were not given another
    return [rule if rule and group["rule"] == rest else group["rule"] for group in groups]


def _optimizer_faults(optimizer: torch.optim.Optimizer, rule: str | None, schedule: Schedule | None) -> list[str]:
    if not isinstance(optimizer, torch.optim.Optimizer):
        return [f"control takes a torch optimizer, got {type(optimizer).__name__}"]
    if schedule is not None and not callable(schedule):
        return [f"schedule must give λ for a step, such as Linear(0.1, 0.0, steps=10_000), got {schedule!r}"]
    rules = sorted({str(name) for name in (rule or "decoupled", *_rules_followed(optimizer, rule))})
    if unknown := [f"unknown rule '{name}': {did_you_mean(name, RULES)}" for name in rules if name not in RULES]:
        return unknown
    kind = type(optimizer).__name__
    groups = optimizer.param_groups
    without = [group_title(g, i) for i, g in enumerate(groups) if "weight_decay" not in g or "lr" not in g]
    if without:
        return [f"{kind} has no weight_decay or no lr in {', '.join(without)}: there is no decay to control"]
    faults = []
    if schedule is not None and not any(float(group.get("decay_share", group["weight_decay"])) for group in groups):
        faults.append(f"every group of {kind} has weight_decay 0: give the groups that a λ schedule is for a λ first")
    if isinstance(optimizer, DecayingOptimizer):
        refused = sorted({rule or ""} & optimizer.refused.keys())
        return faults + [f"rule '{name}': {optimizer.refused[name]}" for name in refused]
    return faults + _exactness_faults(optimizer, rule)


def _exactness_faults(optimizer: torch.optim.Optimizer, rule: str | None) -> list[str]:
    """Why an optimizer that others wrote cannot follow its groups' rules exactly."""
    faults, kind = [], type(optimizer).__name__
    followed = _rules_followed(optimizer, rule)
    rules = set(followed)
    if type(optimizer).__module__.startswith(_DECAYS_AT_Y) and rules != {"decoupled"}:
        faults.append(f"{kind} makes its own lr and decays at y, so only rule 'decoupled' is exact for it")
    faults += [
        f"rule '{name}' must know the direction of {kind}: use weightdecay.AdamW, Lion, SGDW or Muon"
        for name in sorted(rules & {"cautious", "towards_initial"})
    ]
    if "l2" in rules and (_shrinks_itself(optimizer) or not _is_torch_coupled(optimizer)):
        faults.append(f"rule 'l2' belongs to torch.optim.Adam and SGD; {kind} does not put λ·w into the gradient")
    by_hooks = any(
        not _kernel_can({**group, "rule": name, "lr": 1.0}, optimizer)
        for group, name in zip(optimizer.param_groups, followed, strict=True)
    )
    if not faults and by_hooks:
        faults += [
            f"{kind}: {reason}, and weights that shrink just before its step would change it: use an optimizer of "
            "weightdecay, or a setting under which it does not look at the weights (such as scale_parameter=False)"
            for reason in why_shrinking_before_is_not_exact(optimizer)
        ]
    return faults


def _reach_faults(rule: str | None, rules: Sequence[str]) -> list[str]:
    if rule is None or rule in rules:
        return []
    own = ", ".join(sorted(set(rules)))
    return [
        f"rule '{rule}' reaches no group: each has its own ({own}), as given or as loaded; delete it where not wanted"
    ]


def _peak_faults(groups: Sequence[Group], rules: Sequence[str], peak_lr: PeakLr | None) -> list[str]:
    asking = [i for i, name in enumerate(rules) if RULES[name].needs_peak]
    if isinstance(peak_lr, int | float) and len({number(groups[i]["lr"]) for i in asking}) > 1:
        return ["the groups have different lr, so one peak_lr would decay some of them too much: give one for each"]
    if isinstance(peak_lr, list | tuple) and len(peak_lr) != len(groups):
        return [f"{len(peak_lr)} peaks for {len(groups)} groups: give one for each, in their order"]
    faults = []
    if isinstance(peak_lr, Mapping):
        known = [str(group["name"]) for group in groups if "name" in group]
        faults += [
            f"peak_lr: no group is named '{n}': {did_you_mean(str(n), known)}" for n in peak_lr if n not in known
        ]
    for i in asking:
        found = _peak_of(groups[i], i, peak_lr)
        peak = number(found)
        if peak is None or not (math.isfinite(peak) and peak > 0):
            faults.append(
                f"rule '{rules[i]}' needs the peak lr of {group_title(groups[i], i)}, got {found}: "
                "give peak_lr, the highest lr of its schedule; it cannot be read from the optimizer"
            )
    return faults


def _peak_of(group: Group, index: int, peak_lr: PeakLr | None) -> Any:
    found: Any = peak_lr
    if isinstance(peak_lr, Mapping):
        found = peak_lr.get(group.get("name", ""))
    elif isinstance(peak_lr, list | tuple):
        found = peak_lr[index]
    return group.get("peak_lr") if found is None else found


def _kernel_can(group: Group, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's own decay can be made the rule's by giving it another λ."""
    if group["rule"] == "l2":
        return True
    if type(optimizer).__module__.startswith(_DECAYS_AT_Y):
        return True
    torchs = type(optimizer).__module__.startswith("torch.optim")  # a wrapper's groups may have the key, too
    shrinks = _shrinks_itself(optimizer) or (torchs and bool(group.get("decoupled_weight_decay")))
    return shrinks and RULES[group["rule"]].reach == "weights" and float(group["lr"]) > 0.0


def _decay(group: Group, decay: float) -> None:
    weights: list[Tensor] = with_gradient(group)
    shrink_(weights, decay)
    if RULES[group["rule"]].reach == "towards_one":
        pull_(weights, 1.0, decay)


def _shrinks_itself(optimizer: torch.optim.Optimizer) -> bool:
    return type(optimizer) in _SHRINKS_BY_LR_TIMES_LAMBDA


def _is_torch_coupled(optimizer: torch.optim.Optimizer) -> bool:
    decoupled = any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    return type(optimizer).__module__.startswith("torch.optim") and not decoupled
