"""What a step of an optimizer does to weights, beside what the plan means: seen on small copies of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from weightdecay.errors import OptimizerError
from weightdecay.planning.planned import Plan
from weightdecay.probing.outermost import hooks_of_all, step_is_replaced
from weightdecay.probing.probe import STEPS_WITHOUT_PHASE, GroupReport, probe_step
from weightdecay.rules import DECOUPLED, Rule, group_decay_per_step

_HIDDEN = 1e-15  # a decay that is one and no rounding
_ALIKE = 0.02  # of two decays per step, of which one was measured in float32


@dataclass(frozen=True)
class CheckedGroup:
    """An optimizer's group with its label and the plan's names for its tensors."""

    optimizer: torch.optim.Optimizer
    group: Mapping[str, Any]
    label: str
    names: tuple[str, ...]


def defaults_of(optimizer: torch.optim.Optimizer) -> Mapping[str, Any]:
    """Empty for a wrapper that has none."""
    return getattr(optimizer, "defaults", {})


def seen_in_steps(
    plan: Plan,
    optimizers: Sequence[torch.optim.Optimizer],
    groups: Sequence[CheckedGroup],
    rule: Rule,
) -> tuple[list[str], list[str]]:
    """(faults, what could not be seen)."""
    faults: list[str] = []
    opaque: list[str] = []
    for optimizer in optimizers:
        own = [one for one in groups if one.optimizer is optimizer]
        kind = type(optimizer).__name__
        if left := _left_by_control(optimizer, own):
            faults.append(left)
            continue

        opaque += _beside_its_step(optimizer)
        alone = probe_step(optimizer)
        hooked = probe_step(optimizer, hooks=True) if _hooks(optimizer) else alone
        if alone.opaque:
            opaque.append(f"{kind}: {alone.opaque}")
            continue
        moved = _moved_by_schedule(own, alone.groups, hooked.groups)
        controlled = any("rule" in one.group and "rule" not in defaults_of(optimizer) for one in own)
        for one, plain, with_hooks in zip(own, alone.groups, hooked.groups or alone.groups, strict=True):
            seen = with_hooks if controlled else plain
            if seen.opaque:
                opaque.append(f"{one.label} of {kind}: {seen.opaque}")
                continue
            # A schedule of λ among the hooks writes its own over any that is tried, which is no reading of λ.
            written_over = seen.decay_per_step > 0 and plain.reads_weight_decay and not seen.reads_weight_decay
            scheduled = controlled and ("decay_step" in one.group or written_over)
            if one.names and not scheduled:
                faults += _step_faults(plan, one, seen, rule)
            if seen.idle_steps:
                opaque.append(
                    f"{one.label} of {kind}: weight_decay changes nothing in its next {seen.idle_steps} steps, and "
                    "what it removes after them has no number"
                )
            elif seen.form == "other":
                opaque.append(
                    f"{one.label} of {kind}: λ enters neither beside the gradient nor through it, so what it removes "
                    "has no number"
                )
            if not controlled:
                faults += _added_by_hooks(one, plain, with_hooks, moved)
        if hooked.opaque:
            opaque.append(f"the step hooks of {kind}: {hooked.opaque}")
    return faults, opaque


def _hooks(optimizer: torch.optim.Optimizer) -> list[Any]:
    """What is called beside each of its steps."""
    tables = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return [hook for table in tables for hook in getattr(optimizer, table, {}).values()]


def _beside_its_step(optimizer: torch.optim.Optimizer) -> list[str]:
    """What acts beside the optimizer's step and is in no copy of it."""
    kind, unseen = type(optimizer).__name__, []
    if step_is_replaced(optimizer):
        title = getattr(optimizer.step, "__qualname__", type(optimizer.step).__name__)
        unseen.append(f"what `{title}` does, which stands in the place of `step` of this {kind}: copies do not call it")
    if hooks := hooks_of_all():
        titles = ", ".join(getattr(hook, "__qualname__", type(hook).__name__) for hook in hooks)
        unseen.append(f"the hooks of the steps of all optimizers ({titles}), which no copy calls")
    return unseen


def _left_by_control(optimizer: torch.optim.Optimizer, groups: Sequence[CheckedGroup]) -> str:
    """A copy of a controlled optimizer keeps the groups' rule and loses the hooks that make it."""
    ruled = [one for one in groups if "rule" in one.group]
    if not ruled or _makes_rules(optimizer):
        return ""
    return (
        f"{ruled[0].label} has the rule '{ruled[0].group['rule']}', and nothing on this {type(optimizer).__name__} "
        "makes it: a copied or unpickled optimizer loses its hooks; control the copy anew"
    )


