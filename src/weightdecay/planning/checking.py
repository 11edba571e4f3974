"""Whether optimizers really carry a plan: their groups beside it, and what their step does with them.

The groups say what was asked for. Whether the optimizer reads it, and means by λ what the plan means, is seen from a
step of a small copy.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from weightdecay.errors import CheckFailedError
from weightdecay.planning.comparison import some
from weightdecay.probing.probe import GroupReport, probe_step

if TYPE_CHECKING:
    from weightdecay.planning.decay_plan import DecayPlan

_COUPLED, _DECOUPLED = "l2", "decoupled"  # what `rule` may say of λ, as rules are named
_REL, _ABS = 1e-9, 1e-15  # of two λ that were computed in different ways
_ALIKE = 0.02  # of two decays per step, of which one was measured in float32
_KEYS = ("weight_decay", "lr", "lr_multiplier", "decay_multiplier", "param_names")


@dataclass(frozen=True)
class OptimizerCheck:
    """What optimizers do otherwise than the plan says, a sentence each.

    Attributes:
        opaque: what could not be seen, and why; no fault.
    """

    faults: tuple[str, ...]
    opaque: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.faults

    def raise_if_wrong(self) -> None:
        """Raises CheckFailedError with all sentences if there is any."""
        if self.faults:
            raise CheckFailedError("\n".join(self.faults))

    def __str__(self) -> str:
        remarks = [f"not seen: {reason}" for reason in self.opaque]
        return "\n".join([*self.faults, *remarks] if self.faults else ["the optimizer carries the plan", *remarks])


@dataclass(frozen=True)
class _Checked:
    """An optimizer's group with its label and the plan's names for its tensors."""

    optimizer: torch.optim.Optimizer
    group: Mapping[str, Any]
    label: str
    names: tuple[str, ...]


def check(
    plan: DecayPlan,
    optimizers: Sequence[torch.optim.Optimizer],
    parameters: Mapping[str, torch.Tensor],
    rule: object | None = None,
) -> OptimizerCheck:
    """Compare optimizers with the plan, tensor by tensor, and look at a step of each.

    Args:
        plan: the plan that should be carried.
        optimizers: those that train the model, together.
        parameters: canonical name to tensor, of the model that they train.
        rule: how λ is meant, if not as torch.optim.AdamW means it.
    """
    held: dict[int, list[str]] = {}
    for tensor in plan:
        if not tensor.frozen and tensor.name in parameters:
            held.setdefault(id(parameters[tensor.name]), []).append(tensor.name)
    groups = list(_checked(optimizers, held))

    faults = _misplaced(plan, held, groups)
    for one in groups:
        faults += _misspelt(one) + _wrong_decay(plan, one) + _misnamed(one, held)
    for optimizer in optimizers:
        own = [one for one in groups if one.optimizer is optimizer]
        faults += _wrong_rates(plan, own)
    seen, opaque = _seen_in_steps(plan, optimizers, groups, rule)
    return OptimizerCheck(tuple(faults + seen), tuple(opaque))


def _checked(optimizers: Sequence[torch.optim.Optimizer], held: Mapping[int, Sequence[str]]) -> Iterator[_Checked]:
    for optimizer in optimizers:
        whose = f" of {type(optimizer).__name__}" if len(optimizers) > 1 else ""
        for index, group in enumerate(optimizer.param_groups):
            label = f"group {index}" + (f" '{group['name']}'" if "name" in group else "") + whose
            names = tuple(name for parameter in group["params"] for name in held.get(id(parameter), ()))
            yield _Checked(optimizer, group, label, names)


# --- groups beside the plan


def _misplaced(plan: DecayPlan, held: Mapping[int, Sequence[str]], groups: Sequence[_Checked]) -> list[str]:
    placed: dict[int, int] = {}
    for one in groups:
        for parameter in one.group["params"]:
            placed[id(parameter)] = placed.get(id(parameter), 0) + 1
    missing = [name for key, names in held.items() for name in names if key not in placed]
    doubled = [name for key, names in held.items() for name in names if placed.get(key, 0) > 1]
    strangers = sum(key not in held for key in placed)
    faults = []
    if missing:
        faults.append(
            f"{len(missing)} of the plan's {len(plan)} tensors are in no group and will not train: {some(missing)}. "
            "Was the optimizer made before the model was wrapped, sharded or moved?"
        )
    if doubled:
        faults.append(f"{len(doubled)} tensors are listed more than once and decay as often: {some(doubled)}")
    if strangers:
        faults.append(f"{strangers} of the optimizer's tensors are not trainable tensors of the plan's model")
    return faults


def _misspelt(one: _Checked) -> list[str]:
    known = {*_KEYS, *one.optimizer.defaults}
    near = {
        key: difflib.get_close_matches(str(key), known - {key}, n=1, cutoff=0.85) for key in one.group.keys() - known
    }
    return [
        f"{one.label} has '{key}', which nothing reads: did you mean '{found[0]}'?"
        for key, found in sorted(near.items())
        if found
    ]


def _wrong_decay(plan: DecayPlan, one: _Checked) -> list[str]:
    """λ of one group against the plan's; while a schedule sets it, its share alone."""
    group, actual = one.group, float(one.group.get("weight_decay", 0.0))
    scheduled = "decay_step" in group and "decay_multiplier" in group
    what, actual = ("decay_multiplier", float(group["decay_multiplier"])) if scheduled else ("λ", actual)
    wanted: dict[float, list[str]] = {}
    for name in one.names:
        wanted.setdefault(plan[name].multiplier if scheduled else plan[name].weight_decay, []).append(name)
    if len(wanted) > 1:
        parts = "; ".join(
            f"{len(names)} with {what} {value:g} ({some(names)})" for value, names in sorted(wanted.items())
        )
        return [f"{one.label} merges what the plan keeps apart, all with {what} {actual:g}: {parts}"]

    astray = {value: names for value, names in wanted.items() if not _close(value, actual)}
    return [
        f"{one.label} has {what} {actual:g}, the plan says {value:g} for its {len(names)} tensors ({some(names)}). "
        "Was it set by a loaded state? load_state_dict restores the λ of every saved group"
        for value, names in astray.items()
    ] + _lost_share(one, scheduled)


