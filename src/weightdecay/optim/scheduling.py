"""The schedules of η and λ at one step, applied to an optimizer: ours or another's.

    from weightdecay import apply_schedules
    from weightdecay.schedules import Cosine, Warmup

    lr = Warmup(100, then=Cosine(6e-4, 0.0, steps=9_900))
    for step, batch in enumerate(batches):
        apply_schedules(optimizer, step, lr=lr, weight_decay=0.1)
        model(batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

Each group takes its share: `lr_multiplier` of η and `decay_multiplier` of λ, which a decay plan writes into its groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from weightdecay.amounts import amount, number, whole
from weightdecay.errors import OptimizerError, group_title
from weightdecay.optim.grouping import Group, groups_in, unlike_in_one_tensor
from weightdecay.schedules import Schedule, is_schedule

# What η or λ is at each step.
Course: TypeAlias = float | Schedule


def apply_schedules(
    optimizer: torch.optim.Optimizer,
    step: int,
    *,
    lr: Course | None = None,
    weight_decay: Course | None = None,
    groups: Sequence[Group] | None = None,
) -> None:
    """Set η and λ of a step in an optimizer's groups.

        group["lr"] = η(step) · lr_multiplier          group["weight_decay"] = λ(step) · decay_multiplier

    A group without `decay_multiplier` gets its present proportion to the largest λ, once, and so one whose λ is 0 goes
    on not decaying; λ may be 0 for a while, and nothing is lost. A group without `lr_multiplier` takes η itself if all
    groups have one lr. torch's own schedulers, which write `lr`, may serve η instead.

    Args:
        optimizer: any whose groups have `lr` and `weight_decay`.
        step: counted from 0.
        lr, weight_decay: a number, or a schedule that gives one for a step; None leaves it alone.
        groups: those of the optimizer's to set; all, if not given.

    Raises:
        OptimizerError: with every fault: a schedule without a finite number of at least 0, groups whose share cannot
            be known, groups that are not the optimizer's. Nothing has changed then.
    """
    if groups is not None and not isinstance(groups, Sequence):
        raise OptimizerError(f"groups is {groups!r:.60}: give some of the optimizer's param_groups, or None for all")
    every = groups_in(optimizer)
    chosen = {id(group) for group in (every if groups is None else groups)}
    if faults := _call_faults(every, chosen, step):
        raise OptimizerError(faults)

    values, shares = {}, {}
    for key, course in (("lr", lr), ("weight_decay", weight_decay)):
        if course is None:
            continue
        given = course(step) if is_schedule(course) else course
        value = amount(given)
        if value is None:
            faults.append(f"{key} at step {step} is {given!r}: it must be a finite number of at least 0")
            continue
        shares[key], unknown = _shares(every, key, type(optimizer).__name__)
        wanted = zip(every, shares[key], strict=True)
        faults += unknown or unlike_in_one_tensor(
            every, key, [value * share if id(group) in chosen else number(group[key]) for group, share in wanted]
        )
        values[key] = value
    if faults:
        raise OptimizerError(faults)

    for key, value in values.items():
        for group, share in zip(every, shares[key], strict=True):
            group.setdefault(_MULTIPLIERS[key], share)
            if id(group) in chosen:
                _set(group, key, value * share)
                if key == "weight_decay":
                    group["decay_step"] = int(step)  # from now on a schedule says what λ is, and no plan


_MULTIPLIERS = {"lr": "lr_multiplier", "weight_decay": "decay_multiplier"}


def _call_faults(every: Sequence[Group], chosen: set[int], step: Any) -> list[str]:
    faults = []
    if (at := whole(step)) is None or at < 0:
        faults.append(f"step is {step!r}: give the number of the step, counted from 0")
    if foreign := len(chosen - {id(group) for group in every}):
        faults.append(f"{foreign} of groups are not the optimizer's: take them from its param_groups")
    return faults


def _shares(groups: Sequence[Group], key: str, kind: str) -> tuple[list[float], list[str]]:
    """Each group's share of η or λ, and the faults of those whose share cannot be known."""
    if without := [group_title(group, index) for index, group in enumerate(groups) if key not in group]:
        return [], [f"{kind} has no {key} in {', '.join(without)}: there is nothing to schedule"]
    multiplier = _MULTIPLIERS[key]
    own = [amount(group[multiplier]) if multiplier in group else None for group in groups]
    faults = [
        f"{group_title(group, index)} has {multiplier} {group[multiplier]!r}: give a finite number of at least 0"
        for index, (group, share) in enumerate(zip(groups, own, strict=True))
        if share is None and multiplier in group
    ]
    if faults:
        return [], faults
    return _lr_shares(groups, own, kind) if key == "lr" else _decay_shares(groups, own, kind)


def _decay_shares(groups: Sequence[Group], own: Sequence[float | None], kind: str) -> tuple[list[float], list[str]]:
    present = [number(group["weight_decay"]) or 0.0 for group in groups]
    unshared = [λ for λ, share in zip(present, own, strict=True) if share is None]
    # A plan's groups tell what λ their share is of; others are measured by the largest among them.
    bases = [λ / share for λ, share in zip(present, own, strict=True) if share]
    largest = max([*bases, *unshared], default=0.0)
    if unshared and not largest and len(unshared) == len(groups):
        words = "give the groups that a λ schedule is for a λ first, or a decay_multiplier"
        return [], [f"every group of {kind} has weight_decay 0: {words}"]
    proportions = [λ / largest if largest else 0.0 for λ in present]
    return [part if share is None else share for part, share in zip(proportions, own, strict=True)], []


def _lr_shares(groups: Sequence[Group], own: Sequence[float | None], kind: str) -> tuple[list[float], list[str]]:
    shares = [1.0 if share is None else share for share in own]
    unshared = [group_title(groups[index], index) for index, share in enumerate(own) if share is None]
    # The η that each group is at now: of one that another share or another scheduler moved, nobody knows the share.
    bases = [(number(group["lr"]) or 0.0) / share for group, share in zip(groups, shares, strict=True) if share]
    if unshared and not all(math.isclose(base, bases[0], rel_tol=1e-6) for base in bases):
        words = f"give each of {', '.join(unshared)} an lr_multiplier"
        return [], [f"the groups of {kind} have different lr, and their shares of one schedule are not known: {words}"]
    return shares, []


@torch.no_grad()
def _set(group: Group, key: str, value: float) -> None:
    """In place where it is a tensor, which captured graphs and compiled steps go on looking at."""
    if isinstance(group[key], Tensor):
        group[key].fill_(value)
    else:
        group[key] = value