def _makes_rules(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it has rules, or is under control, itself or as a wrapper of one that has or is."""
    # A control is an object with hooks that can say what it will do.
    controls = any(hasattr(getattr(hook, "__self__", None), "decay_per_step") for hook in _hooks(optimizer))
    held = [one for one in vars(optimizer).values() if isinstance(one, torch.optim.Optimizer) and one is not optimizer]
    return "rule" in defaults_of(optimizer) or controls or any(map(_makes_rules, held))


def _step_faults(plan: Plan, one: CheckedGroup, seen: GroupReport, rule: Rule) -> list[str]:
    kind, λ = type(one.optimizer).__name__, float(one.group.get("weight_decay", 0.0))
    wants_decay = any(plan[name].decays for name in one.names) and λ > 0 and not _rests(one)
    faults = []
    if seen.hidden_decay > _HIDDEN and seen.form != "coupled":
        faults.append(
            f"{one.label}: {kind} removes {seen.hidden_decay:.3g} of its weights at each step even if weight_decay is "
            "0: it decays by a setting of its own"
        )
    if not wants_decay:
        return faults
    if not seen.reads_weight_decay:
        seen_on = f"a small copy that made {STEPS_WITHOUT_PHASE} steps"
        return [*faults, f"{one.label}: {kind} does not read weight_decay, so λ {λ:g} decays nothing (on {seen_on})"]

    if seen.decays_apart:
        return [*faults, f"{one.label}: a step of {kind} takes more of some of its tensors than of others"]
    if seen.heeds_zeros:
        faults.append(f"{one.label}: {kind} decays weights whose gradient is 0 otherwise than the others")
    if seen.form == "coupled" and not rule.coupled:
        faults.append(
            f"{one.label}: {kind} adds λ·w to the gradient (coupled decay) where the plan means w ← (1 − lr·λ)·w: use "
            "torch.optim.AdamW or weightdecay.SGDW, or weightdecay.control, or say rule='l2' if that is meant"
        )
    elif seen.form == "decoupled" and rule.coupled and not seen.through_gradient:
        faults.append(f"{one.label}: {kind} decays beside the gradient, and rule='l2' means through it")
    elif (asked := _other_amount(one, seen, rule)) is not None:
        formula = f"lr·λ = {asked:.3g}" if rule.is_torchs else f"{asked:.3g}"
        faults.append(
            f"{one.label}: a step of {kind} removes {seen.decay_per_step:.3g} of a weight where {formula} is meant: "
            "weightdecay.convert gives the λ for its convention, or say which rule is meant"
        )
    return faults


def _rests(one: CheckedGroup) -> bool:
    """Whether the group's own rule asks for no decay at its present lr, as most do at 0."""
    try:
        return "rule" in one.group and group_decay_per_step(one.group) == 0.0
    except OptimizerError:  # an lr above the peak, say, which its next step will tell
        return False


def _other_amount(one: CheckedGroup, seen: GroupReport, rule: Rule) -> float | None:
    """What a step should remove, where a group that says no rule of its own removes something else."""
    lr, λ, peak = (one.group.get(key) for key in ("lr", "weight_decay", "peak_lr"))
    if seen.form != "decoupled" or seen.idle_steps or lr is None or λ is None:
        return None
    if "rule" in one.group:
        if one.group["rule"] not in (DECOUPLED, DECOUPLED.name):
            return None  # ours and controlled ones make their own rule
        rule = DECOUPLED

    if rule.is_torchs and seen.own_decay_is_lr_times_lambda:
        return None
    if not rule.is_scalar or (rule.needs_peak and peak is None):
        return None  # a mask or a target has no such number
    asked = rule.decay_per_step(float(lr), float(λ), None if peak is None else float(peak))
    return None if math.isclose(seen.decay_per_step, asked, rel_tol=_ALIKE, abs_tol=1e-7) else asked


def _moved_by_schedule(
    groups: Sequence[CheckedGroup], alone: Sequence[GroupReport], hooked: Sequence[GroupReport]
) -> float:
    """By which factor the hooks of a λ schedule move all decay alike; 1 where no schedule is seen."""
    for one, plain, with_hooks in zip(groups, alone, hooked, strict=False):
        if "decay_step" in one.group and plain.decay_per_step > 0:
            return with_hooks.decay_per_step / plain.decay_per_step
    return 1.0


def _added_by_hooks(one: CheckedGroup, alone: GroupReport, hooked: GroupReport, moved: float) -> list[str]:
    expected = alone.decay_per_step * moved
    if hooked.opaque or math.isclose(expected, hooked.decay_per_step, rel_tol=_ALIKE, abs_tol=1e-7):
        return []
    kind = type(one.optimizer).__name__
    said = (
        f"{one.label}: with its step hooks {kind} removes {hooked.decay_per_step:.3g} of a weight at each step, and "
        f"{alone.decay_per_step:.3g} without them: a hook decays, too"
    )
    return [said]
