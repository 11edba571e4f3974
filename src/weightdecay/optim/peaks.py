"""The highest lr of each group's schedule, as `control` is given it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from weightdecay.errors import did_you_mean, group_title
from weightdecay.optim.checks import number
from weightdecay.optim.grouping import Group
from weightdecay.rules import Rule

# One peak for all groups (of one lr), one for each in order, or by group name.
PeakLr: TypeAlias = float | Sequence[float] | Mapping[str, float]


def peak_faults(groups: Sequence[Group], rules: Sequence[Rule], peak_lr: PeakLr | None) -> list[str]:
    """What is wrong with the peaks: missing, unclear, or of no group."""
    asking = [index for index, rule in enumerate(rules) if rule.needs_peak]
    if isinstance(peak_lr, int | float) and len({number(groups[i]["lr"]) for i in asking}) > 1:
        return ["the groups have different lr, so one peak_lr would decay some of them too much: give one for each"]
    if isinstance(peak_lr, list | tuple) and len(peak_lr) != len(groups):
        return [f"{len(peak_lr)} peaks for {len(groups)} groups: give one for each, in their order"]

    faults = []
    if isinstance(peak_lr, Mapping):
        known = [str(group["name"]) for group in groups if "name" in group]
        faults += [
            f"peak_lr: no group is named '{name}': {did_you_mean(str(name), known)}"
            for name in peak_lr
            if name not in known
        ]
    for index in asking:
        found = peak_of(groups[index], index, peak_lr)
        peak = number(found)
        if peak is None or not (math.isfinite(peak) and peak > 0):
            faults.append(
                f"rule '{rules[index].name}' needs the peak lr of {group_title(groups[index], index)}, got {found}: "
                "give peak_lr, the highest lr of its schedule; it cannot be read from the optimizer"
            )
    return faults


def peak_of(group: Group, index: int, peak_lr: PeakLr | None) -> Any:
    """The peak that is given for a group, or its own."""
    found: Any = peak_lr
    if isinstance(peak_lr, Mapping):
        found = peak_lr.get(group.get("name", ""))
    elif isinstance(peak_lr, list | tuple):
        found = peak_lr[index]
    return group.get("peak_lr") if found is None else found
