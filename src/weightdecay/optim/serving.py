"""How a rule can be followed on an optimizer that others wrote, group by group: exactly, or not, with the reason.

The probe says what a step does to the weights, and that alone decides:

    handed over   its own decay is `w ← (1 − lr·λ)·w`: it gets the λ that makes this the rule's
    outside       its direction looks neither at the weights nor at λ: λ is 0 for the step, and the weights decay
                  beside it, however λ enters (behind the preconditioner, say, as in NovoGrad and FAdam)
    left          the rule is the coupled one, and so is the optimizer's decay
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.amounts import amount, number
from weightdecay.errors import OptimizerError, did_you_mean, group_title
from weightdecay.optim.base import DecayingOptimizer
from weightdecay.optim.grouping import Group, with_gradient
from weightdecay.optim.roundings import LOW_PRECISION, dtype_name
from weightdecay.probing.following import Habits, habits, unfollowed_steps
from weightdecay.probing.outermost import runs_hooks
from weightdecay.probing.probe import GroupReport, probe_step
from weightdecay.probing.watch import Way
from weightdecay.rules import DECOUPLED, L2, Rule, as_rule, group_rule
from weightdecay.schedules import is_schedule

# The highest lr of the schedule: one for all groups (of one lr), one for each in order, or by group name.
PeakLr: TypeAlias = float | Iterable[float] | Mapping[str, float]

_INSTEAD = "let its own λ follow a schedule with weightdecay.apply_schedules"

# Of what rounding leaves of a step that removes nothing; in float64 it is nothing.
_NO_DECAY = 1e-9


def rules_followed(optimizer: torch.optim.Optimizer, rule: Rule | None) -> list[Rule]:
    """The rule of each group: the one that is asked for, unless the group has its own."""
    groups = optimizer.param_groups
    if not isinstance(optimizer, DecayingOptimizer):
        return [group_rule(group) if "rule" in group else rule or DECOUPLED for group in groups]
    rest = as_rule(optimizer.defaults["rule"])  # of the groups that were not given another
    return [rule if rule and group_rule(group) == rest else group_rule(group) for group in groups]


def optimizer_faults(optimizer: Any, rule: Any, schedule: Any) -> list[str]:
    """What is wrong with an optimizer, a rule or a schedule, whatever the rule would do."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        return [f"control takes a torch optimizer, got {type(optimizer).__name__}"]
    if schedule is not None and not is_schedule(schedule):
        return [f"schedule must give λ for a step, such as Linear(0.1, 0.0, steps=10_000), got {schedule!r}"]
    kind, groups = type(optimizer).__name__, getattr(optimizer, "param_groups", None)
    if groups is None or not runs_hooks(optimizer):
        return [_no_hooks(optimizer)]
    try:
        asked = None if rule is None else as_rule(rule)
        rules_followed(optimizer, asked)
    except OptimizerError as error:
        return error.faults

    without = [group_title(g, i) for i, g in enumerate(groups) if "weight_decay" not in g or "lr" not in g]
    if without:
        return [f"{kind} has no weight_decay or no lr in {', '.join(without)}: there is no decay to control"]
    if none := [
        f"{group_title(group, index)} has {key} {group[key]!r:.60}: it must be a finite number of at least 0"
        for index, group in enumerate(groups)
        for key in ("lr", "weight_decay")
        if amount(group[key]) is None
    ]:
        return none
    reason = optimizer.refusal(asked) if isinstance(optimizer, DecayingOptimizer) and asked else ""
    return [f"rule '{asked.name}': {reason}"] if asked and reason else _unfollowed(optimizer)


def _unfollowed(optimizer: torch.optim.Optimizer) -> list[str]:
    """Fault: ways to step in which no hook runs, so that a control would not be called."""
    if not (names := unfollowed_steps(optimizer)):
        return []
    kind, listed = type(optimizer).__name__, ", ".join(f"{name}()" for name in names)
    inside = [name for name, one in vars(optimizer).items() if isinstance(one, torch.optim.Optimizer)]
    instead = (
        f"control the optimizer inside, `.{inside[0]}`, whose step makes the update"
        if inside
        else "let it call the step of its class, or put what it does into a subclass"
    )
    words = "moves the weights and, as far as can be seen, runs none of its hooks, so that no control is called"
    return [f"{kind}, {listed}: it {words}: {instead}"]


def _no_hooks(optimizer: torch.optim.Optimizer) -> str:
    """Why a step runs no hooks, and what to do."""
    kind = type(optimizer).__name__
    held = next((name for name, one in vars(optimizer).items() if isinstance(one, torch.optim.Optimizer)), None)
    if held is None and hasattr(optimizer, "_optimizer_step_pre_hooks"):
        # torch wraps the step of a class when the first of its instances is made.
        return (
            f"{kind}.step was replaced after the optimizer was made, by a function that runs no step hooks itself, so "
            f"that a control might never be called: let it run them, {kind}.step = "
            f"torch.optim.Optimizer.profile_hook_step({kind}.step) and {kind}.step.hooked = True; or replace the step "
            "before the first optimizer is made; or put the new step into a subclass"
        )
    return (
        f"{kind} wraps an optimizer and runs no step hooks of its own: give the wrapped one (`.{held or 'optimizer'}`)"
    )