def _lost_share(one: _Checked, scheduled: bool) -> list[str]:
    """A scheduled group whose λ is not in proportion to its share."""
    if not scheduled or one.group["decay_multiplier"]:
        return []
    λ = float(one.group.get("weight_decay", 0.0))
    return [f"{one.label} has λ {λ:g} and a share of 0: something else than the schedule set it"] if λ else []


def _wrong_rates(plan: DecayPlan, groups: Sequence[_Checked]) -> list[str]:
    """η over its plan's multiplier is one number over an optimizer's groups."""
    bases: dict[float, list[_Checked]] = {}
    for one in groups:
        multipliers = {plan[name].lr_multiplier for name in one.names}
        if len(multipliers) == 1 and "lr" in one.group and (multiplier := multipliers.pop()):
            base = float(one.group["lr"]) / multiplier
            near = next((known for known in bases if math.isclose(known, base, rel_tol=1e-6)), base)
            bases.setdefault(near, []).append(one)
    planned = any(tensor.lr_multiplier != 1.0 for tensor in plan)
    marked = any("lr_multiplier" in one.group for one in groups)
    if len(bases) < 2 or not (planned or marked):
        return []
    parts = "; ".join(
        f"{', '.join(one.label for one in ones)}: lr {float(ones[0].group['lr']):g} at a multiplier of "
        f"{plan[ones[0].names[0]].lr_multiplier:g}"
        for ones in bases.values()
    )
    return [f"the groups' lr are not in the plan's proportions ({parts}): one of its lr multipliers is lost"]


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_REL, abs_tol=_ABS)


def _misnamed(one: _Checked, held: Mapping[int, Sequence[str]]) -> list[str]:
    written = one.group.get("param_names")
    if written is None:
        return []
    parameters: Iterable[torch.Tensor] = one.group["params"]
    found = [tuple(held.get(id(parameter), ())) for parameter in parameters]
    if len(found) != len(written):
        return [f"{one.label} has {len(found)} tensors and {len(written)} names: state saved by name would go astray"]

    pairs = [(name, names[0]) for name, names in zip(written, found, strict=True) if names and name not in names]
    prefixed = [f"'{name}'" for name, own in pairs if name.endswith(f".{own}")]
    swapped = [f"'{name}' is {own}" for name, own in pairs if not name.endswith(f".{own}")]
    faults = []
    if prefixed:
        faults.append(f"{one.label} has names that a wrapper made: {some(prefixed)}; state saved so fits no bare model")
    if swapped:
        faults.append(f"{one.label} names {len(swapped)} tensors wrongly, as if reordered: {some(swapped)}")
    return faults


# --- what a step does