def peaks(groups: Sequence[Group], rules: Sequence[Rule], peak_lr: PeakLr | None) -> list[Any]:
    """Each group's peak: what is given for it, or its own; all that are missing, unclear or of no group are told."""
    given: Any = peak_lr  # whatever the caller gave, be its type what it may
    asking = [index for index, rule in enumerate(rules) if rule.needs_peak]
    faults = []
    if isinstance(given, Mapping):
        known = [str(group["name"]) for group in groups if "name" in group]
        faults = [
            f"peak_lr: no group is named '{name}': {did_you_mean(str(name), known)}"
            for name in given
            if name not in known
        ]
        found = [given.get(group.get("name", "")) for group in groups]
    elif number(given) is None and isinstance(given, Iterable) and not isinstance(given, str | bytes):
        found = list(given)
        if len(found) != len(groups):
            raise OptimizerError(f"{len(found)} peaks for {len(groups)} groups: give one for each, in their order")
    elif given is not None and len({number(groups[index]["lr"]) for index in asking}) > 1:
        raise OptimizerError(
            "the groups have different lr, so one peak_lr would decay some of them too much: give one for each"
        )
    else:
        found = [given] * len(groups)

    found = [group.get("peak_lr") if peak is None else peak for peak, group in zip(found, groups, strict=True)]
    faults += [
        f"rule '{rules[index].name}' needs the peak lr of {group_title(groups[index], index)}, got {found[index]}: "
        f"give the highest lr of its schedule as peak_lr, or as param_groups[{index}]['peak_lr']; it cannot be read "
        "from the optimizer"
        for index in asking
        if not amount(found[index])
    ]
    if faults:
        raise OptimizerError(faults)
    return [number(peak) for peak in found]


@dataclass(frozen=True)
class Service:
    """How a group is served.

    Attributes:
        refusal: why it cannot be, once it decays; empty where it can.
    """

    way: Way
    report: GroupReport
    refusal: str = ""


def services(optimizer: torch.optim.Optimizer, rules: Sequence[Rule]) -> list[Service]:
    """For each group how its rule is followed, by what the probe sees."""
    kind = type(optimizer).__name__
    served = []
    seen = zip(probe_step(optimizer).groups, rules, optimizer.param_groups, habits(optimizer), strict=True)
    for report, rule, group, habit in seen:
        refusal = (
            _refusal(report, rule, kind)
            or _unseen_signs(report, rule, group)
            or _unfit_habit(report, rule, habit, kind)
        )
        served.append(Service("left" if refusal else _way(report, rule), report, refusal))
    return served


def decays(group: Group) -> bool:
    """Whether the group has a λ, now or by its share of a schedule."""
    return bool(group["weight_decay"]) or bool(group.get("decay_multiplier"))


def _way(report: GroupReport, rule: Rule) -> Way:
    if rule.coupled:
        return "left"
    # Of plain SGD both hold; a product outside rounds as it does everywhere else.
    by_itself = report.own_decay_is_lr_times_lambda and not report.through_gradient
    return "handed_over" if rule.is_scalar and by_itself else "outside"


def _refusal(report: GroupReport, rule: Rule, kind: str) -> str:
    """Why a group's rule cannot be followed exactly; empty where it can."""
    if reason := _unfit_rule(report, rule, kind):
        return f"rule '{rule.name}' {reason}"
    title, way = f"{kind}, {report.title}", _way(report, rule)
    if report.opaque:
        return (
            f"{title}: {report.opaque}, and so it cannot be seen what a decay beside it would do: use an optimizer of "
            f"weightdecay, or {_INSTEAD}"
        )
    hides = report.hidden_decay > _NO_DECAY
    taken = f"takes {report.hidden_decay:.3g} off"
    if report.reads_weights and way == "outside":
        way_back = "by a decay that is in no group or on a way back to other weights"
        hidden = f" (at weight_decay 0 a step {taken} them, {way_back})" if hides else ""
        return (
            f"{title}: its update depends on the weights, or on chance{hidden}, and weights that shrink "
            "beside it would change it: use an optimizer of weightdecay, or a setting under which it does not look at "
            f"the weights (such as scale_parameter=False), or {_INSTEAD}"
        )
    if hides:
        return (
            f"{title}: it {taken} the weights at each step at weight_decay 0, by a decay that is not in its groups and "
            "would come on top: set that to 0 where it is made"
        )
    if way != "left" and report.heeds_zeros:
        return (
            f"{title}: what λ does depends on which gradients are 0 (it leaves out rows without one, say), and the "
            f"rule decays all weights alike: use an optimizer of weightdecay, or {_INSTEAD}"
        )
    if way == "outside" and report.decays_apart:
        return (
            f"{title}: its own step takes more of some of its tensors than of others, by a flag, a list or a class of "
            "theirs, and a decay beside it would take the same of all: give each sort a group of its own"
        )
    if way == "outside" and (report.branches_on_weight_decay or report.moves_zeros):
        direction = "changes its direction and not the decay alone"
        zeros = "moves weights that are 0, too, and so does more than decay"
        return (
            f"{title}: λ {direction if report.branches_on_weight_decay else zeros}, so that without λ it would be "
            f"another optimizer: use one of weightdecay, or {_INSTEAD}"
        )
    return ""