def _seen_in_steps(
    plan: DecayPlan, optimizers: Sequence[torch.optim.Optimizer], groups: Sequence[_Checked], rule: object | None
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

        alone, hooked = probe_step(optimizer), probe_step(optimizer, hooks=True)
        if alone.opaque:
            opaque.append(f"{kind}: {alone.opaque}")
            continue
        moved = _moved_by_schedule(own, alone.groups, hooked.groups)
        controlled = any("rule" in one.group and "rule" not in optimizer.defaults for one in own)
        for one, plain, with_hooks in zip(own, alone.groups, hooked.groups or alone.groups, strict=True):
            seen = with_hooks if controlled else plain
            if seen.opaque:
                opaque.append(f"{one.label} of {kind}: {seen.opaque}")
                continue
            if one.names:
                faults += _step_faults(plan, one, seen, rule)
            if not controlled:
                faults += _added_by_hooks(one, plain, with_hooks, moved)
        if hooked.opaque:
            opaque.append(f"the step hooks of {kind}: {hooked.opaque}")
    return faults, opaque


def _left_by_control(optimizer: torch.optim.Optimizer, groups: Sequence[_Checked]) -> str:
    """A copy of a controlled optimizer keeps the groups' rule and loses the hooks that make it."""
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {})
    ruled = [one for one in groups if "rule" in one.group]
    if not ruled or "rule" in optimizer.defaults or hooks:
        return ""
    return (
        f"{ruled[0].label} has the rule '{ruled[0].group['rule']}', and nothing on this {type(optimizer).__name__} "
        "makes it: a copied or unpickled optimizer loses its hooks; control the copy anew"
    )


def _step_faults(plan: DecayPlan, one: _Checked, seen: GroupReport, rule: object | None) -> list[str]:
    kind, λ = type(one.optimizer).__name__, float(one.group.get("weight_decay", 0.0))
    wants_decay = any(plan[name].decays for name in one.names) and λ > 0
    faults = []
    if seen.hidden_decay > _ABS and seen.form != "coupled":
        faults.append(
            f"{one.label}: {kind} removes {seen.hidden_decay:.3g} of its weights at each step even if weight_decay is "
            "0: it decays by a setting of its own"
        )
    if not wants_decay:
        return faults
    if not seen.reads_weight_decay:
        return [*faults, f"{one.label}: {kind} does not read weight_decay, so λ {λ:g} decays nothing"]

    coupled = rule == _COUPLED or bool(getattr(rule, "coupled", False))
    if seen.form == "coupled" and not coupled:
        faults.append(
            f"{one.label}: {kind} adds λ·w to the gradient (coupled decay) where the plan means w ← (1 − lr·λ)·w: use "
            "torch.optim.AdamW or weightdecay.SGDW, or weightdecay.control, or say rule='l2' if that is meant"
        )
    elif seen.form == "decoupled" and coupled:
        faults.append(f"{one.label}: {kind} decays beside the gradient, and rule='l2' means through it")
    elif _other_amount(one, seen, rule):
        lr = float(one.group["lr"])
        faults.append(
            f"{one.label}: a step of {kind} removes {seen.decay_per_step:.3g} of a weight where lr·λ = {lr * λ:.3g} is "
            "meant: weightdecay.convert gives the λ for its convention, or say which rule is meant"
        )
    return faults


def _other_amount(one: _Checked, seen: GroupReport, rule: object | None) -> bool:
    """Whether a group that says no rule decays by another amount than lr·λ."""
    said = one.group.get("rule", rule if rule is not None else _DECOUPLED)
    if said != _DECOUPLED or seen.form != "decoupled" or seen.own_decay_is_lr_times_lambda:
        return False
    asked = float(one.group["lr"]) * float(one.group["weight_decay"])
    return not math.isclose(seen.decay_per_step, asked, rel_tol=_ALIKE, abs_tol=1e-7)


def _moved_by_schedule(
    groups: Sequence[_Checked], alone: Sequence[GroupReport], hooked: Sequence[GroupReport]
) -> float:
    """By which factor the hooks of a λ schedule move all decay alike; 1 where no schedule is seen."""
    for one, plain, with_hooks in zip(groups, alone, hooked, strict=False):
        if "decay_step" in one.group and plain.decay_per_step > 0:
            return with_hooks.decay_per_step / plain.decay_per_step
    return 1.0


def _added_by_hooks(one: _Checked, alone: GroupReport, hooked: GroupReport, moved: float) -> list[str]:
    expected = alone.decay_per_step * moved
    if hooked.opaque or math.isclose(expected, hooked.decay_per_step, rel_tol=_ALIKE, abs_tol=1e-7):
        return []
    kind = type(one.optimizer).__name__
    said = (
        f"{one.label}: with its step hooks {kind} removes {hooked.decay_per_step:.3g} of a weight at each step, and "
        f"{alone.decay_per_step:.3g} without them: a hook decays, too"
    )
    return [said]