def _unfit_habit(report: GroupReport, rule: Rule, habit: Habits, kind: str) -> str:
    """Why hooks around the step cannot say how it decays; empty where they can."""
    title, way = f"{kind}, {report.title}", _way(report, rule)
    if way == "left":
        return ""
    if habit.writes_weight_decay:
        return (
            f"{title}: its own step changes weight_decay, by a schedule inside it, and two cannot: switch that "
            "off, or leave λ to it"
        )
    if way == "handed_over" and habit.keeps_settings:
        return (
            f"{title}: it goes on decaying by the lr or λ that it found in an earlier step, and so does not do "
            f"what it is told now: use an optimizer of weightdecay, or {_INSTEAD}"
        )
    if way == "outside" and habit.moves_without_gradient:
        return (
            f"{title}: its step moves tensors whose `grad` is None (it takes them from elsewhere, or for 0), so "
            "that nobody sees which should decay: give all gradients as `grad`, or use an optimizer of weightdecay"
        )
    return ""


def _unseen_signs(report: GroupReport, rule: Rule, group: Group) -> str:
    """Why a mask cannot be seen from outside; empty where it can."""
    low = sorted({dtype_name(p.dtype) for p in group["params"] if p.dtype in LOW_PRECISION})
    if not (rule.is_masked and low):
        return ""
    return (
        f"rule '{rule.name}' asks for the sign of each update, and of weights in {', '.join(low)} ({report.title}) "
        "small ones round away before anybody can see it: use weightdecay.AdamW, Lion, SGDW or Muon, or float32 weights"
    )


def _unfit_rule(report: GroupReport, rule: Rule, kind: str) -> str:
    if rule.target == "initial":
        return (
            f"needs the weights of before the first step, which would have to stay in the state of {kind}: use "
            "weightdecay.AdamW, Lion, SGDW or Muon, which keep them there"
        )
    if rule.coupled and not report.through_gradient and not report.opaque:
        return (
            f"belongs to torch.optim.Adam and SGD and their like; {kind} does not put λ·w into the gradient "
            f"({report.title}): leave '{L2.name}' away"
        )
    return ""


# --- a step in progress


def step_faults(
    optimizer: torch.optim.Optimizer,
    rules: Sequence[Rule],
    amounts: Sequence[float | None],
    handed_over: Sequence[Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> list[str]:
    """What of a step would not be exact, or not be possible, with decay outside.

    Args:
        amounts: a_t of each group.
        handed_over: the λ that each group's own step gets; None where the weights decay beside it.
        args, kwargs: what `step` was called with.
    """
    kind, faults = type(optimizer).__name__, []
    if None in handed_over:
        more = [*sorted(kwargs.keys() - {"closure"}), *map(repr, args[1:])]
        if more:
            faults.append(
                f"{kind}.step was given {', '.join(more)[:60]}, and a decay beside the step goes by `grad` alone: set "
                "the gradients there, and call step()"
            )
        elif (args[0] if args else kwargs.get("closure")) is not None:
            faults.append(
                f"{kind} with a closure cannot decay exactly: the weights would shrink before the closure takes its "
                "gradient; compute the gradient first and call step() without closure (in Lightning: manual "
                "optimization)"
            )
    for index, (group, rule, a) in enumerate(zip(optimizer.param_groups, rules, amounts, strict=True)):
        title, weights = f"{kind}, {group_title(group, index)}", with_gradient(group)
        outside = handed_over[index] is None
        if a and any(p.grad.is_sparse for p in weights):
            faults.append(
                f"{title}: a sparse gradient steps a few rows, and decay would reach all of them: make the embedding "
                "dense (sparse=False), or give its group weight_decay 0"
            )
        if outside and (elsewhere := [name for p in group["params"] for name in _gradients_elsewhere(p)]):
            faults.append(
                f"{title}: tensors have their gradient as `{elsewhere[0]}` and none as `grad`, by which a decay beside "
                "the step goes: set `grad` to it before the step"
            )
        if outside and rule.is_masked and any(p.is_complex() for p in weights):
            faults.append(f"{title}: rule '{rule.name}' compares signs, which complex weights do not have")
    return faults


def _gradients_elsewhere(p: Tensor) -> list[str]:
    """The attributes in which a tensor without `grad` has its gradient, as others' optimizers take it."""
    if p.grad is not None:
        return []
    return [key for key, value in vars(p).items() if "grad" in key and getattr(value, "shape", None) == p.shape]
